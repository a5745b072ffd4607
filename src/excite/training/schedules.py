"""The learning rate as a pure function of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

import math

from excite.training.config import Recipe

__all__ = ["learning_rate"]


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one optimizer step.

    Warm-up rises linearly: with W warm-up steps, step t < W has ``lr * (t + 1) / W``. After it, with f in [0, 1) the
    share of the remaining steps that is done:

    - cosine: ``lr * (1 + cos(pi f)) / 2`` (SGDR, arXiv 1608.03983, Eq. 5, without restarts);
    - linear: ``lr * (1 - f)``;
    - step: ``lr * step_factor ** k``, k of ``step_epochs`` being over;
    - constant: ``lr``.

    Args:
        recipe: the settings read are lr, epochs, schedule, warmup_epochs, step_epochs and step_factor.
        step: optimizer steps already taken, from 0.
        steps_per_epoch: optimizer steps in an epoch.
    """
    epochs = min(1.0, recipe.epochs / 5) if recipe.warmup_epochs is None else recipe.warmup_epochs
    warmup = round(epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, recipe.epochs * steps_per_epoch - warmup)
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "linear":
        return recipe.lr * (1 - done)
    if recipe.schedule == "step":
        passed = sum(step >= epoch * steps_per_epoch for epoch in recipe.step_epochs)
        return recipe.lr * recipe.step_factor**passed
    return recipe.lr
