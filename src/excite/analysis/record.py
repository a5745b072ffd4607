"""What a network's gates did on a set of images: statistics by class, a sample, and who opened each channel most.

A record is made by ``record_gates`` image by image, so that it fits in memory for any number of images. Records of
different images add up to the record of all of them, whatever the split: ``merge`` for two, ``gathered`` over ranks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from excite.analysis.moments import Floats, Ints, Moments
from excite.errors import UserError, unknown
from excite.page import counted

__all__ = ["GateRecord", "Images", "SiteRecord", "largest", "smallest"]


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a record, one row each, in the order of ``index``.

    Attributes:
        index: place of each in its data set, int64 [n].
        key: 64 bits that tell it from all others, uint64 [n]; the smallest keys are the sample.
        name: file or other name of each, "" where none was given.
        label: class of each, int64 [n].
        predicted: likeliest class to the network, int64 [n]; -1 where the network gives no [N, K] logits.
        loss: cross-entropy of each, float64 [n]; NaN where the network gives no such logits.
    """

    index: Ints
    key: NDArray[np.uint64]
    name: tuple[str, ...]
    label: Ints
    predicted: Ints
    loss: Floats

    def __len__(self) -> int:
        return len(self.index)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each was classified rightly, bool [n]."""
        return self.predicted == self.label

    def taken(self, rows: Ints) -> Images:
        """Some of them, in this order."""
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "name"}
        return Images(name=tuple(self.name[row] for row in rows), **arrays)

    @staticmethod
    def joined(parts: Sequence[Images]) -> Images:
        """All of the first, then all of the second, and so on."""
        arrays = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in fields(Images)
            if f.name != "name"
        }
        return Images(name=tuple(name for part in parts for name in part.name), **arrays)

    def ordered(self) -> tuple[Images, Ints]:
        """These by rising index, and the new place of each.

        Images that have names were numbered as they came, in each record from 0: these are numbered anew, by name.
        """
        order = np.lexsort((self.key, self.index))
        numbered_anew = any(self.name) and len(np.unique(self.index)) < len(self)
        if numbered_anew:
            order = np.array(sorted(range(len(self)), key=self.name.__getitem__))
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        images = self.taken(order)
        return (replace(images, index=np.arange(len(order))) if numbered_anew else images), places


@dataclass(frozen=True, eq=False)
class SiteRecord:
    """What one gate did. K classes, C channels; s is the channel scale, one number a channel and image.

    Attributes:
        name: dotted name of the gate; with "#2" and so on where one gate runs several times.
        gate: the gate's text, or the name of its class where ``excite`` has no such gate.
        stage: counted from 1 by resolution, finest first, as in ``find_sites``; 0 where it is not known.
        label: the block it stands in.
        range: what the gate function can give: 0 to 1 for sigmoids, 0 to 2 in their neutral form, -1 to 1 for tanh, 0
            to infinity for ReLU.
        low: an s at or under it counts as near 0, the lower end: a twentieth of the range from it. Beyond it a sigmoid
            has under a fifth of its largest slope.
        high: an s at or over it counts as near 1, the upper end, likewise; infinite where there is no such end.
        count: images of each class, int64 [K].
        mean: mean s of each class, float64 [K, C]; 0 for classes without images.
        m2: sum over the class's images of (s - mean)^2, float64 [K, C].
        min: smallest s, float32 [C].
        max: largest s, float32 [C].
        near_low: images with s at or under ``low``, int64 [C].
        near_high: images with s at or over ``high``, int64 [C].
        sample: s of the images ``GateRecord.sample_rows``, float32 [n_sample, C].
        top_s: the largest s of each channel, falling, float32 [top, C].
        top_rows: the images they are of, as rows of ``GateRecord.images``, int64 [top, C].
    """

    name: str
    gate: str
    stage: int
    label: str
    range: tuple[float, float]
    low: float
    high: float
    count: Ints
    mean: Floats
    m2: Floats
    min: NDArray[np.float32]
    max: NDArray[np.float32]
    near_low: Ints
    near_high: Ints
    sample: NDArray[np.float32]
    top_s: NDArray[np.float32]
    top_rows: Ints

    @property
    def channels(self) -> int:
        """C."""
        return self.mean.shape[1]

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.count.sum())

    @property
    def moments(self) -> Moments:
        """Count, mean and m2 by class."""
        return Moments(self.count, self.mean, self.m2)

    @cached_property
    def overall_mean(self) -> Floats:
        """Mean s over all images, [C]."""
        return self.moments.pooled().mean[0]

    @cached_property
    def overall_sd(self) -> Floats:
        """Standard deviation (n - 1) of s over all images, [C]; 0 of one image."""
        return np.sqrt(self.moments.pooled().m2[0] / max(self.n - 1, 1))

    @cached_property
    def class_sd(self) -> Floats:
        """Standard deviation (n - 1) of s within each class, [K, C]; NaN for classes of fewer than two images."""
        df = np.where(self.count > 1, self.count - 1, np.nan)
        return np.sqrt(self.m2 / df[:, None])


@dataclass(frozen=True, eq=False)
class GateRecord:
    """What the gates of a network did on a set of images, see ``record_gates``.

    Attributes:
        sites: the gates, in the order of execution.
        classes: names of the K classes.
        images: all images, with labels and what the network made of them.
        sample_rows: the images of the sample, as rows of ``images``, int64 [n_sample], rising.
        sample_size: how many the sample may have.
        top_images: how many images are kept for each channel.
        seed: of the choice of the sample.
        skipped: gates that could not be recorded: name and reason.
        weights: digest of the network's parameters, see ``weights_digest``; "" where it is not known.
    """

    sites: tuple[SiteRecord, ...]
    classes: tuple[str, ...]
    images: Images
    sample_rows: Ints
    sample_size: int
    top_images: int
    seed: int
    skipped: tuple[tuple[str, str], ...] = field(default=())
    weights: str = ""

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def sample_labels(self) -> Ints:
        """Classes of the sample's images, int64 [n_sample]."""
        return self.images.label[self.sample_rows]

    @property
    def accuracy(self) -> float:
        """Share of images classified rightly."""
        return float(self.images.correct.mean())

    def site(self, name: str) -> SiteRecord:
        """The gate of this name.

        Raises:
            ValueError: there is none, with the nearest names.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise unknown("gate in this record", name, [site.name for site in self.sites])

    def row_of(self, index: int) -> int:
        """The row in ``images`` of the image with this index.

        Raises:
            ValueError: it is not among them.
        """
        row = int(np.searchsorted(self.images.index, index))
        if row == self.n or self.images.index[row] != index:
            raise UserError(f"image {index} is not among the {self.n} of this record")
        return row

    def merge(self, other: GateRecord) -> GateRecord:
        """The record of both sets of images, as if they had been recorded at once, in any order.

        Raises:
            ValueError: records of other gates, weights, classes, sample sizes or seeds; an image that is in both.
        """
        _check_alike(self, other)
        images, places = Images.joined([self.images, other.images]).ordered()
        rows = np.concatenate([self.sample_rows, other.sample_rows + self.n])
        chosen = smallest(images.key[places[rows]], self.sample_size)
        order = np.argsort(places[rows[chosen]])
        chosen, rows = chosen[order], places[rows[chosen[order]]]
        sites = [
            _merged_sites(one, two, images, places, self.n, chosen, self.top_images)
            for one, two in zip(self.sites, other.sites, strict=True)
        ]
        return replace(self, sites=tuple(sites), images=images, sample_rows=rows)

    def gathered(self) -> GateRecord:
        """The record of all ranks' images, the same on every rank; itself where there is one process.

        Every rank calls it, each with the record of its share of the images.

        Raises:
            ValueError: as ``merge``.
        """
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return self
        parts: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, self)
        return reduce(GateRecord.merge, parts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to one safetensors file, whole or not at all; the folder is made where missing."""
        from excite.analysis.files import save_record

        return save_record(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> GateRecord:
        """Read what ``save`` wrote; no code is executed from the file.

        Raises:
            ValueError: no such file, or no record.
        """
        from excite.analysis.files import load_record

        return load_record(path)


def smallest(keys: NDArray[np.uint64], count: int) -> Ints:
    """Places of the ``count`` smallest keys, rising."""
    if len(keys) <= count:
        return np.arange(len(keys))
    return np.sort(np.argpartition(keys, count)[:count])


def largest(s: NDArray[np.float32], key: NDArray[np.uint64], top: int) -> Ints:
    """Places [top, C] of the largest s of each column, falling; of equal ones the smallest key comes first.

    Args:
        s: [m, C].
        key: of each row's or each number's image, [m, 1] or [m, C].
        top: how many, at most.
    """
    return np.lexsort((np.broadcast_to(key, s.shape), -s), axis=0)[:top]


def _check_alike(one: GateRecord, other: GateRecord) -> None:
    for what in ("classes", "sample_size", "top_images", "seed"):
        a, b = getattr(one, what), getattr(other, what)
        if a != b:
            raise UserError(f"records with {what}={a!r} and {b!r} do not add up: record both with the same")
    names = [[(site.name, site.channels) for site in record.sites] for record in (one, other)]
    if names[0] != names[1]:
        odd = next((pair for pair in zip(*names, strict=False) if pair[0] != pair[1]), names)
        raise UserError(f"records of different networks do not add up: their gates differ, {odd[0]} and {odd[1]}")
    if one.weights and other.weights and one.weights != other.weights:
        raise UserError("records of different networks do not add up: their gates are the same, their weights are not")
    both = np.intersect1d(one.images.key, other.images.key)
    if len(both):
        row = int(np.flatnonzero(one.images.key == both[0])[0])
        raise UserError(
            f"image {one.images.index[row]} is in both records, {counted(len(both), 'image')} in all: give each image "
            "to one of them, with its index in the data set"
        )


def _merged_sites(
    one: SiteRecord, two: SiteRecord, images: Images, places: Ints, n_one: int, chosen: Ints, top: int
) -> SiteRecord:
    whole = one.moments.merged(two.moments)
    top_s = np.concatenate([one.top_s, two.top_s])
    top_rows = places[np.concatenate([one.top_rows, two.top_rows + n_one])]
    order = largest(top_s, images.key[top_rows], top)
    return replace(
        one,
        count=whole.count,
        mean=whole.mean,
        m2=whole.m2,
        min=np.minimum(one.min, two.min),
        max=np.maximum(one.max, two.max),
        near_low=one.near_low + two.near_low,
        near_high=one.near_high + two.near_high,
        sample=np.concatenate([one.sample, two.sample])[chosen],
        top_s=np.take_along_axis(top_s, order, 0),
        top_rows=np.take_along_axis(top_rows, order, 0),
    )
