"""The gates of ``excite`` as layers of Keras 3, under the papers' names. One gate a file, all of them listed here."""

from __future__ import annotations

from excite.errors import UserError, unknown
from excite.gates.grammar import read_call, read_options
from excite_keras.gates.base import Gate
from excite_keras.gates.eca import EfficientChannelAttention
from excite_keras.gates.eca_ns import ECANS
from excite_keras.gates.effective_se import EffectiveSqueezeExcite
from excite_keras.gates.se import SqueezeExcite
from excite_keras.gates.se_gc import SEGC
from excite_keras.gates.se_var1 import SEVar1
from excite_keras.gates.se_var2 import SEVar2
from excite_keras.gates.se_var3 import SEVar3

__all__ = [
    "ECANS",
    "GATES",
    "SEGC",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "Gate",
    "SEVar1",
    "SEVar2",
    "SEVar3",
    "SqueezeExcite",
    "list_gates",
    "parse_gate",
]

# By their names in ``excite.gates``.
GATES: dict[str, type[Gate]] = {
    "se": SqueezeExcite,
    "eca": EfficientChannelAttention,
    "ese": EffectiveSqueezeExcite,
    "eca_ns": ECANS,
    "se_var1": SEVar1,
    "se_var2": SEVar2,
    "se_var3": SEVar3,
    "se_gc": SEGC,
}

NO_GATE = "none"


def list_gates() -> list[str]:
    """The names of all gates, the best known first: those of ``excite.list_gates`` that give a scale a channel."""
    return list(GATES)


def parse_gate(gate: str | Gate | None) -> Gate | None:
    """The layer that a gate's text stands for, without weights yet.

    Args:
        gate: ``name`` or ``name(option=value,...)``, as ``excite`` writes gates: "se", "se(reduction=8,bias=false)".
            "none" and ``None`` mean no gate. A layer passes through unchanged.

    Raises:
        ValueError: an unknown gate or option, with the nearest names; a value that the option does not take.
    """
    if gate is None or isinstance(gate, Gate):
        return gate
    if not isinstance(gate, str):
        hint = "; give the layer itself, with its parentheses" if isinstance(gate, type) else ""
        raise UserError(f"gate={gate!r}: give a gate's text, its layer, or None{hint}")
    name, options = read_call(gate)
    if name == NO_GATE:
        if options:
            raise UserError(f"gate {gate!r}: {NO_GATE!r} has no options")
        return None
    if name == "no_squeeze":
        raise UserError("gate 'no_squeeze' gives no scale a channel: it is an ablation, and there in PyTorch alone")
    if name not in GATES:
        raise unknown("gate", name, [*GATES, NO_GATE])
    layer = GATES[name]
    return layer(**read_options(layer.Options, f"gate {name!r}", options))
