"""``excite bench``: what gates cost in time on this machine, eager, fused and compiled, as ratios measured in turns."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from excite.deploy.fuse import FuseReport, fuse
from excite.errors import UserError
from excite.gates import parse_gate
from excite.models.base import gate_modules
from excite.networks import NetworkSpec, build, example_for, seeded
from excite.surgery import swap_
from excite.timing import Spread, Timing, describe_machine, time_in_turns
from excite.training.settings import Settings

__all__ = ["Bench", "BenchConfig", "BenchRow", "bench", "show_bench"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Settings):
    """Time networks with gates against the same networks without: as they are, fused, and compiled.

    Args:
        models: networks with gates (se_resnet50, timm:seresnet50, torchvision:efficientnet_b0), or without, which are
            then given the gate.
        gate: the gate for networks that have none.
        batch_sizes: images in a batch, as [1, 8].
        image_size: side of the images in pixels; null is what the network is made for.
        rounds: how often each is timed.
        warmup: untimed calls of each before.
        compile: also compile each with torch.compile, with weights frozen into the code (minutes).
        device: cpu, or cuda.
        precision: float32, bfloat16 or float16: the dtype of network and images.
        threads: threads on the CPU; null is PyTorch's choice.
        json: print the rows as JSON.
        rows: append the rows to this file, one JSON object a line.
    """

    models: tuple[str, ...] = ()
    gate: str = "se"
    batch_sizes: tuple[int, ...] = (1, 8)
    image_size: int | None = None
    rounds: int = 20
    warmup: int = 3
    compile: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int | None = None
    json: bool = False
    rows: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_sizes", "image_size", "rounds", "threads"):
            self.require(name, at_least=1)
        self.require("warmup", at_least=0)
        if not self.models:
            raise UserError("models: name at least one network, as `excite bench se_resnet50`")
        if not self.batch_sizes:
            raise UserError("batch_sizes: give at least one, as [1, 8]")
        if parse_gate(self.gate) is None:
            raise UserError(f"gate={self.gate!r}: name a gate, `excite gates` lists them")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: this machine has none that PyTorch can use")


@dataclass(frozen=True)
class BenchRow:
    """One network in one state at one batch size.

    Attributes:
        network: its name.
        gate: its gates' text, the most frequent one.
        state: "eager", "fused", "compiled" or "fused, compiled".
        gated: whether its gates are in it.
        batch_size, image_size: images, pixels a side.
        precision: dtype of network and images.
        timing: milliseconds a batch; ratios are to the network without gates, eager.
        over_plain: spread of the ratio to the network without gates in the same state.
        difference: largest difference of its outputs from the eager ones, as a share of the largest.
    """

    network: str
    gate: str
    state: str
    gated: bool
    batch_size: int
    image_size: int
    precision: str
    timing: Timing
    over_plain: dict[str, float]
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single samples, JSON-able."""
        timing = self.timing.to_dict()
        del timing["samples_ms"]
        fields = {name: value for name, value in vars(self).items() if name != "timing"}
        return {**fields, **timing, "rounds": len(self.timing.samples_ms)}


@dataclass(frozen=True)
class Bench:
    """All rows, and what ``fuse`` did to each gated network."""

    rows: tuple[BenchRow, ...]
    reports: dict[str, FuseReport] = field(default_factory=dict)


def bench(config: BenchConfig) -> Bench:
    """Times each network at each batch size; appends to ``rows`` where a file is given.

    Raises:
        ValueError: an unknown network, one without a place for gates, or one that cannot be fused.
    """
    rows: list[BenchRow] = []
    reports: dict[str, FuseReport] = {}
    with _threads(config.threads):
        for name in config.models:
            gated, plain, example, gate = _pair(name, config)
            for n in config.batch_sizes:
                images = _images(example, n, config)
                rows += _at(name, gate, gated, plain, images, config, reports)
    if config.rows is not None:
        path = Path(config.rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row.to_dict()) + "\n" for row in rows)
    return Bench(tuple(rows), reports)


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pair(name: str, config: BenchConfig) -> tuple[nn.Module, nn.Module, Tensor, str]:
    """A network with its gates, the same without, an example without data, and the gates' text."""
    spec = NetworkSpec(name)
    with seeded(0):
        gated = _trained(build(spec))
        example = example_for(gated, spec)
        try:
            found = swap_(copy.deepcopy(gated), "*", "same", torch.zeros(example.shape))
        except UserError:  # it has none
            gated = _trained(build(NetworkSpec(name, config.gate)))
            found = swap_(copy.deepcopy(gated), "*", "same", torch.zeros(example.shape))
    plain = copy.deepcopy(gated)
    swap_(plain, "*", "none", torch.zeros(example.shape))
    assert not gate_modules(plain)
    texts = [swap.old for swap in found]
    return gated, plain, example, max(set(texts), key=texts.count)


@torch.no_grad()
def _trained(model: nn.Module) -> nn.Module:
    """Norms and biases as training leaves them: of a fresh network's zeros no comparison of outputs means much."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1 and not key.endswith("running_var"):
            tensor.uniform_(0.4, 1.2) if key.endswith("weight") else tensor.normal_(0, 0.2)
    return model.eval()


def _images(example: Tensor, n: int, config: BenchConfig) -> Tensor:
    side = config.image_size or example.shape[-1]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, example.shape[1], side, side, generator=generator)
    return images.to(config.device, getattr(torch, config.precision)).contiguous(memory_format=torch.channels_last)


def _at(
    name: str,
    gate: str,
    gated: nn.Module,
    plain: nn.Module,
    images: Tensor,
    config: BenchConfig,
    reports: dict[str, FuseReport],
) -> list[BenchRow]:
    """The rows of one network at one batch size, all timed in one run by turns."""
    networks: dict[tuple[str, bool], nn.Module] = {}
    for with_gates, network in ((False, plain), (True, gated)):
        placed = copy.deepcopy(network).to(images.device, images.dtype).to(memory_format=torch.channels_last)
        networks["eager", with_gates] = placed
        fused = networks["fused", with_gates] = fuse(placed, images)
        if with_gates:
            reports[name] = fused.report
    with torch.no_grad(), _frozen(config.compile):
        if config.compile:
            for (state, with_gates), network in list(networks.items()):
                compiled = "compiled" if state == "eager" else "fused, compiled"
                networks[compiled, with_gates] = torch.compile(network)  # type: ignore[assignment]
        outputs = {key: network(images) for key, network in networks.items()}
        calls: dict[str, Callable[[], object]] = {
            f"{state}|{with_gates}": partial(network, images) for (state, with_gates), network in networks.items()
        }
        timings = time_in_turns(calls, rounds=config.rounds, warmup=config.warmup, device=images.device)
    return [
        BenchRow(
            network=name, gate=gate, state=state, gated=with_gates, batch_size=len(images), image_size=images.shape[-1],
            precision=config.precision, timing=timings[f"{state}|{with_gates}"],
            over_plain=_ratio(timings[f"{state}|{with_gates}"], timings[f"{state}|False"]),
            difference=_apart(outputs[state, with_gates], outputs["eager", with_gates]),
        )
        for state, with_gates in networks
    ]  # fmt: skip


@contextmanager
def _frozen(compiling: bool) -> Iterator[None]:
    """PyTorch's compiler at its best at inference: weights are constants of the code."""
    if not compiling:
        yield
        return
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True):
        yield
    torch._dynamo.reset()


def _ratio(one: Timing, other: Timing) -> dict[str, float]:
    ratios = [mine / theirs for mine, theirs in zip(one.samples_ms, other.samples_ms, strict=True)]
    return dict(vars(Spread.of(ratios)))


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def show_bench(result: Bench, config: BenchConfig) -> None:
    """Prints a table a network and batch size, 80 columns wide; or the rows as JSON."""
    if config.json:
        print(json.dumps([row.to_dict() for row in result.rows], indent=1))
        return
    machine = describe_machine(config.device)
    print(f"{machine['device_name']}, torch {machine['torch']}, {config.precision}", end="")
    print(f", {config.threads or machine['threads']} threads" if config.device == "cpu" else "")
    heading = None
    for row in result.rows:
        if (row.network, row.batch_size) != heading:
            heading = (row.network, row.batch_size)
            print(f"\n{row.network}, gates {row.gate}; batch {row.batch_size} of {row.image_size} x {row.image_size}")
            print(f"  {'':22}{'ms':>9}{'to plain eager':>17}{'gated to plain':>18}  (20th to 80th)")
        ratio, over = row.timing.ratio, row.over_plain
        what = f"{row.state}, {'gated' if row.gated else 'plain'}"
        gated = f"{over['p50']:>18.3f}  ({over['p20']:.3f} to {over['p80']:.3f})" if row.gated else ""
        print(f"  {what:22}{row.timing.p50_ms:>9.2f}{ratio.p50:>17.3f}{gated}")
    for name, report in result.reports.items():
        print(f"\nfuse({name}): " + str(report).replace("\n", "\n  "))
