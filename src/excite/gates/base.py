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

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from excite.errors import UserError
from excite.gates.grammar import check_options, write_call
from excite.ops import rescale, squeeze

__all__ = [
    "ATTACHED",
    "Gate",
    "GateConfig",
    "check_channels",
    "check_map",
    "gate_output",
    "hung_gate",
    "is_watched",
    "leaves_as_is",
]

ATTACHED = "excite_gate"
"""The beginning of the name under which a gate hangs on a module of a network that it was attached to."""


@dataclass(frozen=True)
class GateConfig:
    """A gate without its channel count: frozen, comparable, and written as a string ``parse_gate`` reads back.

    Subclasses are frozen dataclasses that name the gate in ``name``, whose fields are the keyword arguments of
    their module, and that give ``build``. Every field has a default and is annotated with ``int``, ``float``,
    ``bool``, ``str``, ``None``, ``Literal`` strings, or a union of these: the annotation is what both Python and
    text are checked against. Ranges are checked in ``__post_init__`` after ``super().__post_init__()``.

    Raises:
        ValueError: a value that its annotation does not allow, with the values that it does.
    """

    name: ClassVar[str]
    # Why this gate has no option ``neutral``, for ``as_neutral``.
    NO_NEUTRAL_FORM: ClassVar[str] = "it has no option 'neutral'"

    def __post_init__(self) -> None:
        check_options(self, f"gate {self.name!r}")

    def build(self, channels: int) -> nn.Module:
        """The module for maps with ``channels`` channels: [N, C, *S] in, the same shape out.

        It is a ``Gate``, except for ablations that are no channel gate (``no_squeeze``); only a ``Gate`` has ``excite``
        and can be taken into a fused tail, so code that wants one asks ``isinstance(module, Gate)``.
        """
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """The fields by name: the keyword arguments of the module."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def as_neutral(self) -> GateConfig:
        """The same gate in its neutral form: fresh, it leaves a map exactly as it is, and it learns from there.

        Put into a trained network, such a gate changes nothing at first; a fresh sigmoid gate would halve what it is
        put on. Gates that have the form have it as their option ``neutral``.

        Raises:
            ValueError: this gate has no such form, with the reason.
        """
        if "neutral" not in self.options():
            raise UserError(f"gate {self.name!r} has no neutral form: {self.NO_NEUTRAL_FORM}")
        return dataclasses.replace(self, **{"neutral": True})

    def __str__(self) -> str:
        return write_call(self.name, self)


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
        self.channels = check_channels(channels)
        self.config = config

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            raise TypeError(f"{cls.__name__} overrides Gate.forward, which is final; give `excite` instead")

    def excite(self, z: Tensor) -> Tensor:
        """The channel scale s [N, C] from the descriptor z ([N, C], or [N, K, C] with K > 1 descriptors)."""
        raise NotImplementedError

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, u: Tensor) -> Tensor:
        """The recalibrated map y [N, C, *S].

        Raises:
            ValueError: u is no map with this gate's channels and 1 to 3 spatial axes.
        """
        check_map(u, self.channels)
        return rescale(u, self.excite(squeeze(u, self.descriptors)))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows: channels and the config's string."""
        return f"{self.channels}, {self.config}"


def check_channels(channels: int) -> int:
    """``channels``, if a gate can be built for as many."""
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise UserError(f"channels={channels!r}: a gate needs a whole number of channels, at least 1")
    return channels


def check_map(u: Tensor, channels: int) -> None:
    """Refuse maps of another width: a gate without per-channel weights would take them without a word."""
    if u.dim() < 2 or u.shape[1] != channels:
        raise UserError(f"this gate takes maps [N, {channels}, *S]; got shape {tuple(u.shape)}")


@torch.no_grad()
def leaves_as_is(gate: nn.Module) -> bool:
    """Whether a gate leaves every map exactly as it is: it is in its neutral form and still at its start."""
    if not getattr(getattr(gate, "config", None), "neutral", False):
        return False
    # A few maps tell: a neutral gate is 1 because its last weights are 0, or it is not.
    channels, like = gate.channels, next(gate.parameters())
    assert isinstance(channels, int)
    if like.is_meta:
        return False
    u = torch.randn((4, channels, 2), generator=torch.Generator().manual_seed(0)).to(like)
    return torch.equal(gate(u), u)


# Called by every forward pass, so that attribute access, which compilers follow, stands here in full.
def gate_output(module: Any, args: Any, output: Any) -> Any:
    """The hook that calls the gate which hangs on a module's output."""
    return module.excite_gate(output)


def hung_gate(module: nn.Module) -> nn.Module | None:
    """The gate that hangs on a module's output and is called; None where there is none."""
    if not module._forward_hooks or gate_output not in module._forward_hooks.values():
        return None
    return module._modules.get(ATTACHED)


def is_watched(module: nn.Module, *, gate_aside: bool = False) -> bool:
    """Whether somebody waits for this module to be called: it has hooks, or another forward.

    Args:
        module: any module.
        gate_aside: do not count the gate that hangs on its output.
    """
    hooks = module._forward_hooks
    return bool(
        (hooks and not (gate_aside and len(hooks) == 1 and hung_gate(module) is not None))
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()  # type: ignore[no-untyped-call]
    )
