"""Train a network in Keras as `excite train` trains its twin in PyTorch, and write both results side by side.

    KERAS_BACKEND=tensorflow python scripts/keras_twin.py

The recipe and the twin's accuracies are read from a comparison that was run (experiments/fashion-mnist-mini).
From it, and equal to the last bit: the initial weights of each seed, the order of the images, their shifts and flips,
and the learning rate of each step. From Keras: the network, its norms and gates, the gradients, the optimizer.

PyTorch's momentum is a sum of gradients, which the step's learning rate multiplies; that of keras.optimizers.SGD is a
sum of steps, each with the learning rate of its time: another recipe where the rate changes. The recipe's own is the
default; `--momentum steps` trains with Keras' SGD as it is. The norms' running variance is Keras', without n / (n - 1).

The result holds every epoch of every seed. Written after each seed; seeds that stand there are not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# PyTorch's side first: its compiler brings Triton, which cannot be loaded any more once TensorFlow is.
import numpy as np
import torch

from excite.data import DataSet, load_data, make_loader, prepare
from excite.timing import describe_machine
from excite.training import TrainConfig
from excite.training.run import build_network
from excite.training.schedules import learning_rate

# isort: split
import keras

from excite_keras import from_keras, to_keras

__all__ = ["main", "run_seed"]

ROOT = Path(__file__).parents[1]
TWIN = ROOT / "experiments" / "fashion-mnist-mini" / "comparison.json"
OUT = ROOT / "experiments" / "keras-twin"


def network_of(config: TrainConfig, data: DataSet) -> Any:
    """The Keras network with the initial weights that the twin of this seed starts from."""
    return to_keras(build_network(config, data).network, image_size=data.image_size)


class GradientMomentum(keras.optimizers.SGD):
    """SGD whose momentum is a sum of gradients, as PyTorch's."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One variable's step."""
        held = self.momentums[self._get_variable_index(variable)]
        self.assign(held, self.momentum * held + gradient)
        step = gradient + self.momentum * held if self.nesterov else held
        self.assign_sub(variable, learning_rate * step)


# By what the momentum is a sum of.
OPTIMIZERS = {"gradients": GradientMomentum, "steps": keras.optimizers.SGD}


def compiled(model: Any, config: TrainConfig, momentum: str) -> Any:
    """The model with the recipe's optimizer and decay, an L2 penalty on all but 1-d weights as PyTorch's SGD has it."""
    for weight in model.trainable_variables:
        if len(weight.shape) > 1 or config.decay_norms:
            weight.regularizer = keras.regularizers.L2(config.weight_decay / 2)
    optimizer = OPTIMIZERS[momentum](config.lr, momentum=config.momentum, nesterov=config.nesterov)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)  # compiling costs more than it gives here
    return model


def run_seed(
    config: TrainConfig, data: DataSet, *, steps: int | None = None, momentum: str = "gradients"
) -> dict[str, Any]:
    """Train one seed.

    Args:
        config: recipe, gate and seed.
        data: the images.
        steps: stop each epoch after so many steps (a trial); None trains on all.
        momentum: a key of ``OPTIMIZERS``.

    Returns:
        seed, val_top1 of the last epoch, epochs (train_loss holds the decay's penalty), seconds.

    Raises:
        AssertionError: the trained Keras network and its PyTorch twin give different logits.
    """
    started = time.perf_counter()
    model = compiled(network_of(config, data), config, momentum)
    loader = make_loader(data.train, data, config.batch_size, train=True, seed=config.seed)
    whole = len(loader)
    rows = []
    for epoch in range(config.epochs):
        loader.set_epoch(epoch)
        losses = []
        for step, batch in enumerate(loader):
            if steps is not None and step >= steps:
                break
            rate = learning_rate(config, epoch * whole + step, whole)
            model.optimizer.learning_rate.assign(rate)
            images = prepare(
                batch.images,
                batch.indices,
                dataset=data,
                train=True,
                seed=config.seed,
                epoch=epoch,
                augment=config.augment,
            )
            model.reset_metrics()
            losses.append(float(model.train_on_batch(as_images(images), batch.labels.numpy())[0]))
            if not math.isfinite(losses[-1]):
                raise SystemExit(f"seed {config.seed}: the loss is {losses[-1]} at epoch {epoch + 1}, step {step + 1}")
        rows.append({"epoch": epoch + 1, "train_loss": math.fsum(losses) / len(losses), **scores(model, data)})
        print(f"seed {config.seed} epoch {epoch + 1}: {rows[-1]['val_top1']:.4f}", flush=True)
    check_twin(model, data)
    top1 = rows[-1]["val_top1"]
    return {"seed": config.seed, "val_top1": top1, "epochs": rows, "seconds": time.perf_counter() - started}


def as_images(images: torch.Tensor) -> np.ndarray:
    """A batch as Keras takes it: [N, H, W, C]."""
    return np.ascontiguousarray(images.movedim(1, -1).numpy())


def validation(data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    """The validation images and their labels."""
    loader = make_loader(data.val, data, len(data.val), train=False, seed=0)
    (batch,) = list(loader)
    images = prepare(batch.images, batch.indices, dataset=data, train=False, seed=0, epoch=0)
    return as_images(images), batch.labels.numpy()


def scores(model: Any, data: DataSet) -> dict[str, float]:
    """Loss and top-1 on the validation images."""
    images, labels = validation(data)
    logits = torch.from_numpy(np.asarray(model.predict(images, batch_size=500, verbose=0)))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    return {"val_loss": loss, "val_top1": float((logits.argmax(1).numpy() == labels).mean())}


def check_twin(model: Any, data: DataSet) -> None:
    """The trained network, moved to PyTorch, gives the same logits."""
    images, _ = validation(data)
    network = from_keras(model)
    expected = np.asarray(model.predict(images[:200], verbose=0))
    with torch.no_grad():
        got = network(torch.from_numpy(np.moveaxis(images[:200], -1, 1))).numpy()
    apart = abs(got - expected).max() / abs(expected).max()
    assert apart < 1e-4, f"the trained network and its PyTorch twin differ by {apart:.1e} of the largest logit"


def versions() -> dict[str, str]:
    """Of the packages that are here and matter."""
    found = {}
    for name in ("keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def summary(runs: list[dict[str, Any]], twin: dict[str, Any], gate: str) -> dict[str, Any]:
    """Mean accuracies over the seeds that both have, and how far apart they are, in points."""
    theirs = {run["seed"]: run["final"]["val_top1"] for run in twin["runs"] if run["gate"] == gate}
    seeds = [run["seed"] for run in runs if run["seed"] in theirs]
    ours = np.mean([run["val_top1"] for run in runs if run["seed"] in seeds])
    mean = np.mean([theirs[seed] for seed in seeds])
    return {
        "seeds": seeds,
        "keras_val_top1": float(ours),
        "torch_val_top1": float(mean),
        "torch_by_seed": {str(seed): theirs[seed] for seed in seeds},
        "difference_points": float(100 * (ours - mean)),
    }


def main() -> int:
    """Train what is missing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", default="se", help="a gate that the comparison has")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this, less one")
    parser.add_argument("--steps", type=int, help="stop each epoch after so many steps: a trial, which writes nothing")
    parser.add_argument("--momentum", choices=OPTIMIZERS, default="gradients", help="what it is a sum of")
    parser.add_argument("--out", type=Path, help="the file; experiments/keras-twin/MOMENTUM.json unless given")
    arguments = parser.parse_args()
    out = arguments.out or OUT / f"{arguments.momentum}.json"
    twin = json.loads(TWIN.read_text(encoding="utf-8"))
    known = TrainConfig.__dataclass_fields__
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in twin["config"].items() if k in known}
    settings |= {"gate": arguments.gate, "out": None}
    data = load_data(settings["data"])
    result: dict[str, Any] = {
        "kind": "excite.keras_twin",
        "schema_version": 1,
        "config": settings,
        "momentum": arguments.momentum,
        "backend": keras.config.backend(),
        "versions": versions(),
        "machine": describe_machine("cpu"),
        "runs": [],
    }
    if out.exists() and arguments.steps is None:
        result["runs"] = json.loads(out.read_text(encoding="utf-8"))["runs"]
    done = {run["seed"] for run in result["runs"]}
    for seed in range(arguments.seeds):
        if seed in done:
            continue
        run = run_seed(TrainConfig(**settings, seed=seed), data, steps=arguments.steps, momentum=arguments.momentum)
        result["runs"].append(run)
        result["summary"] = summary(result["runs"], twin, arguments.gate)
        if arguments.steps is None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
