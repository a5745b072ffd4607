"""What each gate costs: parameters and multiply-adds counted, latency and training step measured in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from excite.cost import count_cost
from excite.errors import UserError
from excite.experiment.comparison import PLAIN, Measured
from excite.timing import evaluating, time_in_turns, training_step

__all__ = ["GateCost", "count_costs", "measure_costs", "timing_devices"]

# A single call is kept under this by timing a smaller batch, so that slow machines wait seconds and not minutes.
_CALL_S = 0.4
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class GateCost:
    """What a network with a gate costs.

    Attributes:
        parameters: learnable numbers of the whole network.
        macs: multiply-adds of one image, a gate's pool and rescaling included, as ``count_cost`` counts.
        timings: measured in turns with plain's network; empty where not measured.
    """

    parameters: int
    macs: int
    timings: tuple[Measured, ...] = ()


def count_costs(networks: Mapping[str, nn.Module], example: Tensor) -> dict[str, GateCost]:
    """Parameters and multiply-adds of each network for one image.

    Args:
        networks: by the gate's canonical string.
        example: one image [1, C, H, W]; only its shape matters.
    """
    counted = {}
    for gate, network in networks.items():
        total = count_cost(network, example).total
        counted[gate] = GateCost(total.parameters, total.macs)
    return counted


def timing_devices(accelerator: str) -> list[torch.device]:
    """Where a comparison is timed: the GPU, where it trains on one that can be timed, and always the CPU."""
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return [torch.device("cuda"), torch.device("cpu")] if cuda else [torch.device("cpu")]


def measure_costs(
    networks: Mapping[str, nn.Module],
    example: Tensor,
    classes: int,
    *,
    precision: str = "32-true",
    channels_last: bool = True,
    device: torch.device | str = "cpu",
    train: bool = True,
    seconds: float = 1.5,
) -> dict[str, tuple[Measured, ...]]:
    """Time of inference on one image and of one training step, each network in turns with plain's.

    The ratios of one kind come from one run in which all networks take turns, so that whatever else the machine does
    in the meantime falls on all of them. Networks are timed as they are built, without ``torch.compile``.

    Args:
        networks: by the gate's canonical string, "none" (plain) among them; left on the CPU in float32.
        example: a training batch of images [N, C, H, W]; values do not matter. A training step is timed on all of it,
            or on fewer images where a call would take too long; the batch that was timed is in the result.
        classes: number of classes.
        precision: the recipe's, for the training step; inference is timed in 32-true.
        channels_last: memory format of images and weights.
        device: where to time.
        train: time training steps too.
        seconds: time for each network and kind, about; every network has at least 5 turns.

    Raises:
        ValueError: plain is missing.
    """
    if PLAIN not in networks:
        raise UserError(f"networks={list(networks)}: plain ('none') must be among them, ratios are to it")
    device = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    ordered = {PLAIN: networks[PLAIN], **networks}
    place = _Place(device, layout, torch.float32)
    try:
        images = place.put(ordered, example[:1])
        timings = [_inference(ordered, images, place, seconds)]
        if train:
            place = _Place(device, layout, torch.float64 if precision == "64-true" else torch.float32)
            images = place.put(ordered, example)
            timings.append(_steps(ordered, images, classes, precision, place, seconds))
    finally:
        for network in ordered.values():
            network.to("cpu", torch.float32)
    return {gate: tuple(kind[gate] for kind in timings) for gate in ordered}


@dataclass(frozen=True)
class _Place:
    device: torch.device
    layout: torch.memory_format
    dtype: torch.dtype

    def put(self, networks: Mapping[str, nn.Module], images: Tensor) -> Tensor:
        for network in networks.values():
            network.to(self.device, self.dtype).to(memory_format=self.layout)
        return images.to(self.device, self.dtype).contiguous(memory_format=self.layout)

    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def _inference(networks: Mapping[str, nn.Module], image: Tensor, place: _Place, seconds: float) -> dict[str, Measured]:
    def call(network: nn.Module) -> Callable[[], object]:
        return lambda: network(image)

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for network in networks.values():
            stack.enter_context(evaluating(network))
        calls = {gate: call(network) for gate, network in networks.items()}
        return _in_turns(calls, place, seconds, what="inference", batch_size=1, precision="32-true")


def _steps(
    networks: Mapping[str, nn.Module], images: Tensor, classes: int, precision: str, place: _Place, seconds: float
) -> dict[str, Measured]:
    labels = torch.arange(len(images), device=place.device) % classes

    def steps(names: Iterable[str], n: int) -> dict[str, Callable[[], None]]:
        autocast = _AUTOCAST.get(precision)
        return {g: training_step(networks[g], images[:n], labels[:n], autocast=autocast) for g in names}

    # From few images upwards, so that a large network on a slow machine is never asked for a whole batch first.
    n = min(len(images), 8)
    while n < len(images):
        if _call_seconds(steps([PLAIN], n)[PLAIN], place) * 2 > _CALL_S:
            break
        n = min(2 * n, len(images))
    return _in_turns(steps(networks, n), place, seconds, what="training step", batch_size=n, precision=precision)


def _in_turns(
    calls: Mapping[str, Callable[[], object]],
    place: _Place,
    seconds: float,
    *,
    what: str,
    batch_size: int,
    precision: str,
) -> dict[str, Measured]:
    once = _call_seconds(calls[PLAIN], place)
    rounds = max(5, min(200, int(seconds / max(once, 1e-6))))
    timed = time_in_turns(calls, rounds=rounds, warmup=2 if rounds < 20 else 5, device=place.device)
    return {
        gate: Measured(
            what=what,
            device=place.name(),
            batch_size=batch_size,
            precision=precision,
            p20_ms=t.p20_ms,
            p50_ms=t.p50_ms,
            p80_ms=t.p80_ms,
            ratio=t.ratio.p50,
            ratio_p20=t.ratio.p20,
            ratio_p80=t.ratio.p80,
            rounds=rounds,
        )
        for gate, t in timed.items()
    }


def _call_seconds(call: Callable[[], object], place: _Place) -> float:
    """Time of one call after one to warm up."""
    call()
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    start = time.perf_counter()
    call()
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    return time.perf_counter() - start
