"""Networks: fields ``(t, x, cond) -> velocity`` with parameters."""

from flowmatch.nn.dit import DiT
from flowmatch.nn.embeddings import TimeEmbedding
from flowmatch.nn.imported import FromDiffusers, from_diffusers
from flowmatch.nn.mlp import MLP
from flowmatch.nn.pair import Pair
from flowmatch.nn.presets import dit_preset, unet_preset
from flowmatch.nn.unet import UNet

__all__ = [
    "MLP",
    "DiT",
    "FromDiffusers",
    "Pair",
    "TimeEmbedding",
    "UNet",
    "dit_preset",
    "from_diffusers",
    "unet_preset",
]
