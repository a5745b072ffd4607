"""What a trained network is looked at with: its file, images prepared as it was trained, and a device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from excite.checkpoint import Checkpoint
from excite.data import DataSet, load_data
from excite.errors import UserError
from excite.files import expanded
from excite.training.progress import say

__all__ = ["checkpoint_file", "data_as_trained", "pick_device"]

_SHOWN = 20
"""Pictures that cannot be read, of a set, that are named on a terminal."""


def checkpoint_file(name: str) -> Path:
    """The checkpoint that a user means: a file, or the last one of a run's folder.

    Raises:
        ValueError: a folder without one.
    """
    path = expanded(name)
    if path.is_dir():
        path = path / "last.safetensors"
        if not path.exists():
            raise UserError(f"{name} holds no last.safetensors: name a run's folder or a .safetensors file")
    return path


def data_as_trained(
    checkpoint: Checkpoint, data: DataSet | str | None, *, download: bool = False, bad_image_limit: float = 0.01
) -> DataSet:
    """A data set, its images prepared as the checkpoint says, whatever its own statistics are.

    Notes on loading it are said, and the pictures that were skipped by their names.

    Args:
        checkpoint: of the network.
        data: the set or its name; None for what the network was trained on.
        download: as for ``load_data``.
        bad_image_limit: likewise.

    Raises:
        ValueError: unreadable data, or data whose classes or channels are not the network's.
    """
    if not isinstance(data, DataSet):
        name = data or checkpoint.extra.get("config", {}).get("data")
        if name is None:
            raise UserError(f"{checkpoint.path} does not say what it was trained on: give data")
        size = checkpoint.preprocessing["image_size"]
        data = load_data(name, image_size=size, download=download, bad_image_limit=bad_image_limit)
        _say_what_was_found(data)
    _check_fit(checkpoint, data)
    prepared = checkpoint.preprocessing
    return dataclasses.replace(
        data,
        image_size=prepared["image_size"],
        mean=tuple(prepared["mean"]),
        std=tuple(prepared["std"]),
        view=prepared.get("view", data.view),
    )


def _say_what_was_found(data: DataSet) -> None:
    for note in data.notes:
        say("%s", note)
    for line in data.unreadable[:_SHOWN]:
        say("skipped %s", line)
    if len(data.unreadable) > _SHOWN:
        say("and %d more", len(data.unreadable) - _SHOWN)


def _check_fit(checkpoint: Checkpoint, data: DataSet) -> None:
    known, given = tuple(checkpoint.classes), tuple(data.classes)
    if known != given:
        odd = [name for name in given if name not in known] or [name for name in known if name not in given]
        what = f"for example {odd[0]!r} is in one only" if odd else "the same ones in another order"
        raise UserError(
            f"{data.name} has {len(given)} classes, the network was trained on {len(known)} others ({what}): "
            "give data with the same class names"
        )
    channels = checkpoint.preprocessing["in_channels"]
    if channels != data.in_channels:
        raise UserError(f"{data.name} has images with {data.in_channels} channels; the network takes {channels}")


def pick_device(accelerator: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "mps" means here.

    Raises:
        ValueError: one that this machine does not have.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = accelerator
    if kind == "auto":
        kind = "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available[kind]:
        raise UserError(f"accelerator={kind!r} is not available here: give auto or cpu")
    return torch.device(kind)
