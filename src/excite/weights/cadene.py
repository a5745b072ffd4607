"""Cadene's pretrained-models.pytorch: the SE authors' networks, and others under names of its own.

Read from the package's source, version 0.7.4 (``pretrainedmodels/models/senet.py``, ``torchvision_models.py``,
``bninception.py``, ``inceptionresnetv2.py``, ``resnext.py``, ``cafferesnet.py``). Networks taken from torchvision have
torchvision's names but for the classifier, ``last_linear``.

``resnet101`` and ``cafferesnet101`` have the same names and shapes; the second strides in the first 1x1 convolution and
pools in ceil mode.
"""

from __future__ import annotations

from excite.models.bn_inception import BNInception
from excite.models.inception_resnet_v2 import InceptionResNetV2
from excite.models.inception_v3 import InceptionV3
from excite.models.resnet import ResNet
from excite.models.resnext import ResNeXt
from excite.models.senet import SENet
from excite.models.vgg import VGG
from excite.weights import timm, torchvision
from excite.weights.layout import Layout, Refusal, Rules

__all__ = ["LAYOUTS", "REFUSALS"]

ZOO = "cadene"

_HEAD: Rules = ((r"last_linear", "fc"),)
_RESNET: Rules = ((r"(conv1|bn1)", "{1}"), *torchvision.RESNET_BLOCKS, *_HEAD)

# From a Lua file: containers by number, and none has a name.
_RESNEXT: Rules = (
    (r"features\.0", "conv1"),
    (r"features\.1", "bn1"),
    (r"features\.([4-7])\.(\d+)\.0\.0\.0\.0", "layer{1-3}.{2}.conv1"),
    (r"features\.([4-7])\.(\d+)\.0\.0\.0\.1", "layer{1-3}.{2}.bn1"),
    (r"features\.([4-7])\.(\d+)\.0\.0\.0\.3", "layer{1-3}.{2}.conv2"),
    (r"features\.([4-7])\.(\d+)\.0\.0\.0\.4", "layer{1-3}.{2}.bn2"),
    (r"features\.([4-7])\.(\d+)\.0\.0\.1", "layer{1-3}.{2}.conv3"),
    (r"features\.([4-7])\.(\d+)\.0\.0\.2", "layer{1-3}.{2}.bn3"),
    (r"features\.([4-7])\.(\d+)\.0\.1\.([01])", "layer{1-3}.{2}.downsample.{3}"),
    *_HEAD,
)

# Units by their place: those that halve the map have no branch of one 1x1 convolution, so their branches count from 0.
_BN_INCEPTION_UNITS = {"3a": "layer1.0", "3b": "layer1.1", "3c": "layer2.0", "4a": "layer2.1", "4b": "layer2.2"}
_BN_INCEPTION_UNITS |= {"4c": "layer2.3", "4d": "layer2.4", "4e": "layer3.0", "5a": "layer3.1", "5b": "layer3.2"}
_HALVING = ("3c", "4e")
_BRANCHES = {
    "1x1": (0, 0),
    "3x3_reduce": (1, 0),
    "3x3": (1, 1),
    "double_3x3_reduce": (2, 0),
    "double_3x3_1": (2, 1),
    "double_3x3_2": (2, 2),
    "pool_proj": (3, 0),
}
_BN_INCEPTION: Rules = (
    (r"conv1_7x7_s2", "conv1.conv"),
    (r"conv1_7x7_s2_bn", "conv1.bn"),
    (r"conv2_3x3_reduce", "conv2.conv"),
    (r"conv2_3x3_reduce_bn", "conv2.bn"),
    (r"conv2_3x3", "conv3.conv"),
    (r"conv2_3x3_bn", "conv3.bn"),
    *(
        (f"inception_{unit}_{branch}{norm}", f"{ours}.branch{i - (unit in _HALVING)}_{j}.{part}")
        for unit, ours in _BN_INCEPTION_UNITS.items()
        for branch, (i, j) in _BRANCHES.items()
        for norm, part in (("", "conv"), ("_bn", "bn"))
    ),
    *_HEAD,
)

LAYOUTS = (
    Layout(
        ZOO,
        ResNet,
        {f"se_resnet{depth}": f"resnet{depth}" for depth in (50, 101, 152)},
        timm.LEGACY,
        {"stride_in": "1x1", "stem_pool": "ceil"},
        needs=r"layer1\.0\.conv3\.weight",
    ),
    Layout(
        ZOO,
        ResNeXt,
        {f"se_resnext{depth}_32x4d": f"resnext{depth}_32x4d" for depth in (50, 101)},
        timm.LEGACY,
        {"stem_pool": "ceil"},
    ),
    Layout(ZOO, SENet, {"senet154": "senet154"}, timm.LEGACY, {"stem_pool": "ceil"}),
    Layout(
        ZOO,
        ResNet,
        {f"resnet{depth}": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
        _RESNET,
        {"stride_in": "3x3", "stem_pool": "padded"},
    ),
    Layout(
        ZOO,
        ResNet,
        {"cafferesnet101": "resnet101"},
        _RESNET,
        {"stride_in": "1x1", "stem_pool": "ceil"},
        needs=r"layer3\.22\.conv3\.weight",
        notes=("cafferesnet101 takes images of 0 to 255 in the order BGR, less the mean 102.98, 115.95, 122.77",),
    ),
    Layout(ZOO, ResNeXt, {"resnext101_32x4d": "resnext101_32x4d"}, _RESNEXT, {"stem_pool": "padded"}),
    Layout(
        ZOO,
        VGG,
        {f"vgg{depth}_bn": f"vgg{depth}_bn" for depth in (11, 13, 16, 19)},
        (
            (r"_features\.(\d+)", "features.{1}"),
            (r"linear0", "classifier.0"),
            (r"linear1", "classifier.3"),
            (r"last_linear", "classifier.6"),
        ),
        head="classifier.6",
    ),
    Layout(
        ZOO,
        BNInception,
        {"bninception": "bn_inception"},
        _BN_INCEPTION,
        {"conv_bias": True},
        notes=("its BN-Inception takes images of 0 to 255 in the order BGR, less the mean 104, 117, 128",),
    ),
    Layout(
        ZOO,
        InceptionV3,
        {"inceptionv3": "inception_v3"},
        (*torchvision.INCEPTION_V3, *_HEAD),
        {"count_include_pad": True},
        idle=torchvision.INCEPTION_V3_IDLE,
        notes=("its Inception-v3 takes images in [-1, 1]",),
    ),
    Layout(
        ZOO,
        InceptionResNetV2,
        {"inceptionresnetv2": "inception_resnet_v2"},
        (*timm.INCEPTION_RESNET_V2, *_HEAD),
        notes=("its Inception-ResNet-v2 takes images in [-1, 1]; with 1001 classes, the first is the background",),
    ),
)

REFUSALS = (
    Refusal(ZOO, "no network here has its groups", names=r"resnext101_64x4d"),
    Refusal(
        ZOO,
        "its convolutions have biases; the ResNets here have none",
        names=r"fbresnet152",
        needs=(r"last_linear\.weight", r"layer1\.0\.conv1\.bias"),
    ),
)
