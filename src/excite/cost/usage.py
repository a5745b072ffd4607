"""Figures of a part of a network, and how single operations add up to modules and stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from excite.models.base import Classifier

__all__ = ["OpCost", "Row", "Usage", "ancestors", "by_module", "by_stage"]


@dataclass(frozen=True)
class Usage:
    """What a network, or a part of it, costs for the example it was counted on.

    Args:
        parameters: learnable numbers, shared ones once.
        macs: multiply-adds (not FLOPs, which are about twice as many).
        bytes_read: bytes of feature maps read; parameters and statistics are no feature maps.
        bytes_written: bytes of feature maps written.
    """

    parameters: int = 0
    macs: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def bytes_moved(self) -> int:
        """Bytes of feature maps read and written."""
        return self.bytes_read + self.bytes_written

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.parameters - other.parameters,
            self.macs - other.macs,
            self.bytes_read - other.bytes_read,
            self.bytes_written - other.bytes_written,
        )

    def to_dict(self) -> dict[str, int]:
        """Every figure by name, ``bytes_moved`` too."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "bytes_moved": self.bytes_moved,
        }


@dataclass(frozen=True)
class OpCost:
    """One executed operation.

    Args:
        op: its name, such as "aten.convolution".
        family: see ``Convention``; "tail" for the passes of a fused tail.
        module: dotted name of the innermost module that ran it; "" is the network itself.
        operations: multiply-adds for "conv" and "linear", elements read for "mean", else elements written.
        bytes_read: bytes of the feature maps it reads.
        bytes_written: bytes of the feature maps it writes.
    """

    op: str
    family: str
    module: str
    operations: int
    bytes_read: int
    bytes_written: int


Row = tuple[str, Usage]
"""What one operation or one parameter adds to the module that holds it."""


def ancestors(name: str) -> list[str]:
    """The module itself, its parents, and the network ""."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def by_module(model: nn.Module, rows: Iterable[Row]) -> dict[str, Usage]:
    """Every module's sum including its children's, by dotted name."""
    sums: dict[str, Usage] = {name: Usage() for name, _ in model.named_modules()}
    for module, part in rows:
        for name in ancestors(module):
            sums[name] += part
    return sums


def by_stage(model: nn.Module, sequences: Iterable[Sequence[Row]]) -> dict[str, Usage]:
    """Sums of "stem", "stage1", ..., "head", for networks that have stages; empty for others.

    Args:
        model: the network; its classifier's ``stage_of`` says which stage a module belongs to, and for networks of
            other libraries the usual names ``layer1``, ``layer2``, ... do.
        sequences: rows in the order of the network. What stands outside all stages is "stem" before the first one,
            "head" after the last one, and between two, such as a pool of its own, belongs to the one before.
    """
    sums: dict[str, Usage] = defaultdict(Usage)
    for rows in sequences:
        stages = [_stage_of(model, module) for module, _ in rows]
        last = max((i for i, stage in enumerate(stages) if stage is not None), default=-1)
        current = "stem"
        for i, ((_, usage), stage) in enumerate(zip(rows, stages, strict=True)):
            if stage is not None:
                current = f"stage{stage}"
            sums["head" if i > last >= 0 else current] += usage
    if set(sums) <= {"stem"}:
        return {}
    return {name: sums[name] for name in sorted(sums, key=_order)}


def _stage_of(model: nn.Module, name: str) -> int | None:
    # Called on the class, since other libraries' networks share only the custom of the names.
    return model.stage_of(name) if isinstance(model, Classifier) else Classifier.stage_of(model, name)  # type: ignore[arg-type]


def _order(name: str) -> tuple[int, int]:
    return (0, 0) if name == "stem" else (2, 0) if name == "head" else (1, int(name.removeprefix("stage")))
