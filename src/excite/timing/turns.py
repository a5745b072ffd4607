"""Callables timed by turns, and what a time depends on."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from excite.errors import UserError

__all__ = ["Spread", "Timing", "describe_machine", "time_in_turns"]


@dataclass(frozen=True)
class Spread:
    """The 20th, 50th and 80th percentile of something measured repeatedly, by linear interpolation."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The percentiles of one or more values."""
        quantiles = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        p20, p50, p80 = torch.quantile(torch.tensor(values, dtype=torch.float64), quantiles).tolist()
        return cls(p20, p50, p80)


@dataclass(frozen=True)
class Timing:
    """Time of one candidate of ``time_in_turns``, and its ratio to the first candidate.

    Args:
        p20_ms: 20th percentile, milliseconds.
        p50_ms: the median, milliseconds.
        p80_ms: 80th percentile, milliseconds.
        ratio: spread, over rounds, of this candidate's time over the first's in the same round; 1 for the first itself.
        samples_ms: the time in each round, milliseconds.
        warmup: untimed calls before.
        clock: "perf_counter" on the CPU, "cuda events" on a GPU.
        machine: device, threads and versions, see ``describe_machine``.
    """

    p20_ms: float
    p50_ms: float
    p80_ms: float
    ratio: Spread
    samples_ms: tuple[float, ...]
    warmup: int
    clock: str
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able."""
        return {**asdict(self), "samples_ms": list(self.samples_ms)}


def describe_machine(device: torch.device | str) -> dict[str, Any]:
    """What a time depends on: device, its name, threads, and versions. JSON-able."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor that Linux does not name
        return platform.processor() or platform.machine()


def time_in_turns(
    fns: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 5,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Times of several callables, run by turns, and their ratios to the first.

    Each round runs every callable once, starting one further along than the round before. A ratio is taken within
    each round; its percentiles are over rounds.

    Args:
        fns: what to time, by name; ratios are to the first.
        rounds: timed calls of each, at least 1.
        warmup: untimed calls of each first.
        device: where they run: a CUDA device is timed with its events, others by the processor's clock.

    Returns:
        A ``Timing`` for each name, in the order given.

    Raises:
        ValueError: nothing to time, or ``rounds`` or ``warmup`` out of range.
    """
    if not fns:
        raise UserError("nothing to time: give at least one callable")
    if rounds < 1 or warmup < 0:
        raise UserError(f"rounds={rounds}, warmup={warmup}: at least 1 round and 0 warm-up calls")
    device = torch.device(device)
    timed = _timed_by_events if device.type == "cuda" else _timed_by_clock
    names = list(fns)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for fn in fns.values():
            timed(fn)
    with _no_garbage_collection():
        for i in range(rounds):
            start = i % len(names)
            for name in names[start:] + names[:start]:
                samples[name].append(timed(fns[name]))
    machine = describe_machine(device)
    first = samples[names[0]]
    timings = {}
    for name in names:
        spread = Spread.of(samples[name])
        timings[name] = Timing(
            p20_ms=spread.p20,
            p50_ms=spread.p50,
            p80_ms=spread.p80,
            ratio=Spread.of([mine / theirs for mine, theirs in zip(samples[name], first, strict=True)]),
            samples_ms=tuple(samples[name]),
            warmup=warmup,
            clock="cuda events" if device.type == "cuda" else "perf_counter",
            machine=machine,
        )
    return timings


def _timed_by_clock(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    return (time.perf_counter() - start) * 1e3


def _timed_by_events(fn: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    fn()
    end.record()
    # Waiting here keeps the next candidate's kernels from queueing behind this one's.
    end.synchronize()
    return start.elapsed_time(end)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
