"""The places in a network where a gate can be asked for, each an anchor or a reason why there is none.

residual   what a branch brings to its residual addition: the SE paper's standard (arXiv 1709.01507, Fig. 3)
pre        what a branch begins with                                             (Sec. 6.5, SE-PRE)
post       what a residual addition gives, after its activation                  (SE-POST)
identity   what the shortcut brings to the addition                              (SE-Identity)
inner      after each k x k convolution of a branch, its norm and activation     (SE_3x3)
conv       after each convolution, its norm and activation, as in VGG            (Table 2)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from excite.graph import Anchor, FoundGate, Join, View
from excite.graph.record import Call, Node
from excite.graph.view import ACTIVATIONS, CONTAINERS, SCALES

__all__ = ["PLACES", "Place", "matched", "named", "selected"]


@dataclass(frozen=True)
class Place:
    """A place, before anything is put there.

    Attributes:
        label: what a reader may look for: the module that adds, or the one that was named.
        value: what a gate there would see; None where there is no such value.
        anchor: where it would hang; None where it cannot.
        reason: why it cannot; "" if it can.
        level: the value whose resolution says the stage.
    """

    label: str
    value: int | None
    anchor: Anchor | None
    reason: str
    level: int


def _place(view: View, label: str, values: Sequence[int], level: int, reason: str) -> Place:
    """At the first of these values that a module has for its own; ``reason`` is for when none has."""
    anchor = view.anchor(*values)
    return Place(label, values[-1], anchor, "" if anchor else view.obstacle(*values) or reason, level)


def _refused(label: str, value: int | None, level: int, reason: str) -> Place:
    return Place(label, value, None, reason, level)


def _occupied(view: View, label: str, gate: FoundGate, level: int) -> Place:
    if not gate.module:
        return _refused(label, gate.u, level, "a gate that is computed between modules stands there already")
    name = f"{gate.module} ({type(view.modules[gate.module]).__name__})"
    return _refused(label, gate.u, level, f"{name} stands there already; swap_ replaces gates")


def _label(join: Join) -> str:
    return join.module or "the network"


def _residual(view: View) -> Iterator[Place]:
    for join in view.joins:
        level = view.nodes[join.node].output
        chain = list(view.walk_back(join.branch, through=SCALES))
        gate = next((view.gate_of[value] for value in chain if value in view.gate_of), None)
        if gate is not None:
            yield _occupied(view, _label(join), gate, level)
            continue
        reason = "what the branch brings is computed between modules: none returns it, none alone takes it"
        # Nearest to the convolution first: before layer scales and drop path.
        yield _place(view, _label(join), chain[::-1], level, reason)


def _pre(view: View) -> Iterator[Place]:
    for join in view.joins:
        label, level = _label(join), view.nodes[join.node].output
        in_branch = view.values[join.branch].ancestors
        readers = [n for n in view.values[join.fork].consumers if in_branch >> view.nodes[n].output & 1]
        call = _taker(view, join.fork, readers)
        if call is None:
            reason = "the branch does not begin with one module that alone reads its input"
            yield _refused(label, join.fork, level, reason)
        else:
            yield Place(label, join.fork, Anchor(call.module, "in"), "", level)


def _taker(view: View, value: int, readers: list[int]) -> Call | None:
    """The outermost module that takes a value and has all its readers that are given, and no other."""
    for call in view.calls:
        if call.inputs == (value,) and view.why_not(call, "in") is None:
            inside = [n for n in view.values[value].consumers if call.start <= n < call.end]
            if readers and inside == readers:
                return call
    return None


def _post(view: View) -> Iterator[Place]:
    for join in view.joins:
        level = view.nodes[join.node].output
        values = [level]
        # An activation after the block is the next one's.
        while not any(level in call.outputs for call in view.recording.calls_of(join.module)):
            readers = [view.nodes[n] for n in view.values[values[-1]].consumers]
            if len(readers) != 1 or readers[0].op not in ACTIVATIONS | {"alias"}:
                break
            values.append(readers[0].output)
            if readers[0].op in ACTIVATIONS:
                break
        own = [c for c in view.recording.calls_of(join.module) if c.outputs == (values[-1],)]
        if own and view.why_not(own[0], "out") is None:
            yield Place(_label(join), values[-1], Anchor(join.module, "out"), "", level)
        else:
            reason = "no module returns the sum after its activation, and none alone takes it"
            yield _place(view, _label(join), values[-1:], level, reason)


def _identity(view: View) -> Iterator[Place]:
    for join in view.joins:
        level = view.nodes[join.node].output
        reason = (
            "the shortcut is the branch's own input: no module returns it for the addition alone"
            if join.shortcut == join.fork
            else "the shortcut is computed between modules: none returns it for the addition alone"
        )
        if view.values[join.shortcut].consumers == [join.node]:
            yield _place(view, _label(join), [join.shortcut], level, reason)
        else:
            yield _refused(_label(join), join.shortcut, level, reason)


def _inner(view: View) -> Iterator[Place]:
    for conv in view.convs:
        if max(conv.kernel) == 1:
            continue
        join = _around(view, conv)
        if join is None and conv.groups == 1:
            continue  # stems, and whatever is in no branch; depthwise ones belong to blocks, with a shortcut or without
        level = conv.output if join is None else view.nodes[join.node].output
        yield from _after_conv(view, conv, level)


def _around(view: View, conv: Node) -> Join | None:
    """The join in whose branch a convolution is."""
    for join in view.joins:
        branch = view.values[join.branch].ancestors & ~view.values[join.fork].ancestors
        if branch >> conv.output & 1:
            return join
    return None


def _conv(view: View) -> Iterator[Place]:
    for conv in view.convs:
        yield from _after_conv(view, conv, conv.output)


def _after_conv(view: View, conv: Node, level: int) -> Iterator[Place]:
    values = view.activated(conv)
    if not values:
        return
    gate = next((g for g in view.gates if g.u in values), None)
    if gate is not None:
        yield _occupied(view, conv.module, gate, level)
        return
    reason = "what follows the convolution is computed between modules: none returns it, none alone takes it"
    yield _place(view, conv.module, values, level, reason)


# Each gives its places in the order of execution.
PLACES: dict[str, Callable[[View], Iterator[Place]]] = {
    "residual": _residual,
    "pre": _pre,
    "post": _post,
    "identity": _identity,
    "inner": _inner,
    "conv": _conv,
}


def named(view: View, names: list[str]) -> Iterator[Place]:
    """The outputs of the modules of these dotted names, in the order of execution."""
    wanted = {view.called_as(name) for name in names}
    # By their ends: what a module returns comes after what the modules in it return.
    for call in sorted(view.calls, key=lambda call: (call.end, -call.depth)):
        if call.module not in wanted:
            continue
        wanted.discard(call.module)
        value = call.outputs[0] if call.outputs else None
        reason = view.why_not(call, "out")
        anchor = None if reason else Anchor(call.module, "out")
        if value is None or not view.is_map(value):
            shape = () if value is None else view.values[value].shape
            anchor, reason = None, f"it returns {shape}, no feature map [N, C, *S]"
        elif isinstance(view.modules[call.module], CONTAINERS):
            anchor = view.anchor(value)  # the last layer inside, mostly
        yield Place(call.module, value, anchor, "" if anchor else reason or "", -1 if value is None else value)
    for name in sorted(wanted):
        scripted = isinstance(view.modules[name], torch.jit.ScriptModule)
        reason = "it is scripted" if scripted else "it is not called in a forward pass"
        yield Place(name, None, None, reason, -1)


def matched(names: list[str], pattern: str) -> list[str]:
    """The dotted names that a pattern matches: as in file names, with dots for slashes, ``**`` for any depth."""
    return [name for name in names if name and _matches(name.split("."), pattern.split("."))]


def _matches(name: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_matches(name[i:], pattern[1:]) for i in range(len(name) + 1))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def selected(model: nn.Module, choose: Callable[[str, nn.Module], bool]) -> list[str]:
    """The dotted names of the modules that a function chooses."""
    return [name for name, module in model.named_modules() if name and choose(name, module)]
