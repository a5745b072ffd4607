"""moskomule's senet.pytorch: torchvision's ResNets, and those of CIFAR, with gates that have no biases.

Read from the public repository's ``senet/se_module.py``, ``se_resnet.py`` and ``se_inception.py``. Its gates are
``se.fc``, a sequence whose places 0 and 2 are the two layers. Strides and pool are torchvision's.

Its SE-Inception-v3 is torchvision's network with gates registered under ``SELayer``; torchvision's forward passes do
not call them, so what was trained is the plain network.
"""

from __future__ import annotations

from excite.models.cifar import CifarResNet
from excite.models.inception_v3 import InceptionV3
from excite.models.resnet import ResNet
from excite.weights import torchvision
from excite.weights.layout import Layout, Refusal, Rules

__all__ = ["LAYOUTS", "REFUSALS"]

ZOO = "moskomule"

_GATED: Rules = (
    (r"(layer[1-4]\.\d+)\.se\.fc\.0", "{1}.gate.fc1"),
    (r"(layer[1-4]\.\d+)\.se\.fc\.2", "{1}.gate.fc2"),
    *torchvision.RESNET,
)
_GATE = r"layer1\.0\.se\.fc\.0\.weight"

LAYOUTS = (
    Layout(
        ZOO,
        ResNet,
        {f"se_resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
        _GATED,
        {"stride_in": "3x3", "stem_pool": "padded"},
        needs=_GATE,
    ),
    Layout(
        ZOO,
        CifarResNet,
        {f"se_resnet{depth}": f"resnet{depth}" for depth in (20, 32, 56)},
        _GATED,
        {"shortcut": "B"},
        needs=_GATE,
    ),
    Layout(
        ZOO,
        InceptionV3,
        {"se_inception_v3": "inception_v3"},
        (*torchvision.INCEPTION_V3, (r"fc", "fc")),
        {"count_include_pad": True},
        needs=r"Mixed_5b\.SELayer\..*",
        idle={
            **torchvision.INCEPTION_V3_IDLE,
            r".*\.SELayer\..*": "these gates are registered but no forward pass calls them",
        },
    ),
)

REFUSALS = (
    Refusal(
        ZOO,
        "its forward pass returns nothing, so no such weights were ever trained",
        names=r"se_preactresnet\d+",
    ),
)
