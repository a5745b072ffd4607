"""Training and evaluating one network. Nothing is loaded before it is used: Lightning and torch take seconds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.training.config import EvalConfig, Recipe, TrainConfig
    from excite.training.evaluation import EvalResult, evaluate
    from excite.training.progress import Progress
    from excite.training.result import RunResult
    from excite.training.run import train

__all__ = ["EvalConfig", "EvalResult", "Progress", "Recipe", "RunResult", "TrainConfig", "evaluate", "train"]

_HOMES = {
    "EvalConfig": "config",
    "Recipe": "config",
    "TrainConfig": "config",
    "EvalResult": "evaluation",
    "evaluate": "evaluation",
    "Progress": "progress",
    "RunResult": "result",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
