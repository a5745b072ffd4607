"""An explanation of the planted network, whose class and image names try to break out of a page."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from planted import planted, planted_images

from excite.analysis import explain

NASTY = "<script>window.hacked = 1</script>"
NAMES = (NASTY, "\"'&<img src=x onerror=hacked=1>", "</option></select><b>", "plain %{y} $x$ $y$")
KINDS = ("brightness", "constant", "class")
IMAGES = 240


def loader(n: int = IMAGES, size: int = 32, noise: float = 0.4) -> list[Any]:
    """Batches with names; the network makes a few mistakes."""
    images, labels = planted_images(n, noise=noise)
    names = [f"{NASTY}/{i}.png" for i in range(n)]
    return [(images[part], labels[part], [names[i] for i in part]) for part in torch.arange(n).split(size)]


@cache
def explained(names: tuple[str, ...] = NAMES) -> tuple[Path, dict[str, Any]]:
    """The page's path, and what explain.json holds."""
    folder = Path(mkdtemp())
    path = explain(planted(KINDS), loader(), folder, classes=names, permutations=199, name=NASTY)
    return path, json.loads((folder / "explain.json").read_text())
