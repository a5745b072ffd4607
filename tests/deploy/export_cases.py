"""Networks small enough to export in a second or two, as training leaves them, and a checkpoint of one."""

import torch
from torch import nn

from excite import NetworkSpec, save_checkpoint
from excite.deploy.export_check import pictures
from excite.gates import SE, list_gates, parse_gate
from excite.networks import build

CLASSES = ("cat", "dog", "über", "a, b")
PREPROCESSING = {
    "in_channels": 3,
    "image_size": 24,
    "view": 0.9,
    "interpolation": "bilinear, antialiased",
    "transparent_over": "white",
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
}


def lively(model, seed=0):
    """Norms, gates and biases drawn: fresh ones hold zeros and ones that hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and (tensor.dim() == 1 or tensor.shape[-1:] == (1,)):
                low, high = (0.5, 2.0) if name.endswith("running_var") else (-0.5, 1.0)
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


class Pooled(nn.Module):
    """The mean over positions."""

    def forward(self, x):
        return x.flatten(2).mean(2)


def layers(gate, channels, axes=2):
    """A strided convolution with its norm, the gate, and an activation."""
    conv, norm = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1], (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
    return [conv(channels, 8, 3, 2, 1), norm(8), gate, nn.ReLU(inplace=True)]


def tiny(num_classes=4, in_channels=3, axes=2):
    """One gated convolution and a classifier: ``export_cases:tiny`` as a network's name."""
    return nn.Sequential(*layers(SE(8, 2), in_channels, axes), Pooled(), nn.Linear(8, num_classes))


def gates_in_a_row(*names):
    """These gates one after another, on maps of 16 channels; all of the library where none is named."""
    found = []
    for name in names or list_gates():
        config = parse_gate(name)
        found += [nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), config.build(16), nn.ReLU()]
    return lively(nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), *found, Pooled(), nn.Linear(16, len(CLASSES))))


def save_tiny(path, classes=CLASSES, **preprocessing):
    """A checkpoint of ``tiny``; a value of None takes a key out of its preprocessing."""
    spec = NetworkSpec("export_cases:tiny", num_classes=len(CLASSES))
    model = lively(build(spec, seed=0))
    held = {key: value for key, value in {**PREPROCESSING, **preprocessing}.items() if value is not None}
    return save_checkpoint(path, model, spec=spec, classes=classes, preprocessing=held, metrics={})


def images(n=2, channels=3, sides=(24, 24)):
    """Pictures as ``tiny`` takes them."""
    return pictures(n, channels, sides)


def fitted(model, batch, seed=0):
    """A lively network whose norms fit the maps they get: through dozens that fit nothing the signal ends."""
    generator = torch.Generator().manual_seed(seed)

    def fit(norm, args):
        axes = [0, *range(2, args[0].dim())]
        var, mean = torch.var_mean(args[0], axes)
        shift = torch.empty(mean.shape).normal_(0, 0.3, generator=generator)
        norm.running_mean.copy_(mean + shift * var.sqrt())
        norm.running_var.copy_(var * torch.empty(var.shape).uniform_(0.5, 2, generator=generator))

    norms = [m for m in lively(model, seed).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return model
