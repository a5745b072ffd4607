"""Batches as the analysis takes them: images ready for the network, labels, and which images they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.analysis.moments import Floats, Ints
from excite.data import DataSet, make_loader
from excite.errors import UserError
from excite.page import counted
from excite.training.batches import image_preparer, reader_count

__all__ = ["Checked", "ImageBatch", "ImageBatches", "checked_batches", "kept_random", "scores_of"]


class ImageBatch(NamedTuple):
    """A batch; any tuple of these two or three will do.

    Attributes:
        images: as the network takes them, [N, C, *S].
        labels: the class of each, int64 [N].
        ids: the place of each in its data set, int64 [N], or N names, of files for example.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor | Sequence[str]


class ImageBatches:
    """A split of a data set, prepared for a network without augmentation, again at each iteration.

    Args:
        data: the set.
        split: "val" or "train".
        batch_size: images in a batch.
        limit: only so many images, drawn at random; None for all.
        seed: of the draw.
        rank: this process, which gives its own share of the images.
        world_size: how many processes share them.
        workers: processes that decode files; None chooses.
    """

    def __init__(
        self,
        data: DataSet,
        split: str = "val",
        *,
        batch_size: int = 64,
        limit: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int | None = None,
    ) -> None:
        if split not in ("val", "train"):
            raise UserError(f"split={split!r}: give val or train")
        if limit is not None and limit < 1:
            raise UserError(f"limit={limit}: give at least 1 image, or None for all")
        whole = data.train if split == "train" else data.val
        self._places = whole.drawn(limit, seed)
        chosen = whole if len(self._places) == len(whole) else whole.taken(self._places)
        self._loader = make_loader(
            chosen,
            data,
            batch_size,
            train=False,
            seed=0,
            rank=rank,
            world_size=world_size,
            workers=reader_count(workers, chosen),
            augment=False,
        )
        self._prepare = image_preparer(data, "32-true", False)

    def __len__(self) -> int:
        """How many batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[ImageBatch]:
        """The batches, on the CPU; ids are places in the whole split."""
        for batch in self._loader:
            images = self._prepare(batch, train=False, seed=0, epoch=0)
            yield ImageBatch(images, batch.labels, self._places[batch.indices])


class Checked(NamedTuple):
    """A batch that was looked at: images where the network is, the rest on the CPU.

    Attributes:
        images: [N, C, *S], on the network's device and in its dtype.
        labels: int64 [N].
        indices: int64 [N].
        names: N names; None where indices tell the images.
    """

    images: Tensor
    labels: Ints
    indices: Ints
    names: tuple[str, ...] | None


def checked_batches(batches: Iterable[Any], model: nn.Module) -> Iterator[Checked]:
    """Each batch, checked, on the network's device and in its dtype.

    Images without indices are numbered in the order in which they come.

    Raises:
        ValueError: batches that are not tuples of images and labels, images of whole numbers, labels or indices of
            none, lengths that differ.
    """
    weight = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))
    start = 0
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3) or not isinstance(batch[0], Tensor):
            raise UserError(
                f"batches give a {type(batch).__name__}: give tuples (images, labels) or (images, labels, indices)"
            )
        images, labels = batch[0], _whole_numbers(batch[1], "labels", "the class of each image, int64 [N]")
        if not images.is_floating_point():
            raise UserError(
                f"images are {str(images.dtype).removeprefix('torch.')}: prepare them as the network takes them; "
                "ImageBatches does for a data set of excite.data"
            )
        names, index = None, np.arange(start, start + len(images))
        if len(batch) == 3:
            if _are_names(batch[2]):
                names = tuple(batch[2])
            else:
                index = _whole_numbers(
                    batch[2], "indices", "each image's place in its data set, int64 [N], or its name"
                )
        told = index.shape if names is None else (len(names),)
        if not labels.shape == told == (len(images),):
            raise UserError(
                f"a batch of {counted(len(images), 'image')} with labels {labels.shape} and indices {told}: give one "
                "of each an image"
            )
        if len(images):
            dtype = weight.dtype if weight.is_floating_point() else images.dtype
            yield Checked(images.to(weight.device, dtype), labels, index, names)
        start += len(images)


def _are_names(ids: Any) -> bool:
    return isinstance(ids, Sequence | np.ndarray) and len(ids) > 0 and isinstance(ids[0], str)


def _whole_numbers(values: Any, what: str, wanted: str) -> Ints:
    """Numbers as int64; an error where they are none, or not whole."""
    try:
        numbers = np.asarray(values.tolist() if isinstance(values, Tensor) else values)
        whole = not numbers.size or numbers.dtype.kind in "iub"
    except (TypeError, ValueError):  # lists of several lengths, tensors of another device
        whole = False
    if not whole:
        given = values.dtype if isinstance(values, Tensor | np.ndarray) else type(values).__name__
        raise UserError(f"{what} of a batch are of type {given}: give {wanted}")
    return numbers.astype(np.int64)


@contextmanager
def kept_random(model: nn.Module) -> Iterator[None]:
    """Random generators of the CPU and of the network's devices, left as they were."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(index for index in devices if index is not None)):
        yield


def scores_of(output: Any, labels: Ints) -> tuple[Ints, Floats] | None:
    """Predicted class and cross-entropy of each image; None where a network gives no logits [N, K] for these labels."""
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(labels):
        return None
    if labels.min() < 0 or labels.max() >= output.shape[1]:
        return None
    logits = output.detach().float() if output.dtype != torch.float64 else output.detach()
    target = torch.as_tensor(labels, device=logits.device)
    losses = F.cross_entropy(logits, target, reduction="none")
    return logits.argmax(1).cpu().numpy(), losses.cpu().double().numpy()
