"""The sentence that the numbers support, and never more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from excite.experiment.images import ImageLook
from excite.experiment.statistics import Difference

__all__ = ["caveats", "percent", "points", "signed_points", "verdict"]


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points, two digits: 0.0123 -> "1.23"."""
    return f"{100 * fraction:.2f}"


def signed_points(fraction: float) -> str:
    """The same with its sign: 0.0123 -> "+1.23"; what rounds to nothing is "0.00"."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def percent(level: float) -> str:
    """A coverage as a reader writes it: 0.95 -> "95 %", 0.98333 -> "98.33 %"."""
    return f"{100 * level:.2f}".rstrip("0").rstrip(".") + " %"


def verdict(differences: Mapping[str, Difference]) -> str:
    """What the paired differences to plain support, in plain words.

    A gate is said to be above or below plain only where Holm's procedure decides it. What is undecided is never
    called equal: the sentence says how large a difference would have had to be to count, and what was likely missed.

    Args:
        differences: one a gate, as ``compare_to_plain`` gives them, all for the same recipe and data.
    """
    if not differences:
        return "Only plain was trained, so there is nothing to compare it with; name at least one gate."
    if all(d.n == 1 for d in differences.values()):
        return _one_seed(differences)
    decided = [_decided(g, d) for g, d in differences.items() if d.decision in ("better", "worse")]
    undecided = {g: d for g, d in differences.items() if d.decision == "undecided"}
    untested = [_untested(g, d) for g, d in differences.items() if d.decision == "untested"]
    open_question = [_undecided(undecided, all_of_them=len(undecided) == len(differences))] if undecided else []
    return " ".join(f"{part}." for part in decided + open_question + untested)


def caveats(differences: Mapping[str, Difference], looks: Mapping[str, ImageLook]) -> list[str]:
    """What a reader must know before acting on ``verdict``, one sentence each.

    Args:
        differences: as for ``verdict``.
        looks: the look over validation images; gates without one are left out.
    """
    said = []
    decided = [g for g, d in differences.items() if d.decision in ("better", "worse")]
    for g in decided:
        interval = looks[g].interval if g in looks else None
        if interval and interval[0] <= 0 <= interval[1]:
            said.append(
                f"Other validation images could undo {g}'s difference: over the {looks[g].images:,} images alone it "
                f"lies between {signed_points(interval[0])} and {signed_points(interval[1])} points."
            )
    if len(decided) > 1:
        said.append("Gates were tested against plain only, not against each other.")
    factors = [
        (d.n, d.sd_interval[0] / d.sd, d.sd_interval[1] / d.sd) for d in differences.values() if d.sd and d.sd_interval
    ]
    if factors and min(factors)[0] <= 4:
        n, low, high = min(factors)
        said.append(
            f"{n} seeds know their own noise poorly: its true size lies between {low:.1f} and {high:.1f} times the one "
            "measured, and what could have been missed grows with it."
        )
    return said


def _one_seed(differences: Mapping[str, Difference]) -> str:
    seen = _listed([f"{g} {signed_points(d.mean)}" for g, d in differences.items()])
    return (
        f"One seed cannot tell a gate from chance. Observed against plain, in points: {seen}; how much of that another "
        "seed would change was not measured. Use at least 3 seeds."
    )


def _decided(gate: str, d: Difference) -> str:
    assert d.holm_interval is not None
    low, high = (signed_points(end) for end in d.holm_interval)
    return (
        f"{gate} is {'more' if d.mean > 0 else 'less'} accurate than plain: {signed_points(d.mean)} points "
        f"({percent(d.holm_level)} interval {low} to {high})"
    )


def _undecided(undecided: Mapping[str, Difference], *, all_of_them: bool) -> str:
    gate, largest = max(undecided.items(), key=lambda item: abs(item[1].mean))
    assert largest.critical is not None
    seeds = sorted({d.n for d in undecided.values()})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    missed = max(d.detectable for d in undecided.values() if d.detectable is not None)
    observed = f"{signed_points(largest.mean)} points, where {_counted(largest.critical)}"
    if len(undecided) == 1:
        told = f"{gate} could not be told from plain with {count} seeds: {observed}"
    else:
        who = "No gate could" if all_of_them else f"{_listed(list(undecided))} could not"
        told = f"{who} be told from plain with {count} seeds. The largest difference was {gate}'s {observed}"
    if missed >= 1:
        return f"{told}. With noise like this any true effect could have been missed"
    return f"{told}. A true effect of up to {points(missed)} points could well have been missed"


def _counted(critical: float) -> str:
    return f"{points(critical)} would have counted" if critical <= 1 else "even 100 would not have counted"


def _untested(gate: str, d: Difference) -> str:
    return f"{gate} was not tested ({d.note})"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
