"""``count_cost``: a network's bill, in total, by module, by stage and for its gates alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from excite.cost.conventions import SENET_ALL, Convention
from excite.cost.record import Recorder, record
from excite.cost.usage import OpCost, Row, Usage, ancestors, by_module, by_stage
from excite.errors import UserError, unknown
from excite.models.base import GatedBlock, gate_modules

__all__ = ["TAILS", "Cost", "count_cost"]

TAILS = ("unfused", "fused", "squeeze-ahead")


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass in eval mode, for the whole batch of the example.

    Args:
        total: the whole network.
        gates: its gates alone: squeeze, excite and rescale. Those of ``excite``, also attached to other libraries'
            networks; what other libraries have for gates is in the total only. With fused tails its bytes are what
            the network moves more than without its gates.
        by_stage: "stem", "stage1", ..., "head", for networks that say which stage a module belongs to and those with
            children ``layer1``, ...; empty for others.
        gates_by_stage: the gates alone, for stages that have any.
        by_module: every module's cost including its children's, by dotted name ("" is the total).
        uncounted: operations of no known family, with the number of their calls; their cost is in no figure.
        convention: what counts as a multiply-add.
        tails: what ran the tails of residual branches, as far as bytes go: see ``count_cost``.
        ops: every operation executed, in order.
    """

    total: Usage
    gates: Usage
    by_stage: dict[str, Usage]
    gates_by_stage: dict[str, Usage]
    by_module: dict[str, Usage]
    uncounted: dict[str, int]
    convention: Convention
    tails: str
    ops: tuple[OpCost, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single operations, JSON-able."""
        return {
            "convention": {**dataclasses.asdict(self.convention), "weights": dict(self.convention.weights)},
            "tails": self.tails,
            "total": self.total.to_dict(),
            "gates": self.gates.to_dict(),
            "by_stage": {name: usage.to_dict() for name, usage in self.by_stage.items()},
            "gates_by_stage": {name: usage.to_dict() for name, usage in self.gates_by_stage.items()},
            "by_module": {name: usage.to_dict() for name, usage in self.by_module.items()},
            "uncounted": dict(self.uncounted),
        }


def count_cost(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    convention: Convention = SENET_ALL,
    tails: str = "unfused",
) -> Cost:
    """Parameters, multiply-adds and bytes moved of one forward pass in eval mode.

    The network itself is left alone: a copy without data runs, on the meta device. One that cannot run there, because
    it looks at values, runs once on the example as given.

    Args:
        model: any network.
        example: its input, or a tuple of its positional inputs; ``torch.empty(1, 3, 224, 224, device="meta")`` will do.
            Figures are for this batch as a whole: give one image for the papers' figures. Bytes are of its dtype.
        convention: what counts as a multiply-add; by default a gate's pool and its rescaling both do.
        tails: which tails of residual branches the bytes are of; parameters and multiply-adds are the definition's.
            "unfused": each operation reads and writes its maps. "fused": ``excite.ops.tail``, which reads x twice and
            the shortcut once, and writes y, with a gate or without. "squeeze-ahead": at inference, the gate's squeeze
            reads the input of the last convolution (``excite.ops.squeeze_ahead``) where that is less than x, and the
            tail reads x once. Tails that cannot be fused stay as they are.

    Raises:
        ValueError: the network does not take the example; an unknown ``tails``; something else than a module, or than
            a tensor or a sequence of inputs.
    """
    if tails not in TAILS:
        raise unknown("tails", tails, TAILS)
    inputs = _inputs(model, example)
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    definition = record(model, inputs)
    work = [(op.module, Usage(macs=_macs(op, convention))) for op in definition.ops]
    # Shared parameters at their first holder only.
    own = [(name.rpartition(".")[0], Usage(parameters=p.numel())) for name, p in model.named_parameters()]
    executed = definition if tails == "unfused" else record(model, inputs, tails=tails)
    sequences = [own, work, _traffic(executed)]
    modules = by_module(model, (row for rows in sequences for row in rows))
    gates, gates_by_stage = _gates(model, sequences)
    if tails != "unfused":
        bare = _traffic(record(model, inputs, tails=tails, gates=False))
        gates, gates_by_stage = _more_than(model, bare, sequences)
    return Cost(
        total=modules[""],
        gates=gates,
        by_stage=by_stage(model, sequences),
        gates_by_stage={name: usage for name, usage in gates_by_stage.items() if usage != Usage()},
        by_module=modules,
        uncounted=dict(definition.uncounted | executed.uncounted),
        convention=convention,
        tails=tails,
        ops=tuple(executed.ops),
    )


def _inputs(model: nn.Module, example: Tensor | Sequence[Tensor]) -> tuple[Any, ...]:
    if not isinstance(model, nn.Module):
        raise UserError(f"what is counted is a torch.nn.Module; got {type(model).__name__}")
    if isinstance(example, Tensor):
        return (example,)
    if not isinstance(example, list | tuple):
        raise UserError(f"an example is a tensor, or a tuple of the positional inputs; got {type(example).__name__}")
    return tuple(example)


def _macs(op: OpCost, convention: Convention) -> int:
    return round(convention.weights.get(op.family, 0) * op.operations)


def _traffic(recorder: Recorder) -> list[Row]:
    return [(op.module, Usage(bytes_read=op.bytes_read, bytes_written=op.bytes_written)) for op in recorder.ops]


def _gates(
    model: nn.Module, sequences: Sequence[Sequence[Row]], *, outside_blocks: bool = False
) -> tuple[Usage, dict[str, Usage]]:
    """What the modules of gates hold and run: in all, and by stage."""
    names = set(gate_modules(model))
    if outside_blocks:
        names -= {f"{name}.gate".lstrip(".") for name, m in model.named_modules() if isinstance(m, GatedBlock)}
    inside = [[(m, u if names.intersection(ancestors(m)) else Usage()) for m, u in rows] for rows in sequences]
    total = sum((usage for rows in inside for _, usage in rows), Usage())
    return total, by_stage(model, inside)


def _more_than(
    model: nn.Module, bare: Sequence[Row], sequences: Sequence[Sequence[Row]]
) -> tuple[Usage, dict[str, Usage]]:
    """The gates' parameters and multiply-adds, and the bytes that the network moves more than one without gates."""
    *counted, moved = sequences
    total, stages = _gates(model, counted)
    others, others_by_stage = _gates(model, [moved], outside_blocks=True)
    with_gates, without = by_stage(model, [moved]), by_stage(model, [bare])
    total += others + sum((usage for _, usage in moved), Usage()) - sum((usage for _, usage in bare), Usage())
    for name in with_gates:
        more = with_gates[name] - without.get(name, Usage())
        stages[name] = stages.get(name, Usage()) + others_by_stage.get(name, Usage()) + more
    return total, stages
