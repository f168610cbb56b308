r"""Networks and pipelines of diffusers as flows, from a local folder.

diffusers' flow matching models share one convention, that of ``FlowMatchEulerDiscreteScheduler``: a noise share
:math:`\sigma = 1 - t`, and a network that answers noise less data, so :math:`v(t, x) = -f(x, T (1 - t))`. What
differs is ``T``: most are called with the timestep, ``num_train_timesteps`` times the share, some with the share
itself. A model under another scheduler predicts something else on another path, and is refused.

Nothing is unpickled and no code of the folder is run: weights are read from safetensors, and a class is one of
diffusers itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch.errors import InputError
from flowmatch.export.facts import read_json
from flowmatch.export.folder import load_library
from flowmatch.fields import Guided
from flowmatch.flow import Flow
from flowmatch.nn import from_diffusers
from flowmatch.paths import AffinePath
from flowmatch.sources import Normal

__all__ = ["load_diffusers", "scheduler_grid"]

#: Classes whose calling convention is known: whether they are called with the noise share itself.
SHARES = {
    "UNet2DModel": False,
    "UNet2DConditionModel": False,
    "DiTTransformer2DModel": False,
    "SD3Transformer2DModel": False,
    "FluxTransformer2DModel": True,
}

PARTS = ("unet", "transformer")


def load_diffusers(
    folder: str | Path,
    *,
    time_scale: float | None = None,
    event_shape: tuple[int, ...] | None = None,
    **arguments: Any,
) -> Flow:
    """Open a local folder of diffusers, of a pipeline or of a network alone, as a flow.

    The condition is that of :class:`flowmatch.nn.FromDiffusers`: a tensor is ``class_labels``, a dict the arguments
    that it names. The network works on what it was trained on: latents, for a model with an autoencoder.

    Args:
        folder: folder with ``model_index.json``, or with the ``config.json`` of a network.
        time_scale: what the noise share is multiplied by; by default as the class of the network and the scheduler
            of the pipeline have it, 1000 without a scheduler.
        event_shape: shape of one sample; by default read from the network's configuration.
        **arguments: further arguments of every call, that are no condition of a sample, such as ``img_ids``.

    Raises:
        ImportError: diffusers is not installed.
        InputError: no such folder, no flow matching model, or one of which something has to be told.

    Example:
        >>> import tempfile
        >>> import flowmatch as fm
        >>> net = fm.nn.UNet((1, 8, 8), channels=8, mults=(1, 2), depth=1, head_channels=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     net.to_diffusers().save_pretrained(folder)
        ...     flow = load_diffusers(folder)
        >>> flow.event_shape, flow.sample(2, steps=4).shape
        ((1, 8, 8), torch.Size([2, 1, 8, 8]))
    """
    diffusers, folder = load_library(), Path(folder)
    place, index = _locate(folder)
    kind = _class(diffusers, read_json(place / "config.json").get("_class_name"), place)
    net = kind.from_pretrained(place, use_safetensors=True, local_files_only=True).eval()
    if time_scale is None:
        if kind.__name__ not in SHARES:
            raise InputError(
                f"it is not known whether a {kind.__name__} is called with the timestep or with the noise share: give "
                "time_scale=1000 or time_scale=1, as its pipeline does"
            )
        time_scale = 1.0 if SHARES[kind.__name__] else float(_timesteps(folder, index))
    shape = _event(net, place) if event_shape is None else tuple(event_shape)
    field: nn.Module = from_diffusers(_Unlabelled(net) if _needs_zeros(net) else net, time_scale, **arguments)
    if "guidance_scale" in index:  # a pipeline that to_diffusers wrote
        field = Guided(field, index["guidance_scale"], index["classes"], tuple(index.get("guidance_interval", (0, 1))))
    # Nothing there says how noise and data were paired, nor on which path: noise in sampling is refused.
    return Flow(field, AffinePath(), shape, Normal(float(index.get("noise_std", 1))), independent=False).eval()


def scheduler_grid(folder: str | Path, steps: int, *, mu: float | None = None) -> Tensor:
    """Times at which the scheduler of a pipeline folder stops, for ``flow.sample(n, solver=fm.Euler(), grid=...)``.

    With its own shift, or under dynamic shifting with the ``mu`` that the pipeline computes from the image's size.

    Args:
        folder: the pipeline.
        steps: number of steps.
        mu: the dynamic shift.

    Returns:
        Times ``(steps + 1,)`` from 0, or later, to 1, in float64.

    Raises:
        InputError: no flow matching scheduler there, or ``mu`` where there is no dynamic shift, or none where there is.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    _timesteps(folder, index)
    if index["scheduler"][1] != "FlowMatchEulerDiscreteScheduler":
        raise InputError(
            f"{folder} is sampled by {index['scheduler'][1]}, which is not Euler's; choose a grid of your own"
        )
    scheduler = load_library().FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    if (mu is not None) != bool(scheduler.config.use_dynamic_shifting):
        raise InputError(
            "this scheduler shifts by the size of the image: give mu=, as the pipeline computes it"
            if mu is None
            else f"this scheduler has a shift of its own, {scheduler.config.shift}, and takes no mu"
        )
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    scheduler.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
    times: Tensor = 1 - scheduler.sigmas.double()
    return times


class _Unlabelled(nn.Module):
    """A transformer without classes, which diffusers calls with a label all the same."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        label = torch.zeros(len(hidden_states), dtype=torch.long, device=hidden_states.device)
        return self.model(hidden_states, timestep=timestep, class_labels=label, return_dict=return_dict)


def _needs_zeros(net: Any) -> bool:
    return type(net).__name__ == "DiTTransformer2DModel" and not net.config.num_embeds_ada_norm


def _locate(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Folder of the network, and the index of its pipeline, empty without one."""
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        parts = [part for part in PARTS if index.get(part) and (folder / part).is_dir()]
        if len(parts) != 1:
            raise InputError(f"{folder} needs one of {' and '.join(PARTS)}, it has {parts or 'none'}")
        return folder / parts[0], index
    if (folder / "config.json").is_file():
        return folder, {}
    raise InputError(
        f"no network of diffusers at {folder}: neither model_index.json nor config.json is there; give a folder that "
        "save_pretrained wrote"
    )


def _class(diffusers: Any, name: Any, place: Path) -> Any:
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise InputError(f"{place / 'config.json'} names {name!r}, which is no network of this diffusers; is it newer?")
    return kind


def _timesteps(folder: Path, index: dict[str, Any]) -> int:
    """``num_train_timesteps`` of the scheduler, 1000 for a network alone."""
    if not index:
        return 1000
    name = (index.get("scheduler") or [None, None])[1]
    if name not in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        raise InputError(
            f"{folder} is sampled by {name}, so its network does not answer a flow's velocity; for one that predicts "
            "noise or data on a diffusion path, wrap its network: fm.Predicts(net, kind=..., path=...)"
        )
    steps = read_json(folder / "scheduler" / "scheduler_config.json").get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"{folder / 'scheduler'} has num_train_timesteps {steps!r}, not a number of steps")
    return steps


def _event(net: Any, place: Path) -> tuple[int, ...]:
    """Shape of one sample by the network's configuration."""
    config = net.config
    size, taken = config.get("sample_size"), config.get("in_channels")
    answered = config.get("out_channels") or taken
    if size is None or taken is None or "img_ids" in net.forward.__code__.co_varnames:
        raise InputError(f"the configuration at {place} does not say the shape of a sample: give event_shape=")
    if taken != answered:
        raise InputError(
            f"the network at {place} takes {taken} channels and answers {answered}: it is told something as further "
            "channels, or answers more than a velocity; wrap it in a field of your own around nn.from_diffusers(net)"
        )
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return (int(taken), *map(int, sides))
