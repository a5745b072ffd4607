"""Finding the places of a network where gates can be put; nothing is changed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excite.errors import UserError, unknown
from excite.gates import GateConfig, parse_gate
from excite.graph import View, as_inputs, record, unwrapped
from excite.surgery.places import PLACES, Place, matched, named, selected

__all__ = ["Refusal", "Site", "SiteCost", "Survey", "Where", "find_sites", "levels_of", "stage_of", "survey"]

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]
"""Where gates go; see ``find_sites``."""


@dataclass(frozen=True)
class SiteCost:
    """What a gate adds for one image.

    Args:
        parameters: learnable numbers.
        macs: multiply-adds: the gate's layers, and one for each element squeezed and each rescaled.
        bytes_moved: of float32 maps, read and written one operation after the other: the map is read to be squeezed,
            and read and written to be rescaled.
    """

    parameters: int
    macs: int
    bytes_moved: int


@dataclass(frozen=True)
class Site:
    """A place where a gate can be put.

    Args:
        module: dotted name of the module that the gate hangs on.
        side: "out", the gate takes what the module returns; "in", what it is given.
        channels: of the map there.
        size: its positions, as many numbers as it has spatial axes, for the example given.
        stage: counted from 1, see ``find_sites``; 0 is the stem.
        label: what the place belongs to: the block that adds, the convolution, or the module that was named.
    """

    module: str
    side: str
    channels: int
    size: tuple[int, ...]
    stage: int
    label: str

    def cost(self, gate: str | GateConfig = "se") -> SiteCost:
        """What a gate there would add."""
        config = parse_gate(gate)
        if config is None:
            return SiteCost(0, 0, 0)
        # It loads PyTorch's compiler, which not every process bears.
        from torch.utils.flop_counter import FlopCounterMode

        elements = self.channels * math.prod(self.size)
        with torch.device("meta"):
            module = config.build(self.channels)
            with FlopCounterMode(display=False) as flops, torch.no_grad():
                module(torch.empty(1, self.channels, *self.size))
        parameters = sum(p.numel() for p in module.parameters())
        return SiteCost(parameters, flops.get_total_flops() // 2 + 2 * elements, 3 * 4 * elements)


@dataclass(frozen=True)
class Refusal:
    """A place where no gate can be put.

    Args:
        label: what the place belongs to.
        shape: of the map there, without the batch: (C, *S); empty where there is none.
        stage: as a site's.
        reason: why not.
    """

    label: str
    shape: tuple[int, ...]
    stage: int
    reason: str


@dataclass(frozen=True)
class Survey:
    """What was found in a network.

    Args:
        where: what was looked for, as text.
        joins: residual additions in the network.
        sites: places where a gate can be put, in the order of execution.
        refused: places of the same kind where none can.
    """

    where: str
    joins: int
    sites: tuple[Site, ...]
    refused: tuple[Refusal, ...]

    @property
    def why_none(self) -> str:
        """Why there is no site, in a sentence."""
        if self.refused:
            reasons = "; ".join(f"{r.label}: {r.reason}" for r in self.refused[:3])
            more = f"; and {len(self.refused) - 3} more" if len(self.refused) > 3 else ""
            return f"where={self.where!r}: no place can take a gate. {reasons}{more}"
        if self.joins == 0 and self.where in ("residual", "pre", "post", "identity"):
            return (
                f"where={self.where!r}: the network has no residual additions; where='conv' puts gates after "
                "convolutions, where='block:PATTERN' after modules of your choice. Additions of parallel branches, and "
                "of what others read too, are none"
            )
        return f"where={self.where!r}: nothing in the network is such a place"


def find_sites(
    model: nn.Module,
    example: Tensor | Sequence[Any],
    *,
    where: Where = "residual",
    stages: Sequence[int] | None = None,
) -> list[Site]:
    """The places in any network where gates can be put.

    The network is run once in eval mode, without data where it can be; it is left as it is. ``survey`` tells also
    which places of the kind cannot take a gate.

    Args:
        model: any network.
        example: an input it takes, or a tuple of its positional inputs; a tensor on the meta device does.
        where: one of

            - "residual": what each branch brings to its residual addition, before drop path and layer scale where these
              are modules: the SE paper's standard
            - "pre", "post", "identity", "inner": its other placements (arXiv 1709.01507, Sec. 6.5): before the branch,
              after the addition and its activation, on the shortcut, after k x k convolutions inside
            - "conv": after the activation of each convolution, as in VGG
            - "block:PATTERN": the output of each module whose dotted name matches, as "block:layer*.*"; ``*`` stays
              between dots, ``**`` does not
            - names of modules: the output of each
            - a function of a module's dotted name and the module: the output of each for which it is true
        stages: only places in these stages. Stages are the resolutions at which the network adds residuals (where it
            does not, at which it convolves), finest first, from 1.

    Returns:
        The sites in the order of execution; at least one.

    Raises:
        ValueError: nothing was found, with what is there instead; a stage that the network does not have; an example
            that it does not take; a scripted network.
    """
    found = survey(model, example, where=where, stages=stages)
    if not found.sites:
        raise UserError(f"{type(unwrapped(model)).__name__}: {found.why_none}")
    return list(found.sites)


def survey(
    model: nn.Module,
    example: Tensor | Sequence[Any],
    *,
    where: Where = "residual",
    stages: Sequence[int] | None = None,
) -> Survey:
    """What ``find_sites`` finds, and the places of the same kind that cannot take a gate, each with its reason.

    Args:
        model: any network.
        example: as in ``find_sites``.
        where: as in ``find_sites``.
        stages: as in ``find_sites``.

    Raises:
        ValueError: as ``find_sites``, but nothing found is no error here.
    """
    model = unwrapped(model)
    where = _checked_where(where)
    view = View(record(model, as_inputs(example)), model)
    levels = levels_of(view)
    found = _places(view, model, where)
    places = [(place, 0 if place.level < 0 else stage_of(view, place.level, levels)) for place in found]
    if stages is not None:
        chosen = _checked(stages, len(levels))
        places = [(place, stage) for place, stage in places if stage in chosen]
    sites, refused, taken = [], [], set()
    for place, stage in places:
        shape = () if place.value is None else view.values[place.value].shape[1:]
        reason = place.reason
        if place.anchor is not None and place.value is not None and view.has_channels_last(place.value):
            reason = "channels are not the second axis there, and a gate takes [N, C, *S]"
        if reason or place.anchor is None:
            refused.append(Refusal(place.label, shape, stage, reason))
        elif place.anchor not in taken:
            taken.add(place.anchor)
            site = Site(place.anchor.module, place.anchor.side, shape[0], shape[1:], stage, place.label)
            sites.append(site)
    return Survey(_text(where), len(view.joins), tuple(sites), tuple(refused))


def _checked_where(where: Where) -> Where:
    if isinstance(where, str) or callable(where):
        return where
    if not isinstance(where, Iterable):
        raise UserError(
            f"where={where!r}: give one of {', '.join(PLACES)}, 'block:PATTERN', names of modules, or a function"
        )
    return tuple(where)


def _text(where: Where) -> str:
    if callable(where):
        return getattr(where, "__name__", type(where).__name__)
    return where if isinstance(where, str) else ", ".join(where)


def _places(view: View, model: nn.Module, where: Where) -> Iterable[Place]:
    names = [name for name in view.modules if name]
    if callable(where):
        return named(view, selected(model, where))
    if isinstance(where, str):
        if where in PLACES:
            return PLACES[where](view)
        kind, colon, pattern = where.partition(":")
        if kind == "block" and colon:
            found = matched(names, pattern)
            if not found:
                raise unknown("module", pattern, names, hint=f"nothing matches where={where!r}")
            return named(view, found)
        if where in names:
            return named(view, [where])
        hint = f"Places are {', '.join(PLACES)}, block:PATTERN and the names of modules"
        raise unknown("place", where, [*PLACES, "block:PATTERN", *names], hint=hint)
    for name in where:
        if name not in view.modules or not name:
            raise unknown("module", name, names)
    return named(view, list(where))


def levels_of(view: View) -> list[int]:
    """How many positions the maps of each stage have, the most first."""
    maps = [view.nodes[join.node].output for join in view.joins] or [conv.output for conv in view.convs]
    return sorted({math.prod(view.values[m].shape[2:]) for m in maps}, reverse=True)


def stage_of(view: View, value: int, levels: list[int]) -> int:
    """The stage of a map, by its positions."""
    positions = math.prod(view.values[value].shape[2:])
    return sum(level >= positions for level in levels)


def _checked(stages: Sequence[int], n_stages: int) -> set[int]:
    if isinstance(stages, str) or not isinstance(stages, Iterable):
        raise UserError(f"stages={stages!r}: give a sequence of some of 1 to {n_stages}, as (2, 3)")
    stages = tuple(stages)
    for stage in stages:
        if isinstance(stage, bool) or stage not in range(1, n_stages + 1):
            raise UserError(f"stages={tuple(stages)!r}: this network has stages 1 to {n_stages}")
    if not stages:
        raise UserError(f"stages=() puts no gate anywhere: give some of 1 to {n_stages}")
    return set(stages)
