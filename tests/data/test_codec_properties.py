"""The round trip of the table codec, for tables that nobody chose."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flowmatch.data import TableCodec
from flowmatch.errors import InputError

FLOATS = {"float16": 16, "float32": 32, "float64": 64}
INTS = ["int8", "uint8", "int16", "int32", "int64", "uint64", "Int8", "Int64", "UInt32", "int64[pyarrow]"]
NARROW = 2**20  # a range that float32 tells apart


@st.composite
def columns(draw: st.DrawFn, n: int) -> pd.Series:
    """A column of ``n`` cells of any numeric type."""
    sort = draw(st.sampled_from(["float", "integer", "bool"]))
    if sort == "bool":
        dtype = draw(st.sampled_from(["bool", "boolean", "bool[pyarrow]"]))
        return pd.Series(draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=dtype)
    if sort == "integer":
        dtype = draw(st.sampled_from(INTS))
        limit = np.iinfo(dtype.lower().removesuffix("[pyarrow]"))
        low = draw(st.integers(int(limit.min), int(limit.max)))
        cells = st.integers(low, min(low + NARROW, int(limit.max)))
        return pd.Series(draw(st.lists(cells, min_size=n, max_size=n)), dtype=dtype)
    dtype = draw(st.sampled_from(list(FLOATS)))
    bound = {16: 6e4, 32: 2.0**100, 64: 2.0**900}[FLOATS[dtype]]
    cells = st.floats(-bound, bound, width=FLOATS[dtype], allow_subnormal=False)
    return pd.Series(np.array(draw(st.lists(cells, min_size=n, max_size=n)), dtype=dtype))


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """A table of 2 to 12 rows and 1 to 4 columns."""
    n = draw(st.integers(2, 12))
    names = draw(st.lists(st.text(min_size=1, max_size=4) | st.integers(0, 9), min_size=1, max_size=4, unique_by=str))
    return pd.DataFrame({name: draw(columns(n)) for name in names})


def fit(frame: pd.DataFrame) -> TableCodec:
    try:
        return TableCodec.fit(frame)
    except InputError as error:
        # The only tables of this sort that may be refused.
        assert "every column is constant" in str(error) or "differ by too little" in str(error)  # noqa: PT017
        assume(False)
        raise


def check_same(back: pd.DataFrame, frame: pd.DataFrame, codec: TableCodec) -> None:
    assert list(back.columns) == list(frame.columns)
    assert back.dtypes.equals(frame.dtypes)
    scales = {column.name: column for column in codec.columns if column.span is None}
    for name in frame.columns:
        if name not in scales:
            assert back[name].equals(frame[name]), name
            continue
        # One rounding to float32 in units of the standard deviation, one to the column's own type.
        cells = frame[name].to_numpy(dtype=np.float64)
        error = np.abs(back[name].to_numpy(dtype=np.float64) - cells)
        code = np.abs(cells - scales[name].mean) / scales[name].std
        own = np.finfo(frame[name].dtype).eps * np.abs(cells)
        assert (error <= 1e-6 * scales[name].std * (1 + code) + own).all(), name


@given(frame=frames())
@settings(max_examples=150, deadline=None)
def test_decode_undoes_encode(frame):
    codec = fit(frame)
    x, cond = codec.encode(frame)
    assert cond is None
    assert x.isfinite().all()
    check_same(codec.decode(x), frame, codec)


@given(frame=frames(), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_noise_stays_inside_the_cell(frame, seed):
    codec = fit(frame)
    clean = codec.encode(frame)[0].double()
    noisy = codec.encode(frame, torch.Generator().manual_seed(seed))[0].double()
    std = torch.tensor([column.std for column in codec.columns], dtype=torch.float64)
    whole = codec.step > 0
    noise = ((noisy - clean) * std)[:, whole]
    rounding = (1e-6 * (1 + noisy.abs()) * std)[:, whole]
    assert (noise.abs() <= 0.5 + rounding).all()
    assert torch.equal(noisy[:, ~whole], clean[:, ~whole])


@given(frame=frames())
@settings(max_examples=100, deadline=None)
def test_json_text_gives_an_equal_codec(frame):
    codec = fit(frame)
    again = TableCodec.from_json(json.loads(json.dumps(codec.to_json(), allow_nan=False)))
    assert again == codec
    assert torch.equal(again.encode(frame)[0], codec.encode(frame)[0])


@given(frame=frames(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_condition_comes_back_beside_the_rows(frame, data):
    name = data.draw(st.sampled_from(list(frame.columns)))
    try:
        codec = TableCodec.fit(frame, condition=name)
    except InputError:
        assume(False)
        raise
    back = codec.decode(*codec.encode(frame))
    assert list(back.columns) == list(frame.columns)
    assert back.dtypes.equals(frame.dtypes)
    if codec.classes:
        assert back[name].equals(frame[name])
