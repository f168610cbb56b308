r"""Conditional flow matching: regress a field on the velocity of single paths.

**Why the easy target has the right gradient.** We want :math:`v_\theta(t, x)` near the marginal velocity
:math:`u_t(x) = E[u_t | x_t = x]`, that is the loss :math:`L(\theta) = E |v_\theta(t, x_t) - u_t(x_t)|^2`, but
:math:`u_t(x)` is an intractable average. Take instead the velocity of the one path that was drawn,
:math:`L_c(\theta) = E |v_\theta(t, x_t) - u_t(x_t | x_0, x_1)|^2`. Expand both squares. The terms in
:math:`|v_\theta|^2` are the same. The cross terms are the same too, because conditioning on :math:`x_t` first gives
:math:`E[\langle v_\theta(t, x_t), u_t(\cdot | x_0, x_1)\rangle] = E[\langle v_\theta(t, x_t), u_t(x_t)\rangle]`. What
is left has no :math:`\theta` in it. So

.. math:: L_c(\theta) = L(\theta) + E\,\mathrm{Var}[u_t | x_t], \qquad \nabla L_c = \nabla L .

The constant is why the loss does not go to zero: it is the spread of the paths that cross at one point, and it
is zero only for a coupling whose paths do not cross.

**Other targets.** On an affine path the network may predict the data, the noise or the score instead
(``predicts=``); it then regresses on :math:`x_1`, on :math:`x_0` or, for the score in units of the noise, on
:math:`-x_0` by :math:`\sigma s`. :class:`~flowmatch.Predicts` turns the trained network into a velocity field.

**Other times.** With a density ``q`` of times on an interval of length ``h`` the expected loss is
:math:`\int q(t)\, \ell(t) dt`. The weights :math:`1 / (h\, q(t))` make it the uniform one again (``unbiased=True``):
same loss, other noise in its gradient.

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Theorem 2, Eq. 9,
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import copy
from typing import cast, get_args

import torch
from torch import Tensor, nn

from flowmatch.couplings import Independent
from flowmatch.objectives.base import Draw, Loss
from flowmatch.objectives.weighting import Weighting
from flowmatch.paths import AffinePath, Kind, Path, PathSample
from flowmatch.sources import Normal
from flowmatch.tensors import check_event, check_shaped, expand_time, mean_event, take, time_dtype
from flowmatch.times import Uniform
from flowmatch.typing import Cond, Coupling, Field, Source, Times

__all__ = ["FlowMatching"]


class FlowMatching:
    r"""The conditional flow matching loss of any path.

    .. math:: \ell = \frac{1}{d} | v_\theta(t, x_t) - u_t |^2

    with :math:`x_t` and :math:`u_t` from the path, ``t`` from ``times`` and pairs from ``coupling``. The mean over the
    event in place of the sum keeps learning rates alike across dimensions; the minimiser is the same.

    Args:
        path: how ``x0`` is joined to ``x1``.
        coupling: who is joined to whom; independent pairs by default.
        times: where training looks; uniform on the path's regular interval by default.
        source: where ``x0`` comes from when none is given; standard normal by default.
        predicts: what the model returns: ``"velocity"`` or, on an affine path, ``"target"``, ``"noise"`` or
            ``"score"``.
        weighting: a :class:`~flowmatch.objectives.Weighting` of the error over time; by default the plain squared error
            of what the model predicts (for a score, of :math:`\sigma_t s`).
        unbiased: weigh by one over the density of ``times``, so that the expected loss is that of uniform times.

    Raises:
        TypeError: ``path`` is not a :class:`~flowmatch.Path`, or not affine where ``predicts`` or ``weighting`` needs
            it.
        ValueError: ``times`` reach beyond the path's regular interval, have no density where ``unbiased`` needs one, or
            ``predicts`` is unknown.

    Source:
        Lipman et al. 2023, Eq. 9 and 14.

    Example:
        >>> import flowmatch as fm
        >>> objective = fm.FlowMatching(fm.AffinePath(fm.Linear()))
        >>> x1 = torch.zeros(4, 2)
        >>> loss = objective(lambda t, x: -x, x1, generator=torch.Generator().manual_seed(0))
        >>> loss.values.shape
        torch.Size([4])
    """

    def __init__(
        self,
        path: Path,
        coupling: Coupling | None = None,
        times: Times | None = None,
        source: Source | None = None,
        predicts: Kind = "velocity",
        weighting: Weighting | None = None,
        unbiased: bool = False,
    ) -> None:
        if not isinstance(path, Path):
            raise TypeError(f"path must be a flowmatch Path such as fm.AffinePath(fm.Linear()), got {path!r}")
        if predicts not in get_args(Kind):
            raise ValueError(f"predicts must be one of {', '.join(get_args(Kind))}, got {predicts!r}")
        if (predicts != "velocity" or weighting is not None) and not isinstance(path, AffinePath):
            raise TypeError(
                f"predicts={predicts!r} and weighting={weighting!r} need an affine path, got {path!r}; "
                "on other paths a model predicts the velocity, without weights"
            )
        self.path = path
        self.coupling: Coupling = Independent() if coupling is None else coupling
        self.times: Times = Uniform(*path.interval) if times is None else times
        low, high = path.interval
        # Told now, not by the one draw in 10^5 that hits the singularity.
        if getattr(times, "low", low) < low or getattr(times, "high", high) > high:
            name = type(times).__name__
            raise ValueError(
                f"{times!r} reaches beyond [{low}, {high}], where {path!r} is regular; give {name} with low={low} and "
                f"high={high}"
            )
        if unbiased and not hasattr(self.times, "density"):
            raise ValueError(f"unbiased=True needs times with a method density(t), got {times!r}")
        self.source: Source = Normal() if source is None else source
        self.predicts, self.weighting, self.unbiased = predicts, weighting, unbiased

    def __call__(
        self,
        model: Field,
        x1: Tensor,
        x0: Tensor | None = None,
        cond: Cond = None,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Loss of ``model`` on a batch.

        Args:
            model: the field to train, called once.
            x1: data ``(B, *event)``.
            x0: source samples ``(B, *event)``; drawn from ``source`` if not given.
            cond: condition of every row of ``x1``; it follows ``x1`` through the coupling.
            generator: source of all randomness.

        Returns:
            The :class:`Loss`, one value a sample.
        """
        return self.loss(model, self.draw(x1, x0, cond, generator))

    def draw(
        self,
        x1: Tensor,
        x0: Tensor | None = None,
        cond: Cond = None,
        generator: torch.Generator | None = None,
        size: int | None = None,
    ) -> Draw:
        """Spend all the randomness of a batch; the arguments of the call, without the model.

        ``size`` is the number of source points where ``x0`` is not given, for a coupling of the whole data set; the
        number of rows of ``x1`` by default.
        """
        check_event(x1, "x1")
        if x0 is None:
            rows = x1.shape[0] if size is None else size
            x0 = self.source.sample((rows, *x1.shape[1:]), generator, x1.device, x1.dtype)
        if not isinstance(self.coupling, Independent):  # which would only copy the batch
            i, j = self.coupling(x0, x1, cond, generator)
            x0, x1, cond = x0[i], x1[j], take(cond, j)
        t = self.times(x1.shape[0], generator, x1.device, time_dtype(x1.dtype))
        return Draw(self.path.sample(t, x0, x1, generator), cond)

    @property
    def by_row(self) -> bool:
        """Whether the draw of a row depends on that row alone, so that a batch may be drawn in parts."""
        return isinstance(self.coupling, Independent)

    @property
    def whole_data(self) -> bool:
        """Whether ``x1`` has to be the whole data set, because the coupling was fitted to it."""
        return bool(getattr(self.coupling, "whole_data", False))

    def loss(self, model: Field, draw: Draw) -> Loss:
        """Loss of ``model`` on a draw."""
        sample, cond = draw
        value = model(sample.t, sample.x_t) if cond is None else model(sample.t, sample.x_t, cond)
        check_shaped(value, sample.x_t, "model", self.predicts)
        # Differences of half precision numbers are taken, and summed, in float32.
        wide = time_dtype(value.dtype)
        residual = self._residual(value.to(wide), sample, wide)
        values = mean_event(residual * residual)
        if self.weighting is not None:
            values = self.weighting(values, cast(AffinePath, self.path), sample.t, self.predicts)
        if self.unbiased:
            low, high = getattr(self.times, "low", 0.0), getattr(self.times, "high", 1.0)
            values = values / ((high - low) * self.times.density(sample.t).to(values.dtype))  # type: ignore[attr-defined]
        return Loss(values, sample.t)

    def parameters(self) -> list[nn.Parameter]:
        """Weights of the objective's own, of a learnt weighting, to be trained with the model's."""
        return list(self.weighting.parameters()) if isinstance(self.weighting, nn.Module) else []

    def without_learnt(self) -> FlowMatching:
        """The same objective without a weight that is learnt along, for losses that are compared over a training."""
        if not isinstance(self.weighting, nn.Module):
            return self
        plain = copy.copy(self)
        plain.weighting = getattr(self.weighting, "base", None)
        return plain

    def _residual(self, value: Tensor, sample: PathSample, wide: torch.dtype) -> Tensor:
        if self.predicts == "velocity":
            return value - sample.u_t.to(wide)
        if self.predicts == "target":
            return value - sample.x1.to(wide)
        if self.predicts == "noise":
            return value - sample.x0.to(wide)
        sigma = cast(AffinePath, self.path).schedule.sigma(sample.t)
        return expand_time(sigma, value).to(wide) * value + sample.x0.to(wide)
