"""Every s of every image and gate in a Parquet file: for those who want more than statistics."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from excite.analysis.record import Images
from excite.analysis.taps import Place
from excite.errors import UserError

__all__ = ["AllValues"]

_ROWS = 1024
"""Images in a row group: what is held in memory before it is written."""


class AllValues:
    """A Parquet file in the making, whole or not there.

    A row an image: ``index``, ``name``, ``label``, ``predicted``, ``loss``, then a column a gate under its dotted name,
    a list of C float32. The file's metadata name the classes under "classes", as JSON.

    Args:
        path: of the file; its folder is made where missing.
        places: the gates.
        classes: names of the classes.

    Raises:
        ValueError: pyarrow is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], places: Sequence[Place], classes: Sequence[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(f"keep_all={str(path)!r} needs pyarrow: pip install 'excite[explain]'") from None
        self._arrow = pyarrow
        self._path = Path(path)
        self._part = self._path.with_name(self._path.name + ".part")
        self._places = tuple(places)
        columns: list[Any] = [("index", pyarrow.int64()), ("name", pyarrow.string()), ("label", pyarrow.int64())]
        columns += [("predicted", pyarrow.int64()), ("loss", pyarrow.float64())]
        columns += [(place.name, pyarrow.list_(pyarrow.float32(), place.channels)) for place in places]
        self._schema = pyarrow.schema(columns, metadata={"classes": json.dumps(list(classes))})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pyarrow.parquet.ParquetWriter(self._part, self._schema)
        self._waiting: list[tuple[NDArray[np.float32], Images]] = []
        self._rows = 0

    def add(self, s: NDArray[np.float32], images: Images) -> None:
        """Take in a batch: s of all gates side by side, [N, sum of C]."""
        self._waiting.append((s, images))
        self._rows += len(s)
        if self._rows >= _ROWS:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        s = np.concatenate([part for part, _ in self._waiting])
        images = Images.joined([part for _, part in self._waiting])
        arrays: list[Any] = [images.index, list(images.name), images.label, images.predicted, images.loss]
        start = 0
        for place in self._places:
            flat = np.ascontiguousarray(s[:, start : start + place.channels]).ravel()
            arrays.append(self._arrow.FixedSizeListArray.from_arrays(flat, place.channels))
            start += place.channels
        self._writer.write_table(self._arrow.table(arrays, schema=self._schema))
        self._waiting, self._rows = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file, and puts it in its place if nothing failed."""
        try:
            if kind is None:
                self._write()
        finally:
            self._writer.close()
        if kind is None:
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)
