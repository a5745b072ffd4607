"""The gates that tensors belong to: which kind, what width, and whether a network's own gates compute the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from excite.errors import UserError
from excite.gates import ECAConfig, GateConfig, SEConfig
from excite.gates.base import leaves_as_is
from excite.gates.eca import RELEASED_KERNEL_SIZES

__all__ = ["are_exactly_one", "function_of", "gate_names", "infer_gate", "is_of_a_gate", "kind_of"]

_OF_A_GATE = re.compile(r"(.*\bgate)\.(.+)")

# Options that shapes tell, and that are therefore no part of the function.
_IN_THE_SHAPES = {
    *("reduction", "reduced_channels", "round_to", "round_limit", "min_reduced_channels", "bias"),
    *("kernel_size", "gamma", "beta", "groups", "group_size"),
}

_REDUCTIONS = (16, 8, 4, 2, 32, 1, *(r for r in range(3, 65) if r not in (4, 8, 16, 32)))


def is_of_a_gate(key: str) -> bool:
    """Whether a tensor of this name in one of our networks is a gate's."""
    return _OF_A_GATE.fullmatch(key) is not None


def gate_names(keys: Mapping[str, Any]) -> list[str]:
    """The gates that tensors of these names (ours) belong to."""
    found = [_OF_A_GATE.fullmatch(key) for key in keys]
    return list(dict.fromkeys(match[1] for match in found if match))


def kind_of(tensors: Mapping[str, Tensor]) -> GateConfig | None:
    """The gate of other zoos that tensors (by our names) belong to, as the config of its kind; None if it is neither.

    All zoos that are read here gate by SE with ReLU and sigmoid on the mean, or by ECA.
    """
    ends = {match[2] for key in tensors if (match := _OF_A_GATE.fullmatch(key))}
    if {"fc1.weight", "fc2.weight"} <= ends <= {"fc1.weight", "fc2.weight", "fc1.bias", "fc2.bias"}:
        return SEConfig(bias="fc1.bias" in ends)
    return ECAConfig() if ends == {"conv.weight"} else None


def function_of(config: GateConfig) -> tuple[str, dict[str, Any]]:
    """What of a config no shape shows: its name, and the options of its function."""
    return config.name, {option: v for option, v in config.options().items() if option not in _IN_THE_SHAPES}


def infer_gate(tensors: Mapping[str, Tensor], channels: Mapping[str, int]) -> GateConfig | None:
    """The config that builds gates of these shapes, or None where no single one does.

    Args:
        tensors: by our names; others than gates' are passed over.
        channels: how many channels each gate has, by its name.
    """
    kind = kind_of(tensors)
    gates = gate_names(tensors)
    if kind is None or not gates or not all(gate in channels for gate in gates):
        return None
    if isinstance(kind, SEConfig):
        widths = {(channels[gate], tensors[f"{gate}.fc1.weight"].shape[0]) for gate in gates}
        return _infer_se(widths, kind.bias)
    return _infer_eca({(channels[gate], tensors[f"{gate}.conv.weight"].shape[-1]) for gate in gates})


def _infer_se(widths: set[tuple[int, int]], bias: bool) -> SEConfig | None:
    candidates = [SEConfig(r, bias=bias) for r in _REDUCTIONS]
    candidates += [SEConfig(r, round_to=8, bias=bias) for r in _REDUCTIONS]
    candidates += [SEConfig(reduced_channels=reduced, bias=bias) for _, reduced in widths]
    return next((c for c in candidates if all(c.width.of(channels) == r for channels, r in widths)), None)


def _infer_eca(sizes: set[tuple[int, int]]) -> ECAConfig | None:
    def fits(config: ECAConfig) -> bool:
        try:
            return all(config.kernel_size_for(channels) == k for channels, k in sizes)
        except UserError:  # a width that the released network does not have
            return False

    candidates = [ECAConfig(), *(ECAConfig(name) for name in RELEASED_KERNEL_SIZES)]  # type: ignore[arg-type]
    candidates += [ECAConfig(k) for _, k in sizes if k % 2]
    return next((config for config in candidates if fits(config)), None)


def are_exactly_one(gates: Mapping[str, nn.Module]) -> bool:
    """Whether every gate leaves maps exactly as they are, whatever they hold; False where there is none."""
    return bool(gates) and all(leaves_as_is(gate) for gate in gates.values())
