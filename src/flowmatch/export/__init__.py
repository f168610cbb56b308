"""Export and import: folders that plain diffusers opens, files for onnxruntime, and networks of diffusers as flows."""

from flowmatch.export.compare import Exported
from flowmatch.export.facts import Facts, run_facts
from flowmatch.export.folder import to_diffusers
from flowmatch.export.loading import load_diffusers, scheduler_grid
from flowmatch.export.onnx_file import to_onnx

__all__ = ["Exported", "Facts", "load_diffusers", "run_facts", "scheduler_grid", "to_diffusers", "to_onnx"]
