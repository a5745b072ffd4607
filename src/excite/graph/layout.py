"""Which axis of each value is the one of channels: gates take maps [N, C, *S], and transformers have [N, *S, C].

Convolutions write channels first, fully connected layers last, and what moves axes or keeps them is followed.
"""

from __future__ import annotations

import math

from excite.graph.record import Node, Recording, Value

__all__ = ["channel_axes"]

_FIRST = frozenset(
    """convolution _convolution native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    cudnn_batch_norm native_group_norm""".split()
)
_LAST = frozenset({"mm", "addmm"})
_PRODUCTS = frozenset({"bmm", "baddbmm"})


def channel_axes(recording: Recording) -> list[int | None]:
    """By value, the axis of its channels; None where it is not known."""
    axes: list[int | None] = []
    for value in recording.values:
        node = None if value.node is None else recording.nodes[value.node]
        axes.append(None if node is None else _axis(value, node, recording, axes))
    return axes


def _axis(value: Value, node: Node, recording: Recording, axes: list[int | None]) -> int | None:
    if node.op in _FIRST:
        return 1
    if node.op in _LAST:
        return len(value.shape) - 1
    if node.op in _PRODUCTS:
        # A layer over channels, where one of the two is its weight: x W^T, or W x.
        for i, v in enumerate(node.inputs[-2:], start=1):
            if recording.values[v].weight:
                return i
    known = [v for v in node.inputs if axes[v] is not None and not recording.values[v].weight]
    if not known:
        return len(value.shape) - 1 if node.op == "native_layer_norm" else None
    # Of several, as of a map and its scale, the one of the most elements.
    source = max(known, key=lambda v: math.prod(recording.values[v].shape))
    axis = axes[source]
    assert axis is not None
    if node.axes:
        return node.axes.index(axis)
    return _kept(axis, recording.values[source].shape, value.shape)


def _kept(axis: int, old: tuple[int, ...], new: tuple[int, ...]) -> int | None:
    """Where an axis is after its tensor was given another shape."""
    if len(new) == len(old):
        return axis
    if axis == len(old) - 1 and new[-1:] == old[-1:]:
        return len(new) - 1
    return axis if new[: axis + 1] == old[: axis + 1] else None
