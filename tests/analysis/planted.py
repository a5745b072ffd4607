"""A network whose gates are known, and images that they were planted for.

Images [N, K + 1, 8, 8] have the mean 1 in the channel of their class and 0 in those of the others, with noise, and in
the last channel a brightness that has nothing to do with the class. Each block is act(gate(norm(conv(x))) + x), and its
convolution hands x on; the gate, Squeeze-and-Excitation with planted weights, sees the class and the brightness:

    class       channel c is open for images of class c mod K, shut for all others; that of the brightness half open
    brightness  rises with the brightness, from shut to open: changes as much, whatever the class
    constant    another number for each channel, the same for all images
    open        above 0.97 for all images
    dead        under 0.03 for all images
"""

import torch
from torch import nn
from torch.nn import functional as F

from excite.gates import SE

KINDS = ("class", "brightness", "constant", "open", "dead")
CLASSES = 4
CHANNELS = 8
_BRIGHT = CLASSES  # the channel


class PlantedBlock(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        nn.init.dirac_(self.conv.weight)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.gate = planted_gate(kind)

    def forward(self, x):
        return F.relu(self.gate(self.norm(self.conv(x))) + x)


class PlantedNetwork(nn.Module):
    def __init__(self, kinds=KINDS):
        super().__init__()
        self.stem = nn.Conv2d(CLASSES + 1, CHANNELS, 1, bias=False)
        nn.init.dirac_(self.stem.weight)
        self.blocks = nn.Sequential(*(PlantedBlock(kind) for kind in kinds))
        self.head = nn.Linear(CHANNELS, CLASSES)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.weight[:, :CLASSES] = torch.eye(CLASSES)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def planted_gate(kind):
    """s = sigmoid(M relu(z) + b), z the descriptor."""
    gate = SE(CHANNELS, reduced_channels=CHANNELS)
    mix, bias = torch.zeros(CHANNELS, CHANNELS), torch.zeros(CHANNELS)
    if kind == "class":
        mix[torch.arange(CHANNELS), torch.arange(CHANNELS) % CLASSES] = 20
        bias -= 8
        mix[_BRIGHT], bias[_BRIGHT] = 0, 0
    elif kind == "brightness":
        mix[:, _BRIGHT] = torch.linspace(1, 3, CHANNELS)
        bias -= 3
    elif kind == "constant":
        bias = torch.linspace(-2, 2, CHANNELS)
    else:
        mix[:, _BRIGHT], bias = (0.01, bias + 4) if kind == "open" else (-0.01, bias - 4)
    with torch.no_grad():
        gate.fc1.weight.copy_(torch.eye(CHANNELS))
        gate.fc1.bias.zero_()
        gate.fc2.weight.copy_(mix)
        gate.fc2.bias.copy_(bias)
    return gate


def planted(kinds=KINDS):
    """The network, in eval mode; its gates are ``blocks.0.gate`` and so on, of these kinds."""
    return PlantedNetwork(kinds).eval()


def planted_images(n, noise=0.05, seed=0):
    """Images float32 [n, K + 1, 8, 8] and labels int64 [n], classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    centre = torch.zeros(n, CLASSES + 1)
    centre[:, :CLASSES] = F.one_hot(labels, CLASSES) + noise * torch.randn(n, CLASSES, generator=generator)
    centre[:, _BRIGHT] = 2 * torch.rand(n, generator=generator)
    texture = 0.1 * torch.randn(n, CLASSES + 1, 8, 8, generator=generator)
    return centre[:, :, None, None] + texture - texture.mean((2, 3), keepdim=True), labels


def in_batches(images, labels, size=16, order=None):
    """Batches (images, labels, indices), in this order of the images."""
    order = torch.arange(len(images)) if order is None else order
    return [(images[part], labels[part], part) for part in order.split(size)]
