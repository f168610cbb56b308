r"""Guidance: a velocity pushed past itself, away from a worse one.

Of two velocities for the same place, one that knows more (the condition, a longer training) and one that knows less,

.. math:: v = v_{less} + w\, (v_{more} - v_{less}) = v_{more} + (w - 1)(v_{more} - v_{less}).

On an affine path a velocity is linear in the score, so this is the score of
:math:`p_{more} (p_{more} / p_{less})^{w - 1}` at every time: places where the two disagree are given up. These laws are
*not* those of one path, so a guided flow samples from no density that can be written down; what
:func:`flowmatch.log_likelihood` gives is the density of the flow itself. At :math:`w = 1` the better velocity alone is
called, at the price of one.

Guidance helps in the middle of the path: near the source it takes the variety, near the data it does nothing. So it
may be kept to an interval of times. Its ends are jumps of the velocity: on a grid put them on grid points, and error
control finds them at the price of a few rejected steps.

The divergence of a difference is the difference of divergences, so a network that offers its own keeps it.

Source: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, Eq. 6, https://arxiv.org/abs/2207.12598, whose
:math:`w` is ours less 1; Kynkäänniemi et al., Applying Guidance in a Limited Interval Improves Sample and Distribution
Quality in Diffusion Models, 2024, Eq. 4, https://arxiv.org/abs/2404.07724; Karras et al., Guiding a Diffusion Model
with a Bad Version of Itself, 2024, Eq. 4, https://arxiv.org/abs/2406.02507.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from flowmatch.fields.predict import own_divergence
from flowmatch.tensors import can_look, check_event, check_shaped, check_time, expand_time
from flowmatch.typing import Cond, Field

__all__ = ["AutoGuided", "Guided"]

_Answers: TypeAlias = tuple[Tensor, ...]
_Ask: TypeAlias = Callable[..., _Answers]


class _Extrapolated(nn.Module):
    """What the two have in common: the strength, where it acts, and the extrapolation of all that the fields answer."""

    def __init__(self, field: Any, scale: float | None, interval: tuple[float, float]) -> None:
        super().__init__()
        if not callable(field):
            raise TypeError(f"field must be a module or function (t, x, cond) -> velocity, got {type(field).__name__}")
        if isinstance(scale, Tensor) and scale.ndim:
            raise ValueError(
                f"scale must be one number, got shape {tuple(scale.shape)}; for a scale of each sample give scale=None "
                "and the pair (cond, scale) as the condition, so that the two stay together"
            )
        if scale is not None and not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, or None where it comes with the condition, got {scale}")
        low, high = (float(end) for end in interval)
        if not 0 <= low < high <= 1:
            raise ValueError(f"interval must be two times with 0 <= low < high <= 1, got {interval}")
        self.field: Any = field
        self.scale = None if scale is None else float(scale)
        self.interval = low, high

    @abstractmethod
    def _asks(self) -> tuple[_Ask, ...] | None:
        """Ways to value and divergence of the fields, or ``None`` if one of them offers none."""

    @abstractmethod
    def _pair(self, asks: tuple[_Ask, ...], t: Tensor, x: Tensor, *cond: Any) -> tuple[_Answers, _Answers]:
        """What the better and the worse field answer."""

    def forward(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)``."""
        return self._answer(self._values(), t, x, *cond)[0]

    @property
    def value_and_divergence(self) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """Velocity ``(B, *event)`` and its divergence ``(B,)`` in one, where the networks offer their own."""
        asks = self._asks()
        if asks is None:
            return None

        def both(t: Tensor, x: Tensor, *cond: Any) -> tuple[Tensor, Tensor]:
            value, trace = self._answer(asks, t, x, *cond)
            return value, trace

        return both

    def _values(self) -> tuple[_Ask, ...]:
        return (_velocity(self.field),)

    def _answer(self, asks: tuple[_Ask, ...], t: Tensor | float, x: Tensor, *cond: Any) -> _Answers:
        check_event(x)
        time = check_time(t, x).expand(x.shape[:1])
        inner, scale = self._split(x, *cond)
        excess = self._excess(time, scale)
        if excess is None:
            return asks[0](time, x, *inner)
        strong, weak = self._pair(asks, time, x, *inner)
        return tuple(s + (expand_time(excess, s) * (s - w)).to(s.dtype) for s, w in zip(strong, weak, strict=True))

    def _split(self, x: Tensor, *cond: Any) -> tuple[tuple[Any, ...], Tensor | float]:
        """The condition of the field, and the scale."""
        if self.scale is not None:
            return cond, self.scale
        pair = cond[0] if cond else None
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], Tensor):
            raise ValueError(
                "this guidance was made with scale=None: the condition must be a pair (cond, scale) with a scale of "
                f"shape ({x.shape[0]},), got {type(pair).__name__}"
            )
        inner, scale = pair
        if scale.shape != x.shape[:1]:
            raise ValueError(f"scale must have shape (B,) = ({x.shape[0]},), got {tuple(scale.shape)}")
        if can_look(scale) and not bool(scale.isfinite().all()):
            raise ValueError("scale must be finite, got entries that are not")
        return (() if inner is None else (inner,)), scale

    def _excess(self, time: Tensor, scale: Tensor | float) -> Tensor | None:
        """How much beyond the better field ``(B,)``; ``None`` if it is known to be zero everywhere."""
        if isinstance(scale, float) and scale == 1:
            return None
        beyond = torch.as_tensor(scale, dtype=time.dtype, device=time.device) - 1
        low, high = self.interval
        excess = torch.where((time >= low) & (time <= high), beyond, torch.zeros_like(time))
        return None if can_look(excess) and not bool(excess.any()) else excess

    def extra_repr(self) -> str:
        """What stands in the printed form beside the fields."""
        return f"scale={self.scale}, interval={self.interval}"


class Guided(_Extrapolated):
    r"""Classifier-free guidance: the conditional velocity, pushed away from that without the condition.

    .. math:: v = v(t, x, \varnothing) + w\, [v(t, x, c) - v(t, x, \varnothing)]

    Both are had in one call of twice the batch, unless the empty condition is none at all.

    Args:
        field: velocity ``(t, x, cond)``, trained with the condition left out now and then.
        scale: the strength ``w``; 1 is the conditional field alone, 0 the unconditional one. ``None`` for a scale of
            each sample: the condition is then the pair ``(cond, scale)`` with a scale ``(B,)``.
        null: the empty condition as in training: a number or tensor that stands in for the condition of one sample
            (such as the label of an extra class), a tuple, list or dict of them where the condition is one, or ``None``
            to call the field without any.
        interval: times in which it acts; elsewhere the field is the conditional one.

    Raises:
        TypeError: ``field`` cannot be called.
        ValueError: a scale that is not finite, an interval that is none; on use, no condition, or one that ``null``
            does not fit.

    Source:
        Ho and Salimans 2022, Eq. 6; Kynkäänniemi et al. 2024, Eq. 4.

    Example:
        A field that goes to its label, with label 0 as the empty one, sent twice as far:

        >>> import flowmatch as fm
        >>> field = Guided(lambda t, x, c: c[:, None] - x, scale=2.0, null=0)
        >>> fm.ODE(field, torch.tensor([3.0]))(0.0, torch.zeros(1, 1))
        tensor([[6.]])
    """

    def __init__(
        self,
        field: Field | nn.Module,
        scale: float | None,
        null: Any,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(field, scale, interval)
        if isinstance(null, list) and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(null)):
            null = torch.as_tensor(null)  # as it comes back from a file
        leaves, self._form = pytree.tree_flatten(null)
        if null is None:
            leaves = []
        elif not all(isinstance(leaf, Tensor | int | float) for leaf in leaves):
            raise TypeError(f"null must be None, a number, a tensor, or a tuple, list or dict of them, got {null!r}")
        self._single, self._count = not isinstance(null, tuple | list | dict), len(leaves)
        for i, leaf in enumerate(leaves):
            self.register_buffer(f"null_{i}", torch.as_tensor(leaf))

    def _asks(self) -> tuple[_Ask, ...] | None:
        own = own_divergence(self.field)
        return None if own is None else (own,)

    def _pair(self, asks: tuple[_Ask, ...], t: Tensor, x: Tensor, *cond: Any) -> tuple[_Answers, _Answers]:
        [ask] = asks
        if not self._count:
            return ask(t, x, *cond), ask(t, x)
        both = pytree.tree_map(lambda *pair: torch.cat(pair), cond[0], self._spread(cond[0]))
        answers = ask(torch.cat([t, t]), torch.cat([x, x]), both)
        halves = [answer.tensor_split([x.shape[0]]) for answer in answers]
        return tuple(half[0] for half in halves), tuple(half[1] for half in halves)

    def _split(self, x: Tensor, *cond: Any) -> tuple[tuple[Any, ...], Tensor | float]:
        inner, scale = super()._split(x, *cond)
        if not inner or inner[0] is None:
            raise ValueError("guidance needs a condition, got none: give cond=, or take the field without guidance")
        return inner, scale

    def _spread(self, cond: Cond) -> Cond:
        """The empty condition in the shape and type of a batch's."""
        leaves, form = pytree.tree_flatten(cond)
        if form != self._form:
            shown, given = (pytree.tree_unflatten(["*"] * f.num_leaves, f) for f in (self._form, form))
            raise ValueError(f"null has the form {shown} and the condition {given}; the two must be alike")
        nulls = [getattr(self, f"null_{i}") for i in range(self._count)]
        for leaf, null in zip(leaves, nulls, strict=True):
            if not isinstance(leaf, Tensor) or (null.ndim and leaf.shape[1:] != null.shape):
                found = f"shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"a null of shape {tuple(null.shape)} stands for one row of the condition, which must have shape "
                    f"(B, *null), got {found}"
                )
            if null.is_floating_point() and not leaf.is_floating_point():
                raise TypeError(f"null is {null.dtype} and the condition {leaf.dtype}; give a null of the same kind")
        return pytree.tree_unflatten(
            [null.to(leaf).expand(leaf.shape) for leaf, null in zip(leaves, nulls, strict=True)], form
        )

    def config(self) -> dict[str, Any] | None:
        """The arguments that make this field again, apart from weights; ``None`` if ``null`` is a tuple or dict."""
        if self._count and not self._single:
            return None
        null = getattr(self, "null_0").tolist() if self._count else None  # noqa: B009
        return {"field": self.field, "scale": self.scale, "null": null, "interval": list(self.interval)}


class AutoGuided(_Extrapolated):
    r"""Autoguidance: a velocity, pushed away from that of a worse version of the same network.

    .. math:: v = v_{weak}(t, x, c) + w\, [v(t, x, c) - v_{weak}(t, x, c)]

    The weak one, smaller or trained for less, errs in the same places and more; the condition is passed to both, so
    that variety is kept, and none is needed.

    Args:
        field: velocity ``(t, x)`` or ``(t, x, cond)``.
        weak: the worse one, alike.
        scale: the strength ``w``; 1 is the field alone. ``None`` for a scale of each sample: the condition is then the
            pair ``(cond, scale)`` with a scale ``(B,)``, where ``cond`` may be ``None``.
        interval: times in which it acts.

    Raises:
        TypeError: one of the two cannot be called.
        ValueError: a scale that is not finite or an interval that is none.

    Source:
        Karras et al. 2024, Eq. 4.

    Example:
        >>> AutoGuided(lambda t, x: x, lambda t, x: 0.5 * x, scale=3.0)(0.5, torch.ones(1, 1))
        tensor([[2.]])
    """

    def __init__(
        self,
        field: Field | nn.Module,
        weak: Field | nn.Module,
        scale: float | None,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(field, scale, interval)
        if not callable(weak):
            raise TypeError(f"weak must be a module or function (t, x) -> velocity, got {type(weak).__name__}")
        self.weak: Any = weak

    def _values(self) -> tuple[_Ask, ...]:
        return _velocity(self.field), _velocity(self.weak)

    def _asks(self) -> tuple[_Ask, ...] | None:
        strong, weak = own_divergence(self.field), own_divergence(self.weak)
        return None if strong is None or weak is None else (strong, weak)

    def _pair(self, asks: tuple[_Ask, ...], t: Tensor, x: Tensor, *cond: Any) -> tuple[_Answers, _Answers]:
        strong, weak = asks
        return strong(t, x, *cond), weak(t, x, *cond)

    def config(self) -> dict[str, Any]:
        """The arguments that make this field again, apart from the weights of the networks."""
        return {"field": self.field, "weak": self.weak, "scale": self.scale, "interval": list(self.interval)}


def _velocity(field: Any) -> _Ask:
    def ask(t: Tensor, x: Tensor, *cond: Any) -> _Answers:
        value = field(t, x, *cond)
        check_shaped(value, x, "field", "velocity")
        return (value,)

    return ask
