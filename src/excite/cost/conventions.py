"""What counts as a multiply-add: the two papers disagree, so each has its convention, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CONVENTIONS", "ECA_COUNTER", "SENET", "SENET_ALL", "Convention"]


@dataclass(frozen=True)
class Convention:
    """Which operations count as multiply-adds, and how many make a million.

    Args:
        name: whose convention it is.
        weights: multiply-adds for one operation of a family ("conv", "linear", "norm", "mean", "max", "add",
            "multiply", "activation", "copy"); families left out count nothing.
        binary: a million is 2^20 and a thousand million 2^30, in print; else 10^6 and 10^9.
    """

    name: str
    weights: Mapping[str, float]
    binary: bool = False

    @property
    def mega(self) -> int:
        """What it prints as one million."""
        return 2**20 if self.binary else 10**6

    @property
    def giga(self) -> int:
        """What it prints as one thousand million."""
        return 2**30 if self.binary else 10**9


# The SE paper's, found by its printed figures: convolutions, fully connected layers and whatever sums over or adds
# maps, so that a gate costs its layers and one walk over the map. Norms fold into convolutions at inference;
# activations, maxima and copies multiply nothing. No other choice of weights meets more rows (docs/networks.md).
SENET = Convention("SENet", {"conv": 1, "linear": 1, "add": 1, "mean": 1})

# The same with the elementwise products, the gate's rescaling above all: both walks of a gate.
SENET_ALL = Convention("SENet, rescaling too", {**SENET.weights, "multiply": 1})

# The counter that the ECA paper's figures come from: a fully connected layer twice, a norm's element four times, a
# ReLU's once, no addition, no pool; in binary thousands of millions.
ECA_COUNTER = Convention("ECA", {"conv": 1, "linear": 2, "norm": 4, "activation": 1}, binary=True)

CONVENTIONS: dict[str, Convention] = {"senet": SENET, "senet-all": SENET_ALL, "eca": ECA_COUNTER}
