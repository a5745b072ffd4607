"""Forward passes of networks: one, one at several batch sizes, several networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excite.errors import UserError
from excite.timing.turns import Timing, time_in_turns

__all__ = ["Latency", "compare_latency", "evaluating", "measure_latency", "sweep_latency"]


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass.

    Args:
        p20_ms: 20th percentile, milliseconds.
        p50_ms: the median, milliseconds.
        p80_ms: 80th percentile, milliseconds.
        runs: how many passes were timed.
        warmup: how many ran before, untimed.
        batch_size: images in the example.
        clock: "perf_counter" on the CPU, "cuda events" on a GPU.
        machine: device, threads and versions, see ``describe_machine``.
    """

    p20_ms: float
    p50_ms: float
    p80_ms: float
    runs: int
    warmup: int
    batch_size: int
    clock: str
    machine: dict[str, Any]

    @property
    def images_per_second(self) -> float:
        """Throughput at the median."""
        return self.batch_size * 1e3 / self.p50_ms

    def to_dict(self) -> dict[str, Any]:
        """Every field and the throughput, JSON-able."""
        return {**asdict(self), "images_per_second": self.images_per_second}


def measure_latency(
    model: nn.Module, example: Tensor | Sequence[Tensor], *, warmup: int = 5, runs: int = 30
) -> Latency:
    """Time of ``model(example)`` in eval and inference mode, its dtype, memory format and compilation as they are.

    Args:
        model: any network; its training flags are put back afterwards.
        example: its input, or a tuple of its positional inputs, on the device to time.
        warmup: untimed passes first.
        runs: timed passes, at least 1.

    Returns:
        Percentiles in milliseconds, with the machine they were measured on.

    Raises:
        ValueError: ``runs`` or ``warmup`` out of range, or model and example on different devices.
    """
    inputs = _inputs(example)
    device = _device_of(model, inputs)
    timings = _time_passes({"model": (model, inputs)}, device, warmup=warmup, runs=runs)
    return _latency(timings["model"], inputs[0].shape[0])


def sweep_latency(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    batch_sizes: Iterable[int] = (1, 2, 4, 8, 16, 32),
    warmup: int = 5,
    runs: int = 30,
) -> dict[int, Latency]:
    """``measure_latency`` for several batch sizes, which take turns: what the machine does meanwhile falls on all.

    Args:
        model: any network; its training flags are put back afterwards.
        example: its input, or a tuple of its positional inputs, on the device to time: at least one image, repeated
            along the first axis, or cut off, to each batch size. All batches are held at once.
        batch_sizes: from 1.
        warmup: untimed passes of each size first.
        runs: timed passes of each size, at least 1.

    Returns:
        A ``Latency`` for each batch size, in the order given; ``images_per_second`` is its throughput.

    Raises:
        ValueError: no batch size or one below 1, an example without images or of inputs that differ in their number,
            ``runs`` or ``warmup`` out of range, or model and example on different devices.
    """
    sizes, inputs = list(dict.fromkeys(batch_sizes)), _inputs(example)
    device = _device_of(model, inputs)
    if not sizes or min(sizes) < 1:
        raise UserError(f"batch_sizes={sizes}: give at least one, each at least 1")
    shapes = [tuple(t.shape) for t in inputs]
    if len({shape[:1] for shape in shapes}) > 1 or not all(shapes[0][:1]) or not shapes[0]:
        raise UserError(f"an example of shape {shapes} is no batch: give each input the same number of images, from 1")
    passes = {str(size): (model, tuple(_repeated(t, size) for t in inputs)) for size in sizes}
    timings = _time_passes(passes, device, warmup=warmup, runs=runs)
    return {size: _latency(timings[str(size)], size) for size in sizes}


def compare_latency(
    models: Mapping[str, nn.Module],
    example: Tensor | Sequence[Tensor],
    *,
    warmup: int = 5,
    runs: int = 30,
) -> dict[str, Timing]:
    """Times of several networks on one example, in turns as ``time_in_turns`` takes them, in eval and inference mode.

    Args:
        models: by name; ratios are to the first. Training flags are put back afterwards.
        example: the input of each, or a tuple of its positional inputs, on the device to time.
        warmup: untimed passes of each first.
        runs: timed passes of each, at least 1.

    Returns:
        A ``Timing`` for each name: ``timing.ratio.p50`` is how many times the first network's time it takes.

    Raises:
        ValueError: no model, ``runs`` or ``warmup`` out of range, or a model and the example on different devices.
    """
    inputs = _inputs(example)
    device = inputs[0].device
    for name, model in models.items():
        _device_of(model, inputs, f"model {name!r}")
    return _time_passes({n: (model, inputs) for n, model in models.items()}, device, warmup=warmup, runs=runs)


def _inputs(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (example,) if isinstance(example, Tensor) else tuple(example)


def _repeated(t: Tensor, size: int) -> Tensor:
    # Concatenation and a slice of the first axis keep the memory format.
    return torch.cat([t] * -(-size // t.shape[0]))[:size]


def _device_of(model: nn.Module, inputs: tuple[Tensor, ...], called: str = "model") -> torch.device:
    device, weight = inputs[0].device, next(model.parameters(), None)
    if weight is not None and weight.device != device:
        raise UserError(f"the {called} is on {weight.device}, the example on {device}: move one of them")
    return device


def _time_passes(
    passes: Mapping[str, tuple[nn.Module, tuple[Tensor, ...]]], device: torch.device, *, warmup: int, runs: int
) -> dict[str, Timing]:
    """Forward passes in eval and inference mode, in turns: by name, the network and its inputs."""

    def call(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
        return lambda: model(*inputs)

    with ExitStack() as stack:
        for model, _ in passes.values():
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        fns = {name: call(*given) for name, given in passes.items()}
        return time_in_turns(fns, rounds=runs, warmup=warmup, device=device)


def _latency(timing: Timing, batch_size: int) -> Latency:
    return Latency(
        p20_ms=timing.p20_ms,
        p50_ms=timing.p50_ms,
        p80_ms=timing.p80_ms,
        runs=len(timing.samples_ms),
        warmup=timing.warmup,
        batch_size=batch_size,
        clock=timing.clock,
        machine=timing.machine,
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards every module has the flag it had (a frozen norm stays frozen)."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
