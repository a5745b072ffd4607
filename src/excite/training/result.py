"""What a run gives back, and where it was made."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excite.data import DataSet
from excite.errors import UserError
from excite.files import write_atomic

__all__ = ["RunResult", "describe_data", "versions"]


@dataclass
class RunResult:
    """A training run that is over. Its file, result.json, is written last: where it is, the run is whole.

    Args:
        run_dir: the run's folder.
        config: the resolved settings, as `TrainConfig.to_dict` gives them.
        data: name, classes, image counts, mean and std of the data set: enough to tell another one from it.
        parameters: trainable parameters of the network.
        epochs: a row an epoch: epoch (from 1), train_loss, val_loss, val_top1, val_top5, learning_rate, seconds.
            Top-1 and top-5 are shares from 0 to 1; val_top5 is None with fewer than five classes.
        step_loss: the loss of every training batch.
        final: val_loss, val_top1 and val_top5 of the last epoch. Not of the best one: picking that by its validation
            score would flatter it.
        seconds: time spent training and validating, resumed parts included, data loading before it not.
        versions: of Python and the packages that matter.
        machine: device, its name, cores, threads and system.
    """

    run_dir: str
    config: dict[str, Any]
    data: dict[str, Any]
    parameters: int
    epochs: list[dict[str, Any]]
    step_loss: list[float]
    final: dict[str, float | None]
    seconds: float
    versions: dict[str, str]
    machine: dict[str, Any]

    def correct(self) -> Tensor:
        """Whether each validation image was classified rightly after the last epoch, bool [n_val]: for paired tests.

        Raises:
            ValueError: the file in the run's folder is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(self.run_dir) / "correct.safetensors"
        try:
            return load_file(path)["correct"]
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(
                f"{path} is missing or damaged ({error}): remove {path.with_name('result.json')}, and the same command "
                "writes both again from last.ckpt, without training"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def save(self) -> None:
        """Writes result.json into the run's folder, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        write_atomic(Path(self.run_dir) / "result.json", text + "\n")

    @classmethod
    def load(cls, run_dir: str | os.PathLike[str]) -> RunResult:
        """The result in a run's folder.

        Raises:
            ValueError: there is none (the run is not over), or the file is not one of ours.
        """
        path = Path(run_dir) / "result.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**values | {"run_dir": str(run_dir)})
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: the run is not over, or this is not a run's folder") from None
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise UserError(f"{path} is no result of a training run ({error})") from None


def describe_data(data: DataSet) -> dict[str, Any]:
    """What tells one data set from another: its name, classes, pixel statistics and contents; JSON-able."""
    return {
        "name": data.name,
        "classes": list(data.classes),
        "in_channels": data.in_channels,
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "train": len(data.train),
        "val": len(data.val),
        "train_digest": data.train.digest(),
        "val_digest": data.val.digest(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a number."""
    # torch's own word says which build it is, the package's does not.
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("excite", "torchvision", "lightning", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
