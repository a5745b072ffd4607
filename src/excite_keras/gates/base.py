"""What every gate is in Keras: a layer that squeezes a map, gives each channel its scale, and rescales.

    u  [N, *S, C] or [N, C, *S]   feature map        z = squeeze(u)
    z  [N, C]                     descriptor         s = excite(z)        <- the only thing that differs between gates
    s  [N, C]                     channel scale      y = s * u

Source: Squeeze-and-Excitation Networks (arXiv 1709.01507), Sec. 3. Options, defaults and numbers are those of
``excite.gates``; weights differ in their axes alone (``excite_keras.weights``).
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar, get_type_hints

import keras
from keras import ops

from excite.errors import UserError
from excite.gates.grammar import check_options, write_call

__all__ = ["Gate"]

_HALF = ("float16", "bfloat16")


class Gate(keras.layers.Layer):
    """A channel gate on feature maps.

    A subclass names itself in ``GATE``, declares its options as annotated arguments of ``__init__`` and hands them up,
    makes its weights in ``make_weights`` and gives ``excite``.

    Args:
        options: the subclass's own options by name.
        data_format: "channels_last" or "channels_first"; None is Keras' setting (``keras.config.image_data_format``).
        kwargs: ``name``, ``dtype`` (a type or policy) and ``trainable``, as of any layer.

    Call arguments:
        inputs: map [N, *S, C] (channels_last) or [N, C, *S] (channels_first), S being 1 to 3 spatial axes of any size,
            known or not; C must be known.

    Returns:
        The recalibrated map, in the inputs' shape and the layer's compute dtype, for integers too. Under half-precision
        policies the descriptor and the scale are computed in float32.

    Raises:
        ValueError: an option that the gate does not have or take; a map of another rank, of unknown or other channels,
            or without positions.
    """

    GATE: ClassVar[str]
    # Why this gate has no option ``neutral``, for ``as_neutral``.
    NO_NEUTRAL_FORM: ClassVar[str] = "it has no option 'neutral'"
    # The options that ``__init__`` declares, as a frozen dataclass; made with the class.
    Options: ClassVar[type[Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.Options = _options_of(cls)

    def __init__(self, options: dict[str, Any], *, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        checked = self.Options(**options)
        check_options(checked, f"gate {self.GATE!r}")
        self.options: Any = checked
        self.data_format = _checked_format(data_format)
        self.channels: int | None = None

    # --- what a subclass gives ---

    def make_weights(self, channels: int) -> None:
        """Make the weights for maps with ``channels`` channels, by ``add_gate_weight``."""

    def excite(self, z: Any) -> Any:
        """The channel scale s [N, C] from the descriptor z [N, C]."""
        raise NotImplementedError

    @property
    def descriptor(self) -> str:
        """What is taken of each channel: "mean" or "max"."""
        return "mean"

    # --- the layer ---

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights for the channels of ``input_shape``."""
        shape = tuple(input_shape)
        if not 3 <= len(shape) <= 5:
            maps = "[N, *S, C]" if self._axis == -1 else "[N, C, *S]"
            raise UserError(f"gate {self.GATE!r} takes a map {maps} with 1 to 3 spatial axes; got shape {shape}")
        channels = shape[self._axis]
        if channels is None:
            raise UserError(
                f"gate {self.GATE!r} needs to know how many channels its map has; got shape {shape} with "
                f"data_format={self.data_format!r}"
            )
        if 0 in self._positions(shape):
            raise UserError(f"gate {self.GATE!r}: the squeeze of a map without positions is undefined; got {shape}")
        self.channels = channels
        self.make_weights(channels)
        self.input_spec = keras.InputSpec(min_ndim=3, max_ndim=5, axes={self._axis: channels})
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The recalibrated map."""
        rank = len(inputs.shape)
        axes = tuple(range(1, rank - 1)) if self._axis == -1 else tuple(range(2, rank))
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(inputs.dtype)):
            # As Keras' own norms do it: its autocast passes integers over, and a scale that is one would be zero.
            inputs = ops.cast(inputs, self.compute_dtype)
        # Sums of half-precision maps are taken in float32.
        reduce = ops.mean if self.descriptor == "mean" else ops.max
        s = self.excite(reduce(self._wide(inputs), axis=axes))
        s = ops.expand_dims(ops.cast(s, inputs.dtype), axes)
        return inputs * s

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the map, unchanged."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Every argument of the layer, JSON-able."""
        return {**super().get_config(), **dataclasses.asdict(self.options), "data_format": self.data_format}

    # --- for subclasses and for those who place gates ---

    def add_gate_weight(self, name: str, shape: tuple[int, ...], initializer: keras.initializers.Initializer) -> Any:
        """A weight that no policy casts: gates compute their few numbers in float32 under half precision."""
        return self.add_weight(name=name, shape=shape, initializer=initializer, autocast=False)

    def wide(self, weight: Any) -> Any:
        """A weight in the dtype in which the scale is computed."""
        return self._wide(ops.convert_to_tensor(weight))

    def as_neutral(self) -> Gate:
        """A fresh gate of the same options in its neutral form: it leaves a map exactly as it is and learns from there.

        Raises:
            ValueError: this gate has no such form, with the reason.
        """
        if not hasattr(self.options, "neutral"):
            raise UserError(f"gate {self.GATE!r} has no neutral form: {self.NO_NEUTRAL_FORM}")
        return self.fresh(neutral=True)

    def fresh(self, **changes: Any) -> Gate:
        """A gate of the same arguments without weights yet, ``changes`` (of options, ``name`` ...) apart."""
        config = self.get_config() | {"name": None} | changes
        gate: Gate = type(self).from_config(config)
        return gate

    @property
    def text(self) -> str:
        """The gate as text, which ``parse_gate`` reads back here and in ``excite``: "se(reduction=8)"."""
        return write_call(self.GATE, self.options)

    # --- inside ---

    @property
    def _axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    def _positions(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return shape[1:-1] if self._axis == -1 else shape[2:]

    def _wide(self, x: Any) -> Any:
        return ops.cast(x, "float32") if keras.backend.standardize_dtype(x.dtype) in _HALF else x


def _checked_format(data_format: str | None) -> str:
    if data_format is None:
        return str(keras.config.image_data_format())
    if data_format not in ("channels_last", "channels_first"):
        raise UserError(f"data_format={data_format!r}: give 'channels_last', 'channels_first' or None for Keras' own")
    return data_format


def _options_of(gate: Any) -> type[Any]:
    """The options that a gate's ``__init__`` declares, as a frozen dataclass: texts are read and checked against it."""
    hints = get_type_hints(gate.__init__)
    fields = [
        (name, hints[name], p.default)
        for name, p in inspect.signature(gate.__init__).parameters.items()
        if name not in ("self", "data_format") and p.kind is not p.VAR_KEYWORD
    ]
    return dataclasses.make_dataclass(gate.__name__, fields, frozen=True)
