"""Ways to have a gate beside a convolution on a CPU, the scale being known.

    python benchmarks/gated_conv.py [--batch 8] [--rows FILE]

Four questions, each at the shapes where it is asked:

- gated_conv: how a bottleneck ends: 1x1 convolution, rescaling, shortcut and ReLU, at the four shapes of ResNet-50 at
  224 pixels, beside a plain tail (convolution, shortcut and ReLU in one primitive of oneDNN)
- gated_input: how the gate of an inverted residual goes into the 1x1 convolution that reads its map, at shapes of
  EfficientNet-B0
- gate_scale: what SE's mean, layers and function take for one image, ahead of those convolutions
- squeeze_kxk: whether the squeeze of a 3x3 convolution is worth taking from its input, at shapes of ResNet-18

Outputs are compared first; times are medians, measured by turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.deploy.activations import ACTIVATION_NONE, Activation
from excite.deploy.layers import FusedConv, GatedConv
from excite.gates import SE
from excite.ops import squeeze, squeeze_ahead
from excite.ops.native import rescale_add_act_
from excite.ops.pointwise import ACTS, in_panels, pointwise
from excite.timing import describe_machine, time_in_turns

# Channels in and out, and the input's side.
SHAPES = ((64, 256, 56), (128, 512, 28), (256, 1024, 14), (512, 2048, 7))
PROJECTIONS = ((144, 24, 56), (240, 40, 28), (672, 112, 14), (1152, 192, 7))
SQUEEZED = ((64, 64, 56), (64, 128, 56), (256, 512, 14))

Ways = dict[str, Callable[[], Tensor]]


class OneDNN(FusedConv):
    """The convolution by oneDNN alone."""

    def _by_pointwise(self, *args: object, **kwargs: object) -> None:
        return None


def endings(n: int, c_in: int, c_out: int, side: int) -> tuple[Ways, Ways]:
    """Each way, writing the map over the shortcut as fused networks do, to be measured; and to be compared."""
    rows = torch.channels_last
    x, shortcut = (torch.randn(n, c, side, side).to(memory_format=rows) for c in (c_in, c_out))
    s = torch.rand(n, c_out)
    conv = OneDNN(nn.Conv2d(c_in, c_out, 1).to(memory_format=rows))
    weight, bias = conv.weight, conv.bias
    assert bias is not None
    panels = in_panels(weight.flatten(1))
    assert panels is not None
    conv.in_place = True

    def plain(add: Tensor) -> Tensor:
        return conv._convolved(x, add, Activation("relu"))

    def one_pass(add: Tensor, h: Tensor = x, scale: Tensor = s) -> Tensor:
        u = conv._convolved(h, None, ACTIVATION_NONE)
        assert rescale_add_act_(u, scale, add, "relu", out=add)
        return add

    def by_image(add: Tensor) -> Tensor:
        for h, scale, part in zip(x.split(1), s.split(1), add.split(1), strict=True):
            one_pass(part, h, scale)
        return add

    def scaled_weights(add: Tensor) -> Tensor:
        for h, scale, part in zip(x.split(1), s, add.split(1), strict=True):
            scaled = weight * scale[:, None, None, None]
            told = ([0, 0], [1, 1], [1, 1], 1, "add", 1.0, "relu", [], "")
            torch.ops.mkldnn._convolution_pointwise_(part, h, scaled, bias * scale, *told)
        return add

    def knowing(add: Tensor) -> Tensor:
        y = pointwise(x, panels, bias, scale=s, shortcut=add, act=ACTS["relu"], in_place=True)
        assert y is not None
        return y

    calls = {
        "plain, one primitive": plain,
        "convolution, then one pass": one_pass,
        "the same, image by image": by_image,
        "weights scaled for each image": scaled_weights,
        "convolution that knows the gate": knowing,
    }
    measured = {name: partial(call, shortcut.clone()) for name, call in calls.items()}
    return measured, {name: partial(call, shortcut.clone()) for name, call in calls.items() if call is not plain}


def projections(n: int, c_in: int, c_out: int, side: int) -> tuple[Ways, Ways]:
    """The scale of the input: in a pass of its own, or in the convolution's weights."""
    x = torch.randn(n, c_in, side, side).to(memory_format=torch.channels_last)
    t, bias, weight = torch.rand(n, c_in), torch.randn(c_out), torch.randn(c_out, c_in)
    panels = in_panels(weight)
    assert panels is not None

    def convolved(h: Tensor, taken: Tensor | None = None) -> Tensor:
        y = pointwise(h, panels, bias, taken=taken)
        assert y is not None
        return y

    def in_a_pass(h: Tensor) -> Tensor:
        assert rescale_add_act_(h, t)
        return convolved(h)

    ones, again = torch.ones_like(t), x.clone()

    def without_change() -> Tensor:
        assert rescale_add_act_(again, ones)  # the same work, and the map stays what it is
        return convolved(again)

    measured = {
        "no gate": partial(convolved, x),
        "one pass, then convolution": without_change,
        "scale in the weights": partial(convolved, x, t),
    }
    return measured, {"pass": partial(in_a_pass, x.clone()), "weights": measured["scale in the weights"]}


def scales(n: int, c_in: int, c_out: int, side: int) -> tuple[Ways, Ways]:
    """SE's scale from the input of the convolution before it."""
    x = torch.randn(n, c_in, side, side).to(memory_format=torch.channels_last)
    layer = GatedConv(nn.Conv2d(c_in, c_out, 1), SE(c_out))
    first, second = layer.fc1, layer.gate.get_submodule("fc2")
    assert first is not None
    calls: Ways = {
        "five operations": lambda: torch.sigmoid(second(F.relu(first(squeeze(x))))),
        "one compiled call": partial(layer.scale, layer.gate, x, first=first),
    }
    return calls, calls


def squeezes(n: int, c_in: int, c_out: int, side: int) -> tuple[Ways, Ways]:
    """The mean of a 3x3 convolution's output: of the output, or ahead of it."""
    stride = 1 if c_in == c_out else 2
    h = torch.randn(n, c_in, side, side).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(c_in, c_out, 3, stride, 1).to(memory_format=torch.channels_last)
    u = conv(h)
    calls: Ways = {
        "of the output": partial(squeeze, u),
        "ahead, nine taps": partial(squeeze_ahead, h, conv.weight, conv.bias, stride=stride, padding=1),
    }
    return calls, calls


# The ways, the shapes, and how many images if not as many as are asked for.
QUESTIONS: dict[str, tuple[Callable[..., tuple[Ways, Ways]], tuple[tuple[int, int, int], ...], int | None]] = {
    "gated_conv": (endings, SHAPES, None),
    "gated_input": (projections, PROJECTIONS, None),
    "gate_scale": (scales, SHAPES, 1),
    "squeeze_kxk": (squeezes, SQUEEZED, None),
}


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=Path, help="append a row to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for question, (ways, shapes, images) in QUESTIONS.items():
        batch = images or options.batch
        row = {
            "benchmark": question,
            "batch_size": batch,
            "ms": measured(ways, shapes, batch, options.rounds),
            "machine": describe_machine("cpu"),
            "when": now,
        }
        if options.rows:
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


@torch.inference_mode()
def measured(
    ways: Callable[..., tuple[Ways, Ways]], shapes: tuple[tuple[int, int, int], ...], batch: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of each way at each shape."""
    found: dict[str, dict[str, float]] = {}
    for c_in, c_out, side in shapes:
        calls, compared = ways(batch, c_in, c_out, side)
        first, *others = (call() for call in compared.values())
        assert all(torch.allclose(y, first, rtol=1e-4, atol=1e-4 * float(first.abs().max())) for y in others)
        timings = time_in_turns(calls, rounds=rounds)
        shape = f"{c_in} to {c_out} channels, {side} x {side}"
        found[shape] = {name: round(timing.p50_ms, 3) for name, timing in timings.items()}
        print(f"{batch} images, {shape}")
        for name, timing in timings.items():
            print(f"  {name:34}{timing.p50_ms:8.3f} ms  {timing.ratio.p50:6.2f} of the first")
    return found


if __name__ == "__main__":
    main()
