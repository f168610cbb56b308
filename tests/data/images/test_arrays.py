"""Arrays of images in NumPy and idx files, against the bytes that were written."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmatch.data.images import load_images
from flowmatch.data.images.idx import read_idx
from flowmatch.errors import InputError
from tests.data.images.written import first, pixels, write_idx

FASHION = Path("/usr/share/datasets/fashion-mnist")
COLOUR, GREY = pixels(4, 6, 8), pixels(4, 6, 8, channels=1)
LABELS = np.array([1, 0, 2, 1])


# NumPy


@pytest.mark.parametrize("array", [COLOUR, first(COLOUR), GREY, GREY[..., None], GREY[:, None]], ids=lambda a: a.shape)
def test_channels_may_be_first_last_or_missing(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", anything=array)
    expected = first(COLOUR if 3 in array.shape else GREY)
    for name in ("a.npy", "a.npz"):
        images = load_images(tmp_path / name)
        assert np.array_equal(images.levels().numpy(), expected)
        assert images.labels is None


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("x", "y"), ("data", "targets"), ("arr_0", "arr_1"), ("image", "label"), ("X", "Y")]
)
def test_labels_of_an_archive(tmp_path, names):
    np.savez(tmp_path / "a.npz", **{names[0]: COLOUR, names[1]: LABELS})
    images = load_images(tmp_path / "a.npz")
    assert images.labels.tolist() == LABELS.tolist()
    assert images.counts == {"0": 1, "1": 2, "2": 1}
    named = load_images(tmp_path / "a.npz", classes=["shirt", "shoe", "bag", "hat"])
    assert named.counts == {"shirt": 1, "shoe": 2, "bag": 1, "hat": 0}
    assert load_images(tmp_path / "a.npz", labels=False).labels is None


@pytest.mark.parametrize("form", ["{split}_{name}s", "{name}_{split}", "{split}_{name}"])
def test_splits_of_an_archive(tmp_path, form):
    image, label = ("x", "y") if form == "{name}_{split}" else ("image", "label")
    arrays = {}
    for split, count in (("train", 4), ("test", 3)):
        arrays[form.format(split=split, name=image)] = COLOUR[:count]
        arrays[form.format(split=split, name=label)] = LABELS[:count][:, None]  # MedMNIST has columns
    np.savez(tmp_path / "a.npz", **arrays)
    for split, count in ((None, 4), ("train", 4), ("test", 3)):
        images = load_images(tmp_path / "a.npz", split=split)
        assert np.array_equal(images.levels().numpy(), first(COLOUR[:count]))
        assert images.labels.tolist() == LABELS[:count].tolist()
    with pytest.raises(InputError, match="has the splits 'test', 'train', not 'val'"):
        load_images(tmp_path / "a.npz", split="val")


def test_text_labels_are_sorted(tmp_path):
    np.savez(tmp_path / "a.npz", x=COLOUR, y=np.array(["dog", "cat", "dog", "ant"]))
    images = load_images(tmp_path / "a.npz")
    assert images.classes == ("ant", "cat", "dog")
    assert images.labels.tolist() == [2, 1, 2, 0]


def test_names_told_by_hand(tmp_path):
    np.savez(tmp_path / "a.npz", photos=COLOUR, x=COLOUR + 1, kinds=LABELS, y=LABELS + 1)
    images = load_images(tmp_path / "a.npz", column="photos", labels="kinds")
    assert np.array_equal(images.levels().numpy(), first(COLOUR))
    assert images.labels.tolist() == LABELS.tolist()
    with pytest.raises(InputError, match="has no array 'photo'; it holds photos, x, kinds, y"):
        load_images(tmp_path / "a.npz", column="photo")


def test_grey_and_colour_arrays(tmp_path):
    np.save(tmp_path / "g.npy", GREY)
    assert np.array_equal(load_images(tmp_path / "g.npy", channels=3).levels().numpy(), np.stack([GREY] * 3, 1))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (COLOUR / 255.0, r"holds float64 .* become bytes by \(255 \* array\).round\(\).astype\(numpy.uint8\)"),
        (COLOUR.astype(np.int64), r"holds int64 .*convert them with array.astype\(numpy.uint8\)"),
        (pixels(4, 6, 8, 3)[0], r"may be one image \(H, W, C\) or 6 images"),
        (np.zeros((4, 3, 8, 3), np.uint8), "may have its channels first or last"),
        (np.zeros((4, 6, 8, 4), np.uint8), "1 or 3 channels are needed, first or last. Drop an alpha channel"),
        (np.zeros((4, 6), np.uint8), r"has shape \(4, 6\); images need \(N, H, W\)"),
        (np.zeros((0, 6, 6), np.uint8), "has 0 images; at least 2"),
        (np.zeros((1, 6, 6), np.uint8), "has 1 image; at least 2"),
        (np.zeros((4, 0, 6), np.uint8), r"has shape \(4, 0, 6\)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": COLOUR, "b": COLOUR}, "holds a, b; expected images, image, x, data, or column="),
        ({"x": COLOUR, "images": COLOUR}, "has images under x, images; choose one with column="),
        ({"x": COLOUR, "y": LABELS, "labels": LABELS}, "has labels under y, labels; choose one with labels="),
        ({"x": COLOUR, "y": LABELS[:3]}, "has 3 labels for 4 images; one each is needed"),
        ({"x": COLOUR, "y": np.eye(4)}, r"must be one an image, got shape \(4, 4\)"),
        ({"x": COLOUR, "y": LABELS / 2}, "must be whole numbers or text without gaps, got float64; labels=False"),
        ({"x": COLOUR, "y": LABELS - 1}, "must count from 0, got -1"),
        ({"x": COLOUR, "y": LABELS * 1000}, "3 different numbers up to 2000, which look like ids"),
        ({}, "holds nothing"),
    ],
)
def test_archives_that_are_not_clear(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "a.npz")


def test_names_that_do_not_fit_the_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=COLOUR, y=LABELS)
    for classes, message in [
        (["a", "b"], "label 2 of .* has no name: there are 2 classes, counted from 0"),
        (["a", "b", "a"], "class 'a' of .* occurs twice; rename one"),
        (["a", "b", "A"], "class 'A' of .* differs from 'a' in case only"),
        ("abc", "must be a list of names, got 'abc'"),
    ]:
        with pytest.raises(InputError, match=message):
            load_images(tmp_path / "a.npz", classes=classes)


# Pickles


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_not_opened(tmp_path):
    content = pickle.dumps(Bomb(tmp_path / "exploded"))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (folder / name).write_bytes(content)
    (tmp_path / "set.pkl").write_bytes(content)
    (tmp_path / "train").write_bytes(content)
    for source in (folder, folder / "data_batch_1", tmp_path / "set.pkl", tmp_path / "train"):
        with pytest.raises(
            InputError, match=r"holds Python pickles, which can run anything .* save the arrays as a .npz"
        ):
            load_images(source)
    objects = np.array([Bomb(tmp_path / "exploded")] * 2, dtype=object)
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "a.npz", x=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match="cannot be read .*(Python objects|allow_pickle)"):
            load_images(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz", "set.heic", "set"])
def test_other_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    kind = "unpack it and give the folder" if "z" in name else "; give a folder of images"
    with pytest.raises(InputError, match=kind):
        load_images(tmp_path / name)


# idx


@pytest.fixture
def mnist(tmp_path):
    for split, count in (("train", 4), ("t10k", 3)):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", GREY[:count], packed=True)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", LABELS[:count].astype(np.uint8))
    return tmp_path


def test_splits_of_idx(mnist):
    for split, count in ((None, 4), ("train", 4), ("test", 3)):
        images = load_images(mnist, split=split)
        assert np.array_equal(images.levels()[:, 0].numpy(), GREY[:count])
        assert images.labels.tolist() == LABELS[:count].tolist()
    alone = load_images(mnist / "t10k-images-idx3-ubyte.gz")
    assert torch.equal(alone.levels(), load_images(mnist, split="test").levels())
    assert alone.labels.tolist() == LABELS[:3].tolist()
    assert load_images(mnist, labels=False).labels is None
    with pytest.raises(InputError, match="has the splits 'test', 'train', not 'val'"):
        load_images(mnist, split="val")
    with pytest.raises(InputError, match="is one file, so split='test' cannot be chosen; give its folder"):
        load_images(mnist / "t10k-images-idx3-ubyte.gz", split="test")


def test_idx_of_any_dimension_packed_or_not(tmp_path):
    for array in (LABELS.astype(np.uint8), GREY, COLOUR, np.zeros((0, 3), np.uint8)):
        for packed in (False, True):
            assert np.array_equal(read_idx(write_idx(tmp_path / "a", array, packed)), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no idx file: it starts with nothing"),
        (b"\x89PNG", "is no idx file: it starts with 89 50 4e 47"),
        (struct.pack(">BBBBI", 0, 0, 0x0D, 1, 1) + bytes(4), "type 0x0d; only unsigned bytes, 0x08, are images"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 5) + bytes(4), "announces 5 values and holds 4; it is damaged"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 3) + bytes(4), "announces 3 values and holds more"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "it is damaged"),
        (struct.pack(">BBBBI", 0, 0, 8, 3, 1), "it is damaged"),
        (
            gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 10, 10) + bytes(range(200)))[:-20],
            "is damaged: .*fetch it again",
        ),
    ],
)
def test_damaged_idx(tmp_path, content, message):
    (tmp_path / "a-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "a-images-idx3-ubyte")


def test_idx_that_does_not_belong_together(mnist):
    write_idx(mnist / "train-labels-idx1-ubyte", LABELS[:2].astype(np.uint8))
    with pytest.raises(InputError, match=r"has shape \(2,\) and .* \(4, 6, 8\): not of one set"):
        load_images(mnist)
    write_idx(mnist / "x-images-idx3-ubyte", GREY[0])
    with pytest.raises(InputError, match="images need three dimensions"):
        load_images(mnist / "x-images-idx3-ubyte")


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_its_own_bytes():
    raw = np.frombuffer(gzip.decompress((FASHION / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], dtype=np.uint8)
    labels = np.frombuffer(gzip.decompress((FASHION / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], dtype=np.uint8)
    images = load_images(FASHION, split="test")
    assert np.array_equal(images.levels().numpy(), raw.reshape(10_000, 1, 28, 28))
    assert np.array_equal(images.labels.numpy(), labels)
    assert set(images.counts.values()) == {1000}
    small = load_images(FASHION, split="test", size=14, resample="box")
    mean = raw.reshape(10_000, 14, 2, 14, 2).astype(int).sum((2, 4)) / 4
    assert np.array_equal(small.levels()[:, 0].numpy(), np.floor(mean + 0.5))


# Fewer rows


@pytest.mark.parametrize("array", [COLOUR, first(COLOUR), GREY], ids=lambda a: a.shape)
@pytest.mark.parametrize("options", [{}, {"size": 3, "resample": "box"}, {"channels": 1}, {"memory": 100}], ids=str)
def test_rows_of_an_array_are_spread_over_it_whether_it_is_mapped_or_not(tmp_path, array, options):
    np.savez(tmp_path / "a.npz", images=array, labels=LABELS)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "few.npy", array[[0, 1, 2]])
    np.save(tmp_path / "two.npy", array[[0, 2]])
    for rows, name in ((3, "few"), (2, "two")):
        want = load_images(tmp_path / f"{name}.npy", **options)
        found = load_images(tmp_path / "a.npy", rows=rows, **options)
        assert found.fingerprint == want.fingerprint
        assert torch.equal(found.levels(), want.levels())
    if "memory" not in options:
        packed = load_images(tmp_path / "a.npz", rows=2, **options)
        assert torch.equal(packed.levels(), want.levels())
        assert packed.labels.tolist() == LABELS[[0, 2]].tolist()


def test_the_images_chosen_of_a_mapped_array_need_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", COLOUR)
    found = load_images(tmp_path / "a.npy", rows=2, memory=0)
    assert "in memory" not in repr(found)
    assert np.array_equal(found.levels().numpy(), first(COLOUR[[0, 2]]))


def test_rows_of_labels_that_do_not_fit_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=COLOUR, labels=LABELS[:3])
    with pytest.raises(InputError, match="has 3 labels for 4 images; one each is needed"):
        load_images(tmp_path / "a.npz", rows=2)
