"""Fields: velocities. The exact ones are the truth that everything else is held against."""

from flowmatch.fields.bridge import Bridge
from flowmatch.fields.empirical import EmpiricalField
from flowmatch.fields.energy import EnergyGuided
from flowmatch.fields.gaussian import GaussianField
from flowmatch.fields.guidance import AutoGuided, Guided
from flowmatch.fields.inpaint import Inpainting
from flowmatch.fields.inverse import Observed
from flowmatch.fields.mixture import MixtureField
from flowmatch.fields.plug_and_play import plug_and_play
from flowmatch.fields.predict import Predicts
from flowmatch.fields.repaint import repaint
from flowmatch.fields.reschedule import Rescheduled
from flowmatch.fields.stochastic import MarginalSDE

__all__ = [
    "AutoGuided",
    "Bridge",
    "EmpiricalField",
    "EnergyGuided",
    "GaussianField",
    "Guided",
    "Inpainting",
    "MarginalSDE",
    "MixtureField",
    "Observed",
    "Predicts",
    "Rescheduled",
    "plug_and_play",
    "repaint",
]
