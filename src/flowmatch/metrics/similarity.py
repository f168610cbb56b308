r"""Likeness of two images, pair by pair: PSNR and SSIM.

Both compare an image with the one truth it should be, as in super-resolution. They say nothing about whether images
look real: the blurred mean of all answers scores best.

Both are differentiable, so ``1 - ssim`` may be trained on.

Source: Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment: From Error Visibility to Structural Similarity,
2004.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flowmatch.tensors import can_look, check_event, check_finite, check_kin, mean_event, time_dtype

__all__ = ["psnr", "ssim"]

_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def psnr(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    r"""Peak signal-to-noise ratio of each image, ``(B,)``.

    .. math:: 10 \log_{10} \frac{R^2}{\frac1n \sum_i (x_i - y_i)^2}

    Range: unbounded, in decibels, higher is better; infinite for equal images. An error of one byte in every pixel is
    ``48.1``.

    Floor: none; the bound to compare with is the value of a plain resize.

    Args:
        x: images, ``(B, *event)``.
        y: their truths, of the same shape.
        data_range: width ``R`` of the interval that pixels lie in: 2 for ``[-1, 1]``, 1 for ``[0, 1]``, 255 for bytes
            as numbers.

    Raises:
        TypeError: integer tensors or two types.
        ValueError: two shapes or devices, entries that are not finite, or truths wider than ``data_range``.

    Source:
        The usual definition, over all pixels and channels of an image.

    Example:
        >>> psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.2))
        tensor([20.])
    """
    _check(x, y, data_range)
    wide = time_dtype(x.dtype)
    error = mean_event((x.to(wide) - y.to(wide)).square())
    return 10 * torch.log10(data_range**2 / error)


def ssim(x: Tensor, y: Tensor, data_range: float = 2.0, window: int = 11) -> Tensor:
    r"""Structural similarity of each image, ``(B,)``.

    .. math:: \frac{2 \mu_x \mu_y + c_1}{\mu_x^2 + \mu_y^2 + c_1} \cdot
        \frac{2 \sigma_{xy} + c_2}{\sigma_x^2 + \sigma_y^2 + c_2},
        \qquad c_1 = (0.01 R)^2, \quad c_2 = (0.03 R)^2

    averaged over pixels and channels, with moments under a Gaussian window of standard deviation 1.5, at the places
    where it lies wholly inside the image.

    Range: -1 to 1, no unit, higher is better; 1 for equal images only.

    Floor: none; the bound to compare with is the value of a plain resize.

    Args:
        x: images, ``(B, C, H, W)``.
        y: their truths, of the same shape.
        data_range: width ``R`` of the interval that pixels lie in, see :func:`psnr`.
        window: side of the window, odd. 11 is the definition; give a smaller one for smaller images, and say so.

    Raises:
        TypeError: integer tensors or two types.
        ValueError: not ``(B, C, H, W)``, images smaller than the window, an even window, or what :func:`psnr` refuses.

    Source:
        Wang et al. 2004, Eq. 13 to 17.

    Example:
        >>> x = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
        >>> ssim(x, x), ssim(x, torch.zeros_like(x)) < 0.2
        (tensor([1.]), tensor([True]))
    """
    _check(x, y, data_range)
    if x.ndim != 4:
        raise ValueError(f"ssim needs images of shape (B, C, H, W), got {tuple(x.shape)}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 1, got {window}")
    smaller = min(x.shape[2:])
    if smaller < window:
        raise ValueError(
            f"the window of {window} pixels does not fit into images of {x.shape[2]} x {x.shape[3]}; give window= as "
            f"an odd number up to {smaller - 1 + smaller % 2}; values of two windows cannot be compared"
        )
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    wide = time_dtype(x.dtype)
    a, b = (v.to(wide).flatten(0, 1)[:, None] for v in (x, y))  # every channel is an image of its own
    kernel = _gaussian(window, a)

    def local(v: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(v, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    cov = local(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return mean_event(likeness.unflatten(0, x.shape[:2]))


def _gaussian(window: int, like: Tensor) -> Tensor:
    place = torch.arange(window, dtype=like.dtype, device=like.device) - window // 2
    weight = (-0.5 * (place / _SIGMA) ** 2).exp()
    return weight / weight.sum()


def _check(x: Tensor, y: Tensor, data_range: float) -> None:
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    for name, v in (("x", x), ("y", y)):
        check_event(v, name)
        if can_look(v):
            check_finite(v, name)
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    check_kin(x, y)
    if can_look(y):
        low, high = (float(v) for v in y.detach().aminmax())
        # Flows overshoot their interval a little; a truth does not, but for a rounding.
        if high - low > 1.001 * data_range:
            raise ValueError(
                f"y reaches from {low:g} to {high:g}, wider than data_range={data_range:g}; give the width of the "
                "interval that pixels lie in: 2 for [-1, 1], 1 for [0, 1], 255 for bytes"
            )
