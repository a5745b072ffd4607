"""The page of `excite explain`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from excite.analysis.explanation import Estimate, Explanation, GateSummary
from excite.analysis.figures import MODES, correlation_figure, knock_out_figures, percent, specificity_figure
from excite.analysis.page_data import ALL, live_data
from excite.analysis.thumbnails import Thumbnail
from excite.page import (
    Cell,
    Choice,
    Figure,
    Live,
    Meter,
    Option,
    Page,
    Row,
    Section,
    Series,
    Table,
    counted,
    series_styles,
    typeset,
)

__all__ = ["DRAWN_FIRST", "explanation_page", "meanings"]

DRAWN_FIRST = 4
"""How many classes are drawn before a reader chooses: spread over the list, not picked for what they look like."""


def explanation_page(e: Explanation, pictures: Mapping[int, Thumbnail] | None = None) -> Page:
    """The page: what the numbers support first, then the network gate by gate, then what is behind it.

    Args:
        e: what was found.
        pictures: by an image's index.
    """
    first, series = _series(e)
    where = f" on {e.data['name']}" if "name" in e.data else ""
    images = f"{counted(e.data['images'], 'image')} of {counted(len(e.classes), 'class', 'classes')}"
    page = Page(
        f"What the gates of {e.network['name']} do{where}",
        lead=[typeset(sentence) for sentence in e.summary],
        about=f"excite explain, {e.created[:10]}. {counted(len(e.gates), 'gate')}, {images}.",
        live=Live("explain.js", live_data(e, series, pictures or {})),
    )
    _findings(page.section(), e)
    section = page.section(
        "The network, gate by gate",
        "From input to output. Specific: how much of what a gate does goes with the class. Varies: how far s moves "
        "over images. Saturated: values near an end of its range. Loss: how it changes when the gate gives its mean "
        "instead. Choose a gate to see it below; at first it is the most specific one.",
    )
    section.strip("gate", "gates, from input to output", _strip(e))
    _one_gate(page.section("One gate"), e, series, first)
    _images(page, e)
    _by_depth(page.section("By depth"), e, series)
    page.section("Every gate in numbers").table(_table(e))
    page.section("What each number means").points(meanings(e))
    _made(page.section("How it was made"), e)
    return page


def _series(e: Explanation) -> tuple[set[str], dict[str, Series]]:
    """Keys of what is drawn at first, and the style of everything: those drawn first have the most distinct ones."""
    labels = {f"c{k}": e.classes[index] for k, index in enumerate(e.shown_classes)}
    n = min(len(labels), DRAWN_FIRST)
    first = [f"c{round(i * (len(labels) - 1) / max(n - 1, 1))}" for i in range(n)]
    styles = series_styles({key: labels[key] for key in dict.fromkeys([*first, *labels])})
    series = {key: styles[key] for key in labels} | series_styles({ALL: "all images"}, plain=ALL)
    return {*first, ALL}, series | series_styles({f"k-{mode}": label for mode, label in MODES.items()})


def _findings(section: Section, e: Explanation) -> None:
    words = {"yes": "holds", "no": "does not hold", "undecided": "undecided"}
    rows: list[Row] = [[_sentence(f.name), words[f.holds], typeset(f"{_sentence(f.why)}.")] for f in e.findings]
    if rows:
        caption = "What the paper saw in SE-ResNet-50 by eye, looked for here"
        section.table(Table(("The paper's observation", "Here", "Why"), rows, caption, wraps=True))
    section.points(typeset(note) for note in e.notes)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


# --- the network, and one gate of it -------------------------------------------------------------------------------


def _strip(e: Explanation) -> dict[str, list[Option]]:
    specific = max((g.specificity.value for g in e.gates if g.specificity), default=0.0)
    varies = max(g.sd for g in e.gates)
    worth = max((abs(k.loss.value) for g in e.gates if (k := g.knock_out("mean"))), default=0.0)
    groups: dict[str, list[Option]] = {}
    for stage, gates in groupby(enumerate(e.gates), key=lambda pair: pair[1].stage):
        title = f"Stage {stage}" if stage else "Stage not known"
        # A network that comes back to a stage has it twice.
        title = title if title not in groups else f"{title}, again ({len(groups)})"
        groups[title] = [_option(i, g, specific, varies, worth) for i, g in gates]
    return groups


def _option(i: int, g: GateSummary, specific: float, varies: float, worth: float) -> Option:
    meters = []
    if g.specificity:
        value = g.specificity.value
        meters.append(Meter("specific", _fixed(value, 2), value / max(specific, 0.05), "@1"))
    meters.append(Meter("varies", f"{g.sd:.3f}", g.sd / max(varies, 0.01), "@5"))
    meters.append(Meter("saturated", f"{100 * (g.near_low + g.near_high):.0f} %", g.near_low + g.near_high, "@3"))
    if k := g.knock_out("mean"):
        meters.append(Meter("loss", _signed(k.loss.value, 3), abs(k.loss.value) / max(worth, 1e-3), "@2"))
    return Option(str(i), g.block, counted(g.channels, "channel"), meters)


def _gates(e: Explanation) -> Choice:
    specific = [g.specificity.value if g.specificity else -1.0 for g in e.gates]
    first = specific.index(max(specific))
    return Choice("gate", "Gate", {str(i): f"{g.block} ({g.gate})" for i, g in enumerate(e.gates)}, str(first))


def _one_gate(section: Section, e: Explanation, series: Mapping[str, Series], first: set[str]) -> None:
    section.choices(
        _gates(e),
        Choice("order", "Channels", {"mean": "most open first", "class": "by class", "number": "by number"}),
        Choice("scale", "Scale of s", {"part": "what occurs", "whole": "whole range"}),
        Choice("band", "Deviation within class", {"shown": "shown", "hidden": "not shown"}),
    )
    section.legend((s for key, s in series.items() if key == ALL or key.startswith("c")), shown=first)
    curves = Figure(
        "Mean s of each channel, by class",
        maker="curves",
        caption="Lines: means over the images of a class. Bands: one standard deviation within the class. Where lines "
        "lie on each other, the gate does the same for all classes.",
        height=380,
        wide=True,
    )
    heat = Figure(
        "Mean s of classes and channels",
        maker="heat",
        caption="A row a class, a column a channel, in the order chosen above. Differences under 0.01 stay pale.",
        wide=True,
    )
    histogram = Figure(
        "All values of s",
        maker="histogram",
        caption="Over the images of the sample and all channels of the gate.",
        height=300,
        wide=True,
    )
    section.figures(curves)
    section.choices(Choice("colour", "Colour", {"against": "s against the mean of all images", "value": "s"}))
    section.figures(heat, histogram)


# --- images --------------------------------------------------------------------------------------------------------


def _images(page: Page, e: Explanation) -> None:
    section = page.section(
        "One image",
        f"{counted(len(e.listed), 'image')} of the sample: the mistakes with the largest loss, up to a third of all, "
        "the others spread over the classes.",
    )
    listed = set(e.listed)
    labels = sorted({image.label for image in e.images if image.index in listed})
    kinds = {"all": "all", "wrong": "mistakes"} | {str(label): e.classes[label] for label in labels}
    section.choices(Choice("of", "Show", kinds), Choice("image", "Image"), _gates(e)).slot("card")
    section.figures(
        Figure(
            "What this image opened and closed",
            maker="opened",
            caption="The channels furthest from what they are over all images; to the right: opened more than usual. "
            "Beside each bar: the channel, its s in this image, and in brackets its mean over all.",
            wide=True,
        )
    )
    page.section(
        "Images that open a channel most",
        "Of each gate, the channels that vary most over images, and of all images those with the largest s.",
    ).choices(_gates(e), Choice("channel", "Channel")).slot("tops")


# --- all gates -----------------------------------------------------------------------------------------------------


def _by_depth(section: Section, e: Explanation, series: Mapping[str, Series]) -> None:
    figures = [specificity_figure(e), correlation_figure(e)]
    section.figures(*(f for f in figures if f is not None))
    knocked = knock_out_figures(e, series)
    if knocked:
        section.text(
            "What becomes of the network when one gate gives, instead of what it computes, its mean over all images, "
            "1, or what it computes for another image. Where the loss grows, the gate is of use. The network was not "
            "trained to have 1 there, so that one says least."
        )
        modes = [m for m in MODES if any(g.knock_out(m) for g in e.gates)]
        section.legend((series[f"k-{m}"] for m in modes), shown={"k-mean", "k-shuffle"}).figures(*knocked)


def _table(e: Explanation) -> Table:
    columns: list[str | tuple[str, str]] = ["Gate", "Stage", "Channels", ("Specificity", "interval"), ("p", "by Holm")]
    columns += [("Varies", "deviation of s"), ("Classes", "deviation of means")]
    knocked = any(g.knock_outs for g in e.gates)
    if knocked:
        columns += [("Loss", "replaced by its mean"), ("p of loss", "by Holm"), ("Accuracy", "points, likewise")]
    columns += [("Near 0", "% of values"), ("Near top", "% of values"), ("Nearly constant", "channels")]
    columns += [("Dead", "channels"), ("Always open", "channels"), ("Rank", "effective")]
    rows: list[Row] = [[*_classes_cells(g), *(_worth_cells(g) if knocked else ()), *_values_cells(g)] for g in e.gates]
    return Table(columns, rows)


def _classes_cells(g: GateSummary) -> list[Cell | str | float]:
    specificity = Cell("", "") if g.specificity is None else _estimate(g.specificity, 3)
    deviations = [Cell(f"{v:.4f}", v) for v in (g.sd, g.class_sd.value)]
    return [Cell(g.block, detail=g.gate), g.stage or Cell("", ""), g.channels, specificity, _p(g.p_holm), *deviations]


def _worth_cells(g: GateSummary) -> list[Cell]:
    k = g.knock_out("mean")
    if k is None:
        return [Cell("", "")] * 3
    return [_estimate(k.loss, 4, signed=True), _p(k.loss_p), _estimate(k.accuracy, 2, 100, signed=True)]


def _values_cells(g: GateSummary) -> list[Cell]:
    return [
        Cell(f"{100 * g.near_low:.1f}", g.near_low),
        Cell(f"{100 * g.near_high:.1f}", g.near_high),
        *(Cell(f"{n}", n, f"{100 * n / g.channels:.0f} %") for n in (g.near_constant, g.dead, g.always_open)),
        Cell(f"{g.effective_rank:.1f}", g.effective_rank),
    ]


def _estimate(e: Estimate, digits: int, scale: float = 1.0, *, signed: bool = False) -> Cell:
    def text(v: float) -> str:
        return _signed(scale * v, digits) if signed else _fixed(scale * v, digits)

    interval = "no interval" if e.low is None or e.high is None else f"{text(e.low)} to {text(e.high)}"
    return Cell(text(e.value), e.value, interval)


def _fixed(value: float, digits: int) -> str:
    return _signed(value, digits).removeprefix("+")


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if text.strip("+−0.") else f"{0:.{digits}f}"


def _p(p: float | None) -> Cell:
    return Cell("", "") if p is None else Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def meanings(e: Explanation) -> list[str]:
    """What each number of the page means, one line each."""
    level = percent(e.level)
    lines = [
        "s: the channel scale, what a gate multiplies a channel of its map by; one number a channel and image.",
        "Specificity: omega squared, the share of the variance of s over images that goes with the class, without what "
        "chance alone gives. 0: classes make no difference. 1: s says the class and nothing else. Channels weigh by "
        f"their variance. Its {level} interval is over images; p is from dealing the labels out at random, after "
        "Holm's correction over gates.",
        "Varies: standard deviation of s over images, root mean square over channels. Classes: the part of it that "
        "goes with the class, how far class means lie apart.",
        "Saturated: share of values near 0 or near the top, within a twentieth of the range of the gate function.",
        "Nearly constant: channels whose s has a standard deviation over images of at most 0.01. Dead: near 0 for "
        "every image. Always open: near the top for every image.",
        "Effective rank: in how many directions s moves over images; 1 where all channels rise and fall together.",
    ]
    if any(g.knock_outs for g in e.gates):
        n = e.settings.get("knock_out_images")
        lines.append(
            "Loss and accuracy: how they change when the gate gives its mean over all images instead, on the same "
            f"images{f' ({n:,} of them)' if n else ''}. {level} intervals over images, each for itself; p by the "
            "paired t test, with Holm's correction over all replacements."
        )
    return lines


def _made(section: Section, e: Explanation) -> None:
    section.folded("Network").facts(e.network)
    scores = {} if e.accuracy is None else {"accuracy": f"{100 * e.accuracy:.2f} %", "loss": f"{e.loss:.4f}"}
    section.folded("Data").facts({**e.data, **scores})
    section.folded("Settings").facts(e.settings)
    section.folded("Machine and versions").facts({**e.machine, **e.versions})
