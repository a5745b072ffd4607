"""What one forward pass costs: parameters, multiply-adds, and bytes of feature maps read and written.

Counted by running the network once on the meta device, where tensors have shapes and no data, and looking at every
operation PyTorch executes. Operations are told apart by family, so that layers need not be known by name; an operation
of no family is listed as uncounted rather than taken for free.

Bytes moved are those of an unfused network, unless asked otherwise: every operation reads its feature maps and writes
its result. They explain why a gate of a few thousand multiply-adds takes measurable time: it walks over the whole map
three times. ``tails`` says what the tails of residual branches move when they are fused.
"""

from excite.cost.conventions import CONVENTIONS, ECA_COUNTER, SENET, SENET_ALL, Convention
from excite.cost.count import TAILS, Cost, count_cost
from excite.cost.usage import OpCost, Usage

__all__ = [
    "CONVENTIONS",
    "ECA_COUNTER",
    "SENET",
    "SENET_ALL",
    "TAILS",
    "Convention",
    "Cost",
    "OpCost",
    "Usage",
    "count_cost",
]
