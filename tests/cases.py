"""Every gate beside its formula, and the shapes each must stand: one row a gate and option, for all property tests.

A reference is written from the paper with sums and elementwise functions alone: no layer, convolution or matrix product
of torch, so that it shares nothing with the gate it judges. It takes the gate's parameters by name and u [N, C, *S] in
float64, and gives y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

Reference = Callable[[dict[str, Tensor], Tensor], Tensor]


# --- scalar functions, from their definitions ----------------------------------------------------------------------


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def hard_sigmoid(x: Tensor, slope: float = 1 / 6) -> Tensor:
    return (slope * x + 0.5).clamp(0, 1)


def tanh(x: Tensor) -> Tensor:
    return 1 - 2 / (torch.exp(2 * x) + 1)


def neutral(sigma: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The neutral form, 1 at zero: twice a function that is 1/2 there, one more than tanh, relu one to the left."""
    forms = {tanh: lambda x: 1 + tanh(x), relu: lambda x: relu(x + 1)}
    return forms.get(sigma, lambda x: 2 * sigma(x))


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def hard_swish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


# --- the three steps -----------------------------------------------------------------------------------------------


def mean(u: Tensor) -> Tensor:
    return u.flatten(2).sum(-1) / math.prod(u.shape[2:])


def largest(u: Tensor) -> Tensor:
    return u.flatten(2).sort(-1).values[..., -1]


def full(weight: Tensor, z: Tensor, bias: Tensor | None = None) -> Tensor:
    """W z + b, one sum a row."""
    product = (weight * z[:, None, :]).sum(-1)
    return product if bias is None else product + bias


def scaled(u: Tensor, s: Tensor) -> Tensor:
    return u * s[(...,) + (None,) * (u.dim() - 2)]


# --- one reference a gate ------------------------------------------------------------------------------------------


def se(p: dict[str, Tensor], u: Tensor, *, squeeze=mean, delta=relu, sigma=sigmoid) -> Tensor:
    """s = sigma(W2 delta(W1 z)): SE paper, Eq. 2-4."""
    hidden = delta(full(p["fc1.weight"], squeeze(u), p.get("fc1.bias")))
    return scaled(u, sigma(full(p["fc2.weight"], hidden, p.get("fc2.bias"))))


def no_squeeze(p: dict[str, Tensor], u: Tensor, *, sigma=sigmoid) -> Tensor:
    """The same at every position: SE paper, Sec. 7.1."""
    # On a map of one position the squeeze is the identity.
    positions = [se(p, u.flatten(2)[:, :, i : i + 1], sigma=sigma) for i in range(math.prod(u.shape[2:]))]
    return torch.cat(positions, dim=2).reshape(u.shape)


def eca(p: dict[str, Tensor], u: Tensor, *, sigma=sigmoid) -> Tensor:
    """s_i = sigma(sum_j w_j y_ij), y_ij the k neighbours of channel i: ECA paper, Sec. 3.2.2."""
    row = p["conv.weight"][0, 0]
    return eca_ns({"weight": row.expand(u.shape[1], -1)}, u, sigma=sigma)


def eca_ns(p: dict[str, Tensor], u: Tensor, *, sigma=sigmoid) -> Tensor:
    """s_i = sigma(sum_j w_ij y_ij): ECA paper, Eq. 7."""
    z, weight = mean(u), p["weight"]
    channels, k = weight.shape
    columns = []
    for i in range(channels):
        inside = [j for j in range(k) if 0 <= i + j - (k - 1) // 2 < channels]
        columns.append(sum(weight[i, j] * z[:, i + j - (k - 1) // 2] for j in inside))
    return scaled(u, sigma(torch.stack(columns, dim=1)))


def se_var1(p: dict[str, Tensor], u: Tensor) -> Tensor:
    return scaled(u, sigmoid(mean(u)))


def se_var2(p: dict[str, Tensor], u: Tensor, *, sigma=sigmoid) -> Tensor:
    return scaled(u, sigma(p["weight"] * mean(u)))


def se_var3(p: dict[str, Tensor], u: Tensor, *, sigma=sigmoid) -> Tensor:
    return scaled(u, sigma(full(p["fc.weight"], mean(u))))


def se_gc(p: dict[str, Tensor], u: Tensor, *, sigma=sigmoid) -> Tensor:
    """W is block-diagonal: row c holds weights for the channels of c's group alone. ECA paper, Sec. 3.2.2."""
    z, weight = mean(u), p["weight"]
    channels, size = weight.shape
    columns = [(weight[c] * z[:, c // size * size :][:, :size]).sum(-1) for c in range(channels)]
    return scaled(u, sigma(torch.stack(columns, dim=1)))


def ese(p: dict[str, Tensor], u: Tensor, *, sigma=hard_sigmoid) -> Tensor:
    """One full layer: CenterMask, Sec. 3.3."""
    return scaled(u, sigma(full(p["fc.weight"], mean(u), p["fc.bias"])))


# --- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateCase:
    """A gate as text, its reference, what C channels cost in parameters, and the only C it takes, if few."""

    gate: str
    reference: Reference
    parameters: Callable[[int], int]
    widths: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return self.gate

    def takes(self, channels: int) -> bool:
        return self.widths is None or channels in self.widths


def bottleneck(r: int = 16, *, bias: bool = True) -> Callable[[int], int]:
    return lambda c: 2 * c * max(c // r, 1) + (c + max(c // r, 1) if bias else 0)


def adaptive(c: int) -> int:
    """The odd number nearest to (log2(C) + 1) / 2, the larger of two: ECA paper, Eq. 12, by search."""
    t = (math.log2(c) + 1) / 2
    return min(range(1, 99, 2), key=lambda k: (abs(k - t), -k))


GATE_CASES = [
    GateCase("se", se, bottleneck()),
    GateCase("se(reduction=4)", se, bottleneck(4)),
    GateCase("se(bias=false)", se, bottleneck(bias=False)),
    GateCase("se(reduced_channels=3)", se, lambda c: 2 * c * 3 + c + 3),
    GateCase("se(reduction=2,round_to=8)", se, lambda c: 2 * c * (w := max(8, (c + 8) // 16 * 8)) + c + w),
    GateCase(
        "se(reduction=4,round_to=8,round_limit=0.9)",
        se,
        lambda c: 2 * c * (w := {13: 8, 64: 16}[c]) + c + w,
        widths=(13, 64),
    ),
    GateCase("se(min_reduced_channels=4)", se, lambda c: 2 * c * (w := max(4, c // 16)) + c + w),
    GateCase("se(activation=silu)", partial(se, delta=silu), bottleneck()),
    GateCase("se(activation=gelu)", partial(se, delta=gelu), bottleneck()),
    GateCase("se(activation=hard_swish)", partial(se, delta=hard_swish), bottleneck()),
    GateCase("se(gate_function=hard_sigmoid)", partial(se, sigma=hard_sigmoid), bottleneck()),
    GateCase(
        "se(gate_function=hard_sigmoid,hard_sigmoid_slope=0.2)",
        partial(se, sigma=partial(hard_sigmoid, slope=0.2)),
        bottleneck(),
    ),
    GateCase("se(gate_function=tanh)", partial(se, sigma=tanh), bottleneck()),
    GateCase("se(gate_function=relu)", partial(se, sigma=relu), bottleneck()),
    GateCase("se(descriptor=max)", partial(se, squeeze=largest), bottleneck()),
    GateCase("se(neutral=true)", partial(se, sigma=neutral(sigmoid)), bottleneck()),
    GateCase(
        "se(gate_function=hard_sigmoid,hard_sigmoid_slope=0.2,neutral=true)",
        partial(se, sigma=neutral(partial(hard_sigmoid, slope=0.2))),
        bottleneck(),
    ),
    GateCase("se(gate_function=tanh,neutral=true)", partial(se, sigma=neutral(tanh)), bottleneck()),
    # Without biases SE's only hidden unit may start dead, neutral or not; three do not.
    GateCase(
        "se(reduction=2,bias=false,gate_function=relu,neutral=true)",
        partial(se, sigma=neutral(relu)),
        bottleneck(2, bias=False),
    ),
    GateCase("eca", eca, adaptive),
    GateCase("eca(neutral=true)", partial(eca, sigma=neutral(sigmoid)), adaptive),
    GateCase("eca(kernel_size=7)", eca, lambda c: 7),
    GateCase("eca(gamma=1.0,beta=2.0)", eca, {1: 3, 6: 5, 7: 5, 8: 5, 13: 5, 16: 7, 32: 7, 64: 9}.__getitem__),
    GateCase("eca(kernel_size=released:mobilenetv2)", eca, lambda c: 1, widths=(16, 32, 64)),
    GateCase("eca(kernel_size=released:resnet18)", eca, lambda c: 3, widths=(64,)),
    GateCase("eca_ns", eca_ns, lambda c: c * adaptive(c)),
    GateCase("eca_ns(neutral=true)", partial(eca_ns, sigma=neutral(sigmoid)), lambda c: c * adaptive(c)),
    GateCase("eca_ns(kernel_size=3)", eca_ns, lambda c: 3 * c),
    GateCase("eca_ns(gamma=1.0,beta=0.0)", eca_ns, lambda c: c * {1: 1, 8: 3, 16: 5, 64: 7}[c], widths=(1, 8, 16, 64)),
    GateCase("ese", ese, lambda c: c * c + c),
    GateCase("ese(hard_sigmoid_slope=0.2)", partial(ese, sigma=partial(hard_sigmoid, slope=0.2)), lambda c: c * c + c),
    GateCase("ese(neutral=true)", partial(ese, sigma=neutral(hard_sigmoid)), lambda c: c * c + c),
    GateCase("ese(gate_function=sigmoid)", partial(ese, sigma=sigmoid), lambda c: c * c + c),
    GateCase("ese(gate_function=tanh)", partial(ese, sigma=tanh), lambda c: c * c + c),
    GateCase("ese(gate_function=relu)", partial(ese, sigma=relu), lambda c: c * c + c),
    GateCase("se_var1", se_var1, lambda c: 0),
    GateCase("se_var2", se_var2, lambda c: c),
    GateCase("se_var2(neutral=true)", partial(se_var2, sigma=neutral(sigmoid)), lambda c: c),
    GateCase("se_var3", se_var3, lambda c: c * c),
    GateCase("se_var3(neutral=true)", partial(se_var3, sigma=neutral(sigmoid)), lambda c: c * c),
    GateCase("se_gc", se_gc, lambda c: c * c // 16, widths=(16, 32, 64)),
    GateCase("se_gc(groups=1)", se_gc, lambda c: c * c),
    GateCase("se_gc(groups=2)", se_gc, lambda c: c * c // 2, widths=(6, 8, 16, 32, 64)),
    GateCase("se_gc(group_size=8)", se_gc, lambda c: 8 * c, widths=(8, 16, 32, 64)),
    GateCase("se_gc(groups=1,neutral=true)", partial(se_gc, sigma=neutral(sigmoid)), lambda c: c * c),
    GateCase("no_squeeze", no_squeeze, bottleneck()),
    GateCase("no_squeeze(neutral=true)", partial(no_squeeze, sigma=neutral(sigmoid)), bottleneck()),
    GateCase("no_squeeze(reduction=2,bias=false)", no_squeeze, bottleneck(2, bias=False)),
    GateCase("no_squeeze(reduced_channels=3)", no_squeeze, lambda c: 2 * c * 3 + c + 3),
]

# Maps [N, C, *S] that break careless gates.
SHAPES = {
    "usual": (2, 64, 3, 4),
    "one channel": (2, 1, 4, 4),
    "prime": (3, 13, 5, 3),
    "fewer than r": (2, 7, 2, 2),
    "one position": (2, 8, 1, 1),
    "batch of one": (1, 32, 3, 2),
    "empty batch": (0, 6, 2, 3),
    "rank 1": (2, 16, 9),
    "rank 3": (2, 16, 2, 3, 2),
}
