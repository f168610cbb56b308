r"""Inpainting: what is known of a sample stays, the rest is filled in.

Some entries of :math:`x_1` are known to be ``y``. Two ways to make a velocity of that.

**Guide.** The known entries are an observation whose ``A`` is a mask, and :mod:`flowmatch.fields.inverse` applies: the
known pulls at all entries through the Jacobian of the field.

**Project.** On the known entries the velocity is that of their own path,

.. math:: u_t(x | y) = \dot\alpha y + \frac{\dot\sigma}{\sigma} (x - \alpha y),

so each rides :math:`\alpha_t y + \sigma_t x_0` with the noise :math:`x_0` that it started from; the field moves the
others by what it sees. This is RePaint's replacement with one noise for the whole way instead of a fresh one a step, so
that a solver meets a velocity. It costs no Jacobian. But the field sees the known entries through noise and decides on
the others before it can know them: their dependence on what is known comes out too weak. For two normal numbers of
unit variance and correlation 0.8 on the straight path, the second follows the first by 0.35 instead of 0.8. RePaint
goes back and forth to mend that (:mod:`flowmatch.fields.repaint`); ``"guide"`` does not need to.

Source: Lugmayr et al., RePaint: Inpainting using Denoising Diffusion Probabilistic Models, 2022, Eq. 8,
https://arxiv.org/abs/2201.09865; Song et al., Score-Based Generative Modeling through Stochastic Differential
Equations, 2021, section 5 and appendix I.2, https://arxiv.org/abs/2011.13456.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowmatch.fields.inverse import Observing
from flowmatch.paths import AffinePath
from flowmatch.tensors import can_look
from flowmatch.typing import Field

__all__ = ["Inpainting", "check_known"]


def check_known(known: Any, mask: Any, x: Tensor) -> None:
    """Raise unless both have the shape of ``x``, the mask is boolean and what is known is finite."""
    for name, value in (("known", known), ("mask", mask)):
        if not isinstance(value, Tensor) or value.shape != x.shape:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of the shape of x, {tuple(x.shape)}, got {found}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, true where the data are known, got {mask.dtype}")
    if can_look(mask):
        bad = mask & ~known.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"known has {int(bad.sum())} entries that are NaN or infinite where mask is true; take them out of the "
                "mask, to have them filled in"
            )


class Inpainting(Observing):
    r"""A velocity for data of which some entries are known: the rest is filled in.

    **What is known is the condition**: ``(known, mask)``, or ``(known, mask, cond)`` for a field with one of its own;
    ``known`` is ``(B, *event)`` and is read only where the boolean ``mask`` is true, elsewhere it may be NaN. So each
    sample may have its own, and ``flow.given((known, mask))`` is the law of the rest.

    Args:
        field: velocity of the path, of whole data.
        path: the affine path that it belongs to, from a standard normal source.
        method: ``"guide"``, the pull of an observation, or ``"project"``, which replaces the known entries only: cheap,
            and too weak in what follows from them.
        noise: standard deviation of the noise on the known entries, for ``"guide"``.
        data_std: as for :class:`Observed`, for ``"guide"``.
        scale: strength of ``"guide"``; 0 is the field alone.
        iterations: as for :class:`Observed`; matters for ``data_std=None`` only.
        margin: distance from a singular end within which the field stays as it is there. A third of the way that is
            left at the edge is not made good; put the known entries back where they must be exact.

    Raises:
        TypeError: a field that cannot be called, a path that is not affine, or on use a mask that is not boolean.
        ValueError: an unknown method; on use, no known data or mask, one of another shape than ``x``, or known data
            that are not finite.

    Source:
        Song et al. 2023; Lugmayr et al. 2022, Eq. 8, for the projection.

    Example:
        >>> import flowmatch as fm
        >>> plain = fm.GaussianField(torch.zeros(2), cov=torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
        >>> field = Inpainting(plain, fm.AffinePath(), data_std=None)
        >>> known, mask = torch.tensor([[2.0, float("nan")]]), torch.tensor([[True, False]])
        >>> fm.solve(fm.ODE(field, (known, mask)), torch.zeros(1, 2), steps=50).x.round(decimals=2)
        tensor([[2.0000, 1.6000]])
    """

    def __init__(
        self,
        field: Field | nn.Module,
        path: AffinePath,
        method: Literal["guide", "project"] = "guide",
        noise: float = 0.0,
        data_std: float | None = 1.0,
        scale: float = 1.0,
        iterations: int = 16,
        margin: float = 1e-3,
    ) -> None:
        super().__init__(field, path, noise, data_std, scale, iterations, margin)
        if method not in ("guide", "project"):
            raise ValueError(f"method must be 'guide' or 'project', got {method!r}")
        self.method = method

    def forward(self, t: Tensor | float, x: Tensor, *cond: Any) -> Tensor:
        """Velocity ``(B, *event)`` at times ``()`` or ``(B,)``, given what is known and where."""
        given = cond[0] if cond else None
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            raise ValueError(f"the condition must be (known, mask) or (known, mask, cond), got {type(given).__name__}")
        known, mask, *inner = given
        check_known(known, mask, x)
        y = torch.where(mask, known.to(x.dtype), torch.zeros_like(x))
        if self.method == "guide" or not self.scale:
            return self._steer(lambda x1: torch.where(mask, x1, torch.zeros_like(x1)), y, t, x, *inner)
        time = self._inside(t, x)
        velocity = self._plain(time, x, *inner)
        return torch.where(mask, self.path.convert(y, time, x, "target", "velocity"), velocity)

    def config(self) -> dict[str, Any]:
        """The arguments that make this field again, apart from the weights of the network."""
        names = ("field", "path", "method", "noise", "data_std", "scale", "iterations", "margin")
        return {name: getattr(self, name) for name in names}
