"""Every picture once an epoch, the same number of steps on every rank."""

import pytest
import torch

from excite.data.order import global_batch_sizes, train_batches, val_batches

SIZES = [(1, 1), (2, 3), (7, 2), (10, 10), (23, 4), (24, 4), (25, 4), (100, 7)]


def by_rank(n, batch_size, world_size, *, seed=0, epoch=0):
    return [
        train_batches(n, batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("n", "batch_size"), SIZES)
def test_every_picture_is_trained_on_once(n, batch_size, world_size):
    ranks = by_rank(n, batch_size, world_size)
    seen = torch.cat([batch for batches in ranks for batch in batches] or [torch.arange(0)])
    # Left out only where nothing can take them in: fewer pictures than ranks, or ranks that take one at a time.
    rest = n % (batch_size * world_size)
    dropped = rest if rest < world_size and (batch_size == 1 or n < world_size) else 0
    assert len(seen) == n - dropped == len(seen.unique())
    assert len({len(batches) for batches in ranks}) == 1
    for step in zip(*ranks, strict=True):
        sizes = [len(batch) for batch in step]
        assert 1 <= min(sizes) and max(sizes) <= batch_size + 2 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_no_step_of_several_leaves_a_rank_with_a_single_picture(batch_size, world_size):
    for n in range(2 * world_size, 60):
        for batches in by_rank(n, batch_size, world_size):
            assert min(map(len, batches)) >= 2, (n, batches)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sizes_are_those_of_the_batches(world_size):
    for n in range(40):
        for batch_size in (1, 2, 5, 16):
            sizes = [sum(map(len, step)) for step in zip(*by_rank(n, batch_size, world_size), strict=True)]
            assert sizes == global_batch_sizes(n, batch_size, world_size=world_size)


@pytest.mark.parametrize(("n", "batch_size"), SIZES)
def test_a_step_takes_the_same_pictures_over_any_number_of_ranks(n, batch_size):
    alone = train_batches(n, 6 * batch_size, seed=1, epoch=2)
    for world_size in (2, 3):
        ranks = by_rank(n, 6 * batch_size // world_size, world_size, seed=1, epoch=2)
        for step, whole in zip(zip(*ranks, strict=True), alone, strict=False):
            if sum(map(len, step)) != len(whole):
                continue  # a small rest joins the batch before it, and how small depends on the ranks
            assert torch.equal(torch.cat(step).sort().values, whole.sort().values)


def test_the_order_is_a_function_of_seed_and_epoch():
    first = torch.cat(train_batches(100, 8, seed=0, epoch=0))
    assert torch.equal(first, torch.cat(train_batches(100, 25, seed=0, epoch=0)))
    assert not torch.equal(first, torch.cat(train_batches(100, 8, seed=0, epoch=1)))
    assert not torch.equal(first, torch.cat(train_batches(100, 8, seed=1, epoch=0)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("n", "batch_size"), SIZES)
def test_every_picture_is_validated_on_once(n, batch_size, world_size):
    ranks = [val_batches(n, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [batch for batches in ranks for batch in batches]
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(n))
