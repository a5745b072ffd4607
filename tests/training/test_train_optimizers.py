"""Weight-decay groups, and the optimizers against torch's plain loops."""

import pytest
import torch
from torch import nn

from excite.models import create_model
from excite.training.config import Recipe
from excite.training.optimizers import make_optimizer, parameter_groups


def small(gate=None):
    return create_model("resnet20", gate=gate, num_classes=4, in_channels=1)


@pytest.mark.parametrize("gate", [None, "se", "se_var2", "eca"])
def test_norms_biases_and_vectors_do_not_decay(gate):
    network = small(gate)
    decayed, spared = parameter_groups(network, Recipe(weight_decay=0.1))
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    spared_ids = {id(p) for p in spared["params"]}
    for name, module in network.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            vector = key == "bias" or isinstance(module, nn.BatchNorm2d) or parameter.dim() == 1
            assert (id(parameter) in spared_ids) == vector, f"{name}.{key}"
    assert len(decayed["params"]) + len(spared["params"]) == len(list(network.parameters()))


def test_everything_decays_when_asked_to():
    network = small("se")
    (group,) = parameter_groups(network, Recipe(decay_norms=True))
    assert len(group["params"]) == len(list(network.parameters()))


def test_frozen_parameters_are_left_out():
    network = small()
    network.fc.weight.requires_grad_(False)
    held = {id(p) for group in parameter_groups(network, Recipe()) for p in group["params"]}
    assert id(network.fc.weight) not in held


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_are_those_of_torchs_plain_loop(optimizer):
    recipe = Recipe(optimizer=optimizer, lr=0.05, weight_decay=0.01)
    ours, theirs = (nn.Linear(5, 3).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fused = make_optimizer(ours, recipe)
    groups = [{"params": [theirs.weight], "weight_decay": 0.01}, {"params": [theirs.bias], "weight_decay": 0.0}]
    plain = {
        "sgd": lambda: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, foreach=False, fused=False),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.05, foreach=False, fused=False),
    }[optimizer]()
    for _ in range(4):
        x = torch.randn(7, 5, dtype=torch.float64)
        for network, step in ((ours, fused), (theirs, plain)):
            step.zero_grad()
            network(x).square().sum().backward()
            step.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
