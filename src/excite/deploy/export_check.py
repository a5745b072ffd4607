"""Outputs of an exported file beside those of the network: random images and pictures, several batches and sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from excite.data import load_data, normalise
from excite.deploy.export_sizes import Sizes
from excite.errors import UserError

__all__ = ["Agreement", "Comparison", "apart", "compare_outputs", "pictures"]


@dataclass(frozen=True)
class Comparison:
    """One batch.

    Args:
        images: "random", "example" or "pictures".
        shape: of the batch, [N, C, *S].
        difference: largest difference of the outputs, as a share of the network's largest.
    """

    images: str
    shape: tuple[int, ...]
    difference: float

    def __str__(self) -> str:
        """As a reader would say it."""
        return f"{self.images}, {' x '.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Agreement:
    """How a file and a network agree.

    Args:
        comparisons: one a batch.
        rounding: largest difference of the network in float32 from itself in float64, on the same images; 0 where it
            does not run in float64.
    """

    comparisons: tuple[Comparison, ...]
    rounding: float


@torch.no_grad()
def compare_outputs(
    run: Callable[[Tensor], Tensor],
    network: nn.Module,
    example: Tensor,
    sizes: Sizes,
    preprocessing: Mapping[str, Any] | None = None,
) -> Agreement:
    """Outputs of a loaded file beside the network's: batches of 1, 2 and 3, at the sizes of ``sizes.checked()``.

    Args:
        run: the file, images -> outputs.
        network: in eval mode.
        example: [N, C, *S], compared as well.
        sizes: what the file takes.
        preprocessing: how pictures are normalised, see ``pictures``.

    Raises:
        ValueError: the file does not take some of the images, or gives outputs of another shape.
    """
    precise: nn.Module | None = copy.deepcopy(network).double()
    comparisons, rounding = [], 0.0
    for what, images in _batches(example, sizes, preprocessing):
        expected = network(images)
        try:
            got = run(images)
        except Exception as error:  # each runtime has its own kinds
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"the file does not take images of shape {tuple(images.shape)}: {reason}") from error
        if got.shape != expected.shape:
            raise UserError(
                f"the file gives outputs {tuple(got.shape)}, the network {tuple(expected.shape)}, for images "
                f"{tuple(images.shape)}"
            )
        comparisons.append(Comparison(what, tuple(images.shape), apart(got, expected)))
        try:
            rounding = max(rounding, apart(expected, precise(images.double()))) if precise is not None else rounding
        except (RuntimeError, TypeError):  # it makes tensors in float32 on its way
            precise = None
    return Agreement(tuple(comparisons), rounding)


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference of two tensors, as a share of the largest number of the second; not finite, infinite."""
    one, other = one.double(), other.double()
    difference = float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
    return difference if difference == difference else float("inf")


def _batches(example: Tensor, sizes: Sizes, preprocessing: Mapping[str, Any] | None) -> Iterator[tuple[str, Tensor]]:
    generator, channels = torch.Generator().manual_seed(0), example.shape[1]
    for i, sides in enumerate(sizes.checked()):
        for n in (1, 2 + i % 2):
            images = torch.randn(n, channels, *sides, generator=generator).to(example.device)
            yield "random", images
    yield "example", example
    if example.dim() == 4:
        for n in (1, 3):
            yield "pictures", pictures(n, channels, sizes.example, preprocessing).to(example.device)


def pictures(n: int, channels: int, sides: tuple[int, ...], preprocessing: Mapping[str, Any] | None = None) -> Tensor:
    """Embedded photographs of clothes, as a network takes them.

    Args:
        n: how many.
        channels: of the images; the same grey in each.
        sides: height and width, pixels.
        preprocessing: with "mean" and "std", by which they are normalised; None takes those of the set.

    Returns:
        float32 [n, channels, *sides].
    """
    data = load_data("fashion-mnist-mini")
    images: Any = data.val
    grey = images.images[:n].expand(-1, channels, -1, -1)
    resized = interpolate(grey, sides, mode="bilinear", antialias=True)
    about = preprocessing or {"mean": data.mean * channels, "std": data.std * channels}
    return normalise(resized, tuple(about["mean"]), tuple(about["std"]))
