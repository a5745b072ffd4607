"""Passes that begin at a gate: what ran before it is not run again.

When one gate of a network is replaced, all that runs before it gives what it gave. So one pass is run as it is, and
keeps the few maps that later code reads; in the passes with the gate replaced the modules before it hand these out and
compute nothing. That code between modules reads what they return, and nothing that they wrote over behind its back, is
not taken for granted: the first batch is run both ways, and a gate where they differ is run in full from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excite.analysis.taps import Replacement, Taps
from excite.graph import View
from excite.graph.record import Call

__all__ = ["Resumer"]

_BYTES = 1 << 30
"""How much the kept maps of a batch may hold; the last gates come first: theirs are small, and save most."""


@dataclass(frozen=True)
class _Skipped:
    """A module before a gate.

    Attributes:
        module: its dotted name.
        kept: whether anything behind the gate is computed from what it returns.
        read: whether anything but skipped modules reads it; where it is not kept, to no avail.
    """

    module: str
    kept: bool
    read: bool


class Resumer:
    """Keeps what a pass computes before each of some gates, and begins passes there.

    Args:
        view: of the network.
        sites: names of gates, as ``Place.name``.
        images: the batch, for the size of what is kept.
        most_bytes: what may be kept; 0 keeps nothing.
    """

    def __init__(self, view: View, sites: Sequence[str], images: Tensor, most_bytes: int = _BYTES) -> None:
        self._view, self._shape = view, images.shape[1:]
        self._plans: dict[str, list[_Skipped]] = {}
        self._kept: dict[str, Tensor] = {}
        self._wanted: set[str] = set()
        left = most_bytes
        for site in reversed(sites):
            plan = _plan(view, site)
            more = {s.module for s in plan if s.kept} - self._wanted
            left -= sum(_size(view, name, images) for name in more)
            if left < 0:
                break
            if plan:
                self._plans[site] = plan
                self._wanted |= more

    def can(self, site: str, images: Tensor) -> bool:
        """Whether passes over these images can begin at this gate."""
        return site in self._plans and images.shape[1:] == self._shape

    def run(self, taps: Taps, site: str, images: Tensor, instead: Mapping[str, Replacement]) -> Any:
        """What the network returns with a gate replaced: from the gate on where that can be, else in full."""
        if not self.can(site, images):
            return taps.run(images, instead)[0]
        with self._resumed(site):
            return taps.run(images, instead)[0]

    def check(self, taps: Taps, site: str, images: Tensor, instead: Mapping[str, Replacement]) -> None:
        """Run both ways; where they differ, the gate is run in full from now on."""
        if not self.can(site, images):
            return
        full = taps.run(images, instead)[0]
        try:
            same = _alike(self.run(taps, site, images, instead), full)
        except (RuntimeError, TypeError, ValueError, IndexError):  # code between modules looked at what was not kept
            same = False
        if not same:
            del self._plans[site]

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """The pass that is run as it is."""
        self._kept = {}

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def keep(module: nn.Module, args: Any, output: Any) -> None:
                self._kept[name] = output.clone()

            return keep

        handles = [self._view.modules[name].register_forward_hook(hook(name)) for name in self._wanted]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _resumed(self, site: str) -> Iterator[None]:
        plan = self._plans[site]
        for skipped in plan:
            self._view.modules[skipped.module].__dict__["forward"] = self._hand_out(skipped)
        try:
            yield
        finally:
            for skipped in plan:
                del self._view.modules[skipped.module].__dict__["forward"]

    def _hand_out(self, skipped: _Skipped) -> Callable[..., Tensor]:
        if skipped.kept:
            # Fresh each time: it may be written over.
            return lambda *args, **kwargs: self._kept[skipped.module].clone()
        call = self._view.recording.calls_of(skipped.module)[0]
        shape = self._view.values[call.outputs[0]].shape[1:]

        def nothing(*args: Any, **kwargs: Any) -> Tensor:
            like = args[0]
            # Whoever needs it after all gives NaN, and is found out.
            if skipped.read:
                return like.new_full((len(like), *shape), math.nan)  # it may be written over
            return like.new_full((), math.nan).expand(len(like), *shape)

        return nothing


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    # The same operations on the same numbers, in other memory.
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())


def _plan(view: View, site: str) -> list[_Skipped]:
    """The outermost modules that have run when a gate begins; none where it is not known when, or it runs twice."""
    calls = view.recording.calls
    gates = [i for i, call in enumerate(calls) if call.module == site.partition("#")[0]]
    if len(gates) != 1:
        return []
    begin = gates[0]
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.module] = counts.get(call.module, 0) + 1
    before: list[Call] = []
    for call in calls[:begin]:
        if before and call.depth > before[-1].depth and call.start < before[-1].end:
            continue  # inside of it
        if call.end <= calls[begin].start and counts[call.module] == 1 and _can_be_skipped(view, call):
            before.append(call)
    inside = {node for call in before for node in range(call.start, call.end)}
    live = _live(view, inside, calls[begin].start)
    return [_Skipped(c.module, c.outputs[0] in live, not inside.issuperset(_readers(view, c))) for c in before]


def _readers(view: View, call: Call) -> list[int]:
    return view.values[call.outputs[0]].consumers


def _can_be_skipped(view: View, call: Call) -> bool:
    module = view.modules[call.module]
    if not call.module or isinstance(module, torch.jit.ScriptModule) or "forward" in module.__dict__:
        return False
    # A hook would run on what is handed out, which has been through it: a gate that hangs there, say.
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    return not hooked and call.takes_one and call.returns_one and call.end > call.start


def _live(view: View, inside: set[int], begin: int) -> set[int]:
    """The values that something from ``begin`` on is computed from, by operations that are not skipped."""
    live = set(view.calls[0].outputs)
    for node in reversed(view.nodes):
        if node.index not in inside and (node.index >= begin or node.output in live):
            live.update(node.inputs)
    return live


def _size(view: View, name: str, images: Tensor) -> int:
    """Bytes of what a module returns."""
    shape = view.values[view.recording.calls_of(name)[0].outputs[0]].shape
    example = view.values[view.calls[0].inputs[0]].shape
    return math.prod(shape) * len(images) * images.element_size() // max(example[0], 1)
