"""Checkpoints of other zoos: one file a zoo, its names as data."""

from __future__ import annotations

from excite.weights.detect import Detected, detect
from excite.weights.load import load_weights
from excite.weights.report import LoadReport

__all__ = ["Detected", "LoadReport", "detect", "load_weights"]
