"""A pipeline folder of diffusers from a flow: written aside, opened again, compared, and only then put in its place.

What is in the folder: ``unet/`` or ``transformer/`` (configuration and safetensors), ``scheduler/``,
``model_index.json``, ``pipeline.py`` (a sampling loop that needs torch and diffusers alone) and ``README.md``, the
model card. A U-Net without conditions is opened as diffusers' own ``DDPMPipeline``, whose loop serves any scheduler;
all else by the loop in ``pipeline.py``, which diffusers runs if told ``trust_remote_code=True``. ``pipeline.py`` is the
same file in every export, with the settings in ``model_index.json``, because diffusers keeps one copy under that name.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmatch.errors import InputError
from flowmatch.export.card import check_license, diffusers_card
from flowmatch.export.compare import ROWS, Exported, compare, example_condition, inner_network, single_precision
from flowmatch.export.facts import Facts
from flowmatch.export.plain import Plain, plain_parts
from flowmatch.flow import Flow
from flowmatch.persist import write_atomically
from flowmatch.tensors import expand_time

__all__ = ["fresh_folder", "to_diffusers"]

#: Files by which a folder is known as an export, which may be replaced.
MARKS = ("model_index.json", "model.onnx")

CLASSES = {"unet": "UNet2DModel", "transformer": "DiTTransformer2DModel"}


def to_diffusers(
    flow: Flow, folder: str | Path, *, facts: Facts | None = None, license: str | None = None, overwrite: bool = False
) -> Exported:
    """Write the flow as a folder that plain diffusers opens, without this package.

    ``FlowMatchEulerDiscreteScheduler`` then makes the samples that :class:`flowmatch.Euler` makes. The field has to be
    a :class:`flowmatch.nn.UNet` or :class:`flowmatch.nn.DiT`, alone or under :class:`flowmatch.Guided`, and the source
    normal; the path may be any. Weights are written in single precision. The flow's solver is not part of the folder.

    Args:
        flow: the flow.
        folder: where to; made if it is not there.
        facts: what the model card says of the run, see :func:`~flowmatch.export.run_facts`.
        license: the licence that the card names, such as ``"apache-2.0"``; it is yours to choose.
        overwrite: whether an earlier export may be replaced.

    Returns:
        The folder, and the largest differences found when it was opened again.

    Raises:
        ImportError: diffusers is not installed.
        InputError: a flow that plain diffusers cannot express, a folder that holds something else, or a licence that is
            no identifier.

    Example:
        >>> import tempfile
        >>> import flowmatch as fm
        >>> net = fm.nn.UNet((1, 8, 8), channels=8, mults=(1, 2), depth=1, head_channels=8)
        >>> with tempfile.TemporaryDirectory() as out:
        ...     done = to_diffusers(fm.Flow(net, event_shape=(1, 8, 8)), out)
        ...     sorted(path.name for path in done.path.iterdir())
        ['README.md', 'model_index.json', 'pipeline.py', 'scheduler', 'unet']
    """
    diffusers, folder = load_library(), Path(folder)
    check_license(license)
    parts = plain_parts(flow)
    with fresh_folder(folder, overwrite) as draft:
        parts.net.save_pretrained(draft / parts.part, safe_serialization=True)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=parts.time_scale, shift=1.0)
        scheduler.save_pretrained(draft / "scheduler")
        index = _index(parts, diffusers.__version__)
        write_atomically(draft / "model_index.json", (json.dumps(index, indent=2) + "\n").encode())
        write_atomically(draft / "pipeline.py", (Path(__file__).parent / "pipeline.py").read_bytes())
        card = diffusers_card(folder.resolve().name, parts, flow, facts or Facts(), license)
        write_atomically(draft / "README.md", card.encode())
        velocity, sample = _compare(flow, parts, draft)
    return Exported(folder, velocity, sample)


@contextmanager
def fresh_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """An empty folder aside, which takes the place of ``folder`` if all goes well and leaves no trace if not.

    Raises:
        InputError: ``folder`` is a file, or holds something that may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise InputError(f"{folder} already holds something; give another folder, or --overwrite to replace it")
        if not any((folder / mark).exists() for mark in MARKS):
            raise InputError(f"{folder} is no export of a flow, so it will not be overwritten; give another folder")
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    draft.mkdir()
    try:
        yield draft
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(draft, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_library() -> Any:
    """The package diffusers.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("diffusers")
    except ImportError:
        raise ImportError('exchange with diffusers needs it: pip install "flowmatch[networks]"') from None


def _index(parts: Plain, version: str) -> dict[str, Any]:
    """What ``model_index.json`` holds."""
    index: dict[str, Any] = {
        "_class_name": "DDPMPipeline" if parts.usual else ["pipeline", "FlowMatchPipeline"],
        "_diffusers_version": version,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        parts.part: ["diffusers", CLASSES[parts.part]],
    }
    return index | parts.settings


def _compare(flow: Flow, parts: Plain, folder: Path) -> tuple[float, float]:
    """Open the folder with diffusers, and hold it against the flow."""
    diffusers = load_library()
    pipeline = importlib.import_module("flowmatch.export.pipeline").FlowMatchPipeline
    net = getattr(diffusers, CLASSES[parts.part]).from_pretrained(folder, subfolder=parts.part, local_files_only=True)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    pipe = pipeline(scheduler=scheduler, **{parts.part: net}, **parts.settings)
    pipe.set_progress_bar_config(disable=True)
    single = single_precision(flow)
    network = inner_network(single.field)
    cond = example_condition(network, ROWS, torch.Generator().manual_seed(1))
    told = dict(cond) if isinstance(cond, dict) else {} if cond is None else {"label": cond}
    label = told.pop("label", None)

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        own = torch.zeros(ROWS, dtype=torch.long) if label is None and parts.part == "transformer" else label
        channels = [expand_time(part, x).expand_as(x[:, :1]) if part.ndim == 1 else part for part in told.values()]
        joined = torch.cat([x, *channels], dim=1)
        answer: Tensor = net(joined, timestep=parts.time_scale * (1 - t), class_labels=own, return_dict=False)[0]
        return -answer

    def sample(x: Tensor, grid: list[float]) -> Tensor:
        images: Tensor = pipe(
            class_labels=label, condition=told, latents=x, sigmas=[1 - t for t in grid[:-1]], output_type="latent"
        ).images
        return images

    return compare(single, cond, velocity, sample, (0.0, 1.0), network)
