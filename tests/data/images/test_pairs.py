"""Images with a part of themselves as the condition."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from torch.nn import functional

import flowmatch as fm
from flowmatch.data.images import Downsampled, Images, Masked, box_holes, pixel_holes, scaled, to_uint8
from flowmatch.errors import InputError
from flowmatch.tensors import take
from tests.data.images.written import first, pixels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(n=12, channels=3, labels=True, **options):
    levels = torch.from_numpy(first(pixels(n, 8, 12, channels)).copy())
    return Images(levels, torch.arange(n) % 3 if labels else None, **options)


INDEX = torch.tensor([4, 0, 4, 11])


@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_the_condition_is_the_small_image(upsample, factor, flip):
    images = make(flip=flip)
    x1, cond = Downsampled(images, factor, upsample).take(INDEX, generator(1))
    assert torch.equal(x1, images.take(INDEX, generator(1))[0])  # the same flips: the pair is turned as one
    mean = functional.avg_pool2d(to_uint8(x1).double(), factor)
    small = scaled((mean + 0.5).floor().to(torch.uint8))
    how = {} if upsample == "nearest" else {"align_corners": False}
    expected = functional.interpolate(small, size=(8, 12), mode=upsample, **how)
    torch.testing.assert_close(cond["image"], expected)
    assert set(cond) == {"image", "label"}
    assert cond["label"].tolist() == [4 % 3, 0, 4 % 3, 11 % 3]


def test_nearest_is_the_small_image_itself():
    x1, cond = Downsampled(make(labels=False), 4, "nearest").take(INDEX)
    assert set(cond) == {"image"}
    assert torch.equal(cond["image"][:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), cond["image"])


def test_noise_on_the_condition_has_the_strength_that_is_told():
    images = Images(torch.full((3000, 1, 4, 4), 100, dtype=torch.uint8))
    data, plain = Downsampled(images, 2, noise=0.5), Downsampled(images, 2)
    index = torch.arange(3000)
    x1, cond = data.take(index, generator(2))
    assert torch.equal(x1, plain.take(index, generator(2))[0])
    assert scipy.stats.kstest(cond["noise"].numpy() / 0.5, "uniform").pvalue > 1e-3
    standard = (cond["image"] - plain.take(index)[1]["image"]) / cond["noise"][:, None, None, None]
    assert scipy.stats.kstest(standard.flatten().numpy(), "norm").pvalue > 1e-3
    again = data.take(index, generator(2))[1]
    assert torch.equal(again["image"], cond["image"])


def test_a_small_image_gives_the_condition_it_would_have_in_training():
    images = make(labels=False)
    data = Downsampled(images, 2)
    small = (functional.avg_pool2d(images.levels(INDEX).double(), 2) + 0.5).floor().to(torch.uint8)
    assert torch.equal(data.given(small)["image"], data.take(INDEX)[1]["image"])
    assert Downsampled(images, 2, noise=0.1).given(small)["noise"].tolist() == [0.0] * 4
    with pytest.raises(ValueError, match=r"small must have shape \(B, 3, 4, 6\), got \(4, 3, 8, 12\)"):
        data.given(images.levels(INDEX))
    with pytest.raises(TypeError, match="small must be a torch.uint8 tensor"):
        data.given(small.float())


@pytest.mark.parametrize("factor", [1, 3, 8, 2.0, -2])
def test_bad_factors(factor):
    with pytest.raises(InputError, match="factor must be a whole number from 2 that divides height 8 and width 12"):
        Downsampled(make(), factor)


def test_bad_options():
    with pytest.raises(InputError, match="upsample must be 'nearest', 'bilinear' or 'bicubic', got 'area'"):
        Downsampled(make(), 2, "area")
    for noise in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="noise must be a standard deviation, 0 or more"):
            Downsampled(make(), 2, noise=noise)


# Inpainting


@pytest.mark.parametrize("holes", [None, pixel_holes])
@pytest.mark.parametrize("dequantize", [False, True])
def test_what_is_known_is_the_image_and_the_rest_is_nothing(holes, dequantize):
    x1, cond = Masked(make(dequantize=dequantize), holes).take(INDEX, generator(5))
    known = cond["mask"].expand_as(x1)
    assert cond["mask"].shape == (4, 1, 8, 12)
    assert torch.equal(cond["image"][known], x1[known])
    assert (cond["image"][~known] == 0).all()
    again = Masked(make(dequantize=dequantize), holes).take(INDEX, generator(5))
    assert torch.equal(again[1]["mask"], cond["mask"])
    assert not torch.equal(cond["mask"][0], cond["mask"][2])  # a mask for each row, not for each image
    assert cond["label"].tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize(("height", "width"), [(8, 12), (1, 1), (2, 3), (28, 28)])
def test_a_box_is_one_rectangle_inside_the_image(height, width):
    known = box_holes(400, height, width, generator())
    assert known.shape == (400, 1, height, width)
    assert known.dtype == torch.bool
    rows, columns = (~known[:, 0]).any(2), (~known[:, 0]).any(1)
    assert torch.equal(~known[:, 0], rows[:, :, None] & columns[:, None, :])  # a product of two sides
    for side, length in ((rows, height), (columns, width)):
        assert ((side[:, 1:] != side[:, :-1]).sum(1) <= 2).all()  # without gaps
        lengths = side.sum(1)
        assert lengths.min() == max(1, length // 4)
        assert lengths.max() == max(1, 3 * length // 4)


def test_a_box_lies_anywhere_with_one_probability():
    sides = (~box_holes(20_000, 1, 8, generator()))[:, 0, 0]
    two = sides[sides.sum(1) == 2]
    starts = torch.bincount(two.int().argmax(1), minlength=7)
    assert scipy.stats.chisquare(starts.numpy()).pvalue > 1e-3


def test_pixels_are_unknown_with_every_share():
    shares = (~pixel_holes(2000, 28, 28, generator())).float().mean((1, 2, 3))
    assert scipy.stats.kstest(shares.numpy(), "uniform").pvalue > 1e-3


def test_masks_of_ones_own():
    def left(n, height, width, generator):
        return (torch.arange(width) < width // 2).expand(n, 1, height, width)

    x1, cond = Masked(make(), left).take(INDEX)
    assert torch.equal(cond["image"][..., :6], x1[..., :6])
    assert (cond["image"][..., 6:] == 0).all()
    with pytest.raises(TypeError, match="the mask must be boolean, true where the image is known, got torch.float32"):
        Masked(make(), lambda *a: left(*a).float()).take(INDEX)
    with pytest.raises(ValueError, match=r"must have shape \(B, 1, H, W\) = \(4, 1, 8, 12\), got shape \(4, 8, 12\)"):
        Masked(make(), lambda *a: left(*a)[:, 0]).take(INDEX)


@pytest.mark.parametrize("wrap", [lambda images: Downsampled(images, 2, noise=0.2), Masked])
def test_conditions_follow_the_image_through_a_coupling(wrap):
    data = wrap(make(dequantize=True))
    assert len(data) == 12
    assert data.shape == (3, 8, 12)
    assert data.fingerprint == make().fingerprint
    x1, cond = data.take(torch.arange(12), generator())
    order = torch.randperm(12)
    assert set(take(cond, order)) == set(cond)
    seen = {}

    def field(t, x, cond):
        seen.update(cond)
        return x

    objective = fm.FlowMatching(fm.AffinePath(), coupling=fm.ExactOT())
    draw = objective.draw(x1, cond=cond, generator=generator())
    objective.loss(field, draw)
    assert {name: len(leaf) for name, leaf in seen.items()} == dict.fromkeys(cond, 12)
    place = (draw.sample.x1[:, None] == x1[None]).flatten(2).all(2).nonzero()[:, 1]
    for name, leaf in cond.items():
        assert torch.equal(seen[name], leaf[place])
    empty = data.take(torch.tensor([], dtype=torch.long), generator())
    assert empty[0].shape == (0, 3, 8, 12)
    assert all(len(leaf) == 0 for leaf in empty[1].values())
