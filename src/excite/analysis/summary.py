"""The sentences that the numbers support, and never more.

The paper (arXiv 1709.01507, Sec. 7.2) looked at the mean gates of SE-ResNet-50 by eye and saw three things: gates of
early blocks hardly depend on the class, those of late blocks do, and the very last ones are nearly constant. Each is
said of a network here where the intervals of its gates carry it, denied where they carry the opposite, and else left
undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from excite.analysis.explanation import Explanation, Finding, GateSummary
from excite.analysis.statistics import CONSTANT_SD
from excite.page import counted

__all__ = ["AGNOSTIC", "ALPHA", "NEARLY_ALL", "SPARE", "findings", "notes", "summary", "too_few"]

AGNOSTIC = 0.1
"""Specificity under which a gate counts as class-agnostic: classes make up less than a tenth of its variance. So does
one whose class means lie a standard deviation of at most ``CONSTANT_SD`` apart: their curves lie on each other."""
NEARLY_ALL = 0.9
"""Share of a gate's channels that have to be nearly constant for the gate to be; under a half, it is not."""
ALPHA = 0.05
SPARE = 20
"""Images beyond two a class under which nothing is said of a network. With as many, 95 % intervals of specificity hold
in 88 to 98 % of simulated draws; with 12 images of two or four classes, in 81 to 93 %."""

Holds = Literal["yes", "no", "undecided"]


def too_few(images: int, classes: int, whole: int) -> str:
    """Says that so few images support nothing; "" where they are enough.

    Args:
        images: how many the sample has.
        classes: of how many classes.
        whole: of how many images it was drawn.
    """
    least = 2 * classes + SPARE
    if images >= least:
        return ""
    which = f"{counted(images, 'image')} of {counted(classes, 'class', 'classes')}"
    which = f"{which} are" if images == whole else f"A sample of {which} is"
    return (
        f"{which} too few to say what these "
        f"gates do: that takes at least {least:,}, two a class and {SPARE} more. All numbers are of these images alone."
    )


def findings(gates: Sequence[GateSummary], few: str = "") -> tuple[Finding, ...]:
    """The paper's observations, looked for in these gates; none where classes cannot be told apart by the data.

    Early and late are the first and the last third of the gates, one at least.

    Args:
        gates: in the order of execution.
        few: that the images are too few, see ``too_few``: then all is undecided.
    """
    if few:
        return tuple(replace(f, holds="undecided", why=f"too few images; {f.why}") for f in findings(gates))
    if not gates or any(g.specificity is None or (g.specificity.low is None and not _is_constant(g)) for g in gates):
        return ()
    third = max(1, len(gates) // 3)
    if len(gates) == 1:
        return (_last(gates[-1]),)
    early, late = gates[:third], gates[-third:]
    return _early(early), _late(late), _rise(early, late), _last(gates[-1])


def _ends(g: GateSummary) -> tuple[float, float]:
    """The interval of specificity; a gate that never changes has none, and knows no classes for certain."""
    if g.specificity is None or g.specificity.low is None or g.specificity.high is None:
        return 0.0, 0.0
    return g.specificity.low, g.specificity.high


def _is_constant(g: GateSummary) -> bool:
    return g.near_constant == g.channels


def _spans(gates: Sequence[GateSummary]) -> str:
    specific, apart = ([g.specificity.value for g in gates if g.specificity], [g.class_sd.value for g in gates])
    return f"specificity {_span(specific, 2)}, class means {_span(apart, 3)} apart"


def _span(values: Sequence[float], digits: int) -> str:
    # Adding 0 takes the sign from what rounds to nothing.
    low, high = (f"{round(v, digits) + 0.0:.{digits}f}" for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _early(gates: Sequence[GateSummary]) -> Finding:
    return _all_or_some("early gates are class-agnostic", "first", gates, _is_agnostic, _is_specific)


def _late(gates: Sequence[GateSummary]) -> Finding:
    return _all_or_some("late gates are class-specific", "last", gates, _is_specific, _is_agnostic)


def _all_or_some(
    name: str,
    which: str,
    gates: Sequence[GateSummary],
    holds: Callable[[GateSummary], bool],
    fails: Callable[[GateSummary], bool],
) -> Finding:
    """What is said of all of some gates: it holds for each, fails for some, or nobody can tell."""
    those = "gate" if len(gates) == 1 else f"{len(gates)} gates"
    said = f"the {which} {those}: {_spans(gates)}"
    if all(map(holds, gates)):
        return Finding(name, "yes", said)
    others = [g for g in gates if fails(g)]
    if others:
        return Finding(name, "no", f"{said}; {_listed([g.block for g in others])} {_is_or_are(others)} not")
    return Finding(name, "undecided", said)


def _is_specific(g: GateSummary) -> bool:
    return _told(g) and _ends(g)[0] > AGNOSTIC and (g.class_sd.low or 0.0) > CONSTANT_SD


def _is_agnostic(g: GateSummary) -> bool:
    return _ends(g)[1] < AGNOSTIC or (g.class_sd.high or 0.0) <= CONSTANT_SD


def _is_or_are(gates: Sequence[GateSummary]) -> str:
    return "is" if len(gates) == 1 else "are"


def _rise(early: Sequence[GateSummary], late: Sequence[GateSummary]) -> Finding:
    name = "specificity rises with depth"
    # Means of the ends hold at least as well as the intervals they are of.
    (low, high), (low_late, high_late) = (
        tuple(sum(_ends(g)[i] for g in gates) / len(gates) for i in (0, 1)) for gates in (early, late)
    )
    means = [sum(g.specificity.value for g in gates if g.specificity) / len(gates) for gates in (early, late)]
    said = (
        f"mean specificity {means[0]:.2f} ({low:.2f} to {high:.2f}) early, {means[1]:.2f} ({low_late:.2f} to "
        f"{high_late:.2f}) late"
    )
    holds: Holds = "yes" if low_late > high else "no" if high_late < low else "undecided"
    return Finding(name, holds, said)


def _last(gate: GateSummary) -> Finding:
    share = gate.near_constant / gate.channels
    holds: Holds = "yes" if share >= NEARLY_ALL else "no" if share < 0.5 else "undecided"
    channels = f"{gate.near_constant} of {counted(gate.channels, 'channel')} of {gate.block}"
    said = f"{channels} {'varies' if gate.near_constant == 1 else 'vary'} by a standard deviation of at most 0.01"
    return Finding("the last gate is nearly constant", holds, said)


def _told(g: GateSummary) -> bool:
    """Whether the gate is told from one that knows no classes."""
    return g.p_holm is not None and g.p_holm <= ALPHA


def summary(gates: Sequence[GateSummary], few: str = "") -> tuple[str, ...]:
    """What the numbers of the gates support, a sentence each, the most important first.

    Args:
        gates: in the order of execution.
        few: that the images are too few, see ``too_few``: then no more is said.
    """
    return (few,) if few else (_classes(gates), *_constant(gates), *_worth(gates))


def _classes(gates: Sequence[GateSummary]) -> str:
    tested = [g for g in gates if g.specificity is not None and g.p_holm is not None]
    if not tested:
        return f"{counted(len(gates), 'gate')}; whether they tell classes apart was not tested."
    told = [g for g in tested if _told(g)]
    top = max(tested, key=lambda g: g.specificity.value if g.specificity else 0.0)
    assert top.specificity is not None
    if not told:
        return f"None of the {counted(len(tested), 'gate')} could be told from one that knows nothing of classes."
    many = "All" if len(told) == len(tested) else f"{len(told)} of"
    which = f"{many} {counted(len(tested), 'gate')}" if len(tested) > 1 else "The one gate"
    verb = "differs" if len(told) == 1 else "differ"
    return (
        f"{which} {verb} between classes by more than chance; most in {top.block}, where classes make up "
        f"{100 * top.specificity.value:.0f} % of the variance."
    )


def _constant(gates: Sequence[GateSummary]) -> list[str]:
    constant = [g for g in gates if g.near_constant >= NEARLY_ALL * g.channels]
    if not constant:
        return []
    many = f"All {len(gates)}" if len(constant) == len(gates) > 1 else f"{len(constant)} of {len(gates)}"
    whose = "its" if len(constant) == 1 else "their"
    return [
        f"{many} {'is' if len(constant) == 1 else 'are'} nearly constant: at least {100 * NEARLY_ALL:.0f} % of {whose} "
        f"channels vary over images by a standard deviation of at most {CONSTANT_SD:g}."
    ]


def _worth(gates: Sequence[GateSummary]) -> list[str]:
    """What replacing gates by their means does."""
    means = [(g, k) for g in gates if (k := g.knock_out("mean"))]
    if not means:
        return []
    needed = [(g, k) for g, k in means if k.loss_p <= ALPHA and k.loss.value > 0]
    if not needed:
        largest = max(abs(end or 0.0) for _, k in means for end in (k.accuracy.low, k.accuracy.high))
        return [
            "No gate could be shown to be of use: where one gives its mean over all images instead, the loss rises by "
            f"no more than chance. Up to {_points(largest).removeprefix('+')} points of accuracy may still hang on one."
        ]
    g, k = max(needed, key=lambda pair: pair[1].loss.value)
    many = "All" if len(needed) == len(means) else f"{len(needed)} of"
    which = f"{many} {counted(len(means), 'gate')}" if len(means) > 1 else "The one gate"
    points = f"{_points(k.accuracy.value)} points, {_points(k.accuracy.low)} to {_points(k.accuracy.high)}"
    said = [
        f"{which} can be shown to be of use: with the mean over all images in {'its' if len(needed) == 1 else 'their'} "
        f"place the loss is higher, most for {g.block}, by {k.loss.value:.2g} (accuracy: {points})."
    ]
    rest = [k for g, k in means if k not in [n for _, n in needed]]
    if rest:
        worst = max(abs(end or 0.0) for k in rest for end in (k.accuracy.low, k.accuracy.high))
        said.append(
            f"For the other {counted(len(rest), 'gate') if len(rest) > 1 else 'one'} that is undecided: up to "
            f"{_points(worst).removeprefix('+')} points of accuracy may hang on {'it' if len(rest) == 1 else 'one'}."
        )
    return said


def notes(e: Explanation) -> tuple[str, ...]:
    """What a reader must know beside the summary, a sentence each."""
    said = []
    if len(e.shown_classes) < len(e.classes):
        drawn = (
            f"{len(e.shown_classes)} of {len(e.classes):,} classes {'is' if len(e.shown_classes) == 1 else 'are'} drawn"
        )
        said.append(f"{drawn}; tables and sentences are of all classes.")
    few = min((n for n in e.class_images if n), default=0)
    if few < 20:
        said.append(f"The smallest class has {counted(few, 'image')}: its curve is rough.")
    said += [f"{name} could not be looked at: {reason}." for name, reason in e.skipped]
    said.append(
        "All this is of these images and this one training: another seed would train other gates. That a gate differs "
        "between classes does not say that the network needs it to."
    )
    return tuple(said)


def _points(fraction: float | None) -> str:
    text = f"{100 * (fraction or 0.0):+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _listed(items: Sequence[str]) -> str:
    if len(items) > 4:
        items = [*items[:3], f"{len(items) - 3} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
