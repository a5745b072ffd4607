"""What a set of labelled pictures is: two splits, the names of the classes, and how a picture is prepared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from excite.errors import UserError

__all__ = ["ArraySplit", "DataSet", "FileSplit", "Split", "array_data_set"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGE = 1 << 30


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled pictures, in a fixed order.

    Attributes:
        labels: the class of every picture, int64 [n], 0 to classes - 1.
    """

    labels: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether the pictures are tensors already (augmented in batch) or files that workers decode."""
        raise NotImplementedError

    def digest(self) -> str:
        """Sixteen hex digits that change with any picture, label or their order."""
        raise NotImplementedError

    def taken(self, places: Tensor) -> Split:
        """Only the pictures in these places, int64 [m], in this order."""
        raise NotImplementedError

    def drawn(self, count: int | None, seed: int) -> Tensor:
        """Places of ``count`` pictures drawn at random, rising, int64 [count]; of all where there are no more or None.

        The first so many would not do: folders hold their pictures class by class.
        """
        if count is None or count >= len(self):
            return torch.arange(len(self))
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].sort().values


@dataclass(frozen=True, eq=False)
class ArraySplit(Split):
    """Pictures held in memory.

    Attributes:
        images: uint8 [n, C, H, W] on the CPU.
    """

    images: Tensor = field(repr=False)

    @property
    def in_memory(self) -> bool:
        """True."""
        return True

    def digest(self) -> str:
        """Of all pixels and labels."""
        content = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        content.update(self.labels.numpy().tobytes())
        content.update(self.images.contiguous().numpy().data)
        return content.hexdigest()[:16]

    def taken(self, places: Tensor) -> ArraySplit:
        """Only the pictures in these places, copied."""
        return ArraySplit(labels=self.labels[places], images=self.images[places])


@dataclass(frozen=True, eq=False)
class FileSplit(Split):
    """Pictures in files, decoded when they are needed.

    Attributes:
        root: the folder that ``paths`` are relative to.
        paths: n file names, each checked to be readable.
    """

    root: Path
    paths: tuple[str, ...] = field(repr=False)

    @property
    def in_memory(self) -> bool:
        """False."""
        return False

    def digest(self) -> str:
        """Of names, sizes in bytes and labels; not of what is in the files, which would mean reading them all."""
        content = hashlib.sha256(self.labels.numpy().tobytes())
        for path in self.paths:
            content.update(f"{path}\0{(self.root / path).stat().st_size}\n".encode())
        return content.hexdigest()[:16]

    def taken(self, places: Tensor) -> FileSplit:
        """Only the pictures in these places; nothing is read."""
        return FileSplit(self.labels[places], self.root, tuple(self.paths[i] for i in places.tolist()))


@dataclass(frozen=True, eq=False)
class DataSet:
    """A set of labelled pictures, as `load_data` gives it.

    Attributes:
        name: what reports call it ("fashion-mnist-mini", a folder's name).
        classes: the names of the classes; a label is an index into them.
        in_channels: 1 (grey) or 3 (RGB).
        image_size: height and width in pixels, as a network sees them.
        mean: per channel, in the 0 to 1 scale, subtracted from pictures.
        std: per channel, in the 0 to 1 scale; pictures are divided by it.
        train: what is trained on.
        val: what is measured on.
        augmentation: "crop-flip" (shift by up to an eighth, flip) or "resized-crop-flip" (a box of 8 to 100 % of
            the area, flip).
        view: how much of a picture's shorter side is seen when not augmenting: a centre square, 1 being all of it.
        notes: what a user should know, a sentence each.
        unreadable: "path: reason" of every picture that was skipped.
    """

    name: str
    classes: tuple[str, ...]
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    augmentation: str
    view: float = 1.0
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = field(default=(), repr=False)

    def preprocessing(self) -> dict[str, Any]:
        """Enough to prepare a picture for a network trained on this set: JSON-able, read by `load_image`."""
        return {
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "view": self.view,
            "interpolation": "bilinear, antialiased",
            "transparent_over": "white",
            "mean": list(self.mean),
            "std": list(self.std),
        }


def array_data_set(
    name: str,
    classes: tuple[str, ...],
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    image_size: int | None = None,
    notes: tuple[str, ...] = (),
) -> DataSet:
    """A `DataSet` of pictures in memory, normalised by the mean and deviation of its training pictures.

    Args:
        name: what reports call it.
        classes: names of the classes.
        train: images uint8 [n, C, S, S] (C 1 or 3) and labels int64 [n].
        val: as ``train``.
        image_size: resize to this height and width; None keeps the pictures as they are.
        notes: sentences to carry along.

    Raises:
        UserError: pictures of another shape, labels outside the classes, an empty split, or image_size below 1.
    """
    splits = []
    for which, (images, labels) in (("train", train), ("val", val)):
        _check_arrays(f"{name} {which}", images, labels, len(classes))
        splits.append(ArraySplit(labels=labels, images=resize(images, image_size)))
    shape = splits[0].images.shape
    if splits[1].images.shape[1:] != shape[1:]:
        raise UserError(
            f"{name}: pictures of train are {tuple(shape[1:])}, of val {tuple(splits[1].images.shape[1:])}; "
            "they must agree"
        )
    if shape[2] != shape[3]:
        raise UserError(
            f"{name}: pictures are {shape[2]}x{shape[3]}; they must be square, or give image_size to resize them"
        )
    held = sum(s.images.numel() for s in splits)
    if held > _LARGE:
        notes = (*notes, f"{name} at {shape[-1]}x{shape[-1]} holds {held / 1e9:.1f} GB of memory")
    mean, std = channel_statistics(splits[0].images)
    return DataSet(
        name=name,
        classes=classes,
        in_channels=shape[1],
        image_size=shape[-1],
        mean=mean,
        std=std,
        train=splits[0],
        val=splits[1],
        augmentation="crop-flip",
        notes=notes,
    )


def resize(images: Tensor, size: int | None) -> Tensor:
    """uint8 pictures [n, C, H, W] at ``size`` x ``size``, bilinear with antialiasing; None: as they are."""
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    # In parts: the resizing of a whole set at once needs several times its memory.
    parts = [interpolate(p, (size, size), mode="bilinear", antialias=True) for p in torch.split(images, 1024)]
    return torch.cat(parts)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel of uint8 pictures [n, C, H, W], in the 0 to 1 scale.

    Taken from the 256 counts of each channel, so they are exact and the same in any order of summation. A constant
    channel gets a deviation of 1/255: it is then only shifted.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.reshape(-1), minlength=256).double()
        share = counts / counts.sum()
        centre = (share * levels).sum()
        mean.append(centre.item())
        std.append(max((share * (levels - centre).square()).sum().sqrt().item(), 1 / 255))
    return tuple(mean), tuple(std)


def _check_arrays(what: str, images: Tensor, labels: Tensor, classes: int) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"{what}: pictures must be uint8 [n, 1 or 3, H, W]; got {images.dtype} {tuple(images.shape)}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{what}: labels must be int64 [{len(images)}], one a picture; got {labels.dtype} {tuple(labels.shape)}"
        )
    if len(images) == 0:
        raise UserError(f"{what}: there are no pictures")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"{what}: labels run from {int(labels.min())} to {int(labels.max())}, but there are {classes} classes "
            f"(0 to {classes - 1})"
        )
