"""Cutout against one picture at a time, and as an option of ``prepare``."""

import pytest
import torch

from excite.data import array_data_set, prepare
from excite.data.counter import Stream, random_word
from excite.data.cutout import cutout
from excite.errors import UserError
from tolerances import CHANCE_ERRORS

SEED, EPOCH = 11, 4


def pictures(n=40, channels=3, height=12, width=12):
    return torch.rand(n, channels, height, width) + 1  # nowhere 0


def one_by_one(images, indices, size):
    """The paper's, in plain Python: a square around a pixel, as much of it as lies inside."""
    out = images.clone()
    for image, index in zip(out, indices.tolist(), strict=True):
        y, x = (
            ((random_word(index, stream=stream, seed=SEED, epoch=EPOCH) >> 33) * length) >> 31
            for stream, length in ((Stream.CUT_Y, image.shape[1]), (Stream.CUT_X, image.shape[2]))
        )
        for row in range(y - size // 2, y - size // 2 + size):
            for column in range(x - size // 2, x - size // 2 + size):
                if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                    image[:, row, column] = 0
    return out


@pytest.mark.parametrize("size", [1, 2, 5, 8, 12])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (7, 12)])
def test_as_one_by_one(size, height, width):
    images, indices = pictures(60, 2, height, width), torch.randperm(1000)[:60]
    before = images.clone()
    got = cutout(images, indices, size=size, seed=SEED, epoch=EPOCH)
    assert torch.equal(got, one_by_one(images, indices, size))
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_dtype_and_layout_are_kept(dtype):
    images = (pictures() * 100).to(dtype).to(memory_format=torch.channels_last)
    got = cutout(images, torch.arange(40), size=4, seed=SEED, epoch=EPOCH)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, one_by_one(images, torch.arange(40), 4))


def test_every_pixel_is_the_centre_equally_often():
    n, side = 30_000, 6
    ones = torch.ones(n, 1, side, side)
    holes = (cutout(ones, torch.arange(n), size=1, seed=0, epoch=0) == 0).double().sum(0)[0]
    assert holes.sum() == n
    expected = n / side**2
    assert (holes - expected).abs().max() < CHANCE_ERRORS * expected**0.5


def test_a_picture_does_not_depend_on_its_batch_and_draws_nothing_else():
    images, indices, state = pictures(), torch.arange(40), torch.get_rng_state()
    ask = {"size": 5, "seed": SEED, "epoch": EPOCH}
    whole = cutout(images, indices, **ask)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cutout(images[order], indices[order], **ask), whole[order])
    assert not torch.equal(cutout(images, indices, **{**ask, "epoch": 5}), whole)
    assert not torch.equal(cutout(images, indices, **{**ask, "seed": 12}), whole)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [0, -3, 13])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(UserError, match=f"cutout={size}.*1 to the 12 pixels"):
        cutout(pictures(), torch.arange(40), size=size, seed=0, epoch=0)


# --- as an option of prepare ---


@pytest.fixture
def data():
    images = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8)
    return array_data_set("mine", ("a", "b"), (images, torch.arange(40) % 2), (images[:4], torch.arange(4) % 2))


def test_prepare_blanks_what_it_has_shifted_flipped_and_normalised(data):
    ask = {"dataset": data, "train": True, "seed": SEED, "epoch": EPOCH}
    whole = prepare(data.train.images, torch.arange(40), **ask)
    got = prepare(data.train.images, torch.arange(40), cutout=6, **ask)
    assert torch.equal(got, one_by_one(whole, torch.arange(40), 6))


@pytest.mark.parametrize("how", [{"train": False}, {"train": True, "augment": False}])
def test_prepare_blanks_training_pictures_only(data, how):
    ask = {"dataset": data, "seed": SEED, "epoch": EPOCH, **how}
    whole = prepare(data.train.images, torch.arange(40), **ask)
    assert torch.equal(prepare(data.train.images, torch.arange(40), cutout=6, **ask), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_blanks_the_same():
    images, indices = pictures(), torch.arange(40)
    there = cutout(images.cuda(), indices.cuda(), size=5, seed=SEED, epoch=EPOCH)
    assert torch.equal(there.cpu(), cutout(images, indices, size=5, seed=SEED, epoch=EPOCH))
