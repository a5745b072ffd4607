"""``fuse_training_``: the tails of any network become one pass each way over its widest maps, in training."""

from __future__ import annotations

import copy
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
from excite.surgery.tail_graph import TailForward, TracedTails, traced_tails
from excite.surgery.tails import is_own_norm

__all__ = ["fuse_training_", "survey_tails"]

# Sums in another order round differently.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def fuse_training_(model: nn.Module, example: Tensor | Sequence[Any]) -> list[Site]:
    """Have a network's blocks compute norm, gate, addition and activation as one tail while they train, in place.

    For networks of other libraries (timm, torchvision, your own) and attached gates; networks of ``excite`` have such
    tails as they are. Parameters, keys of the state dict, classes and outputs stay, and so does what blocks do in eval
    mode and under ``torch.compile``. ``detach_`` undoes it.

    Each block is first compared on a copy: in training mode its output must be what it was.

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
    done = {n for n, m in model.named_modules() if isinstance(m.__dict__.get("forward"), TailForward)}
    twin = copy.deepcopy(model).train()
    checks = _checks(twin, done, {join.module for join in view.joins})
    _run(twin, inputs)
    sites, refused, found = [], [], {}
    given = {call.module: call.inputs[0] for call in reversed(view.calls) if call.inputs}
    levels = levels_of(view)
    for name, check in checks.items():
        if check.reason is None and check.traced is not None:
            check.traced.force(False)
            found[name] = check.traced
            for tail in check.traced.tails:
                norm = f"{name}.{tail.norm}"
                shape = view.values[given[norm]].shape
                sites.append(Site(norm, "out", shape[1], shape[2:], stage_of(view, given[norm], levels), name))
        else:
            shape, stage = (), 0
            if name in given:
                shape, stage = view.values[given[name]].shape, stage_of(view, given[name], levels)
            refused.append(Refusal(name, shape[1:], stage, check.reason or ""))
    order = {call.module: call.start for call in reversed(view.calls)}
    sites.sort(key=lambda site: order[site.module])
    return Survey("tails", len(view.joins), tuple(sites), tuple(refused)), found


class _Check:
    """Stands in for a block's forward on the copy, and compares it with the one that has tails.

    Attributes:
        traced: the latter; None where there is none.
        reason: why the block has to stay as it is; None once both gave the same.
    """

    def __init__(self, block: nn.Module, traced: TracedTails | None, reason: str) -> None:
        self.block, self.traced = block, traced
        self.reason: str | None = reason

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Either may write over its input.
        own, others = (tree_map(_cloned, (args, kwargs)) for _ in range(2))
        with torch.random.fork_rng(devices=[]):
            expected = type(self.block).forward(self.block, *own[0], **own[1])
        assert self.traced is not None
        try:
            self.reason = _difference(self.traced.forward(self.block, *others[0], **others[1]), expected)
        except Exception as error:  # whatever code that was traced for other arguments does
            self.reason = f"traced, it does not run: {_first_line(error)}"
        return expected


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _difference(got: Any, expected: Any) -> str | None:
    ours, theirs = tree_leaves(got), tree_leaves(expected)
    if len(ours) != len(theirs):
        return "its forward returns something else when it is traced"
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(other, Tensor) or not other.is_floating_point():
            continue
        apart = float((one - other).abs().max() / other.abs().max().clamp_min(torch.finfo(other.dtype).tiny))
        if not apart <= _TOLERANCE.get(other.dtype, 0.0):
            return f"traced, it computes something else ({apart:.1e} of the largest number)"
    return None


def _checks(twin: nn.Module, done: set[str], adding: set[str]) -> dict[str, _Check]:
    """Checks put on every block that may have tails, and on those that add and cannot be traced."""
    checks: dict[str, _Check] = {}
    seen: set[int] = set()
    for name, block in twin.named_modules():
        within = [*done, *(n for n, check in checks.items() if check.traced is not None)]
        inside = any(name.startswith(f"{n}.") for n in within)
        if not name or inside or name in done or id(block) in seen or not _may_have_tails(block):
            continue
        seen.add(id(block))
        try:
            traced = traced_tails(block)
        except Exception as error:  # whatever a forward does when it is traced
            if name in adding:
                checks[name] = _Check(block, None, f"its forward cannot be traced: {_first_line(error)}")
            continue
        if traced is not None:
            traced.force(True)
            checks[name] = _Check(block, traced, "the example does not run it")
            block.__dict__["forward"] = checks[name]
    return checks


def _may_have_tails(block: nn.Module) -> bool:
    if isinstance(block, GatedBlock | torch.jit.ScriptModule) or "forward" in block.__dict__:
        return False
    return any(True for _ in block.children()) and any(map(is_own_norm, block.modules()))


def _run(twin: nn.Module, inputs: tuple[Any, ...]) -> None:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            twin(*inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{type(twin).__name__} does not take the example in training mode: {error}") from error


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
