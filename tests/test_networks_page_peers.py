"""docs/networks.md says which libraries' networks have the same outputs: here each is built whole and compared.

Only what a library draws at random is replaced, by numbers that take less time to make.
"""

import importlib
from functools import partial

import pytest
import torch

from excite.models import MODELS, create_model
from page_scripts import ROOT, load_script

ROWS = {
    f"{name} {gate} {variant or ''}".strip(): (name, gate, variant)
    for rows in load_script("networks_page").SOURCES.values()
    for name, gate, variant in rows
}
# Sides of the images, in pixels, for which a network has all its maps; others take 66, which tells their pools apart.
SIZES = {"vgg16_bn": 224, "inception_resnet_v2": 91, "bn_inception": 64, "mobilenetv1": 64, "mobilenetv2": 64}

DONE: set[tuple[str, str]] = set()


@pytest.fixture
def cases(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "weights")
    return importlib.import_module("weight_cases")


def library_network(cases, zoo, name):
    """A library's network in float64 with weights as if drawn, each tensor from another place of the same numbers."""
    if zoo == "torchvision":
        make = partial(importlib.import_module("torchvision").models.get_model, name, weights=None, num_classes=10)
    elif zoo == "timm":
        make = partial(importlib.import_module("timm").create_model, name, num_classes=10)
    else:
        provider = importlib.import_module("pytorchcv.model_provider")
        make = partial(provider.get_model, name, pretrained=False, num_classes=10)
    model = cases.on_meta(make).double().to_empty(device="cpu")
    numbers = torch.randn(1 << 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for i, weight in enumerate(p for p in model.parameters() if p.dim() > 1):
            for part in weight.view(-1).split(len(numbers) // 2):
                start = 7919 * i % (len(numbers) // 2)
                part.copy_(numbers[start : start + len(part)])
            weight.mul_((2 / weight[0].numel()) ** 0.5)
    return cases.any_size(model) if zoo == "pytorchcv" else model


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_outputs_are_the_librarys(row, cases):
    provenance = load_script("provenance")
    name, gate, variant = ROWS[row]
    found = provenance.sources(name, gate, **({} if variant is None else {"variant": variant}))
    compared = [source for source in found if provenance.is_compared(source, gate)]
    said = provenance.checked(name, gate, found)
    assert said == (", ".join(source.zoo for source in compared) or "forward pass")
    size = SIZES.get(name, 66 if MODELS[name].image_size > 100 else 32)
    for source in compared:
        if (source.zoo, source.name) in DONE:
            continue
        make = partial(create_model, name, gate=source.gate, num_classes=10, **source.options)
        peer = partial(library_network, cases, source.zoo, source.name)
        pair = cases.check_parity(peer, make, size=size, source=f"{source.zoo}:{source.name}")
        assert pair.report.source == f"{source.zoo}:{source.name}"
        DONE.add((source.zoo, source.name))
