"""SENet-154: parity with timm's and pytorchcv's ports and a forward pass written from the paper; its own gate."""

import pytest
import timm
import torch
from model_cases import forward_resnet, load_as_convolutions, randomise
from pytorchcv.models.senet import SENet as PytorchcvSENet
from timm.models.senet import SEBottleneck as TimmBottleneck
from timm.models.senet import SENet as TimmSENet
from torch.nn import functional as F

from excite.cost import SENET, count_cost
from excite.errors import UserError
from excite.gates import ECA, SE, ECAConfig, SEConfig
from excite.models import create_model, gate_parameters, split_alias
from excite.models.base import gate_modules
from excite.models.senet import SENet, SENetOptions
from excite.networks import NetworkSpec, build
from tolerances import PARITY, PEER

CLOSE = PARITY[torch.float64]
SMALL = (1, 2, 1, 1)


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return create_model(name, **kwargs)


def count(model):
    return sum(p.numel() for p in model.parameters())


def images(n=2, size=64):
    return torch.randn(n, 3, size, size, dtype=torch.float64)


def timm_key(key):
    if key.startswith("fc."):
        return key.replace("fc.", "last_linear.")
    key = key.replace(".gate.", ".se_module.")
    return f"layer0.{key}" if key.startswith(("conv", "bn")) else key


def pytorchcv_key(key):
    key = key.replace(".gate.", ".se.").replace(".se.fc", ".se.conv")
    if key.startswith("fc."):
        return key.replace("fc.", "output.fc.")
    if not key.startswith("layer"):
        layer, *rest = key.split(".")
        return f"features.init_block.conv{layer[-1]}.{layer[:-1]}.{rest[0]}"
    stage, unit, layer, *rest = key.removeprefix("layer").split(".")
    prefix = f"features.stage{stage}.unit{int(unit) + 1}."
    if layer == "se":
        return f"{prefix}se.{'.'.join(rest)}"
    if layer == "downsample":
        return f"{prefix}identity_conv.{'conv' if rest[0] == '0' else 'bn'}.{rest[1]}"
    return f"{prefix}body.conv{layer[-1]}.{layer[:-1]}.{rest[0]}"


@pytest.fixture(scope="module")
def ports():
    """Timm's port of the authors' network, shortened, and ours with its weights."""
    torch.manual_seed(0)
    theirs = TimmSENet(
        TimmBottleneck,
        SMALL,
        groups=64,
        reduction=16,
        inplanes=128,
        input_3x3=True,
        downsample_kernel_size=3,
        downsample_padding=1,
        num_classes=7,
    )
    theirs = randomise(theirs).double().eval()
    ours = SENet(SMALL, gate=SEConfig(), num_classes=7).double().eval()
    load_as_convolutions(ours, theirs, timm_key)
    return theirs, ours


def test_outputs_and_gradients_equal_timms(ports):
    theirs, ours = ports
    x = images(2, 66).requires_grad_()  # a map of odd size before every stride
    x_theirs = x.detach().clone().requires_grad_()
    y, expected = ours(x), theirs(x_theirs)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)


def test_moving_a_stride_or_the_pool_is_seen(ports):
    theirs, ours = ports
    x = images()
    expected = theirs(x)
    moved = SENet(SMALL, gate=SEConfig(), num_classes=7, options=SENetOptions(stem_pool="padded")).double().eval()
    moved.load_state_dict(ours.state_dict())
    assert not torch.allclose(moved(x), expected, rtol=1e-2)
    moved.maxpool = ours.maxpool
    torch.testing.assert_close(moved(x), expected, **CLOSE)
    first = moved.layer2[0]
    first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    assert not torch.allclose(moved(x), expected, rtol=1e-2)


def test_padded_stem_pool_equals_pytorchcvs(ports):
    channels = [[256], [512, 512], [1024], [2048]]
    theirs = PytorchcvSENet(channels, 128, cardinality=64, bottleneck_width=4, in_size=(64, 64), num_classes=7)
    theirs.features.final_pool = torch.nn.AdaptiveAvgPool2d(1)  # theirs is for 224 x 224
    theirs = randomise(theirs).double().eval()
    ours = SENet(SMALL, gate=SEConfig(), num_classes=7, options=SENetOptions(stem_pool="padded")).double().eval()
    load_as_convolutions(ours, theirs, pytorchcv_key)
    x = images()
    torch.testing.assert_close(ours(x), theirs(x), **CLOSE)


@pytest.mark.slow
def test_the_whole_network_equals_timms():
    theirs = randomise(timm.create_model("legacy_senet154", num_classes=10)).eval()
    ours = create_model("senet154", num_classes=10).eval()
    load_as_convolutions(ours, theirs, timm_key)
    x = images(1).float()
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, rtol=PEER["rtol"], atol=PEER["rtol"] * expected.abs().max().item())


def test_timms_network_has_no_other_tensors():
    """Shapes of the whole network, without its data."""
    with torch.device("meta"):
        theirs = timm.create_model("legacy_senet154").state_dict()
    for key, value in on_meta("senet154").state_dict().items():
        other = theirs.pop(timm_key(key)).shape
        assert other == value.shape or other == (*value.shape, 1, 1)
    assert not theirs


@pytest.mark.parametrize("placement", ["standard", "inner"])
def test_placement_is_the_papers(placement):
    model = SENet((1, 1, 1, 1), gate=SEConfig(), placement=placement, stages=(1, 2), num_classes=5)
    model = randomise(model).double().eval()
    x = images(1)
    expected = forward_resnet(model.state_dict(), x, placement=placement, stem_pool="ceil")
    torch.testing.assert_close(model(x), expected, **CLOSE)


# --- what the name means ---


def test_the_gate_is_part_of_the_name():
    own, plain, eca = on_meta("senet154"), on_meta("senet154", gate="none"), on_meta("senet154", gate="eca")
    assert count(own) == 115_088_984
    assert count(plain) == 115_088_984 - sum(p.numel() for p in gate_parameters(own)) == 108_459_944
    assert {type(gate) for gate in gate_modules(own).values()} == {SE}
    assert {type(gate) for gate in gate_modules(eca).values()} == {ECA}
    assert len(gate_modules(own)) == len(gate_modules(eca)) == 50 and not gate_modules(plain)
    assert [k for k in own.state_dict() if ".gate." not in k] == list(plain.state_dict())


@pytest.mark.parametrize(
    ("asked", "gate"),
    [
        (("senet154", None), "se"),
        (("senet154", "none"), "none"),
        (("senet154", "eca"), "eca"),
        (("se_senet154", None), "se"),
        (("eca_senet154", None), "eca"),
        (("resnet50", None), None),
    ],
)
def test_names_and_gates(asked, gate):
    assert split_alias(*asked) == (asked[0].split("_")[-1], gate)


def test_specs_say_the_gate():
    assert NetworkSpec("senet154") == NetworkSpec("senet154", gate="se") == NetworkSpec("se_senet154")
    assert NetworkSpec("senet154", gate="none").gate == "none"
    assert NetworkSpec.from_dict(NetworkSpec("senet154").to_dict()) == NetworkSpec("senet154")


def test_paired_initialisation_starts_from_the_network_without_gates(monkeypatch):
    from excite import models

    short = models.Architecture(SENet, {"depths": (1, 1, 1, 1)}, gate="se")
    monkeypatch.setitem(models.MODELS, "senet154", short)
    gated, plain = (build(NetworkSpec("senet154", gate=g, num_classes=3), seed=5) for g in (None, "none"))
    assert len(gate_modules(gated)) == 4 and not gate_modules(plain)
    state = gated.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


# --- counts, head, pyramid, mistakes ---


def test_cost():
    """The SE paper prints no figure; timm lists 20.77 G, which counts the gates' layers, pools and so on otherwise."""
    image = torch.empty(1, 3, 224, 224, device="meta")
    cost = count_cost(on_meta("senet154"), image, convention=SENET)
    assert cost.uncounted == {}
    assert round(cost.total.macs / 1e9, 3) == 20.715
    assert cost.gates.parameters == 2 * (3 * 256**2 + 8 * 512**2 + 36 * 1024**2 + 3 * 2048**2) // 16 + 17 * (
        3 * 16 + 8 * 32 + 36 * 64 + 3 * 128
    )


def test_dropout_in_training_only():
    model = SENet((1, 1, 1, 1), num_classes=0, options=SENetOptions(dropout=0.5))
    features = torch.rand(64, 2048, 2, 2) + 0.1
    dropped = (model.train().forward_head(features) == 0).double().mean().item()
    assert 0.45 < dropped < 0.55
    assert torch.equal(model.eval().forward_head(features), features.mean((2, 3)))
    assert SENetOptions().dropout == 0.2


def test_pyramid(ports):
    _, ours = ports
    x = images(1)
    maps = ours.forward_pyramid(x)
    assert {s: m.shape[1:] for s, m in maps.items()} == {
        4: (256, 16, 16),
        8: (512, 8, 8),
        16: (1024, 4, 4),
        32: (2048, 2, 2),
    }
    assert ours.pyramid_channels == {4: 256, 8: 512, 16: 1024, 32: 2048}
    assert torch.equal(maps[32], ours.forward_features(x))
    y = F.relu(ours.bn3(ours.conv3(F.relu(ours.bn2(ours.conv2(F.relu(ours.bn1(ours.conv1(x)))))))))
    assert torch.equal(maps[4], ours.layer1(ours.maxpool(y)))


def test_zero_init_and_other_gates():
    model = SENet((2, 1, 1, 1), gate=ECAConfig(), options=SENetOptions(zero_init_last_norm=True)).eval()
    x = torch.rand(2, 256, 5, 5)
    assert torch.equal(model.layer1[1](x), x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "senet-154"}, "did you mean 'senet154'"),
        ({"name": "senet154", "dropout": 1.0}, "dropout=1.0"),
        ({"name": "senet154", "stem_pool": "pad"}, "did you mean 'padded'"),
        ({"name": "senet154", "variant": "official"}, "has no variants"),
        ({"name": "se_senet154", "gate": "none"}, "name 'senet154' instead"),
    ],
)
def test_mistakes_are_named_with_the_way_out(kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model(**kwargs)
