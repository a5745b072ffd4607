"""Tensors in, tensors out: what gates and tails are made of."""

from excite.ops.rescale import rescale
from excite.ops.squeeze import DESCRIPTORS, squeeze
from excite.ops.squeeze_ahead import squeeze_ahead
from excite.ops.tail import TAIL_IMPLS, choose_tail_impl, tail

__all__ = ["DESCRIPTORS", "TAIL_IMPLS", "choose_tail_impl", "rescale", "squeeze", "squeeze_ahead", "tail"]
