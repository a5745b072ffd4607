"""The tail's Triton kernels on a GPU: right first, then how fast, then what training gains.

    python benchmarks/gpu_tail.py --out benchmarks/results/h200.jsonl

1. parity: every pass against the passes in PyTorch on the same numbers in float64, fresh random maps, outputs poisoned
   with NaN; and one training step of the network with either tail. What fails ends the run: nothing is timed.
2. kernels: bytes a second of each pass over those of a device copy, for the four tails of ResNet-50 (captured in
   graphs, so that launches cost nothing, over several sets of maps, so that no cache holds them).
3. training: SE-ResNet-50 under autocast: ours gated and plain, timm's gated and plain, in turns; peak memory.
4. sweep (only if asked for): each kernel with other tiles, to choose ``excite.ops.tail_tiles.TILES`` by.

Rows go to --out, one JSON object a line, with versions and machine. ``--dry`` tries all of it on a CPU in Triton's
interpreter with tiny sizes; its times mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("parity", "kernels", "training", "sweep")
# Of ‖ours - exact‖ / ‖exact‖: one rounding of a half-precision result, float32 sums.
BOUNDS = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}
# Channels and size of the maps that ResNet-50's tails work on, at 224 pixels.
TAILS = ((256, 56), (512, 28), (1024, 14), (2048, 7))
REPEATS = 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a .jsonl file that rows are appended to")
    parser.add_argument("--only", default="parity,kernels,training", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="training with torch.compile(fullgraph=True)")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU, in Triton's interpreter")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"--only {','.join(sorted(unknown))}: it takes some of {','.join(PARTS)}")
    if options.dry:
        options.batch, options.rounds = min(options.batch, 2), min(options.rounds, 2)
    return options


class Bench:
    """What the parts share: sizes, the device, and the file that rows go to."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        import triton

        import excite
        from excite.timing import describe_machine

        self.options = options
        self.dry: bool = options.dry
        self.device = "cpu" if self.dry else "cuda"
        self.tails = ((8, 6), (16, 3)) if self.dry else TAILS
        self.dtype = torch.bfloat16
        self.machine = {**describe_machine(self.device), "triton": triton.__version__, "excite": excite.__version__}
        options.out.parent.mkdir(parents=True, exist_ok=True)

    def row(self, question: str, **values: Any) -> None:
        """Append a row and print it in short."""
        row = {"question": question, **values, "dry": self.dry, "machine": self.machine}
        with self.options.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
        short = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in values.items() if k != "samples_ms"}
        print(f"{question}: " + " ".join(f"{k}={v}" for k, v in short.items()), flush=True)

    def maps(self, count: int, shape: tuple[int, ...], dtype: Any, *, last: bool = True) -> list[Tensor]:
        """Fresh random maps, channels_last or contiguous."""
        import torch

        layout = torch.channels_last if last else torch.contiguous_format
        return [torch.randn(shape, device=self.device).to(dtype).to(memory_format=layout) for _ in range(count)]

    def rows_of(self, shape: tuple[int, ...]) -> list[Tensor]:
        """Four random [N, C] tensors of float32."""
        import torch

        return [torch.randn(shape[:2], device=self.device) for _ in range(4)]


# --- parity


def passes(module: Any, x: Tensor, shortcut: Tensor, dy: Tensor, y: Tensor, rows: list[Tensor], act: str) -> list[Any]:
    """What the four passes of a module give."""
    return [
        *module.moments(x),
        module.affine_act(x, shortcut, *rows[:3], act),
        *module.affine_act_grad(dy, y, x, shortcut, *rows[:3], act)[0 if act != "none" else 1 :],
        module.moments_grad(dy, x, *rows),
    ]


def check_passes(bench: Bench) -> None:
    """Raise where a pass differs from the passes in PyTorch, run in float64 on the same numbers."""
    import torch

    from excite.ops import tail_passes, tail_triton

    n = min(bench.options.batch, 8)
    shapes = [(n, c, size, size) for c, size in bench.tails] + [(3, 13, 5, 7), (2, 1, 9, 9), (1, 24, 33, 31)]
    worst = dict.fromkeys(BOUNDS, 0.0)
    cases = itertools.product(shapes, BOUNDS, (True, False), ("relu", "silu", "none"))
    for shape, dtype, last, act in cases:
        # A mean of 3: what subtracts large sums shows it.
        x, shortcut, dy, y = bench.maps(4, shape, getattr(torch, dtype), last=last)
        x += 3
        rows = bench.rows_of(shape)
        ours = passes(tail_triton, x, shortcut, dy, y, rows, act)
        exact = passes(tail_passes, *(t.double() for t in (x, shortcut, dy, y)), [t.double() for t in rows], act)
        for a, b in zip(ours, exact, strict=True):
            error = ((a.double() - b).norm() / b.norm().clamp_min(1e-30)).item()
            if not error < BOUNDS[dtype]:
                raise SystemExit(f"parity: {shape} {dtype} last={last} {act}: error {error} over {BOUNDS[dtype]}")
            worst[dtype] = max(worst[dtype], error)
    bench.row("parity of the four passes with float64", **worst)


def check_training(bench: Bench) -> None:
    """Raise where a training step of the network differs between the kernels and the reference, in float64."""
    import torch

    from excite.models import create_model

    name = "resnet18" if bench.dry else "resnet50"
    reference = create_model(name, gate="se", num_classes=10, impl="reference").double()
    ours = create_model(name, gate="se", num_classes=10, impl="triton").double()
    ours.load_state_dict(reference.state_dict())
    (images,) = bench.maps(1, (2, 3, 64, 64), torch.float64)
    for net in (reference, ours):
        net.to(bench.device, memory_format=torch.channels_last).train()
        net(images).square().mean().backward()
    for kind, a, b in [
        ("gradients", [p.grad for p in ours.parameters()], [p.grad for p in reference.parameters()]),
        ("statistics", list(ours.buffers()), list(reference.buffers())),
    ]:
        a, b = (torch.cat([t.double().flatten() for t in ts]) for ts in (a, b))
        error = ((a - b).norm() / b.norm()).item()
        # Rounding grows through the layers of batch norm; a wrong term is 1e-1 and more.
        if not error < 1e-8:
            raise SystemExit(f"parity: a training step's {kind} differ by {error}")
        bench.row("parity of a training step with the reference in float64", what=kind, error=error)


def parity(bench: Bench) -> None:
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    try:
        check_passes(bench)
    finally:
        torch.use_deterministic_algorithms(False)
    check_training(bench)


# --- kernels


def kernel_calls(bench: Bench, shape: tuple[int, ...], tile: Any = None) -> dict[str, tuple[int, list[Callable]]]:
    """By pass: the maps it moves, and a call for each of several sets of maps."""
    import torch

    from excite.ops import tail_triton as t

    per_map = torch.Size(shape).numel() * bench.dtype.itemsize
    sets = max(2, min(8, -(-(2**28) // per_map)))
    calls: dict[str, tuple[int, list[Callable]]] = {
        "copy": (2, []), "moments": (1, []), "affine_act": (3, []), "affine_act_grad": (4, []), "moments_grad": (3, []),
    }  # fmt: skip
    rows, given = bench.rows_of(shape), {} if tile is None else {"tile": tile}
    for _ in range(sets):
        x, shortcut, dy, y = bench.maps(4, shape, bench.dtype)
        calls["copy"][1].append(lambda x=x: torch.empty_like(x).copy_(x))
        calls["moments"][1].append(lambda x=x: t.launch_moments(x, **given))
        calls["affine_act"][1].append(
            lambda x=x, s=shortcut: t.launch_affine_act(x, s, *rows[:3], "relu", **given),
        )
        calls["affine_act_grad"][1].append(
            lambda x=x, dy=dy, y=y: t.launch_affine_act_grad(dy, y, x, None, *rows[:3], "relu", **given)
        )
        calls["moments_grad"][1].append(lambda x=x, g=dy: t.launch_moments_grad(g, x, *rows, **given))
    return calls


def repeated(bench: Bench, calls: list[Callable]) -> Callable[[], object]:
    """One callable that makes ``REPEATS`` of these calls, by turns; on a GPU a graph, so launches cost nothing."""
    import torch

    def run() -> None:
        for call in itertools.islice(itertools.cycle(calls), 1 if bench.dry else REPEATS):
            call()

    if bench.dry:
        return run
    # Compiles and allocates outside the graph.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def bandwidths(bench: Bench, calls: dict[str, tuple[int, list[Callable]]], shape: tuple[int, ...]) -> Iterator[dict]:
    """For each pass its time and bandwidth, and that over the copy's."""
    import torch

    from excite.timing import time_in_turns

    fns = {name: repeated(bench, each) for name, (_, each) in calls.items()}
    timings = time_in_turns(fns, rounds=bench.options.rounds, warmup=2, device=bench.device)
    per_map = torch.Size(shape).numel() * bench.dtype.itemsize
    repeats = 1 if bench.dry else REPEATS
    copied = calls["copy"][0]
    for name, timing in timings.items():
        moved = calls[name][0]
        yield {
            "kernel": name,
            "shape": list(shape),
            "dtype": str(bench.dtype).removeprefix("torch."),
            "layout": "channels_last",
            "bytes": moved * per_map,
            "p20_ms": timing.p20_ms / repeats,
            "p50_ms": timing.p50_ms / repeats,
            "p80_ms": timing.p80_ms / repeats,
            "gigabytes_per_second": moved * per_map * repeats / timing.p50_ms / 1e6,
            # Time over the copy's in the same round: a low one is a high bandwidth.
            "over_copy_p20": moved / copied / timing.ratio.p80,
            "over_copy_p50": moved / copied / timing.ratio.p50,
            "over_copy_p80": moved / copied / timing.ratio.p20,
        }


def kernels(bench: Bench) -> None:
    for channels, size in bench.tails:
        shape = (bench.options.batch, channels, size, size)
        for values in bandwidths(bench, kernel_calls(bench, shape), shape):
            bench.row("bandwidth of the tail's passes over a copy's", **values)


def sweep(bench: Bench) -> None:
    from excite.ops.tail_tiles import TILES, Tile

    sizes = (1024,) if bench.dry else (1024, 2048, 4096, 8192, 16384)
    for channels, size in bench.tails:
        shape = (bench.options.batch, channels, size, size)
        best: dict[str, tuple[float, Tile]] = {}
        for tile in itertools.starmap(Tile, itertools.product(sizes, (4,) if bench.dry else (2, 4, 8, 16))):
            # 128 values a thread do not fit into registers.
            if tile.values > 64 * 32 * tile.warps:
                continue
            for values in bandwidths(bench, kernel_calls(bench, shape, tile), shape):
                name, ratio = values["kernel"], values["over_copy_p50"]
                if name != "copy":
                    bench.row("tiles", values_a_program=tile.values, warps=tile.warps, **values)
                    best[name] = max(best.get(name, (0.0, tile)), (ratio, tile), key=lambda pair: pair[0])
        for name, (ratio, tile) in best.items():
            print(f"best for {shape} {name}: {tile} {ratio:.3f} (chosen: {TILES[name]})", flush=True)


# --- training


def networks(bench: Bench) -> dict[str, Any]:
    """Ours and timm's, gated and plain, under the names that rows give them."""
    import torch

    from excite.models import create_model

    name = "resnet18" if bench.dry else "resnet50"
    made = {
        "ours SE": create_model(name, gate="se", impl="triton"),
        "ours plain": create_model(name, impl="triton"),
        "ours SE, reference": create_model(name, gate="se", impl="reference"),
    }
    try:
        import timm
    except ImportError:
        print("timm is not installed: no rows of its networks", flush=True)
    else:
        bench.machine["timm"] = timm.__version__
        made |= {"timm SE": timm.create_model(f"se{name}"), "timm plain": timm.create_model(name)}
    layout = torch.channels_last
    return {called: net.to(bench.device).to(memory_format=layout) for called, net in made.items()}


def peak_memory(bench: Bench, step: Callable[[], None]) -> int | None:
    """Most bytes a step has allocated over what stands before it; None on a CPU."""
    import torch

    step()  # momentum is allocated in the first
    if bench.dry:
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def training(bench: Bench) -> None:
    import torch

    from excite.timing import Spread, time_in_turns, training_step

    if not bench.dry:
        torch.backends.cudnn.benchmark = True
    batch, size = bench.options.batch, 32 if bench.dry else 224
    images = bench.maps(1, (batch, 3, size, size), torch.float32)[0]
    labels = torch.randint(1000, (batch,), device=bench.device)
    steps = {}
    for name, net in networks(bench).items():
        if bench.options.compile:
            # Not net.compile(): a copy, and it is a copy that is trained, would not be compiled.
            net = torch.compile(net, fullgraph=True)
        steps[name] = training_step(net, images, labels, autocast=bench.dtype)
    memory = {name: peak_memory(bench, step) for name, step in steps.items()}
    timings = time_in_turns(steps, rounds=bench.options.rounds, warmup=3, device=bench.device)
    setup = {"batch": batch, "pixels": size, "autocast": "bfloat16", "compiled": bench.options.compile}
    for name, timing in timings.items():
        bench.row(
            "training throughput",
            network=name,
            images_per_second=batch * 1e3 / timing.p50_ms,
            **{k: getattr(timing, k) for k in ("p20_ms", "p50_ms", "p80_ms")},
            peak_bytes=memory[name],
            **setup,
        )
    pairs = [("ours SE", "ours plain"), ("ours SE", "timm SE"), ("ours SE", "timm plain"), ("ours plain", "timm plain")]
    for a, b in [*pairs, ("timm SE", "timm plain"), ("ours SE", "ours SE, reference")]:
        if a in timings and b in timings:
            faster = Spread.of(
                [y / x for x, y in zip(timings[a].samples_ms, timings[b].samples_ms, strict=True)],
            )
            ratios = {"p20": faster.p20, "p50": faster.p50, "p80": faster.p80}
            more = memory[a] / memory[b] if memory[a] and memory[b] else None
            bench.row("training throughput over another's", network=a, over=b, **ratios, peak_memory=more, **setup)


def main() -> None:
    options = arguments()
    if options.dry:
        # Before Triton is imported: that is when it decides.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.dry and not torch.cuda.is_available():
        sys.exit("no GPU here: --dry tries everything on the CPU")
    bench = Bench(options)
    for part in PARTS:
        if part in options.only:
            {"parity": parity, "kernels": kernels, "training": training, "sweep": sweep}[part](bench)


if __name__ == "__main__":
    main()
