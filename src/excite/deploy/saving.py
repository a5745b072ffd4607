"""What the removal of each gate saves: the time of its squeeze, excitation and rescaling, on a map of its size.

Gates are timed by themselves: one gate is about a hundredth of a network, and two timings of a network differ by more.
Gates of one kind on maps of one shape are one measurement. Where even so a gate's own times spread by more than their
median, the machine is too busy to tell, and bytes of maps moved are taken for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from excite.deploy.folding import FoldedGate, by_reference
from excite.graph import View, record
from excite.surgery.constants import ChannelScale
from excite.timing import Timing, time_in_turns

__all__ = ["Saving", "measure_savings"]

# A gate reads its map to squeeze it, and reads and writes it to rescale it; a constant does the latter.
_GATE_PASSES, _CONSTANT_PASSES = 3, 2


@dataclass(frozen=True)
class Saving:
    """What each gate's removal saves.

    Attributes:
        of: by the gate's name; at or below 0 where nothing is saved.
        unit: "microseconds" for one image, or "bytes" of its maps.
    """

    of: dict[str, float]
    unit: Literal["microseconds", "bytes"]


def measure_savings(model: nn.Module, gates: Sequence[FoldedGate], example: Tensor, *, rounds: int) -> Saving:
    """Time each gate, less the multiplication that is left of it where it cannot be folded.

    Args:
        model: the network, in eval mode.
        gates: its gates, and whether each can be folded.
        example: one image, [1, C, H, W].
        rounds: how often each is timed; 0 times nothing.
    """
    with by_reference(model):
        view = View(record(model, (example,)), model)
    shapes = {found.module: view.values[found.u].shape for found in view.gates}
    if rounds:
        kinds = {gate.name: (gate.gate, shapes[gate.name], gate.folded) for gate in gates}
        timed = _timed(model, kinds, example, rounds)
        if all(_is_told(timing) for timing, _ in timed.values()):
            return Saving({name: 1e3 * timed[kind][1] for name, kind in kinds.items()}, "microseconds")
    size = example.element_size()
    passes = {gate.name: _GATE_PASSES - (0 if gate.folded else _CONSTANT_PASSES) for gate in gates}
    return Saving({name: float(count * size * math.prod(shapes[name])) for name, count in passes.items()}, "bytes")


_Kind = tuple[str, tuple[int, ...], bool]


def _timed(
    model: nn.Module, kinds: dict[str, _Kind], example: Tensor, rounds: int
) -> dict[_Kind, tuple[Timing, float]]:
    """Of each kind of gate its timing, and the milliseconds saved."""
    calls = {}
    for name, (text, shape, folded) in kinds.items():
        u = torch.randn(shape, dtype=example.dtype, device=example.device)
        calls[f"{text} {shape}"] = partial(model.get_submodule(name), u)
        if not folded:
            calls[f"constant {shape}"] = partial(ChannelScale(torch.ones(shape[1]).to(u), len(shape) - 2), u)
    if not calls:
        return {}
    with torch.inference_mode():
        timings = time_in_turns(calls, rounds=rounds, device=example.device)
    found = {}
    for text, shape, folded in kinds.values():
        timing = timings[f"{text} {shape}"]
        left = 0.0 if folded else timings[f"constant {shape}"].p50_ms
        found[text, shape, folded] = (timing, timing.p50_ms - left)
    return found


def _is_told(timing: Timing) -> bool:
    return timing.p80_ms - timing.p20_ms <= timing.p50_ms
