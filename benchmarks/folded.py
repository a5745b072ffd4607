"""SE-ResNet-50 with all its gates folded away, beside the plain ResNet-50 that it then is: time by turns in one run.

    python benchmarks/folded.py [--threads 2] [--rounds 60] [--rows FILE]

Parameters, multiply-adds and the names of all weights are compared first, and outputs with the network whose gates are
those constants. Beside it, plain over plain: how far two equal networks are apart on this machine.
"""

from __future__ import annotations

import argparse
import copy
import json
from datetime import UTC, datetime
from pathlib import Path

import torch

from excite import count_cost, create_model, fold_gates_, time_in_turns
from excite.gates import Gate
from excite.timing import Spread, describe_machine

RESULTS = Path(__file__).parent / "results"


@torch.no_grad()
def networks(image: torch.Tensor) -> dict[str, torch.nn.Module]:
    """Folded, plain, and plain again; the first is what its gates as constants made it."""
    gated = create_model("resnet50", gate="se").eval()
    names = [name for name, module in gated.named_modules() if isinstance(module, Gate)]
    constants = {name: 0.2 + 0.6 * torch.rand(gated.get_submodule(name).channels) for name in names}
    fixed, folded = copy.deepcopy(gated), copy.deepcopy(gated)
    for name, c in constants.items():
        fixed.get_submodule(name).excite = lambda z, c=c: c.to(z.dtype).expand_as(z)  # type: ignore[method-assign]
    fold_gates_(folded, constants, image)
    expected = fixed(image)
    assert (folded(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
    plain = create_model("resnet50").eval()
    costs = [count_cost(network, image).total for network in (folded, plain)]
    assert (costs[0].parameters, costs[0].macs) == (costs[1].parameters, costs[1].macs)
    assert list(folded.state_dict()) == list(plain.state_dict())
    found = {"folded": folded, "plain": plain, "plain again": copy.deepcopy(plain)}
    return {name: network.to(memory_format=torch.channels_last) for name, network in found.items()}


def main() -> None:
    """Compare, measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--rows", type=Path, default=RESULTS / "cpu.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    image = torch.randn(1, 3, 224, 224).to(memory_format=torch.channels_last)
    found = networks(image)
    with torch.inference_mode():
        calls = {name: (lambda network=network: network(image)) for name, network in found.items()}
        timings = time_in_turns(calls, rounds=options.rounds, warmup=5)
    row = {
        "benchmark": "folded",
        "network": "se_resnet50",
        "ratio": {},
        "batch_size": 1,
        "rounds": options.rounds,
        "machine": describe_machine("cpu"),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name in ("folded", "plain again"):
        pairs = zip(timings[name].samples_ms, timings["plain"].samples_ms, strict=True)
        spread = Spread.of([one / other for one, other in pairs])
        row["ratio"][f"{name} over plain"] = {"p20": spread.p20, "p50": spread.p50, "p80": spread.p80}
        print(f"{name} over plain: {spread.p50:.3f} ({spread.p20:.3f} to {spread.p80:.3f})")
    with options.rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
