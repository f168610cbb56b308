"""What is written is read back: sheets, arrays, folders."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from flowmatch.data.images import load_images, sheet, write_images
from flowmatch.data.images.write import check_image_target, png
from flowmatch.errors import InputError
from tests.data.images.written import pixels, save
from tests.problems import seeded


def _images(n: int, channels: int = 1, height: int = 5, width: int = 7) -> torch.Tensor:
    return torch.randint(256, (n, channels, height, width), generator=seeded(n), dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 3, 5])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_every_image_lies_on_the_sheet_enlarged_and_apart(channels, scale, count):
    levels = _images(count, channels)
    laid = sheet(levels, columns=3, scale=scale)
    margin = 2 if scale < 4 else 4
    seen = torch.zeros(laid.shape[1:], dtype=torch.bool)
    for k in range(count):
        top, left = margin + k // 3 * (5 * scale + margin), margin + k % 3 * (7 * scale + margin)
        place = (slice(top, top + 5 * scale), slice(left, left + 7 * scale))
        part = laid[:, place[0], place[1]]
        assert torch.equal(part[:, ::scale, ::scale], levels[k])
        assert torch.equal(part, levels[k].repeat_interleave(scale, 1).repeat_interleave(scale, 2))
        seen[place] = True
    assert (laid[:, ~seen] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_very_bytes(channels):
    image = _images(1, channels)[0]
    read = np.asarray(Image.open(io.BytesIO(png(image))))
    assert np.array_equal(read if channels == 1 else read.transpose(2, 0, 1), image[0] if channels == 1 else image)


@pytest.mark.parametrize("form", ["new.npz", "folder"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read_back_with_its_classes(tmp_path, form, channels):
    levels, labels = _images(6, channels), torch.tensor([0, 1, 2, 2, 1, 0])
    target = tmp_path / form
    write_images(levels, target, labels, ("cat", "dog", "emu"))
    found = load_images(target)
    assert found.classes == ("cat", "dog", "emu")
    assert sorted(zip(found.labels.tolist(), map(bytes, found.levels().numpy()), strict=True)) == sorted(
        zip(labels.tolist(), map(bytes, levels.numpy()), strict=True)
    )


def test_a_folder_of_images_is_replaced_and_another_one_is_not(tmp_path):
    target = tmp_path / "new"
    write_images(_images(3), target)
    check_image_target(target, overwrite=True)
    write_images(_images(2), target)
    assert len(list(target.glob("*.png"))) == 2
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        check_image_target(target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
def test_a_folder_of_images_that_is_someone_elses_is_never_replaced(tmp_path, classes):
    mine = tmp_path / "mine"
    kept = save(mine / "cat" / "1.png" if classes else mine / "1.png", pixels(1)[0])
    with pytest.raises(InputError, match=r"was not written by flowmatch \(it has no \.flowmatch-images\)"):
        check_image_target(mine, overwrite=True, classes=classes)
    with pytest.raises(InputError, match="was not written by flowmatch"):
        write_images(_images(2), mine)
    assert kept.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "new").mkdir()
    check_image_target(tmp_path / "new", overwrite=True)
    write_images(_images(2), tmp_path / "new")
    assert len(load_images(tmp_path / "new")) == 2


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 0])])
def test_readers_pass_over_the_marker(tmp_path, labels):
    write_images(_images(3), tmp_path / "new", labels, ("cat", "dog"))
    assert (tmp_path / "new" / ".flowmatch-images").is_file()
    found = load_images(tmp_path / "new")
    assert len(found) == 3
    assert found.report.ignored == ()
    assert found.damaged == ()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_refused_before_the_work(tmp_path, there):
    write_images(_images(2), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / ("real" if there else "lost"))
    with pytest.raises(InputError, match="is a link, which will not be replaced"):
        check_image_target(tmp_path / "link", overwrite=True)
    with pytest.raises(InputError, match="is a link"):
        write_images(_images(2), tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "new").write_text("mine")
    with pytest.raises(InputError, match="is a file, so it will not be replaced by a folder"):
        check_image_target(tmp_path / "new", overwrite=True)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("a/b", "c", "a_b"), "classes 'a/b' and 'a_b' would share the folder 'a_b'"),
        (("Cat", "cat"), "classes 'Cat' and 'cat' would share the folder 'cat'"),
        (("cat.", "cat"), "would share the folder 'cat'"),
        (("cat", "Train"), "class 'Train' would be read as a split of a data set"),
        (("test",), "class 'test' would be read as a split"),
        (("val ", "cat"), "class 'val ' would be read as a split"),
        (("cat", "__MACOSX"), "class '__MACOSX' would be passed over as a hidden folder"),
        ((".cat", "dog"), "class '.cat' would be passed over"),
    ],
)
def test_classes_that_would_not_be_read_back_from_folders_are_refused_before_the_work(tmp_path, classes, said):
    with pytest.raises(InputError, match=f"{said}.*write a file in .npz instead"):
        check_image_target(tmp_path / "new", overwrite=False, classes=classes)
    labels = torch.arange(4) % len(classes)
    with pytest.raises(InputError, match=said):
        write_images(_images(4), tmp_path / "new", labels, classes)
    assert not list(tmp_path.iterdir())
    for name in ("new.npz", "new.png"):
        check_image_target(tmp_path / name, overwrite=False, classes=classes)


def test_classes_that_differ_are_not_refused(tmp_path):
    check_image_target(tmp_path / "new", overwrite=False, classes=("a/c", "a_b", "trains", "0", "1"))


def test_files_are_named_as_asked_and_apart(tmp_path):
    names = ["b", "a", "B", "b", "b-2", "x/y", ".hidden"]
    levels = _images(7)
    write_images(levels, tmp_path / "new", names=names)
    expected = ["b", "a", "B-2", "b-3", "b-2-2", "x_y", "hidden"]
    for name, image in zip(expected, levels, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / f"{name}.png")), image[0])
    assert len(load_images(tmp_path / "new")) == 7
    write_images(levels[:3], tmp_path / "apart", torch.tensor([0, 1, 1]), ("cat", "dog"), names=["a", "a", "a"])
    files = sorted(path.relative_to(tmp_path / "apart").as_posix() for path in (tmp_path / "apart").glob("*/*"))
    assert files == ["cat/a.png", "dog/a-2.png", "dog/a.png"]
    with pytest.raises(ValueError, match="names must be one an image, got 1 for 7 images"):
        write_images(levels, tmp_path / "other", names=["a"])


def test_bad_targets_are_refused_before_the_work(tmp_path):
    for name, word in (("x.jpg", ".png"), ("no/x.png", "no folder")):
        with pytest.raises(InputError, match=word):
            check_image_target(tmp_path / name, overwrite=False)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match="--overwrite"):
        check_image_target(tmp_path / "x.png", overwrite=False)


def test_bad_sheets_are_refused():
    with pytest.raises(ValueError, match="no images"):
        sheet(_images(0))
    with pytest.raises(ValueError, match="columns and scale"):
        sheet(_images(2), columns=1, scale=0)
    with pytest.raises(TypeError, match="uint8"):
        sheet(torch.zeros(1, 1, 2, 2))
