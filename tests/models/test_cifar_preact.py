"""Pre-activation and wide ResNets: parity with pytorchcv and a forward pass written from the papers; counts."""

import pytest
import torch
from model_cases import forward_preact, load_as_convolutions, randomise
from pytorchcv.models.preresnet_cifar import CIFARPreResNet, preresnet20_cifar10
from pytorchcv.models.sepreresnet import SEPreResUnit
from pytorchcv.models.wrn_cifar import CIFARWRN
from torch import nn
from torch.nn import functional as F

from excite.errors import UserError
from excite.gates import SEConfig
from excite.models import PLACEMENTS, create_model, gate_parameters
from excite.models.cifar_preact import PreactBasicBlock, PreactBottleneck, PreactResNet, PreactResNetOptions
from excite.models.wide_resnet import WideResNet, WideResNetOptions
from tolerances import CHANCE_ERRORS, PARITY

CLOSE = PARITY[torch.float64]
PYTORCHCV_BASIC = PreactResNetOptions(shortcut="B", first_shortcut="raw")
PYTORCHCV_BOTTLENECK = PreactResNetOptions(stride_in="3x3")


def pytorchcv_key(key):
    if key.startswith("fc."):
        return key.replace("fc.", "output.")
    if key == "conv1.weight":
        return "features.init_block.weight"
    if key.startswith("bn."):
        return f"features.post_activ.{key}"
    stage, unit, layer, *rest = key.removeprefix("layer").split(".")
    prefix = f"features.stage{stage}.unit{int(unit) + 1}."
    if layer == "gate":
        return f"{prefix}se.{rest[0].replace('fc', 'conv')}.{rest[1]}"
    if layer == "downsample":
        return f"{prefix}identity_conv.{rest[0]}"
    return f"{prefix}body.conv{layer[-1]}.{layer[:-1]}.{rest[0]}"


def basic(depth=3, gate=None, options=PYTORCHCV_BASIC, **kwargs):
    return PreactResNet(PreactBasicBlock, depth, gate=gate, options=options, **kwargs)


def bottleneck(depth=2, gate=None, options=PYTORCHCV_BOTTLENECK, **kwargs):
    return PreactResNet(PreactBottleneck, depth, gate=gate, options=options, **kwargs)


def with_gates(theirs, bottleneck):
    """Their gated units in their plain network: their own gated networks norm after the stem, not after the stages."""
    channels = 16
    for i, stage in enumerate(theirs.features[1:4]):
        for j, unit in enumerate(stage):
            last = unit.body.conv3 if bottleneck else unit.body.conv2
            stride, in_channels, channels = 2 if i > 0 and j == 0 else 1, channels, last.conv.out_channels
            stage[j] = SEPreResUnit(in_channels, channels, stride, bottleneck, conv1_stride=False)
    return theirs


CHANNELS = [[64, 64], [128, 128], [256, 256]]
PEERS = {
    "basic": (preresnet20_cifar10, basic),
    "basic, SE": (lambda: with_gates(preresnet20_cifar10(), False), lambda: basic(gate=SEConfig())),
    "bottleneck": (lambda: CIFARPreResNet(CHANNELS, 16, bottleneck=True), bottleneck),
    "bottleneck, SE": (
        lambda: with_gates(CIFARPreResNet(CHANNELS, 16, bottleneck=True), True),
        lambda: bottleneck(gate=SEConfig()),
    ),
    "wide": (lambda: CIFARWRN([[32, 32], [64, 64], [128, 128]], 16), lambda: WideResNet(2, 2)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("peer", PEERS)
def test_outputs_and_gradients_equal_pytorchcvs(peer, training):
    theirs, ours = (make() for make in PEERS[peer])
    theirs = randomise(theirs).double().train(training)
    ours = ours.double().train(training)
    load_as_convolutions(ours, theirs, pytorchcv_key)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    x_theirs = x.detach().clone().requires_grad_()
    y, expected = ours(x), theirs(x_theirs)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, grads[pytorchcv_key(name)].reshape(p.shape), **CLOSE)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_placements_are_the_papers(block, placement):
    """With He et al.'s shortcuts and strides, the defaults."""
    make = basic if block == "basic" else bottleneck
    gate = SEConfig(reduction=4)
    model = randomise(make(2, gate, PreactResNetOptions(), placement=placement, stages=(1, 3))).double().eval()
    assert {key.split(".")[0] for key in model.state_dict() if ".gate." in key} == {"layer1", "layer3"}
    x = torch.randn(2, 3, 27, 32, dtype=torch.float64)
    expected = forward_preact(model.state_dict(), x, placement=placement, first_activated=block == "basic")
    torch.testing.assert_close(model(x), expected, **CLOSE)


@pytest.mark.parametrize(
    ("make", "options", "how", "otherwise"),
    [
        (basic, {"shortcut": "B"}, {"first_activated": True}, {"first_activated": False}),
        (basic, {"first_shortcut": "raw"}, {"first_activated": False}, {"first_activated": True}),
        (bottleneck, {"shortcut": "A"}, {"first_activated": False}, {"stride_in": "3x3"}),
        (bottleneck, {"stride_in": "3x3"}, {"stride_in": "3x3", "first_activated": False}, {"stride_in": "1x1"}),
    ],
)
def test_options_are_seen_in_the_output(make, options, how, otherwise):
    """No shape shows the place of a stride or of the first activation, so only the output can."""
    model = randomise(make(2, None, PreactResNetOptions(**options))).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected, moved = (
        forward_preact(model.state_dict(), x, placement="standard", **keywords) for keywords in (how, how | otherwise)
    )
    torch.testing.assert_close(model(x), expected, **CLOSE)
    assert not torch.allclose(model(x), moved, rtol=1e-2)


def test_wide_network_is_the_papers():
    model = randomise(WideResNet(2, 2, gate=SEConfig(reduction=4))).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model(x), forward_preact(model.state_dict(), x, placement="standard"), **CLOSE)
    assert model.layer1[0].activated_shortcut and not model.layer1[1].activated_shortcut
    assert not WideResNet(1, 1).layer1[0].activated_shortcut  # k = 1 keeps the shape


def test_options_default_to_he_et_al():
    with torch.device("meta"):
        shallow, deep = create_model("preresnet110"), create_model("preresnet164")
    assert not any("downsample" in key for key in shallow.state_dict())
    assert [i for i, block in enumerate(shallow.layer1) if block.activated_shortcut] == [0]
    assert [layer[0].downsample.stride for layer in (deep.layer1, deep.layer2)] == [(1, 1), (2, 2)]
    assert deep.layer2[0].conv1.stride == (2, 2) and deep.layer2[0].conv2.stride == (1, 1)


# --- counts ---


@pytest.mark.parametrize(
    ("name", "millions", "layers"),
    [
        ("preresnet110", 1.7, 110),  # arXiv 1603.05027, Table 4
        ("preresnet164", 1.7, 164),
        ("wrn16_8", 11.0, 16),  # arXiv 1605.07146, Table 4
        ("wrn28_10", 36.5, 28),
    ],
)
def test_parameters_and_layers_are_the_papers(name, millions, layers):
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    convolutions = [m for key, m in model.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in key]
    # 6n + 4 of a wide ResNet: its 6n + 1 convolutions and 3 projections.
    assert len(convolutions) + (3 if name.startswith("wrn") else 1) == layers


@pytest.mark.parametrize(("name", "channels"), [("preresnet110", 1), ("preresnet164", 4), ("wrn16_8", 8)])
def test_gate_parameters(name, channels):
    """2 C^2 / r a block (SE paper, Eq. 5) and C / r + C for the biases."""
    with torch.device("meta"):
        model = create_model(f"se_{name}")
    blocks = 2 if name == "wrn16_8" else 18
    widths = [c * channels for c in (16, 32, 64)]
    expected = blocks * sum(2 * c * (c // 16) + c // 16 + c for c in widths)
    assert sum(p.numel() for p in gate_parameters(model)) == expected


# --- the rest of the contract ---


def test_pyramid():
    model = randomise(bottleneck(gate=SEConfig())).eval()
    x = torch.randn(2, 3, 32, 24)
    maps = model.forward_pyramid(x)
    assert {s: m.shape for s, m in maps.items()} == {1: (2, 64, 32, 24), 2: (2, 128, 16, 12), 4: (2, 256, 8, 6)}
    assert model.pyramid_channels == {1: 64, 2: 128, 4: 256}
    assert torch.equal(maps[4], model.forward_features(x)) and (maps[4] >= 0).all()
    assert torch.equal(maps[1], model.layer1(model.conv1(x))) and (maps[1] < 0).any()


def test_dropout_stands_before_the_second_convolution_and_in_training_only():
    model = WideResNet(1, 2, options=WideResNetOptions(dropout=0.3)).double()
    block, seen = model.layer2[0], {}
    block.bn2.register_forward_hook(lambda module, args, output: seen.update(before=F.relu(output)))
    block.conv2.register_forward_hook(lambda module, args, output: seen.update(after=args[0]))
    x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    model.train()(x)
    active = seen["before"] > 0
    kept = seen["after"][active] != 0
    assert abs(kept.double().mean() - 0.7) < CHANCE_ERRORS * (0.21 / kept.numel()) ** 0.5
    torch.testing.assert_close(seen["after"][active][kept], seen["before"][active][kept] / 0.7, **CLOSE)
    model.eval()(x)
    assert torch.equal(seen["after"], seen["before"])


def test_grey_images_and_pooled_features():
    model = create_model("preresnet164", gate="eca", in_channels=1, num_classes=0).eval()
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 256)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "preresnet110", "stride_in": "1x1"}, "needs a bottleneck, as in preresnet164"),
        ({"name": "preresnet164", "first_shortcut": "raw"}, "as in preresnet110"),
        ({"name": "preresnet110", "shortcut": "C"}, "shortcut 'C'"),
        ({"name": "preresnet110", "first_shortcut": "activate"}, "did you mean 'activated'"),
        ({"name": "preresnet164", "stride_in": "2x2"}, "stride_in '2x2'"),
        ({"name": "preresnet110", "impl": "fused"}, "leave impl='auto'"),
        ({"name": "preresnet110", "impl": "fuse"}, "did you mean 'fused'"),
        ({"name": "preresnet110", "stages": (4,)}, "layer1 to layer3"),
        ({"name": "wrn16_8", "dropout": 1.5}, "dropout=1.5"),
        ({"name": "wrn16_8", "shortcut": "A"}, "option of model 'wrn16_8' 'shortcut'"),
        ({"name": "wrn16-8"}, "did you mean 'wrn16_8'"),
    ],
)
def test_mistakes_are_named_with_the_way_out(kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model(**kwargs)


def test_empty_stages_are_refused():
    with pytest.raises(UserError, match="depth=0"):
        basic(0)
    with pytest.raises(UserError, match="widen=0"):
        WideResNet(2, 0)
