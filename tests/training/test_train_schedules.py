"""The learning rate at every step, against closed forms and torch's own schedules."""

import math

import pytest
import torch

from excite.training.config import Recipe
from excite.training.schedules import learning_rate

STEPS = 10


def curve(**settings):
    recipe = Recipe(**settings)
    return [learning_rate(recipe, t, STEPS) for t in range(recipe.epochs * STEPS)]


def test_warm_up_rises_linearly_to_the_peak():
    rates = curve(lr=0.4, epochs=5, warmup_epochs=2, schedule="constant")
    assert rates[:20] == pytest.approx([0.4 * (t + 1) / 20 for t in range(20)])
    assert rates[19:] == pytest.approx([0.4] * 31)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 2), (2, 4), (5, 10), (50, 10)])
def test_warm_up_of_its_own_is_one_epoch_or_a_fifth(epochs, steps):
    rates = curve(epochs=epochs, schedule="constant", lr=1.0)
    assert rates.index(1.0) == steps - 1


def test_cosine_is_torchs():
    rates = curve(lr=0.1, epochs=4, warmup_epochs=0, schedule="cosine")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4 * STEPS)
    for rate in rates:
        assert rate == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_cosine_after_warm_up_spans_what_is_left():
    rates = curve(lr=1.0, epochs=3, warmup_epochs=1, schedule="cosine")
    assert rates[10] == 1.0
    assert rates[20] == pytest.approx(0.5)
    assert 0 < rates[-1] == pytest.approx((1 + math.cos(math.pi * 19 / 20)) / 2)


def test_linear_goes_to_zero():
    rates = curve(lr=1.0, epochs=3, warmup_epochs=1, schedule="linear")
    assert rates[10:] == pytest.approx([1 - k / 20 for k in range(20)])


def test_step_multiplies_after_each_epoch_named():
    rates = curve(lr=1.0, epochs=5, warmup_epochs=0, schedule="step", step_epochs=(2, 4), step_factor=0.1)
    assert rates == pytest.approx([1.0] * 20 + [0.1] * 20 + [0.01] * 10)
