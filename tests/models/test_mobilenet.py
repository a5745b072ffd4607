"""MobileNet v1 and V2: parity with torchvision, timm, pytorchcv and forward passes written from the papers; counts."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from model_cases import load_in_order, norm, randomise, randomise_by_data, squeeze_excite
from pytorchcv.models.mobilenet import mobilenet_w1
from pytorchcv.models.mobilenetv2 import mobilenetv2b_w1
from torch import nn

from excite.cost import ECA_COUNTER, SENET, count_cost
from excite.errors import UserError
from excite.gates import SEConfig
from excite.models import PLACEMENTS, create_model, gate_parameters
from excite.models.base import GatedBlock, GatePlan
from excite.models.mobilenetv2 import InvertedResidual, MobileNetV2
from tolerances import PARITY

CLOSE = PARITY[torch.float64]


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return create_model(name, **kwargs)


def count(model):
    return sum(p.numel() for p in model.parameters())


def images(n=2, size=64):
    return torch.randn(n, 3, size, size, dtype=torch.float64)


def trained(model, seed=0):
    return randomise_by_data(model.double(), images(4), seed)


def cost(model, convention):
    return count_cost(model, torch.empty(1, 3, 224, 224, device="meta"), convention=convention).total.macs


def check_same_training(ours, theirs, x):
    """Outputs, all gradients and all statistics of a training step; parameters in the same order."""
    x_theirs = x.clone().requires_grad_()
    y, y_theirs = ours(x.requires_grad_()), theirs(x_theirs)
    torch.testing.assert_close(y, y_theirs, **CLOSE)
    y.square().sum().backward()
    y_theirs.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad.reshape(mine.shape), **CLOSE)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


def any_size(model):
    """pytorchcv's networks end in a 7x7 pool; averaged over the whole map they take images of any size."""
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return model


# --- parity with torchvision, timm and pytorchcv ---


def test_v2_state_dict_has_torchvisions_keys_shapes_and_order():
    with torch.device("meta"):
        theirs = torchvision.models.mobilenet_v2().state_dict()
    ours = on_meta("mobilenetv2").state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


def test_v2_trains_as_torchvisions():
    theirs = trained(torchvision.models.mobilenet_v2(num_classes=10, dropout=0.0)).train()
    ours = create_model("mobilenetv2", num_classes=10, dropout=0.0).double().train()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    check_same_training(ours, theirs, images())


def test_v2_equals_torchvisions_and_moving_a_stride_shows():
    theirs = trained(torchvision.models.mobilenet_v2(num_classes=10)).eval()
    ours = create_model("mobilenetv2", num_classes=10).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(1, 66)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, **CLOSE)
    for end, features in zip((4, 7, 14, 19), ours.forward_pyramid(x).values(), strict=True):
        torch.testing.assert_close(features, theirs.features[:end](x), **CLOSE)
    widen, depthwise, *_ = ours.features[4].conv
    widen[0].stride, depthwise[0].stride = (2, 2), (1, 1)
    assert not torch.allclose(ours(x), expected, rtol=1e-2)


def test_v2_equals_timms_and_pytorchcvs():
    ours = create_model("mobilenetv2", num_classes=10).double().eval()
    x = images(1)
    theirs = trained(timm.create_model("mobilenetv2_100", num_classes=10)).eval()
    load_in_order(ours, theirs)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)
    theirs = trained(any_size(mobilenetv2b_w1(num_classes=10)), seed=1).eval()
    load_in_order(ours, theirs, missing=("classifier.1.bias",))
    nn.init.zeros_(ours.classifier[1].bias)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


class EcaLayer(nn.Module):
    def __init__(self, kernel_size):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, u):
        return u * torch.sigmoid(self.conv(u.mean((2, 3))[:, None])).transpose(1, 2)[..., None]


def test_v2_with_eca_is_the_authors_structure():
    """Their blocks are torchvision's with ECA as one more layer of the branch; k is 1 below 96 channels, else 3."""
    theirs = torchvision.models.mobilenet_v2(num_classes=10)
    for block in theirs.features[1:18]:
        block.conv.append(EcaLayer(3 if block.out_channels >= 96 else 1))
    theirs = trained(theirs).eval()
    ours = create_model("mobilenetv2", gate="eca(kernel_size=released:mobilenetv2)", num_classes=10).double().eval()
    load_in_order(ours, theirs)
    x = images(1)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


@pytest.mark.parametrize(("activation", "training"), [("relu", True), ("relu6", False)])
def test_v1_equals_pytorchcvs_and_timms(activation, training):
    theirs = any_size(mobilenet_w1(num_classes=10)) if activation == "relu" else None
    theirs = theirs or timm.create_model("mobilenetv1_100", num_classes=10)
    theirs = trained(theirs).train(training)
    ours = create_model("mobilenetv1", num_classes=10, activation=activation).double().train(training)
    load_in_order(ours, theirs)
    check_same_training(ours, theirs, images())


def test_v1_pyramid_is_timms():
    theirs = trained(timm.create_model("mobilenetv1_100", num_classes=0)).eval()
    ours = create_model("mobilenetv1", num_classes=0, activation="relu6").double().eval()
    load_in_order(ours, theirs)
    expected = []
    for block in theirs.blocks[1:]:
        block.register_forward_hook(lambda module, args, output: expected.append(output))
    x = images(1, 66)
    theirs(x)
    maps = ours.forward_pyramid(x)
    for features, other in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(features, other, **CLOSE)
    # The option shows: these maps reach 6.
    relu = create_model("mobilenetv1", num_classes=0).double().eval()
    relu.load_state_dict(ours.state_dict())
    assert not torch.allclose(relu.forward_pyramid(x)[32], maps[32], rtol=1e-2)


# --- gates where the papers have them ---


def block_states(state, prefixes):
    for prefix in prefixes:
        yield {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def gate_of(p):
    return (lambda u: squeeze_excite(p, u)) if "gate.fc1.weight" in p else (lambda u: u)


def forward_v2(state, x, placement):
    x = F.relu6(norm(state, "features.0.1", F.conv2d(x, state["features.0.0.weight"], stride=2, padding=1)))
    for i, p in enumerate(block_states(state, [f"features.{j}." for j in range(1, 18)]), start=1):
        gate, shortcut, y, last = gate_of(p), x, x, 1
        if placement == "pre":
            y = gate(y)
        if i > 1:
            y = F.relu6(norm(p, "conv.0.1", F.conv2d(y, p["conv.0.0.weight"])))
            last = 2
        depthwise = p[f"conv.{last - 1}.0.weight"]
        stride = 2 if i in (2, 4, 7, 14) else 1
        y = F.conv2d(y, depthwise, stride=stride, padding=1, groups=depthwise.shape[0])
        y = F.relu6(norm(p, f"conv.{last - 1}.1", y))
        if placement == "inner":
            y = gate(y)
        y = norm(p, f"conv.{last + 1}", F.conv2d(y, p[f"conv.{last}.weight"]))
        if placement == "standard":
            y = gate(y)
        if stride == 1 and y.shape[1] == shortcut.shape[1]:
            y = y + (gate(shortcut) if placement == "identity" else shortcut)
        x = gate(y) if placement == "post" else y
    x = F.relu6(norm(state, "features.18.1", F.conv2d(x, state["features.18.0.weight"])))
    return F.linear(x.mean((2, 3)), state["classifier.1.weight"], state["classifier.1.bias"])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_v2_placements(placement):
    model = create_model("mobilenetv2", gate="se(reduction=8)", placement=placement, num_classes=5)
    model = trained(model).eval()
    x = images(1, 66)
    torch.testing.assert_close(model(x), forward_v2(model.state_dict(), x, placement), **CLOSE)


def forward_v1(state, x):
    x = F.relu(norm(state, "bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=1)))
    units = [f"layer{stage}.{i}." for stage, depth in ((1, 3), (2, 2), (3, 6), (4, 2)) for i in range(depth)]
    for i, p in enumerate(block_states(state, units)):
        stride = 2 if i in (1, 3, 5, 11) else 1
        x = F.conv2d(x, p["conv1.weight"], stride=stride, padding=1, groups=x.shape[1])
        x = F.relu(norm(p, "bn1", x))
        x = gate_of(p)(F.relu(norm(p, "bn2", F.conv2d(x, p["conv2.weight"]))))
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("stages", [None, (2, 4)])
def test_v1_gates_follow_the_pointwise_activation(stages):
    model = trained(create_model("se_mobilenetv1", stages=stages, num_classes=5)).eval()
    gated = {key.split(".")[0] for key in model.state_dict() if ".gate." in key}
    assert gated == {f"layer{i}" for i in stages or (1, 2, 3, 4)}
    x = images(1, 66)
    torch.testing.assert_close(model(x), forward_v1(model.state_dict(), x), **CLOSE)


@pytest.mark.parametrize(("placement", "numbers"), [("standard", (3, 3, 7, 4)), ("identity", (1, 2, 5, 2))])
def test_v2_gates_by_stage(placement, numbers):
    """``identity`` has a place only where there is a shortcut."""
    for stage, number in enumerate(numbers, start=1):
        model = on_meta("mobilenetv2", gate="eca(kernel_size=3)", placement=placement, stages=(stage,))
        assert len(gate_parameters(model)) == number
    ends = [0, 3, 6, 13, 17]
    gated = {key.split(".")[1] for key in on_meta("se_mobilenetv2", stages=(3,)).state_dict() if ".gate." in key}
    assert gated == {str(i) for i in range(ends[2] + 1, ends[3] + 1)}


@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2"])
def test_gated_network_adds_only_gate_keys(name):
    plain, gated = on_meta(name), on_meta(f"se_{name}")
    assert [k for k in gated.state_dict() if ".gate." not in k] == list(plain.state_dict())
    assert count(gated) - count(plain) == sum(p.numel() for p in gate_parameters(gated)) > 0


# --- counts that the papers print ---


@pytest.mark.parametrize(
    ("name", "gate", "parameters"),
    [
        ("mobilenetv1", "none", 4_231_976),
        ("mobilenetv1", "se(bias=false)", 4_711_720),
        ("mobilenetv1", "se", 4_718_044),
        ("mobilenetv2", "none", 3_504_872),
        ("mobilenetv2", "se(reduction=8,bias=false)", 3_561_800),
        ("mobilenetv2", "eca(kernel_size=released:mobilenetv2)", 3_504_872 + 10 * 1 + 7 * 3),
    ],
)
def test_parameter_counts(name, gate, parameters):
    assert count(on_meta(name, gate=gate)) == parameters


@pytest.mark.parametrize(("gate", "parameters", "macs"), [("none", 4.2, 569), ("se", 4.7, 572)])
def test_v1_is_the_se_papers(gate, parameters, macs):
    """Its Table 3. Counted as its ResNets are, pool and rescaling both, SE would make 574.7 million."""
    model = on_meta("mobilenetv1", gate=gate)
    assert round(count(model) / 1e6, 1) == parameters
    assert round(cost(model, SENET) / 1e6) == macs


@pytest.mark.parametrize(
    ("gate", "printed"),
    [("none", 3.34), ("se(reduction=8,bias=false)", 3.40), ("se(reduction=8)", 3.40), ("eca", 3.34)],
)
def test_v2_is_the_eca_papers(gate, printed):
    """Its Table 3, in units of 2^20."""
    assert round(count(on_meta("mobilenetv2", gate=gate)) / 2**20, 2) == printed


def test_v2_multiply_adds_are_the_eca_papers():
    """319.4 in units of 2^20, by an old counter."""
    assert round(cost(on_meta("mobilenetv2"), ECA_COUNTER) / ECA_COUNTER.mega, 1) == 319.4


# --- heads, initialisation, formats ---


@pytest.mark.parametrize(("name", "channels"), [("mobilenetv1", 1024), ("mobilenetv2", 1280)])
def test_features_and_classifier(name, channels):
    model = create_model(name, num_classes=7, in_channels=2).eval()
    x = torch.randn(2, 2, 64, 70)
    features = model.forward_features(x)
    assert features.shape == (2, channels, 2, 3)
    maps = model.forward_pyramid(x)
    assert {stride: m.shape[1] for stride, m in maps.items()} == model.pyramid_channels
    assert list(maps) == [4, 8, 16, 32] and torch.equal(maps[32], features)
    assert torch.equal(model.forward_head(features), model(x)) and model(x).shape == (2, 7)
    model.double().reset_classifier(4)
    assert model(x.double()).shape == (2, 4) and model.num_classes == 4
    model.reset_classifier(0)
    assert torch.equal(model.train().forward_head(features.double()), features.double().mean((2, 3)))
    assert model.state_dict().keys() == on_meta(name, num_classes=0).state_dict().keys()
    with pytest.raises(UserError, match="num_classes=-1"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2", "shufflenetv1"])
def test_the_signal_reaches_the_end_of_a_fresh_network(name):
    """Also before its norms have seen data. Depthwise weights by torch's fan-out would leave 1e-12 of it or less."""
    model = create_model(name, num_classes=10).eval()
    y = model(torch.randn(4, 3, 64, 64)) - model(torch.zeros(1, 3, 64, 64))
    assert 1e-4 < y.std() < 1e2
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels:
            assert module.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.25)


def test_v2_dropout_before_the_classifier():
    model = create_model("mobilenetv2", num_classes=3, dropout=0.9).train()
    features = torch.rand(4, 1280, 2, 2)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    model.reset_classifier(5)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    assert torch.equal(model.eval().forward_head(features), model.forward_head(features))


def test_v2_zero_init_starts_blocks_with_a_shortcut_as_it():
    model = create_model("mobilenetv2", zero_init_last_norm=True, num_classes=3).eval()
    for block in model.features[1:18]:
        zero = not block.last_norm.weight.any()
        assert zero == block.has_shortcut
    x = torch.randn(2, 24, 9, 9)
    assert torch.equal(model.features[3](x), x)
    assert create_model("mobilenetv2", num_classes=3).features[3].last_norm.weight.all()


def test_v2_fused_tail_trains_as_the_reference():
    plan = GatePlan(SEConfig(reduction=4), "standard", None, 4)
    for in_channels, stride in ((8, 1), (4, 1), (8, 2)):
        reference = randomise(
            InvertedResidual(in_channels, 8, stride, 6, plan=plan, stage=1, impl="reference")
        ).double()
        fused = copy.deepcopy(reference)
        fused.impl = "fused"
        check_same_training(fused, reference, torch.randn(3, in_channels, 7, 6, dtype=torch.float64))


@pytest.mark.parametrize("placement", ["standard", "identity"])
def test_blocks_compile_whole(placement):
    plan = GatePlan(SEConfig(reduction=4), placement, None, 4)
    block = randomise(InvertedResidual(8, 8, 1, 6, plan=plan, stage=1, impl="auto")).double()
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    expected = block(x)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, **CLOSE)


@pytest.mark.parametrize("name", ["mobilenetv1", "mobilenetv2"])
def test_channels_last_changes_nothing_but_the_layout(name):
    reference = trained(create_model(f"se_{name}", num_classes=3)).eval()
    model = copy.deepcopy(reference).to(memory_format=torch.channels_last)
    x = images()
    features = model.forward_features(x.to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.forward_head(features), reference(x), **CLOSE)


def test_every_gated_block_knows_its_place():
    model = on_meta("se_mobilenetv2")
    assert isinstance(model, MobileNetV2)
    blocks = [m for m in model.modules() if isinstance(m, GatedBlock)]
    assert len(blocks) == 17 and all(list(dict(b.named_children()))[-1] == "gate" for b in blocks)


# --- mistakes ---


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "mobilenet"}, "did you mean 'mobilenetv"),
        ({"name": "mobilenetv1", "placement": "post"}, "placement='post' has no meaning in this network"),
        ({"name": "mobilenetv1", "placement": "standart"}, "did you mean 'standard'"),
        ({"name": "mobilenetv1", "stages": (5,)}, "layer1 to layer4"),
        ({"name": "mobilenetv2", "stages": (5,)}, "strides 4, 8, 16 and 32"),
        ({"name": "mobilenetv1", "activation": "relu66"}, "did you mean 'relu6'"),
        ({"name": "mobilenetv2", "dropout": 1.0}, "dropout=1.0"),
        ({"name": "mobilenetv2", "drop": 0.1}, "did you mean 'dropout'"),
        ({"name": "mobilenetv2", "variant": "official"}, "has no variants"),
        ({"name": "mobilenetv2", "gate": "eca(kernel_size=released:mobilenetv2)", "placement": "inner"}, "not for 144"),
        ({"name": "se_mobilenetv2", "gate": "eca"}, "name 'mobilenetv2' instead"),
        ({"name": "mobilenetv1", "impl": "fusd"}, "did you mean 'fused'"),
    ],
)
def test_mistakes_are_named_with_the_way_out(kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model(**kwargs)
