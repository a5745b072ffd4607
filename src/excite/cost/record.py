"""One run of a network without data, with every operation it executes and what that reads and writes."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from excite.cost.usage import OpCost
from excite.errors import UserError
from excite.gates.base import Gate
from excite.models.base import GatedBlock
from excite.ops.tail import FUSED_DESCRIPTORS

__all__ = ["Recorder", "record"]

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
    # Ours: each reads the maps it is given and writes the one it gives (see ``excite.ops.tail_passes``).
    "tail": "excite.tail_moments excite.tail_affine_act excite.tail_statistics",
}
_FAMILY_OF: dict[str, str] = {op: family for family, ops in _FAMILIES.items() for op in ops.split()}

# Take a tensor for its shape alone.
_LIKE = frozenset("zeros_like ones_like full_like new_zeros".split())

# Make or relabel a tensor without touching its elements.
_FREE = frozenset(
    """empty empty_like empty_strided new_empty new_empty_strided arange scalar_tensor lift_fresh detach alias view
    _unsafe_view _reshape_alias t transpose permute expand squeeze unsqueeze select slice split split_with_sizes
    unsafe_split unsafe_split_with_sizes chunk unsafe_chunk unbind unfold diagonal view_as_real as_strided""".split()
)


def record(model: nn.Module, inputs: tuple[Any, ...], *, tails: str = "unfused", gates: bool = True) -> Recorder:
    """Run a copy of ``model`` in eval mode, on the meta device or, if it looks at values, on the inputs as given.

    Args:
        model: any network; it is left alone.
        inputs: its positional inputs.
        tails: see ``count_cost``.
        gates: False takes the gates out of the blocks of ``excite.models`` first.

    Raises:
        ValueError: the network does not take the inputs.
    """
    try:
        return _run(_twin(model, tails, gates, meta=True), tree_map(_to_meta, inputs), tails)
    except Exception as on_meta:  # whatever a forward that looks at values raises
        try:
            return _run(_twin(model, tails, gates, meta=False), inputs, tails)
        except Exception as error:
            shapes = [tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
            # An example without data has only the first reason to give.
            reason = on_meta if any(t.is_meta for t in tree_leaves(inputs) if isinstance(t, Tensor)) else error
            raise UserError(f"{type(model).__name__} does not take an example of shape {shapes}: {reason}") from error


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _twin(model: nn.Module, tails: str, gates: bool, *, meta: bool) -> nn.Module:
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
            # Bytes are stated for what is asked for, whichever implementation the network would choose.
            module.impl = "fused" if tails != "unfused" and _can_fuse(module) else "reference"
            module.gate = module.gate if gates else None
    return twin


def _can_fuse(block: GatedBlock) -> bool:
    """Whether the fused tail has this block's norm and gate."""
    try:
        norm, gate = block.last_norm, block.tail_gate
    except NotImplementedError:  # a block without a tail
        return False
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return False
    return gate is None or isinstance(gate, Gate) and FUSED_DESCRIPTORS >= set(gate.descriptors)


def _run(twin: nn.Module, inputs: tuple[Any, ...], tails: str) -> Recorder:
    recorder = Recorder(twin, ahead=tails == "squeeze-ahead")
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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation executed, with the module that ran it.

    Args:
        model: the network that will run.
        ahead: put the squeeze of a fused tail before the convolution that feeds it, where that reads less.
    """

    def __init__(self, model: nn.Module, *, ahead: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[OpCost] = []
        self.uncounted: Counter[str] = Counter()
        self._path = [""]
        # By storage, so that views of a weight are known as such.
        self._parameters = {_storage(t) for t in (*model.parameters(), *model.buffers())}
        self._model = model if ahead else None
        self._convolutions: dict[int, tuple[Tensor, Any]] = {}

    def entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        """The hook that says that the module of this name begins."""

        def hook(module: nn.Module, args: Any) -> None:
            self._path.append(name)

        return hook

    def leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook that says that a module has ended."""
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
        written = self._maps(out[0] if family == "norm" else out)
        read = [] if name in _LIKE else self._maps((args, kwargs))
        cost = OpCost(
            op=str(packet),
            family=family,
            module=self._path[-1],
            operations=_operations(family, packet, args, kwargs or {}, out, read, written),
            bytes_read=sum(_elements(t) * t.element_size() for t in read),
            bytes_written=sum(_elements(t) * t.element_size() for t in written),
        )
        if self._model is not None and family == "conv":
            self._convolutions[_storage(out)] = (out, args)  # held, so that no other tensor takes its storage
        elif self._model is not None and name == "excite.tail_moments":
            replaced = self._squeezed_ahead(args[0], cost)
            if replaced is None:
                return out
            cost = replaced
        self.ops.append(cost)
        return out

    def _squeezed_ahead(self, x: Tensor, moments: OpCost) -> OpCost | None:
        """What takes the place of the pass ``moments`` over x, at inference: nothing where no gate wants its result."""
        assert self._model is not None
        block = self._model.get_submodule(self._path[-1])
        assert isinstance(block, GatedBlock)
        gate, norm = block.tail_gate, block.last_norm
        if norm.running_mean is None:
            return moments
        if gate is None:
            return None
        _, call = self._convolutions.get(_storage(x), (None, None))
        if call is None or gate.descriptors != ("mean",) or call[6]:  # call[6]: a transposed convolution
            return moments
        h, weight = call[0], call[1]
        # One strided sum over h a tap of the kernel; see ``excite.ops.squeeze_ahead``.
        taps, positions = math.prod(weight.shape[2:]), math.prod(x.shape[2:])
        read = taps * h.shape[0] * h.shape[1] * positions * h.element_size()
        if read >= moments.bytes_read:
            return moments
        written = x.shape[0] * x.shape[1] * x.element_size()
        return OpCost("excite.squeeze_ahead", "tail", moments.module, x.shape[0] * x.shape[1], read, written)

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
        # It loads PyTorch's compiler, which not every process bears.
        from torch.utils.flop_counter import flop_registry

        if packet in flop_registry:
            return int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2
        return int(args[0].numel())  # mv and dot, which torch has no formula for
    if family == "mean":
        return sum(_elements(t) for t in read)
    return sum(_elements(t) for t in written)
