"""Pictures and folders that the tests of data are made of."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def photo(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A smooth RGB picture [height, width, 3] without symmetry, so that a turn, a flip or a swap of colours is seen."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC))


def write_pictures(folder: Path, count: int, *, side: int = 12, seed: int = 0) -> list[Path]:
    """``count`` different PNG files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(count):
        path = folder / f"{k:03d}.png"
        Image.fromarray(photo(side, side + 4, seed=1000 * seed + k)).save(path)
        paths.append(path)
    return paths


def write_folder(root: Path, counts: dict[str, int], *, side: int = 12) -> Path:
    """Class folders ("train/cat": 3) with that many pictures each."""
    for k, (name, count) in enumerate(counts.items()):
        write_pictures(root / name, count, side=side, seed=k)
    return root


def write_png16(path: Path, pixels: np.ndarray, *, transparent: tuple[int, int, int] | None = None) -> None:
    """A 16-bit RGB PNG of uint16 [H, W, 3], which Pillow reads but cannot write."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    colour = b"" if transparent is None else chunk(b"tRNS", struct.pack(">3H", *transparent))
    body = head + colour + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
