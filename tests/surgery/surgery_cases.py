"""Small networks to attach to, and what must not change when nothing may."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from network_cases import ResNet
from torch import Tensor, nn

from excite.gates.base import ATTACHED
from excite.surgery import attached


def small(axes: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A ResNet of four basic blocks as training leaves it, in eval mode; 3 channels in, 10 classes."""
    return lively(ResNet(axes)).to(dtype).eval()


def lively(model: nn.Module) -> nn.Module:
    """Every norm, bias and scale drawn: fresh ones hold zeros and ones that hide mistakes."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.dim() == 1:
                tensor.uniform_(-0.4, 1.2)
    return model


def image(axes: int = 2, n: int = 2, size: int = 8, **options: Any) -> Tensor:
    """Noise that ``small`` takes."""
    return torch.randn(n, 3, *[size] * axes, **options)


@torch.no_grad()
def move_gates(model: nn.Module, by: float = 0.1) -> None:
    """Gates at some other place than their start."""
    for item in attached(model):
        for parameter in model.get_submodule(item.name).parameters():
            parameter.add_(by)


def gate_keys(model: nn.Module) -> list[str]:
    """Keys of what was attached."""
    return [key for key in model.state_dict() if ATTACHED in key]


def looks(model: nn.Module) -> list[Any]:
    """All that a change would show in: modules, their classes, hooks, attributes and modes, tensors and values."""
    seen: list[Any] = []
    for name, module in model.named_modules(remove_duplicate=False):
        plain = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        hooks = [list(value.items()) for key, value in sorted(vars(module).items()) if isinstance(value, OrderedDict)]
        own = sorted(key for key in vars(module) if key.startswith("_"))
        seen.append((name, id(module), type(module), repr(plain), hooks, own))
    for name, tensor in model.state_dict(keep_vars=True).items():
        seen.append((name, id(tensor), getattr(tensor, "_version", 0), getattr(tensor, "requires_grad", None)))
    return seen
