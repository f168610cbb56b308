"""The scikit-learn face."""

try:
    import sklearn  # noqa: F401
except ImportError:
    raise ImportError('flowmatch.estimators needs scikit-learn: pip install "flowmatch[train,tables]"') from None

from flowmatch.estimators.density import FlowDensity

__all__ = ["FlowDensity"]
