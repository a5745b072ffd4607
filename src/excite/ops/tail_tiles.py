"""How the GPU's passes cut maps into tiles: rules that depend on shape, layout and dtype alone.

No autotuning: which tile sums are taken over decides how they round, and a choice by stopwatch may differ from run to
run. Benchmarks give the launchers of ``tail_triton`` tiles of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = ["TILES", "Plan", "Tile", "cut_up", "positions_inner", "power_of_2"]


@dataclass(frozen=True)
class Tile:
    """How much of a map one program takes.

    Args:
        values: of the map, a power of two, at most; halved while that gives too few programs.
        warps: threads / 32 that share them.
    """

    values: int
    warps: int


# Each value takes a register for every map that the pass holds at a time: these leave room for 4 programs or more on a
# multiprocessor, so that some load while others sum. Moments holds one map only, and takes larger tiles to write fewer
# partial results (8 bytes for each channel of a tile).
TILES: Mapping[str, Tile] = MappingProxyType(
    {
        "moments": Tile(8192, 4),
        "affine_act": Tile(4096, 4),
        "affine_act_grad": Tile(4096, 4),
        "moments_grad": Tile(4096, 4),
    }
)
# 4 programs for each of the 132 multiprocessors of an H100 or H200: fewer leave some idle.
_ENOUGH_PROGRAMS = 528
_SMALLEST_TILE = 1024
# A line of cache: the least of a channels_last row that is worth fetching from memory.
_LINE_BYTES = 128


@dataclass(frozen=True)
class Plan:
    """How a map is cut into tiles: ``samples`` x ``positions`` x ``channels``, as ``tail_kernels`` sees it.

    Args:
        samples: N for channels_last, 1 for a contiguous map.
        channels: C for channels_last, N * C for a contiguous map.
        positions: P, the product of the spatial axes.
        p_inner: positions lie side by side in memory (contiguous), not channels.
        block_p: positions in a tile, a power of two.
        block_c: channels in a tile, a power of two.
        warps: of each program.
    """

    samples: int
    channels: int
    positions: int
    p_inner: bool
    block_p: int
    block_c: int
    warps: int

    @property
    def align(self) -> int:
        """What divides the length of a row in memory, up to 8: how many values are loaded at a time."""
        return _align(self.positions if self.p_inner else self.channels)

    @property
    def tiles_p(self) -> int:
        """Tiles along the positions of one sample."""
        return -(-self.positions // self.block_p)

    @property
    def tiles_c(self) -> int:
        """Tiles along the channels of one sample."""
        return -(-self.channels // self.block_c)

    @property
    def programs(self) -> int:
        """Tiles in all."""
        return self.samples * self.tiles_p * self.tiles_c


def positions_inner(x: Tensor) -> bool | None:
    """True for a contiguous map, False for channels_last, None for neither."""
    if x.is_contiguous():
        return True
    return False if x.movedim(1, -1).is_contiguous() else None


def _align(length: int) -> int:
    return next(a for a in (8, 4, 2, 1) if length % a == 0)


def power_of_2(n: int) -> int:
    """The least one that is no less than ``n``, at least 1."""
    return 1 << max(n - 1, 0).bit_length()


def cut_up(x: Tensor, tile: Tile) -> Plan:
    """The tiles for a contiguous or channels_last map [N, C, *S]; they depend on shape, layout and dtype alone."""
    n, c, *space = x.shape
    p, p_inner = prod(space), bool(positions_inner(x))
    samples, channels = (1, n * c) if p_inner else (n, c)
    # Float64 takes two registers a value, and a row that no 4 values divide takes a load and an address for each.
    slow = _align(p if p_inner else c) < 4
    values = max(tile.values // (2 if x.dtype == torch.float64 else 1) // (4 if slow else 1), 1)

    def cut(values: int) -> Plan:
        if p_inner:
            block_p = min(power_of_2(p), values)
        else:
            line = min(power_of_2(c), _LINE_BYTES // x.element_size())
            block_p = min(power_of_2(p), max(values // line, 1))
            # Offsets within a tile have 32 bits.
            while block_p > 1 and block_p * c >= 2**31:
                block_p //= 2
        block_c = min(power_of_2(channels), values // block_p)
        warps = max(1, min(tile.warps, block_p * block_c // 256))
        return Plan(samples, channels, p, p_inner, block_p, block_c, warps)

    plan = cut(values)
    while values > _SMALLEST_TILE and plan.programs < _ENOUGH_PROGRAMS:
        values //= 2
        plan = cut(values)
    return plan
