"""Checkpoints that say what they are: weights, network, gates, classes and preprocessing in one safetensors file.

Reading one executes no code: tensors are raw numbers, everything else is JSON in the header. Loading builds the
network by its name, and calls a function that the file names only when told to trust it.

A killed run leaves the last whole checkpoint or the new one, never half of one (``excite.files``).
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from excite.errors import UserError
from excite.files import replacing
from excite.networks import NetworkSpec, build, seeded
from excite.surgery import Attached, attached
from excite.surgery.constants import Slimmed, slim_at_, slimmed

__all__ = ["Checkpoint", "read_checkpoint", "save_checkpoint"]

# Key of our entry in the header, and the version of what it holds.
_ENTRY = "excite"
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        path: the file it was read from.
        spec: the network, its gates among it.
        classes: names of the classes, by output.
        preprocessing: how an image becomes an input, as ``DataSet.preprocessing()`` says it.
        metrics: numbers the run reported.
        extra: whatever else the writer kept.
        state_dict: every parameter and buffer on the CPU, by name, in the dtype it was saved in.
        attached: the gates that were attached to the network, and where.
        slimmed: what became of gates that ``excite.slim`` replaced by constants.
    """

    path: Path
    spec: NetworkSpec
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    metrics: dict[str, Any]
    extra: dict[str, Any]
    state_dict: dict[str, Tensor] = field(repr=False)
    attached: tuple[Attached, ...] = ()
    slimmed: tuple[Slimmed, ...] = ()

    def load(self, *, impl: str = "auto", trust: bool = False) -> nn.Module:
        """The network with its weights, on the CPU, in eval mode and in the dtype it was saved in.

        No global random state moves. The weights are copies: the network may be trained on.

        Args:
            impl: implementation of the tails, see ``excite.ops.tail``.
            trust: whether a network named "module:function" may be built, by importing that module and calling that
                function with the options in the file.

        Raises:
            ValueError: the network cannot be built here or needs ``trust``, or its tensors are not the file's.
        """
        if self.spec.by_function and not trust:
            raise UserError(
                f"{self.path}: its network is built by the function {self.spec.name!r}; if you trust the file, "
                "load it with trust=True (`excite eval --trust true`)"
            )
        with torch.device("cpu"), seeded(0):
            model = build(self.spec, impl=impl, attached=self.attached or None)
            slim_at_(model, self.slimmed)
        saved, own = self.state_dict, model.state_dict()
        wrong = sorted(saved.keys() ^ own.keys())
        wrong += [key for key in own if key in saved and saved[key].shape != own[key].shape]
        if wrong:
            raise UserError(
                f"{self.path}: its tensors are not those of {self.spec.name!r} with gate {self.spec.gate!r}; "
                f"{len(wrong)} differ, {wrong[0]!r} first"
            )
        for key, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if key in saved and tensor.dtype != saved[key].dtype:
                tensor.data = tensor.data.to(saved[key].dtype)
        model.load_state_dict(saved, strict=True)
        return model.eval()


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    spec: NetworkSpec,
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
    metrics: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, all of it or nothing.

    Args:
        path: the file, by custom ``*.safetensors``; its folder is made where missing. One that is there is replaced.
        model: the network that ``spec`` builds, gates attached to it or not, slimmed or not; wrappers of
            ``torch.compile`` and DDP are looked through.
        spec: how to build it again.
        classes: names of the classes, by output.
        preprocessing: how an image becomes an input, JSON-able.
        metrics: numbers to keep, JSON-able.
        extra: anything else to keep, JSON-able.

    Returns:
        The path written.

    Raises:
        ValueError: something is not JSON-able, or the state dict holds something that is no tensor.
    """
    path = Path(path)
    tensors, shared = _tensors(_unwrapped(model))
    entry = {
        "format": _FORMAT,
        "spec": spec.to_dict(),
        "classes": list(classes),
        "preprocessing": dict(preprocessing),
        "metrics": dict(metrics),
        "extra": dict(extra or {}),
        "attached": [item.to_dict() for item in attached(_unwrapped(model))],
        "slimmed": [item.to_dict() for item in slimmed(_unwrapped(model))],
        "shared": shared,
    }
    for part, value in entry.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise UserError(f"{part} of a checkpoint must be JSON-able: {error}") from None
    with replacing(path) as beside:
        save_file(tensors, beside, metadata={_ENTRY: json.dumps(entry)})
    return path


def _unwrapped(model: nn.Module) -> nn.Module:
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to write, and for each name that shares another's tensor, that other name."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[Any, str] = {}
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{key!r} of {type(model).__name__} is a {type(value).__name__}; a checkpoint holds tensors"
            )
        identity = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and identity in first:
            shared[key] = first[identity]
            continue
        first[identity] = key
        # The file has no strides, and no views of one storage: each tensor by itself, in row-major order.
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
    return tensors, shared


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: a file that ``save_checkpoint`` wrote.

    Raises:
        ValueError: there is no such file, it is cut short or damaged, or it is no checkpoint of excite.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a checkpoint' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Copies: the file may be replaced or cut while they are in use.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); was its writing cut short?") from None
    if _ENTRY not in header:
        raise UserError(f"{path}: a safetensors file, but no checkpoint of excite (its header has no {_ENTRY!r} entry)")
    try:
        entry = json.loads(header[_ENTRY])
        version = entry["format"]
        if version != _FORMAT:
            raise UserError(f"has format {version}; this version of excite reads format {_FORMAT}")
        return Checkpoint(
            path=path,
            spec=NetworkSpec.from_dict(entry["spec"]),
            classes=tuple(entry["classes"]),
            preprocessing=entry["preprocessing"],
            metrics=entry["metrics"],
            extra=entry["extra"],
            attached=tuple(Attached(**item) for item in entry.get("attached", ())),
            slimmed=tuple(Slimmed(**item) for item in entry.get("slimmed", ())),
            state_dict=tensors | {key: tensors[other] for key, other in entry["shared"].items()},
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its {_ENTRY!r} entry is damaged ({type(error).__name__}: {error})") from None
