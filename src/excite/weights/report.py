"""What was loaded from where, and what was decided on the way."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["LoadReport"]


@dataclass(frozen=True)
class LoadReport:
    """What ``load_weights`` did, tensor by tensor.

    Every tensor of the network is in exactly one of ``matched``, ``zeroed``, ``fresh`` and ``missing``, but for norms'
    counters of batches, which old files do not have. ``str()`` of it is for reading.

    Args:
        source: the zoo or zoos that write these names, with the network where a name decided.
        origin: the file's name.
        matched: names of the network's tensors that were loaded.
        renamed: of these, those that the source calls otherwise -> the source's name.
        transposed: of these, those whose axes the source has in another order.
        reshaped: of these, those that have more or fewer axes there, as 1x1 convolutions and linear layers do.
        zeroed: tensors that the source leaves out because they are zero in its network, and that were set to zero.
        fresh: tensors that were left as they were because ``fresh`` said so, or because neutral gates were at their
            start.
        missing: tensors that the source does not have, left as they were; empty unless ``strict=False``.
        unused: the source's tensors that have no place in the network. Without ``strict=False`` only those that
            change nothing, each with its reason in ``notes``.
        notes: what was decided, and why.
    """

    source: str
    origin: str
    matched: tuple[str, ...]
    renamed: dict[str, str]
    transposed: tuple[str, ...]
    reshaped: tuple[str, ...]
    zeroed: tuple[str, ...]
    fresh: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        total = sum(map(len, (self.matched, self.zeroed, self.fresh, self.missing)))
        renamed = [f"{theirs} -> {ours}" for ours, theirs in self.renamed.items()]
        rows: dict[str, Collection[str]] = {
            "renamed": renamed,
            "transposed": self.transposed,
            "reshaped": self.reshaped,
            "set to zero": self.zeroed,
            "left fresh": self.fresh,
            "missing": self.missing,
            "unused": self.unused,
        }
        lines = [f"{self.origin} ({self.source}): {len(self.matched)} of {total} tensors loaded"]
        lines += [f"  {what:<12}{len(which):>5}   {listed(which, 2)}" for what, which in rows.items() if which]
        return "\n".join([*lines, *(f"  - {note}" for note in self.notes)])


def listed(names: Collection[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    shown = list(names)[:most]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
