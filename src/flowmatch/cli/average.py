"""``flowmatch average``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from flowmatch.cli.errors import reported, say
from flowmatch.errors import InputError
from flowmatch.fields import Predicts
from flowmatch.persist import write_atomically
from flowmatch.recipes.kinds import open_run
from flowmatch.train import posthoc_ema, snapshots

__all__ = ["average"]

#: What describes a run and is no weight of it.
_KEPT = ("config.yaml", "data.json", "metrics.jsonl")


@reported
def average(
    run: Annotated[Path, typer.Argument(help="Run folder, trained with --posthoc-every.")],
    width: Annotated[
        float, typer.Option(help="Width of the average as a share of the training, such as 0.1; 0.288 at most.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write; RUN stays as it is.")],
    step: Annotated[
        int | None, typer.Option(help="Snapshot at which the average ends. (default: the last)", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Average the weights of a run over another length, after it was trained.

    The new folder samples, evaluates and exports as any run; it cannot be trained on. Compare several widths by
    flowmatch evaluate.
    """
    if not 0 < width <= 12**-0.5:
        raise InputError(f"--width must lie above 0 and not above 0.288, got {width}")
    opened = open_run(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already holds something; give another --out")
    try:
        weights = posthoc_ema(run, width, step)
    except InputError as error:  # speaks of arguments
        told = str(error).replace("step=", "--step ").replace("posthoc_every", "--posthoc-every")
        raise InputError(told) from None
    end = snapshots(run)[-1] if step is None else step
    flow = opened.flow
    network = flow.field.net if isinstance(flow.field, Predicts) else flow.field
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the snapshots in {run} are not of its network: {str(error).splitlines()[0]}") from None
    flow.tuned.clear()  # those were fitted to other weights
    out.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        if (run / name).is_file():
            shutil.copy(run / name, out / name)
    if (run / "features").is_dir():  # so that distances of both are taken in the same
        shutil.copytree(run / "features", out / "features")
    write_atomically(out / "README.md", _card(out.resolve().name, run.resolve().name, width, end).encode())
    flow.save(out)
    if not quiet:
        say(f"average of width {width:g} of {run} written to {out}")
        say(f"next: flowmatch evaluate {out}")


def _card(name: str, origin: str, width: float, step: int) -> str:
    """Markdown text of the card; what the run learnt from stands in the card of the run."""
    return f"""# {name}

The weights of the run `{origin}`, averaged after training with a relative width of {width:g}, to step {step}.
`config.yaml` and `data.json` say how that run was trained, and on what.

```console
$ flowmatch sample {name}
$ flowmatch evaluate {name}
```
"""
