"""The numbers that papers and released files fix: hidden widths, kernel sizes, parameters of whole networks."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from excite.errors import UserError
from excite.gates import ECAConfig, NoSqueeze, SEConfig, parse_gate
from tolerances import PARITY

# Blocks and their output channels, stage by stage (ResNet paper, Table 1; MobileNetV2 paper, Table 2).
NETWORKS = {
    "resnet18": [(2, 64), (2, 128), (2, 256), (2, 512)],
    "resnet34": [(3, 64), (4, 128), (6, 256), (3, 512)],
    "resnet50": [(3, 256), (4, 512), (6, 1024), (3, 2048)],
    "resnet101": [(3, 256), (4, 512), (23, 1024), (3, 2048)],
    "resnet152": [(3, 256), (8, 512), (36, 1024), (3, 2048)],
    "mobilenetv2": [(1, 16), (2, 24), (3, 32), (4, 64), (3, 96), (3, 160), (1, 320)],
}
# Learnable parameters without gates; ResNeXt-50 and -101 (32x4d) have the channels of the ResNets.
PLAIN = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50": 25_028_904,
    "resnext101": 44_177_704,
}
MEBI = 2**20


def added(gate: str, network: str, stages: tuple[int, ...] = (1, 2, 3, 4)) -> int:
    """The parameters that a gate after every block of these stages adds to the network."""
    config = parse_gate(gate)
    total = 0
    for stage, (blocks, channels) in enumerate(NETWORKS[network], start=1):
        if stage in stages or network == "mobilenetv2":
            total += blocks * sum(p.numel() for p in config.build(channels).parameters())
    return total


# --- parameters of the published networks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plain, channels, gate, expected",
    [
        ("resnet50", "resnet50", "se(bias=false)", 28_071_976),
        ("resnet50", "resnet50", "se", 28_088_024),
        ("resnet101", "resnet101", "se", 49_326_872),
        ("resnet152", "resnet152", "se", 66_821_848),
        ("resnext50", "resnet50", "se", 27_559_896),
        ("resnext101", "resnet101", "se", 48_955_416),
    ],
)
def test_se_networks_have_the_released_parameters(plain, channels, gate, expected):
    assert PLAIN[plain] + added(gate, channels) == expected


@pytest.mark.parametrize(
    "reduction, learnable, printed",
    [
        (2, 45_676_584, 45.7),
        (4, 35_616_808, 35.7),
        (8, 30_586_920, 30.7),
        (16, 28_071_976, 28.1),
        (32, 26_814_504, 26.9),
    ],
)
def test_the_reduction_ablation(reduction, learnable, printed):
    """SE paper, Table 10, which counts batch norm's running statistics (53,120 in ResNet-50) as parameters."""
    total = PLAIN["resnet50"] + added(f"se(reduction={reduction},bias=false)", "resnet50")
    assert total == learnable
    # Counted so, r = 8 has 30.640 million where the table prints 30.7; the other rows round to what it prints.
    assert (total + 53_120) / 1e6 == pytest.approx(printed, abs=0.06)


@pytest.mark.parametrize("stage, millions", [(1, 25.6), (2, 25.7), (3, 26.4)])
def test_gates_in_one_stage_only(stage, millions):
    """SE paper, Table 13; its stages 2 to 4 are our 1 to 3."""
    total = PLAIN["resnet50"] + 53_120 + added("se(bias=false)", "resnet50", (stage,))
    assert total / 1e6 == pytest.approx(millions, abs=0.0501)


def test_most_parameters_stand_in_the_last_stage():
    """SE paper, Sec. 4: +10 % in all, +4 % without the last stage."""
    everywhere = added("se(bias=false)", "resnet50") / PLAIN["resnet50"]
    without_last = added("se(bias=false)", "resnet50", (1, 2, 3)) / PLAIN["resnet50"]
    assert round(everywhere, 2) == 0.10 and round(without_last, 2) == 0.04


@pytest.mark.parametrize("network, mebi", [("resnet50", 26.77), ("resnet101", 47.01), ("resnet152", 63.68)])
def test_eca_papers_se_rows_are_without_biases(network, mebi):
    """ECA paper, Table 3, in units of 2^20."""
    assert round((PLAIN[network] + added("se(bias=false)", network)) / MEBI, 2) == mebi


def test_released_eca_resnet50_adds_80_parameters():
    """ECA paper, abstract. The paper's own rule would give 86: the released sizes are what was counted."""
    assert added("eca(kernel_size=released:resnet50)", "resnet50") == 80
    assert added("eca", "resnet50") == 86


# --- the hidden width of SE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, channels, width",
    [
        ({}, 64, 4),
        ({}, 100, 6),  # C // r, never rounded up
        ({}, 15, 1),  # C < r: C // r would be 0
        ({}, 1, 1),
        ({"min_reduced_channels": 4}, 16, 4),
        ({"min_reduced_channels": 4}, 256, 16),
        ({"reduced_channels": 10}, 3, 10),
        ({"round_to": 8}, 64, 8),  # 4 -> at least one multiple
        ({"round_to": 8}, 192, 16),  # 12, half way, goes up
        ({"round_to": 8}, 191, 8),
        ({"round_to": 8, "min_reduced_channels": 24}, 64, 24),
        ({"round_to": 1}, 24, 2),  # 1.5 goes up
        ({"round_to": 1}, 23, 1),
        ({"reduction": 4, "round_to": 8}, 72, 16),  # 18 -> 16
        ({"reduction": 4, "round_to": 8, "round_limit": 0.9}, 72, 24),  # 16 < 0.9 * 18
        ({"reduction": 4, "round_to": 8, "round_limit": 0.9}, 68, 16),  # 16 > 0.9 * 17
        ({"round_to": 8, "round_limit": 1.0}, 128, 8),  # exact: nothing was lost
        ({"round_to": 8, "round_limit": 1.0}, 129, 16),
    ],
)
def test_the_hidden_width(options, channels, width):
    gate = SEConfig(**options).build(channels)
    assert gate.reduced_channels == width
    assert gate.fc1.weight.shape == (width, channels) and gate.fc2.weight.shape == (channels, width)


# --- the kernel of ECA ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, k", [(1, 1), (4, 1), (8, 3), (64, 3), (128, 5), (512, 5), (1024, 5), (2048, 7)])
def test_the_adaptive_kernel(channels, k):
    assert ECAConfig().build(channels).kernel_size == k


@pytest.mark.parametrize("gamma, beta", [(2, 1), (1, 1), (3, 0), (2, -20), (-2, 1), (0.5, 7)])
def test_the_adaptive_kernel_is_the_nearest_odd_number(gamma, beta):
    config = ECAConfig(gamma=gamma, beta=beta)
    for channels in [1, 2, 3, 5, 8, 96, 100, 127, 128, 129, 1000, 4096]:
        t = abs((math.log2(channels) + beta) / gamma)
        k = config.kernel_size_for(channels)
        assert k % 2 == 1 and k >= 1 and -1 < k - t <= 1


@pytest.mark.parametrize(
    "network, sizes",
    [
        ("resnet18", [3, 5, 7, 7]),
        ("resnet34", [3, 3, 5, 7]),
        ("resnet50", [3, 5, 5, 7]),
        ("resnet101", [3, 3, 5, 7]),
        ("resnet152", [3, 3, 5, 7]),
        ("mobilenetv2", [1, 1, 1, 1, 3, 3, 3]),
    ],
)
def test_the_released_kernels(network, sizes):
    config = ECAConfig(f"released:{network}")
    assert [config.build(channels).kernel_size for _, channels in NETWORKS[network]] == sizes


def test_released_kernels_stop_at_their_network():
    with pytest.raises(UserError, match=r"256, 512, 1024, 2048 channels, not for 64"):
        ECAConfig("released:resnet50").build(64)


# --- the groups of SE-GC -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gate, channels, near",
    [
        ("se_gc", 24, "8, 12, 24"),
        ("se_gc", 13, "1, 13"),
        ("se_gc(groups=5)", 12, "4, 6"),
        ("se_gc(group_size=64)", 32, "16, 32"),
    ],
)
def test_groups_must_divide_the_channels(gate, channels, near):
    with pytest.raises(UserError, match=f"does not divide {channels} channels; the nearest that do: .*{near}"):
        parse_gate(gate).build(channels)


# --- what the variants have in common ------------------------------------------------------------------------------


def with_weights(gate: str, **weights: torch.Tensor) -> nn.Module:
    module = parse_gate(gate).build(8).double()
    module.load_state_dict(weights, strict=True)
    return module


def test_the_variants_are_special_cases_of_each_other():
    row, diagonal = torch.randn(3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    matrix, bias = torch.randn(8, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    u = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    same = [
        [with_weights("se_var1"), with_weights("se_var2", weight=torch.ones(8))],
        [
            with_weights("se_var2", weight=diagonal),
            with_weights("se_gc(groups=8)", weight=diagonal[:, None]),
            with_weights("eca_ns(kernel_size=1)", weight=diagonal[:, None]),
            with_weights("se_var3", **{"fc.weight": torch.diag(diagonal)}),
        ],
        [
            with_weights("se_var3", **{"fc.weight": matrix}),
            with_weights("se_gc(groups=1)", weight=matrix),
            with_weights("ese(gate_function=sigmoid)", **{"fc.weight": matrix, "fc.bias": bias}),
        ],
        [
            with_weights("eca(kernel_size=3)", **{"conv.weight": row[None, None]}),
            with_weights("eca_ns(kernel_size=3)", weight=row.expand(8, 3)),
        ],
    ]
    for first, *others in same:
        for other in others:
            assert_close(other(u), first(u), **PARITY[torch.float64])


def test_no_squeeze_is_se_on_a_map_of_one_position():
    se = SEConfig(reduction=2).build(8).double()
    no_squeeze = NoSqueeze(8, reduction=2).double()
    no_squeeze.load_state_dict(se.state_dict(), strict=True)
    point, plane = torch.randn(2, 8, 1, 1, dtype=torch.float64), torch.randn(2, 8, 3, 3, dtype=torch.float64)
    assert_close(no_squeeze(point), se(point), **PARITY[torch.float64])
    assert not torch.allclose(no_squeeze(plane), se(plane))
