"""A run's files: tables, and the training states that resuming needs."""

from __future__ import annotations

import csv
import io
import pickle
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from excite.errors import UserError
from excite.files import write_atomic

__all__ = ["append_rows", "read_state", "write_rows", "write_state"]


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file with a header line, replacing what was there."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def append_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Adds lines to a CSV file."""
    with open(path, "a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_state(path: Path, state: dict[str, Any], previous: Path) -> None:
    """Writes a training state with ``torch.save``; the one that was there becomes ``previous``.

    At any moment a whole state is in one of the three places, of which ``path`` with ".new" behind it is the third:
    that ``path`` and ``previous`` are whole is not sure (a run may go on from the one when the other is damaged).
    """
    new = write_atomic(path.with_name(path.name + ".new"), lambda file: _save(state, file))
    if path.exists():
        path.replace(previous)
    new.replace(path)


def _save(state: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # Stopped by ctrl-C it tries to end the file all the same, and what is seen is that it cannot.
        if isinstance(error.__context__, KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise


def read_state(path: Path) -> dict[str, Any]:
    """A training state on the CPU, read without executing code from it.

    Every record's checksum is compared, so a truncated or damaged file is told from a whole one.

    Raises:
        ValueError: the file is not whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"record {damaged} does not match its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is damaged, or no training state ({reason})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is no training state; it holds a {type(state).__name__}")
    return state
