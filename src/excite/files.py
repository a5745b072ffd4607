"""Files that are whole or not there: written beside their place, flushed to the disk, then moved."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from excite.errors import UserError

__all__ = ["check_folder", "check_writable", "expanded", "replacing", "write_atomic"]


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder for its ``~``; one of nobody's home stays as it is."""
    return Path(os.path.expanduser(path))


def write_atomic(path: str | os.PathLike[str], content: bytes | str | Callable[[IO[bytes]], object]) -> Path:
    """Writes a file, see ``replacing``.

    Args:
        path: its place.
        content: the bytes, a text (UTF-8), or a function that writes to the open file.

    Returns:
        The path.
    """
    path = Path(path)
    with replacing(path) as part, open(part, "wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside a file: what is written there takes the file's place at the end, after an error not.

    A reader, or a crash at any moment, finds the old file or the new one, never a part. The folder is made where
    missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two writers never share it.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield part
        _to_disk(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _to_disk(path.parent)


def check_writable(path: Path, what: str) -> None:
    """Checks, before the work whose result goes there, that a file can be written; makes nothing.

    Args:
        path: of the file.
        what: the setting that names it, for the error.

    Raises:
        ValueError: it is a folder, its folder is a file, or nothing may be written there.
    """
    try:
        reason = _obstacle(path)
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(f"{what}={str(path)!r} cannot be written: {reason}; name another file")


def check_folder(folder: Path, file: str, what: str) -> None:
    """Checks, before the work whose results go there, that a folder can hold a file; makes nothing.

    Args:
        folder: its place.
        file: name of the file.
        what: the setting that names the folder, for the error.

    Raises:
        ValueError: the folder is a file, or nothing may be written there.
    """
    if folder.is_file():
        raise UserError(f"{what}={str(folder)!r} is a file: give a folder")
    check_writable(folder / file, what)


def _obstacle(path: Path) -> str | None:
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not path.is_file():
        return "it is no ordinary file"
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        return f"{folder} is a file"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"nothing may be written in {folder}"


def _to_disk(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk; Windows lets nobody ask that way."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
