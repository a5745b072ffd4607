"""Cadene's pretrained-models as a peer: the package's own networks, without its weights."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from weight_cases import WithoutDraws, any_size, on_meta

with warnings.catch_warnings(), torch.device("meta"), WithoutDraws():
    # Said when the package is compiled, so the first time only.
    warnings.filterwarnings("ignore", '"is" with', SyntaxWarning, r".*pretrainedmodels")
    # The networks that come from Lua are made on import: one each, for all who ask.
    import pretrainedmodels


def cadenes(name: str, **kwargs: int) -> nn.Module:
    """A network of the package; one from torchvision has 1000 classes, whatever is asked."""
    with warnings.catch_warnings():
        # It asks torchvision in the way of old.
        said = "The parameter 'pretrained'|Arguments other than a weight enum|The default weight initialization"
        warnings.filterwarnings("ignore", said, module="torchvision")
        return getattr(pretrainedmodels, name)(pretrained=None, **kwargs)


def cut(name: str, depths: tuple[int, ...] = (1, 1, 1, 1)) -> nn.Module:
    """A residual network of the package with its first blocks alone and 10 classes, for images of any size."""
    model = copy.deepcopy(on_meta(lambda: cadenes(name)))
    for stage, depth in enumerate(depths):
        if hasattr(model, "layer1"):
            setattr(model, f"layer{stage + 1}", getattr(model, f"layer{stage + 1}")[:depth])
        else:
            model.features[4 + stage] = model.features[4 + stage][:depth]
    model.last_linear = nn.Linear(model.last_linear.in_features, 10)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return any_size(model)
