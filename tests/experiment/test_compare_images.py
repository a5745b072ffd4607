"""The look over validation images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from excite.errors import UserError
from excite.experiment.images import look_at_images
from excite.significance import mcnemar_p


def test_mcnemar_by_hand() -> None:
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 5) == 1.0
    # 2 * (1 + 8) / 2^8
    assert mcnemar_p(7, 1) == mcnemar_p(1, 7) == pytest.approx(18 / 256)
    assert mcnemar_p(30, 12) == pytest.approx(stats.binomtest(12, 42).pvalue)


def test_one_seed_by_hand() -> None:
    gate = np.array([[1, 1, 1, 0, 1, 0]], dtype=bool)
    plain = np.array([[1, 0, 0, 0, 1, 1]], dtype=bool)
    look = look_at_images(gate, plain)
    assert (look.gained, look.lost, look.mean) == pytest.approx((2 / 6, 1 / 6, 1 / 6))
    assert look.p == mcnemar_p(2, 1)
    d = gate[0].astype(float) - plain[0]
    half = stats.t.ppf(0.975, 5) * d.std(ddof=1) / math.sqrt(6)
    assert look.interval == pytest.approx((1 / 6 - half, 1 / 6 + half))


def test_several_seeds_are_averaged_image_by_image() -> None:
    rng = np.random.default_rng(1)
    gate, plain = rng.random((3, 500)) < 0.9, rng.random((3, 500)) < 0.88
    look = look_at_images(gate, plain, level=0.9)
    d = (gate.astype(float) - plain).mean(0)
    assert look.mean == pytest.approx(gate.mean() - plain.mean())
    assert look.interval == pytest.approx(stats.t.interval(0.9, 499, loc=d.mean(), scale=stats.sem(d)))
    assert look.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert (look.images, look.seeds, look.level) == (500, 3, 0.9)


def test_no_image_tells_them_apart() -> None:
    same = np.ones((2, 10), dtype=bool)
    look = look_at_images(same, same)
    assert (look.mean, look.interval, look.p) == (0.0, None, 1.0)
    flipped = look_at_images(same, ~same)
    assert flipped.interval is None and flipped.p == mcnemar_p(10, 0)


def test_intervals_cover_another_draw_of_images() -> None:
    """Fixed networks, images drawn anew: 95 of 100 intervals hold the networks' true difference."""
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(1500):
        hard = rng.random(400)  # both networks struggle with the same images
        gate = hard[None] * 0.8 + rng.random((2, 400)) * 0.2 < 0.72
        plain = hard[None] * 0.8 + rng.random((2, 400)) * 0.2 < 0.70
        low, high = look_at_images(gate, plain).interval
        covered.append(low <= 0.02 / 0.8 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / 1500))


@pytest.mark.parametrize("shapes", [((2, 5), (3, 5)), ((5,), (5,)), ((1, 1), (1, 1)), ((0, 5), (0, 5))])
def test_shapes_that_do_not_pair_are_an_error(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(UserError, match="correctness of shapes"):
        look_at_images(np.ones(shapes[0], bool), np.ones(shapes[1], bool))
