"""Reading, and replacing, what the gates of a network give, while it runs.

Gates of ``excite`` are tapped at ``excite``, the one seam through which every implementation of a tail takes s. Of any
other gate the product u s is watched for among the operations that PyTorch dispatches while the gate's module runs, and
s is taken from there: exactly the numbers that the network multiplies by, with no weight or module moved, and before
anybody can write over the map that comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from excite.errors import UserError
from excite.gates import Gate, GateConfig
from excite.graph import View, as_inputs, record, unwrapped
from excite.models.base import gate_modules
from excite.page import counted
from excite.surgery.sites import levels_of, stage_of
from excite.surgery.zoo_gates import read_gate

__all__ = ["Place", "Replacement", "Taps", "tapped"]

NEAR = 0.05
"""How near an end of its range, as a share of it, a gate function counts as saturated."""


@dataclass(frozen=True)
class Place:
    """A gate of a network, and what is known of it before it is looked at.

    Attributes:
        name: dotted name of the gate; with "#2" and so on where one gate runs several times.
        gate: the gate's text, or the name of its class.
        stage: as ``SiteRecord.stage``.
        label: the block it stands in.
        channels: C.
        range, low, high: as ``SiteRecord``.
    """

    name: str
    gate: str
    stage: int
    label: str
    channels: int
    range: tuple[float, float]

    @property
    def low(self) -> float:
        """At or under it, s is near the lower end of its range."""
        bottom, top = self.range
        return bottom + NEAR * (top - bottom if math.isfinite(top) else 1.0)

    @property
    def high(self) -> float:
        """At or over it, s is near the upper end of its range."""
        bottom, top = self.range
        return top - NEAR * (top - bottom) if math.isfinite(top) else top


Replacement = Callable[[Tensor], Tensor]
"""From s [N, C] to what is to be multiplied by in its place, of the same shape."""


class Taps:
    """The gates of a network that is being looked at; made by ``tapped``.

    Attributes:
        model: the network, out of its wrappers.
        places: the gates, in the order of execution; known after the first pass.
        skipped: gates that cannot be looked at: name and reason.
        view: of the network.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        self.model = model
        self._seen: dict[str, Tensor] = {}
        self._instead: Mapping[str, Replacement] = {}
        self._calls: dict[str, int] = {}
        self.view = View(record(model, inputs), model)
        self._watched, self.skipped = _watched(self.view, model)
        if not self._watched:
            why = "".join(f"; {name}: {reason}" for name, reason in self.skipped[:3])
            raise UserError(f"{type(model).__name__} has no gate that can be read{why}")
        self.places: tuple[Place, ...] = ()

    def run(self, images: Tensor, instead: Mapping[str, Replacement] | None = None) -> tuple[Any, dict[str, Tensor]]:
        """One pass over a batch.

        Args:
            images: what the network takes, N of them.
            instead: by name of a place, what to put in the place of its s.

        Returns:
            What the network returned, and s [N, C] of each place, by name, before any replacement.

        Raises:
            ValueError: a gate that runs on other than N maps.
        """
        self._seen, self._calls, self._instead = {}, {}, instead or {}
        output = self.model(images)
        for name, s in self._seen.items():
            if len(s) != len(images):
                maps = f"{counted(len(s), 'map')} for {counted(len(images), 'image')}"
                raise UserError(f"{name} runs on {maps}: only gates that run on one map an image can be recorded")
        if not self.places:
            self._settle()
        return output, self._seen

    def _settle(self) -> None:
        """After the first pass it is known which gates run."""
        idle = [name for name in self._watched if name not in self._seen]
        self.skipped += tuple((name, "its excite is not called; fused networks do without") for name in idle)
        if not self._seen:
            raise UserError(
                f"no gate of {type(self.model).__name__} is called when it runs, {idle[0]} for one: of a fused "
                "network, give the one that it was made of"
            )
        self.places = tuple(self._place(name, s.shape[1]) for name, s in self._seen.items())

    def passed(self, name: str, s: Tensor) -> Tensor:
        """Note s [N, C] of a gate that runs; returns what to multiply by."""
        number = self._calls[name] = self._calls.get(name, 0) + 1
        place = name if number == 1 else f"{name}#{number}"
        self._seen[place] = s.detach().clone()
        change = self._instead.get(place)
        return s if change is None else change(s).to(s)

    def _place(self, name: str, channels: int) -> Place:
        module = self.view.modules[name.partition("#")[0]]
        gate = module if isinstance(module, Gate) else read_gate(module, channels)
        ends = _range(None if gate is None else gate.config)
        text = type(module).__name__ if gate is None else str(gate.config)
        stage, label = self._where(name.partition("#")[0])
        return Place(name, text, stage, label, channels, ends)

    def _where(self, name: str) -> tuple[int, str]:
        """Stage, and the block that the gate is in."""
        view = self.view
        calls = view.recording.calls_of(name)
        parent = name.rpartition(".")[0]
        if not calls or not calls[0].inputs:
            return 0, parent
        u = calls[0].inputs[0]
        for join in view.joins:
            inside = view.values[join.branch].ancestors & ~view.values[join.fork].ancestors
            if inside >> u & 1:
                return stage_of(view, view.nodes[join.node].output, levels_of(view)), join.module
        return stage_of(view, u, levels_of(view)), parent

    @contextmanager
    def _open(self) -> Iterator[None]:
        undo: list[Callable[[], object]] = []
        try:
            for name, (module, product, side) in self._watched.items():
                if isinstance(module, Gate):
                    undo.append(_wrap_excite(module, partial(self.passed, name)))
                else:
                    watch = _Watch(product, side, partial(self.passed, name))
                    undo.append(module.register_forward_pre_hook(watch.begin, prepend=True).remove)
                    undo.append(module.register_forward_hook(watch.end, always_call=True).remove)
            yield
        finally:
            for step in reversed(undo):
                step()


@contextmanager
def tapped(model: nn.Module, example: Tensor | Sequence[Any]) -> Iterator[Taps]:
    """The gates of a network, to be read and replaced in the ``with`` block; afterwards the network is as it was.

    Args:
        model: any network in eval mode: of ``excite``, with gates attached, timm's, torchvision's.
        example: an input it takes; only its shape matters.

    Raises:
        ValueError: a network in training mode, or one that has no gate that can be read.
    """
    model = unwrapped(model)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        what = f"its module {training!r}" if training else type(model).__name__
        raise UserError(f"{what} is in training mode, and would change by being looked at: call model.eval() first")
    taps = Taps(model, as_inputs(example))
    with taps._open(), torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield taps


def _range(config: GateConfig | None) -> tuple[float, float]:
    """What a gate function can give; of a gate that is not known, what most give."""
    options = {} if config is None else config.options()
    shift = 1.0 if options.get("neutral", False) else 0.0
    match options.get("gate_function", "sigmoid"):
        case "relu":
            return 0.0, math.inf
        case "tanh":
            return shift - 1, shift + 1
        case _:
            return 0.0, 1 + shift


# A gate's module, the number of its product among the module's multiplications, and which factor of it is s.
_Watched = tuple[nn.Module, int, int]


def _watched(view: View, model: nn.Module) -> tuple[dict[str, _Watched], tuple[tuple[str, str], ...]]:
    """The gates that can be looked at, by name; and the others, each with the reason."""
    watched: dict[str, _Watched] = {}
    skipped = []
    for found in view.gates:
        product = view.node_of(found.y)
        assert product is not None
        if not found.module:
            skipped.append((product.module, "it is computed between modules"))
            continue
        call = next(c for c in view.recording.calls_of(found.module) if c.start <= product.index < c.end)
        number = sum(node.op == "mul" for node in view.nodes[call.start : product.index])
        watched[found.module] = (view.modules[found.module], number, 1 if product.inputs[0] == found.u else 0)
    for name, module in gate_modules(model).items():
        if isinstance(module, Gate):
            watched[name] = (module, 0, 1)
        elif name not in watched:
            skipped.append((name, f"{type(module).__name__} does not scale whole channels"))
    return watched, tuple(skipped)


def _wrap_excite(gate: Gate, passed: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """Have what a gate's ``excite`` returns pass by; returns what undoes it."""
    own, before = gate.excite, gate.__dict__.get("excite")

    def excite(z: Tensor) -> Tensor:
        return passed(own(z))

    gate.__dict__["excite"] = excite

    def undo() -> None:
        del gate.__dict__["excite"]
        if before is not None:
            gate.__dict__["excite"] = before

    return undo


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the product u s while a gate's module runs.

    Args:
        product: its number among the multiplications of the module.
        side: which of its factors is s, 0 or 1.
        passed: is given s [N, C], returns what to multiply by.
    """

    def __init__(self, product: int, side: int, passed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._product, self._side, self._passed = product, side, passed
        self._count = 0

    def begin(self, module: nn.Module, args: Any) -> None:
        """The hook that says that the gate begins."""
        self._count = 0
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook that says that the gate has ended, or failed."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "_overloadpacket", None) in (torch.ops.aten.mul, torch.ops.aten.mul_):
            if self._count == self._product:
                args = self._replaced(args)
            self._count += 1
        return func(*args, **(kwargs or {}))

    def _replaced(self, factors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        spread = factors[self._side]  # [N, C, 1, ...], or expanded from that to the map's positions
        s = spread
        while s.dim() > 2:
            s = s[..., 0]
        instead = self._passed(s)
        if instead is s:
            return factors
        changed = instead.reshape(*s.shape, *(1,) * (spread.dim() - 2))
        return (factors[0], changed) if self._side == 1 else (changed, factors[1])
