"""What every network of ``MODELS`` promises as a backbone, on shapes alone."""

import math

import pytest
import torch

from excite.models import MODELS, create_model
from excite.models.base import gate_modules


@pytest.mark.parametrize("name", MODELS)
def test_backbone(name):
    size = MODELS[name].image_size
    with torch.device("meta"):
        model = create_model(name, gate="eca", num_classes=7, in_channels=2).eval()
        x = torch.empty(3, 2, size, size)
    maps = model.forward_pyramid(x)
    assert list(maps) == list(model.pyramid_channels) == sorted(maps)
    assert set(maps) <= ({1, 2, 4} if size == 32 else {4, 8, 16, 32})
    for stride, y in maps.items():
        assert y.shape[:2] == (3, model.pyramid_channels[stride])
        # The Inceptions' unpadded convolutions lose a few positions on the way.
        lost = 4 if size == 299 else 0
        assert all(size / stride - lost <= side <= math.ceil(size / stride) for side in y.shape[2:])
    last = maps[max(maps)]
    assert model.forward_head(last).shape == (3, 7)
    model.reset_classifier(5)
    assert model.forward_head(last).shape == (3, 5)
    model.reset_classifier(0)
    assert model.forward_head(last).shape == (3, model.num_features)


@pytest.mark.parametrize("name", MODELS)
def test_a_gated_state_dict_is_the_plain_one_with_gates_added(name):
    with torch.device("meta"):
        plain, gated = (create_model(name, gate=gate) for gate in ("none", "se"))
    own = tuple(f"{gate}." for gate in gate_modules(gated))
    assert own and not gate_modules(plain)
    assert [key for key in gated.state_dict() if not key.startswith(own)] == list(plain.state_dict())
