"""Batches of uint8 pictures for one rank: slices of tensors, or files decoded by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from excite.data.dataset import ArraySplit, DataSet, FileSplit, Split
from excite.data.order import train_batches, val_batches
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


class Loader:
    """One rank's batches of one epoch, again and again: iterate, `set_epoch`, iterate.

    Made by `make_loader`. The order is a function of (seed, epoch); no global random state is read or changed.
    """

    def __init__(self, n: int, batch_size: int, *, train: bool, seed: int, rank: int, world_size: int) -> None:
        _check_share(n, batch_size, train, rank, world_size)
        self.n = n
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) whose order and crops the next iteration gives."""
        self.epoch = epoch

    def batches(self) -> list[Tensor]:
        """The indices of every batch of this epoch and rank, int64 [B] each."""
        share = {"rank": self.rank, "world_size": self.world_size}
        if self.train:
            return train_batches(self.n, self.batch_size, seed=self.seed, epoch=self.epoch, **share)
        return val_batches(self.n, self.batch_size, **share)

    def __len__(self) -> int:
        """How many batches this rank gives an epoch."""
        if self.train:
            whole, rest = divmod(self.n, self.batch_size * self.world_size)
            return whole + (rest >= self.world_size)
        return -(-len(range(self.rank, self.n, self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this epoch, on the CPU."""
        raise NotImplementedError


class ArrayLoader(Loader):
    """Batches sliced from tensors in memory."""

    def __init__(self, split: ArraySplit, batch_size: int, *, pin_memory: bool, **share: Any) -> None:
        super().__init__(len(split), batch_size, **share)
        self.split = split
        self.pin_memory = pin_memory

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this epoch, on the CPU."""
        for indices in self.batches():
            batch = Batch(self.split.images[indices], self.split.labels[indices], indices)
            yield Batch(*(part.pin_memory() for part in batch)) if self.pin_memory else batch


class FileLoader(Loader):
    """Batches decoded from files, by ``workers`` processes or, with none, here."""

    def __init__(
        self,
        split: FileSplit,
        batch_size: int,
        *,
        dataset: DataSet,
        workers: int,
        augment: bool,
        pin_memory: bool,
        **share: Any,
    ) -> None:
        super().__init__(len(split), batch_size, **share)
        files = _Files(split, dataset.image_size, dataset.view, self.seed, self.train and augment)
        self._loader: DataLoader[Any] = DataLoader(
            files,
            sampler=_EpochSampler(self),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # DataLoader draws a seed for its workers; from a generator of its own, the global one stays as it is.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this epoch, on the CPU."""
        return iter(self._loader)


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
    share: dict[str, Any] = {
        "train": train,
        "seed": seed,
        "rank": rank,
        "world_size": world_size,
        "pin_memory": pin_memory,
    }
    if isinstance(split, ArraySplit):
        return ArrayLoader(split, batch_size, **share)
    if isinstance(split, FileSplit):
        return FileLoader(split, batch_size, dataset=dataset, workers=workers, augment=augment, **share)
    raise TypeError(f"no loader for a split of type {type(split).__name__}")


class _EpochSampler(Sampler[tuple[int, list[int]]]):
    """Every batch as (epoch, indices): workers live through epochs and learn from each batch which one it is."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        epoch = self._loader.epoch
        for indices in self._loader.batches():
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


def _check_share(n: int, batch_size: int, train: bool, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: give at least 1")
    if not 0 <= rank < world_size:
        raise UserError(f"rank={rank} of world_size={world_size}: a rank is 0 to world_size - 1")
    if train and n < world_size:
        raise UserError(f"{n} training pictures for {world_size} processes: each needs at least one a step")
