"""Peers' networks as they are after training, and ours with their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from excite.models.base import Classifier
from excite.weights import LoadReport, load_weights


def trained(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """A network in eval mode with norms, biases and gates as training leaves them, where 0s and 1s hide mistakes.

    Statistics fit the maps that the norms get, up to a shift and a factor: through norms that fit nothing the signal of
    a deep network ends, and no mistake before its last layers shows.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif tensor.dim() == 1 and name.endswith("weight"):
                tensor.uniform_(0.4, 1.2, generator=generator)
            elif tensor.dim() == 1 and not name.endswith("running_var"):
                tensor.normal_(0, 0.3, generator=generator)

    def fit(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(args[0], (0, 2, 3))
        norm.running_mean.copy_(mean + 0.3 * torch.randn(mean.shape, generator=generator).to(mean) * var.sqrt())
        norm.running_var.copy_((0.5 + 1.5 * torch.rand(var.shape, generator=generator).to(var)) * var + 1e-3)

    hooks = [m.register_forward_pre_hook(fit) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return model


def any_size(model: nn.Module) -> nn.Module:
    """Peers' networks end in a pool of one size, or in none; averaging over all of a map they take images of any."""
    for holder in (model, model.features):
        for name in ("final_pool", "avg_pool", "avgpool", "avgpool_1a", "global_pool"):
            if isinstance(getattr(holder, name, None), nn.AvgPool2d):
                setattr(holder, name, nn.AdaptiveAvgPool2d(1))
    if type(model).__name__ == "VGG":  # its classifier takes all of a map of 7 x 7
        getattr(model, "_features", model.features).add_module("to_7x7", nn.AdaptiveAvgPool2d(7))
    return model


def images(size: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, size, size, dtype=torch.float64)


class WithoutDraws(TorchFunctionMode):
    """Leaves out drawing: into tensors without storage it changes nothing, and takes torch long."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A network without storage."""
    with torch.device("meta"), WithoutDraws():
        return make()


def unwritten(make: Callable[[], Classifier]) -> Classifier:
    """A network in float64 and eval mode with whatever its memory holds: made without the time that drawing takes."""
    return on_meta(make).double().eval().to_empty(device="cpu")


class Pair(NamedTuple):
    """A peer, what loading its weights reported, images, and the peer's output for them."""

    theirs: nn.Module
    report: LoadReport
    x: Tensor
    y: Tensor


def check_parity(
    peer: Callable[[], nn.Module], make: Callable[[], Classifier], *, size: int = 66, source: str = "auto"
) -> Pair:
    """Load a peer's weights: the outputs are equal to 1e-10 in float64, and no tensor is left unsaid."""
    x = images(size)
    theirs = trained(peer().double(), x)
    ours = unwritten(make)
    report = load_weights(ours, theirs.state_dict(), source=source)
    with torch.no_grad():
        y, expected = ours(x), theirs(x)
    apart = (expected[0] - expected[1]).abs().max() / expected.abs().max()
    assert apart > 1e-2, "the images are not told apart"
    assert (y - expected).abs().max() <= 1e-10 * expected.abs().max()
    everything = [*report.matched, *report.zeroed, *report.fresh, *report.missing]
    assert sorted(everything) == sorted(ours.state_dict()) and not report.missing
    return Pair(theirs, report, x, expected)
