"""The optimizer of a recipe, with its weight-decay groups."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from excite.training.config import Recipe

__all__ = ["make_optimizer", "parameter_groups"]


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The network's trainable parameters, those that decay first.

    Weights with two axes or more decay. Biases, the scales and shifts of norms and the 1-d weights of gates do not,
    unless ``decay_norms`` ("Bag of Tricks", arXiv 1812.01187, Sec. 3.1).
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() > 1 or recipe.decay_norms]
    spared = [p for p in trained if not (p.dim() > 1 or recipe.decay_norms)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(network: nn.Module, recipe: Recipe) -> Optimizer:
    """SGD or AdamW over ``parameter_groups``, fused where torch has it. The learning rate is set at every step."""
    groups = parameter_groups(network, recipe)
    kinds = {p.device.type for group in groups for p in group["params"]}
    # A fused step unscales gradients itself, which leaves no moment to clip them under float16's loss scaling.
    scaled_and_clipped = recipe.precision == "16-mixed" and recipe.clip_norm is not None
    fused = (kinds <= {"cpu"} or kinds <= {"cuda"}) and not scaled_and_clipped
    if recipe.optimizer == "adamw":
        return AdamW(groups, lr=recipe.lr, fused=fused)
    return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)
