"""Networks without storage: the names and shapes of their tensors, and where their gates would stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from excite.models import create_model
from excite.models.base import gate_modules
from excite.weights.options import options_of

__all__ = ["Skeleton", "skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """What is known of a network without its numbers.

    Args:
        shapes: of its tensors, by name, gates left out.
        options: those that no shape shows, see ``options_of``.
        gates: channels and stage of every gate that it has with ``gate="se"``, by name.
    """

    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any]
    gates: Mapping[str, tuple[int, int | None]]


def skeleton(name: str, options: Mapping[str, Any]) -> Skeleton:
    """The network ``name`` of ``MODELS`` with these options, classes and channels of images being the defaults."""
    return _skeleton(name, tuple(options.items()))


@cache
def _skeleton(name: str, options: tuple[tuple[str, Any], ...]) -> Skeleton:
    with torch.device("meta"), _WithoutDraws():
        model = create_model(name, gate="se", **dict(options))
    gates = gate_modules(model)
    prefixes = tuple(f"{gate}." for gate in gates)
    state = model.state_dict()
    return Skeleton(
        {key: tuple(value.shape) for key, value in state.items() if not key.startswith(prefixes)},
        options_of(model),
        {gate: (int(module.channels), model.stage_of(gate)) for gate, module in gates.items()},  # type: ignore[arg-type]
    )


class _WithoutDraws(TorchFunctionMode):
    """Leaves out drawing into tensors without storage, for which torch would import its compiler: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))
