"""Images as training takes them: bytes until then, and random by the generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from flowmatch.data.images import Images, load_images, scaled, to_uint8
from flowmatch.data.images.split import split_rows
from flowmatch.errors import InputError
from tests.data.images.written import first, pixels, save


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(n=20, labels=True, **options):
    levels = torch.from_numpy(first(pixels(n, 4, 5)).copy())
    return Images(levels, torch.arange(n) % 3 if labels else None, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for number, image in enumerate(pixels(30, 9, 12)):
        save(path / "abc"[number % 3] / f"{number:02d}.png", image)
    np.save(path.parent / "whole.npy", pixels(30, 9, 12))
    return path


# Taking


@pytest.mark.parametrize("rows", [[], [3], [4, 0, 4, 19]])
def test_rows_come_as_asked(rows):
    images = make()
    index = torch.tensor(rows, dtype=torch.long)
    x1, cond = images.take(index, generator())
    assert x1.dtype == torch.float32
    assert torch.equal(x1, scaled(images.levels(index)))
    assert torch.equal(x1, scaled(images.levels()[index]))
    assert cond.tolist() == [row % 3 for row in rows]
    assert make(labels=False).take(index)[1] is None


def test_memory_stays_bytes():
    images = make()
    held = images._store.levels
    before = held.clone()
    for view in (images, *images.split(0.2), make(flip=True).subset(torch.arange(3))):
        view.take(torch.arange(len(view)), generator())
        assert view._store.levels.dtype == torch.uint8
        assert view.levels().dtype == torch.uint8
    assert torch.equal(held, before)
    # A view shares the bytes.
    train, hold = images.split(0.2)
    assert train._store is images._store is hold._store


def test_flips_are_the_generators_and_half_of_all():
    n = 2000
    images = Images(torch.arange(8, dtype=torch.uint8).view(1, 1, 2, 4).repeat(n, 1, 1, 1), flip=True)
    index = torch.arange(n)
    x1, _ = images.take(index, generator(1))
    plain, mirrored = scaled(images.levels(index)), scaled(images.levels(index).flip(-1))
    straight, turned = (x1 == plain).flatten(1).all(1), (x1 == mirrored).flatten(1).all(1)
    assert (straight ^ turned).all()
    assert scipy.stats.binomtest(int(turned.sum()), n).pvalue > 1e-3
    assert torch.equal(x1, images.take(index, generator(1))[0])
    assert not torch.equal(x1, images.take(index, generator(2))[0])
    assert torch.equal(images.levels(), images._store.levels)  # bytes are never flipped


@pytest.mark.parametrize("flip", [False, True])
def test_dequantized_images_lie_in_the_cells_of_their_bytes(flip):
    images, noisy = make(flip=flip), make(flip=flip, dequantize=True)
    index = torch.tensor([5, 5, 9, 0])
    x1, _ = noisy.take(index, generator(3))
    assert torch.equal(to_uint8(x1), to_uint8(images.take(index, generator(3))[0]))  # the same flips, drawn first
    assert torch.equal(x1, noisy.take(index, generator(3))[0])
    assert not torch.equal(x1[0], x1[1])
    assert x1.unique().numel() > 0.99 * x1.numel()


def test_nothing_else_is_random():
    images = make()
    g = generator()
    state = g.get_state()
    images.take(torch.arange(5), g)
    assert torch.equal(g.get_state(), state)
    make(flip=True, dequantize=True).take(torch.arange(5), g)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    make(flip=True, dequantize=True).take(torch.arange(5), g)
    assert torch.equal(torch.get_rng_state(), state)


# Where the bytes are


@pytest.mark.parametrize("options", [{}, {"size": 6}, {"size": (4, 8), "resample": "box"}, {"channels": 1, "size": 5}])
def test_lazy_is_in_memory_bit_for_bit(folder, options):
    held, lazy = (load_images(folder, flip=True, dequantize=True, memory=m, **options) for m in (2**31, 0))
    assert "in memory" in repr(held)
    assert "decoded when taken" in repr(lazy)
    for index in (torch.tensor([], dtype=torch.long), torch.tensor([3]), torch.randperm(30)):
        a, b = held.take(index, generator(7)), lazy.take(index, generator(7))
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert lazy.fingerprint == held.fingerprint
    assert torch.equal(lazy.split(0.3, by="content")[1].levels(), held.split(0.3, by="content")[1].levels())


def test_the_limit_is_the_decoded_size(folder):
    exact = 30 * 3 * 9 * 12
    assert "in memory" in repr(load_images(folder, memory=exact))
    assert "decoded when taken" in repr(load_images(folder, memory=exact - 1))


def test_a_large_array_is_mapped(folder):
    path = folder.parent / "whole.npy"
    held, mapped = (load_images(path, memory=m, dequantize=True) for m in (2**31, 0))
    assert "mapped from disc" in repr(mapped)
    assert isinstance(mapped._store.array, np.memmap)
    for index in (torch.tensor([], dtype=torch.long), torch.tensor([29, 3, 3])):
        assert torch.equal(held.take(index, generator())[0], mapped.take(index, generator())[0])
    assert held.fingerprint == mapped.fingerprint
    with pytest.raises(IndexError):
        mapped.take(torch.tensor([30]))
    with pytest.raises(InputError, match=r"need 2,430 bytes, more than memory=0; .* save them .* as .npy"):
        load_images(path, memory=0, size=9, channels=1)


def test_a_file_that_changes_under_a_training(tmp_path):
    for number, image in enumerate(pixels(3)):
        save(tmp_path / f"{number}.png", image)
    images = load_images(tmp_path, memory=0)
    (tmp_path / "1.png").write_bytes(b"")
    images.take(torch.tensor([0, 2]))
    with pytest.raises(InputError, match="1.png was read when the images were loaded and cannot be read now"):
        images.take(torch.tensor([0, 1]))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(folder, workers):
    assert load_images(folder, size=7, workers=workers).fingerprint == load_images(folder, size=7).fingerprint


# Splits


@pytest.mark.parametrize("by", ["index", "content"])
@pytest.mark.parametrize(("holdout", "number"), [(0.25, 15), (7, 7), (1, 1), (59, 59)])
def test_a_split_takes_the_same_share_of_every_class(by, holdout, number):
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    images = Images(torch.from_numpy(first(pixels(60)).copy()), labels, ["a", "b", "c"], flip=True)
    train, held = images.split(holdout, seed=4, by=by)
    assert (len(train), len(held)) == (60 - number, number)
    for label, size in enumerate((40, 15, 5)):
        assert abs(int((held.labels == label).sum()) - number * size / 60) < 1
    both = torch.cat([train.levels(), held.levels()]).flatten(1).tolist()
    assert sorted(both) == sorted(images.levels().flatten(1).tolist())
    assert (train.flip, held.flip) == (True, False)
    again = images.split(holdout, seed=4, by=by)[1]
    assert again.fingerprint == held.fingerprint
    assert images.split(0.5, seed=5, by=by)[1].fingerprint != images.split(0.5, seed=4, by=by)[1].fingerprint


def test_a_class_of_one_stays_in_training():
    labels = np.array([0] + [1] * 7)  # equal remainders, and the first would win
    for seed in range(20):
        held = split_rows(8, 4, seed, labels)
        assert 0 not in held
        assert len(held) == 4


def test_a_split_by_content_does_not_know_the_order():
    images = make(40, labels=False)
    order = torch.randperm(40)
    a, b = images.split(10, by="content")[1], images.subset(order).split(10, by="content")[1]
    assert sorted(a.levels().flatten(1).tolist()) == sorted(b.levels().flatten(1).tolist())
    # By index the choice is that of the places, whatever lies there.
    assert torch.equal(images.split(10)[1]._picked, images.subset(torch.arange(40)).split(10)[1]._picked)


def test_copies_stay_on_one_side():
    levels = torch.from_numpy(first(pixels(10)).copy()).repeat(4, 1, 1, 1)
    labels = torch.arange(40) % 3  # copies in all classes
    for seed in range(5):
        train, held = Images(levels, labels).split(0.2, seed, by="content")
        sides = [set(map(tuple, side.levels().flatten(1).tolist())) for side in (train, held)]
        assert not sides[0] & sides[1]
        assert len(train) + len(held) == 40
    with pytest.raises(InputError, match="all images are copies of those held out"):
        Images(levels[:1].repeat(5, 1, 1, 1)).split(2, by="content")


@pytest.mark.parametrize("holdout", [0, 0.0, 1.0, -0.2, 1.5, 20, -3, 0.01, True])
def test_bad_splits(holdout):
    with pytest.raises(InputError, match="holdout must be a share between 0 and 1 or a number of images from 1 to 19"):
        make().split(holdout)


# What pins a run to its data


def test_the_fingerprint_is_that_of_the_content(folder, tmp_path):
    images = load_images(folder)
    assert images.fingerprint == load_images(folder, flip=True, dequantize=True).fingerprint
    for number, image in enumerate(pixels(30, 9, 12)):  # other names, another format
        save(tmp_path / "set" / "abc"[number % 3] / f"x{number:02d}.bmp", image)
    assert images.fingerprint == load_images(tmp_path / "set").fingerprint
    levels, labels = images.levels(), images.labels
    assert Images(levels, labels, images.classes).fingerprint == images.fingerprint
    others = [
        Images(levels, labels, ["a", "b", "d"]),
        Images(levels, labels.flip(0), images.classes),
        Images(levels.flip(0), labels, images.classes),
        Images(levels[:-1], labels[:-1], images.classes),
        Images(levels, None),
        Images(levels.transpose(2, 3).contiguous(), labels, images.classes),
    ]
    one = levels.clone()
    one[7, 1, 3, 3] ^= 1
    others.append(Images(one, labels, images.classes))
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 8
    part = images.subset(torch.tensor([4, 2]))
    assert part.fingerprint == Images(levels[[4, 2]], labels[[4, 2]], images.classes).fingerprint


def test_a_view_of_a_view():
    images = make()
    part = images.subset(torch.tensor([9, 8, 7])).subset(torch.tensor([2, 0]), flip=True)
    assert torch.equal(part.levels(), images.levels()[[7, 9]])
    assert part.labels.tolist() == [7 % 3, 9 % 3]
    assert part.flip
    assert repr(part) == "Images(2 of shape (3, 4, 5), 3 classes, in memory, flip)"


@pytest.mark.parametrize(
    ("levels", "labels", "error", "message"),
    [
        (
            torch.zeros(2, 1, 3, 3),
            None,
            TypeError,
            "must be a torch.uint8 tensor of shape .N, C, H, W., got torch.float32",
        ),
        (np.zeros((2, 1, 3, 3), np.uint8), None, TypeError, "must be a torch.uint8 tensor .*got ndarray"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), None, ValueError, r"must have shape \(N, C, H, W\)"),
        (torch.zeros(2, 2, 3, 3, dtype=torch.uint8), None, ValueError, "C = 1 .grey. or 3 .colour."),
        (torch.zeros(2, 1, 0, 3, dtype=torch.uint8), None, ValueError, r"got \(2, 1, 0, 3\)"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0], InputError, "there are 1 labels for 2 images; give one each"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0.5, 1], InputError, "must be whole numbers"),
    ],
)
def test_bad_tensors(levels, labels, error, message):
    with pytest.raises(error, match=message):
        Images(levels, labels)
