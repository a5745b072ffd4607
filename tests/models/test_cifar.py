"""CIFAR ResNets: parity with pytorchcv and a forward pass written from the paper; published counts."""

import pytest
import torch
from model_cases import forward_resnet, randomise
from pytorchcv.models.resnet_cifar import resnet20_cifar10

from excite.gates import SEConfig
from excite.models import MODELS, PLACEMENTS, create_model, gate_parameters, list_models
from excite.models.cifar import CifarResNet, PadShortcut
from tolerances import PARITY

CLOSE = PARITY[torch.float64]


def pytorchcv_key(key: str) -> str:
    if key.startswith("fc."):
        return key.replace("fc.", "output.")
    if not key.startswith("layer"):
        return "features.init_block." + key.replace("conv1", "conv").replace("bn1", "bn")
    stage, unit, layer, *rest = key.removeprefix("layer").split(".")
    prefix = f"features.stage{stage}.unit{int(unit) + 1}."
    if layer == "downsample":
        which, *rest = rest
        return f"{prefix}identity_conv.{'conv' if which == '0' else 'bn'}.{rest[0]}"
    kind, number = layer[:-1], layer[-1]
    return f"{prefix}body.conv{number}.{kind}.{rest[0]}"


@pytest.mark.parametrize("training", [False, True])
def test_projection_shortcuts_equal_pytorchcv(training):
    theirs = randomise(resnet20_cifar10(num_classes=10)).double().train(training)
    ours = create_model("resnet20", shortcut="B", num_classes=10).double().train(training)
    source = theirs.state_dict()
    ours.load_state_dict({key: source.pop(pytorchcv_key(key)) for key in ours.state_dict()}, strict=True)
    assert not source
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, **CLOSE)
    y.square().sum().backward()
    expected.square().sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, grads[pytorchcv_key(name)], **CLOSE)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_placements_and_shortcuts_are_the_papers(placement, shortcut):
    model = create_model("resnet20", gate="se(reduction=4)", placement=placement, shortcut=shortcut, num_classes=10)
    model = randomise(model).double().eval()
    x = torch.randn(2, 3, 27, 32, dtype=torch.float64)
    expected = forward_resnet(model.state_dict(), x, placement=placement, cifar=True)
    torch.testing.assert_close(model(x), expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_parameters_are_the_papers(name, millions):
    """arXiv 1512.03385, Table 6."""
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2 if millions < 1 else 1) == millions
    layers = sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.modules())
    assert layers == int(name.removeprefix("resnet"))


def test_projections_add_what_the_docstring_says():
    with torch.device("meta"):
        counts = {
            (name, shortcut): sum(p.numel() for p in create_model(name, shortcut=shortcut).parameters())
            for name in ("resnet20", "resnet110")
            for shortcut in "AB"
        }
    assert counts["resnet20", "B"] - counts["resnet20", "A"] == 2752
    assert counts["resnet110", "B"] - counts["resnet110", "A"] == 2752


def test_grey_images_and_gates_by_stage():
    model = create_model("se_resnet20", in_channels=1, num_classes=10, stages=(3,)).eval()
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert model.forward_features(torch.randn(2, 1, 28, 28)).shape == (2, 64, 7, 7)
    assert {key.split(".")[0] for key in model.state_dict() if ".gate." in key} == {"layer3"}
    assert sum(p.numel() for p in gate_parameters(model)) == 3 * (2 * 64 * 4 + 4 + 64)
    assert gate_parameters(create_model("resnet20")) == []


def test_shortcut_without_parameters_keeps_the_layout():
    shortcut = PadShortcut(4, 8, 2)
    x = torch.randn(2, 4, 7, 8).to(memory_format=torch.channels_last)
    y = shortcut(x)
    assert y.shape == (2, 8, 4, 4) and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2]) and not y[:, 4:].any()
    assert not shortcut.state_dict()


def test_compiles_whole():
    model = randomise(CifarResNet(1, gate=SEConfig(reduction=4))).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, **CLOSE)


def test_list_models():
    assert list_models("resnet*") == [
        "resnet18", "resnet20", "resnet32", "resnet34", "resnet44",
        "resnet50", "resnet56", "resnet101", "resnet110", "resnet152",
    ]  # fmt: skip
    assert list_models("eca_resnet5?") == ["eca_resnet50", "eca_resnet56"]
    assert len(list_models()) == len(set(list_models())) == 3 * len(MODELS)
    assert list_models("vit*") == []
