"""Gates by name: the literal list of all of them, and the text that each is written as."""

from __future__ import annotations

from excite.errors import UserError, unknown
from excite.gates.base import GateConfig
from excite.gates.eca import ECAConfig
from excite.gates.eca_ns import ECANSConfig
from excite.gates.effective_se import EffectiveSEConfig
from excite.gates.grammar import read_call, read_options, split_top_level
from excite.gates.no_squeeze import NoSqueezeConfig
from excite.gates.se import SEConfig
from excite.gates.se_gc import SEGCConfig
from excite.gates.se_var1 import SEVar1Config
from excite.gates.se_var2 import SEVar2Config
from excite.gates.se_var3 import SEVar3Config

__all__ = ["GATES", "NO_GATE", "list_gates", "parse_gate", "split_gates"]

GATES: dict[str, type[GateConfig]] = {
    "se": SEConfig,
    "eca": ECAConfig,
    "ese": EffectiveSEConfig,
    "eca_ns": ECANSConfig,
    "se_var1": SEVar1Config,
    "se_var2": SEVar2Config,
    "se_var3": SEVar3Config,
    "se_gc": SEGCConfig,
    "no_squeeze": NoSqueezeConfig,
}

NO_GATE = "none"


def list_gates() -> list[str]:
    """The names of all gates, the best known first; "none", the plain network, is not among them."""
    return list(GATES)


def parse_gate(gate: str | GateConfig | None) -> GateConfig | None:
    """The config that a gate's text stands for.

    Args:
        gate: ``name`` or ``name(option=value,...)``, as ``str(config)`` writes it: "se",
            "se(reduction=8,bias=false)", "eca(kernel_size=released:resnet50)". "none" and ``None`` mean no gate. A
            config passes through unchanged, also one that is not in ``GATES``.

    Returns:
        A config equal to the one that was written, or ``None`` for no gate.

    Raises:
        ValueError: an unknown gate or option, with the nearest names; a value that the option does not take; text that
            is no gate at all.
    """
    if gate is None or isinstance(gate, GateConfig):
        return gate
    if not isinstance(gate, str):
        hint = "; give the config itself, with its parentheses" if isinstance(gate, type) else ""
        raise UserError(f"gate={gate!r}: give a gate's text, its config, or None{hint}")
    name, options = read_call(gate)
    if name == NO_GATE:
        if options:
            raise UserError(f"gate {gate!r}: {NO_GATE!r} has no options")
        return None
    if name not in GATES:
        raise unknown("gate", name, [*GATES, NO_GATE], hint="`excite gates` lists all")
    config = GATES[name]
    return config(**read_options(config, f"gate {name!r}", options))


def split_gates(gates: str) -> list[str]:
    """The gates of a list written as one text, cut at the commas outside parentheses.

    "none,se(reduction=8,bias=false),eca" gives ["none", "se(reduction=8,bias=false)", "eca"]. The parts are only
    cut here; ``parse_gate`` reads them.

    Raises:
        ValueError: an empty part, or a parenthesis or quote without its partner.
    """
    parts = split_top_level(gates)
    if not all(parts):
        raise UserError(f"gates={gates!r}: an empty place in the list; write {NO_GATE!r} for the plain network")
    return parts
