"""What the page's script draws from: curves packed as 16-bit numbers, pictures, and what single images opened."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from excite.analysis.explanation import Explanation, GateDetail
from excite.analysis.thumbnails import Thumbnail
from excite.page import Series

__all__ = ["ALL", "live_data", "packed"]

ALL = "all"
"""The key of the series of all images."""


def live_data(e: Explanation, series: Mapping[str, Series], pictures: Mapping[int, Thumbnail]) -> dict[str, Any]:
    """The data of ``assets/explain.js``.

    Args:
        e: what was found.
        series: the style of each shown class, by "c0" and so on in their order, and of ``ALL``.
        pictures: by an image's index; those without one are shown without.
    """
    images = {}
    for image in e.images:
        facts = {"name": image.name, "label": image.label, "predicted": image.predicted, "loss": image.loss}
        if image.index in pictures:
            facts |= {"thumb": pictures[image.index].uri, "small": pictures[image.index].small}
        images[str(image.index)] = facts
    return {
        "classes": [_styled(series[f"c{k}"]) for k in range(len(e.shown_classes))],
        "all": _styled(series[ALL]),
        "names": list(e.classes),
        "gates": [_gate(detail) for detail in e.details],
        "images": images,
        "listed": list(e.listed),
    }


def _styled(s: Series) -> dict[str, str]:
    return {"key": s.key, "name": s.label, "color": s.color, "dash": s.dash, "symbol": s.symbol}


def _gate(detail: GateDetail) -> dict[str, Any]:
    histogram = detail.histogram
    return {
        "channels": len(detail.mean[0]),
        "range": list(detail.range),
        "mean": packed(np.array(detail.mean)),
        "sd": packed(np.array(detail.sd)),
        "histogram": {**histogram, "shares": [[round(v, 5) for v in row] for row in histogram["shares"]]},
        "tops": [
            {"channel": t["channel"], "images": [[str(i), round(s, 4)] for i, s in t["images"]]} for t in detail.tops
        ],
        "shifts": {str(i): [[c, round(s, 4), round(z, 2)] for c, s, z in found] for i, found in detail.shifts.items()},
    }


def packed(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    """Numbers as 16 bits each in base64, in steps of 1/65535 of their range."""
    low, high = float(values.min()), float(values.max())
    steps = np.round((values - low) * (65535 / ((high - low) or 1.0))).astype("<u2")
    return {"low": low, "high": high, "bits": base64.b64encode(steps.tobytes()).decode()}
