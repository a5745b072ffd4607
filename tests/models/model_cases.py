"""Randomised networks, and forward passes written from the papers alone: functions over a state dict."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms and gates as they are after training rather than at their start, where 0s and 1s hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif tensor.dim() == 1 and name.endswith("weight"):
                tensor.uniform_(0.4, 1.2, generator=generator)
            elif tensor.dim() == 1:
                tensor.normal_(0, 0.3, generator=generator)
    return model


def load_as_convolutions(ours: nn.Module, theirs: nn.Module, rename: Callable[[str], str]) -> None:
    """Weights from a network whose fully connected layers are 1x1 convolutions, checked to be all of them."""
    source = theirs.state_dict()
    state = {key: source.pop(rename(key)).reshape(value.shape) for key, value in ours.state_dict().items()}
    assert not source
    ours.load_state_dict(state, strict=True)


def randomise_by_data(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """``randomise``, with statistics of norms that fit the maps they get, up to a shift and a factor.

    Through dozens of norms whose statistics fit nothing the signal ends: depthwise networks then give the same output
    for any image, and no mistake before the last layers shows.
    """
    generator = torch.Generator().manual_seed(seed)

    def fit(norm: nn.BatchNorm2d, args: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(args[0], (0, 2, 3))
        shift = torch.empty(mean.shape, dtype=mean.dtype).normal_(0, 0.3, generator=generator)
        factor = torch.empty(var.shape, dtype=var.dtype).uniform_(0.5, 2.0, generator=generator)
        norm.running_mean.copy_(mean + shift * var.sqrt())
        norm.running_var.copy_(factor * var)

    norms = [module for module in randomise(model, seed).modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    training = model.training
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return model.train(training)


def forward_resnet(
    state: State, x: Tensor, *, placement: str, stride_in: str = "3x3", stem_pool: str = "padded", cifar: bool = False
) -> Tensor:
    """Eval-mode forward of a (CIFAR) ResNet, ResNeXt or SENet with SE gates wherever the state dict has one."""
    x = F.relu(norm(state, "bn1", convolve(x, state["conv1.weight"], 1 if cifar else 2)))
    for i in (2, 3):
        if f"conv{i}.weight" in state:
            x = F.relu(norm(state, f"bn{i}", convolve(x, state[f"conv{i}.weight"])))
    if not cifar:
        x = F.max_pool2d(x, 3, 2, 1) if stem_pool == "padded" else F.max_pool2d(x, 3, 2, 0, ceil_mode=True)
    for stage in range(1, 5):
        for i in range(100):
            prefix = f"layer{stage}.{i}."
            block = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if not block:
                break
            stride = 2 if stage > 1 and i == 0 else 1
            x = forward_block(block, x, stride, placement, stride_in)
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def forward_block(p: State, x: Tensor, stride: int, placement: str, stride_in: str) -> Tensor:
    gate: Callable[[Tensor], Tensor] = (lambda u: squeeze_excite(p, u)) if "gate.fc1.weight" in p else (lambda u: u)
    shortcut = x
    if "downsample.0.weight" in p:
        shortcut = norm(p, "downsample.1", convolve(x, p["downsample.0.weight"], stride))
    elif stride == 2:
        shortcut = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], dim=1)
    if placement == "identity":
        shortcut = gate(shortcut)
    y = gate(x) if placement == "pre" else x
    if "conv3.weight" in p:
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        y = F.relu(norm(p, "bn1", convolve(y, p["conv1.weight"], first)))
        y = F.relu(norm(p, "bn2", convolve(y, p["conv2.weight"], second)))
        y = gate(y) if placement == "inner" else y
        y = norm(p, "bn3", convolve(y, p["conv3.weight"]))
    else:
        y = F.relu(norm(p, "bn1", convolve(y, p["conv1.weight"], stride)))
        y = gate(y) if placement == "inner" else y
        y = norm(p, "bn2", convolve(y, p["conv2.weight"]))
    y = gate(y) if placement == "standard" else y
    y = F.relu(y + shortcut)
    return gate(y) if placement == "post" else y


def forward_preact(
    state: State, x: Tensor, *, placement: str, stride_in: str = "1x1", first_activated: bool = True
) -> Tensor:
    """Eval-mode forward of a pre-activation ResNet with SE gates wherever the state dict has one."""
    x = convolve(x, state["conv1.weight"])
    for stage in range(1, 4):
        for i in range(100):
            prefix = f"layer{stage}.{i}."
            p = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if not p:
                break
            stride = 2 if stage > 1 and i == 0 else 1
            x = preact_block(p, x, stride, placement, stride_in, first_activated and (stage, i) == (1, 0))
    x = F.relu(norm(state, "bn", x))
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def preact_block(p: State, x: Tensor, stride: int, placement: str, stride_in: str, first_activated: bool) -> Tensor:
    gate: Callable[[Tensor], Tensor] = (lambda u: squeeze_excite(p, u)) if "gate.fc1.weight" in p else (lambda u: u)
    before = gate if placement == "pre" else (lambda u: u)
    added = len(p["conv3.weight" if "conv3.weight" in p else "conv2.weight"]) - x.shape[1]
    if added or stride == 2 or first_activated:
        x = F.relu(norm(p, "bn1", x))
        y = before(x)
    else:
        y = F.relu(norm(p, "bn1", before(x)))
    shortcut = x
    if "downsample.weight" in p:
        shortcut = convolve(x, p["downsample.weight"], stride)
    elif added:
        kept = x[:, :, ::stride, ::stride]
        shortcut = torch.cat([kept, kept.new_zeros(len(x), added, *kept.shape[2:])], dim=1)
    if placement == "identity":
        shortcut = gate(shortcut)
    if "conv3.weight" in p:
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        y = F.relu(norm(p, "bn2", convolve(y, p["conv1.weight"], first)))
        y = F.relu(norm(p, "bn3", convolve(y, p["conv2.weight"], second)))
        y = convolve(gate(y) if placement == "inner" else y, p["conv3.weight"])
    else:
        y = F.relu(norm(p, "bn2", convolve(y, p["conv1.weight"], stride)))
        y = convolve(gate(y) if placement == "inner" else y, p["conv2.weight"])
    y = (gate(y) if placement == "standard" else y) + shortcut
    return gate(y) if placement == "post" else y


def convolve(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Padded to keep the size at stride 1; as many groups as the weight's shape says."""
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])


def norm(p: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        p[f"{name}.{key}"][None, :, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def squeeze_excite(p: State, u: Tensor) -> Tensor:
    hidden = torch.relu(u.mean((2, 3)) @ p["gate.fc1.weight"].T + p["gate.fc1.bias"])
    s = torch.sigmoid(hidden @ p["gate.fc2.weight"].T + p["gate.fc2.bias"])
    return u * s[:, :, None, None]


def load_in_order(ours: nn.Module, theirs: nn.Module, missing: tuple[str, ...] = ()) -> None:
    """Weights from a network with the same layers in the same order under other names; ``missing`` it has not."""
    keys = [key for key in ours.state_dict() if key not in missing]
    values = list(theirs.state_dict().values())
    shapes = ours.state_dict()
    state = {key: value.reshape(shapes[key].shape) for key, value in zip(keys, values, strict=True)}
    absent = ours.load_state_dict(state, strict=False)
    assert absent.missing_keys == list(missing) and not absent.unexpected_keys
