"""Ways to end a bottleneck with a gate on a CPU: 1x1 convolution, rescaling, shortcut and ReLU, the scale being known.

    python benchmarks/gated_conv.py [--batch 8] [--rows FILE]

At the four shapes of ResNet-50 at 224 pixels, beside a plain tail (convolution, shortcut and ReLU in one primitive of
oneDNN). Outputs are compared first; times are medians, measured by turns.
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

from excite.deploy.activations import ACTIVATION_NONE, Activation
from excite.deploy.layers import FusedConv
from excite.ops.native import rescale_add_act_
from excite.ops.pointwise import ACTS, in_panels, pointwise
from excite.timing import describe_machine, time_in_turns

SHAPES = ((64, 256, 56), (128, 512, 28), (256, 1024, 14), (512, 2048, 7))


class OneDNN(FusedConv):
    """The convolution by oneDNN alone."""

    def _by_pointwise(self, *args: object, **kwargs: object) -> None:
        return None


def ways(n: int, c_in: int, c_out: int, side: int) -> tuple[dict[str, Callable[[Tensor], Tensor]], Tensor]:
    """Each way as a call that writes the map over the shortcut it is given, as fused networks do; and a shortcut."""
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
    return calls, shortcut


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=Path, help="append a row to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for c_in, c_out, side in SHAPES:
            calls, shortcut = ways(options.batch, c_in, c_out, side)
            _, *gated = (call(shortcut.clone()) for call in calls.values())
            assert all(torch.allclose(y, gated[0], rtol=1e-4, atol=1e-4) for y in gated)
            timings = time_in_turns(
                {name: partial(call, shortcut.clone()) for name, call in calls.items()}, rounds=options.rounds
            )
            shape = f"{c_in} to {c_out} channels, {side} x {side}"
            found[shape] = {name: round(timing.p50_ms, 3) for name, timing in timings.items()}
            print(f"{options.batch} images, {shape}")
            for name, timing in timings.items():
                print(f"  {name:34}{timing.p50_ms:8.2f} ms  {timing.ratio.p50:6.2f} of plain")
    if options.rows:
        row = {"benchmark": "gated_conv", "batch_size": options.batch, "ms": found, "machine": describe_machine("cpu")}
        with options.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "when": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")


if __name__ == "__main__":
    main()
