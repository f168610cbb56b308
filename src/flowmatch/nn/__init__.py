"""Networks: fields ``(t, x, cond) -> velocity`` with parameters."""

from flowmatch.nn.embeddings import TimeEmbedding
from flowmatch.nn.mlp import MLP

__all__ = ["MLP", "TimeEmbedding"]
