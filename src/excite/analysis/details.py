"""A record in the form that the page draws: some classes' curves, and some images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from excite.analysis.explanation import GateDetail
from excite.analysis.moments import Floats, Ints
from excite.analysis.record import GateRecord, SiteRecord
from excite.analysis.statistics import opened
from excite.errors import UserError, unknown
from excite.page import counted

__all__ = ["CLASSES", "classes_to_show", "gate_details", "images_to_list"]

CLASSES = 20
"""How many classes are drawn at most."""
LISTED = 60
"""How many images there are to choose from."""
BINS = 48
_TOP_CHANNELS = 6
_TOP_IMAGES = 6
_SHIFTED = 12
_NARROW = 1e-4
# Two curves a class, 16 bits in base64 a number: so many numbers are about 2 MB of a page.
_NUMBERS = 800_000


def classes_to_show(record: GateRecord, wanted: Sequence[str] = ()) -> Ints:
    """The classes to draw, as indices: those named, or else all with two images, evenly thinned out where too many.

    Raises:
        ValueError: a name that is no class, or a class without two images, too many, or none.
    """
    count = record.sites[0].count
    channels = sum(site.channels for site in record.sites)
    most = max(1, min(CLASSES, _NUMBERS // (2 * channels) - 1))
    if wanted:
        for name in wanted:
            if name not in record.classes:
                raise unknown("class", name, record.classes)
        chosen = np.array([record.classes.index(name) for name in dict.fromkeys(wanted)])
        if len(chosen) > most:
            raise UserError(f"show_classes: {len(chosen)} classes named; with these gates a page holds at most {most}")
        bare = [record.classes[k] for k in chosen if count[k] < 2]
        if bare:
            images = counted(int(count[record.classes.index(bare[0])]), "image")
            raise UserError(f"show_classes: {bare[0]!r} has {images} here: give classes of two or more")
        return chosen
    there = np.flatnonzero(count > 1)
    if not len(there):
        raise UserError(f"no class has two images among these {record.n}: give more images")
    if len(there) <= most:
        return there
    return there[np.linspace(0, len(there) - 1, most).round().astype(np.int64)]


def images_to_list(record: GateRecord) -> Ints:
    """Images of the sample to choose from, as indices: the worst mistakes, a third at most, then classes by turns."""
    images, rows = record.images, record.sample_rows
    wrong = rows[(images.predicted[rows] >= 0) & ~images.correct[rows]]
    worst = wrong[np.argsort(-images.loss[wrong], kind="stable")][: LISTED // 3]
    others = rows[~np.isin(rows, worst)]
    order = np.argsort(images.label[others], kind="stable")
    labels = images.label[others][order]
    # The first of each class, then the second of each, and so on.
    turn = np.arange(len(labels)) - np.searchsorted(labels, labels)
    spread = others[order][np.argsort(turn, kind="stable")][: LISTED - len(worst)]
    return images.index[np.concatenate([worst, spread])]


def gate_details(record: GateRecord, shown: Ints, listed: Ints) -> tuple[GateDetail, ...]:
    """The curves of every gate.

    Args:
        record: of the network.
        shown: the classes to draw.
        listed: indices of the images to choose from, all in the sample.
    """
    top = max(1, min(_TOP_CHANNELS, 100 // len(record.sites)))
    shifts: dict[str, dict[int, list[tuple[int, float, float]]]] = {site.name: {} for site in record.sites}
    for index in listed.tolist():
        for found in opened(record, index, top=_SHIFTED):
            shifts[found.site].setdefault(index, []).append((found.channel, found.s, found.z))
    for by_image in shifts.values():
        for triples in by_image.values():
            triples.sort(key=lambda t: -t[2])
    return tuple(_detail(record, site, shown, shifts[site.name], top) for site in record.sites)


def _detail(
    record: GateRecord,
    site: SiteRecord,
    shown: Ints,
    shifts: dict[int, list[tuple[int, float, float]]],
    top: int,
) -> GateDetail:
    return GateDetail(
        name=site.name,
        range=_range(site),
        mean=np.vstack([site.mean[shown], site.overall_mean]).tolist(),
        sd=np.vstack([site.class_sd[shown], site.overall_sd]).tolist(),
        histogram=_histogram(site, record.sample_labels, shown),
        tops=_tops(record, site, top),
        shifts=shifts,
    )


def _range(site: SiteRecord) -> tuple[float, float]:
    """The gate function's ends; where it has none, what occurred."""
    ends = zip(site.range, (float(site.min.min()), float(site.max.max())), strict=True)
    low, high = (end if math.isfinite(end) else seen for end, seen in ends)
    return low, high if high > low else low + 1e-6


def _histogram(site: SiteRecord, labels: Ints, shown: Ints) -> dict[str, object]:
    low, high = float(site.sample.min()), float(site.sample.max())
    if high - low < _NARROW:  # bins that float32 could not tell apart
        low, high = (low + high - _NARROW) / 2, (low + high + _NARROW) / 2

    def shares(values: NDArray[np.float32]) -> list[float]:
        counts: Floats = np.histogram(values.astype(np.float64), BINS, (low, high))[0] / max(values.size, 1)
        return counts.tolist()

    rows = [shares(site.sample[labels == k]) for k in shown]
    return {"low": low, "high": high, "shares": [*rows, shares(site.sample)]}


def _tops(record: GateRecord, site: SiteRecord, channels: int) -> list[dict[str, object]]:
    """The channels that vary most over images, with the images that open them most."""
    if not len(site.top_rows):
        return []
    return [
        {
            "channel": int(c),
            "images": [
                (int(record.images.index[row]), float(s))
                for row, s in zip(site.top_rows[:_TOP_IMAGES, c], site.top_s[:_TOP_IMAGES, c], strict=True)
                if row >= 0
            ],
        }
        for c in np.argsort(-site.overall_sd, kind="stable")[:channels]
    ]
