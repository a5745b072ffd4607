"""Layers of fused networks: a convolution with all that follows it, one pass over the map where the machine has one.

On CPUs oneDNN convolves, adds and activates in one primitive; PyTorch has it as an operation of its own. Elsewhere,
and while a graph is compiled or exported (a compiler fuses by itself), the same is computed by PyTorch's ordinary
operations. These layers are for inference: where a gradient is asked for, the ordinary operations are taken as well.
"""

from __future__ import annotations

import math
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.deploy.activations import ACTIVATION_NONE, Activation
from excite.deploy.scales import ChannelScale, ordinary
from excite.gates import SE, Gate
from excite.ops import native, rescale
from excite.ops.pointwise import in_panels, pointwise

__all__ = ["ConvOfGated", "FusedConv", "GateInPlace", "GatedConv"]


def _identity(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Changes whenever a tensor does; writes to inference tensors are not seen."""
    given = [t for t in tensors if t is not None]
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in given)


Conv = Union[nn.Conv1d, nn.Conv2d, nn.Conv3d, "FusedConv"]


class FusedConv(nn.Module):
    """act(conv(x) + other), the convolution with its norm folded in.

    Args:
        conv: a convolution of 1 to 3 axes, padded with zeros; its weights are taken over, and its activation.

    Shape:
        - x: [N, C_in, *S]
        - other: [N, C_out, *S'], or None for nothing to add
        - output: [N, C_out, *S']

    Attributes:
        act: what is applied last.
        in_place: whether ``other`` may be written over, because nobody reads it afterwards.
        pointwise: whether it is a whole 1x1 convolution that keeps every position.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", bias)
        self.stride, self.padding, self.dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self.groups = conv.groups
        self.act: Activation = conv.act if isinstance(conv, FusedConv) else ACTIVATION_NONE
        self.in_place = False
        # Each position of the input has one of the output.
        one = self.weight[0, 0].numel() == 1 and self.groups == 1
        self.pointwise = one and set(self.stride) == {1} and not any(self.padding)
        self._packed: tuple[Any, Tensor] | None = None
        self._panels: tuple[Any, Tensor | None, Tensor] | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The output, always fresh unless ``in_place``."""
        return self._convolved(x, other, self.act)

    def _convolved(self, x: Tensor, other: Tensor | None, act: Activation) -> Tensor:
        if self._in_one_pass(x, other):
            fused = self._by_pointwise(x, other, act)
            return self._by_onednn(x, other, act) if fused is None else fused
        conv: Any = (F.conv1d, F.conv2d, F.conv3d)[self.weight.dim() - 3]
        y: Tensor = conv(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if ordinary(x, other, self.weight):
            return act(y if other is None else y + other)
        return act(y if other is None else y.add_(other), inplace=True)

    def _in_one_pass(self, x: Tensor, other: Tensor | None) -> bool:
        return (
            x.device.type == "cpu"
            and x.dim() == 4
            and x.dtype == self.weight.dtype
            and x.dtype in (torch.float32, torch.bfloat16)
            and x.numel() > 0
            and (other is None or other.dtype == x.dtype)
            and bool(torch.backends.mkldnn.enabled)
            and not ordinary(x, other, self.weight)
        )

    def _by_pointwise(
        self,
        x: Tensor,
        other: Tensor | None,
        act: Activation,
        s: Tensor | None = None,
        taken: Tensor | None = None,
    ) -> Tensor | None:
        """act(s (W (taken x) + b) + other) by the compiled 1x1 convolution; None where it is not to be had."""
        told = act.pointwise
        if not self.pointwise or told is None or x.dtype != torch.float32:
            return None
        key = _identity(self.weight, self.bias)
        if self._panels is None or self._panels[0] != key:
            bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias.detach()
            self._panels = (key, in_panels(self.weight.detach().flatten(1)), bias)
        _, panels, bias = self._panels
        if panels is None:
            return None
        return pointwise(x, panels, bias, taken=taken, scale=s, shortcut=other, act=told, in_place=self.in_place)

    def _by_onednn(self, x: Tensor, other: Tensor | None, act: Activation) -> Tensor:
        name, numbers, form = act.onednn
        where = (self._weight_for(x), self.bias, self.padding, self.stride, self.dilation, self.groups)
        if other is None:
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *where, name, numbers, form)
            return y
        # After an addition PyTorch's operation knows ReLU alone.
        post: tuple[Any, ...] = ("add", 1.0, "relu" if name == "relu" else None, [], "")
        if self.in_place:
            y = torch.ops.mkldnn._convolution_pointwise_(other, x, *where, *post)
        else:
            y = torch.ops.mkldnn._convolution_pointwise(x, other, *where, *post)
        return y if name == "relu" else act(y, inplace=True)

    def _weight_for(self, x: Tensor) -> Tensor:
        """The weight in the order that oneDNN wants it in for maps of this shape, kept until the shape changes."""
        key = (x.shape, *_identity(self.weight))
        if self._packed is None or self._packed[0] != key:
            # Channels-last first: of a weight of one position alone no strides tell the layout of the maps.
            weight = self.weight.detach().contiguous(memory_format=torch.channels_last)
            sizes = (self.padding, self.stride, self.dilation, self.groups, list(x.shape))
            self._packed = (key, torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes))
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        # Weights in other orders are this machine's own; oneDNN's cannot be written.
        return {**self.__dict__, "_packed": None, "_panels": None}

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        out_channels, in_channels, *kernel = self.weight.shape
        return f"{in_channels * self.groups}, {out_channels}, kernel={tuple(kernel)}, act={self.act.name}"


class GatedConv(FusedConv):
    """act(gate(conv(x)) + other), with the squeeze ahead of the convolution where that reads less.

    The mean over positions commutes with a 1x1 convolution: z = W mean(x) + b, and the first layer of
    Squeeze-and-Excitation takes W into itself. Behind other kernels the map itself is squeezed. Rescaling, addition and
    activation are one pass, in place.

    Args:
        conv: as for ``FusedConv``.
        gate: a gate for its output.
    """

    def __init__(self, conv: Conv, gate: Gate) -> None:
        super().__init__(conv)
        self.gate = gate.requires_grad_(False)
        self.ahead = self.pointwise and gate.descriptors == ("mean",)
        self.fc1: nn.Linear | None = None
        if self.ahead and isinstance(gate, SE):
            self.fc1 = self._collapsed(gate)
        self.scale = ChannelScale()

    def _collapsed(self, gate: SE) -> nn.Linear:
        """W1 (W m + b) + b1 as one layer."""
        wide = self.weight.detach().double().flatten(1)
        bias = torch.zeros(len(wide), dtype=wide.dtype) if self.bias is None else self.bias.detach().double()
        first = gate.fc1.weight.detach().double()
        layer = nn.Linear(wide.shape[1], len(first), device=self.weight.device, dtype=self.weight.dtype)
        layer.requires_grad_(False)
        layer.weight.copy_(first @ wide)
        layer.bias.copy_(first @ bias + (0 if gate.fc1.bias is None else gate.fc1.bias.detach().double()))
        return layer

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The output, fresh unless ``in_place``."""
        s = self._scale_ahead(x)
        if s is not None and self._in_one_pass(x, other):
            y = self._by_pointwise(x, other, self.act, s)
            if y is not None:
                return y
        u = self._convolved(x, None, ACTIVATION_NONE)
        if s is None:
            s = self.scale(self.gate, u)
        return _rescaled(u, s, other, self.act, into_other=self.in_place)

    def _scale_ahead(self, x: Tensor) -> Tensor | None:
        """The channel scale from the convolution's input; None where reading its output is cheaper."""
        if self.fc1 is not None:
            return self.scale(self.gate, x, first=self.fc1)
        if self.ahead and self._reads_less(x):
            return self.scale(self.gate, x, (self.weight, self.bias))
        return None

    def _reads_less(self, x: Tensor) -> bool:
        """Whether a full matrix is better put ahead."""
        c_out, c_in = self.weight.shape[:2]
        if torch.compiler.is_exporting():
            return c_in < c_out  # one graph for all sizes
        # The weight is read once more for it, from memory; the output was just written, and lies in a cache.
        return 4 * c_in * c_out < x.shape[0] * (c_out - c_in) * math.prod(x.shape[2:])


class ConvOfGated(FusedConv):
    """act(conv(gate(x)) + other), the scale going into the convolution's weights, for each image its own.

    In inverted residuals the gate stands before the 1x1 convolution that makes the map narrow again.

    Args:
        conv: as for ``FusedConv``.
        gate: a gate for its input, which nobody else reads: it may be written over.
    """

    def __init__(self, conv: Conv, gate: Gate) -> None:
        super().__init__(conv)
        self.gate = gate.requires_grad_(False)
        self.scale = ChannelScale()

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The output, fresh unless ``in_place``."""
        s = self.scale(self.gate, x)
        # The weights are scaled once an image; where there are more of them than positions, the map is less work.
        if self._in_one_pass(x, other) and len(self.weight) <= x.shape[2:].numel():
            y = self._by_pointwise(x, other, self.act, taken=s)
            if y is not None:
                return y
        return self._convolved(_rescaled(x, s, None, ACTIVATION_NONE), other, self.act)


class GateInPlace(nn.Module):
    """A gate that writes over the map it takes, which nobody reads afterwards.

    Args:
        gate: the gate.
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate.requires_grad_(False)
        self.scale = ChannelScale()

    def forward(self, u: Tensor) -> Tensor:
        """u [N, C, *S], rescaled."""
        return _rescaled(u, self.scale(self.gate, u), None, ACTIVATION_NONE)


def _rescaled(u: Tensor, s: Tensor, other: Tensor | None, act: Activation, *, into_other: bool = False) -> Tensor:
    """act(s u + other), written over u or, if allowed, over ``other`` where nothing forbids it."""
    if ordinary(u, s, other):
        y = rescale(u, s)
        return act(y if other is None else y + other)
    out = other if into_other else None
    if act.name in _NATIVE and native.rescale_add_act_(u, s, other, _NATIVE[act.name], out=out):
        return u if out is None else out
    scale = s.to(u.dtype).reshape(*s.shape, *(1,) * (u.dim() - 2))
    if other is None:
        return act(u.mul_(scale), inplace=True)
    return act(torch.addcmul(other, u, scale, out=u), inplace=True)


# Activations of the one pass that rescales, adds and activates, by its names for them.
_NATIVE = {"none": "none", "relu": "relu", "silu": "silu", "hard_swish": "hardswish"}
