"""Networks in Keras beside PyTorch's, on each of its backends: outputs, and time as a ratio, measured in turns.

    python benchmarks/interop_keras.py [--rows FILE] [--rounds 20] [--threads 2]

Networks of excite by ``to_keras``, and ``keras.applications``' by ``from_keras``. Keras takes its backend once and for
all, so that each backend has a process of its own. Rows go into benchmarks/results/interop.jsonl, one JSON object each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "interop.jsonl"
# Keras' name of a backend -> its packages, the first that is installed.
BACKENDS = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "jax": ("jax",), "torch": ("torch",)}
TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
# (network, side of its images, way, backends)
CASES: tuple[tuple[str, int, str, tuple[str, ...]], ...] = (
    ("se_resnet20", 32, "to_keras", ("tensorflow", "jax", "torch")),
    ("se_resnet50", 224, "to_keras", ("tensorflow", "jax", "torch")),
    ("eca_resnet50", 224, "to_keras", ("tensorflow",)),
    ("keras:ResNet50", 224, "from_keras", ("tensorflow",)),
)
BATCHES = (1, 8)


def environment(backend: str, threads: int, home: str) -> dict[str, str]:
    """A process's environment for one backend, on the CPU, with so many threads."""
    keras = {"KERAS_BACKEND": backend, "KERAS_HOME": home, "KERAS_TORCH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    tensorflow = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    flags = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}"
    return {
        **os.environ,
        **keras,
        **tensorflow,
        "OMP_NUM_THREADS": str(threads),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
    }


def in_process(backend: str, name: str, *, rounds: int, threads: int) -> dict[str, Any]:
    """The row of one network on one backend, from a process of its own; without times for 0 rounds."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, "--worker", name, "--rounds", str(rounds), "--threads", str(threads)]
        done = subprocess.run(command, env=environment(backend, threads, home), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def pair(name: str, side: int, way: str) -> tuple[Any, Any]:
    """A network in PyTorch and the same in Keras."""
    from interop_networks import network

    from excite_keras import from_keras, to_keras

    if way == "to_keras":
        theirs, _ = network(name, side)
        return theirs, to_keras(theirs, image_size=side)
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name.removeprefix("keras:"))(weights=None, classifier_activation=None)
    draw = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in (layer.gamma, layer.moving_variance):
                weight.assign(draw.uniform(0.4, 1.2, weight.shape))
            for weight in (layer.beta, layer.moving_mean):
                weight.assign(draw.normal(0, 0.2, weight.shape))
    return from_keras(model), model


def worker(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """The row of one network on this process's backend."""
    # PyTorch's compilers before TensorFlow: both bring LLVM, and theirs is the one that refuses to come second.
    import torch._dynamo  # isort: split

    import keras
    import numpy as np

    from excite import time_in_turns
    from excite.deploy.export_check import compare_outputs
    from excite.deploy.export_sizes import Sizes

    torch.set_num_threads(threads)
    side, way = next((side, way) for case, side, way, _ in CASES if case == name)
    network, model = pair(name, side, way)

    def run(images: torch.Tensor) -> torch.Tensor:
        y = model.predict_on_batch(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()))
        return torch.from_numpy(np.array(y))

    example = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = compare_outputs(run, network, example, Sizes((side, side), side, None))
    ratio = {}
    for n in BATCHES if rounds else ():
        images = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(n))
        calls: dict[str, Callable[[], object]] = {"PyTorch": partial(network, images), "Keras": partial(run, images)}
        with torch.no_grad():
            timing = time_in_turns(calls, rounds=rounds, warmup=3)["Keras"]
        ratio[str(n)] = {**vars(timing.ratio), "p50_ms": timing.p50_ms}
    backend = keras.backend.backend()
    return {
        "network": name, "state": way, "backend": backend, "tool": f"Keras on {TITLES[backend]}",
        "version": f"{keras.__version__}, {backend_version(backend)}", "side": side, "rounding": found.rounding,
        "difference": max(c.difference for c in found.comparisons), "batches": len(found.comparisons),
        "sizes": [f"{side} x {side}"], "ratio": ratio,
    }  # fmt: skip


def backend_version(backend: str) -> str:
    """The version of what Keras runs on."""
    for package in BACKENDS[backend]:
        try:
            return version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ""


def main() -> None:
    """Measure, print, and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS, help="append the rows to this file instead")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(options.worker, options.rounds, options.threads)))
        return
    import torch

    from excite.timing import describe_machine

    torch.set_num_threads(options.threads)
    about = {"benchmark": "interop_keras", "rounds": options.rounds, "threads": options.threads}
    about |= {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine("cpu")}
    for name, _, _, backends in CASES:
        for backend in backends:
            row = in_process(backend, name, rounds=options.rounds, threads=options.threads)
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, **about}) + "\n")
            print(f"{name} on {backend}: {row['difference']:.1e}", flush=True)


if __name__ == "__main__":
    main()
