r"""A network of any kind of output as a velocity field.

Position and velocity of an affine path are linear in the two ends, so a network that predicts the data, the noise or
the score is an affine change of output away from a velocity (:meth:`flowmatch.AffinePath.convert`):

.. math:: v(t, x) = a_t x + b_t f(t, x) + c_t m .

Hence it serves every solver, likelihood and wrapper as it is, and its divergence is
:math:`a_t d + b_t \nabla \cdot f`, which costs what that of ``f`` costs.

What the change costs is accuracy at one end. Near the data a target is divided by :math:`\sigma_t`, near the source a
noise is divided by :math:`\alpha_t`: there an error ``e`` of the network grows to :math:`e / \sigma_t` in the velocity,
and at the very end a trained network disagrees with the limit that an exact one has. A solver that controls its error
would stall there. So within a margin ``m`` of such an end the field is that of the margin's edge,
:math:`v(t, x) = v(1 - m, x)`. For an exact network of smooth data this moves a sample by :math:`O(m^2)`, of data on
points or a surface by :math:`O(m)`; and it keeps an error of the network at ``e``, for :math:`m \cdot e / m = e`. A
velocity network has no such end. On two moons the log-density of a trained target network goes from -10.5 to -2.7 nats
a point between the margins 0.001 and 0.01 (a velocity network: -1.9); :class:`~flowmatch.MinSNR` weights bring it to
-2.1.

Source: Lipman et al., Flow Matching Guide and Code, 2024, section 4.8.1, https://arxiv.org/abs/2412.06264; Salimans and
Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022, section 4, https://arxiv.org/abs/2202.00512.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from flowmatch.paths import AffinePath, Kind
from flowmatch.tensors import check_event, check_shaped, check_time
from flowmatch.typing import Field

__all__ = ["Predicts", "inner_interval", "own_divergence"]

_FAINT = 0.01  # of noise or signal: what is left at an end that counts as singular


class Predicts(nn.Module):
    r"""The velocity field of a network that predicts velocity, target, noise or score on an affine path.

    Args:
        net: module or function ``(t, x) -> prediction`` or ``(t, x, cond) -> prediction``, shaped like ``x``.
        path: the affine path it was trained on.
        kind: what it predicts: ``"velocity"``, ``"target"`` (``x1``), ``"noise"`` (``x0``) or ``"score"``.
        data_mean: mean of the data, used only where :math:`\alpha_t = 0`, at which noise and score say nothing of the
            data; zero for standardised data.
        margin: distance from a singular end within which the field stays as it is there; an end is singular if less
            than 0.01 of the noise is left for a target, or of the signal there for noise and score.

    Raises:
        TypeError: ``net`` cannot be called or ``path`` is not affine.
        ValueError: unknown ``kind``, a ``margin`` outside ``[0, 0.5)``; on use, a prediction of another shape than
            ``x``.

    Source:
        Lipman et al. 2024, section 4.8.1.

    Example:
        A network that predicts the data, here a constant, is integrated to the data:

        >>> import flowmatch as fm
        >>> field = fm.Predicts(lambda t, x: torch.full_like(x, 3.0), fm.AffinePath(), "target")
        >>> fm.solve(fm.ODE(field), torch.zeros(1, 2), solver=fm.Euler(), steps=4).x
        tensor([[3., 3.]])
    """

    def __init__(
        self,
        net: Field | nn.Module,
        path: AffinePath,
        kind: Kind,
        data_mean: Tensor | float = 0.0,
        margin: float = 1e-2,
    ) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"net must be a module or function (t, x) -> prediction, got {type(net).__name__}")
        if not isinstance(path, AffinePath):
            raise TypeError(f"path must be a flowmatch AffinePath, got {path!r}; other paths have no such conversion")
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        self.net: Any = net
        self.path, self.kind = path, kind
        self.register_buffer("data_mean", torch.as_tensor(data_mean))
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin must lie in [0, 0.5), got {margin}")
        self.margin = margin
        self._inner = inner_interval(path, margin, source=kind in ("noise", "score"), data=kind == "target")

    def forward(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)``."""
        time = self._inside(t, x)
        return self._velocity(time, x, self._predict(time, x, *cond))

    def predict(self, t: Tensor | float, x: Tensor, *cond: Any, to: Kind) -> Tensor:
        """The prediction as another kind, for instance the data that the network expects at ``(t, x)``."""
        return self.path.convert(self._predict(t, x, *cond), t, x, self.kind, to, self._mean(x))

    @property
    def value_and_divergence(self) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """Velocity ``(B, *event)`` and its divergence ``(B,)`` in one, where the network offers its own."""
        own = own_divergence(self.net)
        if own is None or self.kind == "velocity":
            return own

        def both(t: Tensor, x: Tensor, *cond: Any) -> tuple[Tensor, Tensor]:
            time = self._inside(t, x)
            value, trace = own(time, x, *cond)
            of_x, of_value, _ = self.path._linear_form(time, self.kind, "velocity")
            return self._velocity(time, x, value), of_x * math.prod(x.shape[1:]) + of_value * trace

        return both

    def _inside(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Times ``(B,)``, put back to the edge of a singular end."""
        # Beyond the interval of the path itself a velocity is refused, as the path refuses it.
        time = self.path._regular(t, x) if self.kind == "velocity" else check_time(t, x)
        return time.expand(x.shape[:1]).clamp(*self._inner)

    def _predict(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        check_event(x)
        value: Tensor = self.net(check_time(t, x).expand(x.shape[:1]), x, *cond)
        check_shaped(value, x, "network", self.kind)
        return value

    def _velocity(self, t: Tensor | float, x: Tensor, value: Tensor) -> Tensor:
        return self.path.convert(value, t, x, self.kind, "velocity", self._mean(x))

    def _mean(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.data_mean).to(x)

    def config(self) -> dict[str, Any]:
        """The arguments that make this field again, apart from the weights of the network."""
        mean = cast(Tensor, self.data_mean).tolist()
        return {"net": self.net, "path": self.path, "kind": self.kind, "data_mean": mean, "margin": self.margin}

    def extra_repr(self) -> str:
        """What stands in the printed form beside the network."""
        return f"path={self.path!r}, kind={self.kind!r}"


def inner_interval(path: AffinePath, margin: float, *, source: bool, data: bool) -> tuple[float, float]:
    """The path's interval without a margin at its source's end, its data's end or both, where they are singular."""
    (low, high), edges = path.interval, torch.tensor(path.interval, dtype=torch.float64)
    if source and path.schedule.alpha(edges)[0] < _FAINT:
        low = max(low, margin)
    if data and path.schedule.sigma(edges)[1] < _FAINT:
        high = min(high, 1 - margin)
    return low, high


def own_divergence(field: Any) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """A field's own way to value and divergence; not that of a base class whose ``forward`` a subclass has replaced."""
    for kind in type(field).__mro__:
        if "value_and_divergence" in vars(kind):
            own: Callable[..., tuple[Tensor, Tensor]] | None = field.value_and_divergence
            return own
        if "forward" in vars(kind):
            return None
    return None
