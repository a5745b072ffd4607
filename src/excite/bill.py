"""``excite cost MODEL...``: the bill of each network, in total, by stage and for its gates alone.

bill = make_bill(CostConfig(models=("resnet50",), gates="none,se,eca"))
bill.items[1].costs["unfused"].gates.bytes_moved
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from excite.cost import CONVENTIONS, TAILS, Cost, Usage, count_cost
from excite.errors import UserError
from excite.gates import split_gates
from excite.models import MODELS
from excite.networks import NetworkSpec, build
from excite.page import Figure, Page, Table, series_styles
from excite.training.settings import Settings

__all__ = ["Bill", "BillItem", "CostConfig", "make_bill", "show_bill"]

_SMALL = 100  # images of fewer pixels a side are of 10 classes


@dataclass(frozen=True, kw_only=True)
class CostConfig(Settings):
    """Count what networks cost: parameters, multiply-adds, and bytes of feature maps moved, for one image.

    Args:
        models: networks; `excite models` lists ours, others are timm:NAME, torchvision:NAME or module:function.
        gates: gates to count each network with, as none,se(reduction=8),eca; null is what the name says.
        placement: where in a block the gate stands: standard, pre, post, identity or inner.
        stages: stages that have gates, from 1; null for all.
        variant: a named set of the network's options, as official.
        image_size: side of the image in pixels; null is the one its paper counts with, 224 where that is not known.
        in_channels: channels of the image.
        num_classes: size of the output; null is 1000, or 10 for networks for small images.
        convention: what counts as a multiply-add: senet-all (a gate's pool and its rescaling too), senet (as the SE
            paper prints, without the rescaling) or eca (the ECA paper's counter).
        json: print everything as JSON, by module too.
        plot: also write a page with the figures by stage, a file that ends in .html.
    """

    models: tuple[str, ...] = ()
    gates: str | None = None
    placement: str = "standard"
    stages: tuple[int, ...] | None = None
    variant: str | None = None
    image_size: int | None = None
    in_channels: int = 3
    num_classes: int | None = None
    convention: Literal["senet", "senet-all", "eca"] = "senet-all"
    json: bool = False
    plot: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("image_size", at_least=1)
        self.require("num_classes", at_least=0)
        if not self.models:
            raise UserError("models: name at least one network, as `excite cost resnet50 se_resnet50`")
        if self.plot is not None and Path(self.plot).suffix != ".html":
            raise UserError(f"plot={self.plot!r}: give a file that ends in .html")


@dataclass(frozen=True)
class BillItem:
    """One network's bill.

    Attributes:
        spec: the network.
        image_size: side of the one image that was counted, in pixels.
        costs: by what runs the tails of residual branches, see ``count_cost``; bytes are of float32 maps.
    """

    spec: NetworkSpec
    image_size: int
    costs: dict[str, Cost]

    @property
    def label(self) -> str:
        """The network's name and its gate."""
        return self.spec.name if self.spec.gate == "none" else f"{self.spec.name} + {self.spec.gate}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single operations, JSON-able."""
        costs = {tails: cost.to_dict() for tails, cost in self.costs.items()}
        return {"network": self.spec.to_dict(), "image_size": self.image_size, "tails": costs}


@dataclass(frozen=True)
class Bill:
    """The bills of several networks, in the order asked for."""

    items: tuple[BillItem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Every item; the units are numbers and bytes."""
        return {"networks": [item.to_dict() for item in self.items]}


def make_bill(config: CostConfig) -> Bill:
    """Counts each network with each gate, for one image, without data; writes ``plot`` where one is asked for.

    Raises:
        ValueError: an unknown network or gate, a gate where there can be none, an image too small.
    """
    gates = [None] if config.gates is None else split_gates(config.gates)
    bill = Bill(tuple(_item(config, name, gate) for name in config.models for gate in gates))
    if config.plot is not None:
        _page(bill, config).write(config.plot)
    return bill


def _item(config: CostConfig, name: str, gate: str | None) -> BillItem:
    spec = NetworkSpec(name, gate=gate, placement=config.placement, stages=config.stages, variant=config.variant)
    own = MODELS[spec.name].image_size if spec.name in MODELS else 224
    classes = config.num_classes
    if classes is None:
        classes = 10 if own < _SMALL else 1000
    fields = {**spec.to_dict(), "num_classes": classes, "in_channels": config.in_channels}
    spec, size = NetworkSpec.from_dict(fields), config.image_size or own
    with torch.device("meta"):
        network, image = build(spec), torch.empty(1, config.in_channels, size, size)
    convention = CONVENTIONS[config.convention]
    costs = {tails: count_cost(network, image, convention=convention, tails=tails) for tails in TAILS}
    return BillItem(spec, size, costs)


# --- on a terminal ---


def show_bill(bill: Bill, config: CostConfig) -> None:
    """Prints the bill, one table a network, 80 columns wide; or all of it as JSON."""
    if config.json:
        print(json.dumps(bill.to_dict(), indent=1, allow_nan=False))
        return
    for item in bill.items:
        print("\n".join(_lines(item)) + "\n")
    print("Maps: feature maps read and written, float32, in MB of 10^6 bytes: with nothing")
    print("fused, with each residual block's tail fused, and with its squeeze ahead too.")
    if config.plot is not None:
        print(config.plot)


def _lines(item: BillItem) -> list[str]:
    cost = item.costs["unfused"]
    convention = cost.convention
    unit = "2^20" if convention.binary else "10^6"
    parts = [("total", [c.total for c in item.costs.values()])]
    parts += [(name, [c.by_stage[name] for c in item.costs.values()]) for name in cost.by_stage]
    if cost.gates != Usage():
        parts.append(("gates alone", [c.gates for c in item.costs.values()]))
    lines = [
        item.label,
        f"one image, {item.spec.in_channels} x {item.image_size} x {item.image_size}; "
        f"multiply-adds in {unit}, by {convention.name!r}",
        f"{'':12}{'parameters':>14}{'multiply-adds':>15}{'maps: MB':>12}{'fused':>11}{'ahead':>11}",
    ]
    for name, usages in parts:
        moved = "".join(f"{u.bytes_moved / 1e6:>{w},.2f}" for u, w in zip(usages, (12, 11, 11), strict=True))
        lines.append(f"{name:12}{usages[0].parameters:>14,}{usages[0].macs / convention.mega:>15,.2f}{moved}")
    if cost.gates != Usage():
        lines.append(f"{'  of it all':12}{_shares(item)}")
    if cost.uncounted:
        calls = ", ".join(f"{op} x {times}" for op, times in cost.uncounted.items())
        lines.append(f"not counted: {calls}")
    else:
        lines.append("not counted: nothing")
    return lines


def _shares(item: BillItem) -> str:
    def share(part: int, whole: int, width: int) -> str:
        return f"{100 * part / max(whole, 1):>{width - 2},.2f} %"

    cost = item.costs["unfused"]
    text = share(cost.gates.parameters, cost.total.parameters, 14) + share(cost.gates.macs, cost.total.macs, 15)
    for c, width in zip(item.costs.values(), (12, 11, 11), strict=True):
        text += share(c.gates.bytes_moved, c.total.bytes_moved, width)
    return text


# --- on a page ---


def _page(bill: Bill, config: CostConfig) -> Page:
    page = Page("What the networks cost", lead="Parameters, multiply-adds and bytes of feature maps, stage by stage.")
    styles = series_styles({str(i): item.label for i, item in enumerate(bill.items)})
    section = page.section(
        "By stage", "One image in eval mode. Maps are float32; a megabyte is 10^6 bytes. Stages are the network's own."
    )
    mega = CONVENTIONS[config.convention].mega
    kinds: list[tuple[str, Callable[[Usage], float], str]] = [
        ("Parameters, millions (10^6)", lambda u: u.parameters / 1e6, "unfused"),
        (f"Multiply-adds, millions ({config.convention})", lambda u: u.macs / mega, "unfused"),
        ("Maps moved unfused, MB", lambda u: u.bytes_moved / 1e6, "unfused"),
        ("Maps moved with fused tails, MB", lambda u: u.bytes_moved / 1e6, "fused"),
        ("Maps moved with squeeze-ahead, MB", lambda u: u.bytes_moved / 1e6, "squeeze-ahead"),
    ]
    figures = []
    for title, figure_of, tails in kinds:
        data, rows = [], []
        for i, item in enumerate(bill.items):
            # A network without stages known to us is one bar.
            stages = item.costs[tails].by_stage or {"total": item.costs[tails].total}
            heights = [figure_of(usage) for usage in stages.values()]
            bar = {"type": "bar", "x": list(stages), "y": heights, "name": item.label, "legendgroup": str(i)}
            data.append({**bar, "marker": {"color": styles[str(i)].color}})
            rows += [(item.label, stage, round(height, 4)) for stage, height in zip(stages, heights, strict=True)]
        table = Table(("network", "stage", "value"), rows, caption=title)
        figures.append(Figure(title, data, {"barmode": "group", "showlegend": False}, table=table))
    section.legend(styles.values())
    section.figures(*figures)
    return page
