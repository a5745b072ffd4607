"""The zoos by name."""

from __future__ import annotations

from excite.errors import UserError, unknown
from excite.weights import cadene, classification_models, ecanet, moskomule, pytorchcv, timm, torchvision
from excite.weights.layout import Layout, Refusal

__all__ = ["LAYOUTS", "OWN", "REFUSALS", "ZOOS", "named_layouts", "parse_source"]

# In the order in which they are asked; where two write the same network the same way, both are named.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "torchvision": torchvision.LAYOUTS,
    "timm": timm.LAYOUTS,
    "cadene": cadene.LAYOUTS,
    "pytorchcv": pytorchcv.LAYOUTS,
    "moskomule": moskomule.LAYOUTS,
    "ecanet": ecanet.LAYOUTS,
    "classification_models": classification_models.LAYOUTS,
}
REFUSALS: tuple[Refusal, ...] = (
    *torchvision.REFUSALS,
    *timm.REFUSALS,
    *cadene.REFUSALS,
    *pytorchcv.REFUSALS,
    *moskomule.REFUSALS,
    *ecanet.REFUSALS,
    *classification_models.REFUSALS,
)

# What this project's own networks write: every name as it is.
OWN = "excite"

ZOOS = (*LAYOUTS, OWN)


def parse_source(source: str) -> tuple[str | None, str | None]:
    """The zoo and the network that ``source`` names: "auto" neither, "timm" one, "timm:seresnet50" both.

    Tags of timm behind a dot ("seresnet50.a1_in1k") do not change the network and are taken off.

    Raises:
        ValueError: an unknown zoo, a network that the zoo does not have or that no network here is, with the reason.
    """
    if source == "auto":
        return None, None
    zoo, colon, name = source.partition(":")
    if zoo not in ZOOS:
        raise unknown("source of weights", zoo, ("auto", *ZOOS), hint="write auto, ZOO or ZOO:NETWORK")
    name = name.partition(".")[0]
    if not colon:
        return zoo, None
    if zoo == OWN:
        raise UserError(f"source={source!r}: weights of excite are told apart by themselves; write source='excite'")
    for refusal in REFUSALS:
        if refusal.zoo == zoo and refusal.is_called(name):
            raise UserError(f"source={source!r}: {refusal.reason}")
    known = {network for layout in LAYOUTS[zoo] for network in layout.networks}
    if name not in known:
        raise unknown(f"network of {zoo}", name, known)
    return zoo, name


def named_layouts(zoo: str | None, name: str | None) -> list[Layout]:
    """The layouts of a zoo's network, of a zoo, or of all zoos."""
    layouts = [layout for found, own in LAYOUTS.items() if zoo in (None, found) for layout in own]
    return [layout for layout in layouts if name is None or name in layout.networks]
