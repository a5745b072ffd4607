"""Tests and corrections against scipy, printed examples and simulation; Holm's and McNemar's stand with compare's."""

import numpy as np
import pytest
from scipy import stats

from excite.errors import UserError
from excite.significance import (
    benjamini_hochberg,
    bootstrap_means,
    normal_quantile,
    paired_proportions,
    wilson_interval,
)


def test_benjamini_hochberg_is_scipys():
    rng = np.random.default_rng(0)
    p = rng.random((4, 30)) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p, axis=-1))
    assert np.isnan(benjamini_hochberg([0.01, np.nan])[1]) and benjamini_hochberg([0.01, np.nan])[0] == 0.02
    assert benjamini_hochberg([]).shape == (0,)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (998, 1000)])
def test_wilson_is_scipys(k, n):
    low, high = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
    assert wilson_interval(k, n, 0.9) == pytest.approx((low, high), abs=1e-12)


def test_newcombes_printed_examples():
    """Newcombe 1998 (Statistics in Medicine 17, 2635-2650), Table II, method 10."""
    assert paired_proportions(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert paired_proportions(19, 1, 2, 0)[0] == -paired_proportions(19, 2, 1, 0)[1]
    low, high = paired_proportions(100, 0, 0, 0)
    assert low == -high and 0.02 < high < 0.04, "no image differs, and yet a little may"


@pytest.mark.parametrize("first_only", [0.01, 0.08])
def test_the_interval_of_a_paired_difference_covers(first_only):
    rng = np.random.default_rng(1)
    shares = [0.7, first_only, 0.05, 1 - 0.75 - first_only]
    truth, n, covered = first_only - 0.05, 150, 0
    for both, one, two, neither in rng.multinomial(n, shares, size=1000).tolist():
        low, high = paired_proportions(both, one, two, neither)
        covered += low <= truth <= high
    assert 0.93 < covered / 1000 < 0.985


def test_bootstrap_of_means():
    rng = np.random.default_rng(2)
    values = rng.exponential(size=(80, 3))
    low, high = bootstrap_means(values, level=0.9, resamples=4000, seed=3)
    for column in range(3):
        of = stats.bootstrap((values[:, column],), np.mean, confidence_level=0.9, method="percentile", rng=rng)
        width = of.confidence_interval.high - of.confidence_interval.low
        assert low[column] == pytest.approx(of.confidence_interval.low, abs=0.1 * width)
        assert high[column] == pytest.approx(of.confidence_interval.high, abs=0.1 * width)
    one = bootstrap_means(values[:, 0], level=0.9, resamples=4000, seed=3)
    assert one[0] == pytest.approx(low[0]) and one[0].shape == ()
    # The draws are one set: of a sum the interval is that of the columns moved together.
    assert bootstrap_means(values - values, resamples=10)[1].max() == 0
    again = bootstrap_means(values + 1e9, level=0.9, resamples=4000, seed=3)
    np.testing.assert_allclose(again[0] - 1e9, low, atol=1e-5)


def test_many_values_are_drawn_in_parts():
    values = np.random.default_rng(4).normal(size=100_000)
    low, high = bootstrap_means(values, resamples=300)
    half = normal_quantile(0.95) / np.sqrt(100_000)
    assert high - low == pytest.approx(2 * half, rel=0.2) and low < values.mean() < high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_quantile(95), "level=95: a confidence level lies between 0 and 1"),
        (lambda: bootstrap_means([]), "0 values"),
        (lambda: bootstrap_means([1.0], resamples=0), "resamples=0"),
        (lambda: bootstrap_means([1.0], level=0), "level=0"),
        (lambda: paired_proportions(0, 0, 0, 0), "no images"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(UserError, match=message):
        call()
