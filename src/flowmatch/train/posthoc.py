r"""Snapshots of two power averages, from which an average of any width is made after training.

The folder ``posthoc`` of a run holds one file a snapshot, ``step_00001000.safetensors``, with the averages of relative
widths 0.05 and 0.10, each tensor as ``"0.05/name"``. A file is written beside its name, forced onto the disc and
renamed, so that a kill leaves it whole or not there; a run that resumes drops what lies beyond its checkpoint.

**Memory.** In training two more copies of the weights (``8 N`` bytes for ``N`` weights, a sharded model's in shards),
as much in every checkpoint, and as much a snapshot on disc. A reconstruction reads one tensor at a time and holds
``8 N`` bytes.

**Error.** The two stored widths come back exactly. Any other profile is met up to an error whose norm is this share of
its own, at the last of so many snapshots in equal distances:

========= ======= ======= ======= ======= ======= =======
snapshots 0.03    0.075   0.12    0.15    0.20    0.25
========= ======= ======= ======= ======= ======= =======
10        7.7 %   0.84 %  0.85 %  2.2 %   5.3 %   14 %
20        2.6 %   0.23 %  0.22 %  0.58 %  1.5 %   6.0 %
40        0.73 %  0.06 %  0.06 %  0.15 %  0.42 %  2.6 %
========= ======= ======= ======= ======= ======= =======

A reconstruction with an error above 20 % is refused.

Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024, section 3.2,
https://arxiv.org/abs/2312.02696.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.train.ema import Ema
from flowmatch.train.files import write_tensors
from flowmatch.train.profiles import Profile, exponent, factors, relative_error
from flowmatch.train.state import load_model, model_tensors

__all__ = ["WIDTHS", "Posthoc", "posthoc_ema", "snapshots"]

WIDTHS = (0.05, 0.10)
"""Relative widths of the averages that are kept, as in the paper."""

_WORST = 0.2  # relative error of a profile beyond which it is another average
_NAME = re.compile(r"step_(\d{8,})\.safetensors")


class Posthoc:
    """The averages that are kept, and their snapshots.

    Args:
        model: the model that is trained.
        twins: a copy of it for each of :data:`WIDTHS`, spread alike.
        folder: where snapshots go; made at the first.
        writes: whether this process writes; one of all does.
    """

    def __init__(self, model: nn.Module, twins: list[nn.Module], folder: Path, writes: bool) -> None:
        pairs = zip(WIDTHS, twins, strict=True)
        self._averages = {width: Ema(model, sigma_rel=width, module=twin) for width, twin in pairs}
        self.folder, self._writes = folder, writes

    def update(self, step: int) -> None:
        """Move the averages, after ``step`` earlier updates."""
        for average in self._averages.values():
            average.update(step)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by width and name, as wholes; call it on all processes."""
        parts = ((width, model_tensors(mean.module, self._writes)) for width, mean in self._averages.items())
        return {f"{width:.2f}/{name}": value for width, part in parts for name, value in part.items()}

    def restore(self, tensors: Mapping[str, Tensor] | None, where: Path) -> None:
        """Put back what :meth:`tensors` gave.

        Raises:
            InputError: the run kept none until now: an average of all steps cannot begin in the middle.
        """
        if tensors is None:
            raise InputError(
                f"{where} has no averages for snapshots, which have to begin with the run; resume it with "
                "posthoc_every=0, or start another run"
            )
        for width, mean in self._averages.items():
            head = f"{width:.2f}/"
            load_model(
                mean.module, {name.removeprefix(head): t for name, t in tensors.items() if name.startswith(head)}
            )

    def cut(self, step: int) -> None:
        """Remove snapshots beyond ``step``, and what a killed one left."""
        if self._writes and self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.suffix == ".unfinished" or (_NAME.fullmatch(path.name) and _step(path) > step):
                    path.unlink()

    def save(self, step: int) -> None:
        """Write a snapshot after ``step`` updates.

        Raises:
            InputError: the disc is full or cannot be written.
        """
        tensors = self.tensors()
        if not self._writes:
            return
        final = self.folder / f"step_{step:08d}.safetensors"
        beside = final.with_suffix(".unfinished")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(beside, tensors)
            beside.replace(final)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise InputError(
                f"could not write {final}: {error.strerror or error}; make room on the disc, or take snapshots less "
                "often with posthoc_every, then resume the run from its last checkpoint"
            ) from error


def snapshots(folder: Path | str) -> list[int]:
    """Steps at which a run took snapshots of its averages, in order; none if it took none."""
    return [_step(path) for path in _paths(folder)]


def posthoc_ema(folder: Path | str, sigma_rel: float, step: int | None = None) -> dict[str, Tensor]:
    r"""Weights averaged with a width that is chosen after training, from the snapshots of a run.

    Factors that sum to one and bring the stored profiles nearest to the wanted one, see
    :mod:`flowmatch.train.profiles`. Tensors that are not floating point, such as counters, are those of the last
    snapshot.

    Args:
        folder: the run, which was trained with ``posthoc_every``, or its folder ``posthoc``.
        sigma_rel: width of the average as a share of ``step``.
        step: the snapshot at which the average ends, by its number of updates; the last by default.

    Returns:
        Tensors by name, to be given to ``model.load_state_dict``.

    Raises:
        InputError: no snapshots, none at ``step``, or too few for this width.
        ValueError: a width outside ``(0, 1 / sqrt(12)]``.

    Source:
        Karras et al. 2024, section 3.2.
    """
    from safetensors import safe_open

    gamma, paths = exponent(sigma_rel), _paths(folder)
    if not paths:
        raise InputError(f"no snapshots of averages in {_kept_in(folder)}; train with posthoc_every to have some")
    run, steps = paths[0].parent, [_step(path) for path in paths]
    end = steps[-1] if step is None else step
    if end not in steps:
        near = min(steps, key=lambda there: abs(there - end))
        raise InputError(
            f"an average has to end at one of the {len(steps)} snapshots in {run}; give step={near}, got {end}"
        )
    stored = [(path, width) for path in paths for width in WIDTHS if _step(path) <= end]
    profiles, wanted = [Profile(exponent(width), _step(path)) for path, width in stored], Profile(gamma, end)
    weighed = factors(profiles, wanted)
    error = relative_error(profiles, wanted, weighed)
    if error > _WORST:
        raise InputError(
            f"the snapshots up to step {end} make an average of width {sigma_rel} only up to an error of {error:.0%}; "
            "give a width nearer to 0.05 or 0.10, a later step, or train with a smaller posthoc_every"
        )
    total: dict[str, Tensor] = {}
    types: dict[str, torch.dtype] = {}
    for (path, width), factor in zip(stored, weighed, strict=True):
        head = f"{width:.2f}/"
        with safe_open(path, framework="pt") as file:
            for key in (key for key in file.keys() if key.startswith(head)):  # noqa: SIM118 (no mapping)
                name, value = key.removeprefix(head), file.get_tensor(key)
                types[name] = value.dtype
                if not value.is_floating_point():
                    total[name] = value
                else:
                    # Factors of both signs: summed in float64, so that what cancels takes no digits along.
                    total.setdefault(name, torch.zeros_like(value, dtype=torch.float64)).add_(
                        value, alpha=float(factor)
                    )
    for name in total:
        total[name] = total[name].to(types[name])
    return total


def _paths(folder: Path | str) -> list[Path]:
    return sorted((path for path in _kept_in(folder).glob("step_*") if _NAME.fullmatch(path.name)), key=_step)


def _kept_in(folder: Path | str) -> Path:
    run = Path(folder)
    return run if run.name == "posthoc" else run / "posthoc"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))
