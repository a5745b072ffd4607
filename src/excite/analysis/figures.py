"""The figures of the page that do not depend on a choice, as plain plotly dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from excite.analysis.explanation import Estimate, Explanation, GateSummary
from excite.analysis.summary import ALPHA
from excite.page import Cell, Figure, Row, Series, Table, figure_text

__all__ = ["MODES", "correlation_figure", "knock_out_figures", "percent", "specificity_figure"]

MODES = {"mean": "its mean", "one": "1 (no gate)", "shuffle": "another image's"}
"""What a gate gives when it is knocked out, as a reader sees it."""

_ZERO = {"zeroline": True, "zerolinecolor": "@muted", "zerolinewidth": 1.5}
_NAMED = 20  # more gates than this have numbers for names under a figure

Trace = dict[str, Any]


def specificity_figure(e: Explanation) -> Figure | None:
    """Each gate's specificity with its interval, and whether it is told from chance."""
    measured = [(i, g, g.specificity) for i, g in enumerate(e.gates, 1) if g.specificity]
    if not measured:
        return None
    told = [g.p_holm is not None and g.p_holm <= ALPHA for _, g, _ in measured]
    data: list[Trace] = [
        {
            "x": [i for i, _, _ in measured], "y": [s.value for _, _, s in measured], "mode": "markers",
            "marker": {"color": "@1", "size": 10, "symbol": ["circle" if t else "circle-open" for t in told]},
            "error_y": _bars([s for _, _, s in measured], "@1/0.7"), "customdata": _names(e.gates),
            "hovertemplate": "%{customdata}<br>%{y:.3f}<extra></extra>",
        },
        {
            "x": [i for i, _, _ in measured], "y": [g.null_high for _, g, _ in measured], "mode": "markers",
            "marker": {"color": "@muted", "symbol": "line-ew-open", "size": 16, "line": {"width": 2}},
            "customdata": _names(e.gates),
            "hovertemplate": "labels at random, %{customdata}<br>%{y:.4f}<extra></extra>",
        },
    ]  # fmt: skip
    rows: list[Row] = [
        [
            g.block,
            *_estimate_cells(s),
            Cell("" if g.p_holm is None else f"{g.p_holm:.4f}", g.p_holm if g.p_holm else ""),
        ]
        for _, g, s in measured
    ]
    return Figure(
        "Class specificity: share of the variance of s that goes with the class",
        data,
        _by_depth(e.gates) | {"yaxis": {"rangemode": "tozero", **_ZERO}},
        f"Bars: {percent(e.level)} intervals over images. Dashes: what 95 % of labels dealt at random stay under. "
        "A hollow mark cannot be told from those.",
        table=Table(("gate", "specificity", "from", "to", "p by Holm"), rows),
        height=330,
    )


def knock_out_figures(e: Explanation, series: Mapping[str, Series]) -> list[Figure]:
    """What the loss and the accuracy do when a gate gives something else."""
    if not any(g.knock_outs for g in e.gates):
        return []
    drawn = (("loss", "Change of the loss when a gate is replaced", 1.0, "+.4f"),
             ("accuracy", "Change of the accuracy, points", 100.0, "+.2f"))  # fmt: skip
    return [_knock_out_figure(e, series, *which) for which in drawn]


def _knock_out_figure(
    e: Explanation, series: Mapping[str, Series], what: str, title: str, scale: float, form: str
) -> Figure:
    data: list[Trace] = []
    table: list[Row] = []
    modes = [m for m in MODES if any(g.knock_out(m) for g in e.gates)]
    for place, mode in enumerate(modes):
        s = series[f"k-{mode}"]
        measured = [(i, getattr(k, what)) for i, g in enumerate(e.gates, 1) if (k := g.knock_out(mode))]
        estimates = [_scaled(estimate, scale) for _, estimate in measured]
        aside = 0.22 * (place - (len(modes) - 1) / 2)
        data.append(
            {
                "x": [i + aside for i, _ in measured], "y": [m.value for m in estimates], "mode": "markers",
                "legendgroup": s.key, "marker": {"color": s.color, "symbol": s.symbol, "size": 8},
                "error_y": _bars(estimates, f"{s.color}/0.7"),
                "customdata": [figure_text(e.gates[i - 1].block) for i, _ in measured],
                "hovertemplate": f"%{{customdata}}<br>{figure_text(s.label)}: %{{y:{form}}}<extra></extra>",
            }
        )  # fmt: skip
    for g in e.gates:
        cells = [k and _scaled(getattr(k, what), scale) for m in modes for k in [g.knock_out(m)]]
        table.append([g.block, *(Cell(f"{c.value:+.4f}", c.value) if c else Cell("", "") for c in cells)])
    return Figure(
        title,
        data,
        _by_depth(e.gates) | {"yaxis": dict(_ZERO)},
        f"Bars: {percent(e.level)} intervals, paired by image.",
        table=Table(("gate", *(MODES[m] for m in modes)), table),
        height=330,
    )


def correlation_figure(e: Explanation) -> Figure | None:
    """How alike two gates tell images apart."""
    if len(e.gates) < 2:
        return None
    names = _names(e.gates)
    numbers = list(range(1, len(names) + 1))
    z = [list(row) for row in e.correlation]
    return Figure(
        "How alike the gates tell images apart",
        [
            {
                "type": "heatmap", "x": numbers, "y": numbers, "z": z, "colorscale": "Cividis", "zmin": 0, "zmax": 1,
                "customdata": [[f"{a} and {b}" for b in names] for a in names],
                "hovertemplate": "%{customdata}<br>%{z:.2f}<extra></extra>",
                "colorbar": {"thickness": 10, "outlinewidth": 0, "tickfont": {"color": "@muted", "size": 12}},
            }
        ],
        {
            "xaxis": {**_by_depth(e.gates)["xaxis"], "showgrid": False},
            "yaxis": {**_by_depth(e.gates)["xaxis"], "showgrid": False, "autorange": "reversed", "tickangle": 0},
        },
        "Debiased linear CKA. 0: unrelated. 1: the same up to rotation and scale.",
        height=420,
    )  # fmt: skip


def percent(level: float) -> str:
    """A coverage as a reader writes it: 0.95 -> "95 %"."""
    return f"{100 * level:.2f}".rstrip("0").rstrip(".") + " %"


def _names(gates: Sequence[GateSummary]) -> list[str]:
    return [figure_text(g.block) for g in gates]


def _scaled(e: Estimate, scale: float) -> Estimate:
    return Estimate(scale * e.value, *(None if v is None else scale * v for v in (e.low, e.high)))


def _bars(estimates: Sequence[Estimate], color: str) -> dict[str, Any]:
    return {
        "array": [0 if e.high is None else e.high - e.value for e in estimates],
        "arrayminus": [0 if e.low is None else e.value - e.low for e in estimates],
        "symmetric": False, "color": color, "thickness": 2, "width": 0,
    }  # fmt: skip


def _by_depth(gates: Sequence[GateSummary]) -> dict[str, Any]:
    """Gates along x, in the order of execution, with a line wherever a stage ends."""
    n = len(gates)
    axis: dict[str, Any] = {"range": [0.4, n + 0.6], "showgrid": False}
    if n <= _NAMED:
        axis |= {"tickvals": list(range(1, n + 1)), "ticktext": _names(gates), "tickangle": -45}
    else:
        axis |= {"title": {"text": "gate, from input to output"}}
    shapes, at = [], 0
    for _, stage in groupby(gates, key=lambda g: g.stage):
        at += len(list(stage))
        if at < n:
            line = {"color": "@line", "width": 1, "dash": "dot"}
            shapes.append(
                {"type": "line", "x0": at + 0.5, "x1": at + 0.5, "y0": 0, "y1": 1, "yref": "paper", "line": line}
            )
    return {"xaxis": axis, "shapes": shapes}


def _estimate_cells(e: Estimate) -> list[Cell]:
    return [Cell("", "") if v is None else Cell(f"{v:.4f}", v) for v in (e.value, e.low, e.high)]
