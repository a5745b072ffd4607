"""Files and state dicts that are nearly right: what is wrong is said, and what is harmless loads."""

import pytest
import torch
from torch import nn

from excite.errors import UserError
from excite.models import create_model
from excite.models.resnet import BasicBlock, ResNet
from excite.weights import detect, load_weights
from excite.weights.files import read_weights


def net(num_classes=10):
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=num_classes)


def test_half_a_classifier_is_missing_the_other_half():
    weights = net().state_dict()
    del weights["fc.weight"]
    with pytest.raises(UserError, match="it lacks fc.weight"):
        load_weights(net(), weights)
    assert load_weights(net(), weights, strict=False).missing == ("fc.weight",)


def test_a_number_is_no_classifier():
    weights = net().state_dict() | {"fc.weight": torch.tensor(1.0)}
    with pytest.raises(UserError, match=r"'fc.weight' has shape \[\]"):
        load_weights(net(), weights)
    with pytest.raises(UserError, match="no network"):
        detect(create_model("resnet18").state_dict() | {"fc.bias": torch.tensor(1.0), "fc.weight": torch.tensor(1.0)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_counters_of_batches_that_are_no_whole_numbers(dtype):
    source, model = net(), net()
    source.bn1.num_batches_tracked += 7
    report = load_weights(model, {name: tensor.to(dtype) for name, tensor in source.state_dict().items()})
    assert not report.missing and model.bn1.num_batches_tracked.dtype == torch.int64
    assert model.bn1.num_batches_tracked == 7


def test_many_mistakes_of_one_kind_are_a_short_message():
    weights = {name: tensor.to(torch.int8) for name, tensor in net().state_dict().items()}
    with pytest.raises(UserError, match=r"'conv1.weight' holds torch.int8.* and \d+ more such") as refused:
        load_weights(net(), weights)
    assert len(str(refused.value)) < 400


def test_weights_of_another_family_are_named():
    weights = create_model("resnet18", num_classes=10).state_dict()
    with pytest.raises(UserError, match=r"no tensors of a MobileNetV2.*those of create_model\('resnet18', .*=10"):
        load_weights(create_model("mobilenetv2"), weights)


@pytest.mark.filterwarnings("ignore:.*deprecated")  # to write such files, not to read them
def test_torchscript_is_refused_by_its_name(tmp_path):
    path = tmp_path / "scripted.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(UserError, match=r"a TorchScript archive.*torch.jit.load\(file\).state_dict\(\)") as refused:
        read_weights(path)
    assert "cut short" not in str(refused.value)


def test_a_state_dict_under_a_name_of_its_own_is_pointed_at():
    with pytest.raises(UserError, match="the one at 'model_ema' does: give it as a dict"):
        read_weights({"epoch": 3, "model_ema": net().state_dict()})
