"""The table codec: names, types, conditions, and every refusal with its message."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from flowmatch.data import TableCodec, TableData, load_table
from flowmatch.errors import InputError

N = 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def frame() -> pd.DataFrame:
    """A table with a column of each sort, the condition in the middle."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "height": rng.normal(170.0, 10.0, N),
            "legs": rng.integers(-2, 5, N),
            "kind": rng.choice(["cat", "dog", "hen"], N),
            "tame": rng.random(N) < 0.5,
            "planet": np.full(N, 3),
            "mass": rng.lognormal(0.0, 1.0, N).astype(np.float32),
        }
    )


def numeric(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="kind")


# Shapes, order, types


def test_codes_are_standardised_and_typed(frame):
    codec = TableCodec.fit(frame, condition="kind")
    x, cond = codec.encode(frame)
    assert x.shape == (N, codec.dim) == (N, 4)
    assert x.dtype == torch.float32
    assert cond.shape == (N,)
    assert cond.dtype == torch.int64
    assert (codec.classes, codec.cond_dim) == (3, 0)
    torch.testing.assert_close(x.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    reals = [d for d, column in enumerate(codec.columns) if column.span is None]
    torch.testing.assert_close(x[:, reals].std(0, correction=0), torch.ones(2), atol=1e-6, rtol=0)


def test_whole_numbers_with_noise_have_unit_spread():
    # A rare pixel: without the variance of the noise in its scale its code would reach beyond 20.
    frame = pd.DataFrame({"pixel": np.r_[1, np.zeros(9999, int)], "a": np.arange(10_000.0)})
    x, _ = TableCodec.fit(frame).encode(frame, generator())
    assert x[:, 0].std().item() == pytest.approx(1, abs=0.02)
    assert x[:, 0].abs().max() < 6


def test_rows_come_back(frame):
    codec = TableCodec.fit(frame, condition="kind")
    back = codec.decode(*codec.encode(frame))
    pd.testing.assert_frame_equal(back, frame, rtol=1e-5)
    assert back["legs"].equals(frame["legs"])
    assert back["tame"].equals(frame["tame"])


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int64", "uint64", "Int16", "UInt32", "int64[pyarrow]", "uint8[pyarrow]"]
    + ["float16", "float32", "float64", "Float32", "Float64", "double[pyarrow]", "float[pyarrow]"],
)
def test_numeric_types_come_back(dtype):
    frame = pd.DataFrame({"a": pd.Series([1, 2, 5, 9], dtype=dtype), "b": pd.Series([7, 7, 7, 7], dtype=dtype)})
    codec = TableCodec.fit(frame)
    codec = TableCodec.from_json(json.loads(json.dumps(codec.to_json())))
    pd.testing.assert_frame_equal(codec.decode(codec.encode(frame)[0]), frame, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["bool", "boolean", "bool[pyarrow]"])
def test_truth_values_come_back(dtype):
    frame = pd.DataFrame({"a": pd.Series([True, False, True], dtype=dtype), "b": pd.Series([True] * 3, dtype=dtype)})
    codec = TableCodec.fit(frame)
    pd.testing.assert_frame_equal(codec.decode(codec.encode(frame)[0]), frame)


def test_columns_of_python_objects_come_back_as_what_they_hold():
    frame = pd.DataFrame({"i": [1, 2, 3], "f": [1, 2.5, 3], "b": [True, False, True]}, dtype=object)
    codec = TableCodec.fit(frame)
    back = codec.decode(codec.encode(frame)[0])
    assert [str(dtype) for dtype in back.dtypes] == ["int64", "float64", "bool"]


def test_a_sparse_column_comes_back_dense():
    frame = pd.DataFrame({"a": pd.arrays.SparseArray([0.0, 0.0, 1.5]), "b": [1.0, 2.0, 4.0]})
    codec = TableCodec.fit(frame)
    back = codec.decode(codec.encode(frame)[0])
    assert back["a"].dtype == np.float64
    np.testing.assert_allclose(back["a"], [0, 0, 1.5], atol=1e-6)


def test_whole_numbers_are_kept_in_the_seen_range_and_floats_are_not(frame):
    codec = TableCodec.fit(numeric(frame))
    back = codec.decode(torch.full((1, codec.dim), 40.0))
    assert back["legs"][0] == frame["legs"].max()
    assert back["tame"][0] == np.True_
    assert back["height"][0] > frame["height"].max()
    back = codec.decode(torch.full((1, codec.dim), -40.0))
    assert back["legs"][0] == frame["legs"].min()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "Float32"])
def test_far_samples_never_overflow(dtype):
    top = {"float16": 6e4, "float64": 1e299}.get(dtype, 1e37)
    frame = pd.DataFrame({"a": pd.Series([0.0, top], dtype=dtype)})
    back = TableCodec.fit(frame).decode(torch.tensor([[1e38], [-1e38]]))
    assert back["a"].dtype == frame["a"].dtype
    assert np.isfinite(back["a"].to_numpy()).all()


@pytest.mark.parametrize(
    "values",
    [
        np.array([-(2**63), 2**63 - 1]),
        np.array([0, 2**64 - 1], dtype=np.uint64),
        np.array([2**63 + 5, 2**63 + 9], dtype=np.uint64),
        np.array([1_700_000_000_000_000_000, 1_700_000_000_000_000_007]),
    ],
)
def test_huge_whole_numbers(values):
    frame = pd.DataFrame({"a": values, "b": values[::-1].copy()})
    codec = TableCodec.fit(frame)
    back = codec.decode(codec.encode(frame)[0])
    wide = int(values.max()) - int(values.min()) >= 2**23
    assert any("more than float32" in note for note in codec.notes) == wide
    assert back.dtypes.equals(frame.dtypes)
    tolerance = 2e-7 * (int(values.max()) - int(values.min())) if wide else 0
    assert all(abs(int(u) - int(v)) <= tolerance for u, v in zip(back["a"], frame["a"], strict=True))
    inside = codec.decode(torch.tensor([[1e9, -1e9]]))
    assert int(inside["a"][0]) == int(values.max())
    assert int(inside["b"][0]) == int(values.min())


def test_column_names_that_are_numbers():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 3)))
    codec = TableCodec.fit(frame, condition=1)
    codec = TableCodec.from_json(json.loads(json.dumps(codec.to_json())))
    back = codec.decode(*codec.encode(frame))
    assert list(back) == [0, 1, 2]
    assert codec.encode_condition({"1": "0.5"}, 2).shape == (2, 1)


def test_one_column():
    frame = pd.DataFrame({"a": [1.0, 3.0]})
    codec = TableCodec.fit(frame)
    x, cond = codec.encode(frame)
    assert x.tolist() == [[-1.0], [1.0]]
    assert cond is None
    pd.testing.assert_frame_equal(codec.decode(x), frame)


def test_no_rows_and_one_row(frame):
    codec = TableCodec.fit(frame, condition="kind")
    for n in (0, 1):
        x, cond = codec.encode(frame.head(n), generator())
        assert x.shape == (n, 4)
        back = codec.decode(x, cond)
        assert len(back) == n
        assert back.dtypes.equals(frame.dtypes)


def test_columns_may_be_reordered_and_extras_are_ignored(frame):
    codec = TableCodec.fit(frame, condition="kind")
    shuffled = frame[frame.columns[::-1]].assign(extra="?").drop(columns="planet")
    for one, other in zip(codec.encode(frame), codec.encode(shuffled), strict=True):
        assert torch.equal(one, other)


def test_whole_numbers_may_arrive_as_floats(frame):
    codec = TableCodec.fit(numeric(frame))
    same = codec.encode(numeric(frame).astype({"legs": "float64", "tame": "int64", "mass": "float64"}))[0]
    torch.testing.assert_close(same, codec.encode(numeric(frame))[0])
    with pytest.raises(InputError, match=r"'legs' held whole numbers .*, got 0.5 in row 2"):
        codec.encode(numeric(frame).astype({"legs": "float64"}).assign(legs=[0.0, 1.0, 0.5] * 20))


def test_chosen_and_dropped_columns(frame):
    codec = TableCodec.fit(frame, columns=["mass", "height"])
    assert codec.order == ("height", "mass")  # the order of the table
    assert TableCodec.fit(frame, drop=["kind", "mass"]).order == ("height", "legs", "tame", "planet")
    assert TableCodec.fit(frame, condition="kind", columns="mass").order == ("kind", "mass")
    assert TableCodec.fit(frame, drop="kind").dim == 4


# Dequantisation and training data


def test_noise_is_uniform_over_one_unit_and_only_on_whole_numbers(frame):
    big = pd.concat([numeric(frame)] * 200, ignore_index=True)
    codec = TableCodec.fit(big)
    clean, noisy = codec.encode(big)[0], codec.encode(big, generator())[0]
    names = [column.name for column in codec.columns]
    assert torch.equal(clean[:, names.index("height")], noisy[:, names.index("height")])
    legs = names.index("legs")
    noise = (noisy - clean)[:, legs] * codec.columns[legs].std
    assert noise.abs().max() <= 0.5 + 1e-5
    n = len(big)
    assert abs(noise.mean().item()) < 4 / math.sqrt(12 * n)
    assert abs(noise.var().item() - 1 / 12) < 4 / math.sqrt(180 * n)
    assert torch.equal(noisy, codec.encode(big, generator())[0])


def test_noise_rounds_away(frame):
    codec = TableCodec.fit(frame, condition="kind")
    for seed in range(20):
        back = codec.decode(*codec.encode(frame, generator(seed)))
        assert back["legs"].equals(frame["legs"])
        assert back["tame"].equals(frame["tame"])


def test_table_data_is_the_encoded_table(frame):
    codec = TableCodec.fit(frame, condition="kind")
    data = TableData(codec, frame)
    index = torch.tensor([5, 0, 5])
    x, cond = data.take(index)
    every, classes = codec.encode(frame)
    assert len(data) == N
    assert torch.equal(x, every[index])
    assert torch.equal(cond, classes[index])
    noisy, _ = data.take(torch.arange(N), generator())
    assert torch.equal(noisy, codec.encode(frame, generator())[0])


def test_table_data_draws_fresh_noise_and_keeps_its_rows(frame):
    data = TableData(TableCodec.fit(numeric(frame)), numeric(frame))
    g, before = generator(), data.x.clone()
    (first, cond), (second, _) = data.take(torch.arange(N), g), data.take(torch.arange(N), g)
    assert cond is None
    assert not torch.equal(first, second)
    assert torch.equal(data.x, before)
    assert torch.equal(data.take(torch.arange(N))[0], before)


def test_global_state_is_left_alone(frame):
    before = torch.get_rng_state()
    codec = TableCodec.fit(frame, condition="kind")
    codec.encode(frame, generator())
    codec.encode(frame)
    codec.draw_condition(4, generator())
    assert torch.equal(before, torch.get_rng_state())


# Density


def test_log_det_is_the_change_of_variables():
    # Rows of a known normal law: log p(row) must be log p(code) + log_det, with p(code) known in closed form.
    rng = np.random.default_rng(0)
    scale, shift = np.array([3.0, 0.02, 400.0]), np.array([1e3, -1.0, 0.0])
    frame = pd.DataFrame(rng.normal(size=(50, 3)) * scale + shift, columns=list("abc"))
    codec = TableCodec.fit(frame)
    x = codec.encode(frame)[0].double()
    rows = torch.distributions.Normal(torch.tensor(shift), torch.tensor(scale))
    log_row = rows.log_prob(torch.tensor(frame.to_numpy())).sum(1)
    mean = torch.tensor([column.mean for column in codec.columns])
    std = torch.tensor([column.std for column in codec.columns], dtype=torch.float64)
    codes = torch.distributions.Normal((torch.tensor(shift) - mean) / std, torch.tensor(scale) / std)
    torch.testing.assert_close(codes.log_prob(x).sum(1) + codec.log_det, log_row, rtol=1e-4, atol=1e-4)


def test_log_det_is_the_numeric_jacobian(frame):
    codec = TableCodec.fit(numeric(frame))
    names = [column.name for column in codec.columns]
    base = numeric(frame).head(1).astype(dict.fromkeys(names, "float64"))
    base["legs"], base["tame"] = 0.0, 0.0
    jacobian = np.empty((codec.dim, codec.dim))
    for k, name in enumerate(names):
        moved = base.copy()
        moved[name] += 1.0
        jacobian[:, k] = (codec.encode(moved)[0] - codec.encode(base)[0]).double().numpy()[0]
    assert np.linalg.slogdet(jacobian)[1] == pytest.approx(codec.log_det, abs=1e-4)


def test_a_dequantised_density_sums_to_one_over_the_grid():
    # P(v) = integral of p over the unit cell of v; with the law of the codes known, the cells add up to 1.
    frame = pd.DataFrame({"a": np.random.default_rng(0).integers(0, 6, 500)})
    codec = TableCodec.fit(frame)
    fine = (torch.arange(-30_000, 30_000) + 0.5) / 1000
    column = codec.columns[0]
    codes = (fine.double() - column.span[0] - column.mean) / column.std
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(codes) + codec.log_det
    assert log_p.exp().sum().item() / 1000 == pytest.approx(1, abs=1e-6)


# Conditions


CONDITIONS = {
    "text": pd.Series(["b", "a", "c"] * 20),
    "string": pd.Series(["b", "a", "c"] * 20, dtype="string"),
    "object": pd.Series(["b", "a", "c"] * 20, dtype=object),
    "arrow": pd.Series(["b", "a", "c"] * 20, dtype=pd.ArrowDtype(pa.string())),
    "category": pd.Series(pd.Categorical(["b", "a", "c"] * 20, categories=["d", "c", "b", "a"])),
    "ordered": pd.Series(pd.Categorical(["b", "a", "c"] * 20, categories=["c", "b", "a"], ordered=True)),
    "number category": pd.Series(pd.Categorical([1.5, 2.5, 0.5] * 20)),
    "bool": pd.Series([True, False] * 30),
    "boolean": pd.Series([True, False] * 30, dtype="boolean"),
    "int": pd.Series([7, -1, 3] * 20, dtype="int8"),
    "Int": pd.Series([7, -1, 3] * 20, dtype="Int64"),
    "many": pd.Series(range(100, 160), dtype="int32"),
    "float": pd.Series(np.linspace(-1, 1, 60)),
    "Float": pd.Series(np.linspace(-1, 1, 60), dtype="Float32"),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_sort_of_condition_comes_back(name):
    series = CONDITIONS[name]
    frame = pd.DataFrame({"x": np.arange(60.0) ** 2, "c": series, "y": np.arange(60)})
    codec = TableCodec.fit(frame, condition="c")
    codec = TableCodec.from_json(json.loads(json.dumps(codec.to_json())))
    x, cond = codec.encode(frame)
    is_number = name in ("many", "float", "Float")
    assert (codec.classes, codec.cond_dim) == ((0, 1) if is_number else (series.nunique(), 0))
    assert cond.shape == ((60, 1) if is_number else (60,))
    assert cond.dtype == (torch.float32 if is_number else torch.int64)
    pd.testing.assert_frame_equal(codec.decode(x, cond), frame, atol=1e-3)
    for k in (0, 1):  # what the table shows is what the user may write, as it is and as text
        for value in (series[k], str(series[k])):
            torch.testing.assert_close(codec.encode_condition({"c": value}, 3), cond[k : k + 1].repeat_interleave(3, 0))


def test_levels_are_sorted_or_in_the_order_of_the_category():
    frame = pd.DataFrame({"x": np.arange(60.0)})
    levels = {
        name: TableCodec.fit(frame.assign(c=CONDITIONS[name]), condition="c").condition.levels
        for name in ("text", "int", "bool", "category", "ordered")
    }
    assert levels == {
        "text": ("a", "b", "c"),
        "int": (-1, 3, 7),
        "bool": (False, True),
        "category": ("a", "b", "c"),
        "ordered": ("c", "b", "a"),
    }


def test_fifty_whole_numbers_are_classes_and_fifty_one_a_number():
    frame = pd.DataFrame({"x": np.arange(102.0), "c": np.arange(102) % 50})
    assert TableCodec.fit(frame, condition="c").classes == 50
    assert TableCodec.fit(frame.assign(c=np.arange(102) % 51), condition="c").cond_dim == 1


@pytest.mark.parametrize("text", ["true", "TRUE", "yes", "1", True, 1])
def test_truth_is_read_in_several_ways(text):
    frame = pd.DataFrame({"x": np.arange(60.0), "c": CONDITIONS["bool"]})
    assert TableCodec.fit(frame, condition="c").encode_condition({"c": text}, 2).tolist() == [1, 1]


def test_conditions_are_drawn_as_seen(frame):
    skewed = frame.assign(kind=["cat"] * 45 + ["dog"] * 15)
    drawn = TableCodec.fit(skewed, condition="kind").draw_condition(4000, generator())
    assert drawn.dtype == torch.int64
    share = (drawn == 0).double().mean().item()
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)
    codec = TableCodec.fit(numeric(frame), condition="height")
    drawn = codec.draw_condition(4000, generator())
    seen = codec.encode(frame)[1]
    assert drawn.shape == (4000, 1)
    assert drawn.min() >= seen.min() - 1e-6
    assert drawn.max() <= seen.max() + 1e-6
    assert abs(drawn.mean().item()) < 0.1
    assert TableCodec.fit(numeric(frame)).draw_condition(3, generator()) is None


def test_condition_that_cannot_be_read(frame):
    codec = TableCodec.fit(frame, condition="kind")
    for wanted, message in [
        ({"kind": "cow"}, "'kind' has no level 'cow'; its levels are 'cat', 'dog', 'hen'"),
        ({"kin": "cat"}, r"'kin' is not the condition \(did you mean 'kind'\?\)"),
        ({}, "condition 'kind' needs a value"),
        (None, "condition 'kind' needs a value"),
    ]:
        with pytest.raises(InputError, match=message):
            codec.encode_condition(wanted, 1)
    with pytest.raises(InputError, match="has no condition, got 'kind'"):
        TableCodec.fit(numeric(frame)).encode_condition({"kind": "cat"}, 1)
    assert TableCodec.fit(numeric(frame)).encode_condition({}, 1) is None


@pytest.mark.parametrize("value", ["tall", "", "nan", "inf", None])
def test_a_number_is_expected(frame, value):
    codec = TableCodec.fit(numeric(frame), condition="height")
    with pytest.raises(InputError, match="'height' expects a number, got"):
        codec.encode_condition({"height": value}, 1)


def test_a_far_number_is_refused(frame):
    codec = TableCodec.fit(numeric(frame), condition="height")
    with pytest.raises(InputError, match="'height' is too far"):
        codec.encode_condition({"height": "1e300"}, 1)
    with pytest.raises(InputError, match="'height' is too far"):
        codec.encode(numeric(frame).assign(height=1e300))


def test_classes_may_arrive_as_floats():
    frame = pd.DataFrame({"x": np.arange(60.0), "c": CONDITIONS["int"]})
    codec = TableCodec.fit(frame, condition="c")
    assert torch.equal(codec.encode(frame.astype(float))[1], codec.encode(frame)[1])


def test_a_whole_number_is_expected():
    frame = pd.DataFrame({"x": np.arange(60.0), "c": CONDITIONS["many"]})
    with pytest.raises(InputError, match="expects a whole number, got '100.5'"):
        TableCodec.fit(frame, condition="c").encode_condition({"c": "100.5"}, 1)


# Refusals


def test_bad_cells_are_counted_and_placed(frame):
    bad = frame.copy()
    bad.loc[[3, 7], "height"] = np.nan
    bad.loc[5, "mass"] = np.inf
    with pytest.raises(
        InputError,
        match=r"column 'height' has 2, the first in row 3; column 'mass' has 1, the first in row 5 .*"
        r"Drop these rows .* impute",
    ):
        TableCodec.fit(bad, condition="kind")
    assert TableCodec.fit(bad, columns=["legs"]).dim == 1  # cells of unused columns do not matter
    with pytest.raises(InputError, match="'kind' has 1, the first in row 0"):
        TableCodec.fit(frame.assign(kind=[None, *frame["kind"][1:]]), condition="kind")
    with pytest.raises(InputError, match="'height' has 2, the first in row 3"):
        TableCodec.fit(frame, condition="kind").encode(bad)


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "object"])
def test_missing_cells_of_nullable_types(dtype):
    frame = pd.DataFrame({"a": pd.Series([True, False, None, True], dtype=dtype), "b": [1.0, 2.0, 3.0, 4.0]})
    with pytest.raises(InputError, match="'a' has 1, the first in row 2"):
        TableCodec.fit(frame)


@pytest.mark.parametrize("dtype", ["str", "string", "object", "category"])
def test_text_is_refused_with_a_way_out(frame, dtype):
    with pytest.raises(InputError, match=r"'kind' \((text|category).*--drop .* --columns.* --condition"):
        TableCodec.fit(frame.astype({"kind": dtype}))


def test_dates_complex_and_mixed_cells_are_refused(frame):
    when = pd.date_range("2020", periods=N)
    for series, kind in [(when, "datetime"), (np.full(N, 1j), "other"), ([1, "a"] * 30, "other")]:
        with pytest.raises(InputError, match=rf"'when' \({kind}"):
            TableCodec.fit(numeric(frame).assign(when=series))
        with pytest.raises(InputError, match="column 'when' .* cannot be a condition"):
            TableCodec.fit(numeric(frame).assign(when=series), condition="when")


def test_the_cell_that_makes_a_column_text_is_named(frame):
    with pytest.raises(InputError, match=r"1 of 60 cells does not read as a number, the first is '\?' in row 2"):
        TableCodec.fit(numeric(frame).assign(age=["1", "2", "?", *(["4"] * 57)]))
    with pytest.raises(InputError, match=r"pandas\.to_numeric can convert it"):
        TableCodec.fit(numeric(frame).assign(age=["1", "2"] * 30))


def test_constants_are_told_and_all_constant_is_refused(frame):
    codec = TableCodec.fit(frame, condition="kind")
    assert any("'planet' (always 3)" in note for note in codec.notes)
    assert "planet" not in [column.name for column in codec.columns]
    with pytest.raises(InputError, match=r"every column is constant \('planet'\)"):
        TableCodec.fit(frame, columns=["planet"])
    with pytest.raises(InputError, match="condition column 'planet' has one value only"):
        TableCodec.fit(numeric(frame), condition="planet")


def test_other_notes(frame):
    note = TableCodec.fit(numeric(frame).assign(count=np.arange(N, dtype=float))).notes
    assert any("'count' hold whole numbers stored as floats" in text for text in note)
    note = TableCodec.fit(numeric(frame).assign(c=[str(k) for k in range(N)]), condition="c").notes
    assert any("60 levels for 60 rows" in text for text in note)


def test_wrong_names(frame):
    for arguments, message in [
        ({"condition": "kin"}, r"condition: no column is called 'kin' \(did you mean 'kind'\?\); the table has"),
        ({"columns": ["Height"]}, r"columns: .*'Height' \(did you mean 'height'\?\)"),
        ({"drop": ["legz"]}, "drop: .*'legz'"),
        ({"condition": "kind", "drop": ["kind"]}, "'kind' is both the condition and dropped"),
        ({"condition": "kind", "columns": ["kind"]}, "no column is left to model"),
        ({"drop": list(frame)}, "no column is left to model"),
    ]:
        with pytest.raises(InputError, match=message):
            TableCodec.fit(frame, **arguments)


def test_wrong_tables(frame):
    with pytest.raises(InputError, match="at least 2 rows to learn from, got 1"):
        TableCodec.fit(numeric(frame).head(1))
    with pytest.raises(InputError, match="at least 2 rows to learn from, got 0"):
        TableCodec.fit(pd.DataFrame())
    doubled = pd.DataFrame(np.ones((3, 2)), columns=["a", "a"])
    with pytest.raises(InputError, match="'a' occur more than once"):
        TableCodec.fit(doubled)
    with pytest.raises(InputError, match="column names must be text or whole numbers"):
        TableCodec.fit(pd.DataFrame({("a", "b"): [1.0, 2.0]}))
    with pytest.raises(TypeError, match=r"must be a pandas\.DataFrame, got ndarray"):
        TableCodec.fit(np.ones((3, 2)))
    with pytest.raises(InputError, match="too large to compute with"):
        TableCodec.fit(pd.DataFrame({"a": [0.0, 1e305]}))
    with pytest.raises(InputError, match="differ by too little"):
        TableCodec.fit(pd.DataFrame({"a": [0.0, 5e-324]}))


def test_tables_that_do_not_fit_the_codec(frame):
    codec = TableCodec.fit(frame, condition="kind")
    with pytest.raises(InputError, match=r"lacks 'height' \(did you mean 'heigth'\?\); the model needs"):
        codec.encode(frame.rename(columns={"height": "heigth"}))
    with pytest.raises(InputError, match="lacks 'kind'"):
        codec.encode(numeric(frame))
    with pytest.raises(InputError, match="'kind' has 'cow', first in row 0, not seen .* are 'cat', 'dog', 'hen'"):
        codec.encode(frame.assign(kind="cow"))
    with pytest.raises(InputError, match="'height' must be numeric, got text"):
        codec.encode(frame.assign(height="tall"))
    with pytest.raises(InputError, match="'height' is too far .*, first in row 0"):
        codec.encode(frame.assign(height=1e290))


def test_tensors_that_do_not_fit_the_codec(frame):
    codec = TableCodec.fit(frame, condition="kind")
    x, cond = codec.encode(frame)
    for arguments, message in [
        ((x[:, :2], cond), r"x must have shape \(N, 4\)"),
        ((x, None), "has the condition 'kind', got cond of shape None"),
        ((x, cond[:5]), "one entry a row of x, 60, got shape"),
        ((x, cond + 1), r"class numbers must lie in 0\.\.2, got 1 to 3"),
        ((x, cond.float()), "class numbers of shape"),
        ((x * math.nan, cond), "NaN or infinite"),
    ]:
        with pytest.raises(ValueError, match=message):
            codec.decode(*arguments)
    with pytest.raises(ValueError, match="has no condition, got cond of shape"):
        TableCodec.fit(numeric(frame)).decode(x, cond)
    with pytest.raises(ValueError, match=r"cond must have shape \(N, 1\)"):
        TableCodec.fit(numeric(frame), condition="height").decode(x[:, :3], cond)


# JSON


def test_json_round_trip_is_exact(frame):
    for condition in ("kind", "legs", "tame", None):
        table = frame if condition == "kind" else numeric(frame)
        codec = TableCodec.fit(table, condition=condition)
        again = TableCodec.from_json(json.loads(json.dumps(codec.to_json(), allow_nan=False)))
        assert again == codec
        assert again.log_det == codec.log_det
        for one, other in zip(codec.encode(table), again.encode(table), strict=True):
            assert one is other is None or torch.equal(one, other)


def paths(value: object, path: tuple = ()) -> list[tuple]:
    """Every place inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, item in inner for place in paths(item, (*path, key))]


@pytest.mark.parametrize("condition", ["kind", "height", "legs", None])
def test_damaged_json_is_refused(frame, condition):
    good = TableCodec.fit(frame if condition == "kind" else numeric(frame), condition=condition).to_json()
    broken = 0
    for path in paths(good)[1:]:
        for wrong in ("delete", None, [], {}, "x", -1, math.nan):
            payload = copy.deepcopy(good)
            *way, last = path
            place = payload
            for key in way:
                place = place[key]
            if wrong == "delete":
                del place[last]
            else:
                place[last] = wrong
            try:
                codec = TableCodec.from_json(payload)
            except InputError:
                broken += 1
            else:
                # What is taken in spite of a change must be a codec that works.
                json.dumps(codec.to_json(), allow_nan=False)
                cond = codec.draw_condition(2, generator())
                codec.decode(torch.zeros(2, codec.dim), cond)
    assert broken > 5 * len(good)


@pytest.mark.parametrize("payload", [{}, [], None, {"format": "other"}, {"format": "flowmatch-table", "version": 99}])
def test_foreign_json_is_refused(payload):
    with pytest.raises(InputError, match="not the description of a table|has version 99"):
        TableCodec.from_json(payload)


def test_the_message_says_what_is_damaged(frame):
    payload = TableCodec.fit(numeric(frame)).to_json()
    payload["columns"][0]["std"] = -1.0
    with pytest.raises(InputError, match="damaged: std of column 'height' must be .*, got -1.0; restore"):
        TableCodec.from_json(payload)
    del payload["columns"]
    with pytest.raises(InputError, match="damaged: 'columns' is missing"):
        TableCodec.from_json(payload)


# Real tables


@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer", "iris"])
def test_real_tables_come_back(name):
    frame = load_table(f"sklearn:{name}").frame
    codec = TableCodec.fit(frame, condition="target")
    assert codec.classes == frame["target"].nunique()
    back = codec.decode(*codec.encode(frame, generator()))
    pd.testing.assert_frame_equal(back, frame, rtol=1e-5, atol=1e-6)
