"""Whether a difference could be chance: tests on the same images, and corrections for asking many questions at once.

Pure functions of numbers, shared by everything that compares: trainings, gates with and without, networks before and
after.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from excite.errors import UserError

__all__ = [
    "ROUNDING",
    "benjamini_hochberg",
    "bootstrap_means",
    "holm_adjust",
    "mcnemar_p",
    "normal_quantile",
    "paired_p",
    "paired_proportions",
    "wilson_interval",
]

Floats = NDArray[np.float64]

ROUNDING = 1e-12
"""A spread or mean this far below the numbers it is of is rounding: accuracies are multiples of 1 / images."""


def holm_adjust(p: ArrayLike) -> Floats:
    """Holm's adjusted p values along the last axis (Holm 1979).

    With the p values in rising order, ``adjusted_(j) = max_{i<=j} min(1, (m - i + 1) * p_(i))``. Deciding every
    question whose adjusted p is at most alpha keeps the chance of any false decision at or under alpha, however the
    tests depend on each other (gates compared to one plain network do: all share it). A NaN (no test possible) counts
    as p = 1 for the others and stays NaN.

    Args:
        p: [..., m], one a question.

    Returns:
        adjusted p values [..., m].
    """
    given = np.asarray(p, dtype=np.float64)
    filled = np.where(np.isnan(given), 1.0, given)
    m = filled.shape[-1]
    order = np.argsort(filled, axis=-1, kind="stable")
    rising = np.take_along_axis(filled, order, -1) * np.arange(m, 0, -1)
    rising = np.minimum(np.maximum.accumulate(rising, axis=-1), 1.0)
    adjusted = np.empty_like(filled)
    np.put_along_axis(adjusted, order, rising, -1)
    return np.where(np.isnan(given), np.nan, adjusted)


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Benjamini and Hochberg's adjusted p values along the last axis (1995).

    With the p values in rising order, ``adjusted_(j) = min_{i>=j} min(1, p_(i) * m / i)``. Of the questions whose
    adjusted p is at most q, a share of at most q is decided falsely, on average, where tests are independent or
    positively dependent. Meant for many questions, channels say, of which a few false ones do no harm. A NaN counts as
    p = 1 for the others and stays NaN.

    Args:
        p: [..., m], one a question.

    Returns:
        adjusted p values [..., m].
    """
    given = np.asarray(p, dtype=np.float64)
    filled = np.where(np.isnan(given), 1.0, given)
    m = filled.shape[-1]
    order = np.argsort(filled, axis=-1, kind="stable")[..., ::-1]
    falling = np.take_along_axis(filled, order, -1) * (m / np.arange(m, 0, -1))
    falling = np.minimum(np.minimum.accumulate(falling, axis=-1), 1.0)
    adjusted = np.empty_like(filled)
    np.put_along_axis(adjusted, order, falling, -1)
    return np.where(np.isnan(given), np.nan, adjusted)


def paired_p(differences: ArrayLike) -> Floats:
    """Two-sided p values of the paired t test, along the last axis.

    ``t = mean / (sd / sqrt(n))`` and ``p = 2 * P(T_{n-1} > |t|)``. NaN where no test is possible: one pair, or equal
    differences that are not 0. Differences that are all exactly 0 give p = 1.

    Args:
        differences: [..., n], one minus the other, one a pair.

    Returns:
        p values [...].
    """
    from scipy import stats

    d = np.asarray(differences, dtype=np.float64)
    n = d.shape[-1]
    mean = d.mean(-1)
    if n < 2:
        return np.full(mean.shape, np.nan)
    sd = d.std(-1, ddof=1)
    flat = sd <= ROUNDING * np.maximum(1.0, np.abs(d).max(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean) / (sd / math.sqrt(n)), n - 1)
    return np.where(flat, np.where(np.abs(mean) <= ROUNDING, 1.0, np.nan), p)


def mcnemar_p(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p (McNemar 1947): of the images only one network has right, is it a fair coin?

    ``min(1, 2 * P(Binomial(gained + lost, 1/2) <= min(gained, lost)))``; 1 where no image tells the networks apart.
    """
    from scipy import stats

    if gained + lost == 0:
        return 1.0
    return min(1.0, 2 * float(stats.binom.cdf(min(gained, lost), gained + lost, 0.5)))


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), good for small n and shares near 0 and 1.

    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`` with ``p = successes / n``.
    """
    z = normal_quantile(level)
    p, spread = successes / n, z * z / n
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    low, high = (p + spread / 2 - half) / (1 + spread), (p + spread / 2 + half) / (1 + spread)
    return (0.0 if successes == 0 else low, 1.0 if successes == n else high)


def paired_proportions(both: int, first: int, second: int, neither: int, level: float = 0.95) -> tuple[float, float]:
    """Newcombe's interval of the difference of two proportions on the same images (Newcombe 1998, method 10).

    With p1 = (both + first) / n in [l1, u1], p2 = (both + second) / n in [l2, u2], Wilson's intervals, and d = p1 - p2,

        low  = d - sqrt((p1 - l1)^2 - 2 phi (p1 - l1) (u2 - p2) + (u2 - p2)^2)
        high = d + sqrt((u1 - p1)^2 - 2 phi (u1 - p1) (p2 - l2) + (p2 - l2)^2)

    phi being the correlation of the 2 x 2 table, with n / 2 taken off its numerator (down to 0) where that is positive.
    It is never of zero width: that no image differs does not prove that none would.

    Args:
        both: images both have right.
        first: images only the first has right.
        second: images only the second has right.
        neither: images neither has right.
        level: coverage.

    Returns:
        low and high of p1 - p2.

    Raises:
        ValueError: no image, or a level outside (0, 1).
    """
    n = both + first + second + neither
    if n < 1:
        raise UserError("no images: a difference of proportions needs at least one")
    _check_level(level)
    p1, p2 = (both + first) / n, (both + second) / n
    (l1, u1), (l2, u2) = (wilson_interval(both + k, n, level) for k in (first, second))
    phi = _phi(both, first, second, neither)

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    d = p1 - p2
    return d - distance(p1 - l1, u2 - p2), d + distance(u1 - p1, p2 - l2)


def _phi(both: int, first: int, second: int, neither: int) -> float:
    n = both + first + second + neither
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if margins == 0:
        return 0.0
    numerator = float(both * neither - first * second)
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    return numerator / math.sqrt(margins)


def bootstrap_means(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Percentile bootstrap intervals of means over images (Efron and Tibshirani 1993, Sec. 13.3).

    Images are drawn with replacement, ``resamples`` times; the interval runs between the (1 - level) / 2 and
    (1 + level) / 2 quantiles of the means. All columns share the draws, so what is paired stays paired.

    Args:
        values: [n], or [n, m] for m means at once.
        level: coverage.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        low and high, each of shape [] or [m].

    Raises:
        ValueError: no values, fewer than one resample, or a level outside (0, 1).
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 0 or resamples < 1:
        raise UserError(f"{len(x)} values, resamples={resamples}: a bootstrap needs at least one of each")
    _check_level(level)
    n = len(x)
    centre = x.mean(0)
    flat = (x - centre).reshape(n, -1)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, flat.shape[1]))
    at_once = max(1, 4_000_000 // n)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        draws = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n)
        means[start : start + rows] = weights @ flat / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return centre + low.reshape(centre.shape), centre + high.reshape(centre.shape)


def normal_quantile(level: float) -> float:
    """How many standard errors to each side an interval of this coverage takes: 1.96 for 0.95."""
    _check_level(level)
    return NormalDist().inv_cdf((1 + level) / 2)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"level={level}: a confidence level lies between 0 and 1, for example 0.95")
