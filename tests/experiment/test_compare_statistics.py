"""Statistics of a comparison against hand-computed values, scipy, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from excite.errors import UserError
from excite.experiment.statistics import (
    compare_to_plain,
    critical_difference,
    detectable_difference,
    holm_alphas,
    sd_interval,
    summarize,
)
from excite.significance import holm_adjust, paired_p

Noise = str
EXPERIMENTS = 40_000


def monte_carlo(rate: float, n: int = EXPERIMENTS) -> float:
    """Four standard errors of a simulated rate: a right one passes all but once in 16,000 times, were it not seeded."""
    return 4 * math.sqrt(rate * (1 - rate) / n)


# --- intervals -----------------------------------------------------------------------------------------------------


def test_mean_with_its_interval_by_hand() -> None:
    s = summarize([0.80, 0.82, 0.84])
    assert s.mean == pytest.approx(0.82)
    assert s.sd == pytest.approx(0.02)
    # t(0.975, 2) = 4.30265
    assert s.high == pytest.approx(0.82 + 4.302653 * 0.02 / math.sqrt(3), abs=1e-8)
    assert s.low == pytest.approx(0.82 - 4.302653 * 0.02 / math.sqrt(3), abs=1e-8)


def test_interval_is_scipys() -> None:
    x = np.random.default_rng(1).normal(size=7)
    low, high = stats.t.interval(0.9, 6, loc=x.mean(), scale=stats.sem(x))
    s = summarize(x.tolist(), level=0.9)
    assert (s.low, s.high) == pytest.approx((low, high))


@pytest.mark.parametrize("values", [[0.9], [0.9, 0.9, 0.9], [0.1 + 0.2, 0.3]])
def test_no_spread_has_no_interval(values: list[float]) -> None:
    s = summarize(values)
    assert s.low is None and s.high is None
    assert s.sd == (None if len(values) == 1 else 0.0)


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([math.nan, 1.0], 0.95), ([1.0, 2.0], 1.0), ([1.0], 0.0)])
def test_what_has_no_mean_or_level_is_an_error(values: list[float], level: float) -> None:
    with pytest.raises(UserError):
        summarize(values, level)


def test_spread_of_the_spread() -> None:
    low, high = sd_interval(1.0, 3)
    assert (low, high) == pytest.approx((0.5207, 6.2847), abs=1e-4)
    # Simulated: the true value lies inside in 95 of 100 samples.
    samples = np.random.default_rng(2).normal(size=(EXPERIMENTS, 3)).std(1, ddof=1)
    covered = np.mean((samples * low <= 1) & (samples * high >= 1))
    assert covered == pytest.approx(0.95, abs=monte_carlo(0.95))


# --- paired t and Holm ---------------------------------------------------------------------------------------------


def test_paired_p_is_scipys() -> None:
    rng = np.random.default_rng(3)
    plain, gate = rng.normal(size=(50, 4)), rng.normal(0.3, 1, size=(50, 4))
    expected = stats.ttest_rel(gate, plain, axis=-1).pvalue
    np.testing.assert_allclose(paired_p(gate - plain), expected, rtol=1e-10)


def test_p_where_nothing_can_be_tested() -> None:
    assert np.isnan(paired_p([0.01]))
    assert np.isnan(paired_p([0.01, 0.01, 0.01]))
    assert np.isnan(paired_p([0.91 - 0.90, 0.81 - 0.80, 0.71 - 0.70]))  # equal but for rounding
    assert paired_p([0.0, 0.0, 0.0]) == 1.0


def test_holm_by_hand() -> None:
    # 0.01 * 4, then 0.02 * 3, then max(0.06, 0.03 * 2), then max(0.06, 0.5)
    np.testing.assert_allclose(holm_adjust([0.02, 0.5, 0.01, 0.03]), [0.06, 0.5, 0.04, 0.06])
    np.testing.assert_allclose(holm_adjust([0.6, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(holm_adjust([[0.04], [0.01]]), [[0.04], [0.01]])


def test_a_gate_that_cannot_be_tested_still_counts_for_the_others() -> None:
    adjusted = holm_adjust([0.02, math.nan])
    assert adjusted[0] == pytest.approx(0.04)
    assert np.isnan(adjusted[1])


def test_holms_levels_by_hand() -> None:
    # Rising: 0.001 at 0.05/4 passes; 0.02 at 0.05/3 fails, so the rest stay at 0.05/3.
    assert holm_alphas([0.02, 0.5, 0.001, 0.03]) == pytest.approx([0.05 / 3, 0.05 / 3, 0.05 / 4, 0.05 / 3])
    assert holm_alphas([0.001, 0.002]) == pytest.approx([0.025, 0.05])
    assert holm_alphas([]) == []


def test_decision_interval_adjusted_p_and_critical_difference_agree() -> None:
    """Four ways of saying the same never disagree, over many random comparisons of 1 to 6 gates."""
    rng = np.random.default_rng(4)
    decided = undecided = 0
    for _ in range(300):
        gates, seeds = rng.integers(1, 7), rng.integers(2, 6)
        plain = dict(enumerate(rng.normal(0.9, 0.01, seeds)))
        effects = rng.choice([0.0, 0.02, -0.03, 0.05], gates)
        given = {f"g{i}": {s: v + e + rng.normal(0, 0.008) for s, v in plain.items()} for i, e in enumerate(effects)}
        for d in compare_to_plain(plain, given).values():
            low, high = d.holm_interval
            assert (
                (d.p_holm <= 0.05) == (d.decision != "undecided") == (low > 0 or high < 0) == (abs(d.mean) > d.critical)
            )
            assert d.decision in {"undecided", "better" if d.mean > 0 else "worse"}
            assert low <= d.interval[0] <= d.interval[1] <= high
            assert d.detectable > d.critical
            decided, undecided = decided + (d.decision != "undecided"), undecided + (d.decision == "undecided")
    assert min(decided, undecided) > 100


def test_only_shared_seeds_are_compared() -> None:
    d = compare_to_plain({0: 0.5, 1: 0.6, 2: 0.7}, {"se": {1: 0.61, 2: 0.73, 5: 0.9}})["se"]
    assert d.seeds == (1, 2)
    assert d.values == pytest.approx((0.01, 0.03))
    with pytest.raises(UserError, match="shares no seed"):
        compare_to_plain({0: 0.5}, {"se": {1: 0.6}})


@pytest.mark.parametrize(
    ("gate", "note"),
    [
        ({0: 0.9}, "one seed"),
        ({0: 0.8, 1: 0.7}, "the same accuracy as plain"),
        ({0: 0.81, 1: 0.71}, "the same difference"),
    ],
)
def test_without_spread_nothing_is_claimed(gate: dict[int, float], note: str) -> None:
    d = compare_to_plain({0: 0.8, 1: 0.7}, {"g": gate})["g"]
    assert d.decision == "untested"
    assert note in d.note
    assert d.interval is None and d.holm_interval is None and d.critical is None and d.detectable is None


# --- what would have been found ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8])
def test_detectable_difference_against_noncentral_t_and_simulation(n: int, alpha: float) -> None:
    sd = 0.004
    delta = detectable_difference(sd, n, alpha)
    t = stats.t.ppf(1 - alpha / 2, n - 1)
    assert stats.nct.sf(t, n - 1, delta * math.sqrt(n) / sd) == pytest.approx(0.8, abs=1e-4)
    found = np.random.default_rng(n).normal(delta, sd, (EXPERIMENTS, n))
    assert np.mean(paired_p(found) <= alpha) == pytest.approx(0.8, abs=monte_carlo(0.8))
    assert np.mean(np.abs(found.mean(1)) > critical_difference(sd, n, alpha)) > 0.8  # sd known: more is found


def test_detectable_difference_needs_seeds_and_a_level() -> None:
    with pytest.raises(UserError, match="at least 2 seeds"):
        detectable_difference(0.01, 1, 0.05)
    with pytest.raises(UserError, match="alpha"):
        detectable_difference(0.01, 3, 0.9)


# --- A/A: gates that do nothing ------------------------------------------------------------------------------------


def draw(noise: str, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Accuracies of runs without any effect, in fractions, with a standard deviation of 0.4 points."""
    if noise == "normal":
        x = rng.normal(size=shape)
    elif noise == "heavy":
        x = rng.standard_t(5, size=shape) / math.sqrt(5 / 3)
    elif noise == "skewed":
        x = (rng.gamma(4, size=shape) - 4) / 2
    else:
        x = rng.uniform(-math.sqrt(3), math.sqrt(3), size=shape)
    return 0.88 + 0.004 * x


def false_findings(noise: str, gates: int, seeds: int, *, images: int | None = None, shared: bool = True) -> float:
    """Share of simulated comparisons without any effect in which at least one gate is found to differ."""
    rng = np.random.default_rng([gates, seeds, len(noise)])
    seed_effect = draw("normal", rng, EXPERIMENTS, 1, seeds) if shared else 0.0
    plain = draw(noise, rng, EXPERIMENTS, 1 if shared else gates, seeds) + seed_effect
    gated = draw(noise, rng, EXPERIMENTS, gates, seeds) + seed_effect
    if images:
        plain, gated = np.round(plain * images) / images, np.round(gated * images) / images
    p = holm_adjust(paired_p(gated - plain))
    return float(np.mean((p <= 0.05).any(-1)))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_one_idle_gate_is_found_to_differ_at_the_stated_rate(seeds: int) -> None:
    assert false_findings("normal", 1, seeds) == pytest.approx(0.05, abs=monte_carlo(0.05))


@pytest.mark.parametrize("gates", [2, 3, 8])
def test_over_independent_idle_gates_the_rate_is_what_holm_says(gates: int) -> None:
    expected = 1 - (1 - 0.05 / gates) ** gates
    assert false_findings("normal", gates, 3, shared=False) == pytest.approx(expected, abs=monte_carlo(0.05))


@pytest.mark.parametrize("gates", [2, 3, 8])
@pytest.mark.parametrize("noise", ["normal", "heavy", "skewed", "flat"])
def test_over_idle_gates_that_share_plain_the_rate_stays_under_the_stated_one(gates: int, noise: str) -> None:
    rate = false_findings(noise, gates, 3)
    assert 0.01 < rate <= 0.05 + monte_carlo(0.05)


def test_accuracies_are_multiples_of_one_image_and_the_rate_holds() -> None:
    assert 0.01 < false_findings("normal", 2, 3, images=2000) <= 0.05 + monte_carlo(0.05)


def test_a_normal_interval_would_have_failed_this_very_simulation() -> None:
    """The simulation can fail: 1.96 standard errors call about a fifth of idle gates different with 3 seeds."""
    rng = np.random.default_rng(5)
    d = draw("normal", rng, EXPERIMENTS, 3) - draw("normal", rng, EXPERIMENTS, 3)
    wrong = np.mean(np.abs(d.mean(1)) > 1.96 * d.std(1, ddof=1) / math.sqrt(3))
    assert wrong == pytest.approx(0.19, abs=0.01)


def test_the_whole_path_decides_as_the_simulation_does() -> None:
    """`compare_to_plain`, which the report uses, gate by gate, agrees with the vectorised rates above."""
    rng = np.random.default_rng(6)
    plain, gated = draw("normal", rng, 400, 1, 3), draw("normal", rng, 400, 3, 3)
    expected = holm_adjust(paired_p(gated - plain)) <= 0.05
    for i in range(400):
        given = {f"g{j}": dict(enumerate(gated[i, j])) for j in range(3)}
        decided = [d.decision != "undecided" for d in compare_to_plain(dict(enumerate(plain[i, 0])), given).values()]
        assert decided == expected[i].tolist()


def test_each_interval_covers_its_own_true_difference() -> None:
    """The intervals that agree with Holm: each alone covers the truth at least as often as stated, effects or none."""
    rng = np.random.default_rng(7)
    truth = np.array([0.0, 0.0, 0.02])
    covered, excluded_zero = [], []
    for _ in range(3000):
        plain = rng.normal(0.88, 0.003, 3)
        gated = plain + truth[:, None] + rng.normal(0, 0.003, (3, 3))
        given = {f"g{j}": dict(enumerate(gated[j])) for j in range(3)}
        found = list(compare_to_plain(dict(enumerate(plain)), given).values())
        covered.append([d.holm_interval[0] <= e <= d.holm_interval[1] for d, e in zip(found, truth, strict=True)])
        excluded_zero.append(any(d.decision != "undecided" for d in found[:2]))
    assert np.mean(covered, axis=0).min() >= 0.95 - monte_carlo(0.05, 3000)
    assert np.mean(excluded_zero) <= 0.05 + monte_carlo(0.05, 3000)
