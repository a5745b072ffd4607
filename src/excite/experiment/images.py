"""A second, separate look at a difference: the validation images instead of the seeds.

Every run is judged on the same validation images. An interval over seeds says how a difference would move with
another training; it is silent about another draw of images. This looks at the same runs the other way: the trained
networks are taken as they are, and the images as a random sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from excite.errors import UserError
from excite.significance import mcnemar_p

__all__ = ["ImageLook", "look_at_images"]


@dataclass(frozen=True)
class ImageLook:
    """A gate minus plain, paired by validation image, for these very trained networks.

    Attributes:
        images: number of validation images.
        seeds: number of pairs of networks the correctness of each image was averaged over.
        mean: mean difference in accuracy, a fraction; equal to the mean over the same seeds.
        gained: share of (image, seed) pairs that only the gate's network has right.
        lost: share that only plain's network has right; ``mean = gained - lost``.
        level: coverage of ``interval``.
        interval: Student-t interval of the mean over images; None where all images say the same.
        p: two-sided. One seed: McNemar's exact test. More: the paired t test over images.
    """

    images: int
    seeds: int
    mean: float
    gained: float
    lost: float
    level: float
    interval: tuple[float, float] | None
    p: float


def look_at_images(gate: ArrayLike, plain: ArrayLike, level: float = 0.95) -> ImageLook:
    """Difference in accuracy with the noise of the choice of validation images.

    With ``d_i`` the difference in correctness on image i, averaged over seeds (in [-1, 1]), the interval is
    ``mean(d) +- t(1 - (1 - level) / 2, n - 1) * sd(d) / sqrt(n)`` over the n images: images are independent
    draws, networks are fixed. It is one gate's own interval: no correction over gates.

    Args:
        gate: correctness [seeds, images] of the gate's networks, boolean.
        plain: correctness [seeds, images] of plain's networks for the same seeds and images.
        level: coverage of the interval.

    Raises:
        ValueError: shapes that differ, or fewer than 2 images.
    """
    a, b = np.asarray(gate, dtype=bool), np.asarray(plain, dtype=bool)
    if a.ndim != 2 or a.shape != b.shape or a.shape[0] < 1 or a.shape[1] < 2:
        raise UserError(
            f"correctness of shapes {a.shape} and {b.shape}: need the same [seeds, images], at least 2 images"
        )
    seeds, images = a.shape
    d = (a.astype(np.float64) - b).mean(0)
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    interval, p = None, 1.0
    if sd > 0:
        half = float(stats.t.ppf(1 - (1 - level) / 2, images - 1)) * sd / math.sqrt(images)
        interval = (mean - half, mean + half)
        p = float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(images)), images - 1))
    if seeds == 1:
        p = mcnemar_p(int((a & ~b).sum()), int((b & ~a).sum()))
    elif sd == 0 and mean != 0:  # every image the same way: a coin that always falls on one side
        p = mcnemar_p(images, 0)
    return ImageLook(
        images=images,
        seeds=seeds,
        mean=mean,
        gained=float((a & ~b).mean()),
        lost=float((b & ~a).mean()),
        level=level,
        interval=interval,
        p=p,
    )
