"""One forward pass written down: every operation, what it reads and writes, and which module ran it.

A recording is made of three kinds of things, each numbered in the order of execution:

    Value   what a tensor held after one operation; an in-place operation makes a new one of the same tensor
    Node    an operation: values in, values out, and the innermost module that ran it
    Call    one call of a module: values in, values out, and the nodes inside

The pass runs in eval mode on a copy without data (the meta device), or, where a forward looks at values, on a copy with
them. What PyTorch dispatches is recorded, so functional code, in-place operations and modules are seen alike.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from excite.errors import UserError

__all__ = ["Call", "Node", "Recording", "Value", "as_inputs", "record", "unwrapped"]


class _CannotCopy(UserError):
    """A network that ``copy.deepcopy`` refuses: no example makes it run."""


@dataclass
class Value:
    """What a tensor held between two operations.

    Attributes:
        index: its number.
        shape: of the tensor.
        node: the node that made it; None for inputs, parameters and buffers.
        weight: whether it is a parameter, a buffer, a constant, or computed from these alone.
        consumers: the nodes that read it.
        ancestors: the values it is computed from and itself, a set of indices as the bits of an integer.
    """

    index: int
    shape: tuple[int, ...]
    node: int | None
    weight: bool
    ancestors: int
    consumers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Node:
    """An operation.

    Attributes:
        index: its number.
        op: its name in aten, without namespace, overload and the mark of in-place forms; with the namespace for others.
        module: dotted name of the innermost module that ran it; "" is the network itself.
        inputs: values read, in the order of its arguments; numbers are left out.
        output: the value written; of several, the first.
        kernel: sizes of a convolution's kernel, else empty.
        groups: of a convolution, else 1.
        transposed: whether it is a transposed convolution.
        axes: of an operation that moves axes, which axis of its input each of its output's is; else empty.
    """

    index: int
    op: str
    module: str
    inputs: tuple[int, ...]
    output: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    axes: tuple[int, ...] = ()
    transposed: bool = False


@dataclass
class Call:
    """One call of a module.

    Attributes:
        module: its dotted name.
        number: 0 for its first call.
        inputs: the values of its positional tensor arguments, and of those in lists; keyword arguments are not seen.
        outputs: the values it returned.
        takes_one: whether it was given one tensor, positional, and nothing else that way.
        returns_one: whether it returned one tensor, by itself.
        start, end: its nodes are those from ``start`` up to, not including, ``end``.
        depth: how many calls it runs in.
    """

    module: str
    number: int
    inputs: tuple[int, ...]
    start: int
    depth: int
    outputs: tuple[int, ...] = ()
    takes_one: bool = False
    returns_one: bool = False
    end: int = -1


@dataclass(frozen=True)
class Recording:
    """A network's forward pass.

    Attributes:
        values, nodes: in the order of execution.
        calls: in the order in which they began.
        has_data: whether it ran with data, because it could not without.
    """

    values: list[Value]
    nodes: list[Node]
    calls: list[Call]
    has_data: bool

    def calls_of(self, module: str) -> list[Call]:
        """The calls of the module of this dotted name."""
        return [call for call in self.calls if call.module == module]


def record(model: nn.Module, inputs: Sequence[Any]) -> Recording:
    """The forward pass of ``model`` on ``inputs`` in eval mode.

    Args:
        model: any network; it is left as it is.
        inputs: its positional inputs.

    Raises:
        ValueError: the network does not take the inputs, cannot be copied, or is compiled to TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"{type(model).__name__} is scripted, and cannot be looked into: give the network it was made of"
        )
    inputs = tuple(inputs)
    try:
        return _run(_twin(model, meta=True), tree_map(_to_meta, inputs), has_data=False)
    except _CannotCopy:
        raise
    except Exception as on_meta:  # whatever a forward that looks at values raises
        tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        if any(t.is_meta for t in (*tensors, *model.parameters(), *model.buffers())):
            raise UserError(
                f"{type(model).__name__} does not take an example of shape {shapes}: {on_meta}"
            ) from on_meta
        try:
            return _run(_twin(model, meta=False), inputs, has_data=True)
        except Exception as error:
            raise UserError(f"{type(model).__name__} does not take an example of shape {shapes}: {error}") from error


def as_inputs(example: Any) -> tuple[Any, ...]:
    """A network's positional inputs, from a tensor, or from a tuple or list of them.

    Raises:
        ValueError: anything else.
    """
    if isinstance(example, Tensor):
        return (example,)
    if not isinstance(example, tuple | list):
        kind = type(example).__name__
        raise UserError(f"example is a {kind}: give a tensor, or a tuple of the network's positional inputs")
    return tuple(example)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what ``torch.compile`` returned; any other as it is."""
    inner = None if isinstance(model, torch.jit.ScriptModule) else model._modules.get("_orig_mod")
    return model if inner is None else inner


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _twin(model: nn.Module, *, meta: bool) -> nn.Module:
    """A copy in eval mode: with tensors without data, or with the model's own parameters and copies of its buffers."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False) if meta else parameter
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta") if meta else buffer.clone()
    for tensor in (leaf for module in model.modules() for leaf in tree_leaves(vars(module))):
        # Kept from an earlier pass with its history, as old weight norm and pruning do: deepcopy refuses these.
        if isinstance(tensor, Tensor) and tensor.grad_fn is not None and id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().to("meta") if meta else tensor.detach().clone()
    try:
        twin = copy.deepcopy(model, memo).eval()
    except Exception as error:  # whatever an attribute that cannot be copied raises
        raise _CannotCopy(f"{type(model).__name__} is run on a copy, and cannot be copied: {error}") from error
    for module in twin.modules():
        module._compiled_call_impl = None
    return twin


def _run(twin: nn.Module, inputs: Sequence[Any], *, has_data: bool) -> Recording:
    recorder = _Recorder(twin, inputs)
    with _hooked(twin, recorder), torch.compiler.set_stance("force_eager"), torch.no_grad(), recorder:
        twin(*inputs)
    return Recording(recorder.values, recorder.nodes, recorder.calls, has_data)


@contextmanager
def _hooked(twin: nn.Module, recorder: _Recorder) -> Iterator[None]:
    handles = []
    for name, module in twin.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # opaque: its operations count to the module around it
        # First in and last out, so that what other hooks do counts to the module they hang on.
        handles.append(module.register_forward_pre_hook(recorder.entering(name), prepend=True))
        handles.append(module.register_forward_hook(recorder.leaving, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self._counts: dict[str, int] = {}
        self._open: list[Call] = []
        self._path = [""]
        self._of: dict[int, int] = {}  # id of a tensor -> its value now
        self._views: dict[int, dict[int, torch.Size]] = {}  # storage -> ids of the tensors on it, and their shapes
        self._held: list[Tensor] = []  # an id is a tensor's own while the tensor lives
        for weight in (*model.parameters(), *model.buffers()):
            self._add(weight, None, 0, weight=True)
        for tensor in tree_leaves(tuple(inputs)):
            if isinstance(tensor, Tensor):
                self._add(tensor, None, 0, weight=False)

    def entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        """The hook that says that the module of this name begins."""

        def hook(module: nn.Module, args: Any) -> None:
            number = self._counts.get(name, 0)
            self._counts[name] = number + 1
            call = Call(name, number, self._known(args), len(self.nodes), len(self._open))
            call.takes_one = len(args) == 1 and isinstance(args[0], Tensor)
            self.calls.append(call)
            self._open.append(call)
            self._path.append(name)

        return hook

    def leaving(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The hook that says that a module has ended."""
        call = self._open.pop()
        call.returns_one = isinstance(output, Tensor)
        if call.takes_one and call.returns_one and self._known(output) == call.inputs:
            # A module that gives back what it was given, as drop path does here: who reads its output is to be seen.
            output = torch.ops.aten.alias(output)
        self._path.pop()
        call.outputs = self._known(output)
        call.end = len(self.nodes)
        return output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = self._known((args, kwargs))
        out = func(*args, **kwargs)
        written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not written:
            return out
        packet = str(getattr(func, "_overloadpacket", func))
        name = packet.removeprefix("aten.").removesuffix("_")
        index = len(self.nodes)
        ancestors = 0
        for value in read:
            self.values[value].consumers.append(index)
            ancestors |= self.values[value].ancestors
        weight = all(self.values[value].weight for value in read)
        outputs = [self._add(tensor, index, ancestors, weight=weight) for tensor in written]
        kernel: tuple[int, ...] = ()
        groups, transposed = 1, False
        if name in ("convolution", "_convolution"):
            kernel, groups, transposed = tuple(args[1].shape[2:]), args[8], args[6]
        axes = _moved(name, args)
        self.nodes.append(Node(index, name, self._path[-1], read, outputs[0], kernel, groups, axes, transposed))
        return out

    def _add(self, tensor: Tensor, node: int | None, ancestors: int, *, weight: bool) -> int:
        """A new value; if its tensor was known, it was written, and all tensors on the same memory hold it from now."""
        index = len(self.values)
        views = self._views.setdefault(_storage(tensor), {})
        shape = tensor.shape
        if id(tensor) in self._of:
            # Of a whole of which a part was written, the shape is the whole's.
            shape = max((shape, *views.values()), key=math.prod)
            self._of.update(dict.fromkeys(views, index))
        else:
            self._held.append(tensor)
            views[id(tensor)] = shape
        self.values.append(Value(index, tuple(shape), node, weight, ancestors | 1 << index))
        self._of[id(tensor)] = index
        return index

    def _known(self, tree: Any) -> tuple[int, ...]:
        found = []
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                if id(tensor) not in self._of:  # made outside of what is dispatched, as torch.tensor does
                    self._add(tensor, None, 0, weight=True)
                found.append(self._of[id(tensor)])
        return tuple(found)


def _moved(name: str, args: Any) -> tuple[int, ...]:
    """The order of axes that ``permute``, ``transpose`` or ``t`` makes."""
    if name not in ("permute", "transpose", "t"):
        return ()
    n = args[0].dim()
    if name == "permute":
        return tuple(axis % n for axis in args[1])
    order = list(range(n))
    a, b = (axis % n for axis in args[1:3]) if name == "transpose" else (0, n - 1)
    order[a], order[b] = order[b], order[a]
    return tuple(order)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
