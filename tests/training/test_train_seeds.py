"""Generators: set by (seed, epoch, step, rank) alone, and given back."""

import random

import numpy
import pytest
import torch

from excite.training.seeds import isolated_generators, seed_step


def draws():
    return torch.rand(3).tolist(), numpy.random.rand(3).tolist(), random.random()


def test_a_step_draws_the_same_whatever_came_before():
    with isolated_generators():
        seed_step(1, 2, 3)
        first = draws()
        torch.rand(100)
        seed_step(1, 2, 3)
        assert draws() == first


@pytest.mark.parametrize("other", [(2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)])
def test_another_seed_epoch_step_or_rank_draws_otherwise(other):
    with isolated_generators():
        seed_step(1, 2, 3)
        first = draws()
        seed_step(*other)
        assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_generators_are_given_back():
    before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), random.getstate()
    with isolated_generators():
        seed_step(0, 0, 0)
        draws()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert numpy.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]
