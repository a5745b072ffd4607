"""Steps of training as callables to time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError

__all__ = ["training_step"]


def training_step(
    model: nn.Module, example: Tensor, labels: Tensor, *, autocast: torch.dtype | None = None
) -> Callable[[], None]:
    """One step of training as a callable to time: forward, cross entropy, backward, SGD with momentum.

    It trains a copy of the model at learning rate 0: the step does all its work, and every call does the same.

    Args:
        model: a classifier, images -> logits [N, K].
        example: images [N, C, H, W] on the model's device.
        labels: int64 [N].
        autocast: run the forward under autocast to this dtype; None for the model's own.

    Raises:
        ValueError: as many labels as images are needed.
    """
    if labels.shape != example.shape[:1]:
        raise UserError(f"labels must be [{example.shape[0]}] for {example.shape[0]} images; got {tuple(labels.shape)}")
    twin = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(example.device.type, dtype=autocast, enabled=autocast is not None):
            loss = F.cross_entropy(twin(example).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
