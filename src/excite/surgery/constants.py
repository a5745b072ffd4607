"""Gates that became constants: what a network keeps of them, and how it is built so again.

A gate whose scale hardly changes from image to image is replaced by its mean, and that is folded into the weights
beside it (``excite.deploy.folding``) or, where it cannot be, left as one multiplication. What was done is written down
on the network, as attached gates are, so that a checkpoint can say it and a network from one has the same modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excite.errors import unknown
from excite.gates.base import ATTACHED, check_channels
from excite.graph import unwrapped
from excite.graph.rewrite import forget_compiled
from excite.graph.rewrite import replace as replace_module
from excite.surgery.edit import check_kind, settled
from excite.surgery.swap import put_gate

__all__ = ["ChannelScale", "Slimmed", "put_constant", "slim_at_", "slimmed", "take_out", "write_slimmed"]

# Where a network keeps what became of its gates: a plain attribute, which copies and pickles take along.
_RECORD = "_excite_slimmed"


class ChannelScale(nn.Module):
    """One factor a channel, the same for every image: what a gate is whose scale is its mean.

    Args:
        scale: C numbers.
        axes: spatial axes of the maps, 1 to 3.

    Shape:
        - input: [N, C, *S]
        - output: as the input

    Attributes:
        scale: a parameter, [C, 1, ...] with a 1 for each spatial axis.
        channels: C.
    """

    def __init__(self, scale: Tensor, axes: int = 2) -> None:
        super().__init__()
        self.channels = check_channels(scale.numel())
        self.scale = nn.Parameter(scale.detach().clone().reshape(-1, *(1,) * axes))

    def forward(self, u: Tensor) -> Tensor:
        """The map, each channel times its factor."""
        # No look at the shape: what traces a network could not follow it.
        return u * self.scale.to(u.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.channels}, axes={self.scale.dim() - 1}"


@dataclass(frozen=True)
class Slimmed:
    """What became of a gate, as a checkpoint keeps it.

    Args:
        name: the gate's dotted name.
        channels: of its maps.
        axes: spatial axes of its maps.
        folded: whether nothing stands in its place; else a ``ChannelScale`` does.
    """

    name: str
    channels: int
    axes: int
    folded: bool

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able."""
        return asdict(self)


def put_constant(model: nn.Module, name: str, scale: Tensor, axes: int = 2) -> ChannelScale:
    """Put a constant in the place of the gate of this dotted name, in the network's dtype and device.

    Args:
        model: the network.
        name: of the gate.
        scale: [C].
        axes: spatial axes of its maps.
    """
    constant = ChannelScale(scale, axes)
    settled(constant, model.get_submodule(name), model)
    replace_module(model, name, constant)  # where it is an attached one, its site stays written down
    return constant


def take_out(model: nn.Module, name: str) -> None:
    """Leave nothing in the place of the gate of this dotted name."""
    put_gate(model, name, None)


def slimmed(model: nn.Module) -> list[Slimmed]:
    """What became of a network's gates: those that are gone, and those left as constants."""
    items: Iterable[Slimmed] = unwrapped(model).__dict__.get(_RECORD, ())
    there = dict(unwrapped(model).named_modules())
    return [item for item in items if item.folded or isinstance(there.get(item.name), ChannelScale)]


def write_slimmed(model: nn.Module, items: Iterable[Slimmed]) -> None:
    """Add to what a network keeps of its gates; later words about a gate replace earlier ones."""
    by_name = {item.name: item for item in (*slimmed(model), *items)}
    if by_name:
        unwrapped(model).__dict__[_RECORD] = tuple(by_name.values())


def slim_at_(model: nn.Module, items: Sequence[Slimmed]) -> None:
    """Take out gates, or put constants of 1 in their places, as ``slimmed`` lists them for another network of the make.

    Attached gates that are gone may be missing: ``attached`` lists them no more.

    Raises:
        ValueError: a gate that the network does not have. The network is as it was.
    """
    model = unwrapped(model)
    check_kind(model)
    names = [name for name, _ in model.named_modules() if name]
    for item in items:
        if item.name not in names and not (item.folded and _was_attached(item.name)):
            raise unknown("gate", item.name, names)
    for item in items:
        if item.folded and item.name in names:
            take_out(model, item.name)
        elif not item.folded:
            put_constant(model, item.name, torch.ones(item.channels), item.axes)
    write_slimmed(model, items)
    forget_compiled()


def _was_attached(name: str) -> bool:
    return name.rpartition(".")[2].startswith(ATTACHED)
