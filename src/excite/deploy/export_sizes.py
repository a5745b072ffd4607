"""Which image sizes an exported network takes: found by asking the network itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Sizes", "find_sizes", "with_minimum"]

# Networks that halve their maps up to seven times, and want that to come out even.
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Sizes:
    """The sides, in pixels, that the images of an exported network may have; every side by itself.

    Args:
        example: sides of the example that it was exported with.
        minimum: the smallest side.
        step: sides are multiples of it; None where only the example's own sides are taken.
    """

    example: tuple[int, ...]
    minimum: int
    step: int | None

    def __str__(self) -> str:
        """As a reader would say it."""
        if self.step is None:
            return f"{' x '.join(map(str, self.example))} only"
        parts = [f"at least {self.minimum} pixels a side"] if self.minimum > 1 else []
        parts += [f"sides multiples of {self.step}"] if self.step > 1 else []
        return ", ".join(parts) or "any"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**dataclasses.asdict(self), "example": list(self.example)}

    def checked(self) -> list[tuple[int, ...]]:
        """Sides to compare outputs at: the example's, the smallest, and ones that are larger and not square."""
        if self.step is None:
            return [self.example]
        smallest = (self.minimum,) * len(self.example)
        other = tuple(side + (i + 1) * max(self.step, 3) for i, side in enumerate(self.example))
        other = tuple(side - side % self.step for side in other)
        return list(dict.fromkeys([self.example, smallest, other]))


def find_sizes(model: nn.Module, example: Tensor) -> Sizes:
    """What a network takes beside its example: the step of its sides, and the smallest square.

    It is run without data where that is possible.

    Args:
        model: a network in eval mode.
        example: [N, C, *S], which it takes.
    """
    runs = _runner(model, example)
    sides = tuple(example.shape[2:])
    step = next((step for step in _STEPS if _takes_other(runs, sides, step)), None)
    if step is None:
        return Sizes(sides, min(sides), None)
    # Sides that the step does not divide could not have been the example's.
    return Sizes(sides, _smallest(lambda side: runs((side,) * len(sides)), min(sides), step), step)


def with_minimum(sizes: Sizes, runs: Callable[[tuple[int, ...]], bool]) -> Sizes:
    """The sizes with the smallest side raised to what ``runs``, square or not, takes as well."""
    if sizes.step is None:
        return sizes
    step, axes = sizes.step, len(sizes.example)

    def both(side: int) -> bool:
        return side >= sizes.minimum and runs((side,) * axes) and runs((side, *(side + step,) * (axes - 1)))

    return dataclasses.replace(sizes, minimum=_smallest(both, min(sizes.example), step))


def _smallest(runs: Callable[[int], bool], known: int, step: int) -> int:
    """The smallest multiple of ``step`` that runs, by halving; what is larger than one that runs is taken to run."""
    low, high = 0, known // step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle * step) else (middle, high)
    return high * step


def _takes_other(runs: Callable[[tuple[int, ...]], bool], sides: tuple[int, ...], step: int) -> bool:
    """Whether sides by which only this step shows are taken: odd multiples of it beyond the example's, not square."""
    if any(side % step for side in sides):
        return False
    return runs(tuple(side + (2 * i + 1) * step for i, side in enumerate(sides)))


def _runner(model: nn.Module, example: Tensor) -> Callable[[tuple[int, ...]], bool]:
    """Whether the network takes one image of these sides."""
    shape, dtype = example.shape, example.dtype
    twin, device = copy.deepcopy(model).to("meta"), torch.device("meta")

    def runs(sides: tuple[int, ...]) -> bool:
        try:
            with torch.no_grad():
                y = twin(torch.zeros(1, shape[1], *sides, dtype=dtype, device=device))
        except Exception:  # whatever a network does with an image that is too small
            return False
        return not isinstance(y, Tensor) or y.numel() > 0

    if not runs(tuple(shape[2:])):  # it looks at values
        twin, device = model, example.device
    return runs
