"""Fields: velocities. The exact ones are the truth that everything else is held against."""

from flowmatch.fields.bridge import Bridge
from flowmatch.fields.empirical import EmpiricalField
from flowmatch.fields.gaussian import GaussianField
from flowmatch.fields.mixture import MixtureField
from flowmatch.fields.predict import Predicts
from flowmatch.fields.reschedule import Rescheduled

__all__ = ["Bridge", "EmpiricalField", "GaussianField", "MixtureField", "Predicts", "Rescheduled"]
