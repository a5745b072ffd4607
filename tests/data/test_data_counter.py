"""Draws without state: the same everywhere, and as good as chance."""

import pytest
import torch

from excite.data.counter import Stream, below, coin, permutation, random_bits, random_word, unit
from tolerances import CHANCE_ERRORS

N = 1 << 16
KNOWN = [0x134D389B4CAC4EF, 0x436D3916585640B6, 0x948A214CF3EF92F8]


def bits(indices=None, *, stream=Stream.FLIP, seed=0, epoch=0):
    return random_bits(torch.arange(N) if indices is None else indices, stream=stream, seed=seed, epoch=epoch)


def assert_uniform(values, bins):
    """Chi-squared over ``bins`` equally likely values, in standard errors of its normal approximation."""
    counts = torch.bincount(values, minlength=bins).double()
    assert len(counts) == bins
    expected = len(values) / bins
    chi2 = ((counts - expected).square() / expected).sum().item()
    free = bins - 1
    assert abs(chi2 - free) < CHANCE_ERRORS * (2 * free) ** 0.5


def sign(word):
    return coin(word).double() * 2 - 1


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63, 2**64 + 5])
@pytest.mark.parametrize("epoch", [0, 3])
def test_tensor_and_integer_draws_agree(seed, epoch):
    indices = torch.tensor([0, 1, 2, 1000, 2**31, 2**62])
    many = random_bits(indices, stream=Stream.BOX + 5, seed=seed, epoch=epoch)
    one = [random_word(i, stream=Stream.BOX + 5, seed=seed, epoch=epoch) for i in indices.tolist()]
    assert [word % 2**64 for word in many.tolist()] == one


def test_known_words():
    # Recorded experiments rest on these: they must never change.
    got = [random_word(i, stream=Stream.FLIP, seed=1, epoch=2) for i in range(3)]
    assert got == KNOWN


def test_a_draw_does_not_depend_on_its_batch():
    whole = bits()
    assert torch.equal(bits(torch.arange(N).flip(0)), whole.flip(0))
    assert torch.equal(bits(torch.tensor([17])), whole[17:18])
    assert torch.equal(bits(torch.arange(12).view(3, 4)), whole[:12].view(3, 4))


@pytest.mark.parametrize("shift", [0, 8, 24, 40, 56])
def test_bytes_are_uniform(shift):
    assert_uniform((bits() >> shift) & 255, 256)


@pytest.mark.parametrize("n", [2, 9, 57, 1000])
def test_below_is_uniform(n):
    values = below(bits(stream=Stream.SHIFT_X), n)
    assert values.min() == 0 and values.max() == n - 1
    assert_uniform(values, n)


def test_unit_is_uniform():
    values = torch.tensor([unit(random_word(i, stream=Stream.BOX, seed=0, epoch=0)) for i in range(4096)])
    assert values.min() >= 0 and values.max() < 1
    assert_uniform((values * 64).long(), 64)


NEIGHBOURS = {
    "index": (lambda: bits(), lambda: bits(torch.arange(N) + 1)),
    "epoch": (lambda: bits(), lambda: bits(epoch=1)),
    "seed": (lambda: bits(), lambda: bits(seed=1)),
    "stream": (lambda: bits(), lambda: bits(stream=Stream.SHIFT_X)),
    "seed and epoch swapped": (lambda: bits(seed=5), lambda: bits(epoch=5)),
    "epoch and index traded": (lambda: bits(epoch=1), lambda: bits(torch.arange(N) + 1)),
}


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_neighbours_are_independent(what):
    """Each of the 64 bits agrees with its neighbour's half of the time."""
    one, other = NEIGHBOURS[what]
    differing = one() ^ other()
    for k in range(64):
        share = ((differing >> k) & 1).double().mean().item()
        assert abs(share - 0.5) < CHANCE_ERRORS * 0.5 / N**0.5


@pytest.mark.parametrize("what", ["index", "seed", "epoch"])
def test_one_bit_in_changes_half_of_the_bits_out(what):
    base = torch.arange(512)
    for k in range(0, 62, 3):
        if what == "index":
            other = bits(base ^ (1 << k))
        else:
            other = bits(base, **{what: 1 << k})
        changed = bits(base) ^ other
        flipped = sum(((changed >> j) & 1).double() for j in range(64))
        # 512 draws of Binomial(64, 1/2), whose standard deviation is 4.
        assert abs(flipped.mean().item() - 32) < CHANCE_ERRORS * 4 / 512**0.5


def test_epochs_of_one_image_are_independent():
    flips = torch.stack([sign(bits(torch.arange(256), epoch=e)) for e in range(256)])
    correlation = flips.T @ flips / 256
    off_diagonal = correlation[~torch.eye(256, dtype=torch.bool)]
    # 65,280 correlations of 256 signs: the largest of so many lies near 4.3 standard errors.
    assert off_diagonal.abs().max() < 1.2 * CHANCE_ERRORS / 256**0.5
    assert abs(off_diagonal.mean()) < CHANCE_ERRORS / 256


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_everything_once(n):
    assert torch.equal(permutation(n, seed=3, epoch=4).sort().values, torch.arange(n))


def test_permutations_are_as_chance_makes_them():
    orders = torch.stack([permutation(64, seed=0, epoch=e) for e in range(1024)])
    assert_uniform(orders[:, 0], 64)
    assert_uniform(orders[:, -1], 64)
    # The number of places that a random permutation keeps has mean 1 and variance 1.
    kept = (orders == torch.arange(64)).sum(1).double().mean().item()
    assert abs(kept - 1) < CHANCE_ERRORS / 1024**0.5


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    bits()
    permutation(10, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same():
    assert torch.equal(bits(torch.arange(N, device="cuda")).cpu(), bits())
