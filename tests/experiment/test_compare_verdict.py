"""The verdict says what the numbers support, and nothing beyond."""

from __future__ import annotations

import pytest

from excite.experiment.images import ImageLook
from excite.experiment.statistics import compare_to_plain
from excite.experiment.verdict import caveats, percent, points, signed_points, verdict

PLAIN = {0: 0.880, 1: 0.885, 2: 0.879}


def of(**shifts: tuple[float, ...]) -> str:
    return verdict(differences(**shifts))


def differences(**shifts: tuple[float, ...]):
    return compare_to_plain(PLAIN, {g: {s: PLAIN[s] + d for s, d in enumerate(shift)} for g, shift in shifts.items()})


def test_undecided_names_what_would_have_counted_and_what_may_be_missed() -> None:
    text = of(se=(0.004, -0.002, 0.003))
    assert text.startswith("se could not be told from plain with 3 seeds: +0.17 points, where 0.80 would have counted.")
    assert "A true effect of up to 1.05 points could well have been missed." in text


def test_undecided_gates_are_never_called_equal_or_useless() -> None:
    text = of(se=(0.004, -0.002, 0.003), eca=(0.001, -0.001, 0.002))
    assert text.startswith("No gate could be told from plain with 3 seeds. The largest difference was se's +0.17")
    for word in ("no effect", "equal", "does not help", "no difference between"):
        assert word not in text


def test_decided_gates_come_with_their_interval() -> None:
    text = of(se=(0.010, 0.011, 0.012), eca=(0.001, -0.002, 0.003), worse=(-0.020, -0.021, -0.0205))
    assert "se is more accurate than plain: +1.10 points (97.5 % interval +0.74 to +1.46)." in text
    assert "worse is less accurate than plain: -2.05 points (98.33 % interval" in text
    assert "eca could not be told from plain with 3 seeds: +0.07 points" in text
    assert "better" not in text


def test_one_seed_claims_nothing() -> None:
    text = verdict(compare_to_plain({0: 0.88}, {"se": {0: 0.93}, "eca": {0: 0.88}}))
    assert text.startswith("One seed cannot tell a gate from chance.")
    assert "se +5.00 and eca 0.00" in text
    assert "at least 3 seeds" in text


def test_without_spread_it_says_why() -> None:
    assert of(same=(0.0, 0.0, 0.0)) == (
        "same was not tested (the same accuracy as plain in all 3 seeds: no spread, so no interval)."
    )
    assert "the same difference in all 3 seeds" in of(shifted=(0.01, 0.01, 0.01))


def test_noise_beyond_the_scale_is_not_put_in_points() -> None:
    text = verdict(compare_to_plain({0: 0.2, 1: 0.5}, {"se": {0: 0.6, 1: 0.4}}))
    assert "even 100 would not have counted" in text
    assert "any true effect could have been missed" in text


def test_nothing_compared() -> None:
    assert "nothing to compare" in verdict({})


def test_caveat_when_other_images_could_undo_a_finding() -> None:
    found = differences(se=(0.010, 0.011, 0.012))
    look = ImageLook(
        images=500, seeds=3, mean=0.011, gained=0.04, lost=0.029, level=0.95, interval=(-0.004, 0.026), p=0.2
    )
    assert any("Other validation images could undo se's difference" in line for line in caveats(found, {"se": look}))
    sure = ImageLook(
        images=500, seeds=3, mean=0.011, gained=0.04, lost=0.029, level=0.95, interval=(0.004, 0.018), p=0.01
    )
    assert not any("Other validation images" in line for line in caveats(found, {"se": sure}))


def test_caveat_about_few_seeds_and_untested_pairs() -> None:
    lines = caveats(differences(a=(0.010, 0.011, 0.012), b=(0.020, 0.021, 0.0205)), {})
    assert any("not against each other" in line for line in lines)
    assert any("3 seeds know their own noise poorly" in line and "0.5 and 6.3" in line for line in lines)
    plain = {s: 0.8 + 0.001 * s for s in range(6)}
    many = compare_to_plain(plain, {"se": {s: v + 0.002 * (s % 2) for s, v in plain.items()}})
    assert caveats(many, {}) == []


@pytest.mark.parametrize(("value", "text"), [(0.0123, "+1.23"), (-0.0123, "-1.23"), (-0.00001, "0.00"), (0.0, "0.00")])
def test_signed_points(value: float, text: str) -> None:
    assert signed_points(value) == text


def test_numbers_as_a_reader_writes_them() -> None:
    assert points(0.1) == "10.00"
    assert [percent(v) for v in (0.95, 0.975, 1 - 0.05 / 3, 0.05)] == ["95 %", "97.5 %", "98.33 %", "5 %"]
