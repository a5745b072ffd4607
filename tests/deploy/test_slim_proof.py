"""What images prove of a fall of accuracy: coverage of the bound by full enumeration, and the words."""

import math

import pytest
from scipy import stats

from excite.deploy.proof import fall_bound, images_needed, prove
from excite.errors import UserError


def coverage(n, lost, gained, level):
    """The chance that the bound is not under the true fall, over all that can be seen of n images."""
    total = 0.0
    for changed in range(n + 1):
        chance = stats.binom.pmf(changed, n, lost + gained)
        if chance < 1e-9:
            continue
        for b in range(changed + 1):
            if fall_bound(b, changed - b, n, level) >= lost - gained:
                total += chance * stats.binom.pmf(b, changed, lost / (lost + gained))
    return total


@pytest.mark.parametrize(
    "lost,gained", [(0.005, 0), (0.02, 0), (0.03, 0.001), (0.005, 0.005), (0.03, 0.03), (0.05, 0.02), (0.02, 0.05)]
)
def test_the_bound_holds_as_often_as_it_says(lost, gained):
    for level in (0.9, 0.95):
        assert coverage(120, lost, gained, level) >= level


def test_the_bound_of_many_images_is_the_normal_one():
    n, lost, gained = 1_000_000, 20_000, 15_000
    share = (lost - gained) / n
    normal = share + 1.6448536 * math.sqrt(((lost + gained) / n - share**2) / n)
    assert fall_bound(lost, gained, n) == pytest.approx(normal, rel=2e-3)


def test_no_changed_image_does_not_prove_that_none_would():
    # Above the exact bound of "none of n": 1 - 0.05^(1/n).
    for n in (10, 100, 2000):
        assert 1 - 0.05 ** (1 / n) < fall_bound(0, 0, n) < 5 / n
    assert fall_bound(0, 0, 2000) == pytest.approx(0.0018, abs=5e-5)


@pytest.mark.parametrize("lost,n", [(5, 40), (50, 100), (90, 100)])
def test_without_gains_the_bound_is_wilsons_of_half_an_image_more(lost, n):
    p, z = (lost + 0.5) / n, 1.6448536269514722
    wilson = (p + z * z / (2 * n) + z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    assert fall_bound(lost, 0, n) == pytest.approx(wilson, rel=1e-9)


def test_the_bound_follows_what_is_seen():
    assert fall_bound(10, 0, 500) > fall_bound(5, 0, 500) > fall_bound(5, 5, 500) > fall_bound(0, 5, 500)
    assert fall_bound(5, 3, 500, 0.99) > fall_bound(5, 3, 500, 0.95)
    assert fall_bound(5, 3, 500) > fall_bound(50, 30, 5000)
    assert fall_bound(7, 0, 7) == 1


def seen(n, lost, gained, before=0.9):
    """Correctness of both networks with these counts."""
    both = round(n * before) - lost
    first = [True] * (both + lost) + [False] * (n - both - lost)
    second = [True] * both + [False] * lost + [True] * gained + [False] * (n - both - lost - gained)
    return first, second


def test_a_proof_in_numbers():
    proof = prove(*seen(2000, 14, 6), max_fall=0.01)
    assert (proof.images, proof.lost, proof.gained) == (2000, 14, 6)
    assert (proof.before, proof.after, proof.fall) == (0.9, pytest.approx(0.896), pytest.approx(0.004))
    assert proof.p == pytest.approx(stats.binomtest(6, 20).pvalue)
    assert proof.fall_interval[0] < 0 < proof.fall < proof.bound < proof.fall_interval[1]
    assert proof.proven and not proof.refuted and proof.needed is None
    wilson = stats.binomtest(1800, 2000).proportion_ci(0.95, "wilson")
    assert proof.before_interval == pytest.approx((wilson.low, wilson.high))


def test_a_proof_in_words():
    assert str(prove(*seen(2000, 14, 6), max_fall=0.01)) == (
        "Proven with 95 % confidence on 2,000 images: accuracy falls by at most 0.84 points, no more than the 1.00 "
        "points allowed. On them accuracy fell by 0.40 points: 14 images were lost and 6 gained."
    )
    words = str(prove(*seen(2000, 0, 0), max_fall=0.001))
    assert words.startswith(
        "Not proven that accuracy falls by no more than 0.10 points. What these 2,000 images prove, with 95 %"
    )
    assert "On them accuracy stayed the same" in words and "2,000 images could prove no less than 0.18 points" in words
    assert "it would take about 3,700 images" in words
    assert "would take" not in str(prove(*seen(2000, 14, 6), max_fall=0.004))
    worse = prove(*seen(2000, 90, 3), max_fall=0.01, level=0.9)
    assert worse.refuted and str(worse).startswith("Not within the 1.00 points allowed: with 90 % confidence on 2,000")
    alone = str(prove([True], [False], max_fall=0.01))
    assert "What this 1 image proves" in alone and "On it accuracy fell by 100.00 points: 1 image was lost" in alone
    assert "rose by 0.20 points" in str(prove(*seen(1000, 1, 3), max_fall=0.05))


def test_images_needed_are_enough_and_not_many_too_many():
    lost, gained, allowed = 0.004, 0.002, 0.003
    n = images_needed(lost, gained, allowed)
    assert fall_bound(lost * n, gained * n, n) <= allowed
    assert fall_bound(lost * n * 0.97, gained * n * 0.97, int(n * 0.97)) > allowed
    assert images_needed(0.004, 0.001, 0.003) is None


def test_mistakes():
    with pytest.raises(UserError, match="0 and 0 images"):
        prove([], [], max_fall=0.1)
    with pytest.raises(UserError, match="2 and 1 images"):
        prove([True, True], [True], max_fall=0.1)
    with pytest.raises(UserError, match="max_fall=1"):
        prove([True], [True], max_fall=1)
    with pytest.raises(UserError, match="level=0.5"):
        prove([True], [True], max_fall=0.1, level=0.5)
