"""Networks: fields ``(t, x, cond) -> velocity`` with parameters."""

from flowmatch.nn.embeddings import TimeEmbedding
from flowmatch.nn.mlp import MLP
from flowmatch.nn.pair import Pair

__all__ = ["MLP", "Pair", "TimeEmbedding"]
