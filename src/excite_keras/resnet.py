"""ResNets with gates in Keras, layer for layer those of ``excite.models``, with whom they exchange weights.

Source: Deep Residual Learning (arXiv 1512.03385); gates, Squeeze-and-Excitation Networks (arXiv 1709.01507). A layer is
called what the module is called there, underscores for dots: ``layer1_0_conv1``. As there, and unlike
``keras.applications``: convolutions have no bias, the stride is in the 3x3 unless ``stride_in`` says otherwise, padding
is the same on all sides, norms have an epsilon of 1e-5, and the network gives logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import initializers, layers, ops

from excite.errors import UserError, unknown
from excite_keras.gates import Gate, parse_gate

__all__ = ["PLACEMENTS", "PadShortcut", "ResNetLayout", "build"]

# SE paper, Fig. 5 and Table 14; "inner" is its SE_3x3.
PLACEMENTS = ("standard", "pre", "post", "identity", "inner")


@dataclass(frozen=True)
class ResNetLayout:
    """Everything that makes a ResNet this one.

    Args:
        depths: blocks of each stage: four for images of about 224 x 224, three for small ones.
        bottleneck: blocks of three convolutions that widen fourfold, in place of two.
        gate: the gates' text; "none" for a plain network.
        placement: where in a block the gate stands.
        stages: the stages that have gates, from 1; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        stride_in: which convolution of a bottleneck strides, "3x3" or "1x1" (the first).
        stem_pool: the stem's max-pool, "padded" by 1 or "ceil" (no padding, ceil mode); no small network has one.
        shortcut: of small networks where the shape changes: "A" (every second position, zero channels appended) or
            "B" (1x1 convolution and norm). The others have B.
        zero_init_last_norm: start the last norm of every block at zero (arXiv 1706.02677, Sec. 5.1).
        epsilon: of the norms.
        momentum: of the norms' running statistics, as Keras counts it: the share that is kept.

    Raises:
        ValueError: a value out of its range.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    gate: str = "none"
    placement: str = "standard"
    stages: tuple[int, ...] | None = None
    num_classes: int = 1000
    in_channels: int = 3
    stride_in: str = "3x3"
    stem_pool: str = "padded"
    shortcut: str = "B"
    zero_init_last_norm: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9

    def __post_init__(self) -> None:
        allowed = {
            "placement": PLACEMENTS,
            "stride_in": ("3x3", "1x1"),
            "stem_pool": ("padded", "ceil"),
            "shortcut": ("A", "B"),
        }
        for option, values in allowed.items():
            if getattr(self, option) not in values:
                raise unknown(option, getattr(self, option), values)
        if self.stride_in == "1x1" and not self.bottleneck:
            raise UserError("stride_in='1x1' needs a bottleneck, as in resnet50; basic blocks have no 1x1 convolution")
        last = len(self.depths)
        if self.stages is not None and (not self.stages or any(s not in range(1, last + 1) for s in self.stages)):
            raise UserError(f"stages={self.stages!r}: give some of 1 to {last}, or None for all")
        for option, least in (("num_classes", 0), ("in_channels", 1)):
            if getattr(self, option) < least:
                raise UserError(f"{option}={getattr(self, option)}: give at least {least}")

    @property
    def small(self) -> bool:
        """Whether it is a network for small images: a 3x3 stem without pool, three stages from 16 channels."""
        return len(self.depths) == 3

    def gate_in(self, stage: int) -> Gate | None:
        """A fresh gate for a block of this stage, or None."""
        return parse_gate(self.gate) if self.stages is None or stage in self.stages else None


def build(
    layout: ResNetLayout,
    *,
    name: str = "resnet",
    image_size: int | None = None,
    data_format: str | None = None,
    classifier_activation: str | None = None,
) -> Any:
    """The functional model of a layout, with fresh weights.

    Args:
        layout: the network.
        name: of the model.
        image_size: height and width in pixels; None leaves them open.
        data_format: "channels_last" or "channels_first"; None is Keras' setting.
        classifier_activation: of the output; None gives logits.
    """
    data_format = data_format or str(keras.config.image_data_format())
    size = (image_size, image_size)
    shape = (*size, layout.in_channels) if data_format == "channels_last" else (layout.in_channels, *size)
    make = _Maker(layout, data_format)
    image = keras.Input(shape, name="image")
    x = make.stem(image)
    first = 16 if layout.small else 64
    channels = first
    for i, depth in enumerate(layout.depths):
        width = first * 2**i
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            x = make.block(x, i + 1, j, channels, width, stride)
            channels = width * (4 if layout.bottleneck else 1)
    x = layers.GlobalAveragePooling2D(data_format=data_format, name="pool")(x)
    if layout.num_classes:
        start = initializers.RandomUniform(-(channels**-0.5), channels**-0.5)
        x = layers.Dense(
            layout.num_classes,
            activation=classifier_activation,
            kernel_initializer=start,
            bias_initializer=start,
            name="fc",
        )(x)
    return keras.Model(image, x, name=name)


class _Maker:
    """Makes the layers of a layout."""

    def __init__(self, layout: ResNetLayout, data_format: str) -> None:
        self.layout = layout
        self.data_format = data_format

    def stem(self, x: Any) -> Any:
        """Images to the input of the first stage."""
        if self.layout.small:
            return self.relu(self.norm(self.conv(x, 16, 3, 1, "conv1"), "bn1"), "relu")
        x = self.relu(self.norm(self.conv(x, 64, 7, 2, "conv1"), "bn1"), "relu")
        # Behind a ReLU zeros pad a maximum as nothing would. Ceil mode reads one more only where it ends short.
        margin = ((1, 1), (1, 1)) if self.layout.stem_pool == "padded" else ((0, 1), (0, 1))
        x = layers.ZeroPadding2D(margin, data_format=self.data_format, name="maxpool_pad")(x)
        return layers.MaxPooling2D(3, 2, data_format=self.data_format, name="maxpool")(x)

    def block(self, x: Any, stage: int, index: int, channels: int, width: int, stride: int) -> Any:
        """One residual block; ``channels`` are those of x."""
        layout, name = self.layout, f"layer{stage}_{index}"
        gate = layout.gate_in(stage)
        gate = gate if gate is None else gate.fresh(name=f"{name}_gate", data_format=self.data_format)

        def gated(placement: str, y: Any) -> Any:
            return y if gate is None or placement != layout.placement else gate(y)

        shortcut = gated("identity", self.shortcut(x, channels, width, stride, name))
        first = stride if layout.stride_in == "1x1" else 1
        sizes = [(3, width, stride), (3, width, 1)]
        if layout.bottleneck:
            sizes = [(1, width, first), (3, width, stride // first), (1, 4 * width, 1)]
        y = gated("pre", x)
        for i, (kernel_size, filters, strides) in enumerate(sizes, start=1):
            last = i == len(sizes)
            y = self.conv(y, filters, kernel_size, strides, f"{name}_conv{i}")
            y = self.norm(y, f"{name}_bn{i}", zero=last and layout.zero_init_last_norm)
            if not last:
                y = self.relu(y, f"{name}_relu{i}")
            # Behind the 3x3 in the middle of a bottleneck, behind the first of a basic block.
            if i == len(sizes) - 1:
                y = gated("inner", y)
        y = layers.Add(name=f"{name}_add")([shortcut, gated("standard", y)])
        return gated("post", self.relu(y, f"{name}_out"))

    def shortcut(self, x: Any, channels: int, width: int, stride: int, name: str) -> Any:
        """The block's input in the shape of its output."""
        out = width * (4 if self.layout.bottleneck else 1)
        if stride == 1 and channels == out:
            return x
        if self.layout.small and self.layout.shortcut == "A":
            return PadShortcut(out - channels, stride, self.data_format, name=f"{name}_downsample")(x)
        return self.norm(self.conv(x, out, 1, stride, f"{name}_downsample_0"), f"{name}_downsample_1")

    def conv(self, x: Any, filters: int, kernel_size: int, stride: int, name: str) -> Any:
        """A convolution without bias, padded alike on all sides, which Keras' "same" is not where it strides."""
        padding = "same"
        if stride > 1 and kernel_size > 1:
            x = layers.ZeroPadding2D(kernel_size // 2, data_format=self.data_format, name=f"{name}_pad")(x)
            padding = "valid"
        return layers.Conv2D(
            filters,
            kernel_size,
            stride,
            padding,
            data_format=self.data_format,
            use_bias=False,
            # He's normal, arXiv 1502.01852, Sec. 2.2.
            kernel_initializer=initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            name=name,
        )(x)

    def norm(self, x: Any, name: str, *, zero: bool = False) -> Any:
        """Batch norm over the channels."""
        return layers.BatchNormalization(
            axis=-1 if self.data_format == "channels_last" else 1,
            momentum=self.layout.momentum,
            epsilon=self.layout.epsilon,
            gamma_initializer="zeros" if zero else "ones",
            name=name,
        )(x)

    def relu(self, x: Any, name: str) -> Any:
        """A ReLU of its own name."""
        return layers.Activation("relu", name=name)(x)


@keras.saving.register_keras_serializable(package="excite")
class PadShortcut(layers.Layer):
    """Every ``stride``-th position, and zero channels behind the others (arXiv 1512.03385, option A).

    Args:
        added_channels: how many zero channels are appended.
        stride: distance of the positions kept.
        data_format: "channels_last" or "channels_first".
        kwargs: as of any layer.
    """

    def __init__(self, added_channels: int, stride: int, data_format: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.added_channels = added_channels
        self.stride = stride
        self.data_format = data_format

    def call(self, inputs: Any) -> Any:
        """[N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), C + added_channels], or channels first."""
        step, added = slice(None, None, self.stride), (0, self.added_channels)
        if self.data_format == "channels_last":
            return ops.pad(inputs[:, step, step, :], ((0, 0), (0, 0), (0, 0), added))
        return ops.pad(inputs[:, :, step, step], ((0, 0), added, (0, 0), (0, 0)))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the output."""
        axis = 3 if self.data_format == "channels_last" else 1
        shape = [None if n is None else -(-n // self.stride) for n in input_shape]
        shape[0], channels = input_shape[0], input_shape[axis]
        shape[axis] = None if channels is None else channels + self.added_channels
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        """Every argument of the layer, JSON-able."""
        own = {"added_channels": self.added_channels, "stride": self.stride, "data_format": self.data_format}
        return {**super().get_config(), **own}
