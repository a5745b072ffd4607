"""Tails in a block's forward: norm, gate, addition and activation become one call, while it trains.

A block's own forward is traced, its layers being whole; where norm, gate, addition and activation follow each other in
the graph, one call takes their place, and Python made of that graph is the block's forward in training. Class,
children, parameters and keys stay. The forward that was replaced runs whenever the block does not train, and while
PyTorch traces or compiles.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import fx, nn

from excite.gates.base import ATTACHED, hung_gate, is_watched
from excite.models.base import GatedBlock
from excite.surgery.plain_code import why_not_plain
from excite.surgery.tails import ACT_MODULES, ACTS, ADDS, Step, Tail, is_own_norm, step_of

__all__ = ["NotPlain", "TailForward", "TracedTails", "take_tails_out", "traced_tails"]


@dataclass
class _Chain:
    """Nodes of a graph that become one tail."""

    tail: Tail
    steps: list[fx.Node]
    nodes: list[fx.Node]  # from the norm to the last
    add: fx.Node | None = None
    act: fx.Node | None = None

    @property
    def branch(self) -> fx.Node:
        """The operand of the addition that the chain makes."""
        assert self.add is not None
        return self.nodes[self.nodes.index(self.add) - 1]


class _Tracer(fx.Tracer):
    """Looks into no module but those of these names."""

    def __init__(self, open_names: set[str]) -> None:
        super().__init__()
        self.open_names = open_names

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.open_names


class NotPlain(Exception):
    """A forward that a trace would not show as it is, with the reason."""


@dataclass
class TracedTails:
    """A block's forward with its tails, as a function that takes the block first.

    Attributes:
        forward: the function.
        tails: its tails, in the order of execution.
        opened: names of the modules that it looks into; "" is the block.
        state: what of the block went into it, see ``_state_of``.
    """

    forward: Callable[..., Any]
    tails: list[Tail]
    opened: list[str]
    state: list[Any]

    def force(self, forced: bool) -> None:
        """Have maps of any size fused, or those alone where it is worth it."""
        for tail in self.tails:
            tail.forced = forced

    def fits(self, block: nn.Module) -> bool:
        """Whether the block still is what was traced, and nobody waits for what the trace goes around."""
        try:
            there = [block.get_submodule(name) for name in self.opened]
        except AttributeError:
            return False
        return not any(map(is_watched, there[1:])) and _state_of(there) == self.state


_SIMPLE = (bool, int, float, str, type(None), type, FunctionType, BuiltinFunctionType)


def _state_of(opened: list[nn.Module]) -> list[Any]:
    """What a trace has of modules: classes, modes and plain attributes; also of the gates' parts."""
    state: list[Any] = []
    for module in opened:
        state.append(module.training)
        state += [v for k, v in module.__dict__.items() if k[0] != "_" and k != "training" and isinstance(v, _SIMPLE)]
        for child in module._modules.values():
            state.append(type(child))
            # Parts of a small module: a gate's layers are read once, its weights each time.
            for name, part in () if child is None or isinstance(child, nn.Sequential) else child._modules.items():
                if not name.startswith(ATTACHED):  # gates that hang are looked for at each call
                    own = () if part is None else [k for k, p in part._parameters.items() if p is not None]
                    state += [type(part), own]
    return state


def traced_tails(block: nn.Module) -> TracedTails | None:
    """The forward that a block has in training, with tails; None where it has none.

    Raises:
        NotPlain: its code does what a trace does not show.
        Exception: whatever tracing this forward raises.
    """
    before = set(block.__dict__)
    try:
        graph, names = _opened(block)
        with torch.random.fork_rng(devices=[]):  # what a gate is is found out by drawing weights
            chains = _chains(block, graph)
    finally:
        constants = set(block.__dict__) - before
        for name in constants:  # a trace leaves constants on what it traces
            del block.__dict__[name]
    if not chains:
        return None
    opened = ["", *sorted(names)]
    there = [block.get_submodule(name) for name in opened]
    reasons = [reason for module in there if (reason := why_not_plain(module)) is not None]
    if reasons or constants:
        raise NotPlain(reasons[0] if reasons else "there are tensors in its forward that are no parameters")
    for chain in chains:
        _put(graph, chain)
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(code.src, space)  # fx writes it out of the graph
    return TracedTails(space["forward"], [c.tail for c in chains], opened, _state_of(there))


def _opened(block: nn.Module) -> tuple[fx.Graph, set[str]]:
    """The graph of a block's forward, and names of the modules it looks into, to find norms before additions."""
    opened: set[str] = set()
    closed: set[str] = set()
    graph = _Tracer(opened).trace(block)
    while more := {name for node in graph.nodes if _adds(node) for name in _inner(block, node)} - opened - closed:
        try:
            graph = _Tracer(opened | more).trace(block)
            opened |= more
        except Exception:  # whatever a forward does with what is no tensor
            closed |= more
    return graph, opened


def _adds(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in ADDS and len(node.all_input_nodes) == 2


def _inner(block: nn.Module, add: fx.Node) -> Iterator[str]:
    """Modules with a norm in them that return what an addition takes, drop path and the like between them or not."""
    for node in add.all_input_nodes:
        while (module := _module(block, node)) is not None and not any(True for _ in module.children()):
            if is_own_norm(module) or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
                break
            node = node.args[0]
        module = _module(block, node)
        if module is not None and not is_own_norm(module) and any(map(is_own_norm, module.modules())):
            if not is_watched(module) and not isinstance(module, GatedBlock):
                yield str(node.target)


def _module(block: nn.Module, node: fx.Node) -> nn.Module | None:
    return block.get_submodule(str(node.target)) if node.op == "call_module" else None


def _chains(block: nn.Module, graph: fx.Graph) -> list[_Chain]:
    """The tails of a graph; of two norms that are added, that of the branch with the gate or the first."""
    found = []
    for node in graph.nodes:
        norm = _module(block, node)
        if norm is not None and is_own_norm(norm) and len(node.args) == 1 and not node.kwargs:
            chain = _chain(block, node, norm)
            if chain is not None:
                found.append(chain)
    taken: dict[fx.Node, _Chain] = {}
    for chain in found:
        if chain.add is not None:
            other = taken.setdefault(chain.add, chain)
            if other is not chain and _rank(chain) > _rank(other):
                taken[chain.add] = chain
    return [chain for chain in found if chain.add is None or taken[chain.add] is chain]


def _writes_other(add: fx.Node, branch: fx.Node) -> bool:
    """Whether an addition writes over its other operand."""
    return ADDS[add.target] and add.args[0] is not branch


def _rank(chain: _Chain) -> tuple[bool, bool]:
    assert chain.add is not None
    return any(not isinstance(step.role, str) for step in chain.tail.steps), chain.add.args[0] is chain.branch


def _chain(block: nn.Module, start: fx.Node, norm: nn.Module) -> _Chain | None:
    """What follows a norm, as long as nobody else reads what lies between; None without gate or addition."""
    channels = int(norm.num_features)  # type: ignore[arg-type]
    chain = _Chain(Tail(str(start.target), (), "none", False), [], [start])
    steps: list[Step] = []
    while chain.act is None and len(users := list(chain.nodes[-1].users)) == 1:
        node, module = users[0], _module(block, users[0])
        act = ACT_MODULES.get(type(module)) if module is not None else _act(node)
        if act is not None:
            chain.act, chain.tail.act = node, act
        elif module is not None and chain.add is None and node.args == (chain.nodes[-1],) and not node.kwargs:
            step = step_of(module, channels)
            if step is None:
                break
            steps.append(step)
            chain.steps.append(node)
        elif chain.add is None and _adds(node) and not node.kwargs and not _writes_other(node, chain.nodes[-1]):
            chain.add, chain.tail.adds_in_place = node, ADDS[node.target]
        else:
            break
        chain.nodes.append(node)
    chain.tail.steps = tuple(steps)
    hung = [hung_gate(m) for n in (start, *chain.steps) if (m := _module(block, n)) is not None]
    gated = any(not isinstance(step.role, str) for step in steps) or any(gate is not None for gate in hung)
    return chain if gated or chain.add is not None else None


def _act(node: fx.Node) -> str | None:
    known = node.op in ("call_function", "call_method") and len(node.all_input_nodes) == 1
    return ACTS.get(node.target) if known else None


def _put(graph: fx.Graph, chain: _Chain) -> None:
    """One call in the place of a chain's nodes."""
    first, last = chain.nodes[0], chain.nodes[-1]
    shortcut = None if chain.add is None else next(n for n in chain.add.all_input_nodes if n is not chain.branch)
    act = chain.act if chain.act is not None and chain.act.op == "call_module" else None
    with graph.inserting_before(last):
        modules = {node: graph.get_attr(str(node.target)) for node in (first, *chain.steps, act) if node is not None}
        steps = [modules[node] for node in chain.steps]
        args = (modules[first], steps, None if act is None else modules[act], first.args[0], shortcut)
        new = graph.call_function(chain.tail, args)
    last.replace_all_uses_with(new)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


class TailForward:
    """A block's forward with tails, kept in the block's ``__dict__``.

    A block that is changed afterwards runs the forward that it had.

    Args:
        block: the block, which is not kept alive.
        traced: its tails; they hold nothing of the block, so that copies share them.
    """

    def __init__(self, block: nn.Module, traced: TracedTails | None) -> None:
        self.block, self.traced, self.waits = weakref.ref(block), traced, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block returns."""
        block = self.block()
        assert block is not None
        if block.training and not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None:
            if self.waits:
                self.waits, self.traced = False, traced_tails(block)
            if self.traced is not None and self.traced.fits(block):
                return self.traced.forward(block, *args, **kwargs)
        return type(block).forward(block, *args, **kwargs)

    @property
    def fits(self) -> bool:
        """Whether the block still is what was traced."""
        block = self.block()
        return self.waits or (block is not None and self.traced is not None and self.traced.fits(block))

    def __deepcopy__(self, memo: dict[int, Any]) -> TailForward:
        block = self.block()
        assert block is not None
        twin = TailForward(memo.get(id(block), block), self.traced)
        twin.waits = self.waits
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # Code made of a graph is made anew where a pickle is read.
        return {"block": self.block(), "waits": self.fits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.block, self.traced, self.waits = weakref.ref(state["block"]), None, state["waits"]


def take_tails_out(model: nn.Module) -> int:
    """Give blocks the forward back that they had; how many."""
    found = [m for m in model.modules() if isinstance(m.__dict__.get("forward"), TailForward)]
    for module in found:
        del module.__dict__["forward"]
    return len(found)
