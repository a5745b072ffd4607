"""Batches of uint8 pictures for one rank: slices of tensors, or files decoded by worker processes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from excite.data.dataset import ArraySplit, DataSet, FileSplit, Split
from excite.data.order import global_batch_sizes, train_batches, val_batches
from excite.errors import UserError

__all__ = ["Batch", "Loader", "make_loader"]


class Batch(NamedTuple):
    """Pictures before augmentation by `prepare`.

    Attributes:
        images: uint8 [B, C, S, S].
        labels: int64 [B].
        indices: int64 [B], each picture's place in its split.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass
class _Share:
    """Which batches are this rank's, in the epoch that is set."""

    n: int
    batch_size: int
    train: bool
    seed: int
    rank: int
    world_size: int
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: give at least 1")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank={self.rank} of world_size={self.world_size}: a rank is 0 to world_size - 1")
        if self.train and self.n < self.world_size:
            raise UserError(
                f"{self.n} training pictures for {self.world_size} processes: each needs at least one a step"
            )

    def batches(self) -> list[Tensor]:
        ranks = {"rank": self.rank, "world_size": self.world_size}
        if self.train:
            return train_batches(self.n, self.batch_size, seed=self.seed, epoch=self.epoch, **ranks)
        return val_batches(self.n, self.batch_size, **ranks)

    def __len__(self) -> int:
        if self.train:
            return len(global_batch_sizes(self.n, self.batch_size, world_size=self.world_size))
        return -(-len(range(self.rank, self.n, self.world_size)) // self.batch_size)


class Loader:
    """One rank's batches of one epoch, again and again: set the epoch, iterate, set the next.

    Made by `make_loader`. The order is a function of (seed, epoch); no global random state is read or changed.
    """

    def __init__(self, share: _Share) -> None:
        self._share = share

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives, 0 until it is set."""
        return self._share.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose order and boxes the next iteration gives."""
        self._share.epoch = epoch

    def __len__(self) -> int:
        """How many batches this rank gives an epoch."""
        return len(self._share)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this epoch, on the CPU."""
        raise NotImplementedError


class _ArrayLoader(Loader):
    """Batches sliced from tensors in memory."""

    def __init__(self, share: _Share, split: ArraySplit, *, pin_memory: bool) -> None:
        super().__init__(share)
        self._split = split
        self._pin_memory = pin_memory

    def __iter__(self) -> Iterator[Batch]:
        for indices in self._share.batches():
            batch = Batch(self._split.images[indices], self._split.labels[indices], indices)
            yield Batch(*(part.pin_memory() for part in batch)) if self._pin_memory else batch


class _FileLoader(Loader):
    """Batches decoded from files, by ``workers`` processes or, with none, here."""

    def __init__(self, share: _Share, files: _Files, *, workers: int, pin_memory: bool) -> None:
        super().__init__(share)
        self._loader: DataLoader[Batch] = DataLoader(
            files,
            sampler=_EpochSampler(share),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # DataLoader draws a seed for its workers; from a generator of its own, the global one stays as it is.
            generator=torch.Generator(),
        )
        # Found in a cycle of garbage (a trainer is one), DataLoader loses its pipes before it can tell its workers to
        # end and waits 5 s for each. Held from outside until this loader is gone, it is never part of the cycle.
        weakref.finalize(self, list, [self._loader])

    def __iter__(self) -> Iterator[Batch]:
        # Not iter(self._loader): a generator keeps this loader, and so its finalizer, alive as long as it runs.
        yield from self._loader


def make_loader(
    split: Split,
    dataset: DataSet,
    batch_size: int,
    *,
    train: bool,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    augment: bool = True,
    pin_memory: bool = False,
) -> Loader:
    """One rank's loader of a split.

    Args:
        split: ``dataset.train`` or ``dataset.val``.
        dataset: the set it is from.
        batch_size: pictures in a batch of one rank.
        train: True gives a new order each epoch (`train_batches`) and random boxes from files; False gives every
            picture once, in order (`val_batches`).
        seed: with the epoch, fixes order and boxes.
        rank: this process, 0 to ``world_size - 1``.
        world_size: how many processes share the split.
        workers: processes that decode files; a split in memory has nothing to decode and starts none.
        augment: False cuts the middle of every picture, in training too.
        pin_memory: give batches in page-locked memory, from which copies to a GPU are faster.

    Raises:
        UserError: a value out of range, or fewer training pictures than ranks.
    """
    if workers < 0:
        raise UserError(f"workers={workers}: give a number of processes, 0 or more")
    share = _Share(len(split), batch_size, train, seed, rank, world_size)
    if isinstance(split, ArraySplit):
        return _ArrayLoader(share, split, pin_memory=pin_memory)
    if isinstance(split, FileSplit):
        files = _Files(split, dataset.image_size, dataset.view, seed, train and augment)
        return _FileLoader(share, files, workers=workers, pin_memory=pin_memory)
    raise TypeError(f"no loader for a split of type {type(split).__name__}")


class _EpochSampler(Sampler[tuple[int, list[int]]]):
    """Every batch as (epoch, indices): workers live through epochs and learn from each batch which one it is."""

    def __init__(self, share: _Share) -> None:
        self._share = share

    def __len__(self) -> int:
        return len(self._share)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        epoch = self._share.epoch
        for indices in self._share.batches():
            yield epoch, indices.tolist()


class _Files(Dataset[Batch]):
    """What workers hold: asked for a batch's epoch and indices, decodes it."""

    def __init__(self, split: FileSplit, size: int, view: float, seed: int, augment: bool) -> None:
        self.split = split
        self.size = size
        self.view = view
        self.seed = seed
        self.augment = augment

    def __getitem__(self, wanted: tuple[int, list[int]]) -> Batch:
        epoch, indices = wanted
        places = torch.tensor(indices, dtype=torch.int64)
        images = torch.stack([self._picture(epoch, index) for index in indices])
        return Batch(images, self.split.labels[places], places)

    def _picture(self, epoch: int, index: int) -> Tensor:
        from excite.data.pictures import centre_box, crop_box, read_picture

        path = self.split.root / self.split.paths[index]
        if self.augment:
            choose = partial(crop_box, seed=self.seed, epoch=epoch, index=index)
        else:
            choose = partial(centre_box, view=self.view)
        try:
            return read_picture(path, self.size, choose)
        except Exception as error:
            raise UserError(f"{path} could be read when the data was loaded, and now cannot: {error}") from error
