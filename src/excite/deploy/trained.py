"""Trained networks as ``export`` and ``predict`` take them: a checkpoint, its classes, how its images are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excite.checkpoint import Checkpoint, read_checkpoint
from excite.errors import UserError
from excite.files import expanded
from excite.training.trained import checkpoint_file

__all__ = ["check_preprocessing", "class_names", "open_checkpoint"]

_NEEDED = ("in_channels", "image_size", "view", "mean", "std")


def open_checkpoint(name: str) -> Checkpoint:
    """A checkpoint by its file or its run's folder, one that says how images are prepared.

    Raises:
        ValueError: there is none, it is damaged, or it does not say so.
    """
    checkpoint = read_checkpoint(checkpoint_file(name))
    check_preprocessing(checkpoint.preprocessing, checkpoint.path)
    return checkpoint


def check_preprocessing(preprocessing: Mapping[str, Any] | None, path: Path) -> Mapping[str, Any]:
    """The preprocessing, if it says enough to prepare a picture.

    Raises:
        ValueError: it does not; names the first thing that is missing.
    """
    held = preprocessing or {}
    for key in _NEEDED:
        if key not in held:
            raise UserError(
                f"{path} does not say how images are prepared: its preprocessing lacks {key!r} "
                f"(DataSet.preprocessing() has {', '.join(_NEEDED)})"
            )
    return held


def class_names(own: tuple[str, ...], file: str | None, path: Path) -> tuple[str, ...]:
    """The names of the classes by output: a text file's lines, or the network's own.

    Args:
        own: what the network's file says.
        file: a text file with one name a line; None for ``own``.
        path: the network's file, for messages.

    Raises:
        ValueError: neither has names, or the text file cannot be read.
    """
    if file is None:
        if not own:
            raise UserError(
                f"{path} names no classes: give them with --classes FILE, one a line, in the order of outputs"
            )
        return own
    try:
        names = tuple(line.strip() for line in expanded(file).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"classes: cannot read {file!r}: {getattr(error, 'strerror', None) or 'it is not text'}"
        ) from None
    names = tuple(name for name in names if name)
    if not names:
        raise UserError(f"classes: {file!r} holds no names; write one a line, in the order of the outputs")
    return names
