"""pytorchcv: ResNets to Inceptions, MobileNets and ShuffleNet, and networks for CIFAR.

Read from pytorchcv 0.0.74 (``pytorchcv.models``). Stages and units count from 1, and a stage's number is ours, but for
networks whose first units we count to another stage.

Of its bottleneck ResNets there are two of each depth with equal names and shapes: ``resnet50`` strides in the first
1x1 convolution, ``resnet50b`` in the 3x3 one; so do ``seresnet50`` and ``seresnet50b``. All pool with padding.
"""

from __future__ import annotations

from excite.models.bn_inception import BNInception
from excite.models.cifar import CifarResNet
from excite.models.cifar_preact import PreactResNet
from excite.models.inception_resnet_v2 import InceptionResNetV2
from excite.models.inception_v3 import InceptionV3
from excite.models.mobilenet import MobileNetV1
from excite.models.mobilenetv2 import MobileNetV2
from excite.models.resnet import ResNet
from excite.models.resnext import ResNeXt
from excite.models.senet import SENet
from excite.models.shake_shake import ShakeShakeResNet
from excite.models.shufflenet import ShuffleNetV1
from excite.models.vgg import VGG
from excite.models.wide_resnet import WideResNet
from excite.weights.layout import Layout, Refusal, Rules

__all__ = ["LAYOUTS", "REFUSALS"]

ZOO = "pytorchcv"

_UNIT = r"features\.stage(\d)\.unit(\d+)\."
_GATE: Rules = (
    (_UNIT + r"se\.conv([12])", "layer{1}.{2-1}.gate.fc{3}"),
    (_UNIT + r"se\.fc([12])", "layer{1}.{2-1}.gate.fc{3}"),
)
_HEAD: Rules = ((r"output(?:\.fc)?", "fc"),)

_RESNET: Rules = (
    (r"features\.init_block\.(?:conv\.)?conv", "conv1"),
    (r"features\.init_block\.(?:conv\.)?bn", "bn1"),
    (r"features\.init_block\.conv([123])\.conv", "conv{1}"),
    (r"features\.init_block\.conv([123])\.bn", "bn{1}"),
    (_UNIT + r"body\.conv(\d)\.conv", "layer{1}.{2-1}.conv{3}"),
    (_UNIT + r"body\.conv(\d)\.bn", "layer{1}.{2-1}.bn{3}"),
    (_UNIT + r"identity_conv\.conv", "layer{1}.{2-1}.downsample.0"),
    (_UNIT + r"identity_conv\.bn", "layer{1}.{2-1}.downsample.1"),
    *_GATE,
    *_HEAD,
)
_PREACT: Rules = (
    (r"features\.init_block", "conv1"),
    (_UNIT + r"body\.conv(\d)\.(conv|bn)", "layer{1}.{2-1}.{4}{3}"),
    (_UNIT + r"identity_conv", "layer{1}.{2-1}.downsample"),
    (r"features\.post_activ\.bn", "bn"),
    *_GATE,
    *_HEAD,
)
_SHAKE: Rules = (
    (r"features\.init_block\.(conv|bn)", "{1}1"),
    (_UNIT + r"branch([12])\.conv(\d)\.(conv|bn)", "layer{1}.{2-1}.branch{3}.{5}{4}"),
    (_UNIT + r"identity_branch\.(conv1|conv2|bn)", "layer{1}.{2-1}.downsample.{3}"),
    *_HEAD,
)


def _vgg(depths: tuple[int, ...]) -> Rules:
    """A stage is as many convolutions, norms and ReLUs, and a pool, all in one sequence."""
    rules, index = [], 0
    for stage, depth in enumerate(depths, start=1):
        for unit in range(1, depth + 1):
            rules.append((rf"features\.stage{stage}\.unit{unit}\.conv", f"features.{index}"))
            rules.append((rf"features\.stage{stage}\.unit{unit}\.bn", f"features.{index + 1}"))
            index += 3
        index += 1
    for number, ours in ((1, 0), (2, 3), (3, 6)):
        rules.append((rf"output\.fc{number}(?:\.fc)?", f"classifier.{ours}"))
    return tuple(rules)


_VGG_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

# Branches from 1, their convolutions too where there are several. Units that halve the map lack the first branch.
_BN_INCEPTION: Rules = (
    (r"features\.init_block\.conv1\.(conv|bn)", "conv1.{1}"),
    (r"features\.init_block\.conv2\.conv([12])\.(conv|bn)", "conv{1+1}.{2}"),
    (_UNIT + r"branches\.branch(\d)\.conv(\d)\.(conv|bn)", "layer{1}.{2-1}.branch{3-1}_{4-1}.{5}"),
    (_UNIT + r"branches\.branch(\d)\.(?:conv\.)?(conv|bn)", "layer{1}.{2-1}.branch{3-1}_0.{4}"),
    *_HEAD,
)

_SEQUENCE = r"\.conv_list\.conv(\d)\.(conv|bn)"
_SINGLE = r"\.conv\.(conv|bn)"


def _inception_v3_units() -> Rules:
    """Our names of a unit's branches say their kernels."""
    groups: list[tuple[dict[str, str], Rules]] = [
        (
            {"1.1": "5b", "1.2": "5c", "1.3": "5d"},
            (
                ("1" + _SINGLE, "branch1x1.{1}"),
                ("2" + _SEQUENCE, "branch5x5_{1}.{2}"),
                ("3" + _SEQUENCE, "branch3x3dbl_{1}.{2}"),
                ("4" + _SINGLE, "branch_pool.{1}"),
            ),
        ),
        (
            {"2.1": "6a"},
            ((r"1\.conv_list\.conv1\.(conv|bn)", "branch3x3.{1}"), ("2" + _SEQUENCE, "branch3x3dbl_{1}.{2}")),
        ),
        (
            {"2.2": "6b", "2.3": "6c", "2.4": "6d", "2.5": "6e"},
            (
                ("1" + _SINGLE, "branch1x1.{1}"),
                ("2" + _SEQUENCE, "branch7x7_{1}.{2}"),
                ("3" + _SEQUENCE, "branch7x7dbl_{1}.{2}"),
                ("4" + _SINGLE, "branch_pool.{1}"),
            ),
        ),
        ({"3.1": "7a"}, (("1" + _SEQUENCE, "branch3x3_{1}.{2}"), ("2" + _SEQUENCE, "branch7x7x3_{1}.{2}"))),
        (
            {"3.2": "7b", "3.3": "7c"},
            (
                ("1" + _SINGLE, "branch1x1.{1}"),
                ("2" + _SEQUENCE, "branch3x3_{1}.{2}"),
                (r"2\.conv1x3\.(conv|bn)", "branch3x3_2a.{1}"),
                (r"2\.conv3x1\.(conv|bn)", "branch3x3_2b.{1}"),
                ("3" + _SEQUENCE, "branch3x3dbl_{1}.{2}"),
                (r"3\.conv1x3\.(conv|bn)", "branch3x3dbl_3a.{1}"),
                (r"3\.conv3x1\.(conv|bn)", "branch3x3dbl_3b.{1}"),
                ("4" + _SINGLE, "branch_pool.{1}"),
            ),
        ),
    ]
    return tuple(
        (rf"features\.stage{place[0]}\.unit{place[2]}\.branches\.branch{branch}", f"Mixed_{ours}.{template}")
        for units, branches in groups
        for place, ours in units.items()
        for branch, template in branches
    )


_INCEPTION_V3: Rules = (
    *(
        (rf"features\.init_block\.conv{i}\.(conv|bn)", f"Conv2d_{ours}.{{1}}")
        for i, ours in enumerate(("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"), start=1)
    ),
    *_inception_v3_units(),
    *_HEAD,
)

_INCEPTION_RESNET_V2: Rules = (
    (r"features\.init_block\.conv([1-5])\.(conv|bn)", "conv{1}.{2}"),
    (r"features\.final_conv\.(conv|bn)", "conv6.{1}"),
    *(
        rule
        for theirs, ours in (
            (r"features\.(init_block)\.block\.branches\.branch(\d)", "layer1.0."),
            (r"features\.stage1\.unit(\d+)\.branches\.branch(\d)", "layer1.{1}.branches."),
            (r"features\.stage([23])\.unit1\.branches\.branch(\d)", "layer{1}.0."),
            (r"features\.stage2\.unit(\d+)\.branches\.branch(\d)", "layer2.{1-1}.branches."),
            (r"features\.stage3\.unit(\d+)\.branches\.branch(\d)", "layer3.{1-1}.branches."),
        )
        for rule in (
            (theirs + r"\.conv_list\.conv(\d)\.(conv|bn)", ours + "branch{2-1}_{3-1}.{4}"),
            (theirs + r"\.conv\.(conv|bn)", ours + "branch{2-1}_0.{3}"),
        )
    ),
    (r"features\.stage1\.unit(\d+)\.conv", "layer1.{1}.project"),
    (r"features\.stage([23])\.unit(\d+)\.conv", "layer{1}.{2-1}.project"),
    *_HEAD,
)

# Its first stage is one unit, which we count to the next.
_MOBILENET_V1: Rules = (
    (r"features\.init_block\.(conv|bn)", "{1}1"),
    *(
        rule
        for theirs, ours in (
            (r"features\.(stage1)\.unit1", "layer1.0"),
            (r"features\.(stage2)\.unit(\d)", "layer1.{2}"),
            (r"features\.stage([345])\.unit(\d)", "layer{1-1}.{2-1}"),
        )
        for rule in (
            (theirs + r"\.dw_conv\.(conv|bn)", ours + (".{2}1" if "unit1" in theirs else ".{3}1")),
            (theirs + r"\.pw_conv\.(conv|bn)", ours + (".{2}2" if "unit1" in theirs else ".{3}2")),
        )
    ),
    *_HEAD,
)

_MOBILENET_V2: Rules = (
    (r"features\.init_block\.conv", "features.0.0"),
    (r"features\.init_block\.bn", "features.0.1"),
    (r"features\.stage1\.unit1\.conv2\.conv", "features.1.conv.0.0"),
    (r"features\.stage1\.unit1\.conv2\.bn", "features.1.conv.0.1"),
    (r"features\.stage1\.unit1\.conv3\.conv", "features.1.conv.1"),
    (r"features\.stage1\.unit1\.conv3\.bn", "features.1.conv.2"),
    *(
        rule
        for stage, before in ((2, 1), (3, 3), (4, 6), (5, 13))
        for rule in (
            (rf"features\.stage{stage}\.unit(\d)\.conv([12])\.conv", f"features.{{1+{before}}}.conv.{{2-1}}.0"),
            (rf"features\.stage{stage}\.unit(\d)\.conv([12])\.bn", f"features.{{1+{before}}}.conv.{{2-1}}.1"),
            (rf"features\.stage{stage}\.unit(\d)\.conv3\.conv", f"features.{{1+{before}}}.conv.2"),
            (rf"features\.stage{stage}\.unit(\d)\.conv3\.bn", f"features.{{1+{before}}}.conv.3"),
        )
    ),
    (r"features\.final_block\.conv", "features.18.0"),
    (r"features\.final_block\.bn", "features.18.1"),
    (r"output", "classifier.1"),
)

_SHUFFLENET: Rules = (
    (r"features\.init_block\.(conv|bn)", "{1}1"),
    (_UNIT + r"(?:compress|dw|expand)_(conv|bn)([123])", "layer{1}.{2-1}.{3}{4}"),
    *_HEAD,
)

_BOTTLENECK_DEPTHS = (50, 101, 152)
_BASIC_DEPTHS = (18, 34)

LAYOUTS = (
    Layout(
        ZOO,
        ResNet,
        {f"{se}resnet{depth}": f"resnet{depth}" for se in ("", "se") for depth in _BASIC_DEPTHS + _BOTTLENECK_DEPTHS},
        _RESNET,
        {"stride_in": "1x1", "stem_pool": "padded"},
    ),
    Layout(
        ZOO,
        ResNet,
        {f"{se}resnet{depth}b": f"resnet{depth}" for se in ("", "se") for depth in _BOTTLENECK_DEPTHS},
        _RESNET,
        {"stride_in": "3x3", "stem_pool": "padded"},
        needs=r"features\.stage1\.unit1\.body\.conv3\..*",
    ),
    Layout(
        ZOO,
        ResNeXt,
        {f"{se}resnext{depth}_32x4d": f"resnext{depth}_32x4d" for se in ("", "se") for depth in (50, 101)},
        _RESNET,
        {"stem_pool": "padded"},
    ),
    Layout(ZOO, SENet, {"senet154": "senet154"}, _RESNET, {"stem_pool": "padded"}),
    *(
        Layout(
            ZOO,
            VGG,
            {f"bn_vgg{layers}": f"vgg{layers}_bn", f"bn_vgg{layers}b": f"vgg{layers}_bn"},
            _vgg(depths),
            head="classifier.6",
            zeros=r"features\.\d+\.bias",
        )
        for layers, depths in _VGG_DEPTHS.items()
    ),
    Layout(ZOO, BNInception, {"bninception": "bn_inception"}, _BN_INCEPTION, {"conv_bias": True}),
    Layout(ZOO, InceptionV3, {"inceptionv3": "inception_v3"}, _INCEPTION_V3, {"count_include_pad": True}),
    Layout(ZOO, InceptionResNetV2, {"inceptionresnetv2": "inception_resnet_v2"}, _INCEPTION_RESNET_V2),
    Layout(ZOO, MobileNetV1, {"mobilenet_w1": "mobilenetv1"}, _MOBILENET_V1, {"activation": "relu"}),
    Layout(
        ZOO,
        MobileNetV2,
        {"mobilenetv2b_w1": "mobilenetv2"},
        _MOBILENET_V2,
        head="classifier.1",
        zeros=r"classifier\.1\.bias",
    ),
    *(
        Layout(ZOO, ShuffleNetV1, {f"shufflenet_g{groups}_w1": "shufflenetv1"}, _SHUFFLENET, {"groups": groups})
        for groups in (1, 2, 3, 4, 8)
    ),
    Layout(
        ZOO,
        CifarResNet,
        {
            f"{se}resnet{depth}_{data}": f"resnet{depth}"
            for se in ("", "se")
            for depth in (20, 56, 110)
            for data in ("cifar10", "cifar100", "svhn")
        },
        _RESNET,
        {"shortcut": "B"},
    ),
    Layout(
        ZOO,
        PreactResNet,
        {f"preresnet110_{data}": "preresnet110" for data in ("cifar10", "cifar100", "svhn")},
        _PREACT,
        {"shortcut": "B", "first_shortcut": "raw"},
        lacks=r"features\.stage1\.unit1\.body\.conv3\.conv\.weight",
    ),
    Layout(
        ZOO,
        PreactResNet,
        {f"preresnet164bn_{data}": "preresnet164" for data in ("cifar10", "cifar100", "svhn")},
        _PREACT,
        {"stride_in": "3x3"},
        needs=r"features\.stage1\.unit1\.body\.conv3\.conv\.weight",
    ),
    Layout(
        ZOO,
        WideResNet,
        {f"wrn28_10_{data}": "wrn28_10" for data in ("cifar10", "cifar100", "svhn")},
        _PREACT,
    ),
    Layout(ZOO, ShakeShakeResNet, {}, _SHAKE, {"relu": "post"}),
)

REFUSALS = (
    Refusal(
        ZOO,
        "its gated pre-activation ResNets have a norm behind the stem and none behind the last stage",
        names=r"sepreresnet\d+.*",
        needs=(r"features\.init_block\.bn\.weight", r"features\.stage2\.unit1\.identity_conv\.weight"),
    ),
    Refusal(
        ZOO,
        "its first block keeps a 1x1 convolution that the paper's has not; mobilenetv2b_w1 is the paper's network",
        names=r"mobilenetv2_w.*",
        needs=(r"features\.stage1\.unit1\.conv1\.conv\.weight", r"features\.final_block\.conv\.weight"),
    ),
    Refusal(
        ZOO,
        "its depthwise convolutions have no norm of their own",
        names=r"mobilenetb_w.*",
    ),
)
