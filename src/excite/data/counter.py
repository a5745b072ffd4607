"""Random numbers without a state: every draw is a hash of what it is for.

A draw is a pure function of ``(stream, seed, epoch, index)``, so an image is cropped and flipped alike on any
device, in any batch, on any rank and in any number of workers, and nothing reads or moves torch's global generator.
Counter-based generators are described in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the
mixing is that of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["Stream", "below", "coin", "permutation", "random_bits", "random_word", "unit"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


class Stream(IntEnum):
    """What a draw is for. Numbers are part of every recorded experiment: add new ones, never renumber."""

    ORDER = 0
    SHIFT_Y = 1
    SHIFT_X = 2
    FLIP = 3
    CUT_Y = 4
    CUT_X = 5
    # The k-th try for a crop box takes BOX + 4 * k to BOX + 4 * k + 3.
    BOX = 64


def random_bits(indices: Tensor, *, stream: int, seed: int, epoch: int) -> Tensor:
    """64 random bits for every index.

    Args:
        indices: int64 [...], on any device.
        stream: what the draw is for; draws of different streams are independent.
        seed: any integer; taken modulo 2**64.
        epoch: any integer; taken modulo 2**64.

    Returns:
        int64 [...] on the device of ``indices``; equal to `random_word` bit by bit (as two's complement).
    """
    state = indices + 1
    state = state * _signed(_GOLDEN) + _signed(_key(stream, seed, epoch))
    state = (state ^ _shift_right(state, 30)) * _signed(_FIRST)
    state = (state ^ _shift_right(state, 27)) * _signed(_SECOND)
    return state ^ _shift_right(state, 31)


def random_word(index: int, *, stream: int, seed: int, epoch: int) -> int:
    """`random_bits` of one index in plain integers, 0 to 2**64 - 1: for workers that draw for one image at a time."""
    return _mix(((index + 1) * _GOLDEN + _key(stream, seed, epoch)) & _MASK)


def below(bits: Tensor, n: int) -> Tensor:
    """Integers 0 to n - 1 from `random_bits`, int64, equally likely to within n / 2**31."""
    assert 0 < n < 1 << 31
    return (_shift_right(bits, 33) * n) >> 31


def coin(bits: Tensor) -> Tensor:
    """True or False, equally likely, from `random_bits`."""
    return bits < 0


def unit(word: int) -> float:
    """A number in [0, 1) from `random_word`, with 53 random bits."""
    return (word >> 11) * 2.0**-53


def permutation(n: int, *, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation of 0 to n - 1, int64 [n] on the CPU, fixed by (seed, epoch) alone."""
    # Distinct indices have distinct hashes (an odd multiple and a bijection), so there are no ties to break.
    return torch.argsort(random_bits(torch.arange(n), stream=Stream.ORDER, seed=seed, epoch=epoch))


def _key(stream: int, seed: int, epoch: int) -> int:
    key = 0
    for word in (stream, seed, epoch):
        key = _mix(((key ^ (word & _MASK)) + _GOLDEN) & _MASK)
    return key


def _mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * _FIRST) & _MASK
    state = ((state ^ (state >> 27)) * _SECOND) & _MASK
    return state ^ (state >> 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # torch's >> of int64 repeats the sign bit; the mask makes it the shift of an unsigned number.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
