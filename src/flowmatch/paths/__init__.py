"""Paths: how a source sample is joined to a data sample."""

from flowmatch.paths.affine import AffinePath
from flowmatch.paths.base import FunctionPath, Path, PathSample
from flowmatch.paths.gaussian import ConditionalGaussianPath, GaussianPath

__all__ = ["AffinePath", "ConditionalGaussianPath", "FunctionPath", "GaussianPath", "Path", "PathSample"]
