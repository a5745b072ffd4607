"""`train`: from a config to a run's folder and its result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import nn

from excite.checkpoint import save_checkpoint
from excite.data import DataSet, load_data
from excite.errors import UserError
from excite.files import write_atomic
from excite.gates import GateConfig, parse_gate
from excite.networks import NetworkSpec, build
from excite.timing import describe_machine
from excite.training.config import TrainConfig
from excite.training.folder import RunFolder
from excite.training.pretrained import start_from
from excite.training.progress import Progress, Silent, default_progress, is_first_process, say
from excite.training.result import RunResult, versions
from excite.training.seeds import isolated_generators

if TYPE_CHECKING:
    from excite.training.module import Task

__all__ = ["Start", "build_network", "network_spec", "train"]


def train(
    config: TrainConfig,
    *,
    network: nn.Module | None = None,
    data: DataSet | None = None,
    gate: GateConfig | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Trains one network and leaves the run in a folder (see `RunFolder` for the files).

    A run that was interrupted continues after its last whole epoch and ends with the same weights and curves, bit for
    bit, as one that was not. One that is over is not run again: its result is read back.

    Args:
        config: the recipe, gate, seed and folder.
        network: train this one, in place, instead of building ``config.model``: images [B, C, H, W] to logits
            [B, classes]. The run's checkpoints say what the config says; ``out`` must be given.
        data: use this set instead of loading ``config.data``.
        gate: use this gate instead of ``config.gate``; its string is recorded.
        progress: told how far the run is; None shows a bar on a terminal, else a line an epoch.

    Returns:
        The run's figures; with several processes, the same in each.

    Raises:
        ValueError: an unknown or unfit setting, unreadable data, a folder that holds something else, or a loss that is
            no longer finite.
        KeyboardInterrupt: on ctrl-C; the run can be resumed.
    """
    if gate is not None:
        config = dataclasses.replace(config, gate=str(gate))
    config = config.settled()
    if network is not None and config.out is None:
        raise UserError("train(network=...) needs out: no setting tells one network of yours from another")
    folder = RunFolder.of(config)
    folder.check(config)
    if data is None:
        data = load_data(
            config.data,
            image_size=config.image_size,
            download=config.download,
            bad_image_limit=config.bad_image_limit,
        )
        for note in data.notes:
            say("%s", note)
    if (result := folder.finished(data)) is not None:
        say("%s is finished already: nothing to train", folder.path)
        return result
    if network is None:
        spec, network, said = build_network(config, data)
        if said and progress is None:  # a comparison has said it
            say("%s", said)
    else:
        spec = network_spec(config, data)
    _try_out(network, spec, data)
    return _fit(_Job(config, folder, data, spec, network), progress)


def _try_out(network: nn.Module, spec: NetworkSpec, data: DataSet) -> None:
    """One forward pass of two black images, so that a network that does not fit says so before anything is written.

    Raises:
        ValueError: it cannot take images of this size, or does not give logits [N, classes].
    """
    was_training = network.training
    like = next(network.parameters(), torch.empty(0))
    size = (2, data.in_channels, data.image_size, data.image_size)
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(size, dtype=like.dtype, device=like.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{spec.name} cannot take images of {size[1]} x {size[2]} x {size[3]} ({reason}): give another image_size"
        ) from None
    finally:
        network.train(was_training)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, spec.num_classes):
        raise UserError(f"{spec.name} gives {shape} for two images, where training needs (2, {spec.num_classes})")


class Start(NamedTuple):
    """What training starts from: the network, how to build it again, and what its weights are ("" for fresh ones)."""

    spec: NetworkSpec
    network: nn.Module
    said: str


def build_network(config: TrainConfig, data: DataSet) -> Start:
    """The network that a config asks for, its gates and weights as they are at the start of training.

    Raises:
        ValueError: an unfit setting or file.
    """
    spec = network_spec(config, data)
    gate = parse_gate(spec.gate)
    if gate is not None and config.starts_neutral:
        spec = dataclasses.replace(spec, gate=str(_as_neutral(gate, config)))
    network = build(spec, seed=config.seed, impl=config.impl)
    said = ""
    if config.weights is not None:
        fresh_gates = not config.starts_neutral
        said = start_from(network, config.weights, num_classes=len(data.classes), gates_may_be_fresh=fresh_gates)
    return Start(spec, network, said)


def _as_neutral(gate: GateConfig, config: TrainConfig) -> GateConfig:
    try:
        return gate.as_neutral()
    except UserError as error:
        why = "weights are given, so gates start neutral" if config.start == "auto" else "start=neutral"
        raise UserError(f"{why}, but {error}; leave the gate out, or give start=paper") from None


def network_spec(config: TrainConfig, data: DataSet) -> NetworkSpec:
    """The network a config asks for, with as many inputs and outputs as the data needs."""
    return NetworkSpec(
        name=config.model,
        gate=config.gate,
        placement=config.placement,
        stages=config.stages,
        variant=config.variant,
        num_classes=len(data.classes),
        in_channels=data.in_channels,
        options=config.options,
    )


@dataclasses.dataclass
class _Job:
    """A run with everything checked that can be checked before training."""

    config: TrainConfig
    folder: RunFolder
    data: DataSet
    spec: NetworkSpec
    network: nn.Module

    def save(self, path: Path, row: dict[str, Any]) -> None:
        """Writes a portable checkpoint of the network as it is now."""
        save_checkpoint(
            path,
            self.network,
            spec=self.spec,
            classes=self.data.classes,
            preprocessing=self.data.preprocessing(),
            metrics=row,
            extra={"config": self.config.to_dict()},
        )


def _fit(job: _Job, progress: Progress | None) -> RunResult:
    # Lightning takes seconds to load.
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from excite.training.callbacks import MovingAverage, Recorder, StateFiles
    from excite.training.launch import make_trainer, quiet_lightning
    from excite.training.module import Task

    config, folder, network = job.config, job.folder, job.network
    if not is_first_process():
        progress = Silent()
    label = f"{config.model}, gate {config.gate}, seed {config.seed}"
    recorder = Recorder(folder, progress or default_progress(), label, job.save)
    averages = [] if config.ema is None else [MovingAverage(config.ema)]
    with quiet_lightning(), isolated_generators():
        trainer = make_trainer(config, [recorder, *averages], StateFiles(folder.previous_state))
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
        if config.compile:
            network.compile()
        task = Task(network, config, job.data)
        first = is_first_process()
        try:
            with folder.locked() if first else contextlib.nullcontext():
                if first:
                    folder.claim(config, job.data)
                trainer.fit(task, ckpt_path=folder.resume_point(job.data), weights_only=True)
        except SystemExit as error:
            # What Lightning makes of ctrl-C, and of SIGTERM, which would end with exit code 0.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise SystemExit(128 + signal.SIGTERM) from None if isinstance(error, SIGTERMException) else error
        finally:
            recorder.close()
    result = _result(job, task)
    if trainer.is_global_zero:
        write_atomic(folder.correct, safetensors.torch.save(task.outcome))
        for state in (folder.previous_state, folder.new_state):
            state.unlink(missing_ok=True)
        result.save()
    return result


def _result(job: _Job, task: Task) -> RunResult:
    last = task.rows[-1]
    return RunResult(
        run_dir=str(job.folder.path),
        config=job.config.to_dict(),
        data=task.data_description,
        parameters=sum(p.numel() for p in job.network.parameters() if p.requires_grad),
        epochs=task.rows,
        step_loss=task.step_loss,
        final={name: last[name] for name in ("val_loss", "val_top1", "val_top5")},
        seconds=sum(row["seconds"] for row in task.rows),
        versions=versions(),
        machine=describe_machine(task.device) | {"cores": os.cpu_count()},
    )
