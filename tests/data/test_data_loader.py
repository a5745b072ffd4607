"""Loaders: the same pictures for the same (seed, epoch, index), however the work is shared."""

import gc
import random

import numpy as np
import pytest
import torch
from data_cases import write_folder

from excite.data import array_data_set, load_data, make_loader, prepare
from excite.data.dataset import DataSet
from excite.errors import UserError

# Python warns of forking a process that has threads; torch's workers fork all the same.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> DataSet:
    root = write_folder(tmp_path_factory.mktemp("set"), {"train/a": 13, "train/b": 10, "val/a": 3, "val/b": 4})
    return load_data(f"folder:{root}", image_size=8)


@pytest.fixture(scope="module")
def arrays() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(23) % 2
    return array_data_set("mine", ("a", "b"), (images, labels), (images[:7].flip(0), labels[:7]))


@pytest.fixture(params=["arrays", "folder"])
def data(request) -> DataSet:
    return request.getfixturevalue(request.param)


def epoch_of(data, *, epoch, batch_size=4, world_size=1, workers=0, train=True, augment=True, seed=5):
    """Prepared picture and label of every index, over all ranks."""
    seen = {}
    for rank in range(world_size):
        split = data.train if train else data.val
        share = {"rank": rank, "world_size": world_size, "workers": workers}
        loader = make_loader(split, data, batch_size, train=train, seed=seed, augment=augment, **share)
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader)
        for batch in batches:
            x = prepare(batch.images, batch.indices, dataset=data, train=train, seed=seed, epoch=epoch, augment=augment)
            for index, picture, label in zip(batch.indices.tolist(), x, batch.labels.tolist(), strict=True):
                assert index not in seen
                seen[index] = (picture, label)
    return seen


def assert_same(one, other):
    assert one.keys() == other.keys()
    for index in one:
        assert torch.equal(one[index][0], other[index][0]) and one[index][1] == other[index][1]


@pytest.mark.parametrize("train", [True, False])
def test_sharing_the_work_changes_nothing(data, train):
    alone = epoch_of(data, epoch=2, train=train)
    split = data.train if train else data.val
    assert alone.keys() == set(range(len(split)))
    assert [alone[i][1] for i in range(len(split))] == split.labels.tolist()
    assert_same(alone, epoch_of(data, epoch=2, train=train, batch_size=7))
    assert_same(alone, epoch_of(data, epoch=2, train=train, batch_size=3, world_size=2))
    # 23 over 3 ranks of 7: the last two pictures, fewer than the ranks, join the batch before them in training.
    assert_same(alone, epoch_of(data, epoch=2, train=train, batch_size=7, world_size=3))


def test_workers_change_nothing(folder):
    alone = [epoch_of(folder, epoch=e) for e in (0, 1)]
    # One loader, two epochs: its workers stay and must learn of the second.
    loader = make_loader(folder.train, folder, 4, train=True, seed=5, workers=2)
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        for batch in loader:
            x = prepare(batch.images, batch.indices, dataset=folder, train=True, seed=5, epoch=epoch)
            for index, picture in zip(batch.indices.tolist(), x, strict=True):
                assert torch.equal(picture, alone[epoch][index][0])


def test_an_epoch_given_up_does_not_leak_into_the_next(folder):
    loader = make_loader(folder.train, folder, 2, train=True, seed=5, workers=2)
    next(iter(loader))
    loader.set_epoch(1)
    got = [batch.indices.tolist() for batch in loader]
    fresh = make_loader(folder.train, folder, 2, train=True, seed=5)
    fresh.set_epoch(1)
    assert got == [batch.indices.tolist() for batch in fresh]


def test_epochs_seeds_and_augmentation_matter(data):
    first = epoch_of(data, epoch=0)
    for other in ({"epoch": 1}, {"epoch": 0, "seed": 6}, {"epoch": 0, "augment": False}):
        pictures = epoch_of(data, **other)
        assert sum(torch.equal(first[i][0], pictures[i][0]) for i in first) < len(first) / 2
    assert_same(epoch_of(data, epoch=0, augment=False), epoch_of(data, epoch=9, augment=False))


def test_validation_is_in_order(data):
    indices = torch.cat([batch.indices for batch in make_loader(data.val, data, 2, train=False, seed=0)])
    assert torch.equal(indices, torch.arange(7))


def test_batches_are_what_they_say(data):
    batch = next(iter(make_loader(data.train, data, 4, train=True, seed=0)))
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (4, 3, 8, 8)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert batch.labels.shape == batch.indices.shape == (4,)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(data, workers):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for _ in make_loader(data.train, data, 8, train=True, seed=0, workers=workers):
        pass
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"batch_size": 0}, "batch_size=0: give at least 1"),
        ({"workers": -1}, "workers=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"world_size": 24}, "23 training pictures for 24 processes"),
    ],
)
def test_values_out_of_range(arrays, asked, said):
    with pytest.raises(UserError, match=said):
        make_loader(arrays.train, arrays, **{"batch_size": 4, "train": True, "seed": 0} | asked)


def test_workers_end_by_themselves_when_a_cycle_is_collected(folder, monkeypatch):
    loader = make_loader(folder.train, folder, 8, train=True, seed=0, workers=2)
    list(loader)
    workers = loader._loader._iterator._workers
    alive_after_waiting = []
    real = type(workers[0]).join

    def join(self, timeout=None):
        real(self, timeout)
        alive_after_waiting.append(self.is_alive())

    monkeypatch.setattr(type(workers[0]), "join", join)
    loader.itself = loader
    del loader
    gc.collect()
    # Told to end, they end; untold, they are still alive when the time to wait for them is over.
    assert alive_after_waiting and not any(alive_after_waiting)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_vanishes_is_named(tmp_path, workers):
    data = load_data(f"folder:{write_folder(tmp_path, {'a': 5, 'b': 5})}", image_size=8)
    (tmp_path / data.train.paths[3]).unlink()
    with pytest.raises(UserError, match=data.train.paths[3]):
        list(make_loader(data.train, data, 4, train=True, seed=0, workers=workers))
