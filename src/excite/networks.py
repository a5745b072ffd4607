"""A network by name: one of ours, torchvision's, timm's, or a function of the user's.

    "resnet50", "se_resnet20"       a network of ``excite.models``
    "torchvision:resnet50"          torchvision.models.get_model("resnet50", weights=None, num_classes=...)
    "timm:resnet50d"                timm.create_model("resnet50d", num_classes=..., in_chans=...)
    "mynets.small:make"             mynets.small.make(num_classes=..., in_channels=...)

Gates of ours are built in; into other networks they are attached (``excite.surgery``).

What is asked for is a ``NetworkSpec``: frozen, comparable, and JSON, so that checkpoints and results can say it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from excite.errors import UserError, unknown
from excite.gates import GateConfig, parse_gate
from excite.graph import record
from excite.models import MODELS, create_model, list_models, split_alias
from excite.models.base import gate_modules
from excite.surgery import Attached, attach_, attach_at_

__all__ = ["NetworkSpec", "build", "example_for", "seeded"]


@dataclass(frozen=True)
class NetworkSpec:
    """A network as text and numbers, brought to one form: specs of the same network are equal.

    Args:
        name: see the head of this file. An alias such as "se_resnet50" becomes "resnet50" with its gate.
        gate: a gate's text; "none", or None for what the name says (see ``create_model``), mostly no gate.
        placement: where in a block the gate stands, see ``create_model``; in a network that is not ours, where it is
            attached, see ``find_sites``: "standard" is "residual" there, and "conv", "block:PATTERN" and the name of a
            module are other places.
        stages: stages that have gates, counted from 1; None for all.
        variant: a named set of options of the family.
        num_classes: size of the output.
        in_channels: channels of the images.
        options: further options of the network, JSON-able.

    Raises:
        ValueError: an unknown name (of a network of ours), gate or field; an alias with a gate; a variant of a network
            that is not ours; options that are not JSON-able or would read weights.
    """

    name: str
    gate: str | None = None
    placement: str = "standard"
    stages: tuple[int, ...] | None = None
    variant: str | None = None
    num_classes: int = 1000
    in_channels: int = 3
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name, gate = (self.name, self.gate) if self.foreign else split_alias(self.name, self.gate)
        if not self.foreign and name not in MODELS:
            hint = "`excite models` lists all; others are timm:NAME, torchvision:NAME or module:function"
            raise unknown("model", name, list_models(), hint=hint)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "gate", str(parse_gate(gate) or "none"))
        object.__setattr__(self, "options", self._checked_options())
        if isinstance(self.stages, list):
            object.__setattr__(self, "stages", tuple(self.stages))
        if self.foreign:
            self._check_foreign()

    @property
    def foreign(self) -> bool:
        """Whether the network is another library's or the user's own."""
        return ":" in self.name

    @property
    def by_function(self) -> bool:
        """Whether the network is made by a function of the user's."""
        return self.foreign and self.name.partition(":")[0] not in _SOURCES

    def _checked_options(self) -> dict[str, Any]:
        fields = {f.name for f in dataclasses.fields(self)}
        for option in self.options:
            if option in fields:
                raise UserError(f"options of {self.name!r}: {option!r} is a field of the network itself, no option")
            if option in _WEIGHT_OPTIONS and self.foreign and not self.by_function:
                raise UserError(
                    f"options of {self.name!r}: {option!r} reads weights; a network is built with fresh ones"
                )
        try:
            # The form that a JSON file gives back.
            options: dict[str, Any] = json.loads(json.dumps(self.options))
        except TypeError as error:
            raise UserError(f"options={self.options!r} of {self.name!r} must be JSON-able: {error}") from None
        return options

    def _check_foreign(self) -> None:
        if self.variant is not None:
            raise UserError(f"variant={self.variant!r} is for networks of excite; give {self.name!r} its own options")

    @property
    def where(self) -> str:
        """Where gates are attached to a network that is not ours."""
        return "residual" if self.placement == "standard" else self.placement

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able; ``from_dict`` gives the spec back."""
        fields = dataclasses.asdict(self)
        return {**fields, "stages": None if self.stages is None else list(self.stages)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> NetworkSpec:
        """The spec that ``to_dict`` wrote.

        Raises:
            ValueError: a field that a spec does not have, or no name.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise unknown("field of a network", name, known)
        if "name" not in fields:
            raise UserError(f"a network needs a name; got only {', '.join(fields) or 'nothing'}")
        return cls(**fields)


def build(
    spec: NetworkSpec,
    *,
    seed: int | None = None,
    gate: GateConfig | None = None,
    impl: str = "auto",
    attached: Sequence[Attached | Mapping[str, Any]] | None = None,
) -> nn.Module:
    """The network that a spec describes, with fresh weights.

    Args:
        spec: what to build.
        seed: with a seed the initialisation is *paired*: parameters of the layers that a plain and a gated network
            share depend on the seed alone, not on the gate nor on how many numbers it drew. The network is built on
            the CPU and no global random state moves. Without, it is drawn from the global random state.
        gate: a gate in place of the spec's, also one that has no text.
        impl: implementation of the tails, see ``excite.ops.tail``; networks that are not ours have only "auto".
        attached: gates attached at these places instead, as ``excite.surgery.attached`` lists them.

    Returns:
        The network in training mode: images [N, in_channels, H, W] -> logits [N, num_classes].

    Raises:
        ValueError: an unknown name, gate or option (with the nearest ones), a library that is not installed, a network
            that is not ours and has no place for gates, or a negative seed.
    """
    if spec.foreign and impl != "auto":
        raise UserError(f"{spec.name!r} is no network of excite: it takes impl='auto' only")
    chosen = gate if gate is not None else parse_gate(spec.gate)
    if attached is not None:
        with contextlib.nullcontext() if seed is None else seeded(seed):
            model = _create(spec, None if spec.foreign else chosen, impl)
        attach_at_(model, attached)
        return model
    if seed is None:
        return _create(spec, chosen, impl)
    with torch.device("cpu"):
        with seeded(seed):
            plain = _create(spec, None, impl)
        if chosen is None:
            return plain
        with seeded(_seed_of_gates(seed)):
            if spec.foreign:
                return _attached(plain, spec, chosen)
            gated = _create(spec, chosen, impl)
    return _paired(gated, plain)


# Images that a network may be made for, its own size first; too small a one and it ends in maps of nothing.
_SIZES = (224, 299, 96, 64, 32)


def example_for(model: nn.Module, spec: NetworkSpec) -> Tensor:
    """An image without data that a network takes: of the size it is made for, where that can be told.

    Raises:
        ValueError: it takes none of the usual sizes.
    """
    own = getattr(model, "default_cfg", {}).get("input_size", (0, 0))[-1]
    if spec.name in MODELS:
        own = MODELS[spec.name].image_size
    problems = []
    for size in dict.fromkeys((own or _SIZES[0], *_SIZES)):
        example = torch.empty(1, spec.in_channels, size, size, device="meta")
        try:
            record(model, (example,))
        except UserError as error:
            problems.append(str(error))
        else:
            return example
    raise UserError(f"{spec.name!r}: {problems[0]}")


def _attached(model: nn.Module, spec: NetworkSpec, gate: GateConfig) -> nn.Module:
    """A network that is not ours with its gates, started as their text says."""
    attach_(model, gate, example_for(model, spec), where=spec.where, stages=spec.stages, start="paper")
    return model


def _create(spec: NetworkSpec, gate: GateConfig | None, impl: str) -> nn.Module:
    if spec.foreign:
        source, _, name = spec.name.partition(":")
        model = _SOURCES.get(source, _by_function)(spec, name)
        return model if gate is None else _attached(model, spec, gate)
    return create_model(
        spec.name,
        gate="none" if gate is None else gate,  # None would be the name's own
        placement=spec.placement,
        stages=spec.stages,
        variant=spec.variant,
        num_classes=spec.num_classes,
        in_channels=spec.in_channels,
        impl=impl,
        **spec.options,
    )


def _paired(gated: nn.Module, plain: nn.Module) -> nn.Module:
    """``gated`` with every tensor of ``plain``."""
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    gates = tuple(f"{name}." for name in gate_modules(gated))
    assert not unexpected, f"the gated network lacks {unexpected}"
    assert all(key.startswith(gates) for key in missing), f"no gate's and not in the plain network: {missing}"
    return gated


# --- random state ---


def _seed_of_gates(seed: int) -> int:
    # Another stream than the plain network's, or the first gate would repeat the numbers of the first convolution.
    return int.from_bytes(hashlib.sha256(f"gates of {seed}".encode()).digest()[:7], "big")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU (torch, numpy and Python alike) start from ``seed`` inside; outside nothing has moved.

    Raises:
        ValueError: a seed that is negative or no integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError(f"seed={seed!r}: give an integer from 0 to 2**63 - 1")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    # Not torch.manual_seed: it would also seed the GPUs, whose state is nobody's business here.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


# --- networks that are not ours ---


def _from_torchvision(spec: NetworkSpec, name: str) -> nn.Module:
    torchvision = _library("torchvision", spec)
    # Classifiers only: others load a pretrained backbone unless told not to, and give no logits.
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise unknown("classifier of torchvision", name, names)
    if spec.in_channels != 3:
        raise UserError(f"{spec.name!r} takes 3 channels, not {spec.in_channels}: timm:NAME takes any number")
    return _call(spec, torchvision.models.get_model, name, weights=None, num_classes=spec.num_classes, **spec.options)


def _from_timm(spec: NetworkSpec, name: str) -> nn.Module:
    timm = _library("timm", spec)
    if not timm.is_model(name):
        raise unknown("model of timm", name, timm.list_models())
    return _call(spec, timm.create_model, name, num_classes=spec.num_classes, in_chans=spec.in_channels, **spec.options)


def _by_function(spec: NetworkSpec, function: str) -> nn.Module:
    module = spec.name.partition(":")[0]
    # A console script does not look for modules where it was started, ``python -m`` does: do it for both, last.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UserError(
            f"cannot import {module!r} for the network {spec.name!r}: {error}. Networks of other libraries are "
            "timm:NAME and torchvision:NAME"
        ) from error
    if not callable(make):
        names = [n for n in dir(sys.modules[module]) if not n.startswith("_")]
        raise unknown(f"function of {module}", function, names)
    return _call(spec, make, num_classes=spec.num_classes, in_channels=spec.in_channels, **spec.options)


# Options of theirs that download weights or read them from a pickle, which a network's description must never do.
_WEIGHT_OPTIONS = frozenset(
    {
        *(
            "weights",
            "weights_backbone",
            "pretrained",
            "pretrained_backbone",
            "pretrained_cfg",
            "pretrained_cfg_overlay",
            "pretrained_strict",
        ),
        *("checkpoint_path", "cache_dir"),
    }
)

_SOURCES: dict[str, Callable[[NetworkSpec, str], nn.Module]] = {"torchvision": _from_torchvision, "timm": _from_timm}


def _library(name: str, spec: NetworkSpec) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"{spec.name!r} needs {name}, which is not installed: pip install {name}") from None


def _call(spec: NetworkSpec, make: Callable[..., Any], *args: Any, **kwargs: Any) -> nn.Module:
    """``make(...)``, with a network that does not take these arguments told apart from one that fails inside."""
    try:
        inspect.signature(make).bind(*args, **kwargs)
        network = make(*args, **kwargs)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise UserError(f"{spec.name!r} does not take {given}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{spec.name!r} must return a torch.nn.Module; it returned {type(network).__name__}")
    return network
