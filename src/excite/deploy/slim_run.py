"""``excite slim``: a trained checkpoint without the gates that it can do without, and a report of what that costs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from excite.analysis import ImageBatches
from excite.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from excite.data import DataSet
from excite.deploy.slim import SlimResult, slim
from excite.files import check_folder, expanded, write_atomic
from excite.training.settings import Settings
from excite.training.trained import checkpoint_file, data_as_trained, pick_device

__all__ = ["SlimConfig", "SlimRun", "show_slim", "slim_checkpoint"]


@dataclass(frozen=True, kw_only=True)
class SlimConfig(Settings):
    """Take out the gates that a trained network can do without, and say what that costs in accuracy.

    Gates are chosen on training images; what is proven comes from the validation images, looked at once.

    Args:
        checkpoint: a .safetensors file that training wrote, or the folder of a run (its last.safetensors).
        max_drop: the fall of accuracy that is allowed, in percentage points, as 0.5.
        data: the images, as in training; null is what the network was trained on.
        out: folder for slimmed.safetensors and slim.json; null is a folder "slim" beside the checkpoint.
        calibration: training images, drawn at random, that gates are chosen on; null is all of them.
        level: confidence of what is proven, and of every interval.
        cautious: keep a gate where the calibration images would not prove that the fall is at most max_drop.
        seed: of the draw of the calibration images.
        rounds: how often gates and networks are timed; 0 times nothing, and bytes of maps say what a gate costs.
        download: fetch a data set that is not on this machine.
        batch_size: images a step.
        accelerator: auto, cpu, cuda or mps.
        workers: processes that read images; null is none for data held in memory, else one a core, at most 8.
        bad_image_limit: share of unreadable images that is skipped with a notice; more than this is an error.
        progress: show progress bars.
        json: print the report as JSON.
        trust: run the function that a checkpoint of a module:function network names; only for files you trust.
    """

    checkpoint: str
    max_drop: float
    data: str | None = None
    out: str | None = None
    calibration: int | None = 4000
    level: float = 0.95
    cautious: bool = False
    seed: int = 0
    rounds: int = 20
    download: bool = False
    batch_size: int = 256
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int | None = None
    bad_image_limit: float = 0.01
    progress: bool = True
    json: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("calibration", "batch_size"):
            self.require(name, at_least=1)
        for name in ("rounds", "workers", "seed"):
            self.require(name, at_least=0)
        self.require("max_drop", at_least=0, below=100)
        self.require("level", above=0.5, below=1)
        self.require("bad_image_limit", at_least=0, below=1)


@dataclass(frozen=True)
class SlimRun:
    """What ``slim_checkpoint`` made.

    Attributes:
        result: the slimmed network and the report.
        checkpoint: the file that was slimmed.
        model_path: the slimmed checkpoint.
        report_path: slim.json.
    """

    result: SlimResult
    checkpoint: Path
    model_path: Path
    report_path: Path


def slim_checkpoint(config: SlimConfig, *, data: DataSet | None = None) -> SlimRun:
    """Slims a checkpoint, and writes the new one and its report.

    Args:
        config: the checkpoint, the data, the allowed fall and how to run.
        data: use this set instead of loading ``config.data``.

    Raises:
        ValueError: a missing or damaged checkpoint, unreadable data or data that is not the network's, a network
            without gates.
    """
    path = checkpoint_file(config.checkpoint)
    out = expanded(config.out) if config.out is not None else path.parent / "slim"
    check_folder(out, "slim.json", "out")
    checkpoint = read_checkpoint(path)
    device = pick_device(config.accelerator)
    data = data_as_trained(
        checkpoint, data or config.data, download=config.download, bad_image_limit=config.bad_image_limit
    )
    model = checkpoint.load(trust=config.trust).to(device)
    batches = partial(ImageBatches, data, batch_size=config.batch_size, workers=config.workers)
    result = slim(
        model,
        batches("train", limit=config.calibration, seed=config.seed),
        batches("val"),
        max_drop=config.max_drop,
        level=config.level,
        cautious=config.cautious,
        rounds=config.rounds,
        progress=config.progress and not config.json,
    )
    return _written(result, checkpoint, data, config, out)


def _written(result: SlimResult, checkpoint: Checkpoint, data: DataSet, config: SlimConfig, out: Path) -> SlimRun:
    report = {"network": checkpoint.spec.to_dict(), "data": data.name, **result.report.to_dict()}
    report["settings"] = {k: v for k, v in config.to_dict().items() if k not in ("checkpoint", "out")}
    proof = result.report.proof
    model_path = save_checkpoint(
        out / "slimmed.safetensors",
        result.model,
        spec=checkpoint.spec,
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
        metrics=checkpoint.metrics if proof is None else {"val_top1": proof.after},
        extra={**checkpoint.extra, "slim": result.report.finding},
    )
    report_path = out / "slim.json"
    write_atomic(report_path, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return SlimRun(result, checkpoint.path, model_path, report_path)


def show_slim(run: SlimRun, config: SlimConfig) -> None:
    """Prints the report and where everything is; or the report as JSON."""
    if config.json:
        print(run.report_path.read_text(encoding="utf-8"), end="")
        return
    print(run.result.report)
    print(f"\n{run.model_path}\n{run.report_path}")
