"""The figures of a comparison's page, as plain plotly dicts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from excite.experiment.comparison import Comparison, GateResult
from excite.experiment.verdict import percent, signed_points
from excite.page import Cell, Figure, Row, Series, Table, figure_text

__all__ = ["cost_figures", "curve_figures", "difference_figure"]

_ZERO = {"zeroline": True, "zerolinecolor": "@muted", "zerolinewidth": 1.5}  # where a difference is none
_LINE = 40  # characters of a label on one line of a phone

Trace = dict[str, Any]
Curve = dict[int, float]  # by epoch


# --- paired differences --------------------------------------------------------------------------------------------


def difference_figure(comparison: Comparison, series: Mapping[str, Series]) -> Figure:
    """Every gate's paired differences: dots a seed, the mean with its interval, and what could not be told from 0."""
    gates = [g for g in comparison.gates if g.difference is not None]
    data: list[Trace] = []
    shapes: list[Trace] = []
    labels: list[Trace] = []
    for row, g in enumerate(gates):
        data += _difference_traces(g, row, series[g.gate])
        assert g.difference is not None
        if g.difference.critical is not None:
            critical = 100 * g.difference.critical
            shapes.append(_box(-critical, critical, row, series[g.gate]))
        labels.append(
            {
                "text": _in_lines(g.label), "align": "left", "name": g.gate, "x": 0, "xref": "paper", "xanchor": "left",
                "y": row - 0.36, "yanchor": "bottom", "showarrow": False, "font": {"size": 13},
            }
        )  # fmt: skip
    return Figure(
        "Accuracy against plain, in percentage points",
        data,
        {
            "xaxis": {
                "title": {"text": "less accurate than plain  ←   points   →  more accurate"},
                "range": _reach(gates),
                **_ZERO,
            },
            "yaxis": {"range": [len(gates) - 0.3, -0.8], "visible": False},
            "shapes": shapes,
            "annotations": labels,
        },
        caption=_difference_caption(gates),
        height=84 + (100 if any(len(g.label) > _LINE for g in gates) else 84) * len(gates),
        table=_difference_numbers(gates),
        wide=True,
    )


def _difference_caption(gates: Sequence[GateResult]) -> str:
    said = ["Small marks: one seed each. Large mark: their mean."]
    if all(g.difference and g.difference.n == 1 for g in gates):
        said = ["Mark: the difference with the one seed; how much it varies over seeds is not known."]
    if any(g.difference and g.difference.holm_interval for g in gates):
        said.append("Bar: its interval over seeds. Shaded: a mean inside it cannot be told from 0 with these seeds.")
    if any(g.images and g.images.interval for g in gates):
        said.append("Dotted line: the interval over validation images.")
    return " ".join(said)


def _in_lines(label: str) -> str:
    """A gate's label, broken at its options where it is longer than a phone is wide."""
    lines = [""]
    for part in re.split(r"(?<=,)", label):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append("")
        lines[-1] += part
    return "<br>".join(figure_text(line) for line in lines)


def _reach(gates: Sequence[GateResult]) -> list[float]:
    """Ends of the axis, in points: all that is drawn, 0, and some room."""
    ends = [0.0]
    for g in gates:
        d = g.difference
        assert d is not None
        ends += [*d.values, *(d.holm_interval or ()), *(g.images.interval or () if g.images else ())]
        ends += [-d.critical, d.critical] if d.critical is not None else []
    room = 0.06 * (max(ends) - min(ends)) or 0.01
    return [100 * (min(ends) - room), 100 * (max(ends) + room)]


def _difference_traces(g: GateResult, row: int, s: Series) -> list[Trace]:
    d = g.difference
    assert d is not None
    common = {"legendgroup": g.gate, "type": "scatter", "name": figure_text(g.label)}
    traces: list[Trace] = []
    if g.images and g.images.interval:
        low, high = (100 * v for v in g.images.interval)
        traces.append(
            common
            | {
                "x": [low, high], "y": [row + 0.3] * 2, "mode": "lines",
                "line": {"color": s.color, "width": 2, "dash": "dot"},
                "hovertemplate": f"over {g.images.images:,} images alone<br>%{{x:+.2f}} points",
            }
        )  # fmt: skip
    if d.holm_interval:
        low, high = (100 * v for v in d.holm_interval)
        traces.append(
            common
            | {
                "x": [low, high], "y": [row, row], "mode": "lines", "line": {"color": s.color, "width": 3},
                "hovertemplate": f"{percent(d.holm_level)} interval over {d.n} seeds<br>%{{x:+.2f}} points",
            }
        )  # fmt: skip
    traces.append(
        common
        | {
            "x": [100 * v for v in d.values], "y": _spread_rows(row, d.n), "customdata": list(d.seeds),
            "mode": "markers", "marker": {"color": s.color, "symbol": s.symbol, "size": 7, "opacity": 0.75},
            "hovertemplate": "seed %{customdata}<br>%{x:+.2f} points",
        }
    )  # fmt: skip
    traces.append(
        common
        | {
            "x": [100 * d.mean], "y": [row], "mode": "markers", "hovertemplate": "mean<br>%{x:+.2f} points",
            "marker": {"color": s.color, "symbol": s.symbol, "size": 15, "line": {"color": "@paper", "width": 1.5}},
        }
    )  # fmt: skip
    return traces


def _spread_rows(row: int, n: int) -> list[float]:
    """Seeds side by side across the row, so that equal values stay apart; always in the same order."""
    return [row + (0.0 if n == 1 else 0.36 * (i / (n - 1) - 0.5)) for i in range(n)]


def _box(low: float, high: float, row: int, s: Series) -> Trace:
    return {
        "type": "rect", "name": s.key, "layer": "below", "x0": low, "x1": high, "y0": row - 0.24, "y1": row + 0.24,
        "line": {"width": 0}, "fillcolor": f"{s.color}/0.16",
    }  # fmt: skip


def _difference_numbers(gates: Sequence[GateResult]) -> Table:
    seeds = sorted({seed for g in gates if g.difference for seed in g.difference.seeds})
    rows: list[Row] = []
    for g in gates:
        d = g.difference
        assert d is not None
        by_seed = dict(zip(d.seeds, d.values, strict=True))
        rows.append([g.label, *(_points_cell(by_seed.get(s)) for s in seeds), _points_cell(d.mean)])
    return Table(("gate", *(f"seed {s}" for s in seeds), "mean"), rows, "Accuracy minus plain's, in points")


def _points_cell(value: float | None) -> Cell:
    return Cell("", sort="") if value is None else Cell(signed_points(value), sort=value)


# --- learning curves -----------------------------------------------------------------------------------------------


def curve_figures(comparison: Comparison, series: Mapping[str, Series]) -> list[Figure]:
    """Validation accuracy, its difference to plain, and both losses, epoch by epoch."""
    crowded = _crowded(comparison)
    each = "Thin: each seed. Thick: their mean." + ("" if crowded else " Band: from the lowest seed to the highest.")
    each = each if any(len(comparison.runs_of(g.gate)) > 1 for g in comparison.gates) else "The one seed."
    drawn = (
        ("val_top1", "Validation accuracy, %", 100.0, each),
        ("train_loss", "Training loss", 1.0, "Averaged over each epoch, as training went on."),
        ("val_loss", "Validation loss", 1.0, ""),
    )
    figures = []
    for name, title, scale, caption in drawn:
        curves = {g.gate: _curves(comparison, g.gate, name, scale) for g in comparison.gates}
        if not any(curves.values()):
            continue
        traces = [t for g in comparison.gates for t in _curve_traces(curves[g.gate], series[g.gate], crowded=crowded)]
        table = _curve_numbers(comparison, curves, title)
        figures.append(Figure(title, traces, _epochs_layout(curves), caption, height=320, table=table))
    difference = _difference_curves(comparison, series)
    return [*figures[:1], *([difference] if difference else []), *figures[1:]]


def _crowded(comparison: Comparison) -> bool:
    return len(comparison.gates) > 5


def _curves(comparison: Comparison, gate: str, name: str, scale: float) -> dict[int, Curve]:
    """One curve a seed; epochs without a finite number are gaps."""
    curves = {
        run.seed: {
            int(row["epoch"]): scale * float(row[name])
            for row in run.epochs
            if row.get(name) is not None and math.isfinite(row[name])
        }
        for run in comparison.runs_of(gate)
    }
    return {seed: curve for seed, curve in curves.items() if curve}


def _by_epoch(curves: Mapping[int, Curve]) -> dict[int, list[float]]:
    """Values of all seeds, for the epochs that all of them have."""
    epochs = sorted(set.intersection(*(set(c) for c in curves.values()))) if curves else []
    return {epoch: [c[epoch] for c in curves.values()] for epoch in epochs}


def _curve_traces(curves: Mapping[int, Curve], s: Series, *, crowded: bool, band: bool = True) -> list[Trace]:
    common = {"type": "scatter", "legendgroup": s.key, "name": figure_text(s.label)}
    by_epoch = _by_epoch(curves)
    epochs = list(by_epoch)
    traces: list[Trace] = []
    if len(curves) > 1:
        if band and not crowded:
            traces += _band(epochs, [min(v) for v in by_epoch.values()], [max(v) for v in by_epoch.values()], s)
        for seed, curve in curves.items():
            traces.append(
                common
                | {
                    "x": list(curve), "y": list(curve.values()), "mode": "lines",
                    "line": {"color": f"{s.color}/{0.3 if crowded else 0.55}", "width": 1, "dash": s.dash},
                    "hovertemplate": f"seed {seed}, epoch %{{x}}: %{{y:.4g}}",
                }
            )  # fmt: skip
    means = [sum(v) / len(v) for v in by_epoch.values()]
    what = "mean" if len(curves) > 1 else "its one seed"
    traces.append(
        common
        | {
            "x": epochs, "y": means, "mode": "lines+markers" if len(epochs) <= 30 else "lines",
            "line": {"color": s.color, "width": 2.5, "dash": s.dash},
            "marker": {"color": s.color, "symbol": s.symbol, "size": 7},
            "hovertemplate": f"{what}, epoch %{{x}}: %{{y:.4g}}",
        }
    )  # fmt: skip
    return traces


def _band(x: Sequence[float], low: Sequence[float], high: Sequence[float], s: Series) -> list[Trace]:
    return [
        {
            "type": "scatter", "legendgroup": s.key, "x": [*x, *reversed(x)], "y": [*high, *reversed(low)],
            "mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": f"{s.color}/0.12",
            "hoverinfo": "skip",
        }
    ]  # fmt: skip


def _epochs_layout(curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Any]:
    last = max((epoch for by_seed in curves.values() for c in by_seed.values() for epoch in c), default=1)
    axis: dict[str, Any] = {"title": {"text": "epoch"}, "showgrid": False}
    return {"xaxis": axis | ({"dtick": 1} if last <= 12 else {"nticks": 8})}


def _difference_curves(comparison: Comparison, series: Mapping[str, Series]) -> Figure | None:
    plain = _curves(comparison, "none", "val_top1", 100.0)
    traces: list[Trace] = []
    drawn: dict[str, dict[int, Curve]] = {}
    for g in comparison.gates:
        if g.difference is None:
            continue
        of_gate = _curves(comparison, g.gate, "val_top1", 100.0)
        curves = {
            seed: {e: of_gate[seed][e] - plain[seed][e] for e in of_gate[seed] if e in plain[seed]}
            for seed in of_gate
            if seed in plain
        }
        drawn[g.gate] = curves
        traces += _curve_traces(curves, series[g.gate], crowded=_crowded(comparison), band=False)
    if not traces:
        return None
    layout = _epochs_layout(drawn)
    layout["yaxis"] = dict(_ZERO)
    return Figure(
        "Validation accuracy against plain, points",
        traces,
        layout,
        "Each seed's run minus plain's run of the same seed. Only the last epoch is tested (see above).",
        height=320,
        table=_curve_numbers(comparison, drawn, "Accuracy minus plain's, in points"),
    )


def _curve_numbers(comparison: Comparison, curves: Mapping[str, Mapping[int, Curve]], title: str) -> Table:
    labels = {g.gate: g.label for g in comparison.gates}
    means = {g: {e: sum(v) / len(v) for e, v in _by_epoch(c).items()} for g, c in curves.items() if c}
    epochs = sorted({e for m in means.values() for e in m})
    rows: list[Row] = [
        [e, *(Cell(f"{m[e]:.4g}", sort=m[e]) if e in m else Cell("", sort="") for m in means.values())] for e in epochs
    ]
    return Table(("epoch", *(labels[g] for g in means)), rows, f"{title}: mean over seeds")


# --- accuracy and cost ---------------------------------------------------------------------------------------------


def cost_figures(comparison: Comparison, series: Mapping[str, Series]) -> list[Figure]:
    """Accuracy against measured time and against parameters: up is better, left is cheaper."""
    figures = []
    for what in ("inference", "training step"):
        timed = [(g, t) for g in comparison.gates if (t := g.timing(what)) is not None]
        if timed:
            t = timed[0][1]
            costs = {g.gate: (m.ratio, m.ratio_p20, m.ratio_p80) for g, m in timed}
            title = f"Accuracy, %, against {'latency' if what == 'inference' else 'time of a training step'}"
            axis = f"time of plain's ({t.device}, {_images(t.batch_size)})"
            figures.append(_cost_figure(comparison, series, costs, title, axis, ratio=True))
    sizes = {g.gate: (g.parameters, None, None) for g in comparison.gates if g.parameters is not None}
    if sizes:
        figures.append(
            _cost_figure(comparison, series, sizes, "Accuracy, %, against parameters", "parameters", ratio=False)
        )
    return figures


def _images(n: int) -> str:
    return "one image" if n == 1 else f"{n} images"


def _cost_figure(
    comparison: Comparison,
    series: Mapping[str, Series],
    costs: Mapping[str, tuple[float, float | None, float | None]],
    title: str,
    axis: str,
    *,
    ratio: bool,
) -> Figure:
    traces: list[Trace] = []
    rows: list[Row] = []
    for g in comparison.gates:
        if g.gate not in costs:
            continue
        (x, low, high), s, a = costs[g.gate], series[g.gate], g.accuracy
        trace: Trace = {
            "type": "scatter", "legendgroup": g.gate, "name": figure_text(g.label), "x": [x], "y": [100 * a.mean],
            "mode": "markers",
            "marker": {"color": s.color, "symbol": s.symbol, "size": 12},
            "hovertemplate": "%{y:.2f} %<br>" + ("%{x:.3f} times plain's time" if ratio else "%{x:,} parameters"),
        }  # fmt: skip
        bar = {"color": f"{s.color}/0.7", "thickness": 1.5, "width": 0}
        if low is not None and high is not None:
            trace["error_x"] = {"array": [high - x], "arrayminus": [x - low], "symmetric": False, **bar}
        if a.low is not None and a.high is not None:
            trace["error_y"] = {"array": [100 * (a.high - a.mean)], **bar}
        traces.append(trace)
        rows.append(
            [g.label, Cell(f"{x:.3f}" if ratio else f"{x:,}", sort=x), Cell(f"{100 * a.mean:.2f}", sort=a.mean)]
        )
    across = " Across: the middle three fifths of the measured ratios." if ratio else ""
    up = (
        f"Up and down: {percent(comparison.level)} interval over seeds."
        if comparison.plain.accuracy.low is not None
        else ""
    )
    return Figure(
        title,
        traces,
        {"xaxis": {"title": {"text": axis}, **({"ticksuffix": "×"} if ratio else {"tickformat": "~s"})}},
        f"{up}{across}".strip(),
        height=320,
        table=Table(("gate", axis, "accuracy, %"), rows, title),
    )
