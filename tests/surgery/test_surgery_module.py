"""A network with gates attached is an ordinary module: state dicts, copies, formats, dtypes, optimizers, freezing."""

import copy

import pytest
import torch
from network_cases import BasicBlock, ResNet
from surgery_cases import gate_keys, image, lively, looks, move_gates, small
from torch import nn

from excite.gates import GATES
from excite.models import gate_parameters
from excite.surgery import Attached, attach_, attach_at_, attached, detach_, find_sites, verify
from tolerances import PARITY


@pytest.fixture
def gated():
    """Gates that have moved."""
    model = small()
    attach_(model, "se(reduction=4)", image())
    move_gates(model)
    return model


# --- what is kept ---


def test_everything_old_is_kept_and_only_gates_are_new():
    model = small()
    before = looks(model)
    state = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    attach_(model, "eca", image())
    after = model.state_dict(keep_vars=True)
    assert [key for key in after if key in state] == list(state)
    assert all(id(after[key]) == old for key, old in state.items())
    assert {key for key in after if key not in state} == {f"layers.{i}.norm2.excite_gate.conv.weight" for i in range(4)}
    detach_(model)
    assert looks(model) == before


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("where", ["residual", "pre", "post", "inner", "conv", "block:layers.*"])
def test_every_gate_starts_neutral_everywhere_or_says_why_not(gate, where):
    model, x = small(), image()
    y = model(x)
    if gate == "se_var1":
        before = looks(model)
        with pytest.raises(ValueError, match="se_var1.*no neutral form.*no weights"):
            attach_(model, gate, x, where=where)
        assert looks(model) == before
        attach_(model, gate, x, where=where, start="paper")
        assert not torch.equal(model(x), y) and gate_keys(model) == []
        return
    attach_(model, gate, x, where=where)
    assert torch.equal(model(x), y)
    move_gates(model)
    moved = model(x)
    assert not torch.equal(moved, y)
    assert len(attached(model)) == len(detach_(model)) > 0
    assert torch.equal(model(x), y)


def test_gates_take_the_mode_dtype_and_device_of_what_they_hang_on():
    model = small(dtype=torch.float64)
    attach_(model, "se", image(dtype=torch.float64))
    assert all(p.dtype == torch.float64 for p in gate_parameters(model))
    assert all(not m.training for m in model.modules())
    model = ResNet(2).train().to("meta")
    attach_(model, "se", image(device="meta"))
    assert all(p.is_meta for p in gate_parameters(model)) and all(m.training for m in model.modules())


def test_two_kinds_at_different_places_and_all_off_at_once():
    model, x = small(), image()
    y, before = model(x), looks(model)
    first = attach_(model, "se", x, stages=[1])
    second = attach_(model, "eca", x, stages=[2])
    assert [item.gate.partition("(")[0] for item in verify(model)] == ["se"] * len(first) + ["eca"] * len(second)
    third = attach_(model, "ese", x, where="pre")
    assert len(verify(model)) == len(first) + len(second) + len(third)
    assert torch.equal(model(x), y)
    detach_(model)
    assert looks(model) == before


def test_one_module_has_a_gate_on_each_side():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), image()
    y = model(x)
    attach_(model, "se", x, where="2")
    model[2].register_forward_pre_hook(lambda module, args: None)
    attach_at_(model, [Attached("2", "in", 4, "se(neutral=true)")])
    assert torch.equal(model(x), y) and len(verify(model)) == 2
    assert gate_keys(model)[0].startswith("2.excite_gate.") and gate_keys(model)[-1].startswith("2.excite_gate_in.")
    detach_(model)
    assert len(model[2]._forward_pre_hooks) == 1, "the user's own hook stays"


# --- state dicts ---


def test_a_state_dict_makes_another_network_the_same(gated):
    x = image()
    other = small()
    attach_(other, "se(reduction=4)", x)
    assert not torch.equal(other(x), gated(x))
    other.load_state_dict(gated.state_dict())
    assert torch.equal(other(x), gated(x))


def test_a_checkpoint_without_gates_loads_while_they_do_nothing():
    model, x = small(), image()
    plain = {key: value.clone() for key, value in small().state_dict().items()}
    attach_(model, "se", x)
    assert model.load_state_dict(plain).missing_keys == []
    other = ResNet(2).eval()
    other.load_state_dict(plain)
    assert torch.equal(model(x), other(x))


def test_a_checkpoint_without_gates_is_an_error_once_they_have_moved(gated):
    plain = small().state_dict()
    with pytest.raises(RuntimeError, match="Missing key.*layers.0.norm2.excite_gate.fc1.weight"):
        gated.load_state_dict(plain)
    assert gated.load_state_dict(plain, strict=False).missing_keys == gate_keys(gated)


@pytest.mark.parametrize("moved", [0, 3])
def test_one_moved_gate_is_enough_to_refuse(moved):
    model, x = small(), image()
    attach_(model, "se", x)
    with torch.no_grad():
        model.layers[moved].norm2.excite_gate.fc2.bias[0] += 1e-3
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(small().state_dict())


def test_a_checkpoint_without_gates_is_an_error_for_those_of_the_paper():
    model = small()
    attach_(model, "se", image(), start="paper")
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(small().state_dict())


def test_a_checkpoint_with_some_of_the_gates_is_an_error():
    model = small()
    attach_(model, "se", image())
    state = model.state_dict()
    for key in gate_keys(model)[:2]:
        del state[key]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_what_else_is_missing_or_too_much_is_still_an_error():
    model = small()
    attach_(model, "se", image())
    plain = small().state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "head.bias"\.'):
        model.load_state_dict({key: value for key, value in plain.items() if key != "head.bias"})
    with pytest.raises(RuntimeError, match="Unexpected key.*surplus"):
        model.load_state_dict({**plain, "surplus": torch.zeros(1)})


def test_after_detach_a_checkpoint_with_gates_is_an_error(gated):
    state = gated.state_dict()
    detach_(gated)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        gated.load_state_dict(state)
    assert not gated._load_state_dict_post_hooks


# --- copies and whole networks inside others ---


def test_a_deep_copy_is_a_network_of_its_own(gated):
    x = image()
    twin = copy.deepcopy(gated)
    y = gated(x)
    assert torch.equal(twin(x), y) and verify(twin) == verify(gated)
    move_gates(twin)
    assert not torch.equal(twin(x), y) and torch.equal(gated(x), y)
    detach_(twin)
    assert torch.equal(gated(x), y) and len(verify(gated)) == 4


class Pair(nn.Module):
    """Two networks, as students and teachers have them."""

    def __init__(self, one, other):
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x):
        return self.one(x) - self.other(x)


def test_a_network_inside_a_bigger_one_keeps_its_gates(gated):
    x = image()
    pair = Pair(gated, copy.deepcopy(gated))
    assert not pair(x).any()
    names = [item.module for item in verify(pair)]
    assert names == [f"{side}.layers.{i}.norm2" for side in ("one", "other") for i in range(4)]
    assert len(gate_parameters(pair)) == 2 * len(gate_parameters(gated))
    detach_(pair)
    assert not gate_keys(pair) and not attached(pair) and not attached(gated)
    assert not pair(x).any()


def test_plain_checkpoints_load_into_bigger_networks_too():
    x = image()
    pair = Pair(small(), small())
    plain = {key: value.clone() for key, value in pair.state_dict().items()}
    attach_(pair.one, "se", x)
    attach_(pair.other, "se", x)
    pair.load_state_dict(plain)
    move_gates(pair.other)
    with pytest.raises(RuntimeError, match="Missing key"):
        pair.load_state_dict(plain)


def test_gates_can_be_attached_to_the_whole_of_which_a_part_has_some():
    x = image()
    pair = Pair(small(), small())
    attach_(pair.one, "se", x)
    sites = attach_(pair, "se", x)
    assert [site.module for site in sites] == [f"other.layers.{i}.norm2" for i in range(4)]
    assert len(verify(pair)) == 8
    attach_(pair, "eca", x, where="post")
    assert len(verify(pair)) == 16
    detach_(pair)
    assert not gate_keys(pair)


def test_a_part_knows_its_gates_too():
    x = image()
    pair = Pair(small(), small())
    attach_(pair, "se(reduction=4)", x)
    names = [item.module for item in attached(pair.one)]
    assert names == [f"layers.{i}.norm2" for i in range(4)] and attached(pair.one) == verify(pair.one)
    assert {(item.channels, item.gate) for item in attached(pair.one)} == {
        (16, "se(reduction=4,neutral=true)"),
        (32, "se(reduction=4,neutral=true)"),
    }
    assert len(detach_(pair.one)) == 4 and not gate_keys(pair.one)
    with pytest.raises(ValueError, match="gates are gone.*one.layers.0.norm2"):
        verify(pair)


# --- formats, dtypes, axes ---


def test_channels_last_is_kept(gated):
    x = image()
    y = gated(x)
    gated = gated.to(memory_format=torch.channels_last)
    formats = []
    for i in range(4):
        gated.layers[i].norm2.excite_gate.register_forward_hook(
            lambda module, args, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    got = gated(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, y, **PARITY[torch.float32])
    assert formats == [True] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, x = small().to(dtype), image().to(dtype)
    y = model(x)
    attach_(model, "se(reduction=4)", x)
    assert torch.equal(model(x), y) and y.dtype == dtype
    move_gates(model)
    half = model(x)
    torch.testing.assert_close(half.double(), model.double()(x.double()), rtol=0.1, atol=0.1)


def test_autocast():
    model, x = small(), image()
    attach_(model, "se(reduction=4)", x)
    move_gates(model)
    y = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    torch.testing.assert_close(low.float(), y, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("where", ["residual", "pre", "post", "identity", "inner", "conv"])
def test_signals_images_and_volumes(axes, where):
    model, x = small(axes), image(axes)
    y = model(x)
    sites = attach_(model, "eca", x, where=where)
    count = {"identity": 1, "conv": 5}.get(where, 4)
    assert len(sites) == count and all(len(site.size) == axes for site in sites)
    assert torch.equal(model(x), y)
    move_gates(model)
    assert not torch.equal(model(x), y)


def test_other_sizes_and_batches_run_too(gated):
    gated(image(n=1, size=16))
    gated(image(n=0))


# --- optimizers and freezing ---


def test_an_optimizers_state_survives():
    model, x = small().train(), image()
    old = list(model.parameters())
    optimizer = torch.optim.SGD(old, lr=0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    momenta = {id(p): optimizer.state[p]["momentum_buffer"] for p in old}
    attach_(model, "se(reduction=4)", x)
    optimizer.add_param_group({"params": gate_parameters(model), "lr": 0.1})
    start = [p.detach().clone() for p in gate_parameters(model)]
    step()
    step()
    assert all(optimizer.state[p]["momentum_buffer"] is momenta[id(p)] for p in old)
    moved = [not torch.equal(p, q) for p, q in zip(gate_parameters(model), start, strict=True)]
    assert all(moved)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_freezing_what_is_old_trains_gates_alone():
    model, x = small(), image()
    model.requires_grad_(False)
    attach_(model, "se(reduction=4)", x)
    assert [p.requires_grad for p in gate_parameters(model)] == [True] * 16
    model(x).sum().backward()
    gates = {id(p) for p in gate_parameters(model)}
    assert all((p.grad is not None) == (id(p) in gates) for p in model.parameters())


def test_filters_by_class_see_what_they_saw():
    model = small()

    def norms(model):
        return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]

    def convs(model):
        return [name for name, module in model.named_modules() if type(module) is nn.Conv2d]

    before = norms(model), convs(model)
    attach_(model, "eca", image())
    assert (norms(model), convs(model)) == before
    assert all(type(layer) is BasicBlock for layer in model.layers)
    assert [name for name, _ in model.layers.named_children()] == ["0", "1", "2", "3"]


def test_finding_leaves_a_network_in_training_as_it_was():
    model = lively(ResNet(2)).train()
    for p in list(model.parameters())[::2]:
        p.requires_grad_(False)
    before, statistics = looks(model), [b.clone() for b in model.buffers()]
    state = torch.random.get_rng_state()
    for where in ("residual", "conv", "identity", lambda name, module: isinstance(module, nn.BatchNorm2d)):
        assert find_sites(model, image(generator=torch.Generator()), where=where)
    assert looks(model) == before and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(b, c) for b, c in zip(model.buffers(), statistics, strict=True))
