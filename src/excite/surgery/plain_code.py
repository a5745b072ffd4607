"""Whether a forward is plain enough to be traced: its code is read, for what a trace cannot show.

A trace sees operations on tensors. What a forward writes on its module, what stands in a ``with``, gradients of
hand-written functions, choices made by chance or by the values of tensors, it does not see, or only as they were once.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

__all__ = ["why_not_plain"]

_STATEMENTS: dict[type[ast.AST], str] = {
    ast.With: "a with statement", ast.AsyncWith: "a with statement", ast.Try: "a try statement",
    ast.Global: "a global statement", ast.Nonlocal: "a nonlocal statement", ast.While: "a while loop",
    ast.Yield: "a yield", ast.YieldFrom: "a yield", ast.Await: "an await",
}  # fmt: skip
# Made by chance, of values, without a trace, or with one of their own.
_CALLS = frozenset(
    """rand randn randint randperm normal bernoulli rand_like randn_like random choice uniform tensor as_tensor
    from_numpy item tolist numpy apply checkpoint checkpoint_sequential setattr delattr register_buffer backward
    register_hook requires_grad_ set_grad_enabled no_grad enable_grad inference_mode""".split()
)
_DEEPEST = 4


def why_not_plain(module: nn.Module) -> str | None:
    """What in a module's forward, and in what this calls, a trace would not show; None if all is plain."""
    return _why_not(type(module).forward, module, 0, set())


def _why_not(function: Callable[..., Any], module: nn.Module, depth: int, seen: set[int]) -> str | None:
    if id(function) in seen:
        return None
    seen.add(id(function))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return "its code cannot be read"
    for node in ast.walk(tree):
        if (found := _STATEMENTS.get(type(node))) is not None:
            return f"there is {found} in its forward"
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            return f"its forward writes to {ast.unparse(node)}"
        if isinstance(node, ast.Call) and _name(node.func) in _CALLS:
            return f"its forward calls {ast.unparse(node.func)}"
    if depth < _DEEPEST:
        for called in _called(tree, function, module):
            if (reason := _why_not(called, module, depth + 1, seen)) is not None:
                return reason
    return None


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _called(tree: ast.AST, function: Callable[..., Any], module: nn.Module) -> Iterator[FunctionType]:
    """Functions written in Python that a function calls by name or as a method; PyTorch's own are taken as they are."""
    space = getattr(inspect.unwrap(function), "__globals__", {})
    # Usually "self".
    own = next((n.args.args[0].arg for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.args.args), "")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        target: Any = None
        if isinstance(node.func, ast.Name):
            target = space.get(node.func.id, getattr(builtins, node.func.id, None))
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            if node.func.value.id == own:
                target = getattr(module, node.func.attr, None)
            else:
                target = getattr(space.get(node.func.value.id), node.func.attr, None)
        target = target.__func__ if isinstance(target, MethodType) else target
        if isinstance(target, FunctionType) and not target.__module__.startswith("torch."):
            yield target
