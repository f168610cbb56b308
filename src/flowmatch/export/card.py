"""The model card of an export.

A card is Markdown with a head of YAML that model hubs read: licence, library, task and tags. Its lines of code run as
they are, beside the folder.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import flowmatch
from flowmatch.errors import InputError

if TYPE_CHECKING:
    from flowmatch.export.facts import Facts
    from flowmatch.export.plain import Plain
    from flowmatch.flow import Flow

__all__ = ["check_license", "diffusers_card", "onnx_card"]

GENERATE, EDIT = "unconditional-image-generation", "image-to-image"


def check_license(license: str | None) -> None:
    """Raise InputError unless it is an identifier, or ``None`` for not chosen yet."""
    if license is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
        raise InputError(f"a licence is named by an identifier such as apache-2.0 or cc-by-4.0, got {license!r}")


def diffusers_card(name: str, parts: Plain, flow: Flow, facts: Facts, license: str | None) -> str:
    """Markdown text of the card of a pipeline folder called ``name``."""
    told, (channels, *sides) = parts.settings, flow.event_shape
    height, width = sides
    classes, joined = told.get("classes", 0), sum(int(told.get(key, 0)) for key in ("image", "mask", "noise"))
    model = {"unet": "UNet2DModel", "transformer": "DiTTransformer2DModel"}[parts.part]
    what = f"images of {channels} x {height} x {width}" + f" of {classes} classes" * bool(classes)
    what += ", from " + " and ".join(key for key in ("image", "mask", "noise") if told.get(key)) if joined else ""

    pipe = ["batch_size=16", "num_inference_steps=50", "generator=generator"]
    setup = ["generator = torch.Generator().manual_seed(0)"]
    call, loop = "x, t.expand(16)", []
    if classes:
        setup.append(f"labels = torch.arange(16) % {classes}  # {classes} is the label for no class")
        pipe.append("class_labels=labels")
    if classes or parts.part == "transformer":
        call += ", labels"
        loop.append(setup[1] if classes else "labels = torch.zeros(16, dtype=torch.long)  # there are no classes")
    if joined:
        square = f"{height}, {width}"
        shapes = {"image": f"16, {told['image']}, {square}", "mask": f"16, 1, {square}", "noise": "16"}
        setup += ["told = {", *(f'    "{key}": torch.zeros({shapes[key]}),' for key in shapes if told.get(key)), "}"]
        pipe.append("condition=told")
        call = call.replace("x,", "torch.cat([x, known], dim=1),", 1)
        loop.append(f"known = torch.zeros(16, {joined}, {height}, {width})  # image, mask and noise as channels")
    scale = f"{told['noise_std']} * " if "noise_std" in told else ""
    start = f"x = {scale}torch.randn(16, {channels}, {height}, {width}, generator=torch.Generator().manual_seed(0))"

    opened = "folder" if parts.usual else "folder, custom_pipeline=folder, trust_remote_code=True"
    steps = (
        "This is a loop of diffusers' own, which stops at noise shares from 1 to 0.001 and at 0. The loop below takes "
        "equal steps, as flowmatch's Euler does, and so does the pipeline opened with `custom_pipeline=folder, "
        "trust_remote_code=True`, which runs `pipeline.py`."
        if parts.usual
        else "`pipeline.py`, which needs torch and diffusers alone, takes equal steps, as flowmatch's Euler does."
    )
    if "guidance_scale" in told:
        steps += f" It guides with strength {told['guidance_scale']:g} unless `guidance_scale=` says otherwise."
    again = "" if joined else f'With flowmatch, `flowmatch.export.load_diffusers("{name}")` is the flow again.\n\n'
    return f"""{_head(license, "diffusers", EDIT if joined else GENERATE, classes)}# {facts.title or name}

A flow matching model that makes {what}.
{_account(facts, license)}
## Use

```python
import torch
from diffusers import DiffusionPipeline

folder = {json.dumps(name)}  # this folder
pipe = DiffusionPipeline.from_pretrained({opened})
{_lines(setup)}
images = pipe({", ".join(pipe)}).images
images[0].save("first.png")
```

{steps} The loop itself{", without guidance" if classes or joined else ""}:

```python
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, {model}

folder, steps = {json.dumps(name)}, 50
net = {model}.from_pretrained(folder, subfolder="{parts.part}").eval()
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
{_lines([*loop, start])}
with torch.no_grad():
    for t in scheduler.timesteps:
        noise_less_data = net({call}, return_dict=False)[0]
        x = scheduler.step(noise_less_data, t, x).prev_sample
images = (x / 2 + 0.5).clamp(0, 1)
```

{again}{_origin(flow)}"""


def onnx_card(
    name: str, inputs: dict[str, tuple[str, tuple[Any, ...]]], flow: Flow, facts: Facts, license: str | None
) -> str:
    """Markdown text of the card of a folder called ``name`` with ``model.onnx``.

    Args:
        name: name of the folder.
        inputs: type and shape, without the batch, of each input by name.
        flow: the flow.
        facts: what is known of the run.
        license: its licence.
    """
    low, high = flow.path.interval
    rows = [f"| `{key}` | {kind} | {_shape('B', *sides)} |" for key, (kind, sides) in inputs.items()]
    told = [
        f'    "{key}": np.zeros({_shape(16, *sides)}, "{kind}"),'
        for key, (kind, sides) in inputs.items()
        if key not in ("t", "x")
    ]
    setup = ["told = {", *told, "}"] if told else []
    start = f"rng.standard_normal({_shape(16, *flow.event_shape)}, np.float32)"
    std = getattr(flow.source, "std", None)
    if std is None:
        setup.append(f"# The flow starts from {flow.source!r}: put such rows into x.")
    elif std != 1:
        start = f"np.float32({std}) * {start}"
    table = ""
    if facts.codec is not None:
        table = """columns = json.loads(meta["columns"])  # those of whole numbers are still to be rounded
table = {c["name"]: x[:, d] * c["std"] + c["mean"] + (c["span"] or [0])[0] for d, c in enumerate(columns)}
"""
    task = (EDIT if "image" in inputs else GENERATE) if len(flow.event_shape) == 3 else None
    return f"""{_head(license, "onnx", task, int("label" in inputs))}# {facts.title or name}

The velocity of a flow matching model, for onnxruntime: `model.onnx` maps a time, a state and what is told to dx/dt.
Time runs from {low:g} (noise) to {high:g} (data). The metadata of the file say what else is needed.
{_account(facts, license)}
## Inputs

| name | type | shape |
|---|---|---|
{_lines(rows)}

The output is `velocity`, float32, of the shape of `x`. B is any number.

## Use

```python
import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({json.dumps(name + "/model.onnx")}, providers=["CPUExecutionProvider"])
meta = session.get_modelmeta().custom_metadata_map
steps, rng = 20, np.random.default_rng(0)
times = np.linspace(*json.loads(meta["interval"]), steps + 1)
{_lines([*setup, f"x = {start}"])}
for t, until in zip(times, times[1:]):
    velocity = session.run(["velocity"], {{"t": np.full(16, t, np.float32), "x": x{", **told" if told else ""}}})[0]
    x = x + np.float32(until - t) * velocity
{table}```

{_origin(flow)}"""


def _head(license: str | None, library: str, task: str | None, classes: int) -> str:
    """The card's head of YAML."""
    lines = [f"license: {license}"] if license else []
    lines += [f"library_name: {library}"] + ([f"pipeline_tag: {task}"] if task else [])
    lines += ["tags:", "- flow-matching"] + (["- class-conditional"] if classes else [])
    return _lines(["---", *lines, "---", "", ""])


def _account(facts: Facts, license: str | None) -> str:
    """How it was made, what was measured, its classes, its licence."""
    parts = []
    if facts.table:
        parts.append("| | |\n|---|---|\n" + _lines([f"| {key} | {value} |" for key, value in facts.table]))
    if facts.classes:
        parts.append("Classes: " + ", ".join(f"{k} {name}" for k, name in enumerate(facts.classes)) + ".")
    if facts.numbers:
        rows = _lines([f"| {key} | {value:.5g} |" for key, value in facts.numbers])
        parts.append(
            f"Measured on the run, with the solver of its evaluation:\n\n| measure | value |\n|---|---|\n{rows}"
        )
    if not license:
        parts.append("No licence is named yet: add `license:` to the head of this file before you publish it.")
    return "".join(f"\n{part}\n" for part in parts)


def _origin(flow: Flow) -> str:
    return f"Written by flowmatch {flowmatch.__version__}; trained on `{flow.path!r}`.\n"


def _shape(*sides: Any) -> str:
    return f"({', '.join(map(str, sides))}{',' * (len(sides) == 1)})"


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)
