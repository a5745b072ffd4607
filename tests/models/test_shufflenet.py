"""ShuffleNet v1: parity with pytorchcv and a forward pass written from the paper; published counts."""

import copy

import pytest
import pytorchcv.models.shufflenet as peers
import torch
import torch.nn.functional as F
from model_cases import load_in_order, norm, randomise, randomise_by_data, squeeze_excite
from torch import nn

from excite.cost import SENET, Convention, count_cost
from excite.errors import UserError
from excite.gates import SEConfig
from excite.models import PLACEMENTS, create_model, gate_parameters
from excite.models.base import GatePlan
from excite.models.shufflenet import ShuffleUnit
from tolerances import PARITY

CLOSE = PARITY[torch.float64]
GROUPS = [1, 2, 3, 4, 8]


def on_meta(**kwargs):
    with torch.device("meta"):
        return create_model("shufflenetv1", **kwargs)


def count(model):
    return sum(p.numel() for p in model.parameters())


def images(n=2, size=64):
    return torch.randn(n, 3, size, size, dtype=torch.float64)


def trained(model, seed=0):
    return randomise_by_data(model.double(), images(4), seed)


def peer(groups, **kwargs):
    model = getattr(peers, f"shufflenet_g{groups}_w1")(**kwargs)
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # in place of 7x7, for images of any size
    return model


@pytest.mark.parametrize("training", [False, True])
def test_outputs_gradients_and_statistics_equal_pytorchcvs(training):
    theirs = trained(peer(3, num_classes=10)).train(training)
    ours = create_model("shufflenetv1", num_classes=10).double().train(training)
    load_in_order(ours, theirs)
    x = images(2, 66).requires_grad_()
    x_theirs = x.detach().clone().requires_grad_()
    y, expected = ours(x), theirs(x_theirs)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, **CLOSE)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


@pytest.mark.parametrize("groups", [1, 8])
def test_other_groups_equal_pytorchcvs(groups):
    theirs = trained(peer(groups, num_classes=5)).eval()
    ours = create_model("shufflenetv1", groups=groups, num_classes=5).double().eval()
    load_in_order(ours, theirs)
    x = images(1)
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


@pytest.mark.parametrize("groups", GROUPS)
def test_shapes_of_all_groups_are_pytorchcvs(groups):
    with torch.device("meta"):
        theirs = peer(groups)
    shapes = [v.shape for v in on_meta(groups=groups).state_dict().values()]
    assert shapes == [v.shape for v in theirs.state_dict().values()]


def test_moving_a_stride_or_the_shuffle_changes_the_output():
    model = trained(create_model("shufflenetv1", num_classes=5)).eval()
    x = images(1)
    expected = model(x)
    moved = copy.deepcopy(model)
    moved.layer2[0].conv1.stride, moved.layer2[0].conv2.stride = (2, 2), (1, 1)
    assert not torch.allclose(moved(x), expected, rtol=1e-2)
    moved = copy.deepcopy(model)
    moved.layer2[0].groups = 1
    assert not torch.allclose(moved(x), expected, rtol=1e-2)


def forward_shufflenet(state, x, placement, groups=3):
    """The paper's Fig. 2, with SE gates wherever the state dict has one."""
    x = F.relu(norm(state, "bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=1)))
    x = F.max_pool2d(x, 3, 2, 1)
    for unit in [f"layer{stage}.{i}." for stage, depth in ((1, 4), (2, 8), (3, 4)) for i in range(depth)]:
        p = {key.removeprefix(unit): value for key, value in state.items() if key.startswith(unit)}
        gate = (lambda u, p=p: squeeze_excite(p, u)) if "gate.fc1.weight" in p else (lambda u: u)
        strided = unit.endswith(".0.")
        shortcut = F.avg_pool2d(x, 3, 2, 1) if strided else x
        shortcut = gate(shortcut) if placement == "identity" else shortcut
        y = gate(x) if placement == "pre" else x
        y = F.conv2d(y, p["conv1.weight"], groups=1 if unit == "layer1.0." else groups)
        y = F.relu(norm(p, "bn1", y))
        width = y.shape[1]
        order = [row * (width // groups) + column for column in range(width // groups) for row in range(groups)]
        y = F.conv2d(y[:, order], p["conv2.weight"], stride=2 if strided else 1, padding=1, groups=width)
        y = norm(p, "bn2", y)
        y = gate(y) if placement == "inner" else y
        y = norm(p, "bn3", F.conv2d(y, p["conv3.weight"], groups=groups))
        y = gate(y) if placement == "standard" else y
        x = F.relu(torch.cat([y, shortcut], dim=1) if strided else y + shortcut)
        x = gate(x) if placement == "post" else x
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements(placement):
    model = trained(create_model("shufflenetv1", gate="se", placement=placement, num_classes=5)).eval()
    x = images(1, 66)
    torch.testing.assert_close(model(x), forward_shufflenet(model.state_dict(), x, placement), **CLOSE)


def test_a_gate_that_turns_signs_on_the_shortcut_of_a_strided_unit():
    """The ReLU after the concatenation takes both halves, which shows once the pooled half can be negative."""
    model = create_model("shufflenetv1", gate="se(gate_function=tanh)", placement="identity").double().eval()
    unit = randomise(model.layer2[0], seed=1)
    x = torch.rand(1, 240, 8, 8, dtype=torch.float64)
    assert unit.gate(unit.pool(x)).min() < 0 and unit(x).min() >= 0


def test_gates_by_stage():
    for stage, number in ((1, 4), (2, 8), (3, 4)):
        model = on_meta(gate="eca(kernel_size=3)", stages=(stage,))
        assert len(gate_parameters(model)) == number
        assert {key.split(".")[0] for key in model.state_dict() if ".gate." in key} == {f"layer{stage}"}


def test_gated_network_adds_only_gate_keys():
    plain, gated = on_meta(), on_meta(gate="se")
    assert [k for k in gated.state_dict() if ".gate." not in k] == list(plain.state_dict())
    assert count(gated) - count(plain) == sum(p.numel() for p in gate_parameters(gated)) > 0


# --- counts that the papers print ---


def counted(model, convention):
    cost = count_cost(model, torch.empty(1, 3, 224, 224, device="meta"), convention=convention)
    assert not cost.uncounted
    return cost


@pytest.mark.parametrize(("groups", "printed"), [(1, 143), (2, 140), (3, 137), (4, 133), (8, 137)])
def test_complexity_is_the_shufflenet_papers(groups, printed):
    """arXiv 1707.01083, Table 1, last row: the multiply-adds of the convolutions."""
    assert round(counted(on_meta(groups=groups), Convention("convolutions", {"conv": 1})).total.macs / 1e6) == printed


@pytest.mark.parametrize(
    ("gate", "parameters"), [("none", 1_865_728), ("se(bias=false)", 2_476_144), ("se", 2_484_533)]
)
def test_parameter_counts(gate, parameters):
    assert count(on_meta(gate=gate)) == parameters


@pytest.mark.parametrize(("gate", "parameters", "macs"), [("none", 1.8, 140), ("se", 2.4, 142)])
def test_is_the_se_papers(gate, parameters, macs):
    """Its Table 3. Rounded in millions they are 1.9 and 2.5; printed is what remains with the digits behind cut off.

    Multiply-adds come out with a 3x3 average pool counted as nine for each output, as for a convolution, and one walk
    over the map for a gate.
    """
    model = on_meta(gate=gate)
    assert int(count(model) / 1e5) / 10 == parameters
    cost = counted(model, SENET)
    pools = [op for op in cost.ops if op.op == "aten.avg_pool2d"]
    outputs = 28 * 28 * 24 + 14 * 14 * 240 + 7 * 7 * 480
    assert len(pools) == 3 and sum(op.bytes_written for op in pools) == 4 * outputs
    assert round((cost.total.macs - sum(op.operations for op in pools) + 9 * outputs) / 1e6) == macs


# --- heads, initialisation, formats ---


def test_features_and_classifier():
    model = create_model("shufflenetv1", num_classes=7, in_channels=1).eval()
    x = torch.randn(2, 1, 64, 70)
    features = model.forward_features(x)
    assert features.shape == (2, 960, 2, 3)
    maps = model.forward_pyramid(x)
    assert {stride: m.shape[1] for stride, m in maps.items()} == model.pyramid_channels
    assert list(maps) == [4, 8, 16, 32] and torch.equal(maps[32], features)
    assert torch.equal(maps[16], model.layer2(model.layer1(model.stem(x))))
    assert torch.equal(model.forward_head(features), model(x)) and model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert torch.equal(model(x), features.mean((2, 3)))


def test_zero_init_starts_only_units_that_add_as_their_shortcut():
    model = create_model("shufflenetv1", zero_init_last_norm=True, num_classes=3).eval()
    x = torch.rand(2, 240, 9, 9)
    assert torch.equal(model.layer1[1](x), x)
    # A strided unit's branch would otherwise stay 0 behind its ReLU for good.
    assert model.layer1[0].bn3.weight.all() and model.layer2[0].bn3.weight.all()


@pytest.mark.parametrize("stride", [1, 2])
def test_fused_tail_trains_as_the_reference(stride):
    plan = GatePlan(SEConfig(reduction=4), "standard", None, 3)
    out_channels = 12 if stride == 1 else 24
    make = ShuffleUnit(12, out_channels, stride, groups=3, first_groups=3, plan=plan, stage=1, impl="reference")
    reference = randomise(make).double()
    fused = copy.deepcopy(reference)
    fused.impl = "fused"
    x = torch.randn(3, 12, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(fused(x), reference(x), **CLOSE)
    for model in (fused, reference):
        model(x).square().sum().backward()
    for mine, other in zip(fused.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, **CLOSE)


@pytest.mark.parametrize("stride", [1, 2])
def test_units_compile_whole(stride):
    plan = GatePlan(SEConfig(reduction=4), "standard", None, 3)
    unit = ShuffleUnit(12, 12 * stride, stride, groups=3, first_groups=3, plan=plan, stage=1, impl="auto")
    unit = randomise(unit).double()
    x = torch.randn(2, 12, 7, 6, dtype=torch.float64)
    expected = unit(x)
    compiled = torch.compile(unit, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, **CLOSE)


def test_channels_last_changes_nothing_but_the_layout():
    reference = trained(create_model("se_shufflenetv1", num_classes=3)).eval()
    model = copy.deepcopy(reference).to(memory_format=torch.channels_last)
    x = images()
    features = model.forward_features(x.to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.forward_head(features), reference(x), **CLOSE)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"groups": 5}, "groups=5: ShuffleNet has 1, 2, 3, 4, 8"),
        ({"group": 3}, "did you mean 'groups'"),
        ({"stages": (4,)}, "layer1 to layer3"),
        ({"placement": "standart"}, "did you mean 'standard'"),
        ({"variant": "official"}, "has no variants"),
    ],
)
def test_mistakes_are_named_with_the_way_out(kwargs, message):
    with pytest.raises(UserError, match=message):
        on_meta(**kwargs)
