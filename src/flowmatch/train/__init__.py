"""Training: one loop from a laptop to a cluster, and everything it needs to survive a stop."""

from __future__ import annotations

from importlib.util import find_spec

for _name in ("accelerate", "pydantic", "safetensors"):
    if find_spec(_name) is None:
        raise ImportError(f'flowmatch.train needs {_name}, which is not installed; run: pip install "flowmatch[train]"')

from flowmatch.train.checkpoint import Checkpoint, Checkpoints
from flowmatch.train.config import TrainConfig, explain
from flowmatch.train.data import Data, TensorData
from flowmatch.train.draws import Draws
from flowmatch.train.ema import Ema
from flowmatch.train.labels import LabelDropout
from flowmatch.train.log import Callback, JsonLines, TensorBoard, Wandb
from flowmatch.train.posthoc import posthoc_ema, snapshots
from flowmatch.train.processes import join_processes
from flowmatch.train.trainer import Trainer, TrainResult

__all__ = [
    "Callback",
    "Checkpoint",
    "Checkpoints",
    "Data",
    "Draws",
    "Ema",
    "JsonLines",
    "LabelDropout",
    "TensorBoard",
    "TensorData",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "Wandb",
    "explain",
    "join_processes",
    "posthoc_ema",
    "snapshots",
]
