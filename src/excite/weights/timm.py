"""timm: ResNets and ResNeXts with SE or ECA, its ports of the SE authors' networks, and others.

Read from timm 1.0.31 (``timm.models.resnet``, ``senet``, ``vgg``, ``inception_v3``, ``inception_resnet_v2``,
``efficientnet``). The ports are those whose names begin with ``legacy_``; they have Cadene's names and, as his, stride
in the first 1x1 convolution and pool in ceil mode. Under the same bare name ``seresnet50`` strides in the 3x3 one.
"""

from __future__ import annotations

from excite.models.inception_resnet_v2 import InceptionResNetV2
from excite.models.inception_v3 import InceptionV3
from excite.models.mobilenet import MobileNetV1
from excite.models.mobilenetv2 import MobileNetV2
from excite.models.resnet import ResNet
from excite.models.resnext import ResNeXt
from excite.models.senet import SENet
from excite.models.vgg import VGG
from excite.weights import torchvision
from excite.weights.layout import Layout, Refusal, Rules

__all__ = ["INCEPTION_RESNET_V2", "LAYOUTS", "LEGACY", "REFUSALS"]

ZOO = "timm"

_GATES: Rules = (
    (r"(layer[1-4]\.\d+)\.se\.fc([12])", "{1}.gate.fc{2}"),
    (r"(layer[1-4]\.\d+)\.se\.conv", "{1}.gate.conv"),
)
_RESNET: Rules = (*torchvision.RESNET, *_GATES)

LEGACY: Rules = (
    (r"layer0\.((?:conv|bn)[1-3])", "{1}"),
    *torchvision.RESNET_BLOCKS,
    (r"(layer[1-4]\.\d+)\.se_module\.fc([12])", "{1}.gate.fc{2}"),
    (r"last_linear", "fc"),
)
# Only a bottleneck has a third convolution; the blocks with two are refused below.
_BOTTLENECKS = r"layer1\.0\.conv3\.weight"

_SENET154: Rules = (
    (r"conv1\.0", "conv1"),
    (r"conv1\.1", "bn1"),
    (r"conv1\.3", "conv2"),
    (r"conv1\.4", "bn2"),
    (r"conv1\.6", "conv3"),
    (r"bn1", "bn3"),
    *torchvision.RESNET_BLOCKS,
    *_GATES,
    (r"fc", "fc"),
)

INCEPTION_RESNET_V2: Rules = (
    (r"conv2d_1a\.(conv|bn)", "conv1.{1}"),
    (r"conv2d_2a\.(conv|bn)", "conv2.{1}"),
    (r"conv2d_2b\.(conv|bn)", "conv3.{1}"),
    (r"conv2d_3b\.(conv|bn)", "conv4.{1}"),
    (r"conv2d_4a\.(conv|bn)", "conv5.{1}"),
    (r"conv2d_7b\.(conv|bn)", "conv6.{1}"),
    (r"mixed_5b\.branch0\.(conv|bn)", "layer1.0.branch0_0.{1}"),
    (r"mixed_5b\.branch3\.1\.(conv|bn)", "layer1.0.branch3_0.{1}"),
    (r"mixed_5b\.branch([12])\.(\d)\.(conv|bn)", "layer1.0.branch{1}_{2}.{3}"),
    (r"mixed_6a\.branch0\.(conv|bn)", "layer2.0.branch0_0.{1}"),
    (r"mixed_6a\.branch1\.(\d)\.(conv|bn)", "layer2.0.branch1_{1}.{2}"),
    (r"mixed_7a\.branch(\d)\.(\d)\.(conv|bn)", "layer3.0.branch{1}_{2}.{3}"),
    *(
        rule
        for theirs, ours in (
            (r"repeat\.(\d+)", "layer1.{1+1}"),
            (r"repeat_1\.(\d+)", "layer2.{1+1}"),
            (r"repeat_2\.(\d+)", "layer3.{1+1}"),
            (r"(block8)", "layer3.10"),
        )
        for rule in (
            (theirs + r"\.branch0\.(conv|bn)", ours + ".branches.branch0_0.{2}"),
            (theirs + r"\.branch(\d)\.(\d)\.(conv|bn)", ours + ".branches.branch{2}_{3}.{4}"),
            (theirs + r"\.conv2d", ours + ".project"),
        )
    ),
)

_MOBILENET_V1: Rules = (
    (r"conv_stem", "conv1"),
    (r"bn1", "bn1"),
    *(
        rule
        for theirs, ours in ((r"blocks\.(0)\.0", "layer1.0"), (r"blocks\.(1)\.(\d)", "layer1.{2+1}"))
        for rule in (
            (theirs + r"\.conv_dw", ours + ".conv1"),
            (theirs + r"\.conv_pw", ours + ".conv2"),
            (theirs + r"\.bn1", ours + ".bn1"),
            (theirs + r"\.bn2", ours + ".bn2"),
        )
    ),
    (r"blocks\.([234])\.(\d)\.conv_dw", "layer{1}.{2}.conv1"),
    (r"blocks\.([234])\.(\d)\.conv_pw", "layer{1}.{2}.conv2"),
    (r"blocks\.([234])\.(\d)\.bn([12])", "layer{1}.{2}.bn{3}"),
    (r"classifier", "fc"),
)

_MOBILENET_V2: Rules = (
    (r"conv_stem", "features.0.0"),
    (r"bn1", "features.0.1"),
    (r"blocks\.0\.0\.conv_dw", "features.1.conv.0.0"),
    (r"blocks\.0\.0\.bn1", "features.1.conv.0.1"),
    (r"blocks\.0\.0\.conv_pw", "features.1.conv.1"),
    (r"blocks\.0\.0\.bn2", "features.1.conv.2"),
    *(
        rule
        for stage, first in ((1, 2), (2, 4), (3, 7), (4, 11), (5, 14), (6, 17))
        for rule in (
            (rf"blocks\.{stage}\.(\d)\.conv_pw", f"features.{{1+{first}}}.conv.0.0"),
            (rf"blocks\.{stage}\.(\d)\.bn1", f"features.{{1+{first}}}.conv.0.1"),
            (rf"blocks\.{stage}\.(\d)\.conv_dw", f"features.{{1+{first}}}.conv.1.0"),
            (rf"blocks\.{stage}\.(\d)\.bn2", f"features.{{1+{first}}}.conv.1.1"),
            (rf"blocks\.{stage}\.(\d)\.conv_pwl", f"features.{{1+{first}}}.conv.2"),
            (rf"blocks\.{stage}\.(\d)\.bn3", f"features.{{1+{first}}}.conv.3"),
        )
    ),
    (r"conv_head", "features.18.0"),
    (r"bn2", "features.18.1"),
    (r"classifier", "classifier.1"),
)

_DEPTHS = (18, 34, 50, 101, 152)

LAYOUTS = (
    Layout(
        ZOO,
        ResNet,
        {
            **{f"resnet{depth}": f"resnet{depth}" for depth in _DEPTHS},
            **{f"seresnet{depth}": f"resnet{depth}" for depth in _DEPTHS},
        },
        _RESNET,
        {"stride_in": "3x3", "stem_pool": "padded"},
    ),
    Layout(
        ZOO,
        ResNeXt,
        {f"{prefix}resnext{depth}_32x4d": f"resnext{depth}_32x4d" for prefix in ("", "se") for depth in (50, 101)},
        _RESNET,
        {"stem_pool": "padded"},
    ),
    Layout(ZOO, SENet, {"senet154": "senet154"}, _SENET154, {"stem_pool": "padded"}),
    Layout(
        ZOO,
        ResNet,
        {f"legacy_seresnet{depth}": f"resnet{depth}" for depth in (50, 101, 152)},
        LEGACY,
        {"stride_in": "1x1", "stem_pool": "ceil"},
        needs=_BOTTLENECKS,
    ),
    Layout(
        ZOO,
        ResNeXt,
        {f"legacy_seresnext{depth}_32x4d": f"resnext{depth}_32x4d" for depth in (50, 101)},
        LEGACY,
        {"stem_pool": "ceil"},
    ),
    Layout(ZOO, SENet, {"legacy_senet154": "senet154"}, LEGACY, {"stem_pool": "ceil"}),
    Layout(
        ZOO,
        VGG,
        {f"vgg{depth}_bn": f"vgg{depth}_bn" for depth in (11, 13, 16, 19)},
        (
            (r"(features\.\d+)", "{1}"),
            (r"pre_logits\.fc1", "classifier.0"),
            (r"pre_logits\.fc2", "classifier.3"),
            (r"head\.fc", "classifier.6"),
        ),
        head="classifier.6",
    ),
    Layout(
        ZOO,
        InceptionV3,
        {"inception_v3": "inception_v3"},
        (*torchvision.INCEPTION_V3, (r"fc", "fc")),
        {"count_include_pad": True},
        idle=torchvision.INCEPTION_V3_IDLE,
    ),
    Layout(
        ZOO,
        InceptionResNetV2,
        {"inception_resnet_v2": "inception_resnet_v2"},
        (*INCEPTION_RESNET_V2, (r"classif", "fc")),
    ),
    Layout(ZOO, MobileNetV1, {"mobilenetv1_100": "mobilenetv1"}, _MOBILENET_V1, {"activation": "relu6"}),
    Layout(ZOO, MobileNetV2, {"mobilenetv2_100": "mobilenetv2"}, _MOBILENET_V2, head="classifier.1"),
)

REFUSALS = (
    Refusal(
        ZOO,
        "its basic blocks have a ReLU before the gate, where every network here has the norm's output",
        names=r"legacy_seresnet(18|34)",
        needs=(r"layer1\.0\.se_module\.fc1\.weight",),
        lacks=r"layer1\.0\.conv3\.weight",
    ),
    Refusal(
        ZOO,
        "its stem is three 3x3 convolutions and its shortcuts are average-pooled; no network here has these",
        names=r"(se|eca)?resne(t|xt)\d+(c|d|s|t|ts)(_.*)?|ecaresnetlight.*",
        needs=(r"conv1\.0\.weight", r"layer1\.0\.conv1\.weight"),
    ),
    Refusal(
        ZOO,
        "its shortcuts are average-pooled before their convolution; no network here has that",
        needs=(r"layer2\.0\.downsample\.2\.weight",),
    ),
    Refusal(
        ZOO,
        "it strides by a blurring or averaging pool behind the convolution, which has no tensors: the names and shapes "
        "of the network without it",
        names=r"(se)?resnet(aa|blur)\d+.*|seresnextaa.*",
        alike=True,
    ),
    Refusal(
        ZOO,
        "it is normed by groups, not by batches",
        names=r"resnet\d+_gn",
    ),
)
