"""``excite sites``: where gates can go in a network, and where they cannot and why."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import torch

from excite.errors import UserError
from excite.gates import parse_gate
from excite.networks import NetworkSpec, build, example_for
from excite.surgery import Site, SiteCost, Survey, survey
from excite.training.settings import Settings

__all__ = ["SiteList", "SitesConfig", "list_sites", "show_sites"]


@dataclass(frozen=True, kw_only=True)
class SitesConfig(Settings):
    """List the places of a network where gates can be attached, and those where they cannot, each with its reason.

    Args:
        model: the network: timm:NAME, torchvision:NAME, module:function, or one that `excite models` lists.
        where: residual, pre, post, identity, inner, conv, block:PATTERN, or a module's name.
        stages: only places in these stages, from 1; null for all.
        gate: the gate whose cost is shown.
        options: the network's own named options.
        image_size: side of the image in pixels; null is what the network is made for.
        in_channels: channels of the image.
        json: print everything as JSON.
    """

    model: str
    where: str = "residual"
    stages: tuple[int, ...] | None = None
    gate: str = "se"
    options: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    in_channels: int = 3
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("image_size", at_least=1)
        self.require("in_channels", at_least=1)
        if parse_gate(self.gate) is None:
            raise UserError(f"gate={self.gate!r}: name a gate, `excite gates` lists them")


@dataclass(frozen=True)
class SiteList:
    """What was found in a network.

    Attributes:
        spec: the network.
        image_size: of the example, in pixels.
        found: its sites and refusals.
        costs: what the gate adds at each site for one image.
    """

    spec: NetworkSpec
    image_size: int
    found: Survey
    costs: tuple[SiteCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        sites = [
            dataclasses.asdict(site) | {"cost": dataclasses.asdict(cost)}
            for site, cost in zip(self.found.sites, self.costs, strict=True)
        ]
        found = {"where": self.found.where, "joins": self.found.joins, "sites": sites}
        refused = [dataclasses.asdict(refusal) for refusal in self.found.refused]
        return {"network": self.spec.to_dict(), "image_size": self.image_size, **found, "refused": refused}


def list_sites(config: SitesConfig) -> SiteList:
    """Looks for the sites of a network that is built without data.

    Raises:
        ValueError: an unknown network, place or stage, or an image that the network does not take.
    """
    spec = NetworkSpec(config.model, in_channels=config.in_channels, options=config.options)
    network = _without_data(spec)
    size = config.image_size
    if size is not None:
        example = torch.empty(1, config.in_channels, size, size, device="meta")
    else:
        example = example_for(network, spec)
    found = survey(network, example, where=config.where, stages=config.stages)
    return SiteList(spec, example.shape[-1], found, tuple(site.cost(config.gate) for site in found.sites))


def _without_data(spec: NetworkSpec) -> torch.nn.Module:
    try:
        with torch.device("meta"):
            return build(spec)
    except (NotImplementedError, RuntimeError):  # its constructor looks at values
        return build(spec)


def show_sites(listed: SiteList, config: SitesConfig) -> None:
    """Prints the sites as a tree, and below it what cannot take a gate; or all of it as JSON."""
    if config.json:
        print(json.dumps(listed.to_dict(), indent=1, allow_nan=False))
        return
    print("\n".join(_lines(listed, config)))


def _lines(listed: SiteList, config: SitesConfig) -> list[str]:
    found, size = listed.found, listed.image_size
    count = len(found.sites)
    lines = [
        f"{listed.spec.name}: {count} {'site' if count == 1 else 'sites'} for where={found.where!r}, "
        f"{found.joins} residual additions"
    ]
    if not found.sites and not found.refused:
        lines.append(found.why_none)
    if found.sites:
        lines.append(f"what {config.gate} adds for one image of {config.in_channels} x {size} x {size}:")
        lines += _tree(listed)
        parameters, macs, moved = (
            sum(getattr(cost, name) for cost in listed.costs) for name in ("parameters", "macs", "bytes_moved")
        )
        lines.append(f"together {parameters:,} parameters, {macs / 1e6:.2f} M MACs, {moved / 1e6:.2f} MB of maps moved")
    if found.refused:
        lines += ["no gate can go to:"]
        lines += [f"  {refusal.label}: {refusal.reason}" for refusal in found.refused]
    return lines


def _tree(listed: SiteList) -> list[str]:
    """The modules that have sites, by their names' parts; a part that alone has parts is written with them."""
    root: dict[str, Any] = {}
    for site, cost in zip(listed.found.sites, listed.costs, strict=True):
        node = root
        for part in site.module.split("."):
            node = node.setdefault(part, {})
        node.setdefault("", []).append((site, cost))
    rows = list(_branches(root, ""))
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:{width}}  {figures}".rstrip() for name, figures in rows]


def _branches(node: dict[str, Any], indent: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for part, below in node.items():
        if part == "":
            continue
        name, own = part, below.get("", [])
        while not own and len(below) == 1:
            (more, below), *_ = below.items()
            name, own = f"{name}.{more}", below.get("", [])
        rows += [(f"{indent}{name}{_side(site)}", _figures(site, cost)) for site, cost in own] or [(indent + name, "")]
        rows += _branches(below, indent + "  ")
    return rows


def _side(site: Site) -> str:
    return "" if site.side == "out" else " (before)"


def _figures(site: Site, cost: SiteCost) -> str:
    shape = " x ".join(map(str, (site.channels, *site.size)))
    return (
        f"stage {site.stage}  {shape:>16}  {cost.parameters:>10,} parameters  {cost.macs / 1e6:>6.2f} M MACs"
        f"  {cost.bytes_moved / 1e6:>6.2f} MB"
    )
