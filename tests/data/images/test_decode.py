"""Every kind of pixel comes out as it should look, and what cannot be read has a reason."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from flowmatch.data.images import load_images
from flowmatch.data.images.decode import DamagedError, decode
from flowmatch.errors import InputError
from tests.data.images.written import pixels, save

COLOUR, GREY = pixels(1)[0], pixels(1, channels=1)[0]


def read(path, channels=3):
    return decode(path, channels, None, "lanczos")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "ppm", "webp"])
def test_lossless_formats(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", COLOUR, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read(path), COLOUR.transpose(2, 0, 1))


def test_jpeg_is_what_pillow_decodes(tmp_path):
    path = save(tmp_path / "a.jpg", COLOUR)
    assert np.array_equal(read(path), np.asarray(Image.open(path)).transpose(2, 0, 1))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(image) for image in pixels(3, channels=1)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    for name in ("a.gif", "a.tif"):
        assert np.array_equal(read(tmp_path / name, 1)[0], np.asarray(frames[0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_was_turned(tmp_path, orientation):
    # What EXIF means, by its definition: row 0 and column 0 of what is stored lie at these sides of the scene.
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    assert np.array_equal(read(path, 1)[0], upright)


def test_palettes(tmp_path):
    image = Image.fromarray(COLOUR).quantize(64)  # of 36 colours
    image.save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    assert np.array_equal(read(tmp_path / "a.png"), COLOUR.transpose(2, 0, 1))


def test_transparent_is_white(tmp_path):
    alpha = np.array([[0, 255, 128]], dtype=np.uint8)
    dark = np.full((1, 3, 3), 20, dtype=np.uint8)
    save(tmp_path / "a.png", np.concatenate([dark, alpha[..., None]], -1))
    half = round((20 * 128 + 255 * 127) / 255)
    assert read(tmp_path / "a.png")[0].tolist() == [[255, 20, half]]
    Image.merge("LA", [Image.fromarray(dark[..., 0]), Image.fromarray(alpha)]).save(tmp_path / "b.png")
    assert read(tmp_path / "b.png", 1).tolist() == [[[255, 20, half]]]
    keyed = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    keyed.putpalette([9, 9, 9, 50, 60, 70])
    keyed.save(tmp_path / "c.png", transparency=0)
    assert read(tmp_path / "c.png")[:, 0].T.tolist() == [[255, 255, 255], [50, 60, 70]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_range(tmp_path, suffix):
    wide = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    path = save(tmp_path / f"a.{suffix}", wide)
    assert read(path, 1)[0].tolist() == [[round(n / 257) for n in wide[0].tolist()]]
    assert read(path, 3)[2].tolist() == read(path, 1)[0].tolist()


def test_bilevel_and_cmyk(tmp_path):
    Image.fromarray(GREY).convert("1").save(tmp_path / "a.png")
    assert set(np.unique(read(tmp_path / "a.png", 1))) == {0, 255}
    cmyk = np.zeros((1, 3, 4), dtype=np.uint8)
    cmyk[0, 1, 0], cmyk[0, 2, 3] = 255, 255  # white, cyan, black
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif")[:, 0].T.tolist() == [[255, 255, 255], [0, 255, 255], [0, 0, 0]]


def test_grey_and_colour_become_each_other(tmp_path):
    save(tmp_path / "g.png", GREY)
    save(tmp_path / "c.png", COLOUR)
    assert np.array_equal(read(tmp_path / "g.png", 3), np.stack([GREY] * 3))
    assert np.array_equal(read(tmp_path / "c.png", 1)[0], np.asarray(Image.fromarray(COLOUR).convert("L")))
    assert load_images(tmp_path).shape == (3, 6, 6)  # one is in colour
    assert load_images(tmp_path, channels=1).shape == (1, 6, 6)
    (tmp_path / "c.png").unlink()
    save(tmp_path / "h.png", GREY)
    assert load_images(tmp_path).shape == (1, 6, 6)


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes that announces many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def damaged(tmp_path):
    """A folder of six good images and five bad ones, and what is said of these."""
    for number, image in enumerate(pixels(6, 64, 64)):
        save(tmp_path / "set" / f"good{number}.jpg", image)
    folder = tmp_path / "set"
    (folder / "empty.png").write_bytes(b"")
    (folder / "letter.png").write_text("dear reader, this is no image")
    whole = (folder / "good0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.png").write_bytes(_bomb(40_000, 40_000))
    (folder / "large.png").write_bytes(_bomb(10_000, 10_000))
    unknown = "no image that Pillow knows"
    return folder, {
        "bomb.png": "decompression bomb",
        "cut.jpg": "truncated",
        "empty.png": unknown,
        "large.png": "10000 x 10000 pixels are more than PIL.Image.MAX_IMAGE_PIXELS",
        "letter.png": unknown,
    }


@pytest.mark.parametrize("options", [{}, {"channels": 3}, {"size": 16}, {"memory": 0}, {"workers": 3}])
def test_damaged_images_are_named_skipped_and_counted(damaged, options):
    folder, reasons = damaged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = load_images(folder, **options)
    assert len(images) == 6
    assert [name for name, _ in images.damaged] == sorted(reasons)
    for name, reason in images.damaged:
        assert reasons[name] in reason
    assert images.report.read == 6
    lines = images.report.lines(most=2)
    assert lines[0] == f"5 of 11 images of {folder} are damaged and skipped"
    assert lines[1].startswith("  bomb.png: ")
    assert lines[3:] == ["  and 3 more"]
    # The rows that are left are those of the good files, in order.
    for row in range(6):
        good = decode(folder / f"good{row}.jpg", 3, images.shape[1:], "lanczos")
        assert np.array_equal(images.levels(torch.tensor([row]))[0].numpy(), good)


@pytest.mark.parametrize("options", [{}, {"size": 16, "channels": 3}, {"workers": 1}, {"memory": 0}])
def test_strict_stops_at_the_first(damaged, options):
    folder, _ = damaged
    with pytest.raises(InputError, match=r"bomb.png in .*set is damaged: .* Mend or remove it, or read without strict"):
        load_images(folder, strict=True, **options)


def test_a_limit_that_the_user_raised(damaged, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DamagedError, match="truncated|broken|incomplete|not processed"):
        read(damaged[0] / "large.png")


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 2 images of .* can be read; the first is a.png: the content"):
        load_images(tmp_path)
    save(tmp_path / "c.png", GREY)
    with pytest.raises(InputError, match="only 1 of 3 images of .* can be read; at least 2 are needed"):
        load_images(tmp_path)


def test_numbers_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DamagedError, match="floating-point pixels have no fixed range; store them with 8 or 16 bits"):
        read(tmp_path / "f.tif")
    Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DamagedError, match="whole numbers from 70000 to 70000 are no pixels of 16 bits"):
        read(tmp_path / "i.tif")


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    save(tmp_path / "a.png", GREY)
    save(tmp_path / "b.png", GREY)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "flowmatch\[images\]"'):
        load_images(tmp_path)
