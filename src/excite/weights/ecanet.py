"""The ECA authors' code, BangguWu/ECANet: torchvision's ResNets and MobileNetV2 with ``eca`` in every block.

Read from the public repository's ``models/eca_module.py``, ``eca_resnet.py``, ``eca_mobilenetv2.py`` and ``main.py``,
which saves what ``DataParallel`` wraps: names may begin with ``module.``. The kernel sizes are in the tensors; the
released files' are ``eca(kernel_size=released:resnet50)`` and so on.
"""

from __future__ import annotations

from excite.models.mobilenetv2 import MobileNetV2
from excite.models.resnet import ResNet
from excite.weights import torchvision
from excite.weights.layout import Layout, Refusal

__all__ = ["LAYOUTS", "REFUSALS"]

ZOO = "ecanet"

LAYOUTS = (
    Layout(
        ZOO,
        ResNet,
        {f"eca_resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
        ((r"(layer[1-4]\.\d+)\.eca\.conv", "{1}.gate.conv"), *torchvision.RESNET),
        {"stride_in": "3x3", "stem_pool": "padded"},
        needs=r"layer1\.0\.eca\.conv\.weight",
    ),
    Layout(
        ZOO,
        MobileNetV2,
        {"eca_mobilenet_v2": "mobilenetv2"},
        # The gate is one more place of a block's sequence: the fourth of the first block, the fifth of the others.
        (
            (r"features\.1\.conv\.3\.conv", "features.1.gate.conv"),
            (r"features\.(\d+)\.conv\.4\.conv", "features.{1}.gate.conv"),
            *torchvision.MOBILENET_V2,
        ),
        head="classifier.1",
        needs=r"features\.1\.conv\.3\.conv\.weight",
    ),
)

REFUSALS: tuple[Refusal, ...] = ()
