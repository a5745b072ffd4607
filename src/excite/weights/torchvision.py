"""torchvision: its names are ours, for every network that both have.

Read from torchvision 0.29 (``torchvision.models``); the names have not changed since 0.3.
"""

from __future__ import annotations

from excite.models.inception_v3 import InceptionV3
from excite.models.mobilenetv2 import MobileNetV2
from excite.models.resnet import ResNet
from excite.models.resnext import ResNeXt
from excite.models.vgg import VGG
from excite.weights.layout import Layout, Refusal, Rules

__all__ = ["INCEPTION_V3", "INCEPTION_V3_IDLE", "LAYOUTS", "MOBILENET_V2", "REFUSALS", "RESNET", "RESNET_BLOCKS"]

ZOO = "torchvision"

RESNET_BLOCKS: Rules = (
    (r"(layer[1-4]\.\d+\.(?:conv|bn)[1-3])", "{1}"),
    (r"(layer[1-4]\.\d+\.downsample\.[01])", "{1}"),
)
RESNET: Rules = ((r"(conv1|bn1|fc)", "{1}"), *RESNET_BLOCKS)
INCEPTION_V3: Rules = ((r"((?:Conv2d|Mixed|AuxLogits)[\w.]*\.(?:conv|bn)|AuxLogits\.fc)", "{1}"),)
INCEPTION_V3_IDLE = {r"AuxLogits\..*": "the auxiliary classifier is for training alone, and this network has none"}
MOBILENET_V2: Rules = ((r"(features\.\d+(?:\.conv)?(?:\.\d+)+|classifier\.1)", "{1}"),)

LAYOUTS = (
    Layout(
        ZOO,
        ResNet,
        {f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
        RESNET,
        {"stride_in": "3x3", "stem_pool": "padded"},
    ),
    Layout(
        ZOO,
        ResNeXt,
        {"resnext50_32x4d": "resnext50_32x4d"},
        RESNET,
        {"stem_pool": "padded"},
    ),
    Layout(
        ZOO,
        VGG,
        {f"vgg{depth}_bn": f"vgg{depth}_bn" for depth in (11, 13, 16, 19)},
        ((r"((?:features|classifier)\.\d+)", "{1}"),),
        head="classifier.6",
    ),
    Layout(
        ZOO,
        InceptionV3,
        {"inception_v3": "inception_v3"},
        (*INCEPTION_V3, (r"fc", "fc")),
        {"count_include_pad": True},
        idle=INCEPTION_V3_IDLE,
        notes=(
            "torchvision's released Inception-v3 takes images in [-1, 1]; for images normalised with ImageNet's mean "
            "and deviation build the network with transform_input=True",
        ),
    ),
    Layout(ZOO, MobileNetV2, {"mobilenet_v2": "mobilenetv2"}, MOBILENET_V2, head="classifier.1"),
)

REFUSALS = (
    Refusal(
        ZOO,
        "its channels are twice as many inside the blocks; no network here has them",
        names=r"wide_resnet(50|101)_2",
    ),
    Refusal(ZOO, "it has no batch norm; the networks here do", names=r"vgg(11|13|16|19)"),
    Refusal(ZOO, "no network here has its groups", names=r"resnext101_(32x8d|64x4d)"),
)
