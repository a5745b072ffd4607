"""Augmentation in batch against one picture at a time."""

import dataclasses

import pytest
import torch

from excite.data import array_data_set, normalise, prepare
from excite.data.augment import shift_and_flip
from excite.data.counter import Stream, random_word
from excite.errors import UserError
from tolerances import NORMALISE

SEED, EPOCH = 11, 4


def pictures(n=40, channels=3, size=12):
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)


def data_set(channels=3, size=12, n=40):
    images, labels = pictures(n, channels, size), torch.arange(n) % 2
    return array_data_set("mine", ("a", "b"), (images, labels), (images[:4], labels[:4]))


def one_by_one(images, indices, shift, *, seed=SEED, epoch=EPOCH):
    """Pad, cut, flip: in plain Python, a picture at a time."""
    height, width = images.shape[2:]
    out = []
    for image, index in zip(images, indices.tolist(), strict=True):

        def draw(stream, index=index):
            return random_word(index, stream=stream, seed=seed, epoch=epoch)

        padded = torch.zeros(len(image), height + 2 * shift, width + 2 * shift, dtype=torch.uint8)
        padded[:, shift : shift + height, shift : shift + width] = image
        top = ((draw(Stream.SHIFT_Y) >> 33) * (2 * shift + 1)) >> 31
        left = ((draw(Stream.SHIFT_X) >> 33) * (2 * shift + 1)) >> 31
        cut = padded[:, top : top + height, left : left + width]
        out.append(cut.flip(-1) if draw(Stream.FLIP) >> 63 else cut)
    return torch.stack(out)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shift", [0, 1, 4, 14])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shift_and_flip_as_one_by_one(channels, shift, memory_format):
    images = pictures(60, channels).to(memory_format=memory_format)
    indices = torch.randperm(1000)[:60]
    got = shift_and_flip(images, indices, shift=shift, seed=SEED, epoch=EPOCH)
    assert torch.equal(got, one_by_one(images, indices, shift))


def test_shift_and_flip_of_a_picture_that_is_not_square():
    images = torch.randint(0, 256, (20, 2, 5, 9), dtype=torch.uint8)
    got = shift_and_flip(images, torch.arange(20), shift=3, seed=SEED, epoch=EPOCH)
    assert torch.equal(got, one_by_one(images, torch.arange(20), 3))


def test_all_shifts_and_both_sides_occur():
    dot = torch.zeros(2000, 1, 9, 9, dtype=torch.uint8)
    dot[:, :, 4, 3] = 255
    moved = shift_and_flip(dot, torch.arange(2000), shift=2, seed=0, epoch=0)
    places = {tuple(p) for p in moved[:, 0].nonzero()[:, 1:].tolist()}
    # Up to two rows either way; columns 3 and (flipped) 5, up to two either way.
    assert places == {(row, column) for row in range(2, 7) for column in range(1, 8)}


@pytest.mark.parametrize(("size", "shift"), [(28, 4), (32, 4), (8, 1)])
def test_prepare_shifts_by_an_eighth_and_normalises(size, shift):
    data = data_set(1, size)
    indices = torch.arange(40)
    got = prepare(data.train.images, indices, dataset=data, train=True, seed=SEED, epoch=EPOCH)
    expected = one_by_one(data.train.images, indices, shift).double()
    expected = (expected / 255 - data.mean[0]) / data.std[0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, **NORMALISE)


@pytest.mark.parametrize("how", [{"train": False}, {"train": True, "augment": False}])
def test_without_augmentation_pictures_are_only_normalised(how):
    data = data_set()
    got = prepare(data.train.images, torch.arange(40), dataset=data, seed=SEED, epoch=EPOCH, **how)
    assert torch.equal(got, normalise(data.train.images, data.mean, data.std))
    # The set's own statistics: its training pictures come out with mean 0 and deviation 1 in every channel.
    torch.testing.assert_close(got.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(got.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-5, atol=0)


def test_a_picture_does_not_depend_on_its_batch():
    data = data_set()

    def some(which):
        return prepare(data.train.images[which], which, dataset=data, train=True, seed=SEED, epoch=EPOCH)

    whole = some(torch.arange(40))
    order = torch.randperm(40)
    assert torch.equal(some(order), whole[order])
    for size in (1, 7):
        assert torch.equal(torch.cat([some(part) for part in torch.arange(40).split(size)]), whole)


def test_epochs_and_seeds_differ():
    data = data_set()
    ask = {"dataset": data, "train": True}
    images, indices = data.train.images, torch.arange(40)
    first = prepare(images, indices, seed=0, epoch=0, **ask)
    assert torch.equal(first, prepare(images, indices, seed=0, epoch=0, **ask))
    assert not torch.equal(first, prepare(images, indices, seed=0, epoch=1, **ask))
    assert not torch.equal(first, prepare(images, indices, seed=1, epoch=0, **ask))


def test_global_generators_and_the_pictures_are_left_alone():
    data = data_set()
    before, images = torch.get_rng_state(), data.train.images.clone()
    prepare(data.train.images, torch.arange(40), dataset=data, train=True, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(data.train.images, images)


def test_first_use_under_inference_mode_does_not_spoil_training():
    data = dataclasses.replace(data_set(), mean=(0.123, 0.2, 0.3))
    with torch.inference_mode():
        prepare(data.train.images, torch.arange(40), dataset=data, train=False, seed=0, epoch=0)
    x = prepare(data.train.images, torch.arange(40), dataset=data, train=False, seed=0, epoch=0)
    weight = torch.ones(1, requires_grad=True)
    (x * weight).sum().backward()
    assert weight.grad.isfinite()


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(4, 3, 12, 12),
        torch.zeros(4, 1, 12, 12, dtype=torch.uint8),
        torch.zeros(4, 3, 10, 12, dtype=torch.uint8),
        torch.zeros(3, 3, 12, 12, dtype=torch.uint8),
    ],
    ids=["float", "grey", "size", "count"],
)
def test_other_shapes_are_refused(images):
    with pytest.raises(UserError, match=r"uint8 pictures \(4, 3, 12, 12\) of mine"):
        prepare(images, torch.arange(4), dataset=data_set(), train=False, seed=0, epoch=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_prepares_the_same():
    data, indices = data_set(), torch.arange(40)
    ask = {"dataset": data, "train": True, "seed": SEED, "epoch": EPOCH}
    there = prepare(data.train.images.cuda(), indices.cuda(), **ask)
    assert torch.equal(there.cpu(), prepare(data.train.images, indices, **ask))
