"""Running means and deviations by class, exact however the images are split over batches, runs and ranks.

Kept for each class k and each channel are the count n, the mean and the sum of squared deviations from it, m2. Two
parts a and b of the images make (Chan, Golub and LeVeque 1979, Eq. 2.1)

    n    = n_a + n_b          d = mean_b - mean_a
    mean = mean_a + d n_b / n
    m2   = m2_a + m2_b + d^2 n_a n_b / n

No large sums are subtracted, so nothing cancels, of a million images no more than of ten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Of a standard deviation, as a share of the mean: a few roundings of float32.
_ROUNDING = 1e-6


@dataclass
class Moments:
    """Count, mean and centred sum of squares of each class.

    Attributes:
        count: images of each class, int64 [K].
        mean: their mean, float64 [K, C]; 0 where there is no image.
        m2: sum over them of (s - mean)^2, float64 [K, C].
    """

    count: Ints
    mean: Floats
    m2: Floats

    @classmethod
    def empty(cls, classes: int, channels: int) -> Moments:
        """Of no image."""
        shape = (classes, channels)
        return cls(np.zeros(classes, np.int64), np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(cls, s: Floats, labels: Ints, classes: int) -> Moments:
        """Of one part, in two passes.

        Args:
            s: [N, C].
            labels: the class of each row, int64 [N].
            classes: K.
        """
        part = cls.empty(classes, s.shape[1])
        part.add(s, labels)
        return part

    def add(self, s: Floats, labels: Ints) -> None:
        """Take in more images: s float64 [N, C], labels int64 [N]."""
        present, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
        chosen = np.zeros((len(present), len(s)))
        chosen[which, np.arange(len(s))] = 1
        mean = (chosen @ s) / counts[:, None]
        m2 = chosen @ np.square(s - mean[which])
        self._take_in(present, Moments(counts, mean, m2))

    def merged(self, other: Moments) -> Moments:
        """Of both parts; neither changes."""
        whole = Moments(self.count.copy(), self.mean.copy(), self.m2.copy())
        present = np.flatnonzero(other.count)
        whole._take_in(present, Moments(other.count[present], other.mean[present], other.m2[present]))
        return whole

    def pooled(self) -> Moments:
        """Of all images as one class: K is 1."""
        n = int(self.count.sum())
        share = self.count[:, None] / max(n, 1)
        mean = (share * self.mean).sum(0, keepdims=True)
        m2 = (self.m2 + self.count[:, None] * np.square(self.mean - mean)).sum(0, keepdims=True)
        return Moments(np.array([n]), mean, m2)

    def moving(self) -> NDArray[np.bool_]:
        """Which channels differ between images by more than float32 rounds, bool [C].

        What is constant in a network differs in its last bits between batches of other sizes.
        """
        whole = self.pooled()
        rounding = _ROUNDING * np.abs(whole.mean[0])
        return whole.m2[0] > int(whole.count[0]) * np.square(rounding)

    def _take_in(self, rows: Ints, part: Moments) -> None:
        before, more = self.count[rows][:, None], part.count[:, None]
        n = before + more
        apart = part.mean - self.mean[rows]
        self.mean[rows] += apart * (more / n)
        self.m2[rows] += part.m2 + np.square(apart) * (before * more / n)
        self.count[rows] += part.count
