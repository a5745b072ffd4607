"""What one forward pass costs: parameters, multiply-adds, and bytes of feature maps read and written.

Counted by running the network once on the meta device, where tensors have shapes and no data, and looking at every
operation PyTorch executes. Operations are told apart by family, so that layers need not be known by name; an operation
of no family is listed as uncounted rather than taken for free.

Bytes moved are those of an unfused network: every operation reads its feature maps and writes its result. They explain
why a gate of a few thousand multiply-adds takes measurable time: it walks over the whole map three times.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from excite.errors import UserError
from excite.models.base import GatedBlock, gate_modules

__all__ = ["SENET", "Convention", "Cost", "OpCost", "Usage", "count_cost"]

# Families of operations by their aten names (in-place forms included). How many operations one call is: for "conv" and
# "linear" multiply-adds, for "mean" (all that sums over a map) elements read, otherwise elements written. Operations of
# "max" and "copy" only move bytes.
_FAMILIES: dict[str, str] = {
    "conv": "convolution _convolution cudnn_convolution",
    "linear": """mm addmm bmm baddbmm mv dot _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention""",
    "norm": """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
        native_layer_norm native_group_norm _fused_rms_norm""",
    "mean": """mean sum avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d var var_mean std
        linalg_vector_norm""",
    "max": "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d amax amin maximum minimum",
    "add": "add sub rsub",
    "multiply": "mul div square addcmul",
    "activation": """relu silu gelu sigmoid hardsigmoid hardswish tanh hardtanh leaky_relu elu mish clamp clamp_min
        clamp_max softplus _softmax _safe_softmax _log_softmax _prelu_kernel exp erf sqrt rsqrt pow reciprocal neg abs
        where gt lt""",
    "copy": """cat stack clone copy _to_copy constant_pad_nd repeat reflection_pad2d replication_pad2d index roll flip
        fill zeros ones full zeros_like ones_like full_like new_zeros upsample_nearest2d upsample_bilinear2d
        pixel_shuffle native_dropout channel_shuffle""",
}
_FAMILY_OF: dict[str, str] = {op: family for family, ops in _FAMILIES.items() for op in ops.split()}

# Make or relabel a tensor without touching its elements.
_FREE = frozenset(
    """empty empty_like empty_strided new_empty new_empty_strided arange scalar_tensor lift_fresh detach alias view
    _unsafe_view _reshape_alias t transpose permute expand squeeze unsqueeze select slice split split_with_sizes chunk
    unbind unfold diagonal view_as_real as_strided""".split()
)


@dataclass(frozen=True)
class Convention:
    """Which operations count as multiply-adds.

    Args:
        name: whose convention it is.
        weights: multiply-adds for one operation of a family ("conv", "linear", "norm", "mean", "max", "add",
            "multiply", "activation", "copy"); families left out count nothing.
    """

    name: str
    weights: Mapping[str, float]


# The SE paper's: convolutions, fully connected layers and additions, and for its gates the pool and the rescaling.
# Norms fold into convolutions at inference; activations, maxima and copies multiply nothing.
SENET = Convention("SENet", {"conv": 1, "linear": 1, "add": 1, "mean": 1, "multiply": 1})


@dataclass(frozen=True)
class Usage:
    """What a network, or a part of it, costs for the example it was counted on.

    Args:
        parameters: learnable numbers, shared ones once.
        macs: multiply-adds (not FLOPs, which are about twice as many).
        bytes_read: bytes of feature maps read; parameters and statistics are no feature maps.
        bytes_written: bytes of feature maps written.
    """

    parameters: int = 0
    macs: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def bytes_moved(self) -> int:
        """Bytes of feature maps read and written."""
        return self.bytes_read + self.bytes_written

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclass(frozen=True)
class OpCost:
    """One executed operation.

    Args:
        op: its name, such as "aten.convolution".
        family: see ``Convention``.
        module: dotted name of the innermost module that ran it; "" is the network itself.
        operations: multiply-adds for "conv" and "linear", elements read for "mean", else elements written.
        bytes_read: bytes of the feature maps it reads.
        bytes_written: bytes of the feature maps it writes.
    """

    op: str
    family: str
    module: str
    operations: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass in eval mode, for the whole batch of the example.

    Args:
        total: the whole network.
        gates: its gates alone: squeeze, excite and rescale.
        by_stage: "stem", "stage1", ..., "head" for networks with children ``layer1``, ...; empty for others.
        by_module: every module's cost including its children's, by dotted name ("" is the total).
        uncounted: operations of no known family, with the number of their calls; their cost is in no figure.
        convention: what counts as a multiply-add.
        ops: every operation executed, in order.
    """

    total: Usage
    gates: Usage
    by_stage: dict[str, Usage]
    by_module: dict[str, Usage]
    uncounted: dict[str, int]
    convention: Convention
    ops: tuple[OpCost, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single operations, JSON-able."""

        def plain(usage: Usage) -> dict[str, int]:
            return {**dataclasses.asdict(usage), "bytes_moved": usage.bytes_moved}

        return {
            "convention": {"name": self.convention.name, "weights": dict(self.convention.weights)},
            "total": plain(self.total),
            "gates": plain(self.gates),
            "by_stage": {name: plain(usage) for name, usage in self.by_stage.items()},
            "by_module": {name: plain(usage) for name, usage in self.by_module.items()},
            "uncounted": dict(self.uncounted),
        }


def count_cost(model: nn.Module, example: Tensor | Sequence[Tensor], *, convention: Convention = SENET) -> Cost:
    """Parameters, multiply-adds and bytes moved of one forward pass in eval mode.

    The network itself is left alone: a copy without data runs, on the meta device. One that cannot run there, because
    it looks at values, runs once on the example as given.

    Args:
        model: any network.
        example: its input, or a tuple of its positional inputs; ``torch.empty(1, 3, 224, 224, device="meta")`` will do.
            Figures are for this batch as a whole: give one image for the papers' figures.
        convention: what counts as a multiply-add.

    Raises:
        ValueError: the network does not take the example.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    recorder = _record(model, inputs)
    return _summarise(model, recorder, convention)


def _record(model: nn.Module, inputs: tuple[Any, ...]) -> _Recorder:
    try:
        return _run(_twin(model, meta=True), tree_map(_to_meta, inputs))
    except Exception as on_meta:  # whatever a forward that looks at values raises
        try:
            return _run(_twin(model, meta=False), inputs)
        except Exception as error:
            shapes = [tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
            # An example without data has only the first reason to give.
            reason = on_meta if any(t.is_meta for t in tree_leaves(inputs) if isinstance(t, Tensor)) else error
            raise UserError(f"{type(model).__name__} does not take an example of shape {shapes}: {reason}") from error


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _twin(model: nn.Module, *, meta: bool) -> nn.Module:
    """A copy in eval mode whose tensors are without data (meta), or the model's own (not meta), never copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad) if meta else parameter
    for buffer in model.buffers():
        # Buffers may be counters that a forward moves: the real twin gets its own.
        memo[id(buffer)] = buffer.to("meta") if meta else buffer.clone()
    twin = copy.deepcopy(model, memo).eval()
    for module in twin.modules():
        module._compiled_call_impl = None
        if isinstance(module, GatedBlock):
            # Bytes are stated for the definition, step by step, whichever implementation the network would choose.
            module.impl = "reference"
    return twin


def _run(twin: nn.Module, inputs: tuple[Any, ...]) -> _Recorder:
    recorder = _Recorder(twin)
    handles = []
    for name, module in twin.named_modules():
        handles.append(module.register_forward_pre_hook(recorder.entering(name), prepend=True))
        handles.append(module.register_forward_hook(recorder.leaving, always_call=True))
    try:
        with torch.no_grad(), recorder:
            twin(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return recorder


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation executed, with the module that ran it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[OpCost] = []
        self.uncounted: Counter[str] = Counter()
        self._path = [""]
        # By storage, so that views of a weight are known as such.
        self._parameters = {_storage(t) for t in (*model.parameters(), *model.buffers())}

    def entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._path.append(name)

        return hook

    def leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self._path.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = getattr(func, "_overloadpacket", func)
        name = str(packet).removeprefix("aten.").removesuffix("_")
        if name in _FREE:
            return out
        family = _FAMILY_OF.get(name)
        if family is None:
            self.uncounted[str(packet)] += 1
            return out
        # What a norm gives beside its map are statistics.
        read, written = self._maps((args, kwargs)), self._maps(out[0] if family == "norm" else out)
        self.ops.append(
            OpCost(
                op=str(packet),
                family=family,
                module=self._path[-1],
                operations=_operations(family, packet, args, kwargs or {}, out, read, written),
                bytes_read=sum(_elements(t) * t.element_size() for t in read),
                bytes_written=sum(_elements(t) * t.element_size() for t in written),
            )
        )
        return out

    def _maps(self, values: Any) -> list[Tensor]:
        tensors = (t for t in tree_leaves(values) if isinstance(t, Tensor) and t.is_floating_point())
        return [t for t in tensors if _storage(t) not in self._parameters]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _elements(tensor: Tensor) -> int:
    """Elements in memory: those of an expanded dimension once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride != 0 or size == 0 else 1
    return count


def _operations(
    family: str, packet: Any, args: Any, kwargs: dict[str, Any], out: Any, read: list[Tensor], written: list[Tensor]
) -> int:
    if family in ("conv", "linear"):
        if packet in flop_registry:
            return int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2
        return int(args[0].numel())  # mv and dot, which torch has no formula for
    if family == "mean":
        return sum(_elements(t) for t in read)
    return sum(_elements(t) for t in written)


def _summarise(model: nn.Module, recorder: _Recorder, convention: Convention) -> Cost:
    own = _own_parameters(model)
    executed = [(op.module, _usage(op, convention)) for op in recorder.ops]
    by_module: dict[str, Usage] = {name: Usage() for name, _ in model.named_modules()}
    for module, part in [*executed, *own]:
        for name in _ancestors(module):
            by_module[name] += part
    gates = gate_modules(model)
    outermost = [name for name in gates if not any(above in gates for above in _ancestors(name)[1:])]
    by_stage: dict[str, Usage] = defaultdict(Usage)
    for stage, part in [*_by_layer(executed), *_by_layer(own)]:
        by_stage[stage] += part
    return Cost(
        total=by_module[""],
        gates=sum((by_module[name] for name in outermost), Usage()),
        by_stage={name: by_stage[name] for name in sorted(by_stage, key=_stage_order)},
        by_module=by_module,
        uncounted=dict(recorder.uncounted),
        convention=convention,
        ops=tuple(recorder.ops),
    )


def _usage(op: OpCost, convention: Convention) -> Usage:
    macs = round(convention.weights.get(op.family, 0) * op.operations)
    return Usage(macs=macs, bytes_read=op.bytes_read, bytes_written=op.bytes_written)


def _own_parameters(model: nn.Module) -> list[tuple[str, Usage]]:
    """(module, parameters it holds itself), shared parameters at their first holder only."""
    return [(name.rpartition(".")[0], Usage(parameters=p.numel())) for name, p in model.named_parameters()]


def _ancestors(name: str) -> list[str]:
    """The module itself, its parents, and the network ""."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


_LAYER = re.compile(r"layer(\d+)(\.|$)")


def _by_layer(parts: list[tuple[str, Usage]]) -> list[tuple[str, Usage]]:
    """The same by stage: that of the module, or outside all stages, "stem" before the first one's and "head" after."""
    if not any(_LAYER.match(module) for module, _ in parts):
        return []
    rows, outside = [], "stem"
    for module, usage in parts:
        layer = _LAYER.match(module)
        if layer:
            outside = "head"
        rows.append((f"stage{layer[1]}" if layer else outside, usage))
    return rows


def _stage_order(name: str) -> tuple[int, int]:
    return (0, 0) if name == "stem" else (2, 0) if name == "head" else (1, int(name.removeprefix("stage")))
