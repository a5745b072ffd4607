"""What a gate costs in training: steps of SE-ResNet-50 and ResNet-50, of excite and of timm, in turns in one run.

"One tail" is timm's network after ``fuse_training_``.

    python benchmarks/tail_training.py [--rounds 30] [--threads 2] [--batch 8] [--size 160]

Parity first: with "auto" a network has the same gradients as with the reference. Then times, and the memory that one
step allocates at its peak: activations, and the gradients that are there by then. One row a ratio is appended to
``benchmarks/results/<device>.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.models import create_model
from excite.ops import native
from excite.surgery import fuse_training_
from excite.timing import Spread, Timing, time_in_turns, training_step

RESULTS = Path(__file__).parent / "results"
# What is compared with what.
RATIOS = [
    ("timm seresnet50", "timm resnet50"),
    ("excite se_resnet50", "timm resnet50"),
    ("excite se_resnet50", "excite resnet50"),
    ("excite resnet50", "timm resnet50"),
    ("timm seresnet50, one tail", "timm resnet50"),
    ("timm seresnet50, one tail", "timm seresnet50"),
]
PARITY = 1e-3


def networks() -> dict[str, nn.Module]:
    with_tails = timm.create_model("seresnet50")
    fuse_training_(with_tails, torch.randn(2, 3, 64, 64))
    return {
        "timm resnet50": timm.create_model("resnet50"),
        "timm seresnet50": timm.create_model("seresnet50"),
        "timm seresnet50, one tail": with_tails,
        "excite resnet50": create_model("resnet50"),
        "excite se_resnet50": create_model("resnet50", gate="se"),
    }


def check_parity(x: Tensor, labels: Tensor) -> float:
    """The largest difference of a gradient between "auto" and the reference, over the gradient's largest value."""
    worst = 0.0
    for gate in (None, "se"):
        auto, reference = (create_model("resnet50", gate=gate, impl=impl) for impl in ("auto", "reference"))
        reference.load_state_dict(auto.state_dict())
        gradients = []
        # float64: in float32 a ReLU whose input rounds across zero moves whole gradients, in any two implementations.
        for model in (auto.double(), reference.double()):
            F.cross_entropy(model.train()(x.double()), labels).backward()
            gradients.append([p.grad for p in model.parameters()])
        for ours, theirs in zip(*gradients, strict=True):
            worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item())
    if worst > PARITY:
        raise SystemExit(f"no parity: a gradient differs by {worst:.1e} of its largest value")
    return worst


def peak_bytes(step: Callable[[], None]) -> int:
    """What one step holds at its peak more than before it, as the allocator sees it."""
    step()
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def ratio(timings: dict[str, Timing], what: str, to: str) -> Spread:
    pairs = zip(timings[what].samples_ms, timings[to].samples_ms, strict=True)
    return Spread.of([mine / theirs for mine, theirs in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rounds", 30), ("threads", 2), ("batch", 8), ("size", 160)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.batch, 3, args.size, args.size).to(memory_format=torch.channels_last)
    labels = torch.arange(args.batch)
    parity = check_parity(x[:2], labels[:2])
    print(f"parity: gradients differ by {parity:.1e} at most")
    steps = {
        name: training_step(model.to(memory_format=torch.channels_last), x, labels)
        for name, model in networks().items()
    }
    timings = time_in_turns(steps, rounds=args.rounds, warmup=3)
    peaks = {name: peak_bytes(step) for name, step in steps.items()}
    rows: list[dict[str, Any]] = []
    for what, to in RATIOS:
        spread = ratio(timings, what, to)
        row = {
            "benchmark": "tail_training",
            "what": what,
            "over": to,
            "ratio": {"p20": spread.p20, "p50": spread.p50, "p80": spread.p80},
            "median_ms": [timings[what].p50_ms, timings[to].p50_ms],
            "peak_memory_ratio": peaks[what] / peaks[to],
            "rounds": args.rounds,
            "batch": args.batch,
            "size": args.size,
            "dtype": "float32",
            "layout": "channels_last",
            "mode": "eager",
            "compiled_passes": native.library() is not None,
            "parity": parity,
            "versions": {"timm": timm.__version__},
            "machine": timings[what].machine,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        rows.append(row)
        print(
            f"{what:20s} over {to:16s} {spread.p50:.3f} ({spread.p20:.3f}-{spread.p80:.3f}), "
            f"{row['median_ms'][0]:.0f} over {row['median_ms'][1]:.0f} ms, peak memory {row['peak_memory_ratio']:.3f}"
        )
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "cpu.jsonl", "a") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
