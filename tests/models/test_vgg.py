"""VGG with batch norm: parity with torchvision, gates after each ReLU, the papers' counts."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from model_cases import norm, randomise, squeeze_excite
from torch import nn

from excite.cost import SENET, count_cost
from excite.errors import UserError
from excite.gates import ECAConfig, SEConfig
from excite.models import create_model, gate_parameters
from excite.models.vgg import VGG, VGGOptions
from tolerances import PARITY, PRINTED_MACS

CLOSE = PARITY[torch.float64]
NAMES = ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"]
DEPTHS = {"vgg11_bn": (1, 1, 2, 2, 2), "vgg16_bn": (2, 2, 3, 3, 3)}


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return create_model(name, **kwargs)


def torchvisions(name):
    """Its network with hidden layers of 8 features instead of 4096, and no dropout."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, dropout=0.0)
    model.classifier[0], model.classifier[3], model.classifier[6] = (
        nn.Linear(512 * 49, 8, device="meta"),
        nn.Linear(8, 8, device="meta"),
        nn.Linear(8, 10, device="meta"),
    )
    model = model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.normal_(p, std=(2 / p[0].numel()) ** 0.5)
    return randomise(model).double()


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_torchvisions_keys_shapes_and_order(name):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    ours = on_meta(name).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]
    plain = [key for key in on_meta(f"se_{name}").state_dict() if ".gate." not in key]
    assert plain == list(theirs)


@pytest.mark.parametrize(("name", "training"), [("vgg11_bn", True), ("vgg11_bn", False), ("vgg16_bn", False)])
def test_outputs_and_gradients_equal_torchvisions(name, training):
    theirs = torchvisions(name).train(training)
    ours = create_model(name, num_classes=10, hidden_features=8, dropout=0.0).double().train(training)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 32, dtype=torch.float64).requires_grad_()
    x_theirs = x.detach().clone().requires_grad_()
    y, expected = ours(x), theirs(x_theirs)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, x_theirs.grad, **CLOSE)
    for (key, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


def forward_vgg(state, x, depths):
    """Eval-mode forward with SE gates wherever the state dict has one (SE paper, Sec. 4.1)."""
    i = 0
    for depth in depths:
        for _ in range(depth):
            weight, bias = state[f"features.{i}.weight"], state[f"features.{i}.bias"]
            x = F.relu(norm(state, f"features.{i + 1}", F.conv2d(x, weight, bias, padding=1)))
            prefix = f"features.{i + 2}."
            if prefix + "gate.fc1.weight" in state:
                gate = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                x = squeeze_excite(gate, x)
            i += 3
        x = F.max_pool2d(x, 2)
        i += 1
    x = F.adaptive_avg_pool2d(x, 7).flatten(1)
    for j in (0, 3):
        x = F.relu(F.linear(x, state[f"classifier.{j}.weight"], state[f"classifier.{j}.bias"]))
    return F.linear(x, state["classifier.6.weight"], state["classifier.6.bias"])


@pytest.mark.parametrize("stages", [None, (2, 5)])
def test_gates_follow_each_nonlinearity_of_their_stages(stages):
    model = create_model("vgg11_bn", gate="se", stages=stages, num_classes=5, hidden_features=8)
    model = randomise(model).double().eval()
    x = torch.randn(2, 3, 32, 64, dtype=torch.float64)
    expected = forward_vgg(model.state_dict(), x, DEPTHS["vgg11_bn"])
    torch.testing.assert_close(model(x), expected, **CLOSE)
    channels = [64, 128, 256, 256, 512, 512, 512, 512] if stages is None else [128, 512, 512]
    assert sum(p.numel() for p in gate_parameters(model)) == sum(2 * c * c // 16 + c // 16 + c for c in channels)


def test_stages_are_the_convolutions_between_pools():
    model = on_meta("vgg16_bn", gate="eca")
    stages = [model.stage_of(f"features.{i}") for i, layer in enumerate(model.features) if hasattr(layer, "gate")]
    assert stages == [1] * 2 + [2] * 2 + [3] * 3 + [4] * 3 + [5] * 3
    pools = [
        model.stage_of(f"features.{i}") for i, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)
    ]
    assert pools == [1, 2, 3, 4, 5]
    assert {model.stage_of(name) for name in ("", "features", "avgpool", "classifier", "classifier.0")} == {None}


@pytest.mark.parametrize(("name", "parameters"), [("vgg11_bn", 132868840), ("vgg16_bn", 138365992)])
def test_parameters_are_torchvisions(name, parameters):
    assert sum(p.numel() for p in on_meta(name).parameters()) == parameters


def test_multiply_adds_are_the_se_papers():
    """arXiv 1709.01507, Table 2. SE adds 0.027; the printed digits come of leaving out its pool or its rescaling."""
    cost = count_cost(on_meta("se_vgg16_bn"), torch.empty(1, 3, 224, 224, device="meta"), convention=SENET)
    assert cost.total.macs / 1e9 == pytest.approx(15.48, rel=PRINTED_MACS)
    assert round((cost.total.macs - cost.gates.macs) / 1e9, 2) == 15.47
    assert not cost.uncounted


def small(**kwargs):
    return VGG((1, 1, 1, 1, 1), num_classes=3, options=VGGOptions(hidden_features=8), **kwargs)


def test_pyramid_is_the_last_map_before_each_pool():
    model = small(gate=ECAConfig()).eval()
    x = torch.randn(2, 3, 64, 96)
    seen = {}
    for i, layer in enumerate(model.features):
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_hook(lambda module, args, output, i=i: seen.__setitem__(i, (args[0], output)))
    maps = model.forward_pyramid(x)
    inputs = [before for before, _ in seen.values()]
    for stride, expected in zip((4, 8, 16, 32), [*inputs[2:], list(seen.values())[-1][1]], strict=True):
        assert torch.equal(maps[stride], expected)
        assert maps[stride].shape == (2, model.pyramid_channels[stride], 64 // stride, 96 // stride)
    assert list(maps) == list(model.pyramid_channels) == [4, 8, 16, 32]
    assert torch.equal(maps[32], model.forward_features(x))


def test_reset_classifier_keeps_the_hidden_layers():
    model = create_model("vgg11_bn", num_classes=7, in_channels=1, hidden_features=8).double().eval()
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    assert model(x).shape == (2, 7) and torch.equal(model(x), model.forward_head(model.forward_features(x)))
    hidden = model.classifier[3].weight
    model.reset_classifier(4)
    assert model(x).shape == (2, 4) and model.classifier[6].weight.dtype == torch.float64
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features) == (2, 8)
    assert model.classifier[3].weight is hidden and "classifier.6.weight" not in model.state_dict()


def test_initialisation():
    model = create_model("vgg11_bn", hidden_features=8, gate="se")
    conv = model.features[11]
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert not conv.bias.any()
    assert model.features[2].gate.fc1.bias.any()


def test_channels_last_changes_nothing_but_the_layout():
    model = randomise(small(gate=SEConfig())).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    y = model.forward_pyramid(x.to(memory_format=torch.channels_last))[4]
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected, **CLOSE)


def test_compiles_whole():
    model = small(gate=SEConfig()).features[4:8].double()  # one stage
    x = torch.randn(2, 64, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x), **CLOSE)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"placement": "pre"}, "placement='pre' has no meaning in this network; it has standard"),
        ({"placement": "inside"}, "placement 'inside'"),
        ({"stages": (6,)}, r"some of 1, 2, 3, 4, 5 \(the convolutions between pools\)"),
        ({"hidden_features": 0}, "hidden_features=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"hidden": 8}, "did you mean 'hidden_features'"),
        ({"impl": "fuse"}, "did you mean 'fused'"),
        ({"num_classes": -1}, "num_classes=-1"),
    ],
)
def test_mistakes_are_named_with_the_way_out(kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        create_model("vgg11_bn", **kwargs)
