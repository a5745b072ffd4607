"""What a record says about gates: pure functions, each defined by its formula.

s is the channel scale of a gate, one number a channel c and image i; k is an image's class. Statistics by class and of
single channels are exact, over all images of the record; those that look at channels together, and tests by
permutation, are of its sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from excite.analysis.moments import Floats, Ints, Moments
from excite.analysis.record import GateRecord, SiteRecord, smallest
from excite.errors import UserError
from excite.significance import benjamini_hochberg, holm_adjust

__all__ = [
    "CONSTANT_SD",
    "Channels",
    "ClassMeans",
    "Opened",
    "Saturation",
    "Specificity",
    "class_means",
    "effective_rank",
    "kinds_of_channels",
    "omega_squared",
    "opened",
    "pooled_omega_squared",
    "saturation",
    "site_correlation",
    "specificity",
    "z_scores",
]

Bools = NDArray[np.bool_]

CONSTANT_SD = 0.01
"""Standard deviation over images up to which a channel counts as nearly constant: a hundredth of a sigmoid's range."""

# Permuted label matrices are multiplied in stacks, as far as this many numbers hold.
_STACK = 4_000_000
# From so many classes on, adding rows up beats multiplying by a matrix that is nearly all zeros.
_MANY_CLASSES = 64


@dataclass(frozen=True, eq=False)
class ClassMeans:
    """The paper's curves (arXiv 1709.01507, Fig. 6 and 7).

    Attributes:
        mean: mean s of each class and channel, [K, C]; NaN for classes without images.
        sd: standard deviation (n - 1) of s within the class, [K, C]; NaN under two images.
        count: images of each class, [K].
    """

    mean: Floats
    sd: Floats
    count: Ints


def class_means(site: SiteRecord) -> ClassMeans:
    """Mean s by class and channel with the deviation within the class.

    ``mean_kc = sum_{i in k} s_ic / n_k`` and ``sd_kc = sqrt(sum_{i in k} (s_ic - mean_kc)^2 / (n_k - 1))``.
    """
    mean = np.where(site.count[:, None] > 0, site.mean, np.nan)
    return ClassMeans(mean, site.class_sd, site.count)


# --- class specificity ---


def omega_squared(moments: Moments) -> Floats:
    """The share of a channel's variance that goes with the class, without the bias of the raw share (Hays 1963).

    With SSB = sum_k n_k (mean_k - mean)^2, SSW = sum_k m2_k, SST = SSB + SSW over n images of K classes (those that
    have images) and MSW = SSW / (n - K):

        omega^2 = (SSB - (K - 1) MSW) / (SST + MSW)

    The raw share SSB / SST grows with K by chance alone. omega^2 is about 0 where classes do not matter (and may fall
    below), and 1 where images of a class are all alike and classes are not.

    Returns:
        [C]; 0 for channels that never change; NaN with fewer than two classes, or no class of two images.
    """
    top, bottom = _omega_parts(moments)
    return np.divide(top, bottom, out=np.where(np.isnan(top), np.nan, 0.0), where=bottom > 0)


def pooled_omega_squared(moments: Moments) -> float:
    """omega^2 of a whole gate: both sides of the fraction added up over channels, which so weigh by their variance."""
    top, bottom = (float(part.sum()) for part in _omega_parts(moments))
    return top / bottom if bottom > 0 else (top if np.isnan(top) else 0.0)


def _omega_parts(moments: Moments) -> tuple[Floats, Floats]:
    there = moments.count > 0
    count, mean = moments.count[there][:, None], moments.mean[there]
    n, k = int(count.sum()), len(count)
    if k < 2 or n <= k:
        return np.full(mean.shape[1], np.nan), np.full(mean.shape[1], np.nan)
    between = (count * np.square(mean - (count * mean).sum(0) / n)).sum(0)
    within = moments.m2[there].sum(0)
    error = within / (n - k)
    return between - (k - 1) * error, between + within + error


@dataclass(frozen=True, eq=False)
class Specificity:
    """How far a gate tells classes apart.

    Attributes:
        site: name of the gate.
        omega2: omega^2 of the whole gate, see ``pooled_omega_squared``.
        channels: omega^2 of each channel, [C].
        p: chance of a pooled value as large as the sample's, were labels dealt to its images at random.
        p_holm: the same, corrected by Holm over the gates of the record.
        p_channels: of each channel, [C].
        q_channels: corrected by Benjamini and Hochberg over the gate's channels, [C].
        permutations: how often labels were dealt out; no p is below 1 / (permutations + 1).
    """

    site: str
    omega2: float
    channels: Floats
    p: float
    p_holm: float
    p_channels: Floats
    q_channels: Floats
    permutations: int


def specificity(record: GateRecord, *, permutations: int = 999, seed: int = 0) -> tuple[Specificity, ...]:
    """Class specificity of every gate, with a permutation test (Phipson and Smyth 2010).

    omega^2 is of all images. For p, labels are dealt to the images of the sample at random, B times, the same deals for
    all gates: ``p = (1 + #{B: omega^2 at least the sample's}) / (1 + B)``, which keeps its level exactly, whatever the
    distribution of s.

    Args:
        record: of at least two classes.
        permutations: B; 0 for none (p is then 1).
        seed: of the deals.

    Returns:
        One for each gate, in the order of execution.
    """
    if permutations < 0:
        raise UserError(f"permutations={permutations}: give 0 or more")
    labels = record.sample_labels
    rng = np.random.default_rng(seed)
    deals = np.stack([np.arange(len(labels)), *(rng.permutation(len(labels)) for _ in range(permutations))])
    found = []
    for site in record.sites:
        between = _between(site.sample, labels, deals)
        found.append((_tail_share(between.sum(1, keepdims=True)).item(), _tail_share(between)))
    adjusted = holm_adjust([p for p, _ in found]) if found else ()
    return tuple(
        Specificity(
            site=site.name,
            omega2=pooled_omega_squared(site.moments),
            channels=omega_squared(site.moments),
            p=p,
            p_holm=float(p_holm),
            p_channels=p_channels,
            q_channels=benjamini_hochberg(p_channels),
            permutations=permutations,
        )
        for site, (p, p_channels), p_holm in zip(record.sites, found, adjusted, strict=True)
    )


def _between(sample: NDArray[np.float32], labels: Ints, deals: Ints) -> Floats:
    """SSB of each channel under each deal of the images to the labels' places, [deals, C].

    omega^2 rises with SSB, of one channel and pooled, since SST is the same for every deal.
    """
    s = sample.astype(np.float64)
    s -= s.mean(0) if len(s) else 0
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    weights = 1 / np.sqrt(counts)
    result = np.empty((len(deals), s.shape[1]))
    if len(counts) > _MANY_CLASSES:
        for i, deal in enumerate(deals):
            sums = np.add.reduceat(s[deal[order]], starts) * weights[:, None]
            result[i] = np.square(sums).sum(0)
        return result
    k, which = len(counts), np.searchsorted(starts, np.argsort(order), "right") - 1
    at_once = max(1, _STACK // max(k * max(s.shape), 1))
    for start in range(0, len(deals), at_once):
        stack = deals[start : start + at_once]
        chosen = np.zeros((len(stack), k, len(s)))
        # Image deal[j] has the label of place j.
        chosen[np.arange(len(stack))[:, None], which, stack] = weights[which]
        sums = (chosen.reshape(-1, len(s)) @ s).reshape(len(stack), k, -1)
        result[start : start + at_once] = np.square(sums).sum(1)
    return result


def _tail_share(values: Floats) -> Floats:
    """For each column, the share of rows at least as large as the first, which is one of them; rounding aside."""
    return (values >= values[0] * (1 - 1e-12)).mean(0)


# --- saturation, and channels that do nothing ---


@dataclass(frozen=True, eq=False)
class Saturation:
    """How often a gate is near its ends.

    Attributes:
        low: share of images with s at or under ``SiteRecord.low``, by channel, [C].
        high: share of images with s at or over ``SiteRecord.high``, by channel, [C].
        mean_low: share of all numbers s of the gate that are near its lower end.
        mean_high: share near its upper end.
    """

    low: Floats
    high: Floats
    mean_low: float
    mean_high: float


def saturation(site: SiteRecord) -> Saturation:
    """Shares of images near the ends of the gate function: ``near_low / n`` and ``near_high / n``."""
    low, high = site.near_low / site.n, site.near_high / site.n
    return Saturation(low, high, float(low.mean()), float(high.mean()))


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels of a gate that do the same for every image, or nearly.

    Attributes:
        constant: s has a standard deviation over all images of at most ``bound``, bool [C].
        dead: s is near its lower end for every image (largest s at most ``SiteRecord.low``), bool [C].
        always_open: s is near its upper end for every image (smallest s at least ``SiteRecord.high``), bool [C].
        bound: of ``constant``.
    """

    constant: Bools
    dead: Bools
    always_open: Bools
    bound: float


def kinds_of_channels(site: SiteRecord, *, bound: float = CONSTANT_SD) -> Channels:
    """Which channels are nearly constant, dead, or always open; a channel may be several of these.

    Args:
        site: what the gate did.
        bound: standard deviation over images up to which a channel is nearly constant.
    """
    if bound < 0:
        raise UserError(f"bound={bound}: a standard deviation is 0 or more")
    return Channels(site.overall_sd <= bound, site.max <= site.low, site.min >= site.high, bound)


# --- channels together ---


def effective_rank(site: SiteRecord) -> float:
    """In how many directions s moves over images (Roy and Vetterli 2007).

    ``exp(-sum_j q_j ln q_j)`` with q_j the singular values of the sample, centred by channel, over their sum. 1 where
    all channels rise and fall together, C where they move independently and equally; 0 where none moves. It is at most
    one less than the number of images in the sample.
    """
    s = site.sample.astype(np.float64)
    if len(s) < 2:
        return 0.0
    values = np.linalg.svd(s - s.mean(0), compute_uv=False)
    # A sample of float32 moves by rounding alone up to here.
    values = values[values > max(s.shape) * np.finfo(np.float32).eps * np.abs(s).max()]
    if not len(values):
        return 0.0
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def site_correlation(record: GateRecord, *, images: int = 1000) -> Floats:
    """How alike gates order images: debiased linear CKA between their samples (Kornblith et al. 2019).

    Two gates of other channels are compared by which pairs of images they treat alike. With K = S S^T for S [n, C], the
    sample centred by channel, with its diagonal set to 0, and (Song et al. 2012, Eq. 5)

        H(K, L) = (tr(K L) + sum(K) sum(L) / ((n - 1) (n - 2)) - 2 sum(K L) / (n - 2)) / (n (n - 3))
        correlation = H(K, L) / sqrt(H(K, K) H(L, L))

    1: the same up to rotation and scale; about 0: unrelated, whatever n and C, and it may fall below.

    Args:
        record: with at least 4 images in its sample.
        images: how many of the sample's images to use, at random; n^2 numbers are held for each gate.

    Returns:
        [sites, sites], symmetric, 1 on the diagonal; NaN for gates that never change.

    Raises:
        ValueError: fewer than 4 images.
    """
    n = min(images, len(record.sample_rows))
    if n < 4:
        raise UserError(f"{n} images: correlation of gates needs at least 4 in the sample")
    chosen = smallest(record.images.key[record.sample_rows], n)
    grams = []
    for site in record.sites:
        s = site.sample[chosen].astype(np.float64)
        s -= s.mean(0)
        gram = s @ s.T
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    h = np.empty((len(grams), len(grams)))
    for i, one in enumerate(grams):
        for j, other in enumerate(grams[: i + 1]):
            h[i, j] = h[j, i] = _unbiased_hsic(one, other)
    scale = np.sqrt(np.where(np.diag(h) > 0, np.diag(h), np.nan))
    return h / scale / scale[:, None]


def _unbiased_hsic(k: Floats, el: Floats) -> float:
    n = len(k)
    sums = k.sum(0), el.sum(0)
    crossed = (k * el).sum() + sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2)) - 2 * (sums[0] @ sums[1]) / (n - 2)
    return float(crossed / (n * (n - 3)))


# --- one image ---


def z_scores(site: SiteRecord, s: NDArray[np.float32]) -> Floats:
    """How unusual s is for each channel: ``(s - mean) / sd``, mean and deviation over all images of the record.

    Args:
        site: what the gate did.
        s: [..., C].

    Returns:
        [..., C]; 0 for channels that never change.
    """
    sd = site.overall_sd
    apart = s.astype(np.float64) - site.overall_mean
    return np.divide(apart, sd, out=np.zeros_like(apart), where=sd > 0)


@dataclass(frozen=True)
class Opened:
    """A channel that an image opened, or closed, more than others do.

    Attributes:
        site: name of the gate.
        channel: counted from 0.
        s: its scale.
        z: in standard deviations from its mean over all images; above 0 is opened.
    """

    site: str
    channel: int
    s: float
    z: float


def opened(record: GateRecord, index: int, *, top: int = 5, sites: Sequence[str] | None = None) -> list[Opened]:
    """The channels that an image opened or closed most, by |z|, gate by gate.

    Args:
        record: of the network.
        index: the image's, as in ``record.images.index``; it has to be in the sample.
        top: how many channels of each gate.
        sites: names of gates; None for all.

    Raises:
        ValueError: an image that is not in the record or not in its sample; a gate that is not there.
    """
    row = record.row_of(index)
    place = int(np.searchsorted(record.sample_rows, row))
    if place == len(record.sample_rows) or record.sample_rows[place] != row:
        raise UserError(
            f"image {index} is not in the sample of {len(record.sample_rows)} images: record with a larger sample"
        )
    chosen = record.sites if sites is None else [record.site(name) for name in sites]
    found = []
    for site in chosen:
        s = site.sample[place]
        z = z_scores(site, s)
        for channel in np.argsort(-np.abs(z), kind="stable")[:top]:
            found.append(Opened(site.name, int(channel), float(s[channel]), float(z[channel])))
    return found
