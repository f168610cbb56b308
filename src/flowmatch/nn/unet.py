r"""The U-Net of diffusion models as a field: diffusers' ``UNet2DModel`` in our convention of time and sign.

diffusers samples with a noise share :math:`\sigma` that falls from 1 to 0; its networks are called with
:math:`1000\, \sigma` and answer noise less data, the derivative by :math:`\sigma`. Here time rises from the source to
the data, :math:`t = 1 - \sigma`, and a velocity is data less noise. So the field is

.. math:: v(t, x) = -\, \mathrm{unet}\big( x,\; 1000\, (1 - t) \big) ,

in training as in use, and the inner network, weights untouched, is what plain diffusers wants: its
``FlowMatchEulerDiscreteScheduler`` makes the steps that :class:`flowmatch.Euler` makes.

**Shape.** Level ``k`` has sides ``H / 2^k``, ``W / 2^k`` and ``channels * mults[k]`` channels, ``depth`` residual
blocks down and one more up, with self-attention after each block at the sides named. Sides must be divisible by
:math:`2^{levels - 1}`, since an odd side cannot be halved and doubled. The last layer of every residual branch and of
the network starts at zero: the first field is zero and the first loss is the spread of the velocities. The embedding
of time is computed in float32 whatever the type of the network.

Source: Ho et al., Denoising Diffusion Probabilistic Models, 2020, https://arxiv.org/abs/2006.11239; Dhariwal and
Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, section 3, https://arxiv.org/abs/2105.05233.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.nn.forward_mode import checkpointed, differentiable
from flowmatch.nn.images import ImageNetwork

__all__ = ["UNet"]


class UNet(ImageNetwork):
    r"""U-Net field on images, with an optional condition.

    .. math:: v(t, x) = -\, \mathrm{unet}\big( x,\; \mathrm{time\_scale}\, (1 - t) \big)

    Args:
        shape: ``(C, H, W)`` of the images.
        channels: width at the full size.
        mults: width of each level, in units of ``channels``.
        depth: residual blocks a level.
        attention: sides (the longer, of an oblong image) at which blocks are followed by self-attention. The middle,
            at the smallest side, always has it.
        head_channels: width of an attention head; divides the width wherever there is attention.
        dropout: share of a residual branch that is dropped in training.
        scale_shift: whether time and class scale and shift what is normalised, or are only added before.
        resample: ``"block"`` for residual blocks that halve and double the sides, or ``"conv"`` for one convolution.
        classes: number ``K`` of classes; the condition is then a label ``(B,)`` in ``0..K``, ``K`` for no class.
        image: channels of ``cond["image"]``, 0 for none.
        mask: whether ``cond["mask"]`` is joined too.
        noise: whether ``cond["noise"]`` is joined too.
        checkpointing: whether to save memory in training: blocks are computed again in the backward pass.
        time_scale: what :math:`1 - t` is multiplied by; the ``num_train_timesteps`` of a diffusers scheduler.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: sides that cannot be halved as often as there are levels, or sizes that do not fit together.

    Source:
        Ho et al. 2020; Dhariwal and Nichol 2021, whose blocks are ``scale_shift`` and ``resample="block"``.

    Example:
        >>> net = UNet((1, 8, 8), channels=8, mults=(1, 2), depth=1, head_channels=8, classes=10)
        >>> net(torch.rand(5), torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 9, 10])).shape
        torch.Size([5, 1, 8, 8])
        >>> net
        UNet(shape=(1, 8, 8), classes=10, channels=8, mults=(1, 2), parameters=45393)
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 128,
        mults: Sequence[int] = (1, 2, 2, 2),
        depth: int = 2,
        attention: Sequence[int] = (),
        head_channels: int = 64,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: str = "block",
        classes: int = 0,
        image: int = 0,
        mask: bool = False,
        noise: bool = False,
        checkpointing: bool = False,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__(shape, classes, image, mask, noise)
        self.channels, self.mults, self.depth = channels, tuple(mults), depth
        self.attention, self.head_channels, self.dropout = tuple(attention), head_channels, dropout
        self.scale_shift, self.resample, self.checkpointing = bool(scale_shift), resample, bool(checkpointing)
        self.time_scale = float(time_scale)
        self._check()
        self.net: Any = _diffusers().UNet2DModel(**self._arguments())
        if self.checkpointing:
            self.net.enable_gradient_checkpointing(checkpointed)
        _start_at_zero(self.net)

    def config(self) -> dict[str, Any]:
        """Arguments that make this network again."""
        names = ("channels", "depth", "head_channels", "dropout", "scale_shift", "resample")
        own = {name: getattr(self, name) for name in (*names, "checkpointing", "time_scale")}
        return {**self._shared_config(), **own, "mults": list(self.mults), "attention": list(self.attention)}

    def extra_repr(self) -> str:
        """Shape, conditions and widths, for the printed form."""
        return f"{super().extra_repr()}, channels={self.channels}, mults={self.mults}"

    def to_diffusers(self) -> nn.Module:
        """A plain ``diffusers.UNet2DModel`` with a copy of the weights, to be sampled without this package.

        It is called as ``net(sample, time_scale * sigma, label)`` and answers noise less data, so
        ``FlowMatchEulerDiscreteScheduler(num_train_timesteps=time_scale, shift=1)`` samples with it as it is. Labels
        are those of this network, ``K`` for no class; what it is conditioned on is joined to the sample as channels in
        the order image, mask, noise.
        """
        plain: nn.Module = type(self.net).from_config(dict(self.net.config))
        plain.load_state_dict(self.net.state_dict())
        example = next(self.net.parameters())
        # The method of diffusers warns of modules to be kept in float32, of which this network has none.
        return nn.Module.to(plain, example.device, example.dtype).train(self.training)

    def _velocity(self, t: Tensor, x: Tensor, label: Tensor | None) -> Tensor:
        if not x.shape[0]:  # attention of diffusers takes no empty batch: one sample joins for the call
            one = None if label is None else label.new_zeros(1)
            return self._velocity(t.new_zeros(1), x.new_zeros(1, *x.shape[1:]), one)[:0]
        with differentiable():
            (answer,) = self.net(x, self.time_scale * (1 - t), label, return_dict=False)
        velocity: Tensor = -answer
        return velocity

    def _sides(self) -> list[int]:
        return [max(self.shape[1:]) // 2**level for level in range(len(self.mults))]

    def _check(self) -> None:
        whole = (self.channels, self.depth, self.head_channels, *self.mults)
        if not self.mults or not all(isinstance(count, int) and count >= 1 for count in whole):
            raise ValueError(
                f"need channels, depth, head_channels >= 1 and mults of whole numbers >= 1, got channels="
                f"{self.channels}, depth={self.depth}, head_channels={self.head_channels}, mults={self.mults}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a share in [0, 1), got {self.dropout}")
        if not 0 < self.time_scale < math.inf:
            raise ValueError(f"time_scale must be positive and finite, got {self.time_scale}")
        if self.resample not in ("block", "conv"):
            raise ValueError(f"resample must be 'block' or 'conv', got {self.resample!r}")
        _, height, width = self.shape
        unit = 2 ** (len(self.mults) - 1)
        if height % unit or width % unit:
            most = 1 + min((side & -side).bit_length() - 1 for side in (height, width))
            near = [sorted({side // unit * unit, -(-side // unit) * unit} - {0}) for side in (height, width)]
            fit = " by ".join(" or ".join(map(str, sides)) for sides in near)
            raise ValueError(
                f"{len(self.mults)} levels halve the sides {len(self.mults) - 1} times, so both must be multiples of "
                f"{unit}, got {height} x {width}; resize or pad to {fit}, or give mults of at most {most} "
                f"level{'s' * (most > 1)}"
            )
        sides = self._sides()
        if not set(self.attention) <= set(sides):
            raise ValueError(f"attention must be among the sides of the levels, {sides}, got {list(self.attention)}")
        widths = {side: self.channels * mult for side, mult in zip(sides, self.mults, strict=True)}
        uneven = [widths[side] for side in (*self.attention, sides[-1]) if widths[side] % self.head_channels]
        if uneven:
            raise ValueError(
                f"head_channels must divide the width wherever there is attention, such as {uneven[0]}, got "
                f"{self.head_channels}"
            )

    def _arguments(self) -> dict[str, Any]:
        """Arguments of the inner network."""
        widths = tuple(self.channels * mult for mult in self.mults)
        seen = ["Attn" * (side in self.attention) for side in self._sides()]
        # Groups of a normalisation must divide all widths, and so divide those of joined halves too; with fewer than
        # four channels each, what a channel is on the mean over an image would be lost.
        most = math.gcd(32, *widths)
        groups = max(count for count in range(1, most + 1) if most % count == 0 and count <= max(1, min(widths) // 4))
        resample = "resnet" if self.resample == "block" else "conv"
        return {
            "sample_size": self.shape[1:],
            "in_channels": self.channels_in,
            "out_channels": self.shape[0],
            "down_block_types": tuple(f"{kind}DownBlock2D" for kind in seen),
            "up_block_types": tuple(f"{kind}UpBlock2D" for kind in seen[::-1]),
            "block_out_channels": widths,
            "layers_per_block": self.depth,
            "attention_head_dim": self.head_channels,
            "norm_num_groups": groups,
            "attn_norm_num_groups": groups,
            "dropout": self.dropout,
            "resnet_time_scale_shift": "scale_shift" if self.scale_shift else "default",
            "downsample_type": resample,
            "upsample_type": resample,
            "num_class_embeds": self.classes + 1 if self.classes else None,
        }


def _start_at_zero(net: Any) -> None:
    """Residual branches and the answer at zero."""
    ends = [net.conv_out]
    for module in net.modules():
        if hasattr(module, "conv2") and hasattr(module, "norm2"):
            ends.append(module.conv2)
        elif hasattr(module, "to_out"):
            ends.append(module.to_out[0])
    with torch.no_grad():
        for parameter in (parameter for end in ends for parameter in end.parameters()):
            parameter.zero_()


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError:
        raise ImportError('UNet needs diffusers: pip install "flowmatch[networks]"') from None
