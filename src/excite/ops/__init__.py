"""Tensors in, tensors out: what gates and tails are made of."""

from excite.ops.rescale import rescale
from excite.ops.squeeze import DESCRIPTORS, squeeze

__all__ = ["DESCRIPTORS", "rescale", "squeeze"]
