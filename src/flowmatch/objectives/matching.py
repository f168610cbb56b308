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

Source: Lipman et al., Flow Matching for Generative Modeling, 2023, Theorem 2, Eq. 9,
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowmatch.couplings import Independent
from flowmatch.objectives.base import Draw, Loss
from flowmatch.paths import Path
from flowmatch.sources import Normal
from flowmatch.tensors import check_event, mean_event, take, time_dtype
from flowmatch.times import Stratified, Uniform
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

    Raises:
        TypeError: ``path`` is not a :class:`~flowmatch.Path`.
        ValueError: ``times`` reach beyond the path's regular interval.

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
    ) -> None:
        if not isinstance(path, Path):
            raise TypeError(f"path must be a flowmatch Path such as fm.AffinePath(fm.Linear()), got {path!r}")
        self.path = path
        self.coupling: Coupling = Independent() if coupling is None else coupling
        self.times: Times = Uniform(*path.interval) if times is None else times
        if isinstance(times, Uniform | Stratified):  # told now, not by the one draw in 10^5 that hits the singularity
            low, high = path.interval
            if times.low < low or times.high > high:
                name = type(times).__name__
                raise ValueError(
                    f"{times!r} reaches beyond [{low}, {high}], where {path!r} is regular; give {name}(*path.interval)"
                )
        self.source: Source = Normal() if source is None else source

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
    ) -> Draw:
        """Spend all the randomness of a batch; same arguments as the call, without the model."""
        check_event(x1, "x1")
        if x0 is None:
            x0 = self.source.sample(tuple(x1.shape), generator, x1.device, x1.dtype)
        if not isinstance(self.coupling, Independent):  # which would only copy the batch
            i, j = self.coupling(x0, x1, cond, generator)
            x0, x1, cond = x0[i], x1[j], take(cond, j)
        t = self.times(x1.shape[0], generator, x1.device, time_dtype(x1.dtype))
        return Draw(self.path.sample(t, x0, x1, generator), cond)

    def loss(self, model: Field, draw: Draw) -> Loss:
        """Loss of ``model`` on a draw."""
        sample, cond = draw
        velocity = model(sample.t, sample.x_t) if cond is None else model(sample.t, sample.x_t, cond)
        if velocity.shape != sample.u_t.shape:
            raise ValueError(
                f"the model returned shape {tuple(velocity.shape)} for x of shape {tuple(sample.x_t.shape)}; "
                "a velocity has the shape of x"
            )
        # Differences of half precision numbers are taken, and summed, in float32.
        wide = time_dtype(velocity.dtype)
        residual = velocity.to(wide) - sample.u_t.to(wide)
        return Loss(mean_event(residual * residual), sample.t)
