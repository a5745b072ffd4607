"""Turning batch after batch into a record, in memory that does not grow with the number of images (but for their list).

The sample is of the images with the smallest keys, and a key is a hash of the image's index or name: so it is a random
sample, the same one for every gate, order of images, size of batches and number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from excite.analysis.moments import Ints, Moments
from excite.analysis.record import GateRecord, Images, SiteRecord, largest, smallest
from excite.analysis.taps import Place
from excite.errors import UserError

__all__ = ["Accumulator", "image_keys"]

Keys = NDArray[np.uint64]


def image_keys(index: Ints, names: Sequence[str] | None, seed: int) -> Keys:
    """64 bits for each image, as good as random: of its name where it has one, else of its index."""
    if names is not None:
        digests = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in names]
        return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
    # splitmix64 (Steele, Lea and Flood 2014), a bijection: no two indices share a key.
    x = index.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Accumulator:
    """A record in the making.

    All gates' channels stand side by side in one matrix, so that a batch is taken in by a handful of operations.

    Args:
        places: the gates.
        classes: names of the classes.
        sample: how many images the sample may have.
        top_images: how many images to keep for each channel.
        seed: of the choice of the sample.
    """

    def __init__(
        self, places: Sequence[Place], classes: Sequence[str], *, sample: int, top_images: int, seed: int
    ) -> None:
        self.places, self.classes = tuple(places), tuple(classes)
        self.sample_size, self.top_images, self.seed = sample, top_images, seed
        widths = [place.channels for place in places]
        width = sum(widths)
        self._ends = np.cumsum(widths)
        self._low = np.repeat([place.low for place in places], widths).astype(np.float32)
        self._high = np.repeat([place.high for place in places], widths).astype(np.float32)
        self._moments = Moments.empty(len(classes), width)
        self._min, self._max = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
        self._near_low, self._near_high = np.zeros(width, np.int64), np.zeros(width, np.int64)
        self._images: list[Images] = []
        self._n = 0
        self._sample = _Sample(sample, width)
        self._tops = _Tops(top_images, width)

    def add(self, s: NDArray[np.float32], images: Images) -> None:
        """Take in a batch.

        Args:
            s: of all gates side by side, [N, sum of C].
            images: the batch's N images.

        Raises:
            ValueError: labels out of range, or numbers that are not finite.
        """
        self._check(s, images.label)
        rows = np.arange(self._n, self._n + len(s))
        self._moments.add(s.astype(np.float64), images.label)
        np.minimum(self._min, s.min(0), out=self._min)
        np.maximum(self._max, s.max(0), out=self._max)
        self._near_low += (s <= self._low).sum(0)
        self._near_high += (s >= self._high).sum(0)
        self._sample.add(s, images.key, rows)
        self._tops.add(s, images.key, rows)
        self._images.append(images)
        self._n += len(s)

    def finish(self, skipped: Sequence[tuple[str, str]] = ()) -> GateRecord:
        """The record of all that was added.

        Raises:
            ValueError: no image, or an image twice.
        """
        if not self._images:
            raise UserError("batches gave no image: nothing to record")
        images, places = Images.joined(self._images).ordered()
        _, first = np.unique(images.key, return_index=True)
        if len(first) < len(images):
            twice = np.setdiff1d(np.arange(len(images)), first)[0]
            raise UserError(f"image {images.index[twice]} comes twice: batches give each image once, unaugmented")
        sample, rows = self._sample.finish()
        order = np.argsort(places[rows])
        sample, sample_rows = sample[order], places[rows[order]]
        sites, start = [], 0
        for place, end in zip(self.places, self._ends, strict=True):
            sites.append(self._site(place, slice(start, int(end)), sample, places))
            start = int(end)
        return GateRecord(
            sites=tuple(sites),
            classes=self.classes,
            images=images,
            sample_rows=sample_rows,
            sample_size=self.sample_size,
            top_images=self.top_images,
            seed=self.seed,
            skipped=tuple(skipped),
        )

    def _site(self, place: Place, own: slice, sample: NDArray[np.float32], places: Ints) -> SiteRecord:
        return SiteRecord(
            name=place.name,
            gate=place.gate,
            stage=place.stage,
            label=place.label,
            range=place.range,
            low=place.low,
            high=place.high,
            count=self._moments.count.copy(),
            mean=self._moments.mean[:, own].copy(),
            m2=self._moments.m2[:, own].copy(),
            min=self._min[own].copy(),
            max=self._max[own].copy(),
            near_low=self._near_low[own].copy(),
            near_high=self._near_high[own].copy(),
            sample=sample[:, own].copy(),
            top_s=self._tops.s[:, own].copy(),
            top_rows=places[self._tops.rows[:, own]],
        )

    def _check(self, s: NDArray[np.float32], labels: Ints) -> None:
        classes = len(self.classes)
        if not (0 <= labels.min() and labels.max() < classes):
            raise UserError(
                f"labels run from {labels.min()} to {labels.max()}, but there are {classes} classes "
                f"(0 to {classes - 1})"
            )
        finite = np.isfinite(s).all(0)
        if not finite.all():
            place = self.places[int(np.searchsorted(self._ends, np.argmin(finite), "right"))]
            raise UserError(f"{place.name} gives numbers that are not finite: look at its weights and the images")


class _Sample:
    """The rows of the smallest keys."""

    def __init__(self, size: int, width: int) -> None:
        self.size = size
        self._s: list[NDArray[np.float32]] = [np.empty((0, width), np.float32)]
        self._keys: list[Keys] = [np.empty(0, np.uint64)]
        self._rows: list[Ints] = [np.empty(0, np.int64)]
        self._bound: np.uint64 | None = None  # once full, no larger key comes in
        self._held = 0

    def add(self, s: NDArray[np.float32], keys: Keys, rows: Ints) -> None:
        if self._bound is not None:
            inside = keys < self._bound
            s, keys, rows = s[inside], keys[inside], rows[inside]
        self._s.append(s)
        self._keys.append(keys)
        self._rows.append(rows)
        self._held += len(keys)
        # Not at each batch: throwing out copies what stays.
        if self._held > 2 * self.size:
            self._throw_out()

    def _throw_out(self) -> None:
        keys = np.concatenate(self._keys)
        chosen = smallest(keys, self.size)
        self._s, self._keys = [np.concatenate(self._s)[chosen]], [keys[chosen]]
        self._rows = [np.concatenate(self._rows)[chosen]]
        self._held = len(chosen)
        if len(chosen) == self.size and self.size:
            self._bound = self._keys[0].max()

    def finish(self) -> tuple[NDArray[np.float32], Ints]:
        """s [n, C] and the rows it is of."""
        self._throw_out()
        return self._s[0], self._rows[0]


class _Tops:
    """The largest numbers of each column, and where they were."""

    def __init__(self, top: int, width: int) -> None:
        self.top = top
        self.s = np.empty((0, width), np.float32)
        self.rows = np.empty((0, width), np.int64)
        self._keys = np.empty((0, width), np.uint64)

    def add(self, s: NDArray[np.float32], keys: Keys, rows: Ints) -> None:
        columns = np.arange(s.shape[1])
        if len(self.s) == self.top and self.top:
            # In the long run most columns of a batch have nothing that is larger.
            columns = np.flatnonzero(s.max(0) >= self.s[-1])
        new = s[:, columns]
        shape = new.shape
        all_s = np.concatenate([self.s[:, columns], new])
        all_keys = np.concatenate([self._keys[:, columns], np.broadcast_to(keys[:, None], shape)])
        all_rows = np.concatenate([self.rows[:, columns], np.broadcast_to(rows[:, None], shape)])
        order = largest(all_s, all_keys, self.top)
        kept = [np.take_along_axis(a, order, 0) for a in (all_s, all_keys, all_rows)]
        if len(order) > len(self.s):
            self.s, self._keys, self.rows = kept
        else:
            self.s[:, columns], self._keys[:, columns], self.rows[:, columns] = kept
