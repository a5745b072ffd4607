"""Lightning's Trainer from a recipe, quiet and with its settings checked."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from excite.errors import UserError
from excite.training.callbacks import StateFiles
from excite.training.config import Recipe

__all__ = ["make_trainer", "quiet_lightning"]

_LOGGERS = ("lightning.pytorch", "lightning.fabric")


def make_trainer(recipe: Recipe, callbacks: Sequence[Callback], states: StateFiles) -> pl.Trainer:
    """A Trainer that runs the recipe's epochs and leaves logging, checkpoints and progress to ``callbacks``.

    Raises:
        ValueError: accelerator, devices, num_nodes, strategy or precision do not fit each other or this machine.
    """
    devices, nodes = _world(recipe)
    strategy: str | DDPStrategy = "auto"
    if devices * nodes > 1 or recipe.strategy != "auto":
        # Ranks validate different numbers of batches, so a forward pass must not wait for the others' buffers.
        unused = recipe.strategy == "ddp_find_unused_parameters_true"
        strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=unused)
    try:
        trainer = pl.Trainer(
            accelerator=recipe.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=recipe.precision,
            max_epochs=recipe.epochs,
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.clip_norm,
            callbacks=list(callbacks),
            plugins=[states],
            # CPU kernels give the same bits every time as they are; GPU kernels have to be told.
            deterministic="warn" if recipe.accelerator != "cpu" and torch.cuda.is_available() else None,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        asked = f"accelerator={recipe.accelerator!r}, devices={recipe.devices}, strategy={recipe.strategy!r}"
        raise UserError(f"cannot train with {asked}: {' '.join(str(error).split())}") from None
    if recipe.precision == "16-mixed" and isinstance(trainer.accelerator, CPUAccelerator):
        raise UserError("precision='16-mixed' needs a GPU: on a CPU give bf16-mixed or 32-true")
    return trainer


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's notices and tips off the terminal, and puts back what it changes for the whole process."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    handler = signal.getsignal(signal.SIGINT)
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            # Only a program that reads memory it never wrote would need this, and it costs time.
            memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
        memory.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        # On ctrl-C Lightning makes the process deaf to further ones.
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


def _world(recipe: Recipe) -> tuple[int, int]:
    """Devices on each node and nodes: as asked for, or as torchrun started them."""
    cores = os.cpu_count() or 1
    on_cpu = recipe.accelerator == "cpu" or not torch.accelerator.is_available()
    if on_cpu and recipe.devices != "auto" and recipe.devices > cores:
        raise UserError(f"devices={recipe.devices}: on a CPU a device is a process, and there are {cores} cores")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return (1 if recipe.devices == "auto" else recipe.devices), recipe.num_nodes
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if recipe.devices not in ("auto", local):
        raise UserError(f"devices={recipe.devices}, but torchrun started {local} processes a node: leave devices out")
    return local, world // local
