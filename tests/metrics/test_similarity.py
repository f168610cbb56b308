"""PSNR and SSIM: closed forms, and the definition written out window by window as oracle."""

from __future__ import annotations

import math

import pytest
import scipy.ndimage
import torch
from torch import Tensor

from flowmatch.metrics import psnr, ssim


def images(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def by_hand(a: Tensor, b: Tensor, data_range: float, window: int) -> float:
    """SSIM of two images (H, W) by two-pass weighted moments, one window after the other."""
    place = torch.arange(window).double() - (window - 1) / 2
    weight = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weight = weight / weight.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(a.shape[0] - window + 1):
        for j in range(a.shape[1] - window + 1):
            p, q = (v[i : i + window, j : j + window] for v in (a, b))
            mp, mq = (weight * p).sum(), (weight * q).sum()
            vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
            cov = (weight * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(torch.stack(values).mean())


@pytest.mark.parametrize(("channels", "size", "window"), [(1, (14, 17), 11), (3, (12, 12), 11), (1, (8, 9), 7)])
def test_ssim_equals_the_definition(channels: int, size: tuple[int, int], window: int) -> None:
    x = images(3, channels, *size)
    y = (x + 0.4 * images(3, channels, *size, seed=1)).clamp(-1, 1)
    want = [
        sum(by_hand(a, b, 2.0, window) for a, b in zip(p, q, strict=True)) / channels for p, q in zip(x, y, strict=True)
    ]
    torch.testing.assert_close(
        ssim(x, y, window=window), torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-12
    )


def test_ssim_equals_filtered_moments_of_scipy() -> None:
    # How image libraries do it: filter the whole image, then leave out the rim of five pixels.
    x = images(1, 1, 24, 20)
    y = (0.5 * x + 0.3 * images(1, 1, 24, 20, seed=1)).clamp(-1, 1)
    a, b = ((v[0, 0].numpy() + 1) * 127.5 for v in (x, y))

    def local(v: object) -> object:
        return scipy.ndimage.gaussian_filter(v, 1.5, truncate=3.5)

    ma, mb, c1, c2 = local(a), local(b), 2.55**2, 7.65**2
    va, vb, cov = local(a * a) - ma * ma, local(b * b) - mb * mb, local(a * b) - ma * mb
    full = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    want = full[5:-5, 5:-5].mean()
    got = ssim(torch.tensor(a)[None, None], torch.tensor(b)[None, None], data_range=255)
    assert got.item() == pytest.approx(float(want), rel=1e-6)


def test_ssim_is_one_for_equal_images_symmetric_and_free_of_the_unit() -> None:
    x, y = images(4, 3, 16, 16), images(4, 3, 16, 16, seed=1)
    torch.testing.assert_close(ssim(x, x), torch.ones(4).double())
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert (ssim(x, y) < 0.5).all()
    torch.testing.assert_close(ssim(7 * x, 7 * y, data_range=14.0), ssim(x, y))
    checks = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).double()[None, None] * 2 - 1
    assert ssim(checks, -checks).item() == pytest.approx(-1, abs=0.01)


def test_constant_images_compare_by_their_means() -> None:
    a, b, c1 = 0.5, -0.25, 0.02**2
    got = ssim(torch.full((1, 1, 11, 11), a).double(), torch.full((1, 1, 11, 11), b).double())
    assert got.item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-9)


def test_psnr_closed_form() -> None:
    x = torch.zeros(3, 2, 5, 5).double()
    y = x.clone()
    y[1] += 0.2
    y[2, 0] += 0.4  # half of the pixels
    want = [math.inf, 20 * math.log10(2 / 0.2), 10 * math.log10(4 / 0.08)]
    assert psnr(x, y).tolist() == pytest.approx(want)
    assert psnr(x, y, data_range=1.0)[1].item() == pytest.approx(want[1] - 20 * math.log10(2))
    byte = torch.full((1, 1, 2, 2), 100.0)
    assert psnr(byte, byte + 1, data_range=255).item() == pytest.approx(48.1308, abs=1e-3)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_every_image_by_itself_none_or_one_and_half_precision(metric: object) -> None:
    x, y = images(4, 1, 12, 12), images(4, 1, 12, 12, seed=1)
    whole = metric(x, y)
    torch.testing.assert_close(torch.cat([metric(a[None], b[None]) for a, b in zip(x, y, strict=True)]), whole)
    assert metric(x[:0], y[:0]).shape == (0,)
    assert metric(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    assert whole.dtype == torch.float64


def test_gradients_pull_towards_the_truth() -> None:
    y = images(1, 1, 12, 12)
    x = (y + 0.1 * images(1, 1, 12, 12, seed=1)).requires_grad_()
    for metric in (psnr, ssim):
        (gradient,) = torch.autograd.grad(metric(x, y).sum(), x)
        assert metric(x + 1e-3 * gradient / gradient.norm(), y) > metric(x, y)


def test_bad_input_is_named() -> None:
    x = images(2, 1, 10, 8)
    with pytest.raises(ValueError, match=r"11 pixels does not fit into images of 10 x 8; .* odd number up to 7;"):
        ssim(x, x)
    assert ssim(x, x, window=7).shape == (2,)
    with pytest.raises(ValueError, match="window must be odd"):
        ssim(x, x, window=4)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \(10, 8\)"):
        ssim(x[0, 0], x[0, 0])
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="one shape"):
            metric(x, x[:1])
        with pytest.raises(ValueError, match="data_range must be positive"):
            metric(x, x, data_range=0)
        with pytest.raises(TypeError, match="must be floating point, got torch.uint8"):
            metric(x.byte(), x.byte())
        with pytest.raises(TypeError, match="one dtype"):
            metric(x, x.float())
        with pytest.raises(ValueError, match="x has 160 entries that are NaN"):
            metric(x / 0, x)
        with pytest.raises(ValueError, match=r"y reaches from 0 to 255, wider than data_range=2"):
            metric(x, torch.linspace(0, 255, 160).double().reshape(x.shape))
