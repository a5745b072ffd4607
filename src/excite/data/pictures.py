"""Pictures in files: seen as a person sees them, cut, resized, and checked before training begins.

Decoding is Pillow's; cutting and resizing work on uint8 tensors, which is faster than Pillow's own resizing. Large JPEG
files are decoded at a half, a quarter or an eighth when that is still no smaller than what is needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from excite.data.counter import Stream, random_word, unit
from excite.errors import UserError

__all__ = ["check_pictures", "crop_box", "load_image", "read_picture"]

Box = tuple[int, int, int, int]

_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_TRIES = 10
_PART = 64


def read_picture(
    path: str | os.PathLike[str], size: int, choose: Callable[[int, int], Box], *, channels: int = 3
) -> Tensor:
    """One picture, as a person sees it, cut to a box and resized to a square.

    Turned as its EXIF orientation says; transparent parts over white; palettes, CMYK, grey and 16-bit pictures as RGB
    (or grey); the first frame of an animation.

    Args:
        path: a file that Pillow can read.
        size: height and width in pixels.
        choose: gives the box (left, top, right, bottom) to keep, from the width and height of the upright picture.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        uint8 [channels, size, size], bilinear with antialiasing.

    Raises:
        Exception: whatever Pillow raises for a file that it cannot read.
    """
    with Image.open(path) as image:
        kind, (width, height) = image.format, image.size
        if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
            width, height = height, width
        box = choose(width, height)
        _decode(image, size / min(box[2] - box[0], box[3] - box[1]))
        scale_x, scale_y = image.width / width, image.height / height
        left, right = round(box[0] * scale_x), max(round(box[2] * scale_x), round(box[0] * scale_x) + 1)
        top, bottom = round(box[1] * scale_y), max(round(box[3] * scale_y), round(box[1] * scale_y) + 1)
        pixels = _flat(image.crop((left, top, right, bottom)), kind, channels)
    cut = torch.from_numpy(np.array(pixels)).view(pixels.height, pixels.width, -1).permute(2, 0, 1)
    if cut.shape[1:] != (size, size):
        cut = interpolate(cut[None], (size, size), mode="bilinear", antialias=True)[0]
    return cut.expand(channels, -1, -1).contiguous()


def load_image(path: str | os.PathLike[str], preprocessing: Mapping[str, Any]) -> Tensor:
    """A picture prepared for prediction as `DataSet.preprocessing` says, but for `normalise`.

    Args:
        path: a file that Pillow can read.
        preprocessing: with "in_channels", "image_size" and "view".

    Returns:
        uint8 [C, S, S].

    Raises:
        UserError: the file cannot be read; names it and the reason.
    """
    try:
        return read_picture(
            path,
            int(preprocessing["image_size"]),
            lambda width, height: centre_box(width, height, float(preprocessing["view"])),
            channels=int(preprocessing["in_channels"]),
        )
    except Exception as error:
        raise UserError(f"{path} cannot be read as a picture: {_reason(error)}") from error


def centre_box(width: int, height: int, view: float) -> Box:
    """The square in the middle whose side is ``view`` times the shorter side: what resizing and a centre crop keep."""
    side = max(round(min(width, height) * view), 1)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def crop_box(width: int, height: int, *, seed: int, epoch: int, index: int) -> Box:
    """A random box of 8 to 100 % of the area and a ratio of 3:4 to 4:3 (Szegedy et al., arXiv 1409.4842, Sec. 6).

    Up to ten boxes are drawn until one fits; then the largest in the middle with an allowed ratio is taken. A function
    of its arguments alone.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        seed: the run's seed.
        epoch: counts from 0.
        index: the picture's place in its split.

    Returns:
        (left, top, right, bottom).
    """

    def draw(stream: int) -> float:
        return unit(random_word(index, stream=stream, seed=seed, epoch=epoch))

    for k in range(_TRIES):
        stream = Stream.BOX + 4 * k
        area = width * height * (_AREA[0] + draw(stream) * (_AREA[1] - _AREA[0]))
        low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
        ratio = math.exp(low + draw(stream + 1) * (high - low))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left = int(draw(stream + 2) * (width - wide + 1))
            top = int(draw(stream + 3) * (height - tall + 1))
            return left, top, left + wide, top + tall
    wide = min(width, max(round(height * _RATIO[1]), 1))
    tall = min(height, max(round(width / _RATIO[0]), 1))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def check_pictures(root: Path, paths: Sequence[str], *, threads: int | None = None) -> dict[str, str]:
    """Decode every picture once and say which ones cannot be, with the reason.

    Results are remembered in this process by path, size and time of change, so loading the same folder again costs
    only a look at each file.

    Args:
        root: the folder that ``paths`` are relative to.
        paths: file names.
        threads: how many at once; None: a few more than there are cores.

    Returns:
        reason by path, of the unreadable ones alone, in the order of ``paths``.
    """

    def check(part: Sequence[str]) -> list[str | None]:
        return [_check(str(root / path)) for path in part]

    parts = [paths[k : k + _PART] for k in range(0, len(paths), _PART)]
    with ThreadPoolExecutor(threads) as pool:
        reasons = chain.from_iterable(pool.map(check, parts))
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason is not None}


# Hashes of (path, size, time of change): a set of a million files would make the tuples themselves heavy.
_checked: dict[int, str | None] = {}


def _check(path: str) -> str | None:
    try:
        about = os.stat(path)
    except OSError as error:
        return _reason(error)
    key = hash((os.path.abspath(path), about.st_size, about.st_mtime_ns))
    if key not in _checked:
        _checked[key] = _fault(path)
    return _checked[key]


def _fault(path: str) -> str | None:
    # Decoders of broken files raise nearly anything (OSError, SyntaxError, struct.error, IndexError, ...); whatever it
    # is, this is a picture that training could not use.
    try:
        with Image.open(path) as image:
            # An eighth of the size still reads a JPEG to its end, in a third of the time.
            kind = image.format
            _decode(image, 0)
            _flat(image, kind, 3)
    except Exception as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _decode(image: Image.Image, scale: float) -> None:
    """Decode in place, upright; where the format can, smaller, but no smaller than ``scale`` times its size."""
    image.draft(None, (max(math.ceil(image.width * scale), 1), max(math.ceil(image.height * scale), 1)))
    ImageOps.exif_transpose(image, in_place=True)


def _flat(image: Image.Image, kind: str | None, channels: int) -> Image.Image:
    """8-bit grey for grey pictures, RGB for others (grey if ``channels`` is 1), over white where transparent."""
    # Pillow opens 16-bit PNG and PGM as "I;16" or as "I", by version; "I" of other formats has 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no agreed black and white")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    if channels == 1 or image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")
