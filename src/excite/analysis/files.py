"""Records in files: arrays as safetensors, all else as JSON in its header. Reading one executes no code."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from excite.analysis.record import GateRecord, Images, SiteRecord
from excite.errors import UserError
from excite.files import write_atomic

__all__ = ["load_record", "save_record"]

# Key of our entry in the header, and the version of what it holds.
_ENTRY = "excite_record"
_FORMAT = 1


def save_record(record: GateRecord, path: str | os.PathLike[str]) -> Path:
    """Write a record, whole or not at all; see ``GateRecord.save``."""
    from safetensors.numpy import save

    arrays: dict[str, NDArray[Any]] = {}
    entry = {
        "format": _FORMAT,
        "record": _split(record, "", arrays),
        "images": _split(record.images, "images.", arrays),
        "sites": [_split(site, f"sites.{i}.", arrays) for i, site in enumerate(record.sites)],
    }
    arrays = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    return write_atomic(path, save(arrays, {_ENTRY: json.dumps(entry)}))


def _split(thing: Any, prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The fields of a dataclass that go into JSON; its arrays are put among ``arrays``."""
    plain = {}
    for field in fields(thing):
        value = getattr(thing, field.name)
        if isinstance(value, np.ndarray):
            arrays[prefix + field.name] = value
        elif field.name not in ("images", "sites"):
            plain[field.name] = value
    return plain


def load_record(path: str | os.PathLike[str]) -> GateRecord:
    """Read a record; see ``GateRecord.load``."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a record' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); was its writing cut short?") from None
    if _ENTRY not in header:
        raise UserError(f"{path}: a safetensors file, but no record of gates (its header has no {_ENTRY!r} entry)")
    try:
        entry = json.loads(header[_ENTRY])
        if entry["format"] != _FORMAT:
            raise UserError(f"{path}: has format {entry['format']}; this version of excite reads format {_FORMAT}")
        images = Images(**_joined(entry["images"], "images.", arrays))
        sites = tuple(SiteRecord(**_joined(site, f"sites.{i}.", arrays)) for i, site in enumerate(entry["sites"]))
        own = _joined(entry["record"], "", arrays)
        own["skipped"] = tuple((name, reason) for name, reason in own["skipped"])
        return GateRecord(images=images, sites=sites, **own)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: its {_ENTRY!r} entry is damaged ({type(error).__name__}: {error})") from None


def _joined(plain: dict[str, Any], prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    own = {
        key.removeprefix(prefix): array
        for key, array in arrays.items()
        if key.startswith(prefix) and "." not in key.removeprefix(prefix)
    }
    return own | {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
