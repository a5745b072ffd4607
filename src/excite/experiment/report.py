"""The page of a comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from excite.experiment.comparison import PLAIN, Comparison, GateResult, Measured
from excite.experiment.figures import cost_figures, curve_figures, difference_figure
from excite.experiment.verdict import percent, points, signed_points
from excite.page import Cell, Page, Row, Section, Series, Table, series_styles, typeset

__all__ = [
    "accuracy_cell",
    "comparison_page",
    "count_cell",
    "difference_cells",
    "meanings",
    "p_value",
    "ratio_cell",
]


def meanings(comparison: Comparison) -> list[str]:
    """What each number of the table means, one line each."""
    level = percent(comparison.level)
    measured = next((t for g in comparison.gates for t in g.timings), None)
    lines = [
        f"Accuracy: share of validation images right after the last epoch, mean over seeds, with the {level} Student-t "
        "interval of that mean.",
        "Against plain: accuracy minus that of plain's run with the same seed (same initial weights in shared layers, "
        "same order of images, same augmentation), mean over seeds. Holm's procedure decides over all gates, so that "
        f"the chance of any false finding is at most {percent(1 - comparison.level)}; the interval leaves out 0 "
        "exactly where it decides.",
        "Needed: the smallest difference that these seeds would have counted as real.",
        "p: chance of a difference at least this large between equals, after Holm's correction.",
        "No interval over seeds covers the choice of validation images, which all runs share: that is looked at apart.",
    ]
    if measured:
        lines.append(
            "Latency and training step: time divided by plain's, measured in turns; under it the middle three fifths "
            "of the measured ratios."
        )
    return lines


# --- page ----------------------------------------------------------------------------------------------------------


def comparison_page(comparison: Comparison) -> Page:
    """The page of a comparison: verdict and table first, then what is behind them."""
    c = comparison
    labels = {g.gate: g.label for g in c.gates}
    series = series_styles(labels, plain=PLAIN)
    seeds = sorted({r.seed for r in c.runs})
    page = Page(
        f"Does channel attention help {c.config['model']} on {c.data['name']}?",
        lead=[typeset(s) for s in re.split(r"(?<=\.) ", c.verdict)],
        about=f"excite compare, {c.created[:10]}. {len(c.runs)} runs: {len(c.gates)} networks, {len(seeds)} "
        f"{'seed' if len(seeds) == 1 else 'seeds'}, {c.config['epochs']} epochs."
        + ("" if c.complete else " Not complete: runs are still missing."),
    )
    page.section().table(_main_table(c, series)).points(typeset(line) for line in (*c.caveats, *c.notes))
    if len(c.gates) > 1:
        section = page.section("Paired differences")
        section.legend(s for gate, s in series.items() if gate != PLAIN)
        section.figures(difference_figure(c, series))
        if any(g.images for g in c.gates):
            _images_part(section, c, series)
    section = page.section("Learning curves")
    section.legend(series.values())
    section.figures(*curve_figures(c, series))
    costs = cost_figures(c, series)
    if costs:
        page.section("Accuracy and cost", "Up is more accurate, left is cheaper.").legend(series.values()).figures(
            *costs
        )
    page.section("What each number means").points(meanings(c))
    _details(page, c, series)
    return page


def _main_table(c: Comparison, series: Mapping[str, Series]) -> Table:
    columns: list[str | tuple[str, str]] = [
        "Gate",
        ("Accuracy, %", "mean, interval"),
        ("Against plain", "points, interval"),
    ]
    columns += [("Needed", "points"), ("Finding", "p by Holm"), "Parameters", ("MACs", "one image")]
    timed = [w for w in ("inference", "training step") if any(g.timing(w) for g in c.gates)]
    columns += [("Latency" if w == "inference" else "Training step", "times plain") for w in timed]
    rows = [
        [
            Cell(g.label, series=series[g.gate]),
            accuracy_cell(g),
            *(replace(cell, text=typeset(cell.text), detail=typeset(cell.detail)) for cell in difference_cells(g)),
            count_cell(g.parameters, c.plain.parameters),
            count_cell(g.macs, c.plain.macs),
            *(ratio_cell(g.timing(w)) for w in timed),
        ]
        for g in c.gates
    ]
    return Table(columns, rows)


def accuracy_cell(g: GateResult) -> Cell:
    """Mean accuracy in percent, with half the width of its interval."""
    a = g.accuracy
    half = f"± {points(a.high - a.mean)}" if a.high is not None else "no interval"
    return Cell(f"{100 * a.mean:.2f}", a.mean, half)


def difference_cells(g: GateResult) -> list[Cell]:
    """Difference to plain with its interval, what was needed, and the finding with its p; empty for plain."""
    d = g.difference
    if d is None:
        return [Cell("", "")] * 3
    interval = "no interval"
    if d.holm_interval:
        interval = f"{signed_points(d.holm_interval[0])} to {signed_points(d.holm_interval[1])}"
    tone = {"better": "good", "worse": "bad"}.get(d.decision, "")
    return [
        Cell(signed_points(d.mean), d.mean, interval),
        Cell(points(d.critical), d.critical) if d.critical is not None else Cell("", ""),
        Cell(d.decision, d.p_holm if d.p_holm is not None else "", p_value(d.p_holm), tone=tone),
    ]


def p_value(p: float | None) -> str:
    """A p value as a reader needs it: three digits, never "0.000"; nothing where there is none."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def count_cell(count: int | None, plain: int | None) -> Cell:
    """A count in k, M or G, with how much more than plain's it is."""
    if count is None:
        return Cell("", "")
    return Cell(_short(count), count, _more(count, plain) if plain else "")


def _more(count: float, plain: float) -> str:
    return f"{100 * (count / plain - 1):+.2g} %" if count != plain else ""


def _short(count: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)


def ratio_cell(t: Measured | None) -> Cell:
    """Time as a multiple of plain's with its spread; for plain itself its milliseconds."""
    if t is None:
        return Cell("", "")
    if t.ratio == t.ratio_p20 == t.ratio_p80 == 1:
        return Cell("1", 1.0, f"{t.p50_ms:.3g} ms")
    return Cell(f"{t.ratio:.3f}", t.ratio, f"{t.ratio_p20:.3f} to {t.ratio_p80:.3f}")


def _images_part(section: Section, c: Comparison, series: Mapping[str, Series]) -> None:
    rows: list[Row] = []
    for g in c.gates:
        if g.images is None:
            continue
        look = g.images
        interval = "no interval"
        if look.interval:
            interval = f"{signed_points(look.interval[0])} to {signed_points(look.interval[1])}"
        rows.append(
            [
                Cell(g.label, series=series[g.gate]),
                Cell(typeset(signed_points(look.mean)), look.mean, typeset(interval)),
                Cell(p_value(look.p).removeprefix("p "), look.p),
                Cell(points(look.gained), look.gained),
                Cell(points(look.lost), look.lost),
            ]
        )
    images = next(g.images.images for g in c.gates if g.images)
    section.text(
        f"The same differences over the {images:,} validation images: the networks as they are trained, the images as "
        "a random draw. The intervals over seeds do not cover this, and this does not cover another training. Each "
        "gate stands on its own here, without correction over gates."
    )
    columns = ("Gate", ("Against plain", "points, interval over images"), ("p", "over images"))
    shares = (("Only gate right", "% of images"), ("Only plain right", "% of images"))
    section.table(Table((*columns, *shares), rows))


def _details(page: Page, c: Comparison, series: Mapping[str, Series]) -> None:
    section = page.section("How it was made")
    section.folded("Recipe").facts(c.config)
    classes = list(c.data["classes"])
    shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20:,} more" if len(classes) > 20 else "")
    section.folded("Data").facts({**c.data, "classes": f"{len(classes):,}: {shown}"})
    section.folded("Machine and versions").facts({**c.machine, **c.versions})
    rows: list[Row] = [
        [
            Cell(next(g.label for g in c.gates if g.gate == r.gate), series=series[r.gate]),
            r.seed,
            Cell(f"{100 * r.final['val_top1']:.2f}", r.final["val_top1"]),
            Cell(f"{r.final['val_loss']:.4g}", r.final["val_loss"]),
            Cell(f"{r.seconds:.0f}", r.seconds),
            r.folder,
        ]
        for r in c.runs
    ]
    columns = ("Gate", "Seed", ("Accuracy", "%, last epoch"), ("Loss", "validation"), ("Time", "s"), "Folder")
    section.folded("Every run").table(Table(columns, rows))
