"""Write the tables of docs/networks.md: the two papers' printed figures beside what is counted here and now.

    python scripts/networks_page.py [--check]

Prints nothing where the page is as it should be. ``--check`` changes nothing and fails where it is not. The printed
figures stand in ``printed_figures``; one that is further than 0.3 % from the count must have its reason there, and a
reason must be needed. Where weights come from and what outputs were compared is worked out in ``provenance``.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from page_writer import filled, run
from printed_figures import (
    CIFAR_ROWS,
    ECA_MODULES,
    ECA_ROWS,
    OPERATORS,
    PLACED,
    PLAIN_ERROR,
    REASONS,
    REDUCTIONS,
    SE_ROWS,
    SENET154_ERROR,
    STAGES,
    SeRow,
)
from provenance import checked, on_meta, sources, weights

from excite.cost import ECA_COUNTER, SENET, SENET_ALL, Convention, Cost, count_cost
from excite.models import MODELS, gate_parameters
from excite.models.base import Classifier, gate_modules

PAGE = Path(__file__).parents[1] / "docs" / "networks.md"
CLOSE = 0.003

Kind = tuple[str, bool]
"""A family of operations, and whether they are a gate's."""


def parameters(model: Classifier) -> int:
    """Learnable numbers."""
    return sum(p.numel() for p in model.parameters())


@functools.cache
def counted(name: str, gate: str, variant: str | None = None, classes: int = 1000) -> tuple[Cost, Counter[Kind]]:
    """A network's cost for one image of its paper's size, and its operations: by family, inside gates or not."""
    size = MODELS[name].image_size
    model = on_meta(name, gate, variant=variant, num_classes=classes)
    cost = count_cost(model, torch.empty(1, 3, size, size, device="meta"), convention=SENET)
    gates = tuple(f"{gate}." for gate in gate_modules(model))
    operations: Counter[Kind] = Counter()
    for op in cost.ops:
        operations[op.family, f"{op.module}.".startswith(gates)] += op.operations
    return cost, operations


def macs(name: str, gate: str, convention: Convention, *, variant: str | None = None, plain: bool = False) -> float:
    """Multiply-adds by a convention; ``plain`` leaves the gates out."""
    _, operations = counted(name, gate, variant)
    kept = ((family, n) for (family, in_gate), n in operations.items() if not (plain and in_gate))
    return sum(convention.weights.get(family, 0) * n for family, n in kept)


def table(heads: str, rows: list[list[str]]) -> str:
    """A Markdown table of heads divided by "|"; columns whose head begins with ">" are flush right."""
    columns = [head.strip() for head in heads.split("|")]
    rule = ["---:" if head.startswith(">") else "---" for head in columns]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [[h.lstrip("> ") for h in columns], rule, *rows])


def _code(gate: str) -> str:
    return gate if gate == "none" else f"`{gate}`"


def residual(ours: float, printed: float) -> str:
    """How far ours is from the printed one."""
    return f"{100 * (ours / printed - 1):+.2f} %"


def gmacs(value: float, printed: float) -> str:
    """As many digits as the printed figure has, and one more."""
    return f"{value:.4f}" if printed < 1 else f"{value:.3f}"


# --- where from, and what was checked ---


def _sources(rows: Iterable[tuple[str, str, str | None]]) -> str:
    """Networks by name, gate and variant: the zoos with weights of them, and the libraries they were compared with."""
    lines = []
    for name, gate, variant in rows:
        found = sources(name, gate, **({} if variant is None else {"variant": variant}))
        lines.append([f"`{name}`", _code(gate), weights(found), checked(name, gate, found)])
    return table("network | gate | weights | same outputs as", lines)


# What each table of sources is about: name, gate and variant of networks.
SOURCES: dict[str, list[tuple[str, str, str | None]]] = {
    "classification_sources": [
        *((row.network, gate, row.variant) for row in SE_ROWS for gate in ("none", "se")),
        ("senet154", "se", None),
    ],
    "cifar_sources": [(name, gate, None) for name, *_ in CIFAR_ROWS for gate in ("none", "se")],
    "eca_sources": [(row.network, row.gate, None) for row in ECA_ROWS],
}


# --- the SE paper's classification tables ---


def _se_row(row: SeRow, plain: bool) -> list[str]:
    gate, printed, error = ("none", row.plain, row.error) if plain else ("se", row.gated, row.gated_error)
    cost, _ = counted(row.network, "se", row.variant)
    value = macs(row.network, "se", SENET, variant=row.variant, plain=plain) / SENET.giga
    count = cost.total.parameters - (cost.gates.parameters if plain else 0)
    assert (abs(value / printed - 1) <= CLOSE) != (row.network in REASONS), f"{row.network}: {value} {printed}"
    note = " \\*" if row.network in REASONS else ""
    figures = [gmacs(value, printed), f"{printed:.3f}" if printed < 1 else f"{printed:.2f}"]
    off = residual(value, printed) + note
    return [f"`{row.network}`", _code(gate), error, f"{count:,}", *figures, off]


def classification() -> str:
    """The SE paper's ImageNet networks."""
    rows = [_se_row(row, plain) for row in SE_ROWS for plain in (True, False)]
    cost, _ = counted("senet154", "se")
    figures = [f"{cost.total.parameters:,}", f"{cost.total.macs / SENET.giga:.3f}", "", ""]
    rows.append(["`senet154`", "`se`", SENET154_ERROR, *figures])
    return table("network | gate | > error | > parameters | > GMACs | > printed | > off by", rows)


def reasons() -> str:
    """Why printed figures are not met."""
    return "".join(f"- `{name}`: {text}\n" for name, text in REASONS.items())


def conventions() -> str:
    """How many of the SE paper's rows each convention meets."""
    rows = []
    for label, convention in (
        ("convolutions and layers alone", Convention("layers", {"conv": 1, "linear": 1})),
        ("and additions", Convention("additions", {"conv": 1, "linear": 1, "add": 1})),
        ("and pools: `SENET`", SENET),
        ("and rescaling: `SENET_ALL`", SENET_ALL),
    ):
        close = digits = 0
        for row in SE_ROWS:
            for plain, printed in ((True, row.plain), (False, row.gated)):
                value = macs(row.network, "se", convention, variant=row.variant, plain=plain) / convention.giga
                close += abs(value / printed - 1) <= CLOSE
                digits += round(value, 3 if printed < 1 else 2) == printed
        rows.append([label, f"{close} of {2 * len(SE_ROWS)}", str(digits)])
    return table("what counts | > rows within 0.3 % | > rows to the printed digit", rows)


def cifar() -> str:
    """The SE paper's CIFAR networks, whose sizes it does not print."""
    rows = []
    for name, ten, hundred in CIFAR_ROWS:
        cost, _ = counted(name, "se", classes=10 if ten else 100)
        plain = (cost.total.parameters - cost.gates.parameters, cost.total.macs - cost.gates.macs)
        for i, (gate, (count, work)) in enumerate((("none", plain), ("se", (cost.total.parameters, cost.total.macs)))):
            errors = [pair[i] if pair else "" for pair in (ten, hundred)]
            rows.append([f"`{name}`", _code(gate), *errors, f"{count:,}", f"{work / 1e9:.3f}"])
    return table("network | gate | > error, 10 classes | > 100 classes | > parameters | > GMACs", rows)


# --- the SE paper's ablations ---


def formula() -> str:
    """The SE paper's 2/r sum N_s C_s^2 beside the gates' parameters."""
    rows = []
    for name, depths in (("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3)), ("resnet152", (3, 8, 36, 3))):
        by_formula = 2 * sum(n * c * c for n, c in zip(depths, (256, 512, 1024, 2048), strict=True)) // 16
        added = parameters(on_meta(name, "se(bias=false)")) - parameters(on_meta(name))
        biases = parameters(on_meta(name, "se")) - parameters(on_meta(name)) - added
        assert added == by_formula
        rows.append([f"`{name}`", f"{by_formula:,}", f"{added:,}", f"{biases:,}"])
    return table("network | > 2/r sum of N C^2 | > counted without biases | > biases", rows)


def _with_statistics(model: Classifier) -> float:
    return (parameters(model) + sum(b.numel() for b in model.buffers() if b.dim() == 1)) / 1e6


def _ablation(label: str, model: Classifier, printed: float | None, error: str) -> list[str]:
    value = _with_statistics(model)
    note = "" if printed is None else f"{printed}" if round(value, 1) == printed else f"{printed} \\*"
    return [label, f"{parameters(model):,}", f"{value:.2f}", note, error]


_ABLATION = "> parameters | > with statistics, M | > printed, M | > error"


def stages() -> str:
    """SE-ResNet-50 with gates in one stage."""
    rows = [_ablation("no gates", on_meta("resnet50"), 25.6, PLAIN_ERROR)]
    for chosen, printed, error in STAGES:
        label = "all" if chosen is None else f"`stages=({chosen[0]},)`, their stage {chosen[0] + 1}"
        rows.append(_ablation(label, on_meta("resnet50", "se(bias=false)", stages=chosen), printed, error))
    return table(f"gates in | {_ABLATION}", rows)


def reduction() -> str:
    """SE-ResNet-50 with other reductions."""
    rows = []
    for r, printed, error in REDUCTIONS:
        rows.append(_ablation(str(r), on_meta("resnet50", f"se(reduction={r},bias=false)"), printed, error))
    return table(f"r | {_ABLATION}", [*rows, _ablation("no gates", on_meta("resnet50"), 25.6, PLAIN_ERROR)])


def placement() -> str:
    """SE-ResNet-50 with gates elsewhere in the block."""
    rows = []
    for name, place, printed, error in PLACED:
        row = _ablation(name, on_meta("resnet50", "se(bias=false)", placement=place), printed, error)
        assert not row[3].endswith("*"), row
        rows.append([row[0], f'`placement="{place}"`', *row[1:]])
    return table(f"the paper's | here | {_ABLATION}", rows)


def operators() -> str:
    """ResNet-50 with other squeezes and excitations."""
    rows = []
    for label, gate, printed, error in OPERATORS:
        value = macs("resnet50", gate, SENET, variant="official") / SENET.giga
        assert printed is None or abs(value / printed - 1) <= CLOSE, (gate, value)
        figures = [f"{value:.3f}", *(("", "") if printed is None else (f"{printed:.2f}", residual(value, printed)))]
        rows.append([label, _code(gate), f"{parameters(on_meta('resnet50', gate)):,}", *figures, error])
    return table("what varies | gate | > parameters | > GMACs | > printed | > off by | > error", rows)


# --- the ECA paper ---


def eca() -> str:
    """The ECA paper's ImageNet networks, by its own units."""
    rows = []
    for row in ECA_ROWS:
        small = row.network.startswith("mobilenet")
        total = parameters(on_meta(row.network, row.gate))
        millions = f"{total / 2**20:.2f}"
        assert millions == f"{row.parameters:.2f}", (row, millions)
        unit, of = (ECA_COUNTER.mega, "M") if small else (ECA_COUNTER.giga, "G")
        value = macs(row.network, row.gate, ECA_COUNTER) / unit
        assert abs(value / row.macs - 1) <= CLOSE, (row, value)
        ours, printed = (f"{value:.2f}", f"{row.macs:.1f}") if small else (f"{value:.3f}", f"{row.macs:.2f}")
        figures = [f"{total:,}", f"{millions} M", f"{ours} {of}", f"{printed} {of}", residual(value, row.macs)]
        rows.append([f"`{row.network}`", _code(row.gate), row.accuracy, *figures])
    return table("network | gate | > accuracy | > parameters | > printed | > MACs | > printed | > off by", rows)


def modules() -> str:
    """The ECA paper's gates without reduction on ResNet-50, with the parameters of each by its formula."""
    rows = []
    for module in ECA_MODULES:
        model = on_meta("resnet50", module.gate)
        by_formula = sum(module.of(gate.channels) for gate in gate_modules(model).values())  # type: ignore[arg-type]
        own = sum(p.numel() for p in gate_parameters(model))
        assert by_formula == own, (module, own)
        rows.append([module.name, _code(module.gate), module.each, f"{by_formula:,}", f"{own:,}", module.accuracy])
    return table("the paper's | gate | each gate | > by formula | > counted | > accuracy", rows)


TABLES: dict[str, Callable[[], str]] = {
    "classification": classification,
    "reasons": reasons,
    "conventions": conventions,
    "cifar": cifar,
    "formula": formula,
    "stages": stages,
    "reduction": reduction,
    "placement": placement,
    "operators": operators,
    "eca": eca,
    "modules": modules,
    **{name: functools.partial(_sources, rows) for name, rows in SOURCES.items()},
}


def written(page: str) -> str:
    """The page with every table as it is counted now."""
    return filled(page, TABLES)


def main() -> int:
    """Put the tables between their marks on the page, or check that they stand there."""
    return run(__doc__, PAGE, written)


if __name__ == "__main__":
    sys.exit(main())
