"""Cropping and resizing, against exact means and against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from flowmatch.data.images import load_images
from flowmatch.data.images.resize import check_size, cropped, fit, gray, pool
from flowmatch.errors import InputError
from tests.data.images.written import first, pixels, save


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_pool_is_the_mean_rounded_once(height, width, high, wide, seed):
    levels = torch.from_numpy(first(pixels(2, height * high, width * wide, 3, seed)))
    mean = functional.avg_pool2d(levels.double() * high * wide, (high, wide)).round() / (high * wide)  # exact sums
    assert torch.equal(pool(levels, (height, width)), (mean + 0.5 + 1e-9).floor().to(torch.uint8))


def test_a_half_is_rounded_upwards_and_only_once():
    # Rounded after the rows and again after the columns, as Pillow does, this would be 1.
    assert pool(torch.tensor([[[[0, 1], [0, 0]]]], dtype=torch.uint8), (1, 1)).item() == 0
    assert pool(torch.tensor([[[[0, 1], [0, 1]]]], dtype=torch.uint8), (1, 1)).item() == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_of_whole_pixels_is_average_pooling_for_files_and_arrays(tmp_path, channels):
    array = pixels(5, 28, 28, channels)
    for number, image in enumerate(array):
        save(tmp_path / "files" / f"{number}.png", image)
    np.save(tmp_path / "images.npy", array)
    expected = (functional.avg_pool2d(torch.from_numpy(first(array)).double(), 2) + 0.5).floor().to(torch.uint8)
    for source in ("files", "images.npy"):
        images = load_images(tmp_path / source, size=14, resample="box")
        assert images.shape == (channels, 14, 14)
        assert torch.equal(images.levels(), expected)


@pytest.mark.parametrize("resample", ["lanczos", "bicubic", "box"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(5, 5), (4, 7), (30, 30)])
def test_files_arrays_and_pillow_agree(tmp_path, resample, channels, size):
    array = pixels(3, 13, 20, channels)
    for number, image in enumerate(array):
        save(tmp_path / "files" / f"{number}.png", image)
    np.save(tmp_path / "images.npy", array)
    top, left, height, width = cropped((13, 20), size)
    filters = {"lanczos": Image.LANCZOS, "bicubic": Image.BICUBIC, "box": Image.BOX}
    expected = [
        np.asarray(
            Image.fromarray(image[top : top + height, left : left + width]).resize(size[::-1], filters[resample])
        )
        for image in array
    ]
    for source in ("files", "images.npy"):
        images = load_images(tmp_path / source, size=size, resample=resample)
        assert np.array_equal(images.levels().numpy(), first(np.stack(expected)))


def test_shrinking_does_not_alias():
    # Stripes of one pixel vanish; picking every fourth pixel would leave black or white.
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    for resample in ("lanczos", "bicubic", "box"):
        small = fit(Image.fromarray(stripes), (16, 16), resample).astype(int)[:, 2:-2, 2:-2]
        assert abs(small - 127.5).max() <= 2, resample


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_the_crop_is_central_inside_and_as_large_as_it_can_be(old, new):
    top, left, height, width = cropped(old, new)
    assert top >= 0
    assert left >= 0
    assert top + height <= old[0]
    assert left + width <= old[1]
    assert abs(old[0] - height - 2 * top) <= 1
    assert abs(old[1] - width - 2 * left) <= 1
    assert height == old[0] or width == old[1]
    # The shape of the new one, up to half a pixel.
    scale = min(old[0] / new[0], old[1] / new[1])
    assert abs(height - new[0] * scale) <= 1
    assert abs(width - new[1] * scale) <= 1


def test_grey_is_pillows():
    array = pixels(4)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in array])
    assert np.array_equal(gray(torch.from_numpy(first(array))).numpy(), expected[:, None])


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path, orientation):
    y, x = np.mgrid[:801, :1002] / 50
    image = np.stack([127 + 100 * np.sin(x + k) * np.cos(y) for k in range(3)], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "b.jpg"):
        save(tmp_path / name, image, quality=95, exif=exif)
    found = load_images(tmp_path, size=32).levels()[0].int().numpy()
    whole = Image.open(tmp_path / "a.jpg").crop((100, 0, 901, 801)).resize((32, 32), Image.LANCZOS)
    expected = np.asarray(whole if orientation == 1 else whole.rotate(-90)).transpose(2, 0, 1)
    inside = (slice(None), slice(1, -1), slice(1, -1))  # at the edge the small one sees beyond the crop
    assert abs(found - expected)[inside].max() <= (2 if orientation == 1 else 1)
    assert abs(found - expected).max() <= (10 if orientation == 1 else 1)


def test_bad_sizes():
    for size in (0, -3, 2.5, True, (3,), (3, 4, 5), (3, 0), "14"):
        with pytest.raises(InputError, match="size must be a positive whole number or .height, width., got"):
            check_size(size, "box")
    with pytest.raises(InputError, match="resample must be 'lanczos', 'bicubic' or 'box', got 'nearest'"):
        check_size(3, "nearest")
