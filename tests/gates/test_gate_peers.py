"""The same weights in a peer's module and in ours: outputs and every gradient equal."""

import pytest
import torch
from pytorchcv.models.common.att import SEBlock
from timm import create_model
from timm.layers import EcaModule, EffectiveSEModule, SEModule
from timm.layers.helpers import make_divisible
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torch.testing import assert_close
from torchvision.models import efficientnet_b0, mobilenet_v3_large
from torchvision.ops import SqueezeExcitation

from excite.gates import ECA, ECAConfig, EffectiveSE, SEConfig
from tolerances import PEER, PEER_SCALED

C = 64


class KerasHardSigmoid(nn.Module):
    """The hard sigmoid of Keras 2, as torch's own piecewise function."""

    def forward(self, x):
        return nn.functional.hardtanh(0.2 * x + 0.5, 0.0, 1.0)


# A peer's module, the gate that should be the same, and the peer's names of our parameters.
SE_FC = {"fc1": "fc1", "fc2": "fc2"}
SE_CONV = {"fc1": "conv1", "fc2": "conv2"}
SE_REDUCE = {"fc1": "conv_reduce", "fc2": "conv_expand"}
TWINS = {
    "timm SE": (lambda: SEModule(C), SEConfig(round_to=8), SE_FC),
    "timm SE, r 4, no bias": (lambda: SEModule(C, 1 / 4, bias=False), SEConfig(4, round_to=8, bias=False), SE_FC),
    "timm SE, width given": (lambda: SEModule(C, rd_channels=5), SEConfig(reduced_channels=5), SE_FC),
    "timm SE, silu, hard sigmoid": (
        lambda: SEModule(C, act_layer=nn.SiLU, gate_layer="hard_sigmoid"),
        SEConfig(round_to=8, activation="silu", gate_function="hard_sigmoid"),
        SE_FC,
    ),
    "timm SE, tanh": (lambda: SEModule(C, gate_layer="tanh"), SEConfig(round_to=8, gate_function="tanh"), SE_FC),
    "timm MobileNetV3": (
        lambda: SqueezeExcite(C, 0.25, rd_channels=16, gate_layer="hard_sigmoid"),
        SEConfig(4, round_to=8, round_limit=0.9, gate_function="hard_sigmoid"),
        SE_REDUCE,
    ),
    "timm EfficientNet": (
        lambda: SqueezeExcite(C, rd_channels=4, act_layer=nn.SiLU),
        SEConfig(reduced_channels=4, activation="silu"),
        SE_REDUCE,
    ),
    "torchvision": (lambda: SqueezeExcitation(C, 4), SEConfig(), SE_FC),
    "torchvision, silu": (
        lambda: SqueezeExcitation(C, 6, activation=nn.SiLU),
        SEConfig(reduced_channels=6, activation="silu"),
        SE_FC,
    ),
    "torchvision, hard swish, hard sigmoid": (
        lambda: SqueezeExcitation(C, 16, activation=nn.Hardswish, scale_activation=nn.Hardsigmoid),
        SEConfig(4, activation="hard_swish", gate_function="hard_sigmoid"),
        SE_FC,
    ),
    "torchvision, gelu, relu": (
        lambda: SqueezeExcitation(C, 4, activation=nn.GELU, scale_activation=nn.ReLU),
        SEConfig(activation="gelu", gate_function="relu"),
        SE_FC,
    ),
    "torchvision, Keras 2's hard sigmoid": (
        lambda: SqueezeExcitation(C, 4, scale_activation=KerasHardSigmoid),
        SEConfig(gate_function="hard_sigmoid", hard_sigmoid_slope=0.2),
        SE_FC,
    ),
    "pytorchcv": (lambda: SEBlock(C), SEConfig(), SE_CONV),
    "pytorchcv, linear": (lambda: SEBlock(C, 8, use_conv=False), SEConfig(8), SE_FC),
    "timm effective SE": (lambda: EffectiveSEModule(C), EffectiveSE(C).config, {"fc": "fc"}),
    "timm effective SE, sigmoid": (
        lambda: EffectiveSEModule(C, gate_layer="sigmoid"),
        EffectiveSE(C, gate_function="sigmoid").config,
        {"fc": "fc"},
    ),
    "timm ECA": (lambda: EcaModule(C), ECAConfig(), {"conv": "conv"}),
    "timm ECA, k 5": (lambda: EcaModule(None, 5), ECAConfig(5), {"conv": "conv"}),
    "timm ECA, gamma 1": (lambda: EcaModule(C, gamma=1, beta=2), ECAConfig(gamma=1, beta=2), {"conv": "conv"}),
}


def copy_weights(peer: nn.Module, ours: nn.Module, names: dict[str, str]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Ours from the peer's, whatever trailing axes it keeps them with; gives the pairs, no parameter left out."""
    pairs = []
    for name, parameter in ours.named_parameters():
        module, kind = name.rsplit(".", 1)
        theirs = peer.get_parameter(f"{names[module]}.{kind}")
        with torch.no_grad():
            parameter.copy_(theirs.reshape(parameter.shape))
        pairs.append((theirs, parameter))
    assert len(pairs) == len(list(peer.parameters()))
    return pairs


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal but for rounding, which is as large as the largest numbers that went into the sums."""
    assert_close(ours, theirs, rtol=0, atol=PEER_SCALED[theirs.dtype] * theirs.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("twin", TWINS)
def test_outputs_and_gradients_are_the_peers(twin, layout, dtype):
    build, config, names = TWINS[twin]
    peer, ours = build().to(dtype), config.build(C).to(dtype)
    with torch.no_grad():
        for p in peer.parameters():
            p.copy_(torch.randn_like(p) / 2)
    pairs = copy_weights(peer, ours, names)
    x = (torch.randn(3, C, 5, 6, dtype=dtype) + 0.5).to(memory_format=layout)
    x_peer, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    direction = torch.randn_like(x)
    y_peer, y_ours = peer(x_peer), ours(x_ours)
    assert_same(y_ours, y_peer)
    y_peer.backward(direction)
    y_ours.backward(direction)
    assert_same(x_ours.grad, x_peer.grad)
    for theirs, mine in pairs:
        assert mine.grad.abs().max() > 0
        assert_same(mine.grad, theirs.grad.reshape(mine.shape))


@pytest.mark.parametrize("reduction", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("limit", [0.0, 0.9])
def test_rounded_widths_are_timms(reduction, limit):
    rule = SEConfig(reduction, round_to=8, round_limit=limit).width
    for channels in range(1, 2100):
        assert rule.of(channels) == make_divisible(channels / reduction, 8, round_limit=limit)


def test_kernel_sizes_are_timms_from_8_channels():
    for channels in range(8, 4100):
        assert ECAConfig().kernel_size_for(channels) == EcaModule(channels).conv.kernel_size[0]
    assert [EcaModule(c).conv.kernel_size[0] for c in (1, 7)] == [3, 3]  # where timm leaves the paper
    assert [ECA(c).kernel_size for c in (1, 7)] == [1, 1]


@pytest.mark.parametrize(
    "network",
    [lambda: mobilenet_v3_large(weights=None), lambda: create_model("mobilenetv3_large_100")],
    ids=["torchvision", "timm"],
)
def test_mobilenet_v3_widths_need_both_rounding_options(network):
    rule = SEConfig(4, round_to=8, round_limit=0.9).width
    layers = [
        (m.fc1 if isinstance(m, SqueezeExcitation) else m.conv_reduce)
        for m in network().modules()
        if isinstance(m, (SqueezeExcitation, SqueezeExcite))
    ]
    assert len(layers) == 8
    assert [rule.of(layer.in_channels) for layer in layers] == [layer.out_channels for layer in layers]
    unguarded = SEConfig(4, round_to=8).width
    assert any(unguarded.of(layer.in_channels) != layer.out_channels for layer in layers)


def test_a_peers_whole_block_takes_our_gate():
    """EfficientNet's SE inside its block: same output with ours in its place."""
    block = efficientnet_b0(weights=None).features[1][0].eval()
    at, peer = next((n, m) for n, m in block.named_modules() if isinstance(m, SqueezeExcitation))
    x = torch.randn(2, 32, 8, 8)
    expected = block(x)
    ours = SEConfig(reduced_channels=peer.fc1.out_channels, activation="silu").build(peer.fc1.in_channels)
    copy_weights(peer, ours, SE_FC)
    block.set_submodule(at, ours)
    assert_close(block(x), expected, **PEER)
