"""Fields: velocities. The exact ones are the truth that everything else is held against."""

from flowmatch.fields.exact import EmpiricalField, GaussianField, MixtureField

__all__ = ["EmpiricalField", "GaussianField", "MixtureField"]
