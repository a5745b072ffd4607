"""Comparing gates on equal terms. Nothing is loaded before it is used: torch and Lightning take seconds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.experiment.comparison import Comparison, GateResult, Measured, Run, read_comparison
    from excite.experiment.config import CompareConfig
    from excite.experiment.images import ImageLook
    from excite.experiment.run import compare
    from excite.experiment.statistics import Difference, Summary

__all__ = [
    "CompareConfig",
    "Comparison",
    "Difference",
    "GateResult",
    "ImageLook",
    "Measured",
    "Run",
    "Summary",
    "compare",
    "read_comparison",
]

_HOMES = {
    "CompareConfig": "config",
    "Comparison": "comparison",
    "Difference": "statistics",
    "GateResult": "comparison",
    "ImageLook": "images",
    "Measured": "comparison",
    "Run": "comparison",
    "Summary": "statistics",
    "compare": "run",
    "read_comparison": "comparison",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
