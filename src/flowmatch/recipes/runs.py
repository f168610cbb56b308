r"""A run: from a table to a folder that samples and scores, and back from the folder.

The folder is the artefact. It holds ``config.yaml`` (all that is needed to train again), ``data.json`` (the codec
between table and tensors, and a fingerprint of the data), ``flow.json`` and ``model.safetensors`` (the averaged
weights), ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/`` and ``README.md``. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, field_validator

from flowmatch.data import Table, TableCodec, TableData, load_table
from flowmatch.errors import InputError
from flowmatch.flow import Flow
from flowmatch.persist import write_atomically
from flowmatch.recipes.card import model_card
from flowmatch.recipes.folder import Description, RunOptions, check_same, mapping, read_history, read_json, read_options
from flowmatch.recipes.matching import make_objective
from flowmatch.recipes.tabular import FlowConfig, fit_flow, suggest
from flowmatch.train import TrainConfig, TrainResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "RunConfig", "train_run"]


class RunConfig(RunOptions):
    """Everything that makes a run, as written to ``config.yaml``."""

    data: str = Field(description="file .csv, .parquet, .npy, .npz, or toy:NAME, sklearn:NAME")
    rows: int | None = Field(None, ge=2, description="rows to draw from a toy set")
    condition: str | None = Field(None, description="column that the model is conditioned on")
    columns: tuple[str, ...] | None = Field(None, description="columns to keep; all by default")
    drop: tuple[str, ...] = Field((), description="columns to leave out")
    holdout: float = Field(0.1, ge=0, le=0.5, description="share of the rows kept out of training")
    flow: FlowConfig = Field(default_factory=FlowConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)

    @field_validator("data")
    @classmethod
    def _absolute(cls, data: str) -> str:
        """A run must find its data from any working directory."""
        return data if data.startswith(("toy:", "sklearn:")) else str(Path(data).expanduser().resolve())

    @classmethod
    def choose(cls, options: dict[str, Any], table: Table) -> RunConfig:
        """Fill in from the size of the data what ``options`` leave open.

        Args:
            options: fields by name, with ``flow`` and ``train`` as dicts.
            table: the loaded data.

        Raises:
            InputError: an unknown option or a value out of its limits; every problem is named.
        """
        holdout = options.get("holdout", 0.1)
        held = _held(len(table.frame), holdout) if isinstance(holdout, int | float) else 0
        flow, train = suggest(len(table.frame) - held, table.frame.shape[1])
        merged = {
            **options,
            "flow": {**flow, **mapping(options, "flow")},
            "train": {**train, **mapping(options, "train")},
        }
        return cls.parse(merged)

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Config from ``config.yaml`` of a run on a table.

        Raises:
            InputError: missing, not YAML, not such a config, or that of a run of images.
        """
        if read_options(path).get("kind") == "images":
            raise InputError(
                f"{path.parent} is a run of images, and a table is wanted here; flowmatch evaluate measures both"
            )
        return super().read(path)

    def codec(self, table: Table) -> TableCodec:
        """The codec of the table under this config; raises if the table cannot be learnt from, or not in this way."""
        codec = TableCodec.fit(table.frame, self.condition, columns=self.columns, drop=self.drop)
        make_objective(self.flow, codec.classes, codec.cond_dim)
        return codec


@dataclass(frozen=True)
class Run:
    """A trained run, opened from its folder.

    Attributes:
        folder: where it lies.
        config: what made it.
        codec: between table rows and tensors.
        flow: the flow on encoded rows, with the averaged weights.
        image_shape: shape of a row as an image, or ``None``.
        fingerprint: hash of the training table.
    """

    folder: Path
    config: RunConfig
    codec: TableCodec
    flow: Flow
    image_shape: tuple[int, ...] | None
    fingerprint: str

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a run folder.

        Raises:
            InputError: no run there, or a damaged one; the message names the file.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"no run folder at {folder}; give the folder that flowmatch train wrote (--out)")
        flow = Flow.load(folder)
        config = RunConfig.read(folder / "config.yaml")
        described = read_json(folder / "data.json")
        try:
            codec = TableCodec.from_json(described["codec"])
            shape = described["image_shape"]
            return cls(folder, config, codec, flow, tuple(shape) if shape else None, str(described["fingerprint"]))
        except KeyError as error:
            raise InputError(f"{folder / 'data.json'} lacks {error}; restore it from a copy or train again") from None

    def split(self, source: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows the run was trained on and those held out, from the original data.

        Args:
            source: where the data lies now, if it has moved.

        Raises:
            InputError: the data cannot be read or has changed since.
        """
        table = load_table(source or self.config.data, rows=self.config.rows, seed=self.config.train.seed)
        if fingerprint(table.frame) != self.fingerprint:
            raise InputError(
                f"{table.source} is not the table this run was trained on: its content has changed; "
                "give the original with --data, or score the new one with flowmatch score"
            )
        return split(table.frame, self.config.holdout, self.config.train.seed)

    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_history(self.folder)


def train_run(
    config: RunConfig,
    table: Table,
    codec: TableCodec,
    out: Path,
    *,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
    main: bool = True,
    ready: Callable[[], Any] | None = None,
) -> tuple[Run, TrainResult]:
    """Train on a table and write the run folder.

    Args:
        config: what to do.
        table: the loaded data.
        codec: the table's codec, as :meth:`RunConfig.codec` makes it.
        out: run folder.
        callbacks: told about progress.
        resume: go on from the newest good checkpoint.
        main: whether this process writes; one process of several does.
        ready: called once all options have been checked, to make the folder ready (see :func:`prepare_folder`).

    Returns:
        The run, and the trainer's account.
    """
    rows, held = split(table.frame, config.holdout, config.train.seed)
    print_of_data = fingerprint(table.frame)
    if resume:
        check_same(out / "data.json", print_of_data, config.data)
    described = {
        "codec": codec.to_json(),
        "image_shape": list(table.image_shape) if table.image_shape else None,
        "fingerprint": print_of_data,
        "rows": len(rows),
        "heldout_rows": len(held),
        "notes": codec.notes,
    }
    flow, result = fit_flow(
        TableData(codec, rows),
        TableData(codec, held) if len(held) else None,
        dim=codec.dim,
        classes=codec.classes,
        cond_dim=codec.cond_dim,
        flow=config.flow,
        train=config.train,
        out=out,
        callbacks=[Description(out, config.to_yaml(), described), *callbacks],
        resume=resume,
        ready=ready,
    )
    run = Run(out, config, codec, flow.cpu(), table.image_shape, print_of_data)
    if main:
        flow.save(out)
        card = model_card(out.name, config, codec, result, len(rows), len(held))
        write_atomically(out / "README.md", card.encode())
    return run, result


def split(frame: pd.DataFrame, holdout: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows for training and held-out rows, the same for the same seed."""
    held = _held(len(frame), holdout)
    order = torch.randperm(len(frame), generator=torch.Generator().manual_seed(seed)).numpy()
    return frame.iloc[order[held:]], frame.iloc[order[:held]]


def fingerprint(frame: pd.DataFrame) -> str:
    """Hash of a table's names, types and content."""
    import pandas as pd

    digest = hashlib.sha256(repr([(str(name), str(kind)) for name, kind in frame.dtypes.items()]).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _held(rows: int, holdout: float) -> int:
    return int(holdout * rows)
