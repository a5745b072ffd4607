"""Residual joins, gates and anchors in networks written by hand, and gates in those of zoos, counted."""

import pytest
import timm
import torch
import torchvision
from test_record import Runs, conv
from torch import nn

from excite.graph import Anchor, View, record
from excite.graph.layout import channel_axes
from excite.models import create_model

X = torch.zeros(2, 4, 8, 8)


def view(model, *inputs):
    return View(record(model, inputs or (X,)), model)


def conv4(kernel=3, groups=1):
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=groups)


def n_joins(forward, **layers):
    return len(view(Runs(forward, **layers)).joins)


def abc():
    return {name: conv4() for name in "abc"}


# --- joins ---

JOINS = {
    "identity": lambda self, x: x + self.a(x),
    "the other way round": lambda self, x: self.a(x) + x,
    "two convolutions": lambda self, x: x + self.b(self.a(x)),
    "projection": lambda self, x: self.c(x) + self.b(self.a(x)),
    "pooled shortcut": lambda self, x: nn.functional.avg_pool2d(x, 1) + self.a(x),
    "activation before": lambda self, x: x.relu() + self.a(x.relu()),
    "shared pre-activation": lambda self, x: (lambda y: y + self.a(y))(x.relu()),
    "raw shortcut, activated branch": lambda self, x: x + self.a(x.relu()),
    "scaled": lambda self, x: x + 0.1 * self.a(x),
    "in place": lambda self, x: self.a(x).add_(x),
    "addcmul": lambda self, x: torch.addcmul(x, self.a(x), self.a.bias[:, None, None]),
    "with a gate": lambda self, x: x + (lambda u: u * self.b(u.mean((2, 3), True)).sigmoid())(self.a(x)),
}
NO_JOINS = {
    "no addition": lambda self, x: self.b(self.a(x)),
    "parallel convolutions": lambda self, x: self.a(x) + self.b(x),
    "positions": lambda self, x: self.a(x) + torch.arange(8.0),
    "a parameter": lambda self, x: self.a(x) + self.b.bias[:, None, None],
    "a number": lambda self, x: self.a(x) + 1,
    "twice the same": lambda self, x: (lambda y: y + y)(self.a(x)),
    "no convolution": lambda self, x: x + x.relu(),
    "concatenation": lambda self, x: torch.cat([x, self.a(x)], 1),
    "pooled to one position": lambda self, x: x + self.a(x).mean((2, 3), True),
    "pyramid": lambda self, x: self.a(x) + nn.functional.interpolate(self.b(nn.functional.max_pool2d(x, 2)), (8, 8)),
    "branch that is read again": lambda self, x: (lambda y: (x + y) * y)(self.a(x)),
}


@pytest.mark.parametrize("forward", JOINS.values(), ids=JOINS)
def test_residual_additions(forward):
    found = view(Runs(forward, **abc()))
    (join,) = found.joins
    assert join.module == "" and join.shape == (2, 4, 8, 8)
    assert join.branch != join.shortcut and found.values[join.branch].ancestors >> join.fork & 1


@pytest.mark.parametrize("forward", NO_JOINS.values(), ids=NO_JOINS)
def test_other_additions(forward):
    assert n_joins(forward, **abc()) == 0


def test_a_pyramid_network_has_the_joins_of_its_backbone():
    """Top-down sums of a feature pyramid (arXiv 1612.03144, Fig. 3) are none."""
    backbone = torchvision.models.resnet18()
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    layers = {f"layer{i}": str(i) for i in range(1, 5)}
    model = BackboneWithFPN(backbone, layers, [64, 128, 256, 512], 16)
    found = view(model, torch.zeros(1, 3, 64, 64))
    assert [join.module for join in found.joins] == [f"body.layer{i}.{j}" for i in range(1, 5) for j in (0, 1)]


def test_dense_and_inception_like_networks_have_none():
    def dense(self, x):
        for layer in (self.a, self.b):
            x = torch.cat([x, layer(x[:, :4])], 1)
        return x

    assert n_joins(dense, **abc()) == 0
    assert n_joins(lambda self, x: torch.cat([self.a(x), self.b(x), x], 1), **abc()) == 0


def test_joins_in_a_row_are_found_in_order():
    def forward(self, x):
        for layer in (self.a, self.b, self.c):
            x = x + layer(x)
        return x

    found = view(Runs(forward, **abc()))
    assert [found.nodes[join.node].inputs[0] for join in found.joins] == [join.shortcut for join in found.joins]
    assert len(found.joins) == 3
    assert [join.fork for join in found.joins] == [join.shortcut for join in found.joins]


def test_the_fork_of_a_projected_block_is_its_input():
    found = view(Runs(JOINS["projection"], **abc()))
    (join,) = found.joins
    (x,) = found.calls[0].inputs
    assert join.fork == x and found.node_of(join.branch).module == "b" and found.node_of(join.shortcut).module == "c"


# --- gates ---


def n_gates(make, device):
    with torch.device(device):
        model = make()
    found = view(model.to("meta"), torch.empty(2, 3, 64, 64, device="meta"))
    assert all(gate.module for gate in found.gates)
    return len(found.gates)


@pytest.mark.parametrize(
    "make, count",
    [
        (lambda: timm.create_model("seresnet50"), 16),
        (lambda: timm.create_model("ecaresnet50d"), 16),
        (lambda: timm.create_model("ese_vovnet39b"), 4),  # in the last block of each stage
        (lambda: timm.create_model("dm_nfnet_f0"), 12),
        (lambda: timm.create_model("resnet50"), 0),
        (lambda: timm.create_model("convnext_tiny"), 0),
        (lambda: torchvision.models.efficientnet_b0(), 16),
        (lambda: torchvision.models.mobilenet_v3_large(), 8),
        (lambda: torchvision.models.regnet_y_400mf(), 16),
        (lambda: torchvision.models.regnet_x_400mf(), 0),
        (lambda: torchvision.models.densenet121(), 0),
        (lambda: create_model("se_resnet50"), 16),
        (lambda: create_model("eca_resnet20"), 9),
        (lambda: create_model("resnet20"), 0),
    ],
    ids=[
        "timm seresnet50",
        "timm ecaresnet50d",
        "timm ese_vovnet39b",
        "timm dm_nfnet_f0",
        "timm resnet50",
        "timm convnext_tiny",
        "efficientnet_b0",
        "mobilenet_v3_large",
        "regnet_y_400mf",
        "regnet_x_400mf",
        "densenet121",
        "se_resnet50",
        "eca_resnet20",
        "resnet20",
    ],
)
def test_gates_of_any_library_are_counted(request, make, count):
    # RegNet works out its widths with tensors.
    assert n_gates(make, "cpu" if "regnet" in request.node.callspec.id else "meta") == count


@pytest.mark.parametrize(
    "forward, count",
    [
        (lambda self, x: x * self.a(x.mean((2, 3), True)).sigmoid(), 1),
        (lambda self, x: self.a(x.amax((2, 3), True)).sigmoid() * x, 1),
        (lambda self, x: x * self.a(x.mean((2, 3), True)).sigmoid().expand_as(x), 1),
        (lambda self, x: x * x.mean((2, 3), True), 1),
        (lambda self, x: x * self.b(self.a(x).mean((2, 3), True)).sigmoid(), 0),  # a map of its own is squeezed
        (lambda self, x: x * self.a(x).mean(1, True).sigmoid(), 0),  # a scale for each position
        (lambda self, x: x * self.a.bias[:, None, None], 0),
        (lambda self, x: self.a(x) * self.b(x.mean((2, 3), True)).sigmoid(), 0),  # the squeeze of another map
        (lambda self, x: x * 2, 0),
        (lambda self, x: x * x.sigmoid(), 0),
    ],
)
def test_a_gate_is_a_scale_of_the_channels_from_the_same_map(forward, count):
    layers = {"a": conv4(1), "b": conv4(1)}
    assert len(view(Runs(forward, **layers)).gates) == count


# --- anchors ---


def test_an_anchor_is_the_outermost_module_that_returns_the_value():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv4()

        def forward(self, x):
            return self.conv(x)

    found = view(Runs(lambda self, x: x + self.inner(x), inner=Inner()))
    (join,) = found.joins
    assert found.anchor(join.branch) == Anchor("inner", "out")


def test_an_anchor_is_else_the_module_that_alone_takes_it():
    found = view(Runs(lambda self, x: self.a(x * 2) + 1, a=conv4()))
    product = next(node for node in found.nodes if node.op == "mul").output
    assert found.anchor(product) == Anchor("a", "in")
    found = view(Runs(lambda self, x: (lambda y: self.a(y) * y)(x * 2), a=conv4()))
    product = next(node for node in found.nodes if node.op == "mul").output
    assert found.anchor(product) is None and found.obstacle(product) is None


def test_of_several_values_the_first_that_can():
    found = view(Runs(lambda self, x: self.b(2 * self.a(x)), a=conv4(), b=conv4()))
    first, product = (node.output for node in found.nodes[:2])
    assert found.anchor(product, first) == Anchor("b", "in") and found.anchor(first, product) == Anchor("a", "out")


def test_modules_that_run_twice_are_no_anchors_and_say_so():
    found = view(Runs(lambda self, x: x + self.a(self.a(x)), a=conv4()))
    (join,) = found.joins
    assert found.anchor(join.branch) is None
    assert found.obstacle(join.branch) == "a: it is called 2 times in a forward pass"


# --- which axis has the channels ---


def last_axis(forward, x=X, **layers):
    recording = record(Runs(forward, **layers), (x,))
    return channel_axes(recording)[recording.calls[0].outputs[0]]


@pytest.mark.parametrize(
    "forward, axis",
    [
        (lambda self, x: self.a(x), 1),
        (lambda self, x: self.a(x).relu() * 2 + x, 1),
        (lambda self, x: self.a(x).flatten(2), 1),
        (lambda self, x: self.a(x).flatten(1), None),
        (lambda self, x: self.a(x).permute(0, 2, 3, 1), 3),
        (lambda self, x: self.a(x).flatten(2).transpose(1, 2), 2),
        (lambda self, x: self.fc(self.a(x).permute(0, 2, 3, 1)), 3),
        (lambda self, x: self.fc(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1),
        (lambda self, x: self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1),
        (lambda self, x: self.fc(x.permute(0, 2, 3, 1)).reshape(2, 64, 4), 2),
        (lambda self, x: self.norm(x.permute(0, 2, 3, 1)), 3),
        (lambda self, x: self.fc.weight @ x.flatten(2), 1),
        (lambda self, x: (lambda t: (t @ t.mT).softmax(-1) @ t)(self.fc(x.flatten(2).mT)), 2),
        (lambda self, x: x.relu(), None),
        (lambda self, x: self.a(x).mean((2, 3)), 1),
        (lambda self, x: self.a(x) * x.mean((2, 3), True), 1),
        (lambda self, x: torch.cat([self.a(x), x], 1), 1),
        (lambda self, x: self.a(x)[:, :2], 1),
    ],
)
def test_the_axis_of_channels_is_followed(forward, axis):
    assert last_axis(forward, a=conv4(), fc=nn.Linear(4, 4), norm=nn.LayerNorm(4)) == axis


def test_layers_of_signals_and_volumes():
    assert last_axis(lambda self, x: self.a(x), torch.zeros(2, 4, 9), a=nn.Conv1d(4, 4, 3)) == 1
    assert last_axis(lambda self, x: self.a(x), torch.zeros(2, 4, 5, 5, 5), a=nn.Conv3d(4, 4, 3)) == 1


def test_views_of_networks_that_look_at_values():
    found = view(Runs(lambda self, x: x + self.a(x) if x.sum() < 1 else x, a=conv4()))
    assert found.recording.has_data and len(found.joins) == 1
    assert conv().weight is not None
