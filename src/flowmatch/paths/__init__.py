"""Paths: how a source sample is joined to a data sample."""

from flowmatch.paths.affine import AffinePath, Kind
from flowmatch.paths.base import FunctionPath, Path, PathSample
from flowmatch.paths.check import PathError, PathReport, check_path
from flowmatch.paths.gaussian import ConditionalGaussianPath, GaussianPath
from flowmatch.paths.interpolant import BrownianBridge, InterpolantPath

__all__ = [
    "AffinePath",
    "BrownianBridge",
    "ConditionalGaussianPath",
    "FunctionPath",
    "GaussianPath",
    "InterpolantPath",
    "Kind",
    "Path",
    "PathError",
    "PathReport",
    "PathSample",
    "check_path",
]
