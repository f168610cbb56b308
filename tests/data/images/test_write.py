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
    assert len(list(target.iterdir())) == 2
    (target / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        check_image_target(target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


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
