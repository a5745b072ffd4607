"""How far gates tell classes apart: omega squared, its interval, and what chance would give."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from excite.analysis.moments import Floats, Ints, Moments
from excite.analysis.record import GateRecord, SiteRecord
from excite.errors import UserError
from excite.significance import benjamini_hochberg, holm_adjust, normal_quantile

__all__ = ["Specificity", "omega_squared", "pooled_omega_squared", "specificity"]

# Channels, and numbers in all, that are added up at once under many deals of the labels.
_STRIP = 256
_NUMBERS = 400_000


def omega_squared(moments: Moments) -> Floats:
    """The share of a channel's variance that goes with the class, without the bias of the raw share (Hays 1963).

    With SSB = sum_k n_k (mean_k - mean)^2, SSW = sum_k m2_k, SST = SSB + SSW over n images of K classes (those that
    have images) and MSW = SSW / (n - K):

        omega^2 = (SSB - (K - 1) MSW) / (SST + MSW)

    The raw share SSB / SST grows with K by chance alone. omega^2 is about 0 where classes do not matter (and may fall
    below), and 1 where images of a class are all alike and classes are not.

    Returns:
        [C]; 0 for channels that never change, but for rounding; NaN with fewer than two classes, or no class of two
        images.
    """
    top, bottom = _omega_parts(moments)
    return np.divide(top, bottom, out=np.where(np.isnan(top), np.nan, 0.0), where=bottom > 0)


def pooled_omega_squared(moments: Moments) -> float:
    """omega^2 of a whole gate: both sides of the fraction added up over channels, which so weigh by their variance."""
    top, bottom = (float(part.sum()) for part in _omega_parts(moments))
    return top / bottom if bottom > 0 else 0.0 if bottom == 0 else bottom


def _omega_parts(moments: Moments) -> tuple[Floats, Floats]:
    there = moments.count > 0
    count, mean = moments.count[there][:, None], moments.mean[there]
    n, k = int(count.sum()), len(count)
    if k < 2 or n <= k:
        return np.full(mean.shape[1], np.nan), np.full(mean.shape[1], np.nan)
    between = (count * np.square(mean - (count * mean).sum(0) / n)).sum(0)
    within = moments.m2[there].sum(0)
    error = within / (n - k)
    moving = moments.moving()
    return moving * (between - (k - 1) * error), moving * (between + within + error)


@dataclass(frozen=True, eq=False)
class Specificity:
    """How far a gate tells classes apart.

    Attributes:
        site: name of the gate.
        omega2: omega^2 of the whole gate over all images, see ``pooled_omega_squared``.
        interval: of that, over images; NaN where it cannot be had.
        channels: omega^2 of each channel over all images, [C].
        sample_omega2: omega^2 of the whole gate in the sample, which the test is of.
        null_high: what 95 % of the sample's values with labels dealt at random stay under; NaN without deals.
        p: chance of a value as large as the sample's, were labels dealt to its images at random.
        p_holm: the same, corrected by Holm over the gates of the record.
        p_channels: of each channel, [C].
        q_channels: corrected by Benjamini and Hochberg over the gate's channels, [C].
        permutations: how often labels were dealt out; no p is below 1 / (permutations + 1).
    """

    site: str
    omega2: float
    interval: tuple[float, float]
    channels: Floats
    sample_omega2: float
    null_high: float
    p: float
    p_holm: float
    p_channels: Floats
    q_channels: Floats
    permutations: int


def specificity(
    record: GateRecord, *, permutations: int = 999, level: float = 0.95, seed: int = 0
) -> tuple[Specificity, ...]:
    """Class specificity of every gate, with an interval and a permutation test (Phipson and Smyth 2010).

    omega^2 is of all images. For p, labels are dealt to the images of the sample at random, B times, the same deals for
    all gates: ``p = (1 + #{B: omega^2 at least the sample's}) / (1 + B)``, which keeps its level exactly, whatever the
    distribution of s.

    The interval is normal, ``omega^2 +- z SE``, by linearisation: R = SSW / SST is a ratio of sums over images, of
    w_i = sum_c (s_ic - mean_kc)^2 and t_i = sum_c (s_ic - mean_c)^2, so that with n' images in the sample, n in all and
    ``omega^2 = 1 - R (n - 1) / (n - K)`` but for terms of 1 / n,

        SE = (n' - 1) / (n' - K) sqrt(sum_i (w_i - R t_i)^2) / sum_i t_i sqrt(n' / n)

    It is wide rather than narrow where omega^2 is near 0; for whether it is above 0, p is the answer.

    Args:
        record: of at least two classes.
        permutations: B; 0 for none (p is then 1).
        level: coverage of the intervals, each for itself.
        seed: of the deals.

    Returns:
        One for each gate, in the order of execution.

    Raises:
        ValueError: a negative number of permutations, or a level outside (0, 1).
    """
    if permutations < 0:
        raise UserError(f"permutations={permutations}: give 0 or more")
    labels = record.sample_labels
    rng = np.random.default_rng(seed)
    deals = np.stack([np.arange(len(labels)), *(rng.permutation(len(labels)) for _ in range(permutations))])
    found = [_specificity(site, labels, deals, level) for site in record.sites]
    adjusted = holm_adjust([item.p for item in found])
    return tuple(replace(item, p_holm=float(p)) for item, p in zip(found, adjusted, strict=True))


def _specificity(site: SiteRecord, labels: Ints, deals: Ints, level: float) -> Specificity:
    """All but the correction over gates."""
    s = site.sample.astype(np.float64)
    moments = Moments.of(s, labels, len(site.count))
    s = np.where(moments.moving(), s - moments.pooled().mean, 0)
    moments = Moments.of(s, labels, len(site.count))
    between = _between(s, labels, deals)
    whole, p_channels = between.sum(1), _tail_share(between)
    total, n, k = float(moments.pooled().m2.sum()), len(labels), int((moments.count > 0).sum())
    null_high = np.nan
    if len(deals) > 1 and n > k > 1 and total > 0:
        error = (total - whole[1:]) / (n - k)
        null_high = float(np.quantile((whole[1:] - (k - 1) * error) / (total + error), 0.95))
    omega2 = pooled_omega_squared(site.moments)
    half = normal_quantile(level) * _standard_error(s, moments, labels) * (n / site.n) ** 0.5
    return Specificity(
        site=site.name,
        omega2=omega2,
        interval=(omega2 - half, omega2 + half),
        channels=omega_squared(site.moments),
        sample_omega2=pooled_omega_squared(moments),
        null_high=null_high,
        p=float(_tail_share(whole)),
        p_holm=np.nan,
        p_channels=p_channels,
        q_channels=benjamini_hochberg(p_channels),
        permutations=len(deals) - 1,
    )


def _standard_error(s: Floats, moments: Moments, labels: Ints) -> float:
    """Of the pooled omega^2 of these images."""
    n, k = len(labels), int((moments.count > 0).sum())
    within, total = np.square(s - moments.mean[labels]).sum(1), np.square(s).sum(1)
    if not n > k > 1 or not total.sum() > 0:
        return np.nan
    apart = within - total * (within.sum() / total.sum())
    return float(np.sqrt(np.square(apart).sum()) / total.sum()) * (n - 1) / (n - k)


def _between(s: Floats, labels: Ints, deals: Ints) -> Floats:
    """SSB of each channel, centred, under each deal of the images to the labels' places, [deals, C].

    omega^2 rises with SSB, of one channel and pooled, since SST is the same for every deal.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    n, k = len(labels), len(counts)
    result = np.empty((len(deals), s.shape[1]))
    share = torch.from_numpy(1 / counts).float()[:, None]
    # Rows are added up class by class: of a strip of channels, which stays in a cache.
    for left in range(0, s.shape[1], _STRIP):
        strip = torch.from_numpy(s[:, left : left + _STRIP].astype(np.float32))
        at_once = max(1, _NUMBERS // (max(n, k) * strip.shape[1]))
        for start in range(0, len(deals), at_once):
            stack = deals[start : start + at_once][:, order]
            first = starts + n * np.arange(len(stack))[:, None]
            rows, offsets = torch.from_numpy(stack.ravel()), torch.from_numpy(first.ravel())
            sums = embedding_bag(rows, strip, offsets, mode="sum").view(len(stack), k, -1)
            result[start : start + at_once, left : left + _STRIP] = sums.square_().mul_(share).sum(1).numpy()
    return result


def _tail_share(values: Floats) -> Floats:
    """For each column, the share of rows at least as large as the first, which is one of them; rounding aside."""
    return (values >= values[0] * (1 - 1e-5)).mean(0)
