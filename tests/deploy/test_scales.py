"""The channel scale of fused networks is the gates' own: of every gate, from its map or ahead of it."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from excite.deploy import scales
from excite.deploy.scales import ChannelScale
from excite.gates import GATES, Gate, parse_gate
from excite.ops import squeeze
from excite.ops.native import library

MORE = (
    "se(activation=silu,bias=false)",
    "se(activation=hard_swish,gate_function=hard_sigmoid,hard_sigmoid_slope=0.2)",
    "se(activation=gelu)",
    "se(gate_function=tanh)",
    "se(descriptor=max)",
    "se(neutral=true)",
    "eca(neutral=true)",
    "eca(kernel_size=7)",
    "ese(gate_function=sigmoid)",
    "ese(neutral=true)",
)
# Those that are one call; the others are computed as ever.
COMPILED = {"se", "eca", "ese", "se_var1", "se_var3"}


def gates(descriptors=(("mean",), ("max",))):
    for text in (*GATES, *MORE):
        gate = parse_gate(text).build(48)
        if isinstance(gate, Gate) and gate.descriptors in descriptors:
            yield pytest.param(gate, id=text)


def drawn(gate):
    gate = copy.deepcopy(gate).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in gate.parameters():
        parameter.normal_(0, 0.5, generator=generator)
    return gate


@pytest.fixture
def calls(monkeypatch):
    """How often a compiled scale was had."""
    found = []

    class Counted(scales.ScaleOp):
        def __call__(self, x):
            s = super().__call__(x)
            found.append(s is not None)
            return s

    monkeypatch.setattr(scales, "ScaleOp", Counted)
    return found


@pytest.mark.parametrize("gate", list(gates()))
def test_it_is_the_gate_s_own(gate, calls):
    gate = drawn(gate)
    x = torch.randn(3, 48, 5, 5).to(memory_format=torch.channels_last)
    s = ChannelScale()(gate, x)
    torch.testing.assert_close(s, gate.excite(squeeze(x, gate.descriptors)), rtol=1e-5, atol=1e-6)
    plain = gate.descriptors == ("mean",) and "gelu" not in str(gate.config) and "tanh" not in str(gate.config)
    expected = gate.config.name in COMPILED and plain and library() is not None
    assert any(calls) == expected


@pytest.mark.parametrize("gate", list(gates([("mean",)])))
def test_ahead_of_the_convolution(gate, calls):
    gate = drawn(gate)
    h, weight, bias = torch.randn(2, 12, 4, 3), torch.randn(48, 12), torch.randn(48)
    expected = gate.excite(F.linear(squeeze(h), weight, bias))
    torch.testing.assert_close(ChannelScale()(gate, h, (weight, bias)), expected, rtol=1e-5, atol=1e-6)
    assert any(calls) == (gate.config.name in COMPILED - {"se"} and library() is not None)


def test_se_with_its_first_layer_taken_ahead(calls):
    gate = drawn(parse_gate("se(reduction=4)").build(48))
    h, first = torch.randn(2, 12, 4, 3), torch.nn.Linear(12, 12).requires_grad_(False)
    hidden = F.relu(first(squeeze(h)))
    torch.testing.assert_close(
        ChannelScale()(gate, h, first=first), torch.sigmoid(gate.fc2(hidden)), rtol=1e-5, atol=1e-6
    )
    assert any(calls) == (library() is not None)


def test_who_watches_excite_or_asks_for_gradients_has_them():
    gate = drawn(parse_gate("se").build(48))
    scale, x, seen = partial(ChannelScale(), gate), torch.randn(2, 48, 4, 4), []
    own = gate.excite
    gate.__dict__["excite"] = lambda z: seen.append(z) or own(z)
    scale(x)
    assert len(seen) == 1
    del gate.__dict__["excite"]

    assert not scale(x).requires_grad
    assert scale(x.requires_grad_()).requires_grad
    gate.fc2.bias.requires_grad_()
    assert scale(x.detach()).requires_grad
    with torch.no_grad():
        assert not scale(x).requires_grad


def replaced(gate):
    gate.fc2 = copy.deepcopy(gate.fc2).requires_grad_(False)
    gate.fc2.bias.add_(1)


def there_and_back(gate):
    gate.double().float()
    gate.load_state_dict({name: t + 1 for name, t in gate.state_dict().items()})


def assigned(gate):
    gate.load_state_dict({name: t + 1 for name, t in gate.state_dict().items()}, assign=True)


def swapped(gate):
    next(gate.parameters()).data = torch.full_like(next(gate.parameters()), 0.3)


CHANGES = {"in place": lambda gate: next(gate.parameters()).mul_(3)}
CHANGES |= {change.__name__: change for change in (there_and_back, assigned, swapped)}


@pytest.mark.parametrize("text", ["eca", "ese", "se", "se replaced"])
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_parameters_are_those_of_now(text, change):
    gate = drawn(parse_gate(text.split()[0]).build(48))
    scale, x = partial(ChannelScale(), gate), torch.randn(2, 48, 4, 4)
    before = scale(x)
    (replaced if "replaced" in text else CHANGES[change])(gate)
    assert not torch.allclose(scale(x), before)
    torch.testing.assert_close(scale(x), gate.excite(squeeze(x)))


@torch.no_grad()
def test_the_convolution_s_weights_are_those_of_now():
    gate, conv, h = drawn(parse_gate("eca").build(48)), torch.nn.Conv2d(12, 48, 1), torch.randn(2, 12, 4, 3)
    scale = partial(ChannelScale(), gate)

    def check():
        expected = gate.excite(F.linear(squeeze(h), conv.weight.flatten(1), conv.bias))
        torch.testing.assert_close(scale(h, (conv.weight, conv.bias)), expected)
        return expected

    first = check()
    conv.weight.data = conv.weight * 2
    second = check()
    conv.bias = torch.nn.Parameter(conv.bias + 1)
    third = check()
    assert not torch.allclose(first, second) and not torch.allclose(second, third)
    torch.testing.assert_close(scale(torch.randn(2, 48, 3, 3)).shape, torch.Size([2, 48]))


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(gate):
    gate.fc2.register_forward_hook(lambda module, inputs, output: output + 1)


def lent(gate):
    layer = Doubled(gate.fc2.in_features, gate.fc2.out_features).requires_grad_(False)
    layer.load_state_dict(gate.fc2.state_dict())
    gate.fc2 = layer


def packed(gate):
    gate.fc2 = torch.nn.Sequential(gate.fc2, torch.nn.Hardtanh(-0.1, 0.1))


class Thrice(torch.nn.Module):
    def forward(self, weight):
        return 3 * weight


def parametrized(gate):
    torch.nn.utils.parametrize.register_parametrization(gate.fc2, "weight", Thrice())


def another_slope(gate):
    gate.hard_sigmoid_slope = 0.3


@pytest.mark.parametrize("change", [hooked, lent, packed, parametrized, another_slope])
@torch.no_grad()
def test_layers_that_do_something_else_are_called(change):
    gate = drawn(parse_gate("se(gate_function=hard_sigmoid)").build(48))
    scale, x = partial(ChannelScale(), gate), torch.randn(2, 48, 4, 4)
    before = scale(x)
    change(gate)
    for _ in range(2):
        assert not torch.allclose(scale(x), before)
        torch.testing.assert_close(scale(x), gate.excite(squeeze(x)))


@torch.no_grad()
def test_widths_that_do_not_fit_are_torch_s_error():
    gate = drawn(parse_gate("se").build(48))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        ChannelScale()(gate, torch.randn(2, 16, 4, 4))
    gate.fc2 = torch.nn.Linear(7, 48)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        ChannelScale()(gate, torch.randn(2, 48, 4, 4))


@torch.no_grad()
def test_defaults_of_torch_change_nothing():
    gate = drawn(parse_gate("se").build(48))
    scale, x = partial(ChannelScale(), gate), torch.randn(2, 48, 4, 4)
    expected = scale(x)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(scale(x), expected)
        with torch.device("meta"):
            assert torch.equal(scale(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_transforms_see_ordinary_operations():
    gate = drawn(parse_gate("se").build(48))
    scale, x = partial(ChannelScale(), gate), torch.randn(2, 48, 4, 4)
    expected = torch.func.jvp(lambda x: gate.excite(squeeze(x)), (x,), (x,))
    for got, wanted in zip(torch.func.jvp(scale, (x,), (x,)), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        assert torch.autograd.forward_ad.unpack_dual(scale(dual)).tangent is not None


def test_other_dtypes_copies_and_pickles():
    gate = drawn(parse_gate("se").build(48))
    scale, x = partial(ChannelScale(), gate), torch.randn(2, 48, 4, 4)
    expected = scale(x)
    for twin in (copy.deepcopy(scale), pickle.loads(pickle.dumps(scale))):
        assert torch.equal(twin(x), expected)
    gate.double()
    assert scale(x.double()).dtype == torch.float64
    gate.bfloat16()
    assert scale(x.bfloat16()).dtype == torch.bfloat16
    gate.float()
    torch.testing.assert_close(scale(x), expected, rtol=0.05, atol=0.05)
