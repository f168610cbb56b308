"""Folders of images: which files, which classes, in which order."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from flowmatch.data.images import load_images
from flowmatch.errors import InputError
from tests.data.images.written import first, pixels, save


def test_a_flat_folder_has_no_labels_and_is_sorted(tmp_path):
    array = pixels(4)
    for name, image in zip(["b.png", "a.PNG", "d.bmp", "c.tif"], array, strict=True):
        save(tmp_path / name, image)
    images = load_images(tmp_path)
    assert np.array_equal(images.levels().numpy(), first(array[[1, 0, 3, 2]]))
    assert (images.labels, images.classes, images.counts) == (None, (), {})
    x1, cond = images.take(torch.tensor([2]))
    assert x1.shape == (1, 3, 6, 6)
    assert cond is None


def test_classes_are_sorted_whatever_the_order_of_writing(tmp_path):
    array = pixels(6)
    places = ["zebra/1", "ant/2", "mouse/0", "ant/1", "zebra/deep/er/0", "mouse/3"]
    for place, image in zip(places, array, strict=True):
        save(tmp_path / f"{place}.png", image)
    images = load_images(tmp_path)
    assert images.classes == ("ant", "mouse", "zebra")
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.counts == {"ant": 2, "mouse": 2, "zebra": 2}
    assert np.array_equal(images.levels().numpy(), first(array[[3, 1, 2, 5, 0, 4]]))
    x1, cond = images.take(torch.tensor([4, 0]))
    assert cond.tolist() == [2, 0]
    assert cond.dtype == torch.int64
    free = load_images(tmp_path, labels=False)
    assert free.labels is None
    assert torch.equal(free.levels(), images.levels())


def test_hidden_and_foreign_files_are_not_read(tmp_path):
    for name in ("a/1.png", "b/1.png", ".hidden/1.png", "a/.2.png", "__MACOSX/a/1.png", ".c.png"):
        save(tmp_path / name, pixels(1)[0])
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "LICENSE").write_text("")
    images = load_images(tmp_path)
    assert images.counts == {"a": 1, "b": 1}
    assert images.report.ignored == ("LICENSE", "a/notes.txt")
    assert images.report.lines() == ["2 files are no images by their names: LICENSE, a/notes.txt"]


def test_links_are_followed_once(tmp_path):
    save(tmp_path / "set" / "a" / "1.png", pixels(1)[0])
    save(tmp_path / "elsewhere" / "2.png", pixels(1)[0])
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "b")
    os.symlink(tmp_path / "set", tmp_path / "set" / "a" / "loop")
    assert load_images(tmp_path / "set").counts == {"a": 1, "b": 1}


@pytest.fixture
def splits(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for label in ("x", "y"):
            for number, image in enumerate(pixels(count)):
                save(tmp_path / split / label / f"{number}.png", image)
    return tmp_path


def test_splits_of_a_folder(splits):
    assert load_images(splits).counts == {"x": 3, "y": 3}
    assert load_images(splits, split="test").counts == {"x": 2, "y": 2}
    with pytest.raises(InputError, match="has the splits 'test', 'train', not 'val'; choose one with split="):
        load_images(splits, split="val")
    with pytest.raises(InputError, match="has no splits, so split='train' cannot be chosen; leave it out"):
        load_images(splits / "train", split="train")
    (splits / "train").rename(splits / "dev")
    with pytest.raises(InputError, match="has the splits 'dev', 'test', and none is called 'train'; choose one"):
        load_images(splits)


def test_bad_folders(tmp_path):
    with pytest.raises(InputError, match=r"there are no images in .* \(.png, .*\)"):
        load_images(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"no images in .*; it holds 'a.txt'"):
        load_images(tmp_path)
    save(tmp_path / "one" / "a.png", pixels(1)[0])
    with pytest.raises(InputError, match="has 1 image; at least 2 are needed"):
        load_images(tmp_path / "one")
    with pytest.raises(InputError, match="is one image; give its folder, .*one"):
        load_images(tmp_path / "one" / "a.png")
    with pytest.raises(InputError, match=r"no file or folder .*onne \(did you mean 'one'\?\); give a folder of images"):
        load_images(tmp_path / "onne")
    with pytest.raises(InputError, match="leave column= and the name of labels out"):
        load_images(tmp_path / "one", labels="species")


def test_bad_classes(tmp_path):
    save(tmp_path / "a" / "1.png", pixels(1)[0])
    save(tmp_path / "b" / "1.png", pixels(1)[0])
    (tmp_path / "c").mkdir()
    (tmp_path / "d" / "deep").mkdir(parents=True)
    with pytest.raises(InputError, match="class folders without images: 'c', 'd'; put images into them or remove them"):
        load_images(tmp_path)
    (tmp_path / "c").rmdir()
    (tmp_path / "d" / "deep").rmdir()
    (tmp_path / "d").rmdir()
    save(tmp_path / "loose.png", pixels(1)[0])
    with pytest.raises(InputError, match="images beside its class folders: 'loose.png'; move each .*labels=False"):
        load_images(tmp_path)
    assert len(load_images(tmp_path, labels=False)) == 3
    (tmp_path / "loose.png").unlink()
    save(tmp_path / "B" / "1.png", pixels(1)[0])
    if len(list(tmp_path.iterdir())) == 3:  # not so where file names have no case
        with pytest.raises(InputError, match="class 'b' of .* differs from 'B' in case only; rename one"):
            load_images(tmp_path)
    (tmp_path / "B" / "1.png").write_bytes(b"")
    (tmp_path / "B").rename(tmp_path / "x")
    with pytest.raises(InputError, match="every image of class 'x' of .* is damaged; mend them or remove all"):
        load_images(tmp_path)


def test_mixed_sizes_need_a_size(tmp_path):
    save(tmp_path / "a.png", pixels(1, 6, 6)[0])
    save(tmp_path / "b.png", pixels(1, 5, 9)[0])
    save(tmp_path / "c.png", pixels(1, 6, 7)[0])
    with pytest.raises(
        InputError, match=r"differ in size: a.png is 6 x 6 .*, b.png is 9 x 5.* Give size=, such as size=5"
    ):
        load_images(tmp_path)
    assert load_images(tmp_path, size=5).shape == (3, 5, 5)


@pytest.mark.parametrize(("rows", "places"), [(2, [0, 2]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4])])
def test_rows_are_spread_over_the_source(tmp_path, rows, places):
    array = pixels(5)
    for number, image in enumerate(array):
        save(tmp_path / f"{number}.png", image)
    assert np.array_equal(load_images(tmp_path, rows=rows).levels().numpy(), first(array[places]))
    with pytest.raises(InputError, match="rows=9 asked for, but .* has 5; leave rows out"):
        load_images(tmp_path, rows=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, r"channels must be 1 \(grey\) or 3 \(colour\), got 4"),
        ({"rows": 1}, "rows must be at least 2, got 1"),
        ({"memory": -1}, "memory must be a number of bytes, got -1"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"classes": ["a"]}, "has no labels, so classes= has nothing to name"),
    ],
)
def test_bad_options(tmp_path, options, message):
    save(tmp_path / "a.png", pixels(1)[0])
    save(tmp_path / "b.png", pixels(1)[0])
    with pytest.raises(InputError, match=message):
        load_images(tmp_path, **options)


def test_rows_of_a_folder_that_is_sorted_by_class_are_of_all_classes(tmp_path):
    for number, image in enumerate(pixels(12)):
        save(tmp_path / ["cat", "dog", "emu"][number // 4] / f"{number:02d}.png", image)
    images = load_images(tmp_path, rows=6)
    assert images.counts == {"cat": 2, "dog": 2, "emu": 2}
    lazy = load_images(tmp_path, rows=6, memory=0)
    assert np.array_equal(lazy.levels().numpy(), images.levels().numpy())
    (tmp_path / "dog" / "04.png").write_bytes(b"")
    assert [name for name, _ in load_images(tmp_path, rows=6).damaged] == ["dog/04.png"]


def test_one_image_will_do_where_it_is_said(tmp_path):
    array = pixels(3)
    save(tmp_path / "one" / "a.png", array[0])
    assert np.array_equal(load_images(tmp_path / "one", least=1).levels().numpy(), first(array[:1]))
    with pytest.raises(InputError, match="one has 1 image; at least 2 are needed"):
        load_images(tmp_path / "one")
    for number, image in enumerate(array):
        save(tmp_path / "more" / f"{number}.png", image)
    assert len(load_images(tmp_path / "more", rows=1, least=1)) == 1
    with pytest.raises(InputError, match="more has 3 images; at least 4 are needed"):
        load_images(tmp_path / "more", least=4)
    with pytest.raises(InputError, match="rows must be at least 2, got 1"):
        load_images(tmp_path / "more", rows=1)
    with pytest.raises(InputError, match="least must be at least 1, got 0"):
        load_images(tmp_path / "more", least=0)
    for number in range(3):
        (tmp_path / "more" / f"{number}.png").write_bytes(b"")
    save(tmp_path / "more" / "0.png", array[0])
    assert len(load_images(tmp_path / "more", least=1)) == 1
    with pytest.raises(InputError, match="only 1 of 3 images of .* can be read; at least 2 are needed"):
        load_images(tmp_path / "more")
