"""``fuse_training_``: the tails of any network become one pass each way over its widest maps, in training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from excite.errors import UserError
from excite.graph import View, as_inputs, record, unwrapped
from excite.models.base import GatedBlock
from excite.surgery.edit import check_kind
from excite.surgery.sites import Refusal, Site, Survey, levels_of, stage_of
from excite.surgery.tail_graph import NotPlain, TailForward, TracedTails, traced_tails
from excite.surgery.tails import is_own_norm

__all__ = ["fuse_training_", "survey_tails"]

# Sums in another order round differently.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def fuse_training_(model: nn.Module, example: Tensor | Sequence[Any]) -> list[Site]:
    """Have a network's blocks compute norm, gate, addition and activation as one tail while they train, in place.

    For networks of other libraries (timm, torchvision, your own) and attached gates; networks of ``excite`` have such
    tails as they are. Parameters, keys of the state dict, classes and outputs stay, and so does what blocks do in eval
    mode and under ``torch.compile``. ``detach_`` undoes it, and takes attached gates out as well.

    A block gets tails if its code is plain (no ``with``, nothing written on the module, nothing drawn or looked at in
    Python) and if, on a copy in float64, outputs, gradients, statistics and inputs afterwards are the same. A block
    that is changed later, in its modules or plain attributes, runs its old forward; this function may be called again.
    There is no second derivative.

    Args:
        model: any network.
        example: an input it takes, or a tuple of its positional inputs, with data; for norms at least two images.

    Returns:
        The norms whose tails are one now, as sites, in the order of execution.

    Raises:
        ValueError: no tail was found, with what is there instead; an example that the network does not take in training
            mode; a scripted or wrapped network.

    Source: see ``excite.ops.tail``.
    """
    model = unwrapped(model)
    check_kind(model)
    found, tails = _surveyed(model, as_inputs(example))
    if not found.sites:
        raise UserError(f"{type(model).__name__}: {_why_none(model, found)}")
    for name, traced in tails.items():
        block = model.get_submodule(name)
        block.__dict__["forward"] = TailForward(block, traced)
    return list(found.sites)


def survey_tails(model: nn.Module, example: Tensor | Sequence[Any]) -> Survey:
    """What ``fuse_training_`` would find, and the blocks with residual additions that it would leave, with reasons.

    Args:
        model: any network; it is left as it is.
        example: as for ``fuse_training_``.

    Raises:
        ValueError: as ``fuse_training_``, but nothing found is no error here.
    """
    return _surveyed(unwrapped(model), as_inputs(example))[0]


def _surveyed(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Survey, dict[str, TracedTails]]:
    """What was found, and by block what it would run."""
    view = View(record(model, inputs), model)
    checks = _checked(model, inputs, {join.module for join in view.joins})
    sites, refused, found = [], [], {}
    given = {call.module: call.inputs[0] for call in reversed(view.calls) if call.inputs}
    levels = levels_of(view)
    for name, check in checks.items():
        if check.reason is None and check.traced is not None:
            check.traced.force(False)
            found[name] = check.traced
            for tail in check.traced.tails:
                norm = f"{name}.{tail.norm}" if name else tail.norm
                stage = sum(level >= math.prod(tail.shape[2:]) for level in levels)
                sites.append(Site(norm, "out", tail.shape[1], tail.shape[2:], stage, name))
        else:
            at = given.get(name)
            shape = () if at is None else view.values[at].shape[1:]
            stage = 0 if at is None else stage_of(view, at, levels)
            refused.append(Refusal(name, shape, stage, check.reason or ""))
    return Survey("tails", len(view.joins), tuple(sites), tuple(refused)), found


class _Check:
    """Stands in for a block's forward on a copy, and compares it with the one that has tails.

    Attributes:
        traced: the latter; None where there is none.
        reason: why the block has to stay as it is; None once both gave the same, each time.
    """

    def __init__(self, block: nn.Module, traced: TracedTails | None, reason: str) -> None:
        self.block, self.traced = block, traced
        self.reason: str | None = reason
        self.runs = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.traced is not None
        (leaves, own), (others_leaves, others) = (_fresh((args, kwargs)) for _ in range(2))
        buffers = {name: buffer.clone() for name, buffer in self.block.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            expected = type(self.block).forward(self.block, *own[0], **own[1])
        result = _detached(expected)
        # Later calls may only find more.
        if self.runs == 0 or self.reason is None:
            after = [tree_map(_copy, t) for t in (expected, own, dict(self.block.named_buffers()))]
            for name, buffer in self.block.named_buffers():
                buffer.data.copy_(buffers[name])
            try:
                theirs = [after[0], _gradients(self.block, expected, leaves), *after[1:]]
                got = self.traced.forward(self.block, *others[0], **others[1])
                ours = [got, _gradients(self.block, got, others_leaves), others, dict(self.block.named_buffers())]
                self.reason = _difference(ours, theirs)
            except Exception as error:  # whatever code that was traced for other arguments does
                self.reason = f"traced, it does not run: {_first_line(error)}"
        self.runs += 1
        return result


def _gradients(block: nn.Module, outputs: Any, inputs: Any) -> list[Tensor]:
    """Gradients of a fixed sum of what a block returned, to its inputs and its parameters."""
    ends = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
    to = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.requires_grad]
    to += [p for p in block.parameters() if p.requires_grad]
    if not ends or not to:
        return []
    weights = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype, device=t.device).reshape(t.shape) for t in ends]
    found = torch.autograd.grad(ends, to, weights, allow_unused=True)
    return [t.new_zeros(()) if g is None else g for t, g in zip(to, found, strict=True)]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _fresh(inputs: Any) -> tuple[Any, Any]:
    """Copies that gradients can be asked of, and what is handed on: copies of these, which may be written over."""
    leaves = tree_map(lambda t: _copy(t).requires_grad_(t.is_floating_point()) if isinstance(t, Tensor) else t, inputs)
    return leaves, tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, leaves)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _detached(value: Any) -> Any:
    return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, value)


def _difference(got: list[Any], expected: list[Any]) -> str | None:
    """What differs, in a sentence: outputs, gradients, inputs afterwards, buffers."""
    for what, one, other in zip(_COMPARED, got, expected, strict=True):
        ours, theirs = tree_leaves(one), tree_leaves(other)
        if len(ours) != len(theirs):
            return "its forward returns something else when it is traced"
        largest = max((float(t.detach().abs().max()) for t in theirs if _counts(t)), default=0.0)
        for mine, yours in zip(ours, theirs, strict=True):
            if not _counts(yours):
                continue
            if mine.shape != yours.shape:
                return f"traced, its {what} have other shapes"
            # Gradients that are zero but for rounding are measured by the largest.
            scale = largest if what == "gradients" else float(yours.detach().abs().max())
            apart = float((mine - yours).detach().abs().max()) / max(scale, torch.finfo(yours.dtype).tiny)
            if not apart <= _TOLERANCE.get(yours.dtype, 0.0):
                return f"traced, its {what} are not the same ({apart:.1e} of the largest number)"
    return None


_COMPARED = ("outputs", "gradients", "inputs afterwards", "buffers")


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _checked(model: nn.Module, inputs: tuple[Any, ...], adding: set[str]) -> dict[str, _Check]:
    """Every block compared with itself on a copy: in float64, where that runs; else in the dtype it has."""
    error: Exception | None = None
    for dtype in (torch.float64, None):
        twin = _twin(model, dtype)
        checks = _checks(twin, adding)
        given = tree_map(lambda t: t.to(dtype) if dtype and _counts(t) else t, inputs)  # noqa: B023
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                twin(*given)
        except Exception as raised:  # whatever a forward does
            error = raised
            continue
        return checks
    assert error is not None
    said = _first_line(error)
    raise UserError(f"{type(model).__name__} does not take the example in training mode: {said}") from error


def _twin(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy in training mode, its norms drawn: a norm whose weight is zero would hide what is before it."""
    try:
        twin = copy.deepcopy(model).train()
    except Exception as error:
        raise UserError(f"{type(model).__name__} cannot be copied: {_first_line(error)}") from error
    twin = twin if dtype is None else twin.to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in filter(is_own_norm, twin.modules()):
            for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5)):
                if isinstance(drawn := getattr(norm, name, None), Tensor):
                    drawn.copy_(torch.empty(drawn.shape).uniform_(low, high, generator=generator))
    return twin


def _checks(twin: nn.Module, adding: set[str]) -> dict[str, _Check]:
    """Checks put on every block that may have tails, and on those that add and cannot be traced."""
    checks: dict[str, _Check] = {}
    seen: set[int] = set()
    # The network itself last: it is a block only where it has none.
    for name, block in sorted(twin.named_modules(), key=lambda item: item[0] == ""):
        if id(block) in seen or not _may_have_tails(block) or (not name and checks):
            continue
        seen.add(id(block))
        block.__dict__.pop("forward", None)
        try:
            traced = traced_tails(block)
        except Exception as error:  # whatever a forward does when it is traced
            if name in adding or isinstance(error, NotPlain):
                why = "" if isinstance(error, NotPlain) else "its forward cannot be traced: "
                checks[name] = _Check(block, None, why + _first_line(error))
            continue
        if traced is not None:
            traced.force(True)
            seen |= {id(block.get_submodule(opened)) for opened in traced.opened}
            checks[name] = _Check(block, traced, "the example does not run it")
            block.__dict__["forward"] = checks[name]
    return checks


def _may_have_tails(block: nn.Module) -> bool:
    own = block.__dict__.get("forward")
    if isinstance(block, GatedBlock | torch.jit.ScriptModule) or (isinstance(own, TailForward) and own.fits):
        return False
    if own is not None and not isinstance(own, TailForward):
        return False
    return any(True for _ in block.children()) and any(map(is_own_norm, block.modules()))


def _why_none(model: nn.Module, found: Survey) -> str:
    if any(isinstance(m, GatedBlock) for m in model.modules()):
        return "its blocks are excite's own and have their tails; impl= of create_model chooses how they are computed"
    if any(isinstance(m.__dict__.get("forward"), TailForward) for m in model.modules()):
        return "its tails are one already; detach_ undoes it"
    if found.refused:
        return "; ".join(f"{r.label}: {r.reason}" for r in found.refused[:3])
    if found.joins == 0:
        return "it has no residual additions"
    return "no batch norm stands before an addition: a tail is act(gate(norm(x)) + shortcut)"
