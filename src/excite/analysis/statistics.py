"""What a record says about gates: pure functions, each defined by its formula; ``specificity`` stands by itself.

s is the channel scale of a gate, one number a channel c and image i; k is an image's class. Statistics by class and of
single channels are exact, over all images of the record; those that look at channels together are of its sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from excite.analysis.moments import Floats, Ints
from excite.analysis.record import GateRecord, SiteRecord, smallest
from excite.errors import UserError
from excite.page import counted

__all__ = [
    "CONSTANT_SD",
    "Channels",
    "ClassMeans",
    "Opened",
    "Saturation",
    "class_means",
    "effective_rank",
    "kinds_of_channels",
    "opened",
    "saturation",
    "site_correlation",
    "z_scores",
]

Bools = NDArray[np.bool_]

CONSTANT_SD = 0.01
"""Standard deviation over images up to which a channel counts as nearly constant: a hundredth of a sigmoid's range."""


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
    s = (site.sample - site.overall_mean) * site.moments.moving()
    if len(s) < 2 or not s.any():
        return 0.0
    s -= s.mean(0)
    # Through the smaller Gram matrix: a fraction of the time, and precise far below what rounding of float32 leaves.
    gram = s.T @ s if s.shape[1] <= len(s) else s @ s.T
    values = np.sqrt(np.linalg.eigvalsh(gram).clip(0))
    # That rounding has directions of its own.
    values = values[values > max(s.shape) * np.finfo(np.float32).eps * values[-1]]
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
        raise UserError(f"{counted(n, 'image')}: correlation of gates needs at least 4 in the sample")
    chosen = smallest(record.images.key[record.sample_rows], n)
    grams = []
    for site in record.sites:
        s = (site.sample[chosen] - site.overall_mean) * site.moments.moving()
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
        [..., C]; 0 for channels that never change, but for rounding.
    """
    apart = s.astype(np.float64) - site.overall_mean
    return np.divide(apart, site.overall_sd, out=np.zeros_like(apart), where=site.moments.moving())


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
            f"image {index} is not in the sample of {counted(len(record.sample_rows), 'image')}: "
            "record with a larger sample"
        )
    chosen = record.sites if sites is None else [record.site(name) for name in sites]
    found = []
    for site in chosen:
        s = site.sample[place]
        z = z_scores(site, s)
        for channel in np.argsort(-np.abs(z), kind="stable")[:top]:
            found.append(Opened(site.name, int(channel), float(s[channel]), float(z[channel])))
    return found
