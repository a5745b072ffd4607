"""Reading files of weights without executing anything that is in them.

Three formats hold tensors and no code: safetensors; what ``torch.save`` writes, as far as ``weights_only`` reads it;
and HDF5, which Keras wrote. Which one a file is, its first bytes say, not its name.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from excite.errors import UserError

__all__ = ["Weights", "read_weights"]


@dataclass(frozen=True)
class Weights:
    """Tensors by the names their writer gave them, and what else their file says.

    Args:
        tensors: by name, on the CPU where they come from a file.
        origin: what to call them in messages.
        hints: what may be the network's name: entries of the file, and the file's own name.
        spec: the network, where the file is a checkpoint of excite and the network is one of excite.
        told: the source as the file itself says it ("timm:seresnet50"); else "auto".
        zoo: the zoo, where the format alone tells it; else "".
        names: their names -> ours, where it takes the file's order to tell; else None.
        transposed: names of the tensors that the file keeps with other axes.
        notes: what was decided in reading.
    """

    tensors: dict[str, Tensor]
    origin: str
    hints: tuple[str, ...] = ()
    spec: dict[str, Any] | None = None
    told: str = "auto"
    zoo: str = ""
    names: dict[str, str] | None = None
    transposed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = field(default=())


def read_weights(path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any]) -> Weights:
    """The tensors of a file or of a state dict.

    A checkpoint of a training script, {"state_dict": ..., "epoch": ...}, is looked into; prefixes that wrappers put
    before every name (``module.``, ``_orig_mod.``, ``model.``) are taken off.

    Raises:
        ValueError: no such file, a format that holds code or is not known, a file that is cut short, or something that
            is no state dict.
    """
    if isinstance(path_or_state_dict, Mapping):
        return _unpacked(path_or_state_dict, "the state dict", ())
    if not isinstance(path_or_state_dict, str | os.PathLike):
        kind = type(path_or_state_dict).__name__
        raise UserError(f"weights come as the path of a file or as a state dict; got {kind}")
    path = Path(path_or_state_dict)
    if re.match(r"https?:/", str(path_or_state_dict)):
        raise UserError(f"{path_or_state_dict}: nothing is downloaded here; give the path of a file on this machine")
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file of weights' if path.is_dir() else 'no such file'}")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise UserError(f"{path}: an empty file; was its writing cut short?")
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        # Here, because Keras' files need the network's structure to be read, and h5py.
        from excite.weights.classification_models import read_h5

        tensors, names, transposed, hints = read_h5(path)
        return Weights(tensors, path.name, hints, zoo="classification_models", names=names, transposed=transposed)
    if start[8:9] == b"{":
        return _from_safetensors(path)
    if start.startswith((b"PK\x03\x04", b"\x80")) or start[257:262] == b"ustar" or _is_tar(path):
        return _unpacked(_from_torch(path), path.name, (path.stem,))
    raise UserError(
        f"{path}: not a format that is read here. Files of weights are safetensors, what torch.save writes, and "
        "Keras' .h5"
    )


def _is_tar(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


# --- formats ---


def _from_safetensors(path: Path) -> Weights:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading safetensors needs the package: pip install 'excite[data]'") from None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); was its writing cut short?") from None
    try:
        entry = json.loads(header.get("excite", "{}"))
        shared = {key: tensors[other] for key, other in entry.get("shared", {}).items()}
        spec = entry.get("spec")
        network = "" if spec is None else str(spec["name"])
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: its 'excite' entry is damaged ({type(error).__name__}: {error})") from None
    read = _unpacked(tensors | shared, path.name, (path.stem,))
    # Networks of other libraries are named "timm:NAME" there, and keep the names that their library gives tensors.
    foreign = ":" in network
    told = network if network.startswith(("timm:", "torchvision:")) else "auto"
    return Weights(read.tensors, read.origin, read.hints, spec=None if foreign else spec, told=told, notes=read.notes)


def _from_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numbers_of_numpy()):
            warnings.simplefilter("ignore")  # of what is said as an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_why_refused(str(error))}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        inside = _names_inside(path)
        if any(name.endswith("constants.pkl") for name in inside):
            raise UserError(
                f"{path}: a TorchScript archive, code with its weights, and files are read here without running any. "
                "Where you trust the file: torch.save(torch.jit.load(file).state_dict(), new_file)"
            ) from None
        if inside and not any(name.endswith("data.pkl") for name in inside):
            raise UserError(f"{path}: an archive of {', '.join(inside[:3])}, no file of weights: unpack it") from None
        if "legacy .tar format" in str(error):
            what = "is in the first .tar format of PyTorch, or another archive"
            raise UserError(f"{path}: {_needs_code(what)}") from None
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{path}: not a whole file of torch.save ({said}); was its writing cut short?") from None


def _numbers_of_numpy() -> list[Any]:
    """What rebuilds numpy's numbers, which training scripts keep beside the weights; it runs nothing of the file's."""
    scalar = np.float64().__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]


def _needs_code(what: str) -> str:
    return (
        f"{what}, which only running code from the file could rebuild, and files are read here without running any. "
        "Where you trust the file, load it yourself (model = torch.load(file, weights_only=False)) and save the state "
        "dict in it: torch.save(model.state_dict(), new_file), of a checkpoint model['state_dict']"
    )


def _why_refused(error: str) -> str:
    found = re.search(r"GLOBAL (\S+)", error)
    if found:
        return _needs_code(f"holds {found[1]}")
    if "Unsupported oper" in error:
        return _needs_code("is a pickle that torch.save did not write")
    return f"not a whole file of torch.save ({error.strip().partition(chr(10))[0][:200]}); was its writing cut short?"


def _names_inside(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


# --- what is in them ---

# Where training scripts keep the state dict, the first that is there counts; beside it, other versions of the same.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
_OTHER_VERSIONS = ("state_dict_ema", "model_ema", "ema")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")


def _unpacked(content: Any, origin: str, hints: tuple[str, ...]) -> Weights:
    notes: list[str] = []
    if not isinstance(content, Mapping):
        raise UserError(f"{origin}: holds a {type(content).__name__}, not a state dict")
    holder = next((name for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
    if holder is not None:
        others = [name for name in _OTHER_VERSIONS if isinstance(content.get(name), Mapping)]
        if others:
            notes.append(f"took {holder!r}; the file also has {', '.join(map(repr, others))}, to be given as a dict")
        if isinstance(content.get("arch"), str):
            hints = (content["arch"], *hints)
        content = content[holder]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(content):
        odd = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
        kind = f"{odd[0]!r} is a {type(content[odd[0]]).__name__}" if odd else "it is empty"
        inside = next((key for key in odd if _is_state_dict(content.get(key))), None)
        hint = "" if inside is None else f"; the one at {inside!r} does: give it as a dict"
        raise UserError(f"{origin}: no state dict: {kind}. A state dict holds tensors by name{hint}")
    while prefix := next((w for w in _WRAPPERS if all(key.startswith(w) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        notes.append(f"took {prefix!r} off every name")
    return Weights(tensors, origin, hints, notes=tuple(notes))


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())
