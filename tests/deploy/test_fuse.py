"""`fuse`: the same outputs in fewer passes, how many gates each network had fused, and what is left and why."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from excite.deploy import FusedNetwork, fuse
from excite.errors import UserError
from excite.gates import SE, list_gates
from excite.models import create_model
from excite.models.resnet import BasicBlock, Bottleneck, ResNet
from excite.surgery import attach_


def trained(model, seed=0):
    """A network in eval mode with norms and biases as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or tensor.dim() != 1:
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif name.endswith("weight"):
                tensor.uniform_(0.4, 1.2, generator=generator)
            else:
                tensor.normal_(0, 0.2, generator=generator)
    return model.eval()


def small(gate="se", placement="standard", block=Bottleneck, **kwargs):
    from excite.gates import parse_gate

    return trained(ResNet(block, (1, 2, 1, 1), gate=parse_gate(gate), placement=placement, num_classes=5, **kwargs))


def fates(fused):
    counted = {}
    for gate in fused.report.gates:
        counted[gate.how] = counted.get(gate.how, 0) + 1
    return counted


def assert_close(one, other, bound=1e-10):
    assert (one - other).abs().max() <= bound * other.abs().max()


# --- whole networks: no gate may be left ---

NETWORKS = {
    "timm:seresnet50": {"squeeze ahead": 16},
    "timm:ecaresnet50d": {"squeeze ahead": 16},
    "timm:seresnext50_32x4d": {"squeeze ahead": 16},
    "timm:efficientnet_b0": {"in the next convolution": 16},
    "timm:mobilenetv3_large_100": {"in the next convolution": 8},
    "timm:regnety_004": {"in the next convolution": 16},
    "timm:resnet50": {},
    "torchvision:efficientnet_b0": {"in the next convolution": 16},
    "torchvision:mobilenet_v3_large": {"in the next convolution": 8},
    "torchvision:regnet_y_400mf": {"in the next convolution": 16},
    "excite:se_resnet50": {"squeeze ahead": 16},
    "excite:eca_resnet50": {"squeeze ahead": 16},
    "excite:se_resnext50_32x4d": {"squeeze ahead": 16},
    "excite:se_resnet20": {"tail": 9},
    "excite:se_vgg11_bn": {"in place": 8},
    "excite:se_bn_inception": {"in place": 10},
    "excite:se_mobilenetv1": {"in place": 13},
    "excite:se_mobilenetv2": {"squeeze ahead": 17},
    "excite:se_shufflenetv1": {"tail": 16},
}
FOLDED = {"timm:seresnet50": 53, "timm:efficientnet_b0": 49, "torchvision:regnet_y_400mf": 53, "excite:se_resnet50": 53}


def build(name):
    library, _, network = name.partition(":")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if library == "excite":
            return trained(create_model(network))
        make = timm.create_model if library == "timm" else torchvision.models.get_model
        return trained(make(network, **({} if library == "timm" else {"weights": None})))


QUICK = {"timm:seresnet50", "timm:efficientnet_b0", "torchvision:mobilenet_v3_large", "excite:se_resnet20"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_every_gate_of_a_network_is_fused(name):
    model = build(name)
    x = torch.randn(2, 3, 64, 64)
    keys = list(model.state_dict())
    fused = fuse(model, x)
    assert fates(fused) == NETWORKS[name]
    assert fused.report.norms_left == () and fused.report.norms_folded == FOLDED.get(name, fused.report.norms_folded)
    assert list(model.state_dict()) == keys
    other = torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        assert_close(fused(other), model(other), 1e-5)
        assert torch.equal(fused(other), fused(other))


# --- the same function, in every way to compute it ---


@pytest.mark.parametrize("block", [Bottleneck, BasicBlock])
@pytest.mark.parametrize("gate", [g for g in list_gates() if g != "no_squeeze"] + ["se(descriptor=max)", "none"])
def test_outputs_in_float64(gate, block):
    model, x = small(gate, block=block).double(), torch.randn(3, 3, 33, 47, dtype=torch.float64)
    fused = fuse(model, x)
    assert sum(fates(fused).values()) == (0 if gate == "none" else 5)
    y = torch.randn(1, 3, 64, 31, dtype=torch.float64)
    with torch.no_grad():
        assert_close(fused(y), model(y))
    # With a gradient asked for the ordinary operations compute, and the gradient is the network's.
    y.requires_grad_()
    (grad,) = torch.autograd.grad(fused(y).square().sum(), y)
    (expected,) = torch.autograd.grad(model(y).square().sum(), y)
    assert_close(grad, expected)


@pytest.mark.parametrize("placement", ["pre", "post", "identity", "inner"])
def test_other_placements(placement):
    model, x = small("se", placement).double(), torch.randn(2, 3, 40, 40, dtype=torch.float64)
    fused = fuse(model, x)
    assert len(fused.report.gates) == 5
    with torch.no_grad():
        assert_close(fused(x), model(x))
    assert all(gate.reason for gate in fused.report.gates if gate.how == "left")


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_path_of_the_layers_agrees(monkeypatch, onednn, native, layout):
    from excite.deploy import layers

    if not native:
        monkeypatch.setattr(layers.native, "rescale_add_act_", lambda *args, **kwargs: False)
        monkeypatch.setattr(layers, "in_panels", lambda weight: None)
    model = small().to(memory_format=layout)
    x = torch.randn(4, 3, 48, 48).to(memory_format=layout)
    before = x.clone()
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=onednn):
        fused = fuse(model, x)
        expected = copy.deepcopy(model).double()(x.double())
        assert_close(fused(x), expected, 1e-5)
    assert torch.equal(x, before)


def test_bfloat16():
    model, x = small(), torch.randn(2, 3, 64, 64)
    fused = fuse(copy.deepcopy(model).bfloat16(), x.bfloat16())
    with torch.no_grad():
        assert_close(fused(x.bfloat16()).float(), model(x), 0.1)
        assert fused(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_whatever_mode_it_was_fused_and_called_in(mode):
    model, x = small(), torch.randn(2, 3, 32, 32)
    with mode():
        fused = fuse(model, x)
        y = fused(x)
    with torch.inference_mode():
        assert_close(fused(x), y, 1e-5)
    with torch.no_grad():
        assert_close(fused(x[:1]), y[:1].detach(), 1e-5)


# --- an ordinary module ---


def test_it_pickles_copies_and_keeps_its_state_dict(tmp_path):
    model, x = small(), torch.randn(2, 3, 32, 32)
    fused = fuse(model, x)
    with torch.no_grad():
        y = fused(x)
        assert torch.equal(copy.deepcopy(fused)(x), y)
        loaded = pickle.loads(pickle.dumps(fused))
        assert torch.equal(loaded(x), y) and loaded.report == fused.report
        other = fuse(small("se"), x)
        for tensor in other.state_dict().values():
            tensor.mul_(1.5)
        other.load_state_dict(fused.state_dict())
        assert torch.equal(other(x), y)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_whole(backend):
    model, x = small(), torch.randn(2, 3, 32, 32)
    fused = fuse(model, x)
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert_close(compiled(x), model(x), 1e-5)


def test_it_exports_with_a_free_batch():
    model, x = small(), torch.randn(2, 3, 32, 32)
    fused = fuse(model, x)
    exported = torch.export.export(fused, (x,), dynamic_shapes=(({0: torch.export.Dim("n", min=1, max=64)},),))
    assert not [n for n in exported.graph.nodes if "mkldnn" in str(n.target)]
    y = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert_close(exported.module()(y), model(y), 1e-5)


def test_it_does_not_train():
    fused = fuse(small(), torch.randn(1, 3, 32, 32))
    assert isinstance(fused, FusedNetwork) and not fused.training
    with pytest.raises(UserError, match="Train the original"):
        fused.train()
    assert fused.eval() is fused


# --- other people's networks ---


@pytest.mark.parametrize(("where", "how"), [("residual", "squeeze ahead"), ("inner", "in the next convolution")])
def test_attached_gates_fuse(where, how):
    model = trained(torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]))
    x = torch.randn(2, 3, 64, 64)
    attach_(model, "se", x, where=where, start="paper")
    fused = fuse(model, x)
    assert fates(fused) == {how: 4}
    assert all(gate.name.endswith(("excite_gate", "excite_gate_in")) for gate in fused.report.gates)
    with torch.no_grad():
        assert_close(fused(x), model(x), 1e-5)


class Odd(nn.Module):
    """Values read twice, a map written over in place, a layer called twice, and an output that is a list."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.gate, self.shared, self.odd_norm = (
            SE(8, 2),
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8, track_running_stats=False),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.conv2(x)
        first = y * 2
        y = self.gate(self.bn2(y))
        y += x
        y = self.relu(y)
        z = self.shared(y)
        z = self.shared(F.relu(z, inplace=True)) + y
        w = self.odd_norm(self.shared(z))
        return [first, y, z, w]


def test_what_others_read_is_left_as_it_is():
    model = trained(Odd()).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    fused = fuse(model, x)
    with torch.no_grad():
        for one, other in zip(fused(x), model(x), strict=True):
            assert_close(one, other)
    left = dict(fused.report.norms_left)
    assert "read by others" in left["bn2"] and "no running statistics" in left["odd_norm"]
    assert "left" in str(fused.report)


class Near(nn.Module):
    """1x1 convolutions added to their own input, and to what an activation wrote over."""

    def __init__(self):
        super().__init__()
        self.stem, self.own, self.other = (
            nn.Conv2d(3, 160, 3, padding=1),
            nn.Conv2d(160, 160, 1),
            nn.Conv2d(160, 160, 1),
        )
        self.gate, self.relu = SE(160, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.own(x) + x)
        y = self.own(x)
        z = self.relu(y)
        return F.relu(self.gate(self.other(z)) + y)


def test_no_sum_is_written_over_what_its_convolution_reads():
    model = trained(Near()).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 33, 31).to(memory_format=torch.channels_last)
    fused = fuse(model, x)
    with torch.no_grad():
        assert_close(fused(x), model(x), 1e-5)


class Squared(nn.Module):
    """A gate that is none of excite's."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3), keepdim=True)).square()


def test_a_gate_of_another_kind_is_left_and_named():
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Squared()))
    fused = fuse(model, torch.randn(1, 3, 8, 8))
    (gate,) = fused.report.gates
    assert (gate.name, gate.gate, gate.how) == ("2", "Squared", "left") and "no gate of excite" in gate.reason


def test_the_users_hooks_still_run():
    model, seen = small(), []
    model.layer2[0].conv2.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    x = torch.randn(2, 3, 32, 32)
    fused = fuse(model, x)
    seen.clear()
    with torch.no_grad():
        fused(x)
    assert len(seen) == 1


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (small().train(), torch.zeros(1, 3, 32, 32), "eval mode"),
        (small(), torch.zeros(1, 4, 32, 32), "does not take the example"),
        (small(), torch.empty(1, 3, 32, 32, device="meta"), "not on the meta device"),
        (Branching().eval(), torch.ones(2), "cannot be traced"),
    ],
)
def test_mistakes(model, example, message):
    with pytest.raises(UserError, match=message):
        fuse(model, example)
