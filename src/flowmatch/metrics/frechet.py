r"""Frechet distance of two Gaussians fitted to features, the number behind FID.

For :math:`N(\mu_1, S_1)` and :math:`N(\mu_2, S_2)` the squared 2-Wasserstein distance is

.. math:: |\mu_1 - \mu_2|^2 + tr(S_1) + tr(S_2) - 2 \, tr \big( (S_1^{1/2} S_2 S_1^{1/2})^{1/2} \big) .

**Root.** The eigenvalues of :math:`S_1^{1/2} S_2 S_1^{1/2}` are the squares of the singular values of
:math:`S_1^{1/2} S_2^{1/2}`. The last trace is therefore a sum of singular values, which needs no root of an eigenvalue
that is zero up to rounding: fewer rows than features, or features that are always zero, do no harm.

**Accumulation.** With count, mean and scatter :math:`Q = \sum_i (x_i - \mu)(x_i - \mu)^T` of two batches ``a`` and
``b``, those of their union are, for :math:`\delta = \mu_b - \mu_a`,

.. math:: \mu = \mu_a + \tfrac{n_b}{n} \delta, \qquad Q = Q_a + Q_b + \tfrac{n_a n_b}{n} \delta \delta^T .

**Bias.** Fitted to ``N`` and ``M`` rows the distance is too large by :math:`c\,(1/N + 1/M)` and terms that vanish
faster. For one normal law with eigenvalues :math:`\lambda_i` of the covariance, to that order,

.. math:: E = \Big( \tfrac1N + \tfrac1M \Big) \Big[ \sum_i \lambda_i
    + \tfrac12 \sum_{ij} \frac{\lambda_i \lambda_j (1 + \delta_{ij})}{\lambda_i + \lambda_j} \Big] ,

the first sum from the means, the second from the covariances: :math:`D + D (D + 1) / 4` in the brackets for the
identity. The constant differs from model to model, so two biased values need not even be in the right order.

Sources: Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, Eq. 6 (the distance); Chan, Golub and
LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979 (accumulation); Chong and
Forsyth, Effectively Unbiased FID and Inception Score and Where to Find Them, 2020 (bias).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.metrics.clouds import Cloud, clouds, subset
from flowmatch.tensors import check_finite

__all__ = ["FrechetStatistics", "frechet_distance"]

# Sizes at which the biased distance is taken to be extrapolated; the smallest as a share of all rows.
_SIZES = 15
_SMALLEST = 0.25
# Rows for each feature that the smallest size must have: the bias is a straight line in 1/N only for N >> D.
_ROWS_PER_FEATURE = 2


class FrechetStatistics:
    """Count, mean and covariance of features, gathered batch by batch in float64.

    In whatever batches the rows come, the result is that of all rows at once, up to rounding.

    Args:
        features: name of what made the features, such as ``net.label``. Statistics of two names are refused when they
            are merged or compared; without a name nothing is checked.

    Example:
        >>> statistics = FrechetStatistics().update(torch.zeros(2, 1)).update(torch.full((2, 1), 2.0))
        >>> statistics.count, statistics.mean, statistics.covariance
        (4, tensor([1.], dtype=torch.float64), tensor([[1.3333]], dtype=torch.float64))
    """

    def __init__(self, features: str = "") -> None:
        self.features = features
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def __repr__(self) -> str:
        dim = None if self._mean is None else self._mean.shape[0]
        return f"FrechetStatistics(count={self.count}, dim={dim}, features={self.features!r})"

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, ``(D,)``."""
        if self._mean is None:
            raise ValueError("there are no features yet; give some with update(features)")
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Covariance of the rows with the divisor ``N - 1``, ``(D, D)``."""
        if self._scatter is None or self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count}; give more with update(features)")
        return self._scatter / (self.count - 1)

    def update(self, features: Cloud) -> FrechetStatistics:
        """Add the rows of a batch ``(B, *event)``, ``B`` of any size; returns itself.

        Raises:
            ValueError: no batch dimension, another number of features, or entries that are NaN or infinite.
        """
        batch = torch.as_tensor(features).detach()
        if batch.ndim == 0:
            raise ValueError("features must have shape (B, *event), got a scalar")
        if not batch.shape[0]:
            return self
        check_finite(batch, "features")
        # Apple's GPU has no float64.
        rows = (batch.cpu() if batch.device.type == "mps" else batch).double().reshape(batch.shape[0], -1)
        mean = rows.mean(0)
        centred = rows - mean
        self._add(rows.shape[0], mean, centred.T @ centred)
        return self

    def merge(self, other: FrechetStatistics) -> FrechetStatistics:
        """Add the rows that ``other`` has seen, such as those of another process; returns itself.

        Raises:
            ValueError: another number of features, or features of another network.
        """
        _check_same_features(self, other)
        self.features = self.features or other.features
        if other._mean is not None and other._scatter is not None:
            self._add(other.count, other._mean, other._scatter)
        return self

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"rows must have {self._mean.shape[0]} features as before, got {mean.shape[0]}")
        total = self.count + count
        delta = mean.to(self._mean.device) - self._mean
        self._mean = self._mean + delta * (count / total)
        cross = torch.outer(delta, delta) * (self.count * count / total)
        self._scatter = self._scatter + scatter.to(self._scatter.device) + cross
        self.count = total

    def save(self, path: str | Path) -> Path:
        """Write the statistics to a ``.npz`` file, with ``mu`` and ``sigma`` as other FID programs read them.

        Raises:
            ValueError: the name does not end in ``.npz``, or fewer than 2 rows.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"the file must be named .npz, got {path.name!r}")
        mu, sigma = (v.cpu().numpy() for v in (self.mean, self.covariance))
        np.savez(path, mu=mu, sigma=sigma, count=self.count, features=self.features)
        return path

    @classmethod
    def load(cls, path: str | Path) -> FrechetStatistics:
        """Read statistics back from the ``.npz`` file that :meth:`save` wrote.

        Raises:
            InputError: not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                content: dict[str, Any] = {name: file[name] for name in ("mu", "sigma", "count", "features")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} holds no statistics of ours ({error}); give a .npz file written by FrechetStatistics.save"
            ) from None
        made = cls(str(content["features"]))
        made.count = int(content["count"])
        made._mean = torch.from_numpy(content["mu"]).double()
        made._scatter = torch.from_numpy(content["sigma"]).double() * (made.count - 1)
        return made


Sample: TypeAlias = "Cloud | FrechetStatistics"


def frechet_distance(x: Sample, y: Sample, unbiased: bool = False, generator: torch.Generator | None = None) -> float:
    r"""Frechet distance of the Gaussians fitted to two samples of features, in float64.

    .. math:: |\mu_x - \mu_y|^2 + tr(S_x) + tr(S_y) - 2 \, tr \big( (S_x^{1/2} S_y S_x^{1/2})^{1/2} \big)

    Range: 0 (equal means and covariances, and no more is seen) to infinity, in the squared unit of the features.
    With features of the Inception network it is FID; values in two kinds of features cannot be compared.

    Floor: two samples of one law are not at distance 0. For a standard normal with ``N`` rows each it is
    :math:`(2/N)(D + D (D + 1) / 4)` and a little more: ``2.2`` for ``D = 64`` and ``N = 1000``; the module's page has
    it for any normal law. Compare only values of one ``N``, beside the value for two halves of the data.

    Args:
        x: first sample, ``(N, *event)``, at least 2 rows, or its statistics.
        y: second sample, ``(M, *event)``, at least 2 rows, or its statistics.
        unbiased: extrapolate to infinitely many rows. The distance is taken for 15 equally spaced shares of both
            samples, from a quarter to all, and the straight line through it in 1/share is read at 0. Values may then
            be negative, and scatter more: the price of having no floor.
        generator: draws the rows of the shares. Without one they are the same in every call.

    Raises:
        ValueError: samples that cannot be compared, fewer than 2 rows, or too few to extrapolate: a quarter of them
            must be twice the number of features.
        TypeError: ``unbiased`` and statistics, which no longer know the rows.

    Source:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, Eq. 6. Extrapolation: Chong and Forsyth,
        Effectively Unbiased FID and Inception Score and Where to Find Them, 2020, section 4, there for one sample of
        the two and with 5000 rows at least.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> frechet_distance(x, x + 3), round(frechet_distance(x, 2 * x), 6)
        (9.0, 3.0)
    """
    if isinstance(x, FrechetStatistics) or isinstance(y, FrechetStatistics):
        if unbiased:
            raise TypeError(
                "unbiased=True needs the features themselves, not FrechetStatistics: it takes parts of them"
            )
        return _distance(_statistics(x), _statistics(y))
    a, b = clouds(x, y, least=2)
    return _extrapolated(a, b, generator) if unbiased else _distance(_statistics(a), _statistics(b))


def _statistics(sample: Sample) -> FrechetStatistics:
    return sample if isinstance(sample, FrechetStatistics) else FrechetStatistics().update(sample)


def _distance(x: FrechetStatistics, y: FrechetStatistics) -> float:
    _check_same_features(x, y)
    a, b = x.covariance, y.covariance.to(x.covariance.device)
    if a.shape != b.shape:
        raise ValueError(f"x and y must have one number of features, got {a.shape[0]} and {b.shape[0]}")
    shift = (x.mean - y.mean.to(a.device)).square().sum()
    overlap = torch.linalg.svdvals(_root(a) @ _root(b)).sum()
    # Where both are equal the terms cancel, up to a rounding that may be negative.
    return max(float(shift + a.trace() + b.trace() - 2 * overlap), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    # An eigenvalue that is zero may come out as minus a rounding.
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _extrapolated(a: Tensor, b: Tensor, generator: torch.Generator | None) -> float:
    rows, dim = min(a.shape[0], b.shape[0]), a.shape[1]
    if _SMALLEST * rows < _ROWS_PER_FEATURE * dim:
        raise ValueError(
            f"unbiased=True needs at least {round(_ROWS_PER_FEATURE / _SMALLEST * dim)} rows of each for {dim} "
            f"features, got {a.shape[0]} and {b.shape[0]}; give more rows, or compare at one size with unbiased=False"
        )
    rng = torch.Generator().manual_seed(0) if generator is None else generator
    shares = np.linspace(_SMALLEST, 1.0, _SIZES)
    values = []
    for share in shares:
        part, other = (subset(v, round(share * v.shape[0]), rng) for v in (a, b))
        values.append(_distance(_statistics(part), _statistics(other)))
    return float(np.polynomial.Polynomial.fit(1 / shares, values, 1)(0.0))


def _check_same_features(x: FrechetStatistics, y: FrechetStatistics) -> None:
    if x.features and y.features and x.features != y.features:
        raise ValueError(f"features of {x.features} and of {y.features} cannot be compared; make both with one network")
