"""What ``slim`` did, chose and proved."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from excite.deploy.proof import Proof
from excite.page import counted
from excite.timing import Spread

__all__ = ["CalibrationReport", "LatencyReport", "SlimGate", "SlimReport"]

Outcome = Literal["folded", "multiply", "kept"]


@dataclass(frozen=True)
class SlimGate:
    """What became of one gate.

    Attributes:
        name: its dotted name.
        gate: its text, or the name of its class.
        channels: of its maps.
        outcome: "folded", nothing is left of it; "multiply", one multiplication is; or "kept".
        into: the modules whose weights took the constant in.
        reason: why a multiplication was left, or why it was kept.
        loss_change: mean cross-entropy on the calibration images with this gate alone at its mean, less with all gates
            as they are; above 0, the gate helps. None where it was not measured.
        accuracy_change: the same of accuracy, a fraction; below 0, the gate helps.
        saved: what its removal saves, in microseconds, or in bytes of maps where times are within noise.
        step: when it was taken out, from 1; None where it was kept.
        fall: fall of accuracy on the calibration images with it and all taken out before it gone, a fraction; of one
            that was kept, what the fall would have been; None where it was not tried.
    """

    name: str
    gate: str
    channels: int
    outcome: Outcome
    into: tuple[str, ...] = ()
    reason: str = ""
    loss_change: float | None = None
    accuracy_change: float | None = None
    saved: float | None = None
    step: int | None = None
    fall: float | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """The images that the choice was made on, and accuracy on them, a fraction, before and after."""

    images: int
    before: float
    after: float


@dataclass(frozen=True)
class LatencyReport:
    """Time of one image, measured in turns.

    Attributes:
        before_ms, after_ms: of the network before and after, milliseconds.
        ratio: after over before, within each round.
        image: shape of the example.
        rounds: how many.
        machine: what it was measured on.
    """

    before_ms: Spread
    after_ms: Spread
    ratio: Spread
    image: tuple[int, ...]
    rounds: int
    machine: dict[str, Any]


@dataclass(frozen=True)
class SlimReport:
    """What ``slim`` did, chose and proved.

    Attributes:
        max_drop: the fall of accuracy that was allowed, in points.
        gates: every gate, in the order of execution.
        saved_in: the unit of ``SlimGate.saved``: "microseconds" or "bytes".
        calibration: what the choice was made on.
        proof: what the validation images prove of the fall; None where no gate was taken out.
        parameters, macs: of the network before and after, for one image.
        latency: before and after; None where it was not measured.
        difference: largest difference between the outputs with constants folded and with constants multiplied, as a
            share of the largest output.
        shared: validation images that were among the calibration images too, and are left out of the proof.
    """

    max_drop: float
    gates: tuple[SlimGate, ...]
    saved_in: Literal["microseconds", "bytes"]
    calibration: CalibrationReport
    proof: Proof | None
    parameters: tuple[int, int]
    macs: tuple[int, int]
    latency: LatencyReport | None
    difference: float
    shared: int = 0

    @property
    def gone(self) -> tuple[SlimGate, ...]:
        """The gates that were replaced by constants, in the order in which they were chosen."""
        return tuple(sorted((g for g in self.gates if g.step is not None), key=lambda g: g.step or 0))

    @property
    def finding(self) -> str:
        """What is proven, in plain words."""
        if self.proof is None:
            return "No gate was taken out: the network is as it was, and the validation images were not looked at."
        if not self.shared:
            return str(self.proof)
        more = f"{counted(self.shared, 'more validation image')} {'is' if self.shared == 1 else 'are'} left out"
        return f"{self.proof} {more}: the gates were chosen on {'it' if self.shared == 1 else 'them'}, too."

    def to_dict(self) -> dict[str, Any]:
        """Every field and the finding, JSON-able."""
        before_after = ("before", "after")
        return {
            "max_drop": self.max_drop,
            "finding": self.finding,
            "proof": None if self.proof is None else self.proof.to_dict(),
            "calibration": asdict(self.calibration),
            "parameters": dict(zip(before_after, self.parameters, strict=True)),
            "macs": dict(zip(before_after, self.macs, strict=True)),
            "latency": None if self.latency is None else asdict(self.latency) | {"image": list(self.latency.image)},
            "difference": self.difference,
            "shared": self.shared,
            "saved_in": self.saved_in,
            "gates": [asdict(gate) | {"into": list(gate.into)} for gate in self.gates],
        }

    def __str__(self) -> str:
        """The finding, then the figures, then each gate."""
        calibration, outcomes = self.calibration, Counter(gate.outcome for gate in self.gates)
        lines = [self.finding, ""]
        if self.proof is not None:
            proof = self.proof
            lines += [
                f"validation    {_interval(proof.before, proof.before_interval)} before, "
                f"{_interval(proof.after, proof.after_interval)} after; {counted(proof.images, 'image')}",
                f"  fall        {_interval(proof.fall, proof.fall_interval, 'points')}; "
                f"McNemar's p of no change {proof.p:.2g}",
            ]
        lines += [
            f"calibration   {100 * calibration.before:.2f} % before, {100 * calibration.after:.2f} % after; "
            f"{counted(calibration.images, 'image')}, on which the gates were chosen",
            f"parameters    {_before_after(self.parameters)}",
            f"MACs          {_before_after(self.macs)}",
        ]
        if self.latency is not None:
            time = self.latency
            lines.append(
                f"one image     {time.before_ms.p50:.2f} -> {time.after_ms.p50:.2f} ms, ratio {time.ratio.p50:.3f} "
                f"({time.ratio.p20:.3f} to {time.ratio.p80:.3f} of {counted(time.rounds, 'round')})"
            )
        count = len(self.gates)
        lines.append(
            f"gates         {count}: {outcomes['folded']} folded, {outcomes['multiply']} left as a multiplication, "
            f"{outcomes['kept']} kept"
        )
        return "\n".join([*lines, *self._gate_lines()])

    def _gate_lines(self) -> list[str]:
        unit, scale = ("us", 1.0) if self.saved_in == "microseconds" else ("kB", 1e-3)
        width = max((len(gate.name) for gate in self.gates), default=0)
        lines = []
        for gate in self.gates:
            change = "" if gate.loss_change is None else f"loss {gate.loss_change:+.4f}"
            saved = "" if gate.saved is None else f"{gate.saved * scale:.0f} {unit}"
            what = {
                "folded": f"folded into {', '.join(gate.into)}",
                "multiply": f"left as a multiplication: {gate.reason}",
                "kept": f"kept: {gate.reason}",
            }[gate.outcome]
            lines.append(f"  {gate.name:{width}}  {change:>13}  {saved:>8}  {what}")
        return lines


def _interval(share: float, interval: tuple[float, float], unit: str = "%") -> str:
    return f"{100 * share:.2f} {unit} ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"


def _before_after(numbers: tuple[int, int]) -> str:
    before, after = numbers
    return f"{before:,} -> {after:,} ({100 * (after - before) / max(before, 1):+.2f} %)"
