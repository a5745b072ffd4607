"""What every network of ``MODELS`` promises as a backbone, on shapes alone."""

import math

import pytest
import torch

from excite.errors import UserError
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


@pytest.mark.parametrize("value", ["10", 2.5, True, -1])
@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
def test_sizes_are_whole_numbers(argument, value):
    with torch.device("meta"), pytest.raises(UserError, match=f"{argument}={value!r}: a whole number, at least 1"):
        create_model("resnet20", **{argument: value})


def test_a_share_is_a_number():
    with torch.device("meta"), pytest.raises(UserError, match="dropout='x': the share"):
        create_model("wrn16_8", dropout="x")
