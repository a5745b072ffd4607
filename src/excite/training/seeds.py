"""One seed for everything: generators set anew for every training step, and given back afterwards."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch

__all__ = ["isolated_generators", "seed_step"]


def seed_step(seed: int, epoch: int, step: int, rank: int = 0, device: torch.device | None = None) -> None:
    """Seeds the global generators of torch (of the CPU and of ``device``), numpy and Python for one training step.

    What dropout or stochastic depth draws then depends on (seed, epoch, step, rank) alone: not on what a gate's own
    initialisation or forward pass consumed, and not on whether the run was interrupted before.
    """
    digest = hashlib.blake2b(f"{seed} {epoch} {step} {rank}".encode(), digest_size=8).digest()
    word = int.from_bytes(digest, "little")
    # Not torch.manual_seed: it asks for every accelerator there might be, which costs more than a small step.
    torch.default_generator.manual_seed(word)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(word)
    numpy.random.seed(word & 0xFFFFFFFF)
    random.seed(word)


@contextmanager
def isolated_generators() -> Iterator[None]:
    """Leaves the global generators after the block as they were before it."""
    numpy_state, python_state = numpy.random.get_state(), random.getstate()
    # Asking a GPU for its generator would start CUDA on it, also for a run that never uses it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        numpy.random.set_state(numpy_state)
        random.setstate(python_state)
