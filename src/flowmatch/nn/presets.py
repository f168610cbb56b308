"""Sizes of image networks that have a name: those of the papers, and small ones for a CPU.

The U-Nets ``cifar10`` to ``imagenet128`` have the channels, depth, multipliers, attention, heads and dropout of Table 3
of Lipman et al., as two digests of the paper agree on them; the table is not at hand here. Heads are given by their 64
channels; the table's 4 heads are those at 256 channels. The table leaves open how time enters and how sides are halved:
here as in the networks of Dhariwal and Nichol that the paper builds on, by scale and shift, and in residual blocks.
Attention is kept on its level where a shape is not the data set's own.

``small`` and ``base`` are ours. They have up to three levels, as many as the sides can be halved: the widths of the
smallest sides stay, the largest levels are left out. Seconds a training step of 128 images, forwards and backwards in
float32, on one core of an AMD EPYC with AVX-512, most of them in convolutions:

============ =========== ========== =======
network      image       parameters seconds
============ =========== ========== =======
small U-Net  1 x 14 x 14 0.76 M     0.55
small U-Net  1 x 28 x 28 0.72 M     0.86
small U-Net  3 x 32 x 32 0.72 M     1.2
base U-Net   1 x 28 x 28 7.2 M      12.7
small DiT    1 x 14 x 14 0.72 M     0.38
small DiT    1 x 28 x 28 0.72 M     1.8
============ =========== ========== =======

Under bfloat16 autocast the base U-Net takes 5.9 s and the small networks gain nothing; with channels innermost in
memory all are slower. Why the small U-Net is as it is: after 90 s of one core on Fashion-MNIST of 14 x 14 its loss on
other images was 0.357; 0.374 without scale and shift, 0.384 with residual blocks to resample, 0.393 if its residual
branches did not start at zero, 0.360 with 24 channels for 32, and 0.426 for the small transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowmatch.nn.dit import DiT
from flowmatch.nn.unet import UNet

__all__ = ["dit_preset", "unet_preset"]

#: Attention by level: 0 is the full size, -1 the smallest.
UNETS: dict[str, dict[str, Any]] = {
    "small": {"channels": 16, "mults": (1, 2, 4), "depth": 1, "levels": (-1,), "head_channels": 16, "resample": "conv"},
    "base": {"channels": 64, "mults": (1, 2, 2), "depth": 2, "levels": (-1,), "head_channels": 32, "dropout": 0.1},
    "cifar10": {"channels": 256, "mults": (1, 2, 2, 2), "depth": 2, "levels": (1,)},
    "imagenet32": {"channels": 256, "mults": (1, 2, 2, 2), "depth": 3, "levels": (1, 2)},
    "imagenet64": {"channels": 192, "mults": (1, 2, 3, 4), "depth": 3, "levels": (1, 2, 3)},
    "imagenet128": {"channels": 256, "mults": (1, 1, 2, 3, 4), "depth": 3, "levels": (2, 3, 4)},
}

DITS: dict[str, dict[str, Any]] = {
    "small": {"patch": 2, "hidden": 96, "depth": 4, "heads": 4},
    "DiT-S/2": {"patch": 2, "hidden": 384, "depth": 12, "heads": 6},
    "DiT-B/2": {"patch": 2, "hidden": 768, "depth": 12, "heads": 12},
    "DiT-L/2": {"patch": 2, "hidden": 1024, "depth": 24, "heads": 16},
    "DiT-XL/2": {"patch": 2, "hidden": 1152, "depth": 28, "heads": 16},
}


def unet_preset(name: str, shape: Sequence[int], classes: int = 0, **changes: Any) -> UNet:
    """A U-Net of a size with a name.

    Args:
        name: ``"small"``, ``"base"``, ``"cifar10"``, ``"imagenet32"``, ``"imagenet64"`` or ``"imagenet128"``.
        shape: ``(C, H, W)`` of the images.
        classes: number of classes, 0 for none.
        **changes: further arguments of :class:`flowmatch.nn.UNet`, which go before those of the preset.

    Raises:
        ValueError: no such name, or a shape that the network cannot take.

    Source:
        Lipman et al., Flow Matching for Generative Modeling, 2023, Table 3, https://arxiv.org/abs/2210.02747; Dhariwal
        and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, https://arxiv.org/abs/2105.05233.

    Example:
        >>> unet_preset("small", (1, 14, 14), classes=10)
        UNet(shape=(1, 14, 14), classes=10, channels=32, mults=(1, 2), parameters=...)
    """
    sizes = _named(UNETS, name) | changes
    levels = sizes.pop("levels")
    if name in ("small", "base") and not {"channels", "mults"} & changes.keys() and len(shape) == 3:
        kept = sizes["mults"][-min((side & -side).bit_length() for side in shape[1:]) :]
        sizes |= {"channels": sizes["channels"] * kept[0], "mults": [mult // kept[0] for mult in kept]}
    sides = [max(shape[1:], default=1) // 2**level for level in range(len(sizes["mults"]))]
    if "attention" not in sizes:
        sizes["attention"] = [sides[level] for level in levels if level < len(sides)]
    return UNet(shape, classes=classes, **sizes)


def dit_preset(name: str, shape: Sequence[int], classes: int = 0, **changes: Any) -> DiT:
    """A diffusion transformer of a size with a name.

    Args:
        name: ``"small"``, ``"DiT-S/2"``, ``"DiT-B/2"``, ``"DiT-L/2"`` or ``"DiT-XL/2"``.
        shape: ``(C, H, W)`` of the images.
        classes: number of classes, 0 for none.
        **changes: further arguments of :class:`flowmatch.nn.DiT`, which go before those of the preset.

    Raises:
        ValueError: no such name, or a shape that the network cannot take.

    Source:
        Peebles and Xie, Scalable Diffusion Models with Transformers, 2023, Table 1, https://arxiv.org/abs/2212.09748.

    Example:
        >>> dit_preset("small", (1, 14, 14))
        DiT(shape=(1, 14, 14), patch=2, hidden=96, depth=4, parameters=...)
    """
    return DiT(shape, classes=classes, **(_named(DITS, name) | changes))


def _named(presets: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if name not in presets:
        raise ValueError(f"no preset {name!r}; there are {', '.join(presets)}")
    return dict(presets[name])
