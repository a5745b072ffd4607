"""ResNeXt-50 and 101: parity with torchvision, timm and a forward pass written from the papers; published counts."""

import pytest
import timm
import torch
import torchvision
from model_cases import forward_resnet, load_as_convolutions, randomise
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import ResNet as TimmResNet
from timm.models.senet import SENet as TimmLegacy
from timm.models.senet import SEResNeXtBottleneck as TimmLegacyBottleneck
from torch.nn import functional as F

from excite.cost import SENET, count_cost
from excite.errors import UserError
from excite.gates import ECAConfig, SEConfig
from excite.models import create_model
from excite.models.resnext import ResNeXt, ResNeXtOptions
from tolerances import PARITY, PEER, PRINTED_MACS

CLOSE = PARITY[torch.float64]
SMALL = (1, 2, 1, 1)


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return create_model(name, **kwargs)


def small(gate=None, *, num_classes=7, stem_pool="padded", **kwargs):
    return ResNeXt(SMALL, gate=gate, num_classes=num_classes, options=ResNeXtOptions(stem_pool=stem_pool), **kwargs)


def torchvision_resnext(depths, **kwargs):
    block = torchvision.models.resnet.Bottleneck
    return torchvision.models.resnet.ResNet(block, depths, groups=32, width_per_group=4, **kwargs)


def images(n=2, size=64):
    return torch.randn(n, 3, size, size, dtype=torch.float64)


def legacy_key(key):
    if key.startswith("fc."):
        return key.replace("fc.", "last_linear.")
    key = key.replace(".gate.", ".se_module.")
    return f"layer0.{key}" if key.startswith(("conv1.", "bn1.")) else key


# --- parity ---


@pytest.mark.parametrize(("name", "depths"), [("resnext50_32x4d", [3, 4, 6, 3]), ("resnext101_32x4d", [3, 4, 23, 3])])
def test_state_dict_has_torchvisions_keys_shapes_and_order(name, depths):
    with torch.device("meta"):
        theirs = torchvision_resnext(depths).state_dict()
    ours = on_meta(name).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


def test_outputs_and_gradients_equal_torchvisions():
    theirs = randomise(torchvision_resnext(SMALL, num_classes=7)).double().train()
    ours = small().double().train()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images().requires_grad_()
    x_theirs = x.detach().clone().requires_grad_()
    y, expected = ours(x), theirs(x_theirs)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, **CLOSE)


@pytest.mark.slow
def test_the_whole_network_equals_torchvisions():
    theirs = randomise(torchvision.models.resnext50_32x4d(num_classes=10)).eval()
    ours = create_model("resnext50_32x4d", num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(1).float()
    torch.testing.assert_close(ours(x), theirs(x), **PEER)


@pytest.mark.slow
def test_the_whole_official_network_equals_timms_port():
    theirs = randomise(timm.create_model("legacy_seresnext50_32x4d", num_classes=10)).eval()
    ours = create_model("se_resnext50_32x4d", variant="official", num_classes=10).eval()
    load_as_convolutions(ours, theirs, legacy_key)
    x = images(1).float()
    torch.testing.assert_close(ours(x), theirs(x), **PEER)


@pytest.mark.parametrize("attention", ["se", "eca"])
def test_gated_networks_equal_timms(attention):
    theirs = TimmResNet(
        TimmBottleneck, SMALL, num_classes=7, cardinality=32, base_width=4, block_args={"attn_layer": attention}
    )
    theirs = randomise(theirs).double().eval()
    ours = small(SEConfig() if attention == "se" else ECAConfig()).double().eval()
    load_as_convolutions(ours, theirs, lambda key: key.replace(".gate.", ".se."))
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


@pytest.fixture(scope="module")
def official():
    """Timm's port of the SE authors' network, and ours with its weights."""
    torch.manual_seed(0)
    theirs = TimmLegacy(TimmLegacyBottleneck, SMALL, groups=32, reduction=16, num_classes=7, drop_rate=0.0)
    theirs = randomise(theirs).double().eval()
    ours = small(SEConfig(), stem_pool="ceil").double().eval()
    load_as_convolutions(ours, theirs, legacy_key)
    return theirs, ours


def test_official_network_equals_timms_port(official):
    theirs, ours = official
    x = images(2, 66).requires_grad_()  # a map of odd size before every stride
    x_theirs = x.detach().clone().requires_grad_()
    y, expected = ours(x), theirs(x_theirs)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)


def test_moving_a_stride_or_the_pool_is_seen(official):
    """Shapes and keys stay the same, so only the output can tell."""
    theirs, ours = official
    x = images()
    expected = theirs(x)
    padded = small(SEConfig()).double().eval()
    padded.load_state_dict(ours.state_dict())
    assert not torch.allclose(padded(x), expected, rtol=1e-2)
    padded.load_state_dict(ours.state_dict())
    padded.maxpool = ours.maxpool
    torch.testing.assert_close(padded(x), expected, **CLOSE)
    first = padded.layer3[0]
    first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    assert not torch.allclose(padded(x), expected, rtol=1e-2)


# --- against a forward pass written from the papers ---


@pytest.mark.parametrize("placement", ["standard", "inner"])
def test_placement_is_the_papers(placement):
    model = ResNeXt((1, 1, 1, 1), gate=SEConfig(), placement=placement, stages=(1, 4), num_classes=5)
    model = randomise(model).double().eval()
    assert {key.split(".")[0] for key in model.state_dict() if ".gate." in key} == {"layer1", "layer4"}
    x = images(1)
    torch.testing.assert_close(model(x), forward_resnet(model.state_dict(), x, placement=placement), **CLOSE)


# --- counts that the papers print ---


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x4d", 44_177_704),
        ("se_resnext50_32x4d", 27_559_896),
        ("se_resnext101_32x4d", 48_955_416),
    ],
)
def test_parameter_counts(name, parameters):
    assert sum(p.numel() for p in on_meta(name).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("resnext50_32x4d", 4.24),
        ("se_resnext50_32x4d", 4.25),
        ("resnext101_32x4d", 7.99),
        ("se_resnext101_32x4d", 8.00),
    ],
)
def test_se_papers_gmacs(name, gmacs):
    """SE paper, Table 2. Counted: 4.236, 4.244, 7.979 and 7.993, up to 0.14 % under the printed figures."""
    model = on_meta(name, variant="official")
    cost = count_cost(model, torch.empty(1, 3, 224, 224, device="meta"), convention=SENET)
    assert cost.total.macs / 1e9 == pytest.approx(gmacs, rel=PRINTED_MACS)


# --- the rest of the contract ---


def test_pyramid():
    model = small(num_classes=0).eval()
    x = torch.randn(2, 3, 64, 96)
    maps = model.forward_pyramid(x)
    assert {stride: m.shape for stride, m in maps.items()} == {
        4: (2, 256, 16, 24),
        8: (2, 512, 8, 12),
        16: (2, 1024, 4, 6),
        32: (2, 2048, 2, 3),
    }
    assert model.pyramid_channels == {stride: m.shape[1] for stride, m in maps.items()}
    assert torch.equal(maps[32], model.forward_features(x))
    y = F.relu(model.bn1(model.conv1(x)))
    assert torch.equal(maps[8], model.layer2(model.layer1(model.maxpool(y))))


def test_zero_init_starts_every_block_as_its_shortcut():
    model = create_model("resnext50_32x4d", zero_init_last_norm=True, num_classes=3).eval()
    x = torch.rand(2, 256, 5, 5)
    assert torch.equal(model.layer1[1](x), x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "resnext50_32x4"}, "did you mean 'resnext50_32x4d'"),
        ({"name": "resnext50_32x4d", "stem_pool": "padd"}, "did you mean 'padded'"),
        ({"name": "resnext50_32x4d", "stride_in": "1x1"}, "option of model 'resnext50_32x4d' 'stride_in'"),
        ({"name": "resnext50_32x4d", "stages": (5,)}, "layer1 to layer4"),
        ({"name": "resnext50_32x4d", "placement": "middle"}, "unknown placement 'middle'"),
        ({"name": "resnext50_32x4d", "variant": "caffe"}, "official"),
    ],
)
def test_mistakes_are_named_with_the_way_out(kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model(**kwargs)
