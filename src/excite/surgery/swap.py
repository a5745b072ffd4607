"""Replacing the gates that a network has by others, whoever built them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from excite.errors import UserError, unknown
from excite.gates import Gate, GateConfig, parse_gate
from excite.gates.base import ATTACHED
from excite.graph import View, as_inputs, record, unwrapped
from excite.graph.rewrite import forget_compiled, parent_of
from excite.graph.rewrite import replace as replace_module
from excite.models.base import GatedBlock, gate_modules
from excite.surgery.edit import STARTS, attached, check_kind, remove, settled, write_down
from excite.surgery.zoo_gates import carried_over, channels_of, read_gate

__all__ = ["Swap", "own_gates_", "put_gate", "swap_"]

ALL = "*"
SAME = "same"


@dataclass(frozen=True)
class Swap:
    """One gate that was replaced.

    Args:
        module: dotted name of the gate.
        channels: of its maps.
        old: what it was: a gate's text, or the name of its class where it is no gate of ``excite``.
        new: what it is now, as text; "none" where it is nothing.
        weights_kept: whether the new one has the old one's weights and computes the same.
    """

    module: str
    channels: int
    old: str
    new: str
    weights_kept: bool


@dataclass(frozen=True)
class _Found:
    name: str
    module: nn.Module
    channels: int
    gate: Gate | None  # what it is, as a gate of excite

    @property
    def kind(self) -> str:
        return type(self.module).__name__ if self.gate is None else self.gate.config.name

    @property
    def text(self) -> str:
        return type(self.module).__name__ if self.gate is None else str(self.gate.config)


def swap_(
    model: nn.Module,
    old: str,
    new: str | GateConfig | None,
    example: Tensor | Sequence[Any] | None = None,
    *,
    start: str = "paper",
) -> list[Swap]:
    """Replace gates of one kind by another, in place: timm's SE by ECA, say.

    Gates are known by what they compute, of whatever library they are. Where old and new compute the same function of
    the same weights, the new gate keeps them.

    Args:
        model: any network with gates: of ``excite``, attached, timm's, torchvision's.
        old: the kind to replace, as "se" or "eca"; the name of a class, for gates that ``excite`` does not have; or "*"
            for all.
        new: a gate's text or config; "same" for ``excite``'s own gate with the same weights; "none" for no gate.
        example: an input the network takes. Needed where the layers do not tell how many channels a gate has (ECA of
            another library), and for gates that ``excite`` does not have.
        start: how gates that keep no weights start, "paper" or "neutral", see ``attach_``.

    Returns:
        What was replaced, in the order of execution, or of the modules where there is no example.

    Raises:
        ValueError: no gate of this kind, with the kinds there are; "same" for a gate that ``excite`` does not have; a
            new gate that cannot be built. The network is as it was.
    """
    model = unwrapped(model)
    check_kind(model)
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    found = list(_by_running(model, example) if example is not None else _by_looking(model))
    chosen = [f for f in found if old in (ALL, f.kind, type(f.module).__name__)]
    if not chosen:
        kinds = sorted({f.kind for f in found})
        if not kinds:
            hint = "" if example is not None else "; with an example it is run, and more can be found"
            raise UserError(f"{type(model).__name__} has no gates that can be told{hint}")
        raise unknown("kind of gate in this network", old, [*kinds, ALL])
    ready = [(f, *_new_gate(f, new, start)) for f in chosen]
    for item, gate, _ in ready:
        put_gate(model, item.name, gate)
    forget_compiled()
    return [Swap(f.name, f.channels, f.text, _written(gate), kept) for f, gate, kept in ready]


def own_gates_(model: nn.Module, example: Tensor | Sequence[Any]) -> list[tuple[str, str]]:
    """Put a gate of ``excite`` with the same weights in the place of every gate that computes the same, in place.

    Returns:
        The gates that compute something else and stay: name and class.
    """
    unknown = []
    for found in list(_by_running(model, example)):
        if found.gate is None:
            unknown.append((found.name, found.kind))
        elif found.gate is not found.module:
            replace_module(model, found.name, found.gate)
    return unknown


def _written(gate: nn.Module | None) -> str:
    return "none" if gate is None else str(getattr(gate, "config", type(gate).__name__))


def _by_looking(model: nn.Module) -> Iterator[_Found]:
    """Gates that their layers show; nothing is run."""
    own, inside = gate_modules(model), ""
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        channels = getattr(module, "channels", None) if name in own else channels_of(module)
        if channels is None or isinstance(module, nn.Conv2d | nn.Linear):
            continue
        gate = read_gate(module, channels)
        if gate is not None or name in own:
            inside = f"{name}."
            yield _Found(name, module, channels, gate)


def _by_running(model: nn.Module, example: Tensor | Sequence[Any]) -> Iterator[_Found]:
    view = View(record(model, as_inputs(example)), model)
    seen = set()
    for found in view.gates:
        if found.module and found.module not in seen:
            seen.add(found.module)
            channels = view.values[found.u].shape[1]
            module = view.modules[found.module]
            yield _Found(found.module, module, channels, read_gate(module, channels))


def _new_gate(found: _Found, new: str | GateConfig | None, start: str) -> tuple[nn.Module | None, bool]:
    """The module that takes a gate's place, and whether it has its weights."""
    if new == SAME:
        if found.gate is None:
            raise UserError(f"{found.name} ({found.kind}) computes what no gate of excite does: name a new gate")
        return found.gate, True
    config = parse_gate(new)
    if config is None:
        return None, False
    gate = settled(config.build(found.channels), found.module)
    if found.gate is not None and isinstance(gate, Gate):
        if carried_over(found.gate, gate):
            return gate, True
        # The same kind in the old one's width, where the text leaves the width open.
        if type(gate) is type(found.gate) and config == type(config)():
            return settled(found.gate, found.module), True
    if start == "neutral":
        gate = config.as_neutral().build(found.channels)
    return settled(gate, found.module), False


def put_gate(model: nn.Module, name: str, gate: nn.Module | None) -> None:
    """Put another gate, or none, in the place of the one with this dotted name, whoever built it."""
    parent, own = parent_of(model, name)
    if own.startswith(ATTACHED):
        if gate is None:
            remove(model, {name})
            return
        replace_module(model, name, gate)
        items = [replace(i, gate=_written(gate)) if i.name == name else i for i in attached(model)]
        write_down(model, items)
    elif isinstance(parent, GatedBlock) and own == "gate":
        del parent.gate  # None is no child, as in a block that never had one
        parent.gate = gate
    else:
        replace_module(model, name, nn.Identity() if gate is None else gate)
