"""What other tools do to a network with gates: ``verify`` sees what was lost, ``reattach_`` mends what can be."""

import copy

import pytest
import timm
import torch
from surgery_cases import gate_keys, image, looks, move_gates, small
from timm import optim
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torch.nn.utils import parametrizations

from excite.models import gate_parameters
from excite.surgery import attach_, attached, detach_, reattach_, verify


@pytest.fixture
def gated():
    model = small()
    attach_(model, "se(reduction=4)", image())
    move_gates(model)
    return model


NORMS = [f"layers.{i}.norm2" for i in range(4)]


def test_all_is_well_with_a_fresh_network(gated):
    assert [item.module for item in verify(gated)] == NORMS
    before = looks(gated)
    assert reattach_(gated) == verify(gated) and looks(gated) == before


def test_a_network_without_gates_is_told_so():
    model = small()
    for check in (verify, reattach_, detach_):
        with pytest.raises(ValueError, match="ResNet has no gate attached"):
            check(model)


def test_converted_norms_are_named_and_mended(gated):
    x = image()
    y, keys = gated(x), list(gated.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(gated)
    assert list(converted.state_dict()) == keys, "the gates are still there"
    assert not torch.equal(converted(x), y), "and nothing calls them"
    with pytest.raises(ValueError, match=r"nothing calls.*layers\.0\.norm2 \(SyncBatchNorm\).*reattach_"):
        verify(converted)
    reattach_(converted)
    assert [item.module for item in verify(converted)] == NORMS
    assert torch.equal(converted(x), y)
    assert reattach_(converted) and torch.equal(converted(x), y), "mending twice is mending once"
    assert len(detach_(converted)) == 4
    assert not gate_keys(converted)


def test_detach_takes_gates_that_nothing_calls(gated):
    plain = small()
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if "excite_gate" not in k})
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(gated)
    assert len(detach_(converted)) == 4 and not gate_keys(converted) and not attached(converted)
    x = image()
    torch.testing.assert_close(converted(x), plain(x))


def test_gates_lost_with_frozen_norms_are_named(gated):
    x = image()
    y = gated(x)
    frozen = freeze_batch_norm_2d(copy.deepcopy(gated))
    assert not gate_keys(frozen) and not torch.equal(frozen(x), y)
    with pytest.raises(ValueError, match=r"gates are gone.*layers\.3\.norm2 \(now FrozenBatchNorm2d\).*Convert first"):
        verify(frozen)
    with pytest.raises(ValueError, match="gates are gone"):
        reattach_(frozen)


def test_frozen_norms_first_and_gates_afterwards():
    x = image()
    frozen = freeze_batch_norm_2d(small())
    y = frozen(x)
    attach_(frozen, "se", x)
    assert torch.equal(frozen(x), y) and len(verify(frozen)) == 4


def test_a_block_that_was_replaced_is_named(gated):
    gated.layers[2] = nn.Conv2d(16, 32, 1)
    with pytest.raises(ValueError, match=r"gone.*layers\.2\.norm2 \(no longer there\)"):
        verify(gated)


def test_a_deleted_gate_is_named(gated):
    del gated.layers[1].norm2.excite_gate
    with pytest.raises(ValueError, match=r"gone.*layers\.1\.norm2 \(now BatchNorm2d\)"):
        verify(gated)


def test_only_some_of_the_gates_lost(gated):
    """A helper that freezes one stage."""
    gated.layers[0] = freeze_batch_norm_2d(gated.layers[0])
    with pytest.raises(ValueError, match=r"gone with the modules they hung on: layers\.0\.norm2 \(now Frozen") as error:
        verify(gated)
    assert "layers.1" not in str(error.value)
    assert len(detach_(gated)) == 4, "what is left goes"
    assert not gate_keys(gated)


def test_parametrizations_and_hooks_of_others_do_not_disturb(gated):
    x = image()
    y = gated(x)
    parametrizations.weight_norm(gated.layers[0].conv1)
    seen = []
    handle = gated.layers[0].norm2.register_forward_hook(lambda module, args, out: seen.append(out))
    torch.testing.assert_close(gated(x), y)
    assert len(verify(gated)) == 4
    detach_(gated)
    gated(x)
    assert len(seen) == 2, "a hook of the user's stays"
    handle.remove()


def test_moving_between_dtypes_and_devices_keeps_gates(gated):
    x = image()
    y = gated(x)
    torch.testing.assert_close(gated.double()(x.double()), y.double(), rtol=1e-4, atol=1e-4)
    meta = copy.deepcopy(gated).to("meta")
    assert meta(x.to("meta")).shape == y.shape and len(verify(meta)) == 4


def test_timms_helpers_see_what_they_saw():
    x = image(size=32)
    model = timm.models.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=5)
    before = [list(group) for group in optim.param_groups_layer_decay(model)]
    attach_(model, "se", x)
    groups = optim.param_groups_layer_decay(model)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters())) > len(before)
    decayed = optim.param_groups_weight_decay(model)
    assert sum(len(g["params"]) for g in decayed) == len(list(model.parameters()))
    model.reset_classifier(2)
    assert model(x).shape == (2, 2) and len(verify(model)) == 4
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in gate_parameters(model):
            parameter.add_(1)
    ema.update(model)
    for old, new in zip(gate_parameters(ema.module), gate_parameters(model), strict=True):
        torch.testing.assert_close(old + 0.5, new)
