"""Small pictures inside a page, within a budget."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from excite.data import DataSet
from excite.data.dataset import ArraySplit, FileSplit
from excite.errors import UserError

__all__ = ["BUDGET", "SMALL", "Thumbnail", "pictures_of", "pictures_seen", "thumbnails"]

#: Characters that all pictures of a page may take together.
BUDGET = 1_600_000
#: Pictures of up to so many pixels a side are kept whole and shown without smoothing.
SMALL = 40
_SIDES = (96, 64, 48)


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI.

    Attributes:
        uri: "data:image/...".
        small: whether it has few pixels, to be shown as they are.
    """

    uri: str
    small: bool


def pictures_of(data: DataSet, split: str) -> Callable[[Sequence[int]], dict[int, Tensor]]:
    """What gives pictures of a data set by their places in a split: uint8 [C, S, S], as a person sees them."""
    chosen = data.train if split == "train" else data.val

    def from_memory(indices: Sequence[int]) -> dict[int, Tensor]:
        assert isinstance(chosen, ArraySplit)
        return {i: chosen.images[i] for i in indices}

    def from_files(indices: Sequence[int]) -> dict[int, Tensor]:
        from excite.data.pictures import load_image

        assert isinstance(chosen, FileSplit)
        seen = {"image_size": _SIDES[0], "in_channels": data.in_channels, "view": data.view}
        return {i: load_image(chosen.root / chosen.paths[i], seen) for i in indices}

    return from_memory if isinstance(chosen, ArraySplit) else from_files


def pictures_seen(batches: Iterable[Any]) -> Callable[[Sequence[int]], dict[int, Tensor]]:
    """What gives pictures out of batches of inputs by their places: darkest to lightest of each input, as 0 to 255.

    The batches are gone through once more; pictures that do not come again are left out.
    """

    def from_batches(indices: Sequence[int]) -> dict[int, Tensor]:
        wanted, found, start = set(indices), {}, 0
        for batch in batches:
            images = batch[0]
            given = len(batch) == 3 and not (len(batch[2]) and isinstance(batch[2][0], str))
            places = np.asarray(batch[2]).tolist() if given else range(start, start + len(images))
            for row, place in enumerate(places):
                if place in wanted and images.dim() == 4:
                    found[place] = _stretched(images[row])
            start += len(images)
            if len(found) == len(wanted):
                break
        return found

    return from_batches


def _stretched(image: Tensor) -> Tensor:
    image = image.detach().float().cpu()
    if len(image) not in (1, 3):  # no colours that a screen has
        image = image.mean(0, keepdim=True)
    low, high = image.min(), image.max()
    return ((image - low) * (255 / (high - low).clamp(min=1e-12))).round().to(torch.uint8)


def thumbnails(pictures: dict[int, Tensor], *, budget: int = BUDGET) -> dict[int, Thumbnail]:
    """Each picture [C, H, W], uint8, as small as needed for all to stay within ``budget`` characters.

    Where even the smallest do not fit, the last ones are left out.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise UserError("thumbnails need Pillow: install excite[explain], or leave pictures out") from None
    made: dict[int, Thumbnail] = {}
    for side in _SIDES:
        made = {i: _encoded(Image, picture, side) for i, picture in pictures.items()}
        if sum(len(t.uri) for t in made.values()) <= budget:
            return made
    kept: dict[int, Thumbnail] = {}
    for i, thumbnail in made.items():
        budget -= len(thumbnail.uri)
        if budget < 0:
            break
        kept[i] = thumbnail
    return kept


def _encoded(pillow: Any, picture: Tensor, side: int) -> Thumbnail:
    pixels = picture.permute(1, 2, 0).numpy()
    image = pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small = max(image.size) <= SMALL
    image.thumbnail((side, side))
    out = io.BytesIO()
    if small:
        image.save(out, "PNG", optimize=True)
    else:
        image.save(out, "JPEG", quality=72, optimize=True)
    kind = "png" if small else "jpeg"
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", small)
