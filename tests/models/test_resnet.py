"""ResNet-18 to 152: parity with torchvision, timm and a forward pass written from the papers; published counts."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import timm
import torch
import torchvision
from model_cases import forward_resnet, load_as_convolutions, randomise
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import nn

from excite.errors import UserError
from excite.gates import ECAConfig, GateConfig, SEConfig, parse_gate
from excite.models import PLACEMENTS, create_model, gate_parameters
from excite.models.resnet import BasicBlock, Bottleneck, ResNet
from tolerances import PARITY

CLOSE = PARITY[torch.float64]
TV_NAMES = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def count(model):
    return sum(p.numel() for p in model.parameters())


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return create_model(name, **kwargs)


def images(n=2, size=64):
    return torch.randn(n, 3, size, size, dtype=torch.float64)


# --- parity with torchvision ---


@pytest.mark.parametrize("name", TV_NAMES)
def test_state_dict_has_torchvisions_keys_shapes_and_order(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    ours = on_meta(name).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_outputs_and_gradients_equal_torchvisions(name, training):
    theirs = randomise(torchvision.models.get_model(name, weights=None, num_classes=10)).double().train(training)
    ours = create_model(name, num_classes=10).double().train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, x_theirs = images().requires_grad_(), None
    x_theirs = x.detach().clone().requires_grad_()
    y, y_theirs = ours(x), theirs(x_theirs)
    torch.testing.assert_close(y, y_theirs, **CLOSE)
    y.square().sum().backward()
    y_theirs.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)
    for (key, mine), theirs_ in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs_.grad, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")
    for (key, mine), theirs_ in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs_, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


def test_moving_the_stride_or_the_pool_changes_the_output():
    """Shapes and keys stay the same, so only the output can tell: each option must show there."""
    theirs = randomise(torchvision.models.resnet50(num_classes=10)).double().eval()
    x = images()
    expected = theirs(x)
    for options in ({"stride_in": "1x1"}, {"stem_pool": "ceil"}, {"variant": "official"}):
        moved = create_model("resnet50", num_classes=10, **options).double().eval()
        moved.load_state_dict(theirs.state_dict(), strict=True)
        assert not torch.allclose(moved(x), expected, rtol=1e-2)


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_both_tails_train_as_torchvision_does(impl):
    theirs = randomise(torchvision.models.resnet18(num_classes=4)).double().train()
    ours = create_model("resnet18", num_classes=4, impl=impl).double().train()
    ours.load_state_dict(theirs.state_dict())
    x = images()
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, **CLOSE)


# --- parity with timm's gated networks ---


def timm_key(key):
    return key.replace(".gate.", ".se.")


@pytest.mark.parametrize(
    ("name", "peer", "gate"),
    [("resnet50", "seresnet50", "se"), ("resnet18", "seresnet18", "se(round_to=8)")],
)
def test_se_networks_equal_timms(name, peer, gate):
    theirs = randomise(timm.create_model(peer, num_classes=10)).double().eval()
    ours = create_model(name, gate=gate, num_classes=10).double().eval()
    load_as_convolutions(ours, theirs, timm_key)
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


def test_eca_network_equals_timms():
    theirs = TimmResNet(TimmBottleneck, [1, 1, 2, 1], num_classes=10, block_args={"attn_layer": "eca"})
    theirs = randomise(theirs).double().eval()
    ours = ResNet(Bottleneck, (1, 1, 2, 1), gate=ECAConfig(), num_classes=10).double().eval()
    load_as_convolutions(ours, theirs, timm_key)
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


def test_official_variant_equals_timms_port_of_the_authors_network():
    theirs = randomise(timm.create_model("legacy_seresnet50", num_classes=10)).double().eval()
    ours = create_model("se_resnet50", variant="official", num_classes=10).double().eval()

    def rename(key):
        if key.startswith("fc."):
            return key.replace("fc.", "last_linear.")
        key = key.replace(".gate.", ".se_module.")
        return f"layer0.{key}" if key.startswith(("conv1.", "bn1.")) else key

    load_as_convolutions(ours, theirs, rename)
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


# --- placements and stages against a forward pass written from the papers ---


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_placement_is_the_papers(block, placement):
    model = ResNet(block, (1, 2, 1, 1), gate=SEConfig(), placement=placement, num_classes=5)
    model = randomise(model).double().eval()
    x = images(1)
    expected = forward_resnet(model.state_dict(), x, placement=placement)
    torch.testing.assert_close(model(x), expected, **CLOSE)


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
@pytest.mark.parametrize("stem_pool", ["padded", "ceil"])
def test_each_option_is_the_papers(stride_in, stem_pool):
    model = create_model("se_resnet50", num_classes=5, stride_in=stride_in, stem_pool=stem_pool)
    model = randomise(model).double().eval()
    # 66 makes a map of odd size before every stride, where the two pools and strides differ at the border too.
    x = images(1, 66)
    expected = forward_resnet(model.state_dict(), x, placement="standard", stride_in=stride_in, stem_pool=stem_pool)
    torch.testing.assert_close(model(x), expected, **CLOSE)


def test_gates_of_some_stages_only():
    model = randomise(create_model("resnet18", gate="se", stages=(2, 4), num_classes=5)).double().eval()
    gated = {key.split(".")[0] for key in model.state_dict() if ".gate." in key}
    assert gated == {"layer2", "layer4"}
    x = images(1)
    torch.testing.assert_close(model(x), forward_resnet(model.state_dict(), x, placement="standard"), **CLOSE)


def test_gated_network_adds_only_gate_keys_and_keeps_the_order_of_the_others():
    plain, gated = on_meta("resnet50"), on_meta("se_resnet50")
    added = [k for k in gated.state_dict() if k not in plain.state_dict()]
    assert added and all(".gate." in k for k in added)
    assert [k for k in gated.state_dict() if ".gate." not in k] == list(plain.state_dict())


# --- counts that the papers print ---


@pytest.mark.parametrize(
    ("name", "gate", "parameters"),
    [
        ("resnet50", "none", 25_557_032),
        ("resnet50", "se(bias=false)", 28_071_976),
        ("resnet50", "se", 28_088_024),
        ("resnet101", "se", 49_326_872),
        ("resnet152", "se", 66_821_848),
        # ECA paper, Table 2, in units of 2^20: 11.15 and 20.79; 24.37, 42.49 and 57.40.
        ("resnet18", "eca(kernel_size=released:resnet18)", 11_689_512 + 2 * (3 + 5 + 7 + 7)),
        ("resnet50", "eca", 25_557_032 + 3 * 5 + 4 * 5 + 6 * 5 + 3 * 7),
        ("resnet50", "eca(kernel_size=released:resnet50)", 25_557_032 + 3 * 3 + 4 * 5 + 6 * 5 + 3 * 7),
    ],
)
def test_parameter_counts(name, gate, parameters):
    model = on_meta(name, gate=gate)
    assert count(model) == parameters
    assert sum(p.numel() for p in gate_parameters(model)) == parameters - count(on_meta(name))


@pytest.mark.parametrize(
    ("name", "printed"),
    [("resnet18", 11.15), ("resnet34", 20.79), ("resnet50", 24.37), ("resnet101", 42.49), ("resnet152", 57.40)],
)
def test_eca_papers_parameters(name, printed):
    assert round(count(on_meta(f"eca_{name}")) / 2**20, 2) == printed


@pytest.mark.parametrize(("reduction", "printed"), [(2, 45.7), (4, 35.7), (8, 30.7), (16, 28.1), (32, 26.9)])
def test_se_papers_reduction_ablation(reduction, printed):
    """Table 10 counts batch norm's running statistics as parameters, and no biases; its r = 8 is 30.64 counted so."""
    model = on_meta("resnet50", gate=f"se(reduction={reduction},bias=false)")
    statistics = sum(b.numel() for b in model.buffers() if b.dim() == 1)
    assert statistics == 53_120
    assert (count(model) + statistics) / 1e6 == pytest.approx(printed, abs=0.061 if reduction == 8 else 0.05)


@pytest.mark.parametrize(("stages", "printed"), [((1,), 25.6), ((2,), 25.7), ((3,), 26.4)])
def test_se_papers_single_stages(stages, printed):
    """Table 13; the paper's stage k + 1 is stage k here."""
    model = on_meta("resnet50", gate="se(bias=false)", stages=stages)
    statistics = sum(b.numel() for b in model.buffers() if b.dim() == 1)
    assert round((count(model) + statistics) / 1e6, 1) == printed


def test_se_papers_inner_placement():
    """Table 14's SE_3x3: 25.8M."""
    model = on_meta("resnet50", gate="se(bias=false)", placement="inner")
    assert round((count(model) + 53_120) / 1e6, 1) == 25.8


def test_gate_parameters_by_stage():
    """2 C^2 / r a block (SE paper, Eq. 5) and C / r + C for the biases."""
    for stage, (depth, c) in enumerate(zip((3, 4, 6, 3), (256, 512, 1024, 2048), strict=True), start=1):
        model = on_meta("resnet50", gate="se", stages=(stage,))
        assert sum(p.numel() for p in gate_parameters(model)) == depth * (2 * c * c // 16 + c // 16 + c)


def test_adaptive_eca_kernel_of_each_stage():
    model = on_meta("eca_resnet50")
    sizes = [getattr(model, f"layer{i}")[0].gate.kernel_size for i in range(1, 5)]
    assert sizes == [5, 5, 5, 7]


# --- initialisation, heads, formats ---


def test_initialisation_is_he_fan_out_and_leaves_gates_alone():
    model = create_model("resnet50", gate="se")
    weight = model.layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert torch.all(model.layer3[0].bn3.weight == 1)
    gated = create_model("resnet18", gate=ConvolutionConfig(), num_classes=2)
    for name, p in gated.named_parameters():
        assert not name.endswith(".gate.weight") or torch.all(p == 0.25)


@dataclass(frozen=True)
class ConvolutionConfig(GateConfig):
    """A module on maps that is no ``Gate`` and holds a convolution with an initialisation of its own."""

    name: ClassVar[str] = "convolution"

    def build(self, channels):
        module = nn.Conv2d(channels, channels, 1, groups=channels)
        nn.init.constant_(module.weight, 0.25)
        return module


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
def test_zero_init_starts_every_block_as_its_shortcut(name):
    model = create_model(name, zero_init_last_norm=True, num_classes=3).eval()
    x = torch.rand(2, model.layer1[1].conv1.in_channels, 9, 9)
    assert torch.equal(model.layer1[1](x), x)
    assert not torch.equal(create_model(name, num_classes=3).eval().layer1[1](x), x)


def test_features_and_classifier():
    model = create_model("resnet18", num_classes=7, in_channels=2).eval()
    x = torch.randn(3, 2, 64, 70)
    features = model.forward_features(x)
    assert features.shape == (3, 512, 2, 3)
    assert torch.equal(model.forward_head(features), model(x))
    assert model(x).shape == (3, 7)
    model.double().reset_classifier(4)
    assert model.fc.weight.dtype == torch.float64 and model(x.double()).shape == (3, 4)
    model.reset_classifier(0)
    assert model(x.double()).shape == (3, 512) and "fc.weight" not in model.state_dict()
    with pytest.raises(UserError, match="num_classes=-1"):
        model.reset_classifier(-1)


@pytest.mark.parametrize("gate", ["none", "se", "eca", "se_var3", "no_squeeze"])
def test_channels_last_changes_nothing_but_the_layout(gate):
    reference = randomise(create_model("resnet18", gate=gate, num_classes=3)).double()
    model = copy.deepcopy(reference).to(memory_format=torch.channels_last)
    x = images()
    features = []
    model.layer4.register_forward_hook(lambda module, args, output: features.append(output))
    y, expected = model(x.to(memory_format=torch.channels_last)), reference(x)
    assert features[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.sum().backward()
    expected.sum().backward()
    for p, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet50", "resnet20"])
def test_half_precision(name, dtype):
    """Against the same half-precision weights run in float32, so that only the arithmetic differs."""
    model = create_model(name, gate="se", num_classes=5).to(dtype).eval()
    x = torch.randn(2, 3, 64, 64).to(dtype)
    y = model(x)
    assert y.dtype == dtype
    expected = model.float()(x.float())
    error = (y.float() - expected).abs().max() / expected.abs().max()
    # Roundings of some 50 layers, each of half the spacing of the dtype, add up like a random walk.
    assert error < 50**0.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("placement", ["standard", "inner"])
def test_compiles_whole(placement):
    model = randomise(ResNet(BasicBlock, (1, 1, 1, 1), gate=SEConfig(), placement=placement, num_classes=3)).double()
    x = images()
    expected = model(x)
    expected.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected, **CLOSE)
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.grad, grads[n], **CLOSE)


# --- mistakes ---


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "resnet51"}, "did you mean 'resnet5"),
        ({"name": "resnet50", "gate": "sse"}, "did you mean 'se'"),
        ({"name": "resnet50", "placement": "standart"}, "did you mean 'standard'"),
        ({"name": "resnet50", "stages": ()}, r"stages=\(\) puts no gate anywhere"),
        ({"name": "resnet50", "stages": (0, 1)}, r"stages=\(0, 1\).*1, 2, 3, 4"),
        ({"name": "resnet50", "stages": (5,)}, "layer1 to layer4"),
        ({"name": "resnet50", "stages": (2, 2)}, "each once"),
        ({"name": "resnet50", "stages": (True,)}, "True"),
        ({"name": "resnet50", "stages": 3}, "give a tuple"),
        ({"name": "resnet20", "stages": (4,)}, "layer1 to layer3"),
        ({"name": "resnet50", "stride": "1x1"}, "option of model 'resnet50' 'stride': did you mean 'stride_in'"),
        ({"name": "resnet50", "stride_in": "7x7"}, "stride_in '7x7'"),
        ({"name": "resnet50", "stem_pool": "cell"}, "did you mean 'ceil'"),
        ({"name": "resnet18", "stride_in": "1x1"}, "needs a bottleneck"),
        ({"name": "resnet18", "variant": "official"}, "needs a bottleneck"),
        ({"name": "resnet50", "variant": "oficial"}, "did you mean 'official'"),
        ({"name": "resnet20", "variant": "official"}, "has no variants"),
        ({"name": "resnet20", "shortcut": "C"}, "shortcut 'C'"),
        ({"name": "se_resnet50", "gate": "eca"}, "name 'resnet50' instead"),
        ({"name": "se_resnet50", "gate": "none"}, "name 'resnet50' instead"),
        ({"name": "resnet50", "in_channels": 0}, "in_channels=0"),
        ({"name": "resnet50", "num_classes": -2}, "num_classes=-2"),
        ({"name": "resnet50", "impl": "fusd"}, "did you mean 'fused'"),
    ],
)
def test_mistakes_are_named_with_the_way_out(kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model(**kwargs)


def test_an_option_overrides_its_variant():
    model = on_meta("resnet50", variant="official", stem_pool="padded")
    assert model.maxpool.padding == 1 and model.layer2[0].conv1.stride == (2, 2)


def test_gate_by_config_and_by_text_are_the_same():
    by_text = on_meta("resnet18", gate="se(reduction=8)")
    by_config = on_meta("resnet18", gate=SEConfig(reduction=8))
    assert by_text.layer1[0].gate.config == by_config.layer1[0].gate.config == parse_gate("se(reduction=8)")
