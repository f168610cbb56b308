"""Reading tables: what can be read comes back as written, and what cannot is one clear message."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmatch.data import TOYS, load_table, toy
from flowmatch.data.sources import SKLEARN
from flowmatch.errors import InputError

FRAME = pd.DataFrame({"a": [1.5, 2.5, -3.0], "b": [1, 2, 3], "c": ["x", "y", "x"], "d": [True, False, True]})


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


# What can be read


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_comes_back_whatever_its_delimiter(tmp_path, delimiter):
    FRAME.to_csv(tmp_path / "t.csv", index=False, sep=delimiter)
    table = load_table(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(table.frame, FRAME)
    assert table.image_shape is None
    assert bool(table.notes) == (delimiter != ",")


def test_csv_with_quotes_byte_mark_comments_and_windows_line_ends(tmp_path):
    text = '# made by "hand\r\n\r\n"a, b",c\r\n"1,5 m",2\r\n"x ""y""",3\r\n'
    table = load_table(write(tmp_path / "t.CSV", text, "utf-8-sig"))
    assert table.frame.to_dict("list") == {"a, b": ["1,5 m", 'x "y"'], "c": [2, 3]}


def test_csv_index_and_empty_columns_are_left_out_and_told(tmp_path):
    FRAME.to_csv(tmp_path / "t.csv")
    table = load_table(tmp_path / "t.csv")
    assert list(table.frame) == ["a", "b", "c", "d"]
    assert "counts the rows" in table.notes[0]
    table = load_table(write(tmp_path / "u.csv", "a,b,\n1,2,\n3,4,\n"))
    assert list(table.frame) == ["a", "b"]
    assert "is empty" in table.notes[0]


def test_csv_nameless_column_that_does_not_count_rows_is_kept(tmp_path):
    table = load_table(write(tmp_path / "t.csv", ",b\n5,2\n3,4\n"))
    assert table.frame.shape == (2, 2)


def test_csv_with_years_as_names(tmp_path):
    table = load_table(write(tmp_path / "t.csv", "2019,2020\n1,2\n3,4\n"))
    assert list(table.frame) == ["2019", "2020"]


def test_parquet_comes_back(tmp_path):
    frame = FRAME.assign(e=pd.array([1, 2, 3], dtype="Int16"), f=pd.Categorical(["u", "v", "u"]))
    frame.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(load_table(tmp_path / "t.parquet").frame, frame)
    frame.set_index("a").to_parquet(tmp_path / "u.parquet")
    table = load_table(tmp_path / "u.parquet")
    assert "a" not in table.frame
    assert "index 'a'" in table.notes[0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", ">f8", ">i4"])
def test_npy_matrix(tmp_path, dtype):
    array = np.arange(6).reshape(3, 2).astype(dtype)
    np.save(tmp_path / "t.npy", array)
    frame = load_table(tmp_path / "t.npy").frame
    assert list(frame) == ["x0", "x1"]
    assert np.array_equal(frame.to_numpy(), array)
    assert (frame.dtypes == np.dtype(dtype).newbyteorder("=")).all()


def test_npy_vector_and_images(tmp_path):
    np.save(tmp_path / "v.npy", np.arange(4.0))
    assert load_table(tmp_path / "v.npy").frame.shape == (4, 1)
    images = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    np.save(tmp_path / "i.npy", images)
    table = load_table(tmp_path / "i.npy")
    assert table.image_shape == (3, 5)
    assert np.array_equal(table.frame.to_numpy().reshape(2, 3, 5), images)


@pytest.mark.parametrize("names", [("x", "y"), ("data", "target"), ("X", "Y")])
def test_npz_with_target(tmp_path, names):
    x, y = np.ones((3, 2, 2)), np.array(["u", "v", "u"])
    np.savez(tmp_path / "t.npz", **dict(zip(names, (x, y), strict=True)))
    table = load_table(tmp_path / "t.npz")
    assert list(table.frame) == ["x0", "x1", "x2", "x3", "target"]
    assert list(table.frame["target"]) == ["u", "v", "u"]
    assert table.image_shape == (2, 2)


def test_npz_with_one_array(tmp_path):
    np.savez_compressed(tmp_path / "t.npz", anything=np.ones((3, 2)))
    assert load_table(tmp_path / "t.npz").frame.shape == (3, 2)


@pytest.mark.parametrize("name", TOYS)
def test_toy_is_the_toy_set(name):
    table = load_table(f"toy:{name}", rows=20, seed=5)
    x = toy(name).sample(20, generator=torch.Generator().manual_seed(5), dtype=torch.float32)
    assert np.array_equal(table.frame.to_numpy(), x.numpy())
    assert table.source == f"toy:{name}"
    assert not load_table(f"toy:{name}", rows=20, seed=6).frame.equals(table.frame)


def test_toy_rows_by_default():
    assert load_table("toy:moons").frame.shape == (10_000, 2)


@pytest.mark.parametrize("name", SKLEARN)
def test_sklearn_sets(name):
    table = load_table(f"sklearn:{name}")
    assert table.frame.columns[-1] == "target"
    assert table.frame["target"].dtype.kind == "i"
    assert (table.image_shape == (8, 8)) == (name == "digits")
    assert table.frame.isna().sum().sum() == 0


def test_digits_are_whole_numbers():
    assert all(dtype.kind == "i" for dtype in load_table("sklearn:digits").frame.dtypes)


def test_rows_picks_some_of_them_by_the_seed():
    every = load_table("sklearn:wine").frame
    few = load_table("sklearn:wine", rows=10, seed=1).frame
    assert len(few) == 10
    assert len(few.merge(every.drop_duplicates())) == 10
    assert few.equals(load_table("sklearn:wine", rows=10, seed=1).frame)
    assert not few.equals(load_table("sklearn:wine", rows=10, seed=2).frame)
    with pytest.raises(InputError, match="rows=1000 asked for, but sklearn:wine has 178"):
        load_table("sklearn:wine", rows=1000)


# What cannot


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; the first line must name the columns"),
        ("\n\n# only a comment\n", "is empty"),
        ("a,b\n", "has 0 rows and 2 columns; at least 2 rows"),
        ("a,b\n1,2\n", "has 1 rows and 2 columns; at least 2 rows"),
        ("a,b,a\n1,2,3\n4,5,6\n", "names in .* must differ, but 'a' occur more than once"),
        ("a,b\n1,2\n1,2,3\n", r"not an even table with comma between cells \(.*line 3.*\)"),
        ("a,b\n1,2,3\n4,5,6\n", "not an even table"),
        ('a,b\n1,"2\n3,4\n', "not an even table"),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n4.7,3.2,setosa\n", "first line of .* looks like data"),
        ("a;b\n1,5;2,5\n2,5;3,5\n", "'a', 'b' in .* hold numbers with commas in them"),
        ("a b c\n1 2 3\n4 5 6\n", "parted by spaces"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(InputError, match=message):
        load_table(path)


def test_csv_in_another_encoding(tmp_path):
    path = write(tmp_path / "t.csv", "größe,b\n1,2\n3,4\n", "latin-1")
    with pytest.raises(InputError, match="is not UTF-8 text .* save it as UTF-8"):
        load_table(path)


def test_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path / "wine.csv", "a\n1\n2\n")
    with pytest.raises(InputError, match=r"no file .*wein.csv \(did you mean 'wine.csv'\?\); give a .csv"):
        load_table(tmp_path / "wein.csv")
    with pytest.raises(InputError, match=r"\(nor a folder .*nowhere\)"):
        load_table(tmp_path / "nowhere" / "wine.csv")
    with pytest.raises(InputError, match="did you mean 'toy:moons'"):
        load_table("moons")
    with pytest.raises(InputError, match="did you mean 'sklearn:digits'"):
        load_table("digits")


def test_a_folder_an_extension_and_an_unusable_name(tmp_path):
    write(tmp_path / "wine.csv", "a\n1\n2\n")
    with pytest.raises(InputError, match="is a folder; give one file: wine.csv"):
        load_table(tmp_path)
    with pytest.raises(InputError, match=r"extension \.xlsx; give a \.csv"):
        load_table(write(tmp_path / "t.xlsx", ""))
    with pytest.raises(InputError, match="no extension; give a .csv"):
        load_table(write(tmp_path / "t", ""))
    with pytest.raises(InputError, match="cannot be opened"):
        load_table("a" * 5000 + ".csv")
    with pytest.raises(InputError, match="no file"):
        load_table("a\0b.csv")


def test_unknown_set_names():
    with pytest.raises(InputError, match="did you mean 'moons'"):
        load_table("toy:moon")
    with pytest.raises(InputError, match=r"called 'digit' \(did you mean 'digits'\?\); there are digits, wine"):
        load_table("sklearn:digit")


@pytest.mark.parametrize("rows", [-3, 0, 1])
def test_too_few_rows(rows):
    with pytest.raises(InputError, match=f"rows must be at least 2, got {rows}"):
        load_table("toy:moons", rows=rows)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.float64(3), r"has shape \(\); expected \(N,\)"),
        (np.ones((2, 3, 4, 4)), r"shape \(2, 3, 4, 4\); expected .* Reshape it"),
        (np.ones((0, 3)), "has 0 rows"),
        (np.ones((3, 0)), "has 3 rows and 0 columns"),
        (np.array(["a", "b"]), "expected an array of numbers"),
        (np.ones(3, dtype=complex), "expected an array of numbers"),
        (np.zeros(3, dtype=[("a", "f4")]), "expected an array of numbers"),
    ],
)
def test_bad_npy(tmp_path, array, message):
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(InputError, match=message):
        load_table(tmp_path / "t.npy")


def test_npz_that_is_not_understood(tmp_path):
    x = np.ones((3, 2))
    for arrays, message in [
        ({"a": x, "b": x}, r"holds a \(3, 2\), b \(3, 2\); expected one array, or x"),
        ({"x": x, "data": x}, "expected one array"),
        ({"x": x, "y": x[:, 0], "z": x}, "expected one array"),
        ({"x": x, "y": np.ones(4)}, r"y in .* shape \(3,\), got shape \(4,\)"),
        ({"x": x, "y": x}, "one number or text a row"),
        ({}, "holds nothing"),
    ]:
        np.savez(tmp_path / "t.npz", **arrays)
        with pytest.raises(InputError, match=message):
            load_table(tmp_path / "t.npz")


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["t.npy", "t.npz"])
def test_pickles_are_not_loaded(tmp_path, name):
    array = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    save = np.save if name.endswith("npy") else np.savez
    save(tmp_path / name, array)
    with pytest.raises(InputError, match="cannot be read as"):
        load_table(tmp_path / name)
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(InputError, match="cannot be read as"):
        load_table(tmp_path / "p.npy")
    assert not (tmp_path / "exploded").exists()


def test_wrong_extension_for_the_content(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.ones((2, 2)))
    (tmp_path / "t.npy").write_bytes((tmp_path / "t.npz").read_bytes())
    with pytest.raises(InputError, match="rename it to .npz"):
        load_table(tmp_path / "t.npy")
    np.save(tmp_path / "u.npy", np.ones((2, 2)))
    (tmp_path / "u.npz").write_bytes((tmp_path / "u.npy").read_bytes())
    with pytest.raises(InputError, match="rename it to .npy"):
        load_table(tmp_path / "u.npz")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    FRAME.to_csv(folder / "t.csv", index=False)
    FRAME.to_parquet(folder / "t.parquet")
    np.save(folder / "t.npy", np.ones((4, 3)))
    np.savez(folder / "t.npz", x=np.ones((4, 3)), y=np.arange(4))
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy", ".npz"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_damaged_files_are_read_or_refused_never_worse(tmp_path_factory, originals, suffix, data):
    content = bytearray(originals[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.mktemp("damaged") / f"t{suffix}"
    path.write_bytes(bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy and pandas may warn about the damage before they fail
        try:
            table = load_table(path)
        except InputError as error:
            assert str(path) in str(error) or "column names" in str(error)  # noqa: PT017
        else:
            assert len(table.frame) >= 2


def test_the_room_is_imported_without_the_libraries_of_the_extra():
    code = "import sys, flowmatch.data; print(*{'pandas', 'sklearn', 'pyarrow', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "flowmatch\[tables\]"'):
        load_table("toy:moons")
