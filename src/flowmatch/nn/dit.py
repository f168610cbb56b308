r"""The diffusion transformer as a field: patches as tokens, time and class through adaptive normalisation.

An image is cut into ``patch x patch`` squares, each a token of ``hidden`` numbers with its place added. A block is

.. math::
    h \leftarrow h + g_1 \odot \mathrm{attention}\big( (1 + s_1) \odot \bar h + b_1 \big), \qquad
    h \leftarrow h + g_2 \odot \mathrm{mlp}\big( (1 + s_2) \odot \bar h + b_2 \big),

with :math:`\bar h` normalised and :math:`(b_1, s_1, g_1, b_2, s_2, g_2)` an affine function of the embedded time and
class that starts at zero (adaLN-Zero): at first every block is the identity and the field is zero.

Time and sign are those of :mod:`flowmatch.nn.unet`: the network is called with :math:`1000\, (1 - t)` and its answer
negated, so that its weights are those of a plain ``DiTTransformer2DModel`` of diffusers. That class itself is not used:
it draws which labels to drop from the global generator, takes square images only and embeds the time anew in every
block.

Source: Peebles and Xie, Scalable Diffusion Models with Transformers, 2023, section 3.2 and Table 1,
https://arxiv.org/abs/2212.09748.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmatch.nn.forward_mode import checkpointed, differentiable
from flowmatch.nn.images import ImageNetwork

__all__ = ["DiT"]

WAVES = 128
"""Frequencies of the time embedding, as of the paper's networks."""


class DiT(ImageNetwork):
    """Diffusion transformer field on images, with an optional condition.

    Args:
        shape: ``(C, H, W)`` of the images.
        patch: side of a patch; divides ``H`` and ``W``.
        hidden: width of a token, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        classes: number ``K`` of classes; the condition is then a label ``(B,)`` in ``0..K``, ``K`` for no class.
        image: channels of ``cond["image"]``, 0 for none.
        mask: whether ``cond["mask"]`` is joined too.
        noise: whether ``cond["noise"]`` is joined too.
        checkpointing: whether to save memory in training: blocks are computed again in the backward pass.
        time_scale: what :math:`1 - t` is multiplied by; the ``num_train_timesteps`` of a diffusers scheduler.

    Raises:
        ValueError: a patch that does not divide the sides, or sizes that do not fit together.

    Source:
        Peebles and Xie 2023, adaLN-Zero.

    Example:
        >>> net = DiT((1, 8, 8), patch=2, hidden=16, depth=1, heads=2, classes=10)
        >>> net(torch.rand(3), torch.randn(3, 1, 8, 8), torch.tensor([0, 9, 10])).shape
        torch.Size([3, 1, 8, 8])
    """

    places: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        patch: int = 2,
        hidden: int = 384,
        depth: int = 12,
        heads: int = 6,
        classes: int = 0,
        image: int = 0,
        mask: bool = False,
        noise: bool = False,
        checkpointing: bool = False,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__(shape, classes, image, mask, noise)
        _, height, width = self.shape
        if not all(isinstance(count, int) and count >= 1 for count in (patch, hidden, depth, heads)):
            raise ValueError(
                f"need patch, hidden, depth, heads >= 1, got patch={patch}, hidden={hidden}, depth={depth}, "
                f"heads={heads}"
            )
        if height % patch or width % patch:
            fit = [side for side in range(1, min(height, width) + 1) if not (height % side or width % side)]
            raise ValueError(f"patch must divide {height} x {width}, as {fit} do, got {patch}")
        if hidden % heads or hidden % 4:
            raise ValueError(f"hidden must be a multiple of 4 and of heads={heads}, got {hidden}")
        if not 0 < time_scale < math.inf:
            raise ValueError(f"time_scale must be positive and finite, got {time_scale}")
        self.patch, self.hidden, self.depth, self.heads = patch, hidden, depth, heads
        self.checkpointing, self.time_scale = bool(checkpointing), float(time_scale)
        self.grid = height // patch, width // patch
        self.inlet = nn.Conv2d(self.channels_in, hidden, patch, patch)
        self.time = nn.Sequential(nn.Linear(2 * WAVES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(classes + 1, hidden) if classes else None
        self.blocks = nn.ModuleList(_Block(hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False)
        self.film = nn.Linear(hidden, 2 * hidden)
        self.outlet = nn.Linear(hidden, patch * patch * self.shape[0])
        self.register_buffer("places", _places(*self.grid, hidden), persistent=False)
        self._initialise()

    def config(self) -> dict[str, Any]:
        """Arguments that make this network again."""
        names = ("patch", "hidden", "depth", "heads", "checkpointing", "time_scale")
        return {**self._shared_config(), **{name: getattr(self, name) for name in names}}

    def extra_repr(self) -> str:
        """Shape, conditions and sizes, for the printed form."""
        return f"{super().extra_repr()}, patch={self.patch}, hidden={self.hidden}, depth={self.depth}"

    def to_diffusers(self) -> nn.Module:
        """A plain ``diffusers.DiTTransformer2DModel`` with these weights, to be sampled without this package.

        It is called as ``net(sample, time_scale * sigma, label)``, in evaluation mode, and answers noise less data.
        It needs labels: those of this network, or zeros if that has no classes.

        Raises:
            ImportError: diffusers is not installed.
            ValueError: images that are not square, which that class cannot take.
        """
        _, height, width = self.shape
        if height != width:
            raise ValueError(f"DiTTransformer2DModel of diffusers takes square images only, this is {height} x {width}")
        try:
            module: Any = importlib.import_module("diffusers")
        except ImportError:
            raise ImportError('export to diffusers needs diffusers: pip install "flowmatch[networks]"') from None
        plain: nn.Module = module.DiTTransformer2DModel(
            num_attention_heads=self.heads,
            attention_head_dim=self.hidden // self.heads,
            in_channels=self.channels_in,
            out_channels=self.shape[0],
            num_layers=self.depth,
            sample_size=height,
            patch_size=self.patch,
            num_embeds_ada_norm=self.classes,
            norm_eps=1e-6,
        )
        plain.load_state_dict(_renamed(self.state_dict(), self.depth, self.hidden))
        # The method of diffusers warns of modules to be kept in float32, of which this network has none.
        return nn.Module.to(plain, self.outlet.weight.device, self.outlet.weight.dtype).eval()

    def _initialise(self) -> None:
        """Weights as in the paper's code: Xavier, small labels, zero for what switches a branch on."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if self.label is not None:
            with torch.no_grad():
                self.label.weight.mul_(0.02)
        for last in (self.film, self.outlet, *(block.film for block in self._each())):
            nn.init.zeros_(last.weight)

    def _each(self) -> list[_Block]:
        return [block for block in self.blocks if isinstance(block, _Block)]

    def _velocity(self, t: Tensor, x: Tensor, label: Tensor | None) -> Tensor:
        # No buffer, which would be rounded with the weights; in float32 as diffusers has it, lest the phases part.
        index = torch.arange(WAVES, dtype=torch.float32, device=t.device)
        waves = torch.exp(-math.log(10000.0) * index / (WAVES - 1))
        phase = self.time_scale * (1 - t)[:, None] * waves.to(t)
        told = self.time(torch.cat([phase.cos(), phase.sin()], dim=1).to(self.outlet.weight.dtype))
        if self.label is not None:
            told = told + self.label(label)
        told = functional.silu(told)
        h = self.inlet(x).flatten(2).mT
        h = h + self.places.to(h)
        with differentiable():
            for block in self.blocks:
                save = self.checkpointing and torch.is_grad_enabled()
                h = checkpointed(block, h, told) if save else block(h, told)
        shift, scale = self.film(told)[:, None].chunk(2, dim=2)
        patches = self.outlet(torch.addcmul(shift, self.norm(h), 1 + scale))
        pieces = patches.unflatten(1, self.grid).unflatten(3, (self.patch, self.patch, self.shape[0]))
        velocity: Tensor = -pieces.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], *self.shape)
        return velocity


class _Block(nn.Module):
    """Attention among the tokens and an MLP on each, switched on by what is told ``(B, hidden)``."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden, eps=1e-6, elementwise_affine=False)
        self.film = nn.Linear(hidden, 6 * hidden)
        self.read = nn.Linear(hidden, 3 * hidden)
        self.write = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden)
        )

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.film(told)[:, None].chunk(6, dim=2)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.read(torch.addcmul(shift1, self.norm(h), 1 + scale1)).chunk(3, dim=2)
        )
        seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        h = h + gate1 * self.write(seen)
        changed: Tensor = h + gate2 * self.mlp(torch.addcmul(shift2, self.norm(h), 1 + scale2))
        return changed


def _places(height: int, width: int, hidden: int) -> Tensor:
    """Sines and cosines of column and row, ``(height * width, hidden)``."""
    waves = 10000.0 ** -(torch.arange(hidden // 4, dtype=torch.float64) / (hidden // 4))
    row, column = (torch.arange(side, dtype=torch.float64)[:, None] * waves for side in (height, width))
    along, down = (torch.cat([phase.sin(), phase.cos()], dim=1) for phase in (column, row))
    both = [along[None].expand(height, -1, -1), down[:, None].expand(-1, width, -1)]
    return torch.cat(both, dim=2).flatten(0, 1)


def _renamed(ours: dict[str, Tensor], depth: int, hidden: int) -> dict[str, Tensor]:
    """The weights under the names of diffusers, which embeds time and class in every block."""
    pairs = {"inlet": "pos_embed.proj", "film": "proj_out_1", "outlet": "proj_out_2"}
    within = {"film": "norm1.linear", "write": "attn1.to_out.0", "mlp.0": "ff.net.0.proj", "mlp.2": "ff.net.2"}
    weights: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        weights |= {f"{theirs}.{kind}": ours[f"{name}.{kind}"] for name, theirs in pairs.items()}
        for k in range(depth):
            block, to = f"blocks.{k}", f"transformer_blocks.{k}"
            weights |= {f"{to}.{theirs}.{kind}": ours[f"{block}.{name}.{kind}"] for name, theirs in within.items()}
            for part, name in zip(ours[f"{block}.read.{kind}"].split(hidden), "qkv", strict=True):
                weights[f"{to}.attn1.to_{name}.{kind}"] = part
            for place, layer in ((0, 1), (2, 2)):
                weights[f"{to}.norm1.emb.timestep_embedder.linear_{layer}.{kind}"] = ours[f"time.{place}.{kind}"]
    table = ours.get("label.weight", torch.zeros(1, hidden))
    names = (f"transformer_blocks.{k}.norm1.emb.class_embedder.embedding_table.weight" for k in range(depth))
    return weights | dict.fromkeys(names, table)
