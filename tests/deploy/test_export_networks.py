"""Whole networks exported: every family, as built and fused, attached and slimmed, at other batch and image sizes."""

import pytest
import timm
import torch
import torchvision
from export_cases import fitted

from excite import attach_, fuse
from excite.deploy import fold_gates_
from excite.deploy.export import export_file
from excite.deploy.export_check import apart
from excite.deploy.runtimes import RUNTIMES
from excite.gates import parse_gate
from excite.models import MODELS
from excite.models.base import gate_modules

# The first network of each family.
FAMILIES = {}
for _name, _architecture in MODELS.items():
    FAMILIES.setdefault((_architecture.family, _architecture.layout.get("block")), _name)
QUICK = {"resnet20"}
STEP = {"bn_inception": 32}


def shortened(name, gate="se"):
    """A network with one block a stage."""
    architecture = MODELS[name]
    layout = dict(architecture.layout)
    if "depths" in layout:
        layout["depths"] = (1,) * len(layout["depths"])
    if "depth" in layout:
        layout["depth"] = 1
    side = 32 if architecture.image_size == 32 else 96 if architecture.image_size == 299 else 64
    images = torch.randn(4, 3, side, side)
    return fitted(architecture.family(**layout, gate=parse_gate(gate), num_classes=6), images), images


def check(model, images, path, format, reference=None, step=1):
    """Exported, then asked at sizes that it was not exported with; differences no more than rounding explains."""
    reference = reference or model
    done = export_file(model, images, path, format=format, reference=reference)
    assert done.sizes.step == step
    run, side = RUNTIMES[format].load(done.path).run, images.shape[-1]
    for n, height, width in ((1, side, side), (3, side + step, side + 2 * step), (2, done.sizes.minimum, side)):
        x = torch.randn(n, images.shape[1], height, width)
        with torch.no_grad():
            assert apart(run(x), reference(x)) <= done.tolerance
    return done


@pytest.mark.parametrize("fused", [False, True], ids=["as built", "fused"])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES.values()]
)
def test_every_family(name, fused, tmp_path):
    model, images = shortened(name)
    # As built in PyTorch's own format, fused in ONNX: each goes through the program of the other on its way.
    format = "onnx" if fused and name not in QUICK else "torch"
    network = fuse(model, images) if fused else model
    done = check(network, images, tmp_path / f"x{RUNTIMES[format].suffix}", format, model, STEP.get(name, 1))
    assert done.difference < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("placement", ["post", "inner"])
def test_other_placements(placement, format, tmp_path):
    family = MODELS["resnet18"].family
    images = torch.randn(2, 3, 64, 64)
    layout = {**MODELS["resnet18"].layout, "depths": (1, 1, 1, 1)}
    model = fitted(family(**layout, gate=parse_gate("eca"), placement=placement, num_classes=4), images)
    check(fuse(model, images), images, tmp_path / f"x{RUNTIMES[format].suffix}", format, model)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["as it is", "fused"])
@pytest.mark.parametrize(
    ("name", "attached"),
    [
        ("timm:test_efficientnet", False),
        ("timm:test_resnet", True),
        ("torchvision:resnet18", True),
        ("torchvision:mobilenet_v3_small", False),
        ("torchvision:regnet_y_400mf", False),
    ],
)
def test_other_peoples_networks(name, attached, fused, tmp_path):
    library, _, network = name.partition(":")
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    model = make(network, num_classes=5, **({} if library == "timm" else {"weights": None}))
    images = torch.randn(4, 3, 64, 64)
    if attached:
        assert attach_(model, "se(reduction=4)", images, start="paper")
    model = fitted(model, images)
    check(fuse(model, images) if fused else model, images, tmp_path / "x.onnx", "onnx", model)


@pytest.mark.parametrize(
    ("format", "fused"), [("torch", False), *(pytest.param("onnx", f, marks=pytest.mark.slow) for f in (False, True))]
)
def test_slimmed_networks(format, fused, tmp_path):
    model, images = shortened("resnet20")
    constants = {name: torch.rand(gate.channels) + 0.2 for name, gate in list(gate_modules(model).items())[:2]}
    folded = fold_gates_(model, constants, images)
    assert len(folded) == 2 and len(gate_modules(model)) == 1
    check(fuse(model, images) if fused else model, images, tmp_path / f"x{RUNTIMES[format].suffix}", format, model)
