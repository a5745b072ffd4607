"""Weights of whole networks that come in one size, from zoos whose names for them are not ours."""

from functools import partial

import pytest
import timm
from cadene_peers import cadenes
from pytorchcv.model_provider import get_model
from weight_cases import any_size, check_parity

from excite.models import create_model


def timms(name):
    return partial(timm.create_model, name, num_classes=10)


def pytorchcvs(name):
    return lambda: any_size(get_model(name, pretrained=False, num_classes=10))


def cadenes_any_size(name, **kwargs):
    return lambda: any_size(cadenes(name, **kwargs))


THOUSAND = {"num_classes": 1000}
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "options", "peer", "size", "source", "zeroed"),
    [
        ("mobilenetv1", {"activation": "relu6"}, timms("mobilenetv1_100"), 64, "timm", 0),
        ("mobilenetv1", {}, pytorchcvs("mobilenet_w1"), 64, "pytorchcv", 0),
        ("mobilenetv2", {}, timms("mobilenetv2_100"), 64, "timm", 0),
        ("mobilenetv2", {}, pytorchcvs("mobilenetv2b_w1"), 64, "pytorchcv", 1),
        ("shufflenetv1", {}, pytorchcvs("shufflenet_g3_w1"), 64, "pytorchcv", 0),
        ("bn_inception", {"conv_bias": True}, pytorchcvs("bninception"), 64, "pytorchcv", 0),
        ("inception_v3", {}, pytorchcvs("inceptionv3"), 91, "pytorchcv", 0),
        slow("inception_resnet_v2", {}, timms("inception_resnet_v2"), 91, "timm", 0),
        slow("inception_resnet_v2", {}, pytorchcvs("inceptionresnetv2"), 91, "pytorchcv", 0),
        ("bn_inception", {"conv_bias": True}, cadenes_any_size("bninception", num_classes=10), 64, "cadene", 0),
        slow("inception_v3", {"aux_head": True, **THOUSAND}, cadenes_any_size("inceptionv3"), 299, "cadene", 0),
        slow("inception_resnet_v2", {}, cadenes_any_size("inceptionresnetv2", num_classes=10), 91, "cadene", 0),
        slow("vgg11_bn", THOUSAND, cadenes_any_size("vgg11_bn"), 224, "cadene", 0),
        slow("vgg11_bn", {}, timms("vgg11_bn"), 96, "timm", 0),
        slow("vgg13_bn", {}, pytorchcvs("bn_vgg13"), 96, "pytorchcv", 10),
        slow("vgg13_bn", {}, pytorchcvs("bn_vgg13b"), 96, "pytorchcv", 0),
    ],
)
def test_outputs_are_the_peers(name, options, peer, size, source, zeroed):
    pair = check_parity(peer, partial(create_model, name, **({"num_classes": 10} | options)), size=size)
    assert pair.report.source == source and len(pair.report.zeroed) == zeroed and not pair.report.unused
