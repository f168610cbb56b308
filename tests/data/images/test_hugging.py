"""Image sets of Hugging Face: the files that ``datasets`` writes, and rows in Python.

The files are written here by pyarrow, in the layout of ``save_to_disk`` and ``to_parquet``.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from flowmatch.data.images import load_images
from flowmatch.errors import InputError
from tests.data.images.written import first, pixels

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ARRAY, LABELS = pixels(6, 5, 7), [0, 1, 1, 0, 1, 1]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def table(array=ARRAY, labels=LABELS, features=FEATURES):
    cells = pa.array(
        [{"bytes": png(image), "path": None} for image in array], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    made = pa.table({"image": cells, "label": pa.array(labels, pa.int64()), "note": ["x"] * len(labels)})
    info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if features else None
    return made.replace_schema_metadata(info)


def save_to_disk(folder, shards, features=FEATURES):
    folder.mkdir(parents=True)
    files = []
    for number, shard in enumerate(shards):
        name = f"data-{number:05d}-of-{len(shards):05d}.arrow"
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, shard.schema) as writer:
            writer.write_table(shard, max_chunksize=2)
        files.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def check(images, array=ARRAY, labels=LABELS):
    assert np.array_equal(images.levels().numpy(), first(array))
    assert images.labels.tolist() == list(labels)
    assert images.classes == ("cat", "dog")


@pytest.mark.parametrize("memory", [0, 2**31])
def test_saved_to_disk_in_shards(tmp_path, memory):
    save_to_disk(tmp_path / "set", [table(ARRAY[:4], LABELS[:4]), table(ARRAY[4:], LABELS[4:])])
    check(load_images(tmp_path / "set", memory=memory))
    with pytest.raises(InputError, match="is one split, so split='test' cannot be chosen"):
        load_images(tmp_path / "set", split="test")


def test_a_saved_dict_of_splits(tmp_path):
    save_to_disk(tmp_path / "set" / "train", [table()])
    save_to_disk(tmp_path / "set" / "test", [table(ARRAY[:3], LABELS[:3])])
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    check(load_images(tmp_path / "set"))
    check(load_images(tmp_path / "set", split="test"), ARRAY[:3], LABELS[:3])
    with pytest.raises(InputError, match="has the splits 'test', 'train', not 'val'"):
        load_images(tmp_path / "set", split="val")


@pytest.mark.parametrize("memory", [0, 2**31])
def test_parquet(tmp_path, memory):
    pq.write_table(table(), tmp_path / "set.parquet", row_group_size=2)
    check(load_images(tmp_path / "set.parquet", memory=memory))
    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    pq.write_table(table(ARRAY[:4], LABELS[:4]), data / "train-00000-of-00002.parquet")
    pq.write_table(table(ARRAY[4:], LABELS[4:]), data / "train-00001-of-00002-abc123.parquet")
    pq.write_table(table(ARRAY[:2], LABELS[:2]), data / "test-00000-of-00001.parquet")
    check(load_images(tmp_path / "hub", memory=memory))
    check(load_images(tmp_path / "hub", split="test"), ARRAY[:2], LABELS[:2])


def test_a_table_that_tells_no_features(tmp_path):
    plain = table(features=None)
    pq.write_table(plain.set_column(0, "picture", pa.array([png(image) for image in ARRAY])), tmp_path / "a.parquet")
    images = load_images(tmp_path / "a.parquet", classes=["cat", "dog"])
    check(images)
    both = plain.append_column("second", plain.column("image"))
    pq.write_table(both, tmp_path / "b.parquet")
    with pytest.raises(InputError, match="has images in 'image', 'second'; choose one with column="):
        load_images(tmp_path / "b.parquet")
    check(load_images(tmp_path / "b.parquet", column="second", labels="label", classes=["cat", "dog"]))
    with pytest.raises(InputError, match="has no column 'kind'; it has 'image', 'label'"):
        load_images(tmp_path / "b.parquet", column="image", labels="kind")
    pq.write_table(plain.select(["label", "note"]), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="has no column of images among 'label', 'note'"):
        load_images(tmp_path / "c.parquet")


def test_labels_that_a_test_split_does_not_tell(tmp_path):
    pq.write_table(table(labels=[-1] * 6), tmp_path / "a.parquet")
    assert load_images(tmp_path / "a.parquet").labels is None
    features = {**FEATURES, "note": {"names": ["x"], "_type": "ClassLabel"}}
    pq.write_table(table(features=features), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="has labels in 'label', 'note'; choose one with labels="):
        load_images(tmp_path / "b.parquet")
    check(load_images(tmp_path / "b.parquet", labels="label"))


def test_damaged_rows_are_named(tmp_path):
    made = table()
    cells = made.column("image").to_pylist()
    cells[1]["bytes"] = b""
    cells[3] = {"bytes": None, "path": "lost.png"}
    made = made.set_column(0, "image", pa.array(cells, made.schema.field("image").type))
    pq.write_table(made.replace_schema_metadata(table().schema.metadata), tmp_path / "a.parquet")
    images = load_images(tmp_path / "a.parquet")
    check(images, ARRAY[[0, 2, 4, 5]], [0, 1, 1, 1])
    assert [name for name, _ in images.damaged] == ["row 1", "row 3"]
    assert "no file 'lost.png'" in images.damaged[1].reason
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="cannot be read .* damaged or of another kind"):
        load_images(tmp_path / "b.parquet")


class ClassLabel:
    names = ("cat", "dog")


class Stream:
    """Rows without a length, as a streaming set gives them."""

    features = {"label": ClassLabel()}

    def __init__(self, make, endless=True):
        self.make, self.endless, self.given = make, endless, 0

    def __iter__(self):
        number = 0
        while self.endless or number < len(ARRAY):
            self.given += 1
            yield {"picture": self.make(ARRAY[number % 6]), "label": LABELS[number % 6]}
            number += 1


MAKERS = {
    "open": Image.fromarray,
    "encoded": lambda image: {"bytes": png(image), "path": None},
    "bytes": png,
    "array": lambda image: image,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_stream_is_taken_as_far_as_asked(kind):
    stream = Stream(MAKERS[kind])
    check(load_images(stream, rows=4), ARRAY[:4], LABELS[:4])
    assert stream.given == 4
    assert load_images(stream, rows=9, size=4).shape == (3, 4, 4)
    with pytest.raises(InputError, match="Stream does not say how many rows it has; give rows="):
        load_images(stream)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("form", [list, tuple])
def test_rows_of_known_number_are_spread(form, kind):
    rows = form({"picture": MAKERS[kind](image), "label": label} for image, label in zip(ARRAY, LABELS, strict=True))
    found = load_images(rows, rows=3)
    assert np.array_equal(found.levels().numpy(), first(ARRAY[[0, 2, 4]]))
    assert found.labels.tolist() == [LABELS[place] for place in (0, 2, 4)]
    with pytest.raises(InputError, match=f"rows=9 asked for, but {form.__name__} has 6"):
        load_images(rows, rows=9)


def test_a_set_is_asked_for_its_rows_and_damage_is_told_by_their_numbers():
    class Set(list):
        features = Stream.features

        def select(self, places):
            return Set(self[place] for place in places)

    rows = Set({"picture": png(image), "label": label} for image, label in zip(ARRAY, LABELS, strict=True))
    rows[4]["picture"] = b"x"
    found = load_images(rows, rows=3)
    assert found.classes == ("cat", "dog")
    assert [name for name, _ in found.damaged] == ["row 4"]


def test_streams_that_end_fail_or_are_no_images():
    with pytest.raises(InputError, match="rows=9 asked for, but Stream has 6"):
        load_images(Stream(png, endless=False), rows=9)
    images = load_images(Stream(lambda image: png(image) if image[0, 0, 0] != ARRAY[2, 0, 0, 0] else b"x"), rows=6)
    check(images, ARRAY[[0, 1, 3, 4, 5]], [0, 1, 0, 1, 1])
    assert images.damaged[0].name == "row 2"
    with pytest.raises(InputError, match="more than memory=200 bytes; give fewer rows="):
        load_images(Stream(Image.fromarray), rows=4, memory=200)
    with pytest.raises(InputError, match=r"row 0 of Stream cannot be read \(ZeroDivisionError.*decode=False"):
        load_images(Stream(lambda _: 1 / 0), rows=4)
    with pytest.raises(InputError, match="no column of images among 'picture', 'label'; choose one with column="):
        load_images(Stream(str), rows=4)
    with pytest.raises(InputError, match="rows of list must be dicts of columns, got int"):
        load_images([1, 2, 3])
    with pytest.raises(InputError, match=r"several sets, train, test; give one of them, such as source\['train'\]"):
        load_images({"train": [], "test": []})
    with pytest.raises(InputError, match="a int is no source of images"):
        load_images(3)
    with pytest.raises(InputError, match="split='test' chooses within a source on disc"):
        load_images(Stream(png), rows=4, split="test")


def test_the_package_itself(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [Image.fromarray(image) for image in ARRAY], "label": LABELS}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "set")
    made.to_parquet(tmp_path / "set.parquet")
    for source in (made, tmp_path / "set", tmp_path / "set.parquet"):
        check(load_images(source))
    check(load_images(made.to_iterable_dataset(), rows=4), ARRAY[:4], LABELS[:4])
