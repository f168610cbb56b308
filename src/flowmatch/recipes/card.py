"""The model card of a run: what it is, how it was made, how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowmatch.data import TableCodec
    from flowmatch.recipes.runs import RunConfig
    from flowmatch.train import TrainResult

__all__ = ["model_card", "size_and_loss"]


def size_and_loss(result: TrainResult, unit: str) -> tuple[int, str]:
    """Number of parameters, and the last held-out loss in words; ``unit`` is what would be held out."""
    losses = [line["heldout_loss"] for line in result.history if "heldout_loss" in line]
    last = f"{losses[-1]:.4f}" if losses else f"not measured (no {unit} held out)"
    return sum(p.numel() for p in result.model.parameters()), last


def model_card(name: str, config: RunConfig, codec: TableCodec, result: TrainResult, rows: int, held: int) -> str:
    """Markdown text of the card.

    Args:
        name: name of the run.
        config: what made it.
        codec: its columns.
        result: the trainer's account.
        rows: rows trained on.
        held: rows held out.
    """
    parameters, last = size_and_loss(result, "rows")
    given = f" --given {config.condition}=VALUE" if config.condition else ""
    condition = f"conditioned on `{config.condition}`" if config.condition else "unconditional"
    notes = "".join(f"- {note}\n" for note in codec.notes)
    return f"""# {name}

A flow matching model of a table, {condition}.

| | |
|---|---|
| data | `{config.data.rpartition("/")[2]}`, {rows} rows trained on, {held} held out |
| columns modelled | {codec.dim} |
| path | {config.flow.path} |
| network | residual MLP, {config.flow.depth} blocks of width {config.flow.hidden}, {parameters:,} parameters |
| training | {result.step} steps of {config.train.batch_size} rows in {result.seconds:.0f} s, seed {config.train.seed} |
| weights | the average after step {result.selected} |
| held-out loss at the end | {last} |

{notes}
## Use

```console
$ flowmatch sample {name} -n 1000 --out new.csv{given}
$ flowmatch score {name} rows.csv --out scores.csv
$ flowmatch evaluate {name}
```

```python
from flowmatch.recipes import Run

run = Run.open("{name}")
x, log_prob = run.flow.sample, run.flow.log_prob  # on encoded rows; run.codec goes between tables and tensors
```
"""
