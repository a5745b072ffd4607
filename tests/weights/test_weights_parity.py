"""Weights of every zoo that installs, in networks cut to a block or two a stage: the same outputs to 1e-10."""

from functools import partial

import pytest
import timm.models.resnet as timm_resnet
import timm.models.senet as timm_senet
import torch
import torchvision.models.resnet as tv_resnet
from cadene_peers import cut
from pytorchcv.models import (
    preresnet_cifar,
    resnet,
    resnet_cifar,
    resnext,
    senet,
    seresnet,
    seresnet_cifar,
    seresnext,
    shakeshakeresnet_cifar,
    wrn_cifar,
)
from torch import nn
from weight_cases import any_size, check_parity, images, unwritten

from excite.errors import UserError
from excite.gates import parse_gate
from excite.models.cifar import CifarResNet, CifarResNetOptions
from excite.models.cifar_preact import PreactBasicBlock, PreactBottleneck, PreactResNet, PreactResNetOptions
from excite.models.resnet import BasicBlock, Bottleneck, ResNet, ResNetOptions
from excite.models.resnext import ResNeXt, ResNeXtOptions
from excite.models.senet import SENet, SENetOptions
from excite.models.shake_shake import ShakeShakeResNet, ShakeShakeResNetOptions
from excite.models.wide_resnet import WideResNet
from excite.weights import load_weights
from tolerances import PARITY

DEPTHS = (1, 1, 1, 1)
# Of 101 layers by its third stage, which tells it from the package's other ResNets.
CAFFE_DEPTHS = (1, 1, 23, 1)
OFFICIAL = ResNetOptions(stride_in="1x1", stem_pool="ceil")


# --- ours ---


def bottlenecks(gate="none", options=ResNetOptions(), depths=DEPTHS):  # noqa: B008 - frozen
    return ResNet(Bottleneck, depths, gate=parse_gate(gate), options=options, num_classes=10)


def basics(gate="none", **kwargs):
    return ResNet(BasicBlock, DEPTHS, gate=parse_gate(gate), num_classes=10, **kwargs)


def resnexts(gate="none", stem_pool="padded"):
    return ResNeXt(DEPTHS, gate=parse_gate(gate), options=ResNeXtOptions(stem_pool=stem_pool), num_classes=10)


def senets(stem_pool):
    return SENet(DEPTHS, gate=parse_gate("se"), options=SENetOptions(stem_pool=stem_pool), num_classes=10)


def cifar(gate="none"):
    return CifarResNet(2, gate=parse_gate(gate), options=CifarResNetOptions(shortcut="B"))


# --- theirs ---


def timm_net(block, attn=None, **kwargs):
    return timm_resnet.ResNet(block, list(DEPTHS), num_classes=10, block_args={"attn_layer": attn}, **kwargs)


def timm_senet154():
    deep = {"stem_type": "deep", "down_kernel_size": 3, "block_reduce_first": 2}
    return timm_net(timm_resnet.Bottleneck, "se", cardinality=64, base_width=4, **deep)


def legacy(block, groups=1, **kwargs):
    return timm_senet.SENet(block, DEPTHS, groups, 16, num_classes=10, **kwargs)


def legacy_senet154():
    deep = {"inplanes": 128, "input_3x3": True, "downsample_kernel_size": 3, "downsample_padding": 1}
    return legacy(timm_senet.SEBottleneck, 64, **deep)


WIDE = [[256], [512], [1024], [2048]]


def cv(network, conv1_stride):
    return lambda: any_size(network(WIDE, 64, bottleneck=True, conv1_stride=conv1_stride, num_classes=10))


def cv_grouped(network, groups=32, stem=64):
    return lambda: any_size(network(WIDE, stem, cardinality=groups, bottleneck_width=4, num_classes=10))


STAGES = [[16, 16], [32, 32], [64, 64]]
QUADRUPLE = [[64], [128], [256]]


def cv_cifar(network, channels=STAGES, stem=16, **kwargs):
    return lambda: any_size(network(channels, stem, **kwargs))


def tv(block):
    return lambda: tv_resnet.ResNet(block, list(DEPTHS), num_classes=10)


# name: (theirs, ours, source)
CASES = {
    "torchvision basic": (tv(tv_resnet.BasicBlock), basics, "torchvision or timm"),
    "torchvision bottleneck": (tv(tv_resnet.Bottleneck), bottlenecks, "torchvision or timm"),
    "torchvision resnext": (
        lambda: tv_resnet.ResNet(tv_resnet.Bottleneck, list(DEPTHS), num_classes=10, groups=32, width_per_group=4),
        resnexts,
        "torchvision or timm",
    ),
    "timm SE basic": (
        lambda: timm_net(timm_resnet.BasicBlock, "se"),
        lambda: basics("se(round_to=8)"),
        "timm",
    ),
    "timm SE": (lambda: timm_net(timm_resnet.Bottleneck, "se"), lambda: bottlenecks("se"), "timm"),
    "timm ECA": (lambda: timm_net(timm_resnet.Bottleneck, "eca"), lambda: bottlenecks("eca"), "timm"),
    "timm SE resnext": (
        lambda: timm_net(timm_resnet.Bottleneck, "se", cardinality=32, base_width=4),
        lambda: resnexts("se"),
        "timm",
    ),
    "timm senet154": (timm_senet154, lambda: senets("padded"), "timm"),
    "legacy SE": (
        lambda: legacy(timm_senet.SEResNetBottleneck),
        lambda: bottlenecks("se", OFFICIAL),
        "timm or cadene",
    ),
    "legacy SE resnext": (
        lambda: legacy(timm_senet.SEResNeXtBottleneck, 32),
        lambda: resnexts("se", "ceil"),
        "timm or cadene",
    ),
    "legacy senet154": (legacy_senet154, lambda: senets("ceil"), "timm or cadene"),
    "cadene se_resnet50": (partial(cut, "se_resnet50"), lambda: bottlenecks("se", OFFICIAL), "timm or cadene"),
    "cadene se_resnext50_32x4d": (
        partial(cut, "se_resnext50_32x4d"),
        lambda: resnexts("se", "ceil"),
        "timm or cadene",
    ),
    "cadene senet154": (partial(cut, "senet154"), lambda: senets("ceil"), "timm or cadene"),
    "cadene resnet18": (partial(cut, "resnet18"), basics, "cadene"),
    "cadene resnet50": (partial(cut, "resnet50"), bottlenecks, "cadene"),
    "cadene cafferesnet101": (
        partial(cut, "cafferesnet101", CAFFE_DEPTHS),
        lambda: bottlenecks(options=OFFICIAL, depths=CAFFE_DEPTHS),
        "cadene:cafferesnet101",
    ),
    "cadene resnext101_32x4d": (partial(cut, "resnext101_32x4d"), resnexts, "cadene"),
    "pytorchcv resnet50": (
        cv(resnet.ResNet, True),
        lambda: bottlenecks(options=ResNetOptions("1x1")),
        "pytorchcv:resnet50",
    ),
    "pytorchcv resnet50b": (cv(resnet.ResNet, False), bottlenecks, "pytorchcv:resnet50b"),
    "pytorchcv seresnet50": (
        cv(seresnet.SEResNet, True),
        lambda: bottlenecks("se", ResNetOptions("1x1")),
        "pytorchcv:seresnet50",
    ),
    "pytorchcv seresnet50b": (
        cv(seresnet.SEResNet, False),
        lambda: bottlenecks("se"),
        "pytorchcv:seresnet50b",
    ),
    "pytorchcv basic": (
        lambda: any_size(resnet.ResNet([[64], [128], [256], [512]], 64, False, False, num_classes=10)),
        basics,
        "pytorchcv",
    ),
    "pytorchcv resnext": (cv_grouped(resnext.ResNeXt), resnexts, "pytorchcv"),
    "pytorchcv SE resnext": (cv_grouped(seresnext.SEResNeXt), lambda: resnexts("se"), "pytorchcv"),
    "pytorchcv senet154": (cv_grouped(senet.SENet, 64, 128), lambda: senets("padded"), "pytorchcv"),
    "pytorchcv cifar": (cv_cifar(resnet_cifar.CIFARResNet, bottleneck=False), cifar, "pytorchcv"),
    "pytorchcv SE cifar": (
        cv_cifar(seresnet_cifar.CIFARSEResNet, bottleneck=False),
        lambda: cifar("se"),
        "pytorchcv",
    ),
    "pytorchcv preresnet": (
        cv_cifar(preresnet_cifar.CIFARPreResNet, bottleneck=False),
        lambda: PreactResNet(PreactBasicBlock, 2, options=PreactResNetOptions("B", "raw")),
        "pytorchcv",
    ),
    "pytorchcv preresnet, bottleneck": (
        cv_cifar(preresnet_cifar.CIFARPreResNet, QUADRUPLE, bottleneck=True),
        lambda: PreactResNet(PreactBottleneck, 1, options=PreactResNetOptions(stride_in="3x3")),
        "pytorchcv",
    ),
    "pytorchcv wrn": (
        cv_cifar(wrn_cifar.CIFARWRN, [[32], [64], [128]]),
        lambda: WideResNet(1, 2),
        "pytorchcv",
    ),
    "pytorchcv shake-shake": (
        cv_cifar(shakeshakeresnet_cifar.CIFARShakeShakeResNet, bottleneck=False),
        lambda: ShakeShakeResNet(2, 16, options=ShakeShakeResNetOptions(relu="post")),
        "pytorchcv",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_peers(case):
    theirs, ours, source = CASES[case]
    report = check_parity(theirs, ours, source=source if ":" in source else "auto").report
    assert report.source == source
    assert not report.unused and not report.zeroed


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        ("timm SE", partial(bottlenecks, "se")),
        ("legacy SE", partial(bottlenecks, "se")),
        ("cadene se_resnet50", partial(bottlenecks, "se")),
        ("cadene cafferesnet101", partial(bottlenecks, depths=CAFFE_DEPTHS)),
        ("pytorchcv seresnet50b", partial(bottlenecks, "se")),
    ],
)
def test_a_moved_stride_or_pool_is_refused_and_would_show(case, variant):
    """The shapes are the same: the zoo's name decides, and what it says is true of the outputs."""
    strides_and_pools = (("1x1", "ceil"), ("3x3", "padded"), ("1x1", "padded"), ("3x3", "ceil"))
    only_one_is_the_peers(case, [partial(variant, options=ResNetOptions(*moved)) for moved in strides_and_pools])


@pytest.mark.parametrize(
    ("case", "variants"),
    [
        ("cadene se_resnext50_32x4d", [lambda: resnexts("se", "ceil"), lambda: resnexts("se", "padded")]),
        ("cadene resnext101_32x4d", [lambda: resnexts(stem_pool="ceil"), lambda: resnexts(stem_pool="padded")]),
        ("cadene senet154", [lambda: senets("ceil"), lambda: senets("padded")]),
    ],
)
def test_another_pool_is_refused_and_would_show(case, variants):
    only_one_is_the_peers(case, variants)


def only_one_is_the_peers(case, variants):
    """One of our networks takes the peer's weights, and it alone gives the peer's outputs with them."""
    theirs, ours, source = CASES[case]
    told = source if ":" in source else "auto"
    pair = check_parity(theirs, ours, source=told)
    state = pair.theirs.state_dict()
    names = ours_by_name(state, told, ours)
    fitting = 0
    for variant in variants:
        model = unwritten(variant)
        try:
            load_weights(model, state, source=told)
            fits = True
        except UserError as error:
            assert "the same shapes, another function" in str(error)
            load_weights(model, names, source="excite")
            fits = False
        with torch.no_grad():
            assert torch.allclose(model(pair.x), pair.y, rtol=1e-3) == fits
        fitting += fits
    assert fitting == 1


def ours_by_name(state, source, make):
    """The peer's weights under our names, with nothing said of where they are from."""
    model = unwritten(make)
    load_weights(model, state, source=source)
    return model.state_dict()


# --- zoos that do not install: their modules, as their public files have them ---


class Moskomule(nn.Module):
    """Two linear layers without biases, at places 0 and 2 of a sequence called fc."""

    def __init__(self, channels):
        super().__init__()
        hidden = channels // 16
        layers = [nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)]
        self.fc = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, u):
        return u * self.fc(u.mean((2, 3)))[:, :, None, None]


class Eca(nn.Module):
    """One convolution over the channels called conv."""

    def __init__(self, kernel_size):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, u):
        return u * torch.sigmoid(self.conv(u.mean((2, 3))[:, None]))[:, 0, :, None, None]


def gated(network, name, make):
    """A network of torchvision with a gate of this name behind the last norm of each block."""

    def forward(block, x):
        shortcut = x if block.downsample is None else block.downsample(x)
        if isinstance(block, tv_resnet.Bottleneck):
            x = block.relu(block.bn1(block.conv1(x)))
            x = block.bn3(block.conv3(block.relu(block.bn2(block.conv2(x)))))
        else:
            x = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        return block.relu(getattr(block, name)(x) + shortcut)

    for block in network.modules():
        if isinstance(block, tv_resnet.Bottleneck | tv_resnet.BasicBlock):
            last = block.bn3 if isinstance(block, tv_resnet.Bottleneck) else block.bn2
            block.add_module(name, make(last.num_features))
            block.forward = forward.__get__(block)
    return network


RELEASED = {256: 3, 512: 5, 1024: 5, 2048: 7}


@pytest.mark.parametrize("block", [tv_resnet.BasicBlock, tv_resnet.Bottleneck])
def test_moskomules_networks(block):
    ours = basics if block is tv_resnet.BasicBlock else bottlenecks
    pair = check_parity(lambda: gated(tv(block)(), "se", Moskomule), lambda: ours("se(bias=false)"))
    assert pair.report.source == "moskomule"
    assert pair.report.renamed["layer1.0.gate.fc2.weight"] == "layer1.0.se.fc.2.weight"
    assert len(pair.report.renamed) == 8 and not pair.report.reshaped


def test_the_eca_authors_networks_as_they_save_them():
    ours = partial(bottlenecks, "eca(kernel_size=released:resnet50)")
    peer = gated(tv(tv_resnet.Bottleneck)(), "eca", lambda channels: Eca(RELEASED[channels]))
    pair = check_parity(lambda: peer, ours)
    assert pair.report.source == "ecanet"
    assert pair.report.renamed["layer1.0.gate.conv.weight"] == "layer1.0.eca.conv.weight"
    saved = {f"module.{key}": value for key, value in peer.state_dict().items()}
    again = unwritten(ours)
    report = load_weights(again, {"epoch": 100, "arch": "eca_resnet50", "state_dict": saved, "best_prec1": 77.4})
    with torch.no_grad():
        torch.testing.assert_close(again(pair.x), pair.y, **PARITY[torch.float64])
    assert any("'module.'" in note for note in report.notes)
    with pytest.raises(UserError, match=r"eca\(kernel_size=released:resnet50\)"):
        load_weights(bottlenecks("eca"), saved)


def test_images_of_odd_sizes_tell_the_pools_apart():
    """66 halves to 33 before the pool, where its two kinds differ at the border too."""
    x = images(66)
    padded, ceil = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True)
    assert padded(x[..., :33, :33]).shape == (2, 3, 17, 17) and ceil(x[..., :33, :33]).shape == (2, 3, 16, 16)
