"""The hidden width of a two-layer gate: one rule for what the zoos compute in four ways."""

from __future__ import annotations

from typing import NamedTuple

from excite.errors import UserError

__all__ = ["Reduction"]


class Reduction(NamedTuple):
    """How many hidden channels R a gate has for C channels.

    - As the authors released it: R = C // reduction, and at least 1.
    - ``round_to=8``: the multiple of 8 nearest to C / reduction, halves up, and at least 8 (timm's SE, mmpretrain).
    - ``round_to=8, round_limit=0.9``: the same, one multiple more where rounding lost over a tenth (MobileNetV3).
    - ``reduced_channels``: R itself (EfficientNet, RegNet: there it follows from the block's input, not from C).
    """

    reduction: int = 16
    reduced_channels: int | None = None
    round_to: int | None = None
    round_limit: float = 0.0
    min_reduced_channels: int | None = None

    def check(self, gate: str) -> None:
        """Refuse values out of range and options that another one makes void.

        Raises:
            ValueError: names the gate, the option, its range and the fix.
        """
        for option in ("reduction", "reduced_channels", "round_to", "min_reduced_channels"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"gate {gate!r}: {option}={value} must be at least 1")
        if not 0 <= self.round_limit <= 1:
            raise UserError(f"gate {gate!r}: round_limit={self.round_limit} must lie in 0..1 (MobileNetV3 has 0.9)")
        if self.round_limit and self.round_to is None:
            raise UserError(f"gate {gate!r}: round_limit={self.round_limit} needs round_to, the multiple to round to")
        if self.reduced_channels is not None and self != Reduction(reduced_channels=self.reduced_channels):
            raise UserError(
                f"gate {gate!r}: reduced_channels={self.reduced_channels} is the hidden width itself; "
                "leave out reduction, round_to, round_limit and min_reduced_channels"
            )

    def of(self, channels: int) -> int:
        """R for ``channels`` channels, at least 1."""
        if self.reduced_channels is not None:
            return self.reduced_channels
        if self.round_to is None:
            return max(channels // self.reduction, self.min_reduced_channels or 1)
        # Integers all through: floor(C / (r * m) + 1/2) multiples, without a float's doubt about halves.
        unit = self.reduction * self.round_to
        multiples = (2 * channels + unit) // (2 * unit)
        width = max(multiples * self.round_to, self.min_reduced_channels or self.round_to)
        return width + self.round_to if width * self.reduction < self.round_limit * channels else width
