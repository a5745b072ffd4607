"""Cost: hand-counted layers, the papers' printed figures, and what must not be forgotten or disturbed."""

import copy
import json

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from excite.cost import ECA_COUNTER, SENET, SENET_ALL, Convention, Cost, Usage, count_cost
from excite.errors import UserError
from excite.gates import list_gates
from excite.models import MODELS, PLACEMENTS, create_model
from excite.models.base import gate_modules

IMAGE = torch.empty(1, 3, 224, 224, device="meta")


def cost_of(name, convention=SENET_ALL, **kwargs):
    with torch.device("meta"):
        return count_cost(create_model(name, **kwargs), IMAGE, convention=convention)


# --- the papers' figures ---


@pytest.mark.parametrize(
    ("name", "gmacs"), [("resnet50", 3.86), ("resnet101", 7.58), ("resnet152", 11.30), ("se_resnet50", 3.87)]
)
def test_se_papers_gmacs(name, gmacs):
    """SE paper, Table 2: strides in the first 1x1."""
    assert round(cost_of(name, SENET, variant="official").total.macs / 1e9, 2) == gmacs


@pytest.mark.parametrize(("name", "gmacs"), [("se_resnet101", 7.60), ("se_resnet152", 11.32)])
def test_se_papers_gmacs_of_the_other_gated_networks(name, gmacs):
    """A last digit over the count: 7.593 and 11.315."""
    assert cost_of(name, SENET, variant="official").total.macs / 1e9 == pytest.approx(gmacs, rel=3e-3)


def test_what_se_adds_to_resnet50():
    """0.35 % of the multiply-adds, 0.21 % without the rescaling, 0.065 % the layers alone; but a fifth of the bytes."""
    plain, gated = cost_of("resnet50", variant="official"), cost_of("se_resnet50", variant="official")
    added = gated.total.macs - plain.total.macs
    assert round(added / plain.total.macs, 4) == 0.0035
    rescaling = sum(op.operations for op in gated.ops if op.family == "multiply")
    assert round((added - rescaling) / plain.total.macs, 4) == 0.0021
    assert gated.total.macs - rescaling == cost_of("se_resnet50", SENET, variant="official").total.macs
    layers = sum(op.operations for op in gated.ops if op.family == "linear" and ".gate." in op.module)
    assert round(layers / plain.total.macs, 5) == 0.00065
    assert gated.total.parameters - plain.total.parameters == gated.gates.parameters == 2_530_992
    assert 0.2 < gated.gates.bytes_moved / plain.total.bytes_moved < 0.25


def test_another_convention():
    """The ECA paper's 3.86 G: its counter takes a layer twice, a norm's element four times, and means 2^30."""
    with torch.device("meta"):
        model = create_model("resnet50")
    cost = count_cost(model, IMAGE, convention=ECA_COUNTER)
    assert round(cost.total.macs / ECA_COUNTER.giga, 2) == 3.86
    assert cost.convention is ECA_COUNTER


# --- by hand ---


def test_convolutions_and_layers_by_hand():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5)
    )
    cost = count_cost(model, torch.randn(2, 4, 8, 8))
    conv, linear = 2 * (6 * 4 * 4) * (2 * 9), 2 * 96 * 5
    assert cost.total.macs == conv + linear
    assert cost.total.parameters == 6 * 2 * 9 + 6 + 12 + 96 * 5 + 5
    inside = 2 * 6 * 16 * 4  # bytes of the map between the modules
    assert cost.by_module["0"] == Usage(6 * 2 * 9 + 6, conv, 2 * 4 * 64 * 4, inside)
    assert cost.by_module["1"] == Usage(12, 0, inside, inside)
    assert cost.by_module["2"] == Usage(0, 0, inside, inside)
    assert cost.by_module["3"] == Usage()
    assert cost.by_module["4"] == Usage(485, linear, inside, 2 * 5 * 4)
    assert cost.total.bytes_moved == cost.total.bytes_read + cost.total.bytes_written


def test_a_gate_by_hand():
    """SE reads the map twice (pool, rescale) and writes it once; the rest is [N, C]."""
    n, c, p, r = 2, 32, 49, 2
    gate = create_model("resnet18", gate="se").layer1[0].gate.config.build(c)
    x = torch.randn(n, c, 7, 7)
    cost = count_cost(gate, x)
    assert cost.total == cost.gates
    assert cost.total.macs == n * c * p + 2 * n * c * r + n * c * p
    assert count_cost(gate, x, convention=SENET).total.macs == n * c * p + 2 * n * c * r
    small = n * 4 * (c + r + r + c + c)  # pool's result, fc1, relu, fc2, sigmoid: each written, and read by the next
    assert cost.total.bytes_written == n * c * p * 4 + small
    assert cost.total.bytes_read == 2 * n * c * p * 4 + small
    assert cost.uncounted == {}


@pytest.mark.parametrize("gate", list_gates())
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gates_alone_are_what_the_gated_network_adds(gate, placement):
    x = torch.empty(1, 3, 16, 16, device="meta")
    with torch.device("meta"):
        plain = count_cost(create_model("resnet20"), x)
        gated = count_cost(create_model("resnet20", gate=gate, placement=placement, stages=(2, 3)), x)
    assert gated.uncounted == plain.uncounted == {}
    assert plain.gates == Usage() and gated.gates.bytes_moved > 0
    assert plain.total + gated.gates == gated.total


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_the_count_is_of_the_definition_whatever_runs(impl):
    x = torch.randn(1, 3, 16, 16)
    cost = count_cost(create_model("se_resnet20", impl=impl), x)
    assert cost == count_cost(create_model("se_resnet20"), x)
    assert cost.uncounted == {}


def test_parts_add_up():
    cost = cost_of("se_resnet50")
    assert list(cost.by_stage) == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    assert sum(cost.by_stage.values(), Usage()) == cost.total == cost.by_module[""]
    assert cost.by_stage["stage3"] == cost.by_module["layer3"]
    assert cost.by_stage["stem"].parameters == 9408 + 128
    assert cost.by_stage["head"].parameters == 2048 * 1000 + 1000
    children = [f"layer2.{i}" for i in range(4)]
    assert sum((cost.by_module[name] for name in children), Usage()) == cost.by_module["layer2"]
    assert cost.total.bytes_read == sum(op.bytes_read for op in cost.ops)


def test_layers_agree_with_torchs_own_counter():
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v3_small().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(IMAGE)
    cost = count_cost(model, IMAGE)
    layers = sum(op.operations for op in cost.ops if op.family in ("conv", "linear"))
    assert layers * 2 == counter.get_total_flops()


def test_torchvisions_network_costs_what_ours_does():
    with torch.device("meta"):
        theirs = count_cost(torchvision.models.resnet50(), IMAGE)
    ours = cost_of("resnet50")
    assert (theirs.total, theirs.by_stage) == (ours.total, ours.by_stage)


@pytest.mark.parametrize("name", ["seresnet18", "efficientnet_b0", "ghostnet_100", "dpn68", "vit_tiny_patch16_224"])
def test_other_libraries_networks_leave_nothing_uncounted(name):
    with torch.device("meta"):
        cost = count_cost(timm.create_model(name), IMAGE)
    assert cost.uncounted == {} and cost.total.macs > 1e8
    assert sum(cost.by_stage.values(), Usage()) == (cost.total if name == "seresnet18" else Usage())


@pytest.mark.parametrize("name", {a.family: name for name, a in MODELS.items()}.values())
def test_stages_of_every_network(name):
    size = 75 if "inception_" in name else 32
    with torch.device("meta"):
        model = create_model(name, gate="se", num_classes=10)
        cost = count_cost(model, torch.empty(2, 3, size, size))
    stages = sorted({f"stage{model.stage_of(gate)}" for gate in gate_modules(model)})
    assert sum(cost.by_stage.values(), Usage()) == cost.total
    assert list(cost.by_stage) == (["stem"] * (not name.startswith("vgg")) + stages + ["head"])
    assert list(cost.gates_by_stage) == stages
    assert sum(cost.gates_by_stage.values(), Usage()) == cost.gates
    assert cost.by_stage["head"].parameters >= 10 * model.num_features


# --- fused tails ---


def block_costs(name, tails, size=16, channels=3):
    x = torch.empty(2, channels, size, size, device="meta")
    with torch.device("meta"):
        return [
            count_cost(create_model(name, gate=gate, in_channels=channels), x, tails=tails) for gate in ("none", "se")
        ]


def test_a_fused_tail_moves_what_it_says():
    """x twice, the shortcut once, y: four maps, where the steps move seven, and ten with a gate."""
    n, c, p = 2, 64, 64 * 4
    with torch.device("meta"):
        block = create_model("resnet18", gate="se").layer1[0]
        bare = create_model("resnet18").layer1[0]
        x = torch.empty(n, c, 16, 16)
    moved = {t: count_cost(block, x, tails=t).total.bytes_moved // (n * c * p * 4) for t in ("unfused", "fused")}
    plain = {t: count_cost(bare, x, tails=t).total.bytes_moved // (n * c * p * 4) for t in ("unfused", "fused")}
    # Before the tail: two convolutions, norm and ReLU, two maps each.
    assert plain == {"unfused": 8 + 7, "fused": 8 + 4}
    assert moved == {"unfused": 8 + 10, "fused": 8 + 4}


def test_squeeze_ahead_reads_the_narrow_map():
    """A bottleneck's gate reads a quarter of x, a basic block's nine taps would be more than x."""
    n, c, p = 2, 256, 256
    with torch.device("meta"):
        block, bare = create_model("resnet50", gate="se").layer1[1], create_model("resnet50").layer1[1]
        x = torch.empty(n, c, 16, 16)
    one = n * c * p * 4
    fused, ahead = (count_cost(block, x, tails=t) for t in ("fused", "squeeze-ahead"))
    plain = count_cost(bare, x, tails="squeeze-ahead")
    [squeeze] = [op for op in ahead.ops if op.op == "excite.squeeze_ahead"]
    assert squeeze.bytes_read == one // 4 and squeeze.bytes_written == n * c * 4
    assert round((fused.total.bytes_moved - ahead.total.bytes_moved) / one, 2) == 0.75
    assert ahead.gates.bytes_moved == ahead.total.bytes_moved - plain.total.bytes_moved
    assert round(ahead.gates.bytes_moved / one, 1) == 0.3
    with torch.device("meta"):
        basic = create_model("resnet18", gate="se").layer1[0]
        cost = count_cost(basic, torch.empty(n, 64, 16, 16), tails="squeeze-ahead")
    assert not any(op.op == "excite.squeeze_ahead" for op in cost.ops)


@pytest.mark.parametrize("tails", ["fused", "squeeze-ahead"])
@pytest.mark.parametrize("name", ["resnet20", "shufflenetv1", "wrn16_8"])
def test_fused_tails_change_bytes_alone(name, tails):
    # On maps of few positions what a fused tail does with [N, C] would be more than it saves.
    plain, gated = block_costs(name, tails, size=128)
    _, before = block_costs(name, "unfused", size=128)
    assert (gated.total.parameters, gated.total.macs) == (before.total.parameters, before.total.macs)
    assert (gated.gates.parameters, gated.gates.macs) == (before.gates.parameters, before.gates.macs)
    assert plain.total + gated.gates == gated.total
    assert gated.uncounted == {}
    assert sum(gated.by_stage.values(), Usage()) == gated.total
    assert sum(gated.gates_by_stage.values(), Usage()) == gated.gates
    if name == "wrn16_8":  # no norm before an addition
        assert gated.total == before.total
    else:
        assert gated.total.bytes_moved < before.total.bytes_moved
        assert gated.gates.bytes_moved < before.gates.bytes_moved


def test_a_tail_that_cannot_be_fused_stays():
    x = torch.empty(1, 3, 16, 16, device="meta")
    with torch.device("meta"):
        model = create_model("resnet20", gate="se(descriptor=max)")
    with pytest.raises(UserError, match="unknown tails 'fussed': did you mean 'fused'"):
        count_cost(model, x, tails="fussed")
    assert count_cost(model, x, tails="fused").gates == count_cost(model, x).gates


# --- what is easily counted wrongly ---


class Forward(nn.Module):
    """A module with one weight [4, 4], whose forward is given."""

    def __init__(self, forward):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def usage(forward, x):
    return count_cost(Forward(forward), x).total


def test_views_of_weights_are_no_maps_and_views_of_maps_are_free():
    x = torch.randn(2, 4)
    assert usage(lambda self, x: x @ self.weight.t(), x) == Usage(16, 2 * 16, 32, 32)
    assert usage(lambda self, x: x @ self.weight[0], x) == Usage(16, 8, 32, 8)
    assert usage(lambda self, x: x.view(4, 2).t()[None].squeeze(0).detach(), x) == Usage(16, 0, 0, 0)


def test_expanded_tensors_are_read_once_an_element():
    x = torch.randn(2, 4, 5, 5)
    assert usage(lambda self, x: x * x[:, :, :1, :1].expand_as(x), x).bytes_read == (200 + 8) * 4


def test_half_precision_moves_half():
    model = create_model("resnet20")
    x = torch.randn(1, 3, 16, 16)
    full, half = count_cost(model, x).total, count_cost(model.half(), x.half()).total
    assert half.macs == full.macs and half.bytes_moved * 2 == full.bytes_moved


def test_shared_layers_have_their_parameters_once_and_run_twice():
    layer = nn.Linear(4, 4)
    cost = count_cost(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, 4))
    assert cost.total.parameters == 20 and cost.total.macs == 2 * 3 * 16


def test_unknown_operations_are_listed():
    cost = count_cost(Forward(lambda self, x: torch.cumsum(x, 1).sort(1).values.relu()), torch.randn(2, 4))
    assert cost.uncounted == {"aten.cumsum": 1, "aten.sort": 1}
    assert [op.op for op in cost.ops] == ["aten.relu"]


# --- what must not be disturbed ---


def test_the_network_is_left_alone():
    model = create_model("se_resnet20", impl="fused")
    model.layer1.eval()
    model.register_buffer("calls", torch.zeros(()))
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    addresses = [p.data_ptr() for p in model.parameters()]
    count_cost(model, torch.randn(2, 3, 16, 16))
    assert [m.training for m in model.modules()] == flags
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.layer1[0].impl == "fused"


def test_a_network_that_looks_at_values_runs_on_the_example():
    def forward(self, x):
        self.calls += 1
        return F.relu(x) if x.sum().item() > 0 else x

    model = Forward(forward)
    model.register_buffer("calls", torch.zeros(()))
    assert count_cost(model, torch.ones(2, 4)).by_module[""].bytes_written >= 32
    assert model.calls == 0
    with pytest.raises(UserError, match="does not take an example"):
        count_cost(model, torch.ones(2, 4, device="meta"))


def test_an_example_of_another_shape_is_named():
    with pytest.raises(UserError, match=r"CifarResNet does not take an example of shape \[\(1, 4, 8, 8\)\].*channels"):
        count_cost(create_model("resnet20"), torch.randn(1, 4, 8, 8))


def test_what_is_no_network_or_no_example_is_said():
    with pytest.raises(UserError, match="torch.nn.Module; got function"):
        count_cost(F.relu, torch.randn(1, 3))
    for example, kind in (({"x": torch.randn(1, 3)}, "dict"), (None, "NoneType")):
        with pytest.raises(UserError, match=f"tuple of the positional inputs; got {kind}"):
            count_cost(nn.ReLU(), example)


def test_recurrent_layers_by_hand():
    cost = count_cost(nn.GRU(10, 20), torch.randn(7, 3, 10), convention=Convention("layers", {"linear": 1}))
    assert cost.total.macs == 7 * 3 * (10 + 20) * 3 * 20 and cost.uncounted == {}


def test_gates_of_other_libraries_are_in_the_total_alone():
    with torch.device("meta"):
        theirs, ours = timm.create_model("seresnet50"), create_model("se_resnet50")
        costs = [count_cost(model, torch.empty(1, 3, 64, 64)) for model in (theirs, ours)]
    assert costs[0].gates == Usage() != costs[1].gates
    assert costs[0].total.macs == costs[1].total.macs


def test_several_inputs_and_compiled_networks():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    assert count_cost(Two(), (torch.ones(3), torch.ones(3))).total == Usage(0, 3, 24, 12)
    model = create_model("resnet20")
    x = torch.randn(1, 3, 16, 16)
    assert count_cost(torch.compile(model), x) == count_cost(model, x)


def test_json():
    cost = count_cost(create_model("se_resnet20"), torch.randn(1, 3, 16, 16))
    assert isinstance(cost, Cost)
    text = json.loads(json.dumps(cost.to_dict()))
    assert text["total"]["bytes_moved"] == cost.total.bytes_moved
    assert (
        text["convention"]["name"] == SENET_ALL.name
        and text["by_stage"]["stage2"]["macs"] == cost.by_stage["stage2"].macs
    )
