"""Gates at a neutral start learn: from the first step on, as fast as those of the paper's start."""

import pytest
import torch
from surgery_cases import image, small
from torch.nn import functional as F

from excite.models import gate_parameters
from excite.surgery import attach_, verify
from tolerances import FIRST_GRADIENT, GATE_MOVED

GATES = ["se", "se(reduction=4)", "eca", "ese", "eca_ns", "se_var2", "se_var3", "se_gc"]


def first_gradient(gate, start, seed):
    """The norm of the gates' gradient on one batch before any step."""
    torch.manual_seed(7)
    model, x = small(dtype=torch.float64).train(), image(n=16, dtype=torch.float64)
    labels = torch.arange(16) % 10
    torch.manual_seed(seed)
    attach_(model, gate, x, start=start)
    F.cross_entropy(model(x), labels).backward()
    return torch.cat([p.grad.flatten() for p in gate_parameters(model)]).norm().item()


@pytest.mark.parametrize("gate", GATES)
def test_the_first_gradient_is_within_ten_times_of_the_papers_start(gate):
    ratios = [first_gradient(gate, "neutral", seed) / first_gradient(gate, "paper", seed) for seed in range(3)]
    assert all(1 / FIRST_GRADIENT < ratio < FIRST_GRADIENT for ratio in ratios), ratios


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("where", ["residual", pytest.param("inner", marks=pytest.mark.slow)])
def test_gates_move_within_twenty_steps(gate, where):
    torch.manual_seed(7)
    model, x = small().train(), image(n=16)
    labels = torch.arange(16) % 10
    sites = attach_(model, gate, x, where=where)
    scales = {}
    for item in verify(model):
        model.get_submodule(item.name).register_forward_hook(
            lambda module, args, y, name=item.name: scales.update({name: (y / args[0]).nanmedian(0).values})
        )
    model(x)
    assert all(torch.allclose(s.nan_to_num(1), torch.ones(())) for s in scales.values())
    optimizer = torch.optim.SGD(gate_parameters(model), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model(x)
    spread = {name: s.nan_to_num(1).sub(1).abs().max().item() for name, s in scales.items()}
    assert len(spread) == len(sites) and all(value > GATE_MOVED for value in spread.values()), spread
    assert losses[-1] < losses[0]
