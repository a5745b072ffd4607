"""``slim``: gates that hardly look at the image become constants and are folded away, within a given fall of accuracy.

The choice is made on calibration images alone: each gate's mean over them, what becomes of the loss when that stands in
its place, and what its removal saves. Gates go one after the other, those first that cost least for what they save,
and after each the accuracy with all of them gone is measured again. Validation images are looked at once, at the end,
by both networks, and say what is proven.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from excite.analysis import GateRecord, KnockOuts, knock_out, record_gates
from excite.analysis.batches import Checked, checked_batches, scores_of
from excite.cost import count_cost
from excite.deploy.folding import FoldedGate, fold_gates_
from excite.deploy.fuse import output_difference
from excite.deploy.proof import fall_bound, prove
from excite.deploy.saving import Saving, measure_savings
from excite.deploy.slim_report import CalibrationReport, LatencyReport, SlimGate, SlimReport
from excite.errors import UserError
from excite.graph import unwrapped
from excite.graph.rewrite import replace as replace_module
from excite.surgery.constants import put_constant
from excite.timing import Spread, compare_latency
from excite.training.progress import Bar, Silent

__all__ = ["SlimResult", "slim"]

_SAME = (
    "calibration and validation are the same images: what was chosen on images cannot be proven on them, so give others"
)


@dataclass(frozen=True)
class SlimResult:
    """What ``slim`` gives.

    Attributes:
        model: the slimmed network, in eval mode; it trains, exports, fuses and is saved like any other.
        report: what was taken out, what was kept, and what is proven.
    """

    model: nn.Module
    report: SlimReport


def slim(
    model: nn.Module,
    calibration: Iterable[Any],
    validation: Iterable[Any],
    *,
    max_drop: float,
    level: float = 0.95,
    cautious: bool = False,
    rounds: int = 20,
    progress: bool = False,
) -> SlimResult:
    """A copy of a network without the gates that it can do without.

    A gate is replaced by its mean over the calibration images, channel by channel, and that is folded into the weights
    beside it (``fold_gates_``). In eval mode the result computes what the network would with those means.

    Args:
        model: a classifier with gates, of ``excite``, attached, timm's or torchvision's, in either mode; it is left as
            it is.
        calibration: batches (images, labels), each image once, as the network takes them; gone through many times, so a
            list or a loader, no generator. Images the network was not trained on tell most.
        validation: batches of other images; gone through once, at the end, so a generator will do. An image that was
            among the calibration images too, number for number, proves nothing and is left out.
        max_drop: the fall of accuracy that is allowed, in percentage points.
        level: confidence of what is proven, and of every interval.
        cautious: a gate stays where, with it gone, the calibration images would not prove that the fall is at most
            ``max_drop``; otherwise only where they would show a larger one. Fewer gates go, and more is likely to be
            proven of them.
        rounds: how often gates and networks are timed; 0 times nothing, and bytes of maps say what a gate costs.
        progress: show progress bars.

    Returns:
        The network and the report.

    Raises:
        ValueError: a network without gates that can be read; batches that can be gone through only once, or the same
            ones twice; a fall or level out of range; what ``record_gates`` and ``knock_out`` refuse.
    """
    _check(calibration, validation, max_drop, level, rounds)
    original = copy.deepcopy(unwrapped(model)).eval()
    example = _first_image(calibration, original)
    record = record_gates(original, calibration, sample=0, top_images=0, progress=progress)
    knocked = knock_out(original, calibration, record, modes=("mean",), resamples=200, progress=progress)
    constants, reasons = _constants(record)
    # Folding all of them tells which leave a multiplication.
    gates = {gate.name: gate for gate in fold_gates_(copy.deepcopy(original), constants, example)} if constants else {}
    savings = measure_savings(original, list(gates.values()), example, rounds=rounds)
    trial = _Trial(original, constants, gates, calibration, knocked, record.images.label)
    for name in _shown(_order(gates, knocked, savings), "taking gates out", progress):
        trial.go_without(name, max_drop=max_drop, level=level if cautious else None)
    slimmed = copy.deepcopy(original)
    done = fold_gates_(slimmed, {name: constants[name] for name in trial.gone}, example) if trial.gone else []
    proof, shared = None, 0
    if trial.gone:
        right, still_right, shared = _both_right(original, slimmed, validation, trial.seen)
        proof = prove(right, still_right, max_fall=max_drop / 100, level=level)
    with torch.no_grad():
        difference = output_difference(slimmed(example), trial.model(example))
    costs = [count_cost(network, example).total for network in (original, slimmed)]
    reasons |= dict.fromkeys((name for name in gates if savings.of[name] <= 0), "the multiplication left costs as much")
    report = SlimReport(
        max_drop=max_drop,
        gates=_outcomes(record, knocked, savings, trial, {gate.name: gate for gate in done}, reasons),
        saved_in=savings.unit,
        calibration=CalibrationReport(knocked.n, knocked.accuracy, float(trial.correct.mean())),
        proof=proof,
        parameters=(costs[0].parameters, costs[1].parameters),
        macs=(costs[0].macs, costs[1].macs),
        latency=_latency(original, slimmed, example, rounds) if rounds else None,
        difference=difference,
        shared=shared,
    )
    return SlimResult(slimmed, report)


def _check(calibration: Iterable[Any], validation: Iterable[Any], max_drop: float, level: float, rounds: int) -> None:
    if iter(calibration) is calibration:
        raise UserError("calibration can be gone through only once: give a list of batches or a loader")
    if calibration is validation:
        raise UserError(_SAME)
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float) or not 0 <= max_drop < 100:
        raise UserError(
            f"max_drop={max_drop!r}: the allowed fall of accuracy in percentage points, from 0 and below 100, as 0.5"
        )
    with contextlib.suppress(TypeError):
        if not len(validation):  # type: ignore[arg-type]
            raise UserError("validation gave no image: nothing can be proven")
    if not 0.5 < level < 1:
        raise UserError(f"level={level}: a confidence lies between 0.5 and 1, for example 0.95")
    if rounds < 0:
        raise UserError(f"rounds={rounds}: how often networks are timed, 0 or more")


def _constants(record: GateRecord) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The mean scale of each gate that can be replaced, and why others cannot."""
    several = {site.name.partition("#")[0] for site in record.sites if "#" in site.name}
    reasons = dict(record.skipped) | dict.fromkeys(several, "it runs several times in a forward pass")
    means = {s.name: torch.from_numpy(s.overall_mean) for s in record.sites if s.name.partition("#")[0] not in several}
    return means, reasons


def _order(gates: dict[str, FoldedGate], knocked: KnockOuts, savings: Saving) -> list[str]:
    """Gates by the loss that their removal costs for what it saves, the cheapest first."""

    def price(name: str) -> tuple[float, float]:
        return max(knocked.of(name).loss_change, 0.0) / savings.of[name], -savings.of[name]

    return sorted((name for name in gates if savings.of[name] > 0), key=price)


class _Trial:
    """A copy of the network whose gates go one after the other, while its accuracy on calibration images is watched.

    Attributes:
        model: the copy; what went is a multiplication by a constant in it.
        gone: the gates that went, in order.
        falls: by every gate that was tried, the fall of accuracy with it and those before it gone, a fraction.
        why: of the gates that stay, why.
        correct: whether each calibration image is right without the gates that went, bool [n].
        seen: hashes of the calibration images; empty until a gate was tried.
    """

    def __init__(
        self,
        model: nn.Module,
        constants: dict[str, Tensor],
        gates: dict[str, FoldedGate],
        calibration: Iterable[Any],
        knocked: KnockOuts,
        labels: NDArray[np.int64],
    ) -> None:
        self.model = copy.deepcopy(model)
        self.gone: list[str] = []
        self.falls: dict[str, float] = {}
        self.why: dict[str, str] = {}
        order = np.argsort(knocked.index, kind="stable")
        self.correct = self._before = knocked.correct[order]
        self.seen: set[int] = set()
        self._labels = labels
        self._constants, self._gates, self._calibration = constants, gates, calibration

    def go_without(self, name: str, *, max_drop: float, level: float | None) -> None:
        """Take a gate out, and put it back where accuracy falls by more than ``max_drop`` points.

        Args:
            name: the gate's.
            max_drop: what is allowed.
            level: with a confidence, it is put back already where the images do not prove that accuracy falls by less.
        """
        gate = self.model.get_submodule(name)
        put_constant(self.model, name, self._constants[name], self._gates[name].axes)
        correct = self._measured()
        n, lost, gained = len(correct), int((self._before & ~correct).sum()), int((correct & ~self._before).sum())
        fall = self.falls[name] = (lost - gained) / n
        bound = fall if level is None else fall_bound(lost, gained, n, level)
        if bound <= max_drop / 100:
            self.gone.append(name)
            self.correct = correct
            return
        replace_module(self.model, name, gate)
        fell = f"accuracy on the calibration images would fall by {100 * fall:.2f} points"
        self.why[name] = f"with it gone too, {fell}" + ("" if level is None else f", at most {100 * bound:.2f}")

    def _measured(self) -> NDArray[np.bool_]:
        """Whether each calibration image is right, by rising index."""
        parts, first = [], not self.seen
        for batch in checked_batches(self._calibration, self.model):
            parts.append((batch.indices, batch.labels, _right(self.model, batch)))
            if first:
                self.seen.update(_hashes(batch.images))
        index, labels, right = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(index, kind="stable")
        if not np.array_equal(labels[order], self._labels):
            raise UserError("calibration gives other images, or another order, at each pass: do not shuffle or augment")
        return right[order]


def _shown(names: Sequence[str], label: str, progress: bool) -> Iterator[str]:
    """The names, with a progress bar where one is asked for."""
    bar = Bar() if progress else Silent()
    bar.start_run(label, len(names))
    try:
        for name in names:
            yield name
            bar.advance(1)
    finally:
        bar.end_run()


def _first_image(batches: Iterable[Any], model: nn.Module) -> Tensor:
    first = next(checked_batches(batches, model), None)
    if first is None:
        raise UserError("calibration gave no image")
    return first.images[:1]


@torch.no_grad()
def _right(model: nn.Module, batch: Checked) -> NDArray[np.bool_]:
    """Whether each image of a batch is classified rightly, [N]."""
    logits = model(batch.images)
    if isinstance(logits, Tensor) and not torch.isfinite(logits).all():
        raise UserError("the network gives numbers that are not finite on these images: nothing can be proven on them")
    scores = scores_of(logits, batch.labels)
    if scores is None:
        raise UserError("the network gives no logits [N, K] with an output for each class: slim takes classifiers")
    return scores[0] == batch.labels


def _hashes(images: Tensor) -> list[int]:
    """64 bits of each image's numbers, by which this process knows it again."""
    rows = images.detach().cpu().contiguous().flatten(1).view(torch.uint8)
    return [hash(row.numpy().tobytes()) for row in rows]


def _both_right(
    one: nn.Module, other: nn.Module, batches: Iterable[Any], seen: set[int]
) -> tuple[list[bool], list[bool], int]:
    """Whether each image is right, by both networks, in one pass; and how many are left out, having been seen."""
    parts = []
    for batch in checked_batches(batches, one):
        fresh = np.array([item not in seen for item in _hashes(batch.images)])
        parts.append((fresh, _right(one, batch), _right(other, batch)))
    if not parts:
        raise UserError("validation gave no image: nothing can be proven")
    fresh, first, second = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not fresh.any():
        raise UserError(_SAME)
    return first[fresh].tolist(), second[fresh].tolist(), int((~fresh).sum())


def _outcomes(
    record: GateRecord,
    knocked: KnockOuts,
    savings: Saving,
    trial: _Trial,
    done: dict[str, FoldedGate],
    reasons: dict[str, str],
) -> tuple[SlimGate, ...]:
    """What became of each gate, in the order of execution; last those that could not be read."""
    outcomes = []
    for site in record.sites:
        if "#" in site.name:
            continue
        alone, gate = knocked.of(site.name), done.get(site.name)
        outcomes.append(
            SlimGate(
                name=site.name,
                gate=site.gate,
                channels=site.channels,
                outcome="kept" if gate is None else "folded" if gate.folded else "multiply",
                into=() if gate is None else gate.into,
                reason=gate.reason if gate is not None else trial.why.get(site.name) or reasons.get(site.name, ""),
                loss_change=alone.loss_change,
                accuracy_change=alone.accuracy_change,
                saved=savings.of.get(site.name),
                step=trial.gone.index(site.name) + 1 if gate is not None else None,
                fall=trial.falls.get(site.name),
            )
        )
    return (*outcomes, *(SlimGate(name, "", 0, "kept", reason=reason) for name, reason in record.skipped))


def _latency(before: nn.Module, after: nn.Module, example: Tensor, rounds: int) -> LatencyReport:
    timings = compare_latency({"before": before, "after": after}, example, runs=rounds)
    times = [Spread(timing.p20_ms, timing.p50_ms, timing.p80_ms) for timing in timings.values()]
    machine = timings["before"].machine
    return LatencyReport(times[0], times[1], timings["after"].ratio, tuple(example.shape), rounds, machine)
