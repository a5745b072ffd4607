"""Gates of any library are known by what they compute, and replaced with their weights where these map."""

import pytest
import timm
import torch
import torchvision
from surgery_cases import gate_keys, image, lively, looks, move_gates, small
from torch import nn

from excite.gates import ECA, SE
from excite.models import VGG, create_model
from excite.models.base import gate_modules
from excite.surgery import attach_, attached, detach_, find_sites, swap_, verify
from tolerances import PARITY

DTYPES = [torch.float32, torch.float64]


def timm_resnet(attention, dtype=torch.float32):
    """A timm ResNet of four blocks with its gates."""
    options = {"attn_layer": attention} if attention else {}
    blocks = (1, 1, 1, 1)
    model = timm.models.ResNet(timm.models.resnet.BasicBlock, blocks, num_classes=5, block_args=options)
    return lively(model).eval().to(dtype)


def vovnet(dtype=torch.float32):
    model = timm.models.vovnet.VovNet(
        {
            "stem_chs": [8, 8, 16],
            "stage_conv_chs": [8, 8, 8, 8],
            "stage_out_chs": [16, 24, 24, 32],
            "layer_per_block": 2,
            "block_per_stage": [1, 1, 2, 1],
            "residual": True,
            "depthwise": False,
            "attn": "ese",
        },
        num_classes=5,
    )
    return lively(model).eval().to(dtype)


def check_same(model, x, n, old, dtype):
    """``same`` keeps the outputs, and every gate is one of excite."""
    n_parameters = sum(p.numel() for p in model.parameters())
    y = model(x)
    swaps = swap_(model, "*", "same", x)
    assert len(swaps) == n and all(s.weights_kept and s.old == s.new and s.old.startswith(old) for s in swaps), swaps
    assert all(isinstance(model.get_submodule(s.module), SE | ECA | nn.Module) for s in swaps)
    assert set(gate_modules(model)) == {s.module for s in swaps}
    assert all(p.dtype == dtype for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    scale = y.abs().max()
    torch.testing.assert_close(model(x) / scale, y / scale, **PARITY[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "attention, old", [("se", "se(reduced_channels="), ("ese", "ese"), ("eca", "eca(kernel_size=")]
)
def test_timms_gates_become_ours(attention, old, dtype):
    model = timm_resnet(attention, dtype)
    check_same(model, image(size=32, dtype=dtype), 4, old, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vovnets_gates_become_ours(dtype):
    # One in the last block of each stage.
    check_same(vovnet(dtype), image(size=64, dtype=dtype), 4, "ese", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gates_of_torchvisions_mobilenet_v3_become_ours(dtype):
    """A hard sigmoid, widths of make_divisible; 8 of 15 blocks have one."""
    model = lively(torchvision.models.mobilenet_v3_large(num_classes=5)).eval().to(dtype)
    check_same(model, image(size=32, dtype=dtype), 8, "se(reduced_channels=", dtype)
    assert all(gate.gate_function == "hard_sigmoid" for gate in gate_modules(model).values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gates_of_torchvisions_efficientnet_become_ours(dtype):
    """SiLU inside, and the width from the block's input."""
    model = lively(torchvision.models.efficientnet_b0(num_classes=5)).eval().to(dtype)
    check_same(model, image(size=32, dtype=dtype), 16, "se(reduced_channels=", dtype)
    assert {(g.activation, g.gate_function) for g in gate_modules(model).values()} == {("silu", "sigmoid")}


class Written(nn.Module):
    """Squeeze-and-Excitation as somebody writes it, with a function at the end."""

    def __init__(self, channels, end, inner=nn.ReLU):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, channels // 4), inner(), nn.Linear(channels // 4, channels))
        self.end = end

    def forward(self, x):
        return self.end(x, self.layers(x.mean((2, 3)))[:, :, None, None])


GATES = {
    "se(reduced_channels=2)": lambda x, s: x * s.sigmoid(),
    "se(reduced_channels=2,gate_function=tanh)": lambda x, s: s.tanh() * x,
    "se(reduced_channels=2,gate_function=relu)": lambda x, s: x * s.relu().expand_as(x),
    "se(reduced_channels=2,gate_function=hard_sigmoid)": lambda x, s: x.mul(nn.functional.hardsigmoid(s)),
    "se(reduced_channels=2,gate_function=hard_sigmoid,hard_sigmoid_slope=0.2)": lambda x, s: (
        x * (0.2 * s + 0.5).clamp(0, 1)
    ),
}
NO_GATES = {
    "twice sigmoid": lambda x, s: x * 2 * s.sigmoid(),
    "exponential": lambda x, s: x * s.exp(),
    "softmax": lambda x, s: x * s.softmax(1),
    "and the map": lambda x, s: x + x * s.sigmoid(),
    "added": lambda x, s: x + s.sigmoid(),
}


def around(module):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), module, nn.Conv2d(8, 8, 1))
    return lively(model).eval()


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize("text", GATES)
def test_a_gate_is_known_by_what_it_computes(text, with_example):
    model, x = around(Written(8, GATES[text])), image()
    y = model(x)
    (swap,) = swap_(model, "*", "same", x if with_example else None)
    assert (swap.module, swap.channels, swap.old, swap.new) == ("1", 8, text, text)
    torch.testing.assert_close(model(x), y, **PARITY[torch.float32])


@pytest.mark.parametrize("end", NO_GATES.values(), ids=NO_GATES)
def test_what_computes_anything_else_is_not_taken_for_a_gate(end):
    model = around(Written(8, end))
    before = looks(model)
    with pytest.raises(ValueError, match="no gates that can be told|computes what no gate of excite does"):
        swap_(model, "*", "same", image())
    with pytest.raises(ValueError, match="no gates that can be told"):
        swap_(model, "*", "same")
    assert looks(model) == before


@pytest.mark.parametrize("inner, activation", [(nn.SiLU, "silu"), (nn.GELU, "gelu"), (nn.Hardswish, "hard_swish")])
def test_activations_inside_are_told_apart(inner, activation):
    model, x = around(Written(8, lambda x, s: x * s.sigmoid(), inner)), image()
    (swap,) = swap_(model, "se", "same", x)
    assert swap.old == f"se(reduced_channels=2,activation={activation})"


# --- other gates ---


@pytest.mark.parametrize("start", ["paper", "neutral"])
def test_another_gate_starts_as_asked(start):
    model, x = timm_resnet("se"), image(size=32)
    bare = timm_resnet(None)
    bare.load_state_dict(model.state_dict(), strict=False)
    swaps = swap_(model, "se", "eca", start=start)
    text = "eca(neutral=true)" if start == "neutral" else "eca"
    assert [(s.new, s.weights_kept) for s in swaps] == [(text, False)] * 4
    assert [s.channels for s in swaps] == [64, 128, 256, 512]
    assert all(isinstance(block[0].se, ECA) for block in (model.layer1, model.layer2, model.layer3, model.layer4))
    assert torch.equal(model(x), bare(x)) == (start == "neutral")


def test_no_gates_at_all():
    model, x = timm_resnet("se"), image(size=32)
    bare = timm_resnet(None)
    bare.load_state_dict(model.state_dict(), strict=False)
    swaps = swap_(model, "se", "none")
    assert {(s.new, s.weights_kept) for s in swaps} == {("none", False)}
    assert torch.equal(model(x), bare(x)) and list(model.state_dict()) == list(bare.state_dict())
    assert len(find_sites(model, x)) == 4, "their places are free"


@pytest.mark.parametrize("old", ["se", "SEModule", "*"])
def test_gates_are_named_by_kind_or_class(old):
    model = timm_resnet("se")
    assert len(swap_(model, old, "eca")) == 4


def test_only_the_kind_that_is_named():
    x = image()
    model = nn.Sequential(timm.layers.SEModule(16), timm.layers.EffectiveSEModule(16))
    model = lively(nn.Sequential(nn.Conv2d(3, 16, 1), model)).eval()
    (swap,) = swap_(model, "ese", "se", x)
    assert swap.module == "1.1" and type(model[1][0]) is timm.layers.SEModule
    (swap,) = swap_(model, "SEModule", "none", x)
    assert swap.module == "1.0" and isinstance(model[1][1], SE)


@pytest.mark.parametrize(
    "new, kept",
    [
        ("se", True),  # in the old one's width, which the text leaves open
        ("se(reduced_channels=8)", True),
        ("se(reduced_channels=8,activation=silu)", False),
        ("se(reduced_channels=8,gate_function=hard_sigmoid)", False),
        ("se(reduced_channels=8,neutral=true)", False),
        ("se(reduced_channels=8,descriptor=max)", False),
        ("se(reduced_channels=8,bias=false)", False),
        ("se(reduced_channels=4)", False),
        ("ese", False),
    ],
)
def test_weights_are_kept_where_both_compute_the_same(new, kept):
    x = image(dtype=torch.float64)
    model = lively(nn.Sequential(nn.Conv2d(3, 32, 1), timm.layers.SEModule(32, rd_channels=8))).double().eval()
    y = model(x)
    (swap,) = swap_(model, "se", new, x)
    assert swap.weights_kept is kept
    assert torch.allclose(model(x), y, rtol=1e-10) is kept


@pytest.mark.parametrize("new, kept", [("eca(kernel_size=3)", True), ("eca", True), ("eca(kernel_size=5)", False)])
def test_filters_are_kept_where_they_are_as_long(new, kept):
    x = image(dtype=torch.float64)
    model = lively(nn.Sequential(nn.Conv2d(3, 16, 1), timm.layers.EcaModule(16, kernel_size=3))).double().eval()
    with torch.no_grad():
        model[1].conv.weight.normal_()
    y = model(x)
    (swap,) = swap_(model, "eca", new, x)
    assert swap.old == "eca(kernel_size=3)" and swap.weights_kept is kept
    assert torch.allclose(model(x), y, rtol=1e-10) is kept


def test_modes_and_dtypes_are_those_of_the_old():
    model = timm_resnet("se").train().bfloat16()
    swap_(model, "se", "eca")
    assert all(g.training and next(g.parameters()).dtype == torch.bfloat16 for g in gate_modules(model).values())
    model = timm_resnet("se").to("meta")
    swap_(model, "SEModule", "se", image(size=32))
    assert all(p.is_meta for p in model.parameters())
    assert not any(s.weights_kept for s in swap_(model, "se", "se(reduction=4)", image(size=32)))
    assert not any(s.weights_kept for s in swap_(model, "se", "se(reduction=4)")), "there are none"


# --- excite's own ---


def test_gates_of_our_networks():
    x = image(size=32)
    model = lively(create_model("se_resnet20", num_classes=5)).eval()
    plain = create_model("resnet20", num_classes=5).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    y = model(x)
    assert swap_(model, "se", "same")[0].weights_kept and torch.equal(model(x), y)
    assert {s.old for s in swap_(model, "se", "eca")} == {"se"}
    swap_(model, "eca", "none")
    assert torch.equal(model(x), plain(x)) and list(model.state_dict()) == list(plain.state_dict())
    with pytest.raises(ValueError, match="no gates that can be told"):
        swap_(model, "eca", "se")


def test_gates_of_our_vgg_live_in_their_relu():
    x = image(size=32)
    options = VGG.Options(hidden_features=8)
    model = lively(create_model("vgg11_bn", gate="se", num_classes=5, **vars(options))).eval()
    y = model(x)
    assert len(swap_(model, "se", "eca", start="neutral", example=x)) == 8
    gated = model(x)
    swap_(model, "eca", "none", x)
    assert torch.equal(model(x), gated) and not torch.equal(gated, y)


def test_attached_gates():
    model, x = small(), image()
    plain, before = model(x), looks(model)
    attach_(model, "se(reduction=4)", x)
    move_gates(model)
    y = model(x)
    assert [s.weights_kept for s in swap_(model, "se", "same")] == [True] * 4 and torch.equal(model(x), y)
    swap_(model, "se", "eca", start="neutral")
    assert {item.gate for item in verify(model)} == {"eca(neutral=true)"}
    assert torch.equal(model(x), plain) and gate_keys(model)[0] == "layers.0.norm2.excite_gate.conv.weight"
    swap_(model, "eca", "none", x)
    assert not attached(model) and looks(model) == before
    attach_(model, "se", x)
    swap_(model, "*", "ese", start="neutral")
    assert torch.equal(model(x), plain)
    assert len(detach_(model)) == 4 and looks(model) == before


# --- errors ---


@pytest.mark.parametrize(
    "old, new, match",
    [
        ("sse", "eca", "unknown kind of gate in this network 'sse': did you mean 'se'"),
        ("eca", "se", r"unknown kind of gate in this network 'eca'.*\*, se"),
        ("se", "ecaa", "unknown gate 'ecaa': did you mean 'eca'"),
        ("se", "se_gc(groups=7)", "groups=7 does not divide 64 channels"),
        ("se", "eca(kernel_size=released:mobilenetv2)", "has sizes for"),
    ],
)
def test_what_cannot_be_swapped_is_left(old, new, match):
    model = timm_resnet("se")
    before = looks(model)
    with pytest.raises(ValueError, match=match):
        swap_(model, old, new)
    assert looks(model) == before
    with pytest.raises(ValueError, match="unknown start"):
        swap_(model, "se", "eca", start="soon")
    assert looks(model) == before


def test_channels_that_layers_do_not_tell_need_an_example():
    model, x = timm_resnet("eca"), image(size=32)
    with pytest.raises(ValueError, match="no gates that can be told; with an example it is run"):
        swap_(model, "eca", "se")
    assert {s.old for s in swap_(model, "eca", "se", x)} == {"eca(kernel_size=3)", "eca(kernel_size=5)"}


def test_gates_that_excite_does_not_have_can_be_replaced_by_name():
    model, x = timm_resnet("cbam"), image(size=32)
    with pytest.raises(
        ValueError, match=r"layer1\.0\.se\.channel \(ChannelAttn\) computes what no gate of excite does"
    ):
        swap_(model, "*", "same", x)
    assert {s.old for s in swap_(model, "ChannelAttn", "se", x)} == {"ChannelAttn"}
    assert isinstance(model.layer1[0].se.channel, SE)


def test_a_gate_that_two_places_share_is_one():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.se = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), timm.layers.SEModule(8)

        def forward(self, x):
            return self.se(self.second(self.se(self.first(x))))

    model, x = lively(Shared()).eval(), image()
    y = model(x)
    assert len(swap_(model, "se", "same", x)) == 1
    torch.testing.assert_close(model(x), y, **PARITY[torch.float32])


def test_a_network_without_gates():
    with pytest.raises(ValueError, match="ResNet has no gates that can be told"):
        swap_(small(), "se", "eca", image())
