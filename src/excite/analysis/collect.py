"""From a record and what was knocked out to everything that the page says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from excite.analysis.class_specificity import Specificity, specificity
from excite.analysis.details import classes_to_show, gate_details, images_to_list
from excite.analysis.explanation import Estimate, Explanation, GateDetail, GateSummary, KnockedOut, ShownImage
from excite.analysis.knockout import KnockOuts
from excite.analysis.moments import Ints
from excite.analysis.record import GateRecord, SiteRecord
from excite.analysis.statistics import effective_rank, kinds_of_channels, saturation, site_correlation
from excite.analysis.summary import findings, notes, summary, too_few
from excite.errors import UserError, unknown
from excite.page import counted
from excite.timing import describe_machine
from excite.training.result import versions

__all__ = ["collected", "drawable", "only_sites"]


def only_sites(record: GateRecord, patterns: Sequence[str]) -> GateRecord:
    """The record of the gates whose names, or whose blocks', match any of the patterns; all without patterns.

    Raises:
        ValueError: a pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for site in record.sites for name in (site.name, site.label)):
            raise unknown("gate", pattern, [site.name for site in record.sites])
    kept = [s for s in record.sites if any(fnmatchcase(name, p) for p in patterns for name in (s.name, s.label))]
    return replace(record, sites=tuple(kept)) if patterns else record


def drawable(record: GateRecord, show_classes: Sequence[str] = ()) -> Ints:
    """The classes that a page draws, as indices.

    Raises:
        ValueError: fewer than four images in the sample, or classes that cannot be drawn.
    """
    if len(record.sample_rows) < 4:
        images = counted(len(record.sample_rows), "image")
        raise UserError(f"{images}: an explanation needs at least 4, and thousands to be worth it")
    return classes_to_show(record, show_classes)


def collected(
    record: GateRecord,
    knocked: KnockOuts | None,
    *,
    network: Mapping[str, Any],
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
    device: torch.device | str = "cpu",
    show_classes: Sequence[str] = (),
    permutations: int = 999,
    image_name: Callable[[int], str] | None = None,
) -> Explanation:
    """Everything that is to be said of a record.

    Args:
        record: of the network.
        knocked: what each of the record's gates is worth; None where it was not measured.
        network: for ``Explanation.network``.
        data: for ``Explanation.data``.
        settings: for ``Explanation.settings``; with "level" and "seed".
        device: where the network ran.
        show_classes: names of the classes to draw; none chooses.
        permutations: deals of the labels in the test of specificity; more where there are many gates, so that each can
            be told from chance after Holm's correction. 0 tests nothing.
        image_name: names an image that the record has no name for, by its index.

    Raises:
        ValueError: fewer than four images in the sample, or classes that cannot be drawn.
    """
    level = float(settings["level"])
    shown, listed = drawable(record, show_classes), images_to_list(record)
    # The smallest p is 1 / (deals + 1), and Holm's procedure multiplies it by the number of gates.
    deals = permutations and max(permutations, math.ceil(4 * len(record.sites) / (1 - level)))
    found = specificity(record, permutations=deals, level=level, seed=int(settings["seed"]))
    gates = tuple(_summary(site, of, knocked) for site, of in zip(record.sites, found, strict=True))
    details = gate_details(record, shown, listed)
    few = too_few(len(record.sample_rows), len(np.unique(record.sample_labels)), record.n)
    known = bool((record.images.predicted >= 0).all())
    explanation = Explanation(
        network=dict(network),
        data={**data, "images": record.n},
        settings=dict(settings),
        classes=record.classes,
        class_images=tuple(record.sites[0].count.tolist()),
        shown_classes=tuple(shown.tolist()),
        accuracy=record.accuracy if known else None,
        loss=float(record.images.loss.mean()) if known else None,
        gates=gates,
        details=details,
        correlation=_correlation(record),
        images=_images(record, listed, details, image_name),
        listed=tuple(listed.tolist()),
        summary=summary(gates, few),
        findings=findings(gates, few),
        skipped=record.skipped,
        versions=versions(),
        machine=describe_machine(device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(explanation, notes=notes(explanation))


def _summary(site: SiteRecord, of: Specificity, knocked: KnockOuts | None) -> GateSummary:
    kinds, ends = kinds_of_channels(site), saturation(site)
    testable = math.isfinite(of.omega2)
    return GateSummary(
        name=site.name,
        block=site.label or site.name,
        gate=site.gate,
        stage=site.stage,
        channels=site.channels,
        mean=float(site.overall_mean.mean()),
        sd=float(np.sqrt(np.square(site.overall_sd).mean())),
        specificity=Estimate(of.omega2, *map(_finite, of.interval)) if testable else None,
        null_high=_finite(of.null_high) if testable else None,
        p_holm=of.p_holm if testable and of.permutations else None,
        near_low=ends.mean_low,
        near_high=ends.mean_high,
        near_constant=int(kinds.constant.sum()),
        dead=int(kinds.dead.sum()),
        always_open=int(kinds.always_open.sum()),
        effective_rank=effective_rank(site),
        knock_outs=_knock_outs(site, knocked),
    )


def _knock_outs(site: SiteRecord, knocked: KnockOuts | None) -> tuple[KnockedOut, ...]:
    if knocked is None:
        return ()
    return tuple(
        KnockedOut(
            item.mode,
            Estimate(item.loss_change, *item.loss_interval),
            Estimate(item.accuracy_change, *item.accuracy_interval),
            item.loss_p_holm,
            item.accuracy_p_holm,
        )
        for item in knocked.items
        if item.site == site.name
    )


def _correlation(record: GateRecord) -> tuple[tuple[float | None, ...], ...]:
    alike = site_correlation(record)
    return tuple(tuple(map(_finite, row)) for row in alike.tolist())


def _images(
    record: GateRecord,
    listed: Ints,
    details: Sequence[GateDetail],
    image_name: Callable[[int], str] | None,
) -> tuple[ShownImage, ...]:
    """Those to choose from, then those that open a channel most."""
    wanted = dict.fromkeys(listed.tolist())
    wanted |= dict.fromkeys(index for d in details for top in d.tops for index, _ in top["images"])
    images = record.images
    shown = []
    for index in wanted:
        row = record.row_of(index)
        name = images.name[row] or (image_name(index) if image_name else f"image {index}")
        loss = float(images.loss[row])
        shown.append(ShownImage(index, name, int(images.label[row]), int(images.predicted[row]), _finite(loss)))
    return tuple(shown)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
