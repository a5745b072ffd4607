"""What a gate costs at inference on this CPU, beside timm's own networks.

    python benchmarks/inference.py [--compile] [--rows FILE]

Every ratio is of times measured by turns in one run; outputs are compared first. Rows go into
benchmarks/results/cpu.jsonl, one JSON object each. `excite bench` gives the same for your own networks.
"""

from __future__ import annotations

import argparse
import copy
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

from excite import create_model, fuse, swap_, time_in_turns
from excite.timing import Spread, describe_machine

RESULTS = Path(__file__).parent / "results"
# (what, gated, plain, goal): which ratio, and what it should be at most.
RESNET_GOALS = (
    ("timm SE over timm plain", "timm SE", "timm plain", None),
    ("ours fused, SE, over timm plain", "ours SE, fused", "timm plain", 1.00),
    ("ours fused, ECA, over timm plain", "ours ECA, fused", "timm plain", 1.00),
    ("ours fused, SE over plain", "ours SE, fused", "ours plain, fused", {1: 1.03, 8: 1.01}),
    ("ours fused, ECA over plain", "ours ECA, fused", "ours plain, fused", {1: 1.03, 8: 1.01}),
    ("ours fused, plain, over timm plain", "ours plain, fused", "timm plain", 1.00),
    ("timm's SE fused over timm plain", "timm SE, fused", "timm plain", 1.00),
)
COMPILED_GOALS = (
    ("compiled: timm SE over timm plain", "timm SE, compiled", "timm plain, compiled", None),
    ("compiled: ours fused, SE, over timm plain", "ours SE, fused, compiled", "timm plain, compiled", 1.03),
    ("ours fused, SE, eager, over timm plain compiled", "ours SE, fused", "timm plain, compiled", None),
)


def mobile_goals(goal: float) -> tuple[tuple[str, str, str, float | None], ...]:
    """The ratios of a network whose gates can be taken out, with the goal of the fused one."""
    return (
        ("gated over plain", "gated", "plain", None),
        ("gated, fused, over plain", "gated, fused", "plain", goal),
        ("gated, fused, over plain, fused", "gated, fused", "plain, fused", None),
    )


@torch.no_grad()
def trained(model: nn.Module) -> nn.Module:
    """Norms and biases as training leaves them, in eval mode and channels_last."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1 and not key.endswith("running_var"):
            if key.endswith("weight"):
                tensor.uniform_(0.4, 1.2, generator=generator)
            else:
                tensor.normal_(0, 0.2, generator=generator)
    return model.eval().to(memory_format=torch.channels_last)


def resnets(images: torch.Tensor, compiled: bool) -> dict[str, nn.Module]:
    """ResNet-50 with SE, with ECA and without: timm's, and ours fused."""
    networks = {
        "timm plain": trained(timm.create_model("resnet50")),
        "timm SE": trained(timm.create_model("seresnet50")),
    }
    networks["timm SE, fused"] = fuse(networks["timm SE"], images)
    for label, name in (("plain", "resnet50"), ("SE", "se_resnet50"), ("ECA", "eca_resnet50")):
        networks[f"ours {label}, fused"] = fuse(trained(create_model(name)), images)
    if compiled:
        for label in ("timm plain", "timm SE", "ours SE, fused", "ours plain, fused"):
            networks[f"{label}, compiled"] = torch.compile(networks[label])  # type: ignore[assignment]
    return networks


def mobiles(name: str, images: torch.Tensor) -> dict[str, nn.Module]:
    """A network of timm's with its gates and with them taken out, as it is and fused."""
    gated = trained(timm.create_model(name))
    plain = copy.deepcopy(gated)
    swap_(plain, "*", "none", images[:1])
    networks = {"plain": plain, "gated": gated}
    return networks | {f"{label}, fused": fuse(network, images) for label, network in networks.items()}


def measure(networks: dict[str, nn.Module], images: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, by network."""
    with torch.no_grad():
        timings = time_in_turns({k: partial(n, images) for k, n in networks.items()}, rounds=rounds, warmup=3)
    return {name: list(timing.samples_ms) for name, timing in timings.items()}


def main() -> None:
    """Measure, print, and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile ResNet-50 too, with frozen weights (minutes)")
    parser.add_argument("--rows", help="append the rows to this file instead")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.compile:
        import torch._inductor.config as inductor

        inductor.freezing = True
    machine = describe_machine("cpu")
    path = Path(options.rows) if options.rows else RESULTS / "cpu.jsonl"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"{machine['device_name']}, {options.threads} threads, torch {machine['torch']}, timm {timm.__version__}")
    rows = []
    for n in (1, 8):
        images = torch.randn(n, 3, 224, 224).to(memory_format=torch.channels_last)
        for network, make, goals in (
            ("resnet50", partial(resnets, compiled=options.compile), RESNET_GOALS),
            ("efficientnet_b0", partial(mobiles, "efficientnet_b0"), mobile_goals(1.10)),
            ("mobilenetv3_large_100", partial(mobiles, "mobilenetv3_large_100"), mobile_goals(1.02)),
        ):
            samples = measure(make(images=images), images, options.rounds)
            more = COMPILED_GOALS if options.compile and network == "resnet50" else ()
            print(f"\n{network}, batch {n}")
            for what, one, other, goal in (*goals, *more):
                ratio = Spread.of([a / b for a, b in zip(samples[one], samples[other], strict=True)])
                wanted = goal[n] if isinstance(goal, dict) else goal
                told = "" if wanted is None else f"   goal {wanted:.2f} {'met' if ratio.p50 <= wanted else 'missed'}"
                print(f"  {what:48} {ratio.p50:.3f}  ({ratio.p20:.3f} to {ratio.p80:.3f}){told}")
                row = {"benchmark": "inference", "network": network, "batch_size": n, "what": what, "goal": wanted}
                times = {"p50_ms": Spread.of(samples[one]).p50, "of_ms": Spread.of(samples[other]).p50}
                found = {"ratio": vars(ratio), **times, "rounds": options.rounds, "threads": options.threads}
                rows.append({**row, **found, "when": when, "timm": timm.__version__, "machine": machine})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
