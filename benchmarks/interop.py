"""Networks in other runtimes: outputs beside PyTorch's, and time as a ratio to PyTorch's, measured in turns in one run.

    python benchmarks/interop.py [--rows FILE] [--rounds 30] [--threads 2] [--network NAME ...]

Every network is exported as built and fused (``CASES``), compared by ``excite.export`` with the network as built, and
timed beside it. Rows go into benchmarks/results/interop.jsonl, one JSON object each; docs/interop.md shows
the newest of each by scripts/interop_table.py, and tests/deploy/test_interop.py makes every one again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from interop_networks import network

from excite import fuse, time_in_turns
from excite.deploy.export import Exported, export_file
from excite.deploy.runtimes import RUNTIMES
from excite.timing import Spread, describe_machine

RESULTS = Path(__file__).parent / "results" / "interop.jsonl"
BATCHES = (1, 8)
# (network, side of its images, formats as built, formats fused): a compiled file takes minutes.
CASES: tuple[tuple[str, int, tuple[str, ...], tuple[str, ...]], ...] = (
    ("se_resnet20", 32, ("onnx", "openvino", "torch"), ("onnx", "openvino", "torch", "aoti")),
    ("se_resnet20, slimmed", 32, ("onnx",), ("openvino",)),
    ("torchvision:resnet18 + se", 224, ("openvino",), ("onnx",)),
    ("timm:efficientnet_b0", 224, ("onnx",), ("openvino",)),
    ("se_resnet50", 224, ("onnx",), ("onnx", "openvino")),
    ("eca_resnet50", 224, (), ("onnx",)),
)


def exported(name: str, side: int, format: str, fused: bool, folder: Path) -> Exported:
    """A network's file, compared with the network as built by ``export`` itself."""
    model, example = network(name, side)
    path = folder / f"{format}{'-fused' if fused else ''}{RUNTIMES[format].suffix}"
    return export_file(fuse(model, example) if fused else model, example, path, format=format, reference=model)


def measure(name: str, side: int, as_built: tuple[str, ...], fused: tuple[str, ...], rounds: int) -> list[dict]:
    """The rows of one network, without machine and day."""
    model, example = network(name, side)
    rows, calls = [], {"PyTorch": model, "PyTorch, fused": fuse(model, example)}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for state, formats in (("as built", as_built), ("fused", fused)):
            for format in formats:
                done = exported(name, side, format, state == "fused", Path(folder))
                calls[f"{format}, {state}"] = RUNTIMES[format].load(done.path).run
                sizes = {" x ".join(map(str, c.shape[2:])): None for c in done.comparisons}
                rows.append(
                    {
                        "network": name,
                        "state": state,
                        "format": format,
                        "tool": RUNTIMES[format].title,
                        "version": done.tool.rpartition(" ")[2],
                        "opset": done.opset,
                        "difference": done.difference,
                        "rounding": done.rounding,
                        "tolerance": done.tolerance,
                        "sizes": list(sizes),
                        "batches": len(done.comparisons),
                        "side": side,
                        "ratio": {},
                    }  # fmt: skip
                )
                print(f"  {format:9} {state:9} {done.difference:.1e}", flush=True)
        for n in BATCHES:
            images = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(n))
            runs: dict[str, Callable[[], object]] = {key: partial(call, images) for key, call in calls.items()}
            timings = time_in_turns(runs, rounds=rounds, warmup=3)
            for row in rows:
                timing = timings[f"{row['format']}, {row['state']}"]
                row["ratio"][str(n)] = {**vars(timing.ratio), "p50_ms": timing.p50_ms}
            own = Spread.of(timings["PyTorch, fused"].samples_ms).p50 / timings["PyTorch"].p50_ms
            print(f"  batch {n}: PyTorch {timings['PyTorch'].p50_ms:.1f} ms, fused {own:.2f}", flush=True)
    return rows


def main() -> None:
    """Measure, print, and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS, help="append the rows to this file instead")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--network", action="append", help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = {"benchmark": "interop", "rounds": options.rounds, "threads": options.threads, "timm": version("timm")}
    about |= {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine("cpu")}
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    for name, side, as_built, fused in CASES:
        if options.network and name not in options.network:
            continue
        print(name, flush=True)
        rows = measure(name, side, as_built, fused, options.rounds)
        with options.rows.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**row, **about}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
