"""The places in a functional model where a gate can be asked for, each a site's ends or a reason why there is none.

residual   what a branch brings to its residual addition: the SE paper's standard (arXiv 1709.01507, Fig. 3)
pre        what a branch begins with                                             (Sec. 6.5, SE-PRE)
post       what a residual addition gives, after its activation                  (SE-POST)
identity   what the shortcut brings to the addition                              (SE-Identity)
inner      after each k x k convolution of a branch, its norm and activation     (SE_3x3)
conv       after each convolution, its norm and activation, as in VGG            (Table 2)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from excite_keras.graph import ACTIVATIONS, NORMS, PASSING, Graph, Join, Node, is_a

__all__ = ["PLACES", "Place", "named"]


@dataclass(frozen=True)
class Place:
    """A place, before anything is put there.

    Attributes:
        label: what a reader may look for: the addition, the convolution, or the layer that was named.
        value: what a gate there would see.
        readers: who then reads the gate's output, as (call, position among its tensors); None for all who read it.
        reason: why no gate can stand there; "" if one can.
        level: the value whose resolution says the stage.
    """

    label: str
    value: int
    readers: tuple[tuple[int, int], ...] | None
    reason: str
    level: int


def _place(graph: Graph, label: str, values: list[int], level: int) -> Place:
    """On all that read the first of these values, unless one of them has a gate."""
    given = [value for value in values if value in graph.gates]
    read = [n for value in values for n in graph.consumers[value] if n in graph.gates and graph.gates[n] == value]
    if given or read:
        gate = graph.nodes[(given or read)[0]]
        return Place(
            label, values[0], None, f"{gate.name} ({type(gate.operation).__name__}) stands there already", level
        )
    return Place(label, values[0], None, "", level)


def _residual(graph: Graph) -> Iterator[Place]:
    for join in graph.joins:
        # Nearest to the convolution first: before layer scales and drop path.
        chain = list(graph.walk_back(join.branch, through=PASSING))[::-1]
        yield _place(graph, graph.nodes[join.node].name, chain, join.node)


def _pre(graph: Graph) -> Iterator[Place]:
    for join in graph.joins:
        in_branch = graph.ancestors[join.branch]
        readers = [n for n in graph.consumers[join.fork] if in_branch >> n & 1]
        yield Place(graph.nodes[join.node].name, join.fork, _edges(graph, join.fork, readers), "", join.node)


def _post(graph: Graph) -> Iterator[Place]:
    for join in graph.joins:
        values = [join.node]
        readers = [graph.nodes[n] for n in graph.consumers[join.node]]
        if len(readers) == 1 and is_a(readers[0], ACTIVATIONS):
            values.append(readers[0].index)
        yield _place(graph, graph.nodes[join.node].name, values[::-1], join.node)


def _identity(graph: Graph) -> Iterator[Place]:
    for join in graph.joins:
        edges = _edges(graph, join.shortcut, [join.node])
        yield Place(graph.nodes[join.node].name, join.shortcut, edges, "", join.node)


def _edges(graph: Graph, value: int, readers: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple((n, at) for n in dict.fromkeys(readers) for at, v in enumerate(graph.nodes[n].inputs) if v == value)


def _inner(graph: Graph) -> Iterator[Place]:
    for conv in graph.convs:
        if max(conv.operation.kernel_size) == 1:
            continue
        join = next((join for join in graph.joins if _holds(graph, join, conv)), None)
        if join is None and not _is_grouped(conv):
            continue  # stems, and whatever is in no branch; depthwise ones belong to blocks, with a shortcut or without
        yield from _after_conv(graph, conv, conv.index if join is None else join.node)


def _holds(graph: Graph, join: Join, conv: Node) -> bool:
    """Whether a convolution is in a join's branch."""
    return bool((graph.ancestors[join.branch] & ~graph.ancestors[join.fork]) >> conv.index & 1)


def _is_grouped(conv: Node) -> bool:
    depthwise = is_a(conv, frozenset({"DepthwiseConv1D", "DepthwiseConv2D"}))
    return depthwise or getattr(conv.operation, "groups", 1) > 1


def _conv(graph: Graph) -> Iterator[Place]:
    for conv in graph.convs:
        yield from _after_conv(graph, conv, conv.index)


def _after_conv(graph: Graph, conv: Node, level: int) -> Iterator[Place]:
    """Behind a convolution's activation, its own or that of the layer that follows its norm."""
    value = conv.index
    while not _activates(graph.nodes[value]):
        readers = [graph.nodes[n] for n in graph.consumers[value]]
        if len(readers) != 1 or not is_a(readers[0], ACTIVATIONS | NORMS):
            return
        value = readers[0].index
    yield _place(graph, conv.name, [value], level)


def _activates(node: Node) -> bool:
    own = getattr(node.operation, "activation", None)
    return is_a(node, ACTIVATIONS) or (own is not None and getattr(own, "__name__", "") != "linear")


# Each gives its places in the order of execution.
PLACES: dict[str, Callable[[Graph], Iterator[Place]]] = {
    "residual": _residual,
    "pre": _pre,
    "post": _post,
    "identity": _identity,
    "inner": _inner,
    "conv": _conv,
}


def named(graph: Graph, chosen: Callable[[str, Any], bool]) -> Iterator[Place]:
    """The outputs of the layers that are chosen by name and layer, in the order of execution."""
    for node in graph.nodes:
        if node.inputs and chosen(node.name, node.operation):
            place = _place(graph, node.name, [node.index], node.index)
            if graph.channels(node.index) is None:
                place = Place(node.name, node.index, None, f"it gives {node.shape}, no feature map", node.index)
            yield place


def matches(pattern: str) -> Callable[[str, Any], bool]:
    """Chooses layers whose names match, as file names do."""
    return lambda name, layer: fnmatch.fnmatchcase(name, pattern)
