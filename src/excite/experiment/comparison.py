"""What a comparison found, as plain data: in memory, and as ``comparison.json``."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from excite.errors import UserError
from excite.experiment.images import ImageLook
from excite.experiment.statistics import Difference, Summary
from excite.files import write_atomic

__all__ = ["PLAIN", "SCHEMA_VERSION", "Comparison", "GateResult", "Measured", "Run", "read_comparison"]

SCHEMA_VERSION = 1
"""Raised when a field of comparison.json changes its meaning or goes; new fields leave it as it is."""

PLAIN = "none"


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        gate: the gate's canonical string; "none" is plain.
        seed: its seed.
        folder: where it lies, relative to the comparison's folder.
        epochs: one row an epoch: epoch, train_loss, val_loss, val_top1, val_top5, learning_rate, seconds.
        final: the scores of the last epoch (never of the best: that would be chosen on the validation images).
        seconds: time it took to train, without what was interrupted.
    """

    gate: str
    seed: int
    folder: str
    epochs: list[dict[str, Any]]
    final: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One timing of a gate's network, in turns with plain's.

    Attributes:
        what: "inference" or "training step".
        device: "cpu", or the GPU's name.
        batch_size: images at once.
        precision: as in the recipe; inference is always timed in 32-true.
        p20_ms: a fifth of the calls was faster than this many milliseconds.
        p50_ms: half of the calls was.
        p80_ms: four fifths of the calls were.
        ratio: median over rounds of this network's time divided by plain's in the same round.
        ratio_p20: 20th percentile of those ratios.
        ratio_p80: 80th percentile.
        rounds: how often each network had its turn.
    """

    what: str
    device: str
    batch_size: int
    precision: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    ratio: float
    ratio_p20: float
    ratio_p80: float
    rounds: int


@dataclass(frozen=True)
class GateResult:
    """Everything found about one gate.

    Attributes:
        gate: its canonical string; "none" is plain.
        accuracy: final top-1 accuracy over the seeds (a fraction) with its interval.
        difference: to plain, paired by seed; None for plain itself.
        images: the same difference with the noise of the choice of validation images; None for plain, or without
            per-image results.
        parameters: learnable numbers of the whole network.
        macs: multiply-adds of one image.
        timings: measured in turns with plain; empty where nothing was measured.
    """

    gate: str
    accuracy: Summary
    difference: Difference | None
    images: ImageLook | None
    parameters: int | None = None
    macs: int | None = None
    timings: tuple[Measured, ...] = ()

    @property
    def label(self) -> str:
        """What a reader calls it: "plain" for "none"."""
        return "plain" if self.gate == PLAIN else self.gate

    def timing(self, what: str) -> Measured | None:
        """The timing of "inference" or "training step"; on a GPU where both were timed."""
        found = [t for t in self.timings if t.what == what]
        return min(found, key=lambda t: t.device == "cpu") if found else None


@dataclass(frozen=True)
class Comparison:
    """The result of ``compare``: what stands in ``comparison.json``.

    Attributes:
        verdict: the sentence that the numbers support.
        caveats: what a reader must know before acting on it.
        notes: what else happened (plain was added, images were skipped, a run diverged).
        config: the resolved settings.
        data: name, classes, images, image_size, in_channels, augmentation of what was trained on.
        level: coverage of the intervals.
        gates: one result a gate, plain first.
        runs: one entry a training run, in the order they were trained.
        complete: False where runs are still missing.
        versions: versions of what the numbers depend on.
        machine: what it ran on.
        created: when the result was written, ISO 8601 in UTC.
        folder: where it lies; not written to the file.
    """

    verdict: str
    caveats: tuple[str, ...]
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    level: float
    gates: tuple[GateResult, ...]
    runs: tuple[Run, ...]
    complete: bool
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    created: str
    schema_version: int = SCHEMA_VERSION
    folder: Path | None = field(default=None, compare=False)

    @property
    def plain(self) -> GateResult:
        """The network without gates."""
        return next(g for g in self.gates if g.gate == PLAIN)

    def runs_of(self, gate: str) -> list[Run]:
        """The runs of one gate, by seed."""
        return sorted((r for r in self.runs if r.gate == gate), key=lambda r: r.seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a number that is not finite becomes None, since JSON has none."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "folder"}
        return {"kind": "excite.comparison", "schema_version": values.pop("schema_version"), **_plain(values)}

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes ``comparison.json``, whole or not at all."""
        return write_atomic(path, json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_comparison(path: str | os.PathLike[str]) -> Comparison:
    """Reads ``comparison.json``, or the one in a comparison's folder.

    Raises:
        ValueError: no such file, not a comparison, or one of a schema this version does not know.
    """
    path = Path(path)
    path = path / "comparison.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `excite compare` writes one into its --out folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict) or values.pop("kind", None) != "excite.comparison":
        raise UserError(f"{path}: not a comparison; `excite compare` writes comparison.json")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version={values.get('schema_version')!r}; this version of excite reads {SCHEMA_VERSION}"
        )
    try:
        gates = tuple(_gate(g) for g in values.pop("gates"))
        runs = tuple(Run(**r) for r in values.pop("runs"))
        for name in ("caveats", "notes"):
            values[name] = tuple(values[name])
        return Comparison(**values, gates=gates, runs=runs, folder=path.parent)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: a damaged comparison ({error}); the same `excite compare` writes it anew") from None


def _gate(values: dict[str, Any]) -> GateResult:
    difference = Difference(**_tuples(values["difference"])) if values["difference"] else None
    images = ImageLook(**_tuples(values["images"])) if values["images"] else None
    return GateResult(
        **{k: v for k, v in values.items() if k not in ("accuracy", "difference", "images", "timings")},
        accuracy=Summary(**values["accuracy"]),
        difference=difference,
        images=images,
        timings=tuple(Measured(**t) for t in values["timings"]),
    )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
