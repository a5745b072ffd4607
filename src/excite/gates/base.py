"""What every gate is: descriptors in, channel scales out, and a frozen description of itself.

    u  [N, C, *S]  feature map        z = squeeze(u, descriptors)
    z  [N, C]      descriptor         s = excite(z)              <- the only thing that differs between gates
    s  [N, C]      channel scale      y = rescale(u, s)

With K > 1 descriptors z is [N, K, C]. Source: Squeeze-and-Excitation Networks (arXiv 1709.01507), Sec. 3.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor, nn

from excite.errors import UserError
from excite.ops import rescale, squeeze

__all__ = ["Gate", "GateConfig"]


@dataclass(frozen=True)
class GateConfig:
    """A gate without its channel count: frozen, comparable, and written as a string ``parse_gate`` reads back.

    Subclasses are frozen dataclasses whose fields are the keyword arguments of their module. They check
    their values in ``__post_init__`` (``ValueError`` naming value, range and fix) and give ``build``.
    """

    name: ClassVar[str]

    def build(self, channels: int) -> Gate:
        """The gate's module for maps with ``channels`` channels."""
        raise NotImplementedError

    def __str__(self) -> str:
        changed = [
            f"{f.name}={_format(value)}"
            for f in dataclasses.fields(self)
            if (value := getattr(self, f.name)) != f.default
        ]
        return f"{self.name}({','.join(changed)})" if changed else self.name


def _format(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


class Gate(nn.Module):
    """A channel gate: ``rescale(u, excite(squeeze(u, descriptors)))``.

    A subclass declares ``descriptors`` (of "mean", "max", "std", "l2") and gives ``excite``. ``forward`` is final:
    recording, cost and fusion all rely on this one seam.

    Args:
        channels: number of channels C of the maps, at least 1.
        config: the config that builds this gate again.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input
    """

    descriptors: tuple[str, ...] = ("mean",)

    def __init__(self, channels: int, config: GateConfig) -> None:
        super().__init__()
        if channels < 1:
            raise UserError(f"channels={channels}: a gate needs at least 1 channel")
        self.channels = channels
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            raise TypeError(f"{cls.__name__} overrides Gate.forward, which is final; give `excite` instead")

    def excite(self, z: Tensor) -> Tensor:
        """The channel scale s [N, C] from the descriptor z ([N, C], or [N, K, C] with K > 1 descriptors)."""
        raise NotImplementedError

    @final
    def forward(self, u: Tensor) -> Tensor:
        """The recalibrated map y [N, C, *S]."""
        return rescale(u, self.excite(squeeze(u, self.descriptors)))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows: channels and the config's string."""
        return f"{self.channels}, {self.config}"
