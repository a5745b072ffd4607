"""Constants in the place of gates: the same outputs, folded where weights can take them in; elsewhere the reason."""

import copy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from excite.cost import count_cost
from excite.deploy import fold_gates_, fuse
from excite.errors import UserError
from excite.gates import SE, parse_gate
from excite.graph import View, record
from excite.models import create_model
from excite.models.base import GatedBlock, gate_modules
from excite.models.resnet import BasicBlock, Bottleneck, ResNet
from excite.surgery import attach_, attached
from excite.surgery.constants import ChannelScale, put_constant, slimmed
from excite.surgery.swap import own_gates_


def trained(model, seed=0):
    """A network in eval mode with norms, biases and layer scales as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or tensor.numel() != max(tensor.shape, default=0):
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.2, generator=generator)
            else:
                tensor.uniform_(0.4, 1.2, generator=generator)
    return model.eval()


def planted(model, example):
    """The network with gates that give the same scale for every image, and these scales by the gates' names."""
    own_gates_(model, example)
    constants = {}
    for i, (name, gate) in enumerate(gate_modules(model).items()):
        assert isinstance(gate, SE)
        with torch.no_grad():
            gate.fc2.weight.zero_()
            gate.fc2.bias.normal_(0, 1.5, generator=torch.Generator().manual_seed(i))
            constants[name] = gate.excite(gate.fc2.bias[None])[0].clone()
    assert constants
    return constants


def folded_as_it_was(model, example, bound):
    """Folds the planted gates of a network and compares; gives what was folded and what was left."""
    constants = planted(model, example)
    before = copy.deepcopy(model)
    done = fold_gates_(model, constants, example)
    assert [gate.name for gate in done] and {gate.name for gate in done} == set(constants)
    with torch.no_grad():
        expected, got = before(example), model(example)
    assert (got - expected).abs().max() <= bound * expected.abs().max()
    left = {name for name, module in model.named_modules() if isinstance(module, ChannelScale)}
    assert left == {gate.name for gate in done if not gate.folded}
    for gate in done:
        assert bool(gate.into) == gate.folded and bool(gate.reason) != gate.folded
    return len(done) - len(left), [gate.reason for gate in done if not gate.folded]


# --- whole networks: every family, every placement, every library ---


def small(placement="standard", block=Bottleneck, gate="se(reduction=4)", **kwargs):
    return ResNet(block, (1, 3, 1, 1), gate=parse_gate(gate), placement=placement, num_classes=5, **kwargs)


# Gates folded and gates left, of the six.
PLACEMENTS = {"standard": (6, 0), "pre": (6, 0), "post": (5, 1), "identity": (4, 2), "inner": (6, 0)}


@pytest.mark.parametrize("block,dtype,bound", [(BasicBlock, torch.float32, 1e-5), (Bottleneck, torch.float64, 1e-10)])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements(placement, block, dtype, bound):
    model, x = trained(small(placement, block)).to(dtype), torch.randn(2, 3, 48, 48, dtype=dtype)
    n_folded, reasons = folded_as_it_was(model, x, bound)
    folded, left = PLACEMENTS[placement]
    if block is BasicBlock and placement == "identity":
        folded, left = 3, 3  # the first block keeps its shape: no projection
    assert (n_folded, len(reasons)) == (folded, left)
    assert all("is read by others too" in reason for reason in reasons)


def attached_at(make, where):
    model = make().eval()
    attach_(model, "se(reduction=4)", torch.empty(1, 3, 64, 64, device="meta"), where=where)
    return model


tv = partial(torchvision.models.get_model, weights=None)
own = create_model
NETWORKS = {
    "se_resnet20": (lambda: own("se_resnet20"), 9, 0),
    "preresnet": (lambda: own("preresnet110", gate="se"), 54, 0),
    "preresnet pre": (lambda: own("preresnet110", gate="se", placement="pre"), 54, 0),
    "preresnet identity": (lambda: own("preresnet110", gate="se", placement="identity"), 0, 54),
    "se_mobilenetv1": (lambda: own("se_mobilenetv1"), 13, 0),
    "se_mobilenetv2": (lambda: own("se_mobilenetv2"), 17, 0),
    "mobilenetv2 inner": (lambda: own("mobilenetv2", gate="se", placement="inner"), 17, 0),
    "mobilenetv2 post": (lambda: own("mobilenetv2", gate="se", placement="post"), 12, 5),
    "mobilenetv2 identity": (lambda: own("mobilenetv2", gate="se", placement="identity"), 0, 10),
    "se_shufflenetv1": (lambda: own("se_shufflenetv1"), 16, 0),
    "shufflenet pre": (lambda: own("shufflenetv1", gate="se", placement="pre"), 16, 0),
    "shufflenet post": (lambda: own("shufflenetv1", gate="se", placement="post"), 1, 15),
    "se_vgg11_bn": (lambda: own("se_vgg11_bn"), 8, 0),
    "se_bn_inception": (lambda: own("se_bn_inception"), 10, 0),
    "se_resnext50_32x4d": (lambda: own("se_resnext50_32x4d"), 16, 0),
    "inception_resnet": (lambda: own("inception_resnet_v2", gate="se"), 40, 0),
    "inception_resnet inner": (lambda: own("inception_resnet_v2", gate="se", placement="inner"), 40, 0),
    "timm seresnet50": (lambda: timm.create_model("seresnet50"), 16, 0),
    "timm legacy": (lambda: timm.create_model("legacy_seresnet18"), 8, 0),
    "timm efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), 16, 0),
    "timm mobilenetv3_large_100": (lambda: timm.create_model("mobilenetv3_large_100"), 8, 0),
    "timm regnety_004": (lambda: timm.create_model("regnety_004"), 16, 0),
    "torchvision efficientnet_b0": (lambda: tv("efficientnet_b0"), 16, 0),
    "torchvision mobilenet_v3_large": (lambda: tv("mobilenet_v3_large"), 8, 0),
    "torchvision regnet_y_400mf": (lambda: tv("regnet_y_400mf"), 16, 0),
    "attached residual": (lambda: attached_at(partial(tv, "resnet18"), "residual"), 8, 0),
    "attached pre": (lambda: attached_at(partial(tv, "resnet18"), "pre"), 8, 0),
    "attached post": (lambda: attached_at(partial(tv, "resnet18"), "post"), 7, 1),
    "attached identity": (lambda: attached_at(partial(tv, "resnet18"), "identity"), 3, 0),
    "attached inner": (lambda: attached_at(partial(tv, "resnet18"), "inner"), 8, 0),
    "attached conv": (lambda: attached_at(partial(tv, "resnet18"), "conv"), 9, 0),
    "attached to inverted residuals": (lambda: attached_at(partial(tv, "mobilenet_v2"), "inner"), 17, 0),
    "attached to a densenet": (lambda: attached_at(partial(tv, "densenet121"), "conv"), 59, 0),
    "attached to dense layers": (lambda: attached_at(partial(tv, "densenet121"), "block:features.*.*.conv2"), 58, 0),
    "attached before layer scales": (lambda: attached_at(partial(tv, "convnext_tiny"), "residual"), 18, 0),
    "attached to raw sums": (lambda: attached_at(partial(tv, "convnext_tiny"), "post"), 0, 18),
    "attached to shuffled channels": (lambda: attached_at(partial(tv, "shufflenet_v2_x0_5"), "conv"), 37, 0),
}
QUICK = {"se_resnet20", "timm mobilenetv3_large_100", "attached residual"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_networks(name):
    make, folded, left = NETWORKS[name]
    size = 96 if "inception" in name else 64
    model, x = trained(make()), torch.randn(2, 3, size, size)
    n_folded, reasons = folded_as_it_was(model.double(), x.double(), 1e-10)
    assert (n_folded, len(reasons)) == (folded, left)


# --- all gates folded is the plain network ---


@pytest.mark.parametrize("name", ["se_resnet50", pytest.param("se_resnet20", marks=pytest.mark.slow)])
def test_all_gates_folded_is_the_plain_network(name):
    model, plain = trained(create_model(name)), create_model(name.removeprefix("se_")).eval()
    x = torch.randn(2, 3, 64, 64)
    constants = planted(model, x)
    with torch.no_grad():
        expected = model(x)
    fold_gates_(model, constants, x)
    assert str(model) == str(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not gate_modules(model)
    assert all(block.gate is None for block in model.modules() if isinstance(block, GatedBlock))
    example = torch.empty(1, 3, 224, 224, device="meta")
    ours, theirs = count_cost(model, example), count_cost(plain, example)
    assert ours.total == theirs.total and ours.uncounted == theirs.uncounted
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))
        assert (plain(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_folded_network_exports_and_fuses_and_is_told_by_its_modules():
    model, x = trained(small("post")), torch.randn(2, 3, 48, 48)
    fold_gates_(model, planted(model, x), x)
    kept = [(item.name, item.folded) for item in slimmed(copy.deepcopy(model))]
    assert sorted(folded for _, folded in kept) == [False, True, True, True, True, True]
    with torch.no_grad():
        expected = model(x)
        fused = fuse(model, x)
        assert fused.report.gates == () and fused.report.norms_left == ()
        assert (fused(x) - expected).abs().max() <= 1e-4 * expected.abs().max()
        exported = torch.export.export(model, (x,)).module()
        assert (exported(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- each rule by itself ---


class Flow(nn.Module):
    """Layers by name and a forward that is a function of them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.gate = SE(4, reduction=2)

    def forward(self, x):
        return self.run(self, x)


def chain(*names):
    def run(m, x):
        for name in names:
            x = getattr(F, name)(x) if hasattr(F, name) and not hasattr(m, name) else getattr(m, name)(x)
        return x

    return run


def conv(i=4, o=4, k=3, **options):
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def norm():
    return nn.BatchNorm2d(4)


def no_affine():
    return nn.BatchNorm2d(4, affine=False)


def both(m, x):
    y = m.gate(F.silu(m.a(x)))
    return m.b(y) + m.c(y)


def joined(m, x):
    return m.gate(torch.cat([F.relu(m.a(x)), F.avg_pool2d(m.b(x), 3, 1, 1)], 1)).sigmoid()


def joined_ahead(m, x):
    return m.b(torch.cat([x[:, :2].tanh(), m.gate(F.silu(m.a(x)))], 1))


def summed(m, x):
    return m.gate(F.relu(m.a(x) + m.b(x))).sigmoid()


def scaled(m, x):
    return m.gate(m.n(x) * m.c.weight).sigmoid()


def flattened(m, x):
    return m.fc(F.adaptive_avg_pool2d(m.gate(F.silu(m.a(x))), 2).flatten(1))


def pooled(m, x):
    return m.fc(m.gate(F.silu(m.a(x))).mean((2, 3)))


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 1, 1) + 0.5)


RULES = {
    "convolution": (Flow(chain("a", "gate", "sigmoid"), a=conv()), "a"),
    "convolution without bias": (Flow(chain("a", "gate", "sigmoid"), a=conv(bias=False)), "a"),
    "groups behind": (Flow(chain("a", "gate", "sigmoid"), a=conv(groups=2)), "a"),
    "transposed behind": (Flow(chain("a", "gate", "sigmoid"), a=nn.ConvTranspose2d(4, 4, 3, 2)), "a"),
    "transposed groups behind": (Flow(chain("a", "gate", "sigmoid"), a=nn.ConvTranspose2d(4, 4, 3, groups=2)), "a"),
    "norm": (Flow(chain("a", "n", "gate", "sigmoid"), a=conv(), n=norm()), "n"),
    "group norm": (Flow(chain("n", "gate", "sigmoid"), n=nn.GroupNorm(2, 4)), "n"),
    "relu": (Flow(chain("n", "relu", "gate", "sigmoid"), n=norm()), "n"),
    "leaky relu": (Flow(chain("n", "leaky_relu", "gate", "sigmoid"), n=norm()), "n"),
    "prelu": (Flow(chain("n", "p", "gate", "sigmoid"), n=norm(), p=nn.PReLU(4)), "n"),
    "max-pool": (Flow(chain("n", "p", "gate", "sigmoid"), n=norm(), p=nn.MaxPool2d(2)), "n"),
    "upsampled": (Flow(chain("n", "p", "gate", "sigmoid"), n=norm(), p=nn.Upsample(scale_factor=2)), "n"),
    "concatenation": (Flow(joined, a=conv(o=2), b=conv(o=2)), "a b"),
    "addition": (Flow(summed, a=conv(), b=conv(k=1)), "a b"),
    "layer scale": (Flow(scaled, n=no_affine(), c=Weight()), "c"),
    "ahead": (Flow(chain("a", "silu", "gate", "b", "sigmoid"), a=conv(), b=conv(o=6)), "b"),
    "groups ahead": (Flow(chain("silu", "gate", "b"), b=conv(o=6, groups=2)), "b"),
    "depthwise ahead": (Flow(chain("silu", "gate", "b"), b=conv(o=8, groups=4)), "b"),
    "transposed ahead": (Flow(chain("silu", "gate", "b"), b=nn.ConvTranspose2d(4, 6, 3, groups=2)), "b"),
    "reflection ahead": (Flow(chain("silu", "gate", "b"), b=conv(padding_mode="reflect")), "b"),
    "pools ahead": (
        Flow(chain("silu", "gate", "p", "q", "b"), p=nn.MaxPool2d(2), q=nn.AvgPool2d(2), b=conv()),
        "b",
    ),
    "two readers": (Flow(both, a=conv(), b=conv(), c=conv(k=1)), "b c"),
    "norm ahead": (Flow(chain("silu", "gate", "n", "sigmoid"), n=norm()), "n"),
    "norm without weights ahead": (Flow(chain("silu", "gate", "n", "sigmoid"), n=no_affine()), "n"),
    "concatenation ahead": (Flow(joined_ahead, a=conv(), b=conv(6)), "b"),
    "classifier": (Flow(pooled, a=conv(), fc=nn.Linear(4, 3)), "fc"),
    "hidden layer": (Flow(flattened, a=conv(), fc=nn.Linear(16, 3, bias=False)), "fc"),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule):
    model, into = RULES[rule]
    model = trained(copy.deepcopy(model)).double()
    x = torch.randn(2, 4, 12, 12, dtype=torch.float64)
    constants = planted(model, x)
    with torch.no_grad():
        expected = model(x)
    (done,) = fold_gates_(model, constants, x)
    assert done.folded and set(done.into) == set(into.split())
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("axes", [1, 3])
def test_maps_of_other_dimensions(axes):
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv3d, nn.BatchNorm3d))[axes // 3]
    model = trained(nn.Sequential(conv(3, 4, 3), norm(4), nn.ReLU(), SE(4, 2), nn.SiLU(), SE(4, 2), conv(4, 5, 2)))
    x = torch.randn(2, 3, *(7,) * axes)
    assert folded_as_it_was(model, x, 1e-5) == (2, [])
    assert isinstance(model[3], nn.Identity) and isinstance(model[5], nn.Identity)


# --- what cannot be folded, and why ---


def shortcut(m, x):
    x = m.gate(m.n(x).sigmoid())
    return x + m.b(x)


def shared(m, x):
    return m.gate(m.a(m.a(x))).sigmoid()


def twice(m, x):
    return m.gate(F.relu(m.b(m.gate(m.n(x).sigmoid())))).sigmoid()


def given_away(m, x):
    return m.gate(m.n(x).sigmoid())


def to_a_gate(m, x):
    return m.other(m.gate(m.n(x).sigmoid())).sigmoid()


def also_read(m, x):
    y = m.a(x)
    return m.gate(y).sigmoid() + y


def divided(m, x):
    return m.c.weight / m.gate(m.n(x).sigmoid())


LEFT = {
    "a divisor": (Flow(divided, n=norm(), c=Weight()), "the quotient divides by it"),
    "a raw shortcut": (Flow(shortcut, n=norm(), b=conv()), "the addition reads it"),
    "a shared convolution": (Flow(shared, a=conv()), "the weight of the convolution in a is read by others too"),
    "a gate that runs twice": (Flow(twice, n=norm(), b=conv()), "it is called 2 times"),
    "an output": (Flow(given_away, n=norm()), "the network returns it"),
    "a norm without weights": (Flow(chain("n", "gate", "sigmoid"), n=no_affine()), "n has no weight and bias"),
    "a non-linearity": (Flow(chain("n", "silu", "gate", "sigmoid"), n=norm()), "no factor goes back through SiLU"),
    "another gate": (Flow(to_a_gate, n=norm(), other=SE(4)), "the product in other is of two maps"),
    "a map that others read": (Flow(also_read, a=conv()), "is read by others too"),
    "the input": (Flow(chain("gate", "sigmoid")), "nothing is behind it"),
    "weight normalisation": (
        Flow(chain("a", "gate", "sigmoid"), a=nn.utils.parametrizations.weight_norm(conv())),
        "is computed anew in every pass",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_and_why(case):
    model, reason = LEFT[case]
    model, x = trained(copy.deepcopy(model)).double(), torch.randn(2, 4, 12, 12, dtype=torch.float64)
    constants = {"gate": planted(model, x)["gate"]}
    with torch.no_grad():
        expected = model(x)
    (done,) = fold_gates_(model, constants, x)
    assert not done.folded and reason in done.reason
    assert isinstance(model.gate, ChannelScale) and torch.equal(model.gate.scale.flatten(), constants["gate"])
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("before", [True, False])
def test_a_map_that_the_network_returns_too_is_not_scaled(before):
    def run(m, x):
        u = m.a(x) if before else F.silu(m.a(x))
        y = m.gate(u)
        return m.b(y.sigmoid() if before else y), u if before else y

    model, x = trained(Flow(run, a=conv(), b=conv())), torch.randn(2, 4, 6, 6)
    constants = planted(model, x)
    with torch.no_grad():
        expected = model(x)
    (done,) = fold_gates_(model, constants, x)
    assert not done.folded and ("is read by others too" if before else "the network returns it") in done.reason
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_one_gate_behind_another():
    model = trained(Flow(chain("n", "gate", "relu", "other", "b"), n=norm(), other=SE(4, 2), b=conv()))
    x = torch.randn(2, 4, 6, 6)
    assert folded_as_it_was(model, x, 1e-5) == (2, [])


def test_a_negative_constant_does_not_pass_a_relu():
    model, x = trained(Flow(chain("n", "relu", "gate", "sigmoid"), n=norm())), torch.randn(2, 4, 6, 6)
    constant = torch.tensor([1.0, -0.5, 0.3, 0.0])
    with torch.no_grad():
        expected = (F.relu(model.n(x)) * constant[:, None, None]).sigmoid()
    (done,) = fold_gates_(model, {"gate": constant}, x)
    assert not done.folded and "ReLU" in done.reason
    (again,) = fold_gates_(without_relu := trained(Flow(chain("n", "gate"), n=norm())), {"gate": constant}, x)
    assert again.folded and again.into == ("n",)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(without_relu(x), trained(norm())(x) * constant[:, None, None])


def test_a_norm_ahead_takes_in_what_its_variance_allows():
    model, x = trained(Flow(chain("silu", "gate", "n", "sigmoid"), n=norm())), torch.randn(2, 4, 6, 6)
    model.n.running_var.fill_(1e-3)
    (done,) = fold_gates_(copy.deepcopy(model), {"gate": torch.full((4,), 100.0)}, x)
    assert not done.folded and "negative variance" in done.reason
    (done,) = fold_gates_(model, {"gate": torch.full((4,), 0.0)}, x)
    assert not done.folded and "positive factors only" in done.reason


def test_in_training_mode_a_norm_behind_is_exact_too():
    model, x = trained(small()).double(), torch.randn(4, 3, 48, 48, dtype=torch.float64)
    constants = planted(model, x)
    before = copy.deepcopy(model).train()
    fold_gates_(model, constants, x)
    expected, got = before(x), model.train()(x)
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_some_of_the_gates():
    model, x = trained(small()), torch.randn(2, 3, 48, 48)
    constants = planted(model, x)
    chosen = "layer2.1.gate"
    with torch.no_grad():
        expected = model(x)
    (done,) = fold_gates_(model, {chosen: constants[chosen]}, x)
    assert (done.name, done.channels, done.into) == (chosen, 512, ("layer2.1.bn3",))
    assert set(gate_modules(model)) == set(constants) - {chosen}
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_tails_of_any_implementation():
    for impl in ("auto", "fused", "reference"):
        model, x = trained(small(impl=impl)), torch.randn(2, 3, 48, 48)
        assert folded_as_it_was(model, x, 1e-5) == (6, [])
        assert {block.impl for block in model.modules() if isinstance(block, GatedBlock)} == {impl}


def test_an_attached_gate_is_detached():
    model, x = trained(tv("resnet18")), torch.randn(2, 3, 64, 64)
    keys = list(model.state_dict())
    attach_(model, "se", x, start="paper")
    fold_gates_(model, planted(model, x), x)
    assert list(model.state_dict()) == keys and attached(model) == []
    assert not any(module._forward_hooks for module in model.modules())


def test_mistakes_leave_the_network_as_it_was():
    model, x = trained(small()), torch.randn(1, 3, 48, 48)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fine = torch.ones(256)
    for constants, said in [
        ({}, "constants is empty"),
        ({"layer1.0.gat": fine}, "unknown gate of this ResNet 'layer1.0.gat'.*layer1.0.gate"),
        ({"layer1.0.gate": torch.ones(3)}, "has 3 numbers; its maps have 256 channels"),
        ({"layer1.0.gate": fine, "layer2.0.gate": torch.full((512,), torch.nan)}, "layer2.0.gate is not finite"),
    ]:
        with pytest.raises(UserError, match=said):
            fold_gates_(model, constants, x)
    with pytest.raises(UserError, match="does not take an example"):
        fold_gates_(model, {"layer1.0.gate": fine}, torch.randn(1, 4, 48, 48))
    assert list(model.state_dict()) == list(before) and slimmed(model) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_recording_counts_weights_first():
    # What the folding rests on: value i is parameter or buffer i.
    model = put_in_place(trained(small("post")))
    view = View(record(model, (torch.empty(1, 3, 48, 48),)), model)
    own = [*model.parameters(), *model.buffers()]
    assert [value.shape for value in view.values[: len(own)]] == [tuple(t.shape) for t in own]
    assert all(value.weight and value.node is None for value in view.values[: len(own)])


def put_in_place(model):
    put_constant(model, "layer1.0.gate", torch.ones(256))
    return model
