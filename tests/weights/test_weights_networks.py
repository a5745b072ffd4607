"""Whole networks of each zoo, without storage: every name has its place, every shape fits, options are the zoo's."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from cadene_peers import cadenes
from pytorchcv.model_provider import get_model as pytorchcv_model
from weight_cases import on_meta

from excite.errors import UserError
from excite.models import MODELS, create_model
from excite.weights import detect, load_weights
from excite.weights.zoos import LAYOUTS

# The zoo's name, and the call of create_model that its weights are for.
PADDED = "stem_pool='padded'"
NETWORKS = {
    "torchvision:resnet34": f"create_model('resnet34', gate='none', {PADDED})",
    "torchvision:resnet101": f"create_model('resnet101', gate='none', stride_in='3x3', {PADDED})",
    "torchvision:resnext50_32x4d": f"create_model('resnext50_32x4d', gate='none', {PADDED})",
    "torchvision:vgg13_bn": "create_model('vgg13_bn', gate='none')",
    "torchvision:inception_v3": "create_model('inception_v3', gate='none', count_include_pad=True)",
    "torchvision:mobilenet_v2": "create_model('mobilenetv2', gate='none')",
    "timm:resnet152": f"create_model('resnet152', gate='none', stride_in='3x3', {PADDED})",
    "timm:seresnet18": f"create_model('resnet18', gate='se(round_to=8)', {PADDED})",
    "timm:seresnet50": f"create_model('resnet50', gate='se', stride_in='3x3', {PADDED})",
    "timm:seresnext101_32x4d": f"create_model('resnext101_32x4d', gate='se', {PADDED})",
    "timm:senet154": f"create_model('senet154', gate='se', {PADDED})",
    "timm:legacy_seresnet101": "create_model('resnet101', gate='se', stride_in='1x1', stem_pool='ceil')",
    "timm:legacy_seresnext50_32x4d": "create_model('resnext50_32x4d', gate='se', stem_pool='ceil')",
    "timm:legacy_senet154": "create_model('senet154', gate='se', stem_pool='ceil')",
    "timm:vgg11_bn": "create_model('vgg11_bn', gate='none')",
    "timm:inception_v3": "create_model('inception_v3', gate='none', count_include_pad=True)",
    "timm:inception_resnet_v2": "create_model('inception_resnet_v2', gate='none')",
    "timm:mobilenetv1_100": "create_model('mobilenetv1', gate='none', activation='relu6')",
    "timm:mobilenetv2_100": "create_model('mobilenetv2', gate='none')",
    "cadene:se_resnet50": "create_model('resnet50', gate='se', stride_in='1x1', stem_pool='ceil')",
    "cadene:se_resnext101_32x4d": "create_model('resnext101_32x4d', gate='se', stem_pool='ceil')",
    "cadene:senet154": "create_model('senet154', gate='se', stem_pool='ceil')",
    "cadene:resnet34": f"create_model('resnet34', gate='none', {PADDED})",
    "cadene:resnet50": f"create_model('resnet50', gate='none', stride_in='3x3', {PADDED})",
    "cadene:resnet101": f"create_model('resnet101', gate='none', stride_in='3x3', {PADDED})",
    "cadene:cafferesnet101": "create_model('resnet101', gate='none', stride_in='1x1', stem_pool='ceil')",
    "cadene:resnext101_32x4d": f"create_model('resnext101_32x4d', gate='none', {PADDED})",
    "cadene:vgg16_bn": "create_model('vgg16_bn', gate='none')",
    "cadene:bninception": "create_model('bn_inception', gate='none', conv_bias=True)",
    "cadene:inceptionv3": "create_model('inception_v3', gate='none', count_include_pad=True)",
    "cadene:inceptionresnetv2": "create_model('inception_resnet_v2', gate='none')",
    "pytorchcv:resnet50": f"create_model('resnet50', gate='none', stride_in='1x1', {PADDED})",
    "pytorchcv:resnet50b": f"create_model('resnet50', gate='none', stride_in='3x3', {PADDED})",
    "pytorchcv:seresnet18": f"create_model('resnet18', gate='se', {PADDED})",
    "pytorchcv:seresnet152b": f"create_model('resnet152', gate='se', stride_in='3x3', {PADDED})",
    "pytorchcv:seresnext50_32x4d": f"create_model('resnext50_32x4d', gate='se', {PADDED})",
    "pytorchcv:senet154": f"create_model('senet154', gate='se', {PADDED})",
    "pytorchcv:bn_vgg11": "create_model('vgg11_bn', gate='none')",
    "pytorchcv:bn_vgg13b": "create_model('vgg13_bn', gate='none')",
    "pytorchcv:bn_vgg16": "create_model('vgg16_bn', gate='none')",
    "pytorchcv:bn_vgg19b": "create_model('vgg19_bn', gate='none')",
    "pytorchcv:bninception": "create_model('bn_inception', gate='none', conv_bias=True)",
    "pytorchcv:inceptionv3": "create_model('inception_v3', gate='none', count_include_pad=True)",
    "pytorchcv:inceptionresnetv2": "create_model('inception_resnet_v2', gate='none')",
    "pytorchcv:mobilenet_w1": "create_model('mobilenetv1', gate='none', activation='relu')",
    "pytorchcv:mobilenetv2b_w1": "create_model('mobilenetv2', gate='none')",
    **{
        f"pytorchcv:shufflenet_g{groups}_w1": f"create_model('shufflenetv1', gate='none', groups={groups})"
        for groups in (1, 2, 3, 4, 8)
    },
    "pytorchcv:seresnet20_cifar10": "create_model('resnet20', gate='se', num_classes=10, shortcut='B')",
    "pytorchcv:resnet110_cifar100": "create_model('resnet110', gate='none', num_classes=100, shortcut='B')",
    "pytorchcv:preresnet110_cifar10": (
        "create_model('preresnet110', gate='none', num_classes=10, shortcut='B', first_shortcut='raw')"
    ),
    "pytorchcv:preresnet164bn_cifar10": "create_model('preresnet164', gate='none', num_classes=10, stride_in='3x3')",
    "pytorchcv:wrn28_10_cifar10": "create_model('wrn28_10', gate='none', num_classes=10)",
}
# What tensors alone leave open: another network of the zoo has the same shapes.
NAMED = {
    *("cadene:resnet101", "cadene:cafferesnet101"),
    *("pytorchcv:resnet50", "pytorchcv:resnet50b", "pytorchcv:seresnet152b"),
}


def peer(name):
    """A zoo's network without storage."""
    zoo, _, network = name.partition(":")
    if zoo == "torchvision":
        extra = {"init_weights": False} if network.startswith("inception") else {}
        return on_meta(partial(torchvision.models.get_model, network, weights=None, **extra))
    if zoo == "cadene":
        return on_meta(partial(cadenes, network))
    return on_meta(partial(timm.create_model if zoo == "timm" else pytorchcv_model, network, pretrained=False))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_of_a_whole_network_has_its_place(name):
    state = peer(name).state_dict()
    found = detect(state, source=name)
    assert str(found) == NETWORKS[name]
    if name in NAMED:
        with pytest.raises(UserError, match="more than one network.*source="):
            detect(state)
    else:
        assert str(detect(state)) == NETWORKS[name]
    ours = on_meta(partial(create_model, **found.arguments))
    report = load_weights(ours, state, source=name)
    assert len(report.matched) + len(report.zeroed) == len(ours.state_dict())
    assert all(key.startswith("AuxLogits.") for key in report.unused)
    assert set(report.zeroed) <= {k for k in ours.state_dict() if k.endswith(".bias")}


def test_every_network_that_can_be_had_is_tried():
    """One of each layout at least; those without a name here, and zoos that do not install, are tried elsewhere."""
    tried = {tuple(name.split(":")) for name in NETWORKS}
    for zoo in ("torchvision", "timm", "cadene", "pytorchcv"):
        for layout in LAYOUTS[zoo]:
            assert not layout.networks or any((zoo, name) in tried for name in layout.networks), layout.networks


def test_cadenes_resnext_of_other_groups():
    state = peer("cadene:resnext101_64x4d").state_dict()
    with pytest.raises(UserError, match="no network here has its groups"):
        detect(state, source="cadene:resnext101_64x4d")
    with pytest.raises(UserError, match="the tensors of no network"):
        detect(state)


# --- zoos that do not install ---


def test_moskomules_idle_gates_of_inception_v3():
    """torchvision's units do not call what was registered on them, so the network is the plain one."""
    state = {f"model.{key}": value for key, value in peer("torchvision:inception_v3").state_dict().items()}
    with torch.device("meta"):
        state["model.Mixed_5b.SELayer.fc.0.weight"] = torch.empty(12, 192)
        state["model.Mixed_5b.SELayer.fc.2.weight"] = torch.empty(192, 12)
        ours = create_model("inception_v3")
        report = load_weights(ours, state)
    assert report.source == "moskomule" and not report.missing
    assert any("registered but no forward pass calls them" in note for note in report.notes)


def test_the_eca_authors_mobilenet_v2():
    """Each gate is one more place of its block's sequence."""
    state = peer("torchvision:mobilenet_v2").state_dict()
    with torch.device("meta"):
        for i in range(1, 18):
            size = 3 if i >= 11 else 1
            state[f"features.{i}.conv.{3 if i == 1 else 4}.conv.weight"] = torch.empty(1, 1, size)
    found = detect({f"module.{key}": value for key, value in state.items()})
    assert str(found) == "create_model('mobilenetv2', gate='eca(kernel_size=released:mobilenetv2)')"
    assert found.source == "ecanet"


def test_layouts_name_networks_that_exist():
    for layouts in LAYOUTS.values():
        for layout in layouts:
            for name in layout.networks.values():
                assert MODELS[name].family is layout.family
