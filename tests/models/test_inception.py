"""BN-Inception, Inception-v3 and -ResNet-v2: parity with pytorchcv, torchvision and timm; where gates stand; counts."""

from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from model_cases import randomise, squeeze_excite
from pytorchcv.models.bninception import bninception
from torch import nn

from excite.cost import SENET, count_cost
from excite.errors import UserError
from excite.gates import SEConfig
from excite.models import MODELS, PLACEMENTS, create_model, gate_parameters
from excite.models.base import GatePlan, gate_modules
from excite.models.inception import Branch, Conv, InceptionNetwork, InceptionUnit, ResidualInceptionUnit
from excite.models.inception_resnet_v2 import InceptionResNetV2
from tolerances import PARITY, PEER_SCALED, PRINTED_MACS

CLOSE = PARITY[torch.float64]
NAMES = ["bn_inception", "inception_v3", "inception_resnet_v2"]


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return create_model(name, **kwargs)


def count(model):
    return sum(p.numel() for p in model.parameters())


def plan(gate=None, placement="standard", stages=None):
    return GatePlan(gate, placement, stages, 3)


def load_renamed(ours, theirs, rename):
    """Every tensor of theirs into ours, by the names that ``rename`` gives ours."""
    source = theirs.state_dict()
    state = {key: source.pop(rename(key)) for key in ours.state_dict()}
    assert not source
    ours.load_state_dict(state, strict=True)


def assert_same_outputs_and_input_gradients(ours, theirs, x):
    x_theirs = x.clone().requires_grad_()
    x.requires_grad_()
    y, expected = ours(x), theirs(x_theirs)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)


# --- BN-Inception ---


def pytorchcv_key(key):
    """Branches of a unit are numbered from 1; one convolution has no number, of several each has."""
    name, _, rest = key.partition(".")
    if name == "fc":
        return f"output.{rest}"
    if not name.startswith("layer"):
        stem = {"conv1": "conv1", "conv2": "conv2.conv1", "conv3": "conv2.conv2"}
        return f"features.init_block.{stem[name]}.{rest}"
    unit, branch, rest = rest.split(".", 2)
    i, j = map(int, branch.removeprefix("branch").split("_"))
    halving = name != "layer1" and unit == "0"
    conv = f"conv{j + 1}." if halving or i in (1, 2) else "conv." if i == 3 else ""
    return f"features.stage{name[-1]}.unit{int(unit) + 1}.branches.branch{i + 1}.{conv}{rest}"


@pytest.mark.parametrize("training", [False, True])
def test_bn_inception_equals_pytorchcvs(training):
    theirs = bninception(num_classes=10)
    theirs.features.final_pool = nn.AdaptiveAvgPool2d(1)  # made for maps of 7 x 7 alone
    theirs = randomise(theirs).double().train(training)
    ours = create_model("bn_inception", conv_bias=True, num_classes=10).double().train(training)
    load_renamed(ours, theirs, pytorchcv_key)
    assert_same_outputs_and_input_gradients(ours, theirs, torch.randn(2, 3, 64, 96, dtype=torch.float64))


def test_se_bn_inception_has_the_parameters_of_the_authors_file():
    """11,911,590 in its convolutions, classifier and gates; a scale and a shift for each of 10,016 normed channels."""
    assert count(on_meta("se_bn_inception")) == 11_911_590 + 2 * 10_016
    assert count(on_meta("bn_inception", conv_bias=True)) == 11_295_240
    assert list(gate.channels for gate in gate_modules(on_meta("se_bn_inception")).values()) == [
        256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024,
    ]  # fmt: skip


@pytest.mark.parametrize("size", [(48, 64), (64, 80), (65, 65)])
def test_bn_inception_refuses_what_it_cannot_halve(size):
    with pytest.raises(UserError, match=f"multiples of 32; got {size[0]} x {size[1]}"):
        create_model("bn_inception").forward_features(torch.randn(1, 3, *size))


# --- Inception-v3 ---


@pytest.fixture(scope="module")
def v3_pair():
    """Ours and torchvision's, the same weights, in eval mode."""
    torch.manual_seed(0)
    theirs = (
        randomise(torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=10)).double().eval()
    )
    ours = create_model("inception_v3", aux_head=True, num_classes=10).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("aux_head", [False, True])
def test_inception_v3_has_torchvisions_keys_shapes_and_order(aux_head):
    with torch.device("meta"):
        theirs = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=aux_head)
    ours = on_meta("inception_v3", aux_head=aux_head)
    expected = [(k, v.shape) for k, v in theirs.state_dict().items()]
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == expected
    assert count(ours) == (27_161_264 if aux_head else 23_834_568)


@pytest.mark.parametrize("transform_input", [False, True])
def test_inception_v3_equals_torchvisions(v3_pair, transform_input):
    ours, theirs = v3_pair
    ours.transform_input = theirs.transform_input = transform_input
    assert_same_outputs_and_input_gradients(ours, theirs, torch.randn(1, 3, 107, 91, dtype=torch.float64))


def test_auxiliary_head_equals_torchvisions(v3_pair):
    ours, theirs = v3_pair
    maps = torch.randn(2, 768, 17, 18, dtype=torch.float64)
    torch.testing.assert_close(ours.AuxLogits(maps), theirs.AuxLogits(maps), **CLOSE)


def test_average_pools_may_leave_out_the_zeros_around_the_map(v3_pair, monkeypatch):
    _, theirs = v3_pair
    ours = create_model("inception_v3", aux_head=True, count_include_pad=False, num_classes=10).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 75, 75, dtype=torch.float64)
    theirs.transform_input = False
    assert not torch.allclose(ours(x), theirs(x), rtol=1e-3)
    functions = SimpleNamespace(**vars(F))
    functions.avg_pool2d = partial(F.avg_pool2d, count_include_pad=False)
    monkeypatch.setattr(torchvision.models.inception, "F", functions)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


def test_inception_v3_equals_timms():
    theirs = randomise(timm.create_model("inception_v3", num_classes=10)).eval()
    ours = create_model("inception_v3", num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 91, 75)
    with torch.no_grad():
        y, expected = ours(x), theirs(x)
    assert (y - expected).abs().max() <= PEER_SCALED[torch.float32] * expected.abs().max()


def test_auxiliary_logits_come_on_request():
    model = on_meta("inception_v3", aux_head=True, num_classes=7)
    x = torch.empty(2, 3, 299, 299, device="meta")
    assert [y.shape for y in model.forward_with_aux(x)] == [(2, 7), (2, 7)]
    assert model(x).shape == (2, 7)
    model.reset_classifier(3)
    assert [y.shape for y in model.forward_with_aux(x)] == [(2, 3), (2, 3)]
    model.reset_classifier(0)
    assert [y.shape for y in model.forward_with_aux(x)] == [(2, 2048), (2, 768)]
    with pytest.raises(UserError, match="aux_head=True"):
        on_meta("inception_v3").forward_with_aux(x)


# --- Inception-ResNet-v2 ---


def timm_key(source, depths):
    """Ours -> timm's: there, a branch of one convolution is that convolution, and the last unit stands alone."""
    stems = {"conv1": "1a", "conv2": "2a", "conv3": "2b", "conv4": "3b", "conv5": "4a", "conv6": "7b"}

    def rename(key):
        name, _, rest = key.partition(".")
        if name == "fc":
            return f"classif.{rest}"
        if name in stems:
            return f"conv2d_{stems[name]}.{rest}"
        stage = int(name.removeprefix("layer"))
        unit, rest = rest.split(".", 1)
        if unit == "0":
            prefix = ("mixed_5b", "mixed_6a", "mixed_7a")[stage - 1]
        elif stage == 3 and int(unit) == depths[2]:
            prefix = "block8"
        else:
            prefix = f"{('repeat', 'repeat_1', 'repeat_2')[stage - 1]}.{int(unit) - 1}"
        rest = rest.removeprefix("branches.")
        if rest.startswith("project."):
            return f"{prefix}.conv2d.{rest.removeprefix('project.')}"
        branch, rest = rest.split(".", 1)
        i, j = branch.removeprefix("branch").split("_")
        after_pool = prefix == "mixed_5b" and i == "3"
        candidates = (f"{prefix}.branch{i}.{int(j) + after_pool}.{rest}", f"{prefix}.branch{i}.{rest}")
        return next(name for name in candidates if name in source)

    return rename


def test_inception_resnet_v2_equals_timms():
    """With fewer units of each kind: all of one stage are alike, but for the last of all."""
    depths = (2, 1, 2)
    with torch.device("meta"):
        theirs = timm.create_model("inception_resnet_v2", num_classes=10)
    theirs.repeat, theirs.repeat_1, theirs.repeat_2 = theirs.repeat[:2], theirs.repeat_1[:1], theirs.repeat_2[:1]
    theirs = theirs.to_empty(device="cpu")
    for p in theirs.parameters():
        nn.init.normal_(p, std=(2 / max(p[0].numel(), 2)) ** 0.5)
    theirs = randomise(theirs).double().eval()
    ours = InceptionResNetV2(depths, num_classes=10).double().eval()
    load_renamed(ours, theirs, timm_key(theirs.state_dict(), depths))
    assert_same_outputs_and_input_gradients(ours, theirs, torch.randn(1, 3, 91, 107, dtype=torch.float64))


def test_inception_resnet_v2_has_timms_layers():
    with torch.device("meta"):
        theirs = timm.create_model("inception_resnet_v2").state_dict()
    ours = on_meta("inception_resnet_v2").state_dict()
    rename = timm_key(theirs, (10, 20, 10))
    assert {rename(key): value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert len(ours) == len(theirs)


BRANCHES = (Branch((Conv(3),)), Branch((Conv(4), Conv(5, (1, 3)))))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("activate", [True, False])
def test_placements_in_a_residual_unit(placement, activate):
    gates = plan(SEConfig(reduction=2), placement)
    unit = ResidualInceptionUnit(6, BRANCHES, scale=0.3, activate=activate, eps=1e-3, plan=gates, stage=1)
    unit = randomise(unit).double().eval()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)

    def gate(at, u):
        return squeeze_excite(unit.state_dict(), u) if at == placement else u

    branch = unit.project(gate("inner", unit.branches(gate("pre", x))))
    y = gate("identity", x) + 0.3 * gate("standard", branch)
    expected = gate("post", F.relu(y) if activate else y)
    torch.testing.assert_close(unit(x), expected, **CLOSE)
    assert unit.gate.channels == (8 if placement == "inner" else 6)


def test_scale_belongs_to_the_addition():
    """A gate behind it would see other descriptors, so the two orders differ."""
    unit = ResidualInceptionUnit(6, BRANCHES, scale=0.1, eps=1e-3, plan=plan(SEConfig(reduction=2)), stage=1)
    unit = randomise(unit).double().eval()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    behind = F.relu(x + unit.gate(0.1 * unit.project(unit.branches(x))))
    assert not torch.allclose(unit(x), behind, rtol=1e-4)


# --- all three ---


def test_gate_of_a_unit_takes_its_concatenation():
    unit = randomise(InceptionUnit(6, BRANCHES, eps=1e-3, plan=plan(SEConfig(reduction=2)), stage=1)).double().eval()
    plain = InceptionUnit(6, BRANCHES, eps=1e-3).double().eval()
    plain.load_state_dict({k: v for k, v in unit.state_dict().items() if not k.startswith("gate.")}, strict=True)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(unit(x), squeeze_excite(unit.state_dict(), plain(x)), **CLOSE)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("bn_inception", (2, 5, 3)), ("inception_v3", (3, 5, 3)), ("inception_resnet_v2", (10, 20, 10))],
)
def test_stages_are_resolutions(name, counts):
    for stage, expected in enumerate(counts, start=1):
        model = on_meta(name, gate="se", stages=(stage,))
        assert [model.stage_of(gate) for gate in gate_modules(model)] == [stage] * expected
    assert [key for key in on_meta(name, gate="se").state_dict() if ".gate." not in key] == list(
        on_meta(name).state_dict()
    )
    assert not gate_parameters(on_meta(name))
    assert {model.stage_of(part) for part in ("", "fc", "conv1", "Conv2d_1a_3x3", "AuxLogits.fc")} == {None}


@pytest.mark.parametrize("name", NAMES)
def test_pyramid(name):
    size = MODELS[name].image_size
    model = on_meta(name, gate="eca")
    x = torch.empty(2, 3, size, size, device="meta")
    sides = {4: 56, 8: 28, 16: 14, 32: 7} if size == 224 else {4: 71, 8: 35, 16: 17, 32: 8}
    maps = model.forward_pyramid(x)
    assert {stride: y.shape for stride, y in maps.items()} == {
        stride: (2, channels, sides[stride], sides[stride]) for stride, channels in model.pyramid_channels.items()
    }
    assert list(maps) == [4, 8, 16, 32] and model.num_features == model.pyramid_channels[32]


def test_pyramid_ends_in_the_features():
    model = create_model("bn_inception", gate="se", num_classes=5, in_channels=1).eval()
    x = torch.randn(2, 1, 32, 64)
    features = model.forward_features(x)
    assert torch.equal(model.forward_pyramid(x)[32], features)
    assert torch.equal(model.forward_head(features), model(x)) and model(x).shape == (2, 5)
    model.double().reset_classifier(3)
    assert model(x.double()).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x.double()).shape == (2, 1024)


def test_dropout_is_in_training_alone_and_before_the_classifier():
    model = InceptionNetwork({32: 64}, {}, in_channels=3, impl="auto", dropout=0.5)
    model.reset_classifier(0)
    features = torch.ones(4, 64, 2, 2)
    assert set(model.forward_head(features).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval().forward_head(features), torch.ones(4, 64))
    defaults = {"bn_inception": 0.0, "inception_v3": 0.5, "inception_resnet_v2": 0.2}
    assert {name: on_meta(name).dropout.p for name in NAMES} == defaults
    assert {on_meta(name, dropout=0.25).dropout.p for name in NAMES[1:]} == {0.25}


@pytest.mark.parametrize(
    ("name", "size", "plain", "se"),
    [
        ("bn_inception", 224, 2.03, 2.04),
        # Printed for 299, where both count 12 % more: see the head of inception_resnet_v2.py.
        ("inception_resnet_v2", 298, 11.75, 11.76),
    ],
)
def test_multiply_adds_are_the_se_papers(name, size, plain, se):
    """arXiv 1709.01507, Table 2."""
    cost = count_cost(on_meta(name, gate="se"), torch.empty(1, 3, size, size, device="meta"), convention=SENET)
    assert cost.total.macs / 1e9 == pytest.approx(se, rel=PRINTED_MACS)
    assert (cost.total.macs - cost.gates.macs) / 1e9 == pytest.approx(plain, rel=PRINTED_MACS)
    assert not cost.uncounted


def test_multiply_adds_of_inception_resnet_v2_at_its_own_size():
    model = on_meta("inception_resnet_v2", gate="se")
    cost = count_cost(model, torch.empty(1, 3, 299, 299, device="meta"), convention=SENET)
    assert round(cost.total.macs / 1e9, 2) == 13.19
    assert round((cost.total.macs - cost.gates.macs) / 1e9, 2) == 13.17


def test_units_compile_whole_and_keep_the_layout():
    first = InceptionUnit(6, BRANCHES, eps=1e-3, plan=plan(SEConfig(reduction=2)), stage=1)
    second = ResidualInceptionUnit(8, BRANCHES, scale=0.3, eps=1e-3, plan=plan(SEConfig(reduction=2)), stage=1)
    model = randomise(nn.Sequential(first, second)).double().eval()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected, **CLOSE)
    y = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("bn_inception", {"placement": "identity"}, "has no meaning in this network; it has standard"),
        ("inception_v3", {"placement": "inner"}, "has no meaning in this network; it has standard"),
        ("inception_v3", {"stages": (4,)}, r"1, 2, 3 \(Mixed_5b to 5d, 6a to 6e, 7a to 7c\)"),
        ("inception_resnet_v2", {"stages": (4,)}, "layer1 to layer3"),
        ("inception_resnet_v2", {"placement": "inside"}, "placement 'inside'"),
        ("inception_v3", {"transform_input": True, "in_channels": 1}, "in_channels=1"),
        ("inception_v3", {"dropout": 1.5}, "dropout=1.5"),
        ("inception_resnet_v2", {"dropout": -0.1}, "dropout=-0.1"),
        ("bn_inception", {"conv_biases": True}, "did you mean 'conv_bias'"),
        ("bn_inception", {"variant": "official"}, "has no variants"),
        ("inception_resnet_v2", {"impl": "fusd"}, "did you mean 'fused'"),
    ],
)
def test_mistakes_are_named_with_the_way_out(name, kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model(name, **kwargs)


def test_a_stage_needs_a_residual_unit():
    with torch.device("meta"), pytest.raises(UserError, match="at least 1 residual unit"):
        InceptionResNetV2((1, 0, 1))
