"""What a few seeds can say: intervals, paired differences, Holm over gates, and what would have been missed.

Everything here is a pure function of numbers. Accuracies and differences are fractions (0.01 is one percentage
point). The noise treated here is that of training: another seed draws other initial weights, another order of
data and other augmentation. The validation images are the same for every seed, so none of these intervals covers
their choice; ``excite.experiment.images`` looks at that separately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from excite.errors import UserError
from excite.significance import ROUNDING, holm_adjust, paired_p

__all__ = [
    "POWER",
    "Decision",
    "Difference",
    "Summary",
    "compare_to_plain",
    "critical_difference",
    "detectable_difference",
    "holm_alphas",
    "sd_interval",
    "summarize",
]

POWER = 0.8
"""The chance with which the "detectable" true difference would have been found."""

Decision = Literal["better", "worse", "undecided", "untested"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A mean over seeds with its Student-t interval.

    Attributes:
        mean: arithmetic mean.
        sd: sample standard deviation (n - 1); None with one value.
        low: lower end of the interval; None with one value, or where all values are equal.
        high: upper end, likewise.
        n: number of values.
        level: coverage of the interval.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int
    level: float


@dataclass(frozen=True)
class Difference:
    """A gate minus plain, paired by seed.

    Attributes:
        seeds: the seeds both were trained with.
        values: accuracy of the gate minus accuracy of plain, per seed.
        mean: their mean.
        sd: their sample standard deviation; None with one seed.
        sd_interval: chi-square interval of that standard deviation at ``level``; None where sd is None or 0.
        level: coverage of ``interval``, and one minus the chance of any false decision over all gates.
        interval: Student-t interval of the mean for this gate on its own at ``level``; None without a spread.
        p: two-sided p of the paired t test, for this gate on its own; None where no test is possible.
        p_holm: p after Holm's correction over all gates; a gate is decided when it is at most 1 - ``level``.
        holm_level: the stricter coverage that Holm's procedure asks of this gate.
        holm_interval: the Student-t interval at ``holm_level``. It leaves out 0 exactly when Holm decides.
        critical: half the width of ``holm_interval``: the smallest observed difference that would have counted.
        detectable: the true difference that these seeds would have found with a chance of 80 %, were the true
            standard deviation equal to ``sd``.
        decision: "better", "worse", "undecided", or "untested" (one seed, or no spread over the seeds).
        note: why it is untested, or what else a reader should know; empty where nothing is to be said.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    sd: float | None
    sd_interval: tuple[float, float] | None
    level: float
    interval: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    holm_level: float
    holm_interval: tuple[float, float] | None
    critical: float | None
    detectable: float | None
    decision: Decision
    note: str = ""

    @property
    def n(self) -> int:
        """Number of paired seeds."""
        return len(self.values)


def summarize(values: Sequence[float], level: float = 0.95) -> Summary:
    """Mean over seeds with its Student-t interval.

    ``mean +- t(1 - (1 - level) / 2, n - 1) * sd / sqrt(n)`` with the sample standard deviation ``sd``. With one
    value there is no interval. Equal values have no interval either: the formula's zero width would claim a
    certainty that a handful of seeds cannot give.

    Raises:
        ValueError: no values, a value that is not finite, or a level outside (0, 1).
    """
    x = _checked(values, level)
    mean = float(x.mean())
    if len(x) == 1:
        return Summary(mean, None, None, None, 1, level)
    sd = _spread(x)
    if sd == 0:
        return Summary(mean, 0.0, None, None, len(x), level)
    half = critical_difference(sd, len(x), 1 - level)
    return Summary(mean, sd, mean - half, mean + half, len(x), level)


def holm_alphas(p: Sequence[float], alpha: float = 0.05) -> list[float]:
    """The significance level at which Holm's procedure comes to test each gate.

    With the p values in rising order, gate j (from 1) is tested at ``alpha / (m - j + 1)`` until the first gate k that
    fails; that one and all after it get ``alpha / (m - k + 1)``. A t interval at ``1 - alpha_j`` therefore leaves out 0
    exactly when Holm decides the gate. Over all gates without a true difference, the chance that any such interval
    leaves out 0 is at most alpha, and each interval covers its own true difference with at least ``1 - alpha``. They
    do not cover all true differences at once with ``1 - alpha``: that takes ``alpha / m`` throughout (Bonferroni).

    Args:
        p: one p value a gate; NaN (no test possible) counts as 1.
        alpha: chance of any false decision allowed over all gates.

    Returns:
        one level a gate, in the order given.
    """
    filled = [1.0 if math.isnan(v) else v for v in p]
    m = len(filled)
    levels = [0.0] * m
    step = alpha / m if m else alpha
    failed = False
    for rank, index in enumerate(sorted(range(m), key=lambda i: filled[i])):
        if not failed:
            step = alpha / (m - rank)
            failed = filled[index] > step
        levels[index] = step
    return levels


def critical_difference(sd: float, n: int, alpha: float) -> float:
    """The smallest observed mean difference that a two-sided paired t test calls significant.

    ``t(1 - alpha / 2, n - 1) * sd / sqrt(n)``; also half the width of the t interval at ``1 - alpha``.
    """
    return float(stats.t.ppf(1 - alpha / 2, n - 1)) * sd / math.sqrt(n)


def detectable_difference(sd: float, n: int, alpha: float, power: float = POWER) -> float:
    """The true mean difference that the two-sided paired t test finds with a chance of ``power``.

    Solves ``P(|T| > t(1 - alpha / 2, n - 1)) = power`` for delta, T following the noncentral t distribution with
    n - 1 degrees of freedom and noncentrality ``delta * sqrt(n) / sd``. It takes ``sd`` for the true standard
    deviation, which a few seeds know poorly (see ``sd_interval``): an order of magnitude, not a promise.

    Raises:
        ValueError: fewer than 2 seeds, or alpha >= power (then no difference at all is needed).
    """
    if n < 2:
        raise UserError(f"n={n}: a detectable difference needs at least 2 seeds")
    if not 0 < alpha < power < 1:
        raise UserError(f"alpha={alpha}, power={power}: need 0 < alpha < power < 1")
    return _noncentrality(n - 1, alpha, power) * sd / math.sqrt(n)


@cache
def _noncentrality(df: int, alpha: float, power: float) -> float:
    t = float(stats.t.ppf(1 - alpha / 2, df))
    # T = (Z + noncentrality) / W with W^2 ~ chi2(df) / df, averaged over W's quantiles: scipy's nct gives NaN in the
    # far tails that 2 or 3 seeds reach.
    bar = t * np.sqrt(stats.chi2.ppf((np.arange(4096) + 0.5) / 4096, df) / df)

    def missing(noncentrality: float) -> float:
        found = stats.norm.cdf(noncentrality - bar) + stats.norm.cdf(-noncentrality - bar)
        return float(found.mean()) - power

    return float(optimize.brentq(missing, 0.0, float(bar[-1]) + 10.0))


def sd_interval(sd: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Chi-square interval of a standard deviation: ``sd * sqrt((n - 1) / chi2(1 -+ (1 - level) / 2, n - 1))``.

    With 3 seeds the 95 % interval runs from 0.52 to 6.3 times the observed one.
    """
    df = n - 1
    tail = (1 - level) / 2
    most, least = float(stats.chi2.ppf(1 - tail, df)), float(stats.chi2.ppf(tail, df))
    return sd * math.sqrt(df / most), sd * math.sqrt(df / least)


def compare_to_plain(
    plain: Mapping[int, float], gates: Mapping[str, Mapping[int, float]], level: float = 0.95
) -> dict[str, Difference]:
    """Every gate's paired difference to plain, with Holm's correction over all of them.

    Args:
        plain: accuracy of plain by seed.
        gates: accuracy of each gate by seed; a gate is compared over the seeds it shares with plain.
        level: coverage of each gate's own interval; 1 - level is the chance of any false decision over all gates.

    Returns:
        one ``Difference`` a gate, in the order given.

    Raises:
        ValueError: a gate that shares no seed with plain, an accuracy that is not finite, a level outside (0, 1).
    """
    seeds = {gate: tuple(sorted(set(plain) & set(by_seed))) for gate, by_seed in gates.items()}
    for gate, common in seeds.items():
        if not common:
            raise UserError(f"gate {gate!r} shares no seed with plain: pairs need the same seeds in both")
    values = {g: _checked([gates[g][s] - plain[s] for s in seeds[g]], level) for g in gates}
    p = [float(paired_p(values[g])) for g in gates]
    adjusted = holm_adjust(p) if p else np.empty(0)
    alphas = holm_alphas(p, 1 - level)
    return {
        g: _difference(seeds[g], values[g], level, p[i], float(adjusted[i]), alphas[i]) for i, g in enumerate(gates)
    }


def _difference(seeds: tuple[int, ...], d: Floats, level: float, p: float, p_holm: float, alpha: float) -> Difference:
    n, mean = len(d), float(d.mean())
    sd = _spread(d) if n > 1 else None
    if not sd:
        note = _why_untested(sd, mean, n)
        tested = not math.isnan(p)
        return Difference(
            seeds=seeds,
            values=tuple(map(float, d)),
            mean=mean,
            sd=sd,
            sd_interval=None,
            level=level,
            interval=None,
            p=p if tested else None,
            p_holm=p_holm if tested else None,
            holm_level=1 - alpha,
            holm_interval=None,
            critical=None,
            detectable=None,
            decision="untested",
            note=note,
        )
    half, holm_half = critical_difference(sd, n, 1 - level), critical_difference(sd, n, alpha)
    decision: Decision = "undecided"
    if p <= alpha:
        decision = "better" if mean > 0 else "worse"
    return Difference(
        seeds=seeds,
        values=tuple(map(float, d)),
        mean=mean,
        sd=sd,
        sd_interval=sd_interval(sd, n, level),
        level=level,
        interval=(mean - half, mean + half),
        p=p,
        p_holm=p_holm,
        holm_level=1 - alpha,
        holm_interval=(mean - holm_half, mean + holm_half),
        critical=holm_half,
        detectable=detectable_difference(sd, n, alpha),
        decision=decision,
    )


def _why_untested(sd: float | None, mean: float, n: int) -> str:
    if sd is None:
        return "one seed: no interval, since nothing shows how much a difference changes from seed to seed"
    if abs(mean) <= ROUNDING:
        return f"the same accuracy as plain in all {n} seeds: no spread, so no interval"
    return f"the same difference in all {n} seeds: no spread to test against, so no interval; add seeds"


def _spread(x: Floats) -> float:
    """Sample standard deviation, exactly 0 where only rounding is left."""
    sd = float(x.std(ddof=1))
    return 0.0 if sd <= ROUNDING * max(1.0, float(np.abs(x).max())) else sd


def _checked(values: Sequence[float], level: float) -> Floats:
    if not 0 < level < 1:
        raise UserError(f"level={level}: a confidence level lies between 0 and 1, for example 0.95")
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise UserError("no values: a mean needs at least one")
    if not np.isfinite(x).all():
        raise UserError(f"values={list(values)}: every value must be finite")
    return x
