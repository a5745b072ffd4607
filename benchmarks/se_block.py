"""Where the time of SE-ResNet-50's tails goes on this CPU, and where it went: the figure of docs/performance.md.

    python benchmarks/se_block.py [--svg docs/pictures/se-block.svg] [--rows FILE]

The last convolution of each of the 16 blocks, and all that follows it, in pieces, at the shapes the network has at
224 pixels; a piece's time is summed over the blocks. Each piece is timed by turns with the others.
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

from excite.deploy.activations import Activation
from excite.deploy.layers import FusedConv, GatedConv
from excite.gates import SE
from excite.ops import rescale, squeeze
from excite.timing import describe_machine, time_in_turns

# Channels in and out of the last convolution, positions a side, blocks.
STAGES = ((64, 256, 56, 3), (128, 512, 28, 4), (256, 1024, 14, 6), (512, 2048, 7, 3))
BARS: dict[str, tuple[str, ...]] = {
    "plain, as it is": ("convolution", "norm", "add", "ReLU"),
    "SE, as it is": ("convolution", "norm", "squeeze", "two layers", "rescale", "add", "ReLU"),
    "plain, fused": ("convolution, add, ReLU",),
    "SE, fused": ("squeeze ahead, two layers", "convolution, rescale, add, ReLU"),
}
# Dark enough for white paper and light enough for black; the gate's own in the warm ones.
COLOURS = {
    "convolution": "#4477aa", "convolution, add, ReLU": "#4477aa", "convolution, rescale, add, ReLU": "#4477aa",
    "norm": "#66a5c9", "add": "#8f8f8f", "ReLU": "#b3b3b3", "squeeze": "#cc6633", "two layers": "#e09a4f",
    "rescale": "#b8455b", "squeeze ahead, two layers": "#e09a4f",
}  # fmt: skip


def pieces(n: int, c_in: int, c_out: int, side: int) -> dict[str, Callable[[], object]]:
    """What each bar consists of, as calls on maps of one stage."""
    rows = torch.channels_last
    h = torch.randn(n, c_in, side, side).to(memory_format=rows)
    u = torch.randn(n, c_out, side, side).to(memory_format=rows)
    shortcut = torch.randn_like(u)
    conv, norm, gate = nn.Conv2d(c_in, c_out, 1).to(memory_format=rows), nn.BatchNorm2d(c_out).eval(), SE(c_out)
    z, s = torch.randn(n, c_out), torch.rand(n, c_out)
    plain, gated = FusedConv(conv), GatedConv(conv, gate)
    for layer in (plain, gated):
        layer.act, layer.in_place = Activation("relu"), True
    known = GatedConv(conv, gate)
    known.act, known.in_place = Activation("relu"), True
    known._scale_ahead = lambda x: s  # type: ignore[method-assign]
    return {
        "convolution": partial(conv, h),
        "norm": partial(norm, u),
        "squeeze": partial(squeeze, u),
        "two layers": partial(gate.excite, z),
        "rescale": partial(rescale, u, s),
        "add": partial(Tensor.add_, u.clone(), shortcut),
        "ReLU": partial(F.relu_, u.clone()),
        "convolution, add, ReLU": partial(plain, h, shortcut.clone()),
        "squeeze ahead, two layers": partial(gated._scale_ahead, h),
        "convolution, rescale, add, ReLU": partial(known, h, shortcut.clone()),
    }


def measure(n: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each piece, summed over the network's blocks."""
    total: dict[str, float] = {}
    with torch.inference_mode():
        for c_in, c_out, side, blocks in STAGES:
            for name, timing in time_in_turns(pieces(n, c_in, c_out, side), rounds=rounds).items():
                total[name] = total.get(name, 0) + blocks * timing.p50_ms
    return total


def svg(times: dict[str, float], caption: str) -> str:
    """Stacked bars, readable on light and on dark ground."""
    width, left, step, scale = 760, 120, 52, 0.0
    scale = (width - left - 90) / max(sum(times[p] for p in bar) for bar in BARS.values())
    height = step * len(BARS) + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        "<style>text{fill:#222}.in{fill:#fff;font-size:11px}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>",
    ]
    for i, (label, bar) in enumerate(BARS.items()):
        y, x = i * step + 8, float(left)
        parts.append(f'<text x="{left - 10}" y="{y + 21}" text-anchor="end">{label}</text>')
        for piece in bar:
            w = times[piece] * scale
            parts.append(f"<g><title>{piece}: {times[piece]:.1f} ms</title>")
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{w:.1f}" height="32" fill="{COLOURS[piece]}"/>')
            if w > 6.2 * len(piece):
                parts.append(f'<text class="in" x="{x + w / 2:.1f}" y="{y + 20}" text-anchor="middle">{piece}</text>')
            parts.append("</g>")
            x += w
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 21}">{sum(times[p] for p in bar):.1f} ms</text>')
    x = float(left)
    for piece in ("squeeze", "two layers", "rescale"):
        parts.append(f'<rect x="{x}" y="{height - 44}" width="12" height="12" fill="{COLOURS[piece]}"/>')
        parts.append(f'<text x="{x + 18}" y="{height - 34}">{piece}</text>')
        x += 44 + 7 * len(piece)
    parts.append(f'<text x="{left}" y="{height - 8}" font-size="11">{caption}</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", type=Path, help="draw the figure here")
    parser.add_argument("--rows", type=Path, help="append a row to this file")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    times, machine = measure(options.batch, options.rounds), describe_machine("cpu")
    for label, bar in BARS.items():
        print(f"{label:18} {sum(times[p] for p in bar):7.1f} ms  " + ", ".join(f"{p} {times[p]:.1f}" for p in bar))
    if options.rows:
        row = {"benchmark": "se_block", "batch_size": options.batch, "ms": times, "machine": machine}
        with options.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "when": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")
    if options.svg:
        caption = f"16 tails of ResNet-50, batch {options.batch}; {machine['device_name']}, {options.threads} threads"
        options.svg.write_text(svg(times, f"{caption}, torch {machine['torch'].partition('+')[0]}"), encoding="utf-8")


if __name__ == "__main__":
    main()
