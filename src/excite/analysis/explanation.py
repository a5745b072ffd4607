"""What `excite explain` found: every number of its page, JSON-able.

Shapes: K classes are shown, a row each, and one more row stands for all images; C channels of a gate.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Estimate", "Explanation", "Finding", "GateDetail", "GateSummary", "KnockedOut", "ShownImage"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: as measured.
        low: lower end of the interval; None where there is none.
        high: upper end, likewise.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Finding:
    """Whether something that the paper saw holds here.

    Attributes:
        name: "early gates are class-agnostic" and the like.
        holds: "yes", "no" or "undecided".
        why: the numbers, as part of a sentence.
    """

    name: str
    holds: Literal["yes", "no", "undecided"]
    why: str


@dataclass(frozen=True)
class KnockedOut:
    """What becomes of the network when one gate gives something else.

    Attributes:
        mode: "mean" (its mean over all images), "one" (1), or "shuffle" (what it gives for another image).
        loss: mean change of the cross-entropy over images, replaced less as it is: above 0, the gate helps.
        accuracy: change of the accuracy, a fraction: below 0, the gate helps.
        loss_p: chance of a change of the loss at least this large if there were none, after Holm's correction over all
            replacements.
        accuracy_p: the same of the accuracy.
    """

    mode: str
    loss: Estimate
    accuracy: Estimate
    loss_p: float
    accuracy_p: float


@dataclass(frozen=True)
class GateSummary:
    """One gate in a few numbers.

    Attributes:
        name: dotted name of the gate.
        block: the block it stands in.
        gate: its text.
        stage: counted from 1; 0 where it is not known.
        channels: C.
        mean: of s over images and channels.
        sd: how much s of a channel varies over images: root mean square of the channels' standard deviations.
        specificity: omega squared of the gate: the share of the variance of s over images that goes with the class,
            freed of what chance gives; its interval is over images. None where classes cannot be told apart.
        null_high: what 95 % of deals of the labels at random stay under.
        p_holm: chance of as large a value were labels dealt at random, after Holm's correction over the gates.
        near_low: share of all values of s near 0.
        near_high: share of all values near the gate function's largest value.
        near_constant: channels whose s hardly varies over images.
        dead: channels that are always near 0.
        always_open: channels that are always near the largest value.
        effective_rank: in how many directions s varies over images, at most C.
        knock_outs: by mode; empty where they were not measured.
    """

    name: str
    block: str
    gate: str
    stage: int
    channels: int
    mean: float
    sd: float
    specificity: Estimate | None
    null_high: float | None
    p_holm: float | None
    near_low: float
    near_high: float
    near_constant: int
    dead: int
    always_open: int
    effective_rank: float
    knock_outs: tuple[KnockedOut, ...] = ()

    @property
    def class_sd(self) -> Estimate:
        """How far class means of s lie apart: the standard deviation that goes with the class, sd times omega.

        Its interval is that of the specificity; how well ``sd`` itself is known is left out.
        """
        if self.specificity is None:
            return Estimate(0.0)
        ends = (self.specificity.value, self.specificity.low, self.specificity.high)
        value, low, high = (None if end is None else self.sd * max(end, 0.0) ** 0.5 for end in ends)
        return Estimate(value or 0.0, low, high)

    def knock_out(self, mode: str) -> KnockedOut | None:
        """What was measured under this mode; None where nothing was."""
        return next((k for k in self.knock_outs if k.mode == mode), None)


@dataclass(frozen=True)
class GateDetail:
    """One gate's curves, as the page draws them.

    Attributes:
        name: dotted name of the gate.
        range: the whole range of the gate function, or of what occurred where it has no end.
        mean: mean s, [K + 1][C].
        sd: standard deviation within each class, and over all images, [K + 1][C].
        histogram: "low", "high", and "shares" [K + 1][bins] of the sample's values.
        tops: a dict a channel: "channel", and "images", pairs of an image's index and its s, falling.
        shifts: by an image's index, its most unusual channels: triples of channel, s, and how many standard deviations
            from the channel's mean that is, falling.
    """

    name: str
    range: tuple[float, float]
    mean: list[list[float]]
    sd: list[list[float]]
    histogram: dict[str, Any]
    tops: list[dict[str, Any]]
    shifts: dict[int, list[tuple[int, float, float]]]


@dataclass(frozen=True)
class ShownImage:
    """One image that the page shows.

    Attributes:
        index: its place in the data.
        name: its file or number.
        label: its class, an index.
        predicted: what it was taken for; -1 where that is not known.
        loss: its cross-entropy; None where that is not known.
    """

    index: int
    name: str
    label: int
    predicted: int
    loss: float | None


@dataclass(frozen=True)
class Explanation:
    """What the gates of a network do on a set of images.

    Attributes:
        network: "name", and where it is known "gate" and "checkpoint".
        data: "name", "split", "images", "image_size" and the like; what is known.
        settings: how it was measured: seed, sample, level and the like.
        classes: names of all classes.
        class_images: images of each class.
        shown_classes: which of the classes are drawn, as indices: K of them.
        accuracy: of the network on these images; None where it gives no logits.
        loss: mean cross-entropy, likewise.
        summary: what the numbers support, a sentence each.
        findings: whether what the paper saw holds; empty where it could not be looked at.
        notes: what to know beside it, a sentence each.
        gates: in the order of execution.
        details: likewise.
        correlation: how alike two gates tell images apart, [gates][gates]; None for gates that never change.
        images: those shown, of whatever kind.
        listed: indices of the images to choose from.
        skipped: gates that could not be looked at, with the reason.
        versions, machine, created: where and when.
    """

    network: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    classes: tuple[str, ...]
    class_images: tuple[int, ...]
    shown_classes: tuple[int, ...]
    accuracy: float | None
    loss: float | None
    gates: tuple[GateSummary, ...]
    details: tuple[GateDetail, ...]
    correlation: tuple[tuple[float | None, ...], ...]
    images: tuple[ShownImage, ...]
    listed: tuple[int, ...]
    summary: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    folder: Path | None = field(default=None, compare=False)

    @property
    def level(self) -> float:
        """Coverage of the intervals."""
        return float(self.settings["level"])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the folder, JSON-able; numbers with five digits, which is more than was measured."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "folder"}
        return {"kind": "excite.explanation", "schema_version": SCHEMA_VERSION, **_plain(fields)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
