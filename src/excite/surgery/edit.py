"""Putting gates into a network that a user already has, and taking them out again.

Each change is made in three steps: find the places, check everything, change; a change that fails leaves the network as
it was. What was attached is written down on the network, so that a gate that some conversion lost is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from excite.errors import UserError, unknown
from excite.gates import GateConfig, parse_gate
from excite.gates.base import leaves_as_is
from excite.graph import as_inputs, record, unwrapped
from excite.graph.rewrite import HUNG_NAMES, Hung, forget_compiled, hang, hung, is_called, rehang, take
from excite.surgery.sites import Site, Where, find_sites
from excite.surgery.tail_graph import take_tails_out

__all__ = [
    "STARTS",
    "Attached",
    "attach_",
    "attach_at_",
    "attached",
    "check_kind",
    "detach_",
    "reattach_",
    "remove",
    "settled",
    "verify",
    "write_down",
]

Start = Literal["neutral", "paper"]
STARTS = ("neutral", "paper")

# Where a network keeps what was attached to it: a plain attribute, which copies and pickles take along.
_RECORD = "_excite_attached"


@dataclass(frozen=True)
class Attached:
    """A gate and its site, as a checkpoint keeps them.

    Args:
        module: dotted name of the module that the gate hangs on.
        side: "out" or "in", see ``Site``.
        channels: of the map there.
        gate: the gate's text.
    """

    module: str
    side: str
    channels: int
    gate: str

    @property
    def name(self) -> str:
        """The gate's own dotted name."""
        return f"{self.module}.{HUNG_NAMES[self.side]}"

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able."""
        return asdict(self)


def attach_(
    model: nn.Module,
    gate: str | GateConfig,
    example: Tensor | Sequence[Any],
    *,
    where: Where = "residual",
    stages: Sequence[int] | None = None,
    start: Start = "neutral",
) -> list[Site]:
    """Put a gate at each site of a network, in place.

    Every module keeps its class and every parameter and buffer its name; the gates are new children, named
    ``excite_gate``, of the modules they hang on. Give an optimizer that exists ``gate_parameters(model)`` as a group of
    their own. Checkpoints of the network without gates still load while the gates are at a neutral start.

    Do it before wrapping in DistributedDataParallel or converting norms; ``verify`` says what a conversion has lost.

    Args:
        model: any network.
        gate: a gate's text or config, as "se(reduction=8)".
        example: an input the network takes, or a tuple of its positional inputs; only its shape matters.
        where: see ``find_sites``.
        stages: see ``find_sites``.
        start: "neutral", the network computes exactly what it did, and learns from there; or "paper", gates as the
            paper starts them, which scale what they stand on by about 1/2.

    Returns:
        The sites, in the order of execution.

    Raises:
        ValueError: a gate without a neutral form; no site, or a stage that is not there; a gate stands there already; a
            network that is scripted, quantised or already wrapped. The network is as it was.
    """
    model = unwrapped(model)
    config = _checked_gate(gate, start)
    check_kind(model)
    sites = find_sites(model, example, where=where, stages=stages)
    items = [(Attached(s.module, s.side, s.channels, str(config)), config) for s in sites]
    _attach(model, items)
    _check_each_runs_once(model, [item for item, _ in items], as_inputs(example))
    return sites


def attach_at_(model: nn.Module, gates: Iterable[Attached | Mapping[str, Any]]) -> None:
    """Put gates where they were in another network of the same make, as ``attached`` lists them; nothing is run.

    Raises:
        ValueError: a module that the network does not have, or that has a gate already. The network is as it was.
    """
    model = unwrapped(model)
    check_kind(model)
    items = []
    for item in gates:
        item = item if isinstance(item, Attached) else _read(item)
        config = parse_gate(item.gate)
        if config is None:
            raise UserError(f"{item.module}: gate {item.gate!r} is none")
        items.append((item, config))
    _attach(model, items)


def _read(item: Mapping[str, Any]) -> Attached:
    wanted = {field.name for field in fields(Attached)}
    if set(item) != wanted:
        raise UserError(f"a gate's record has {', '.join(sorted(wanted))}; got {', '.join(sorted(item)) or 'nothing'}")
    return Attached(**item)


def _checked_gate(gate: str | GateConfig, start: str) -> GateConfig:
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    config = parse_gate(gate)
    if config is None:
        raise UserError(
            "gate='none' attaches nothing; detach_ takes gates out, and swap_(model, old, 'none') a zoo's own"
        )
    return config.as_neutral() if start == "neutral" else config


def check_kind(model: nn.Module) -> None:
    """Refuse networks whose modules are not to be touched any more."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise UserError(
            f"{type(model).__name__} has taken stock of its parameters: attach to the network before wrapping it"
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and name == "":
            raise UserError(f"{type(model).__name__} is scripted: attach to the network it was made of")


def _attach(model: nn.Module, items: Sequence[tuple[Attached, GateConfig]]) -> None:
    """Check everything, then change."""
    modules = dict(model.named_modules())
    ready, taken = [], set()
    for item, config in items:
        host = modules.get(item.module)
        if host is None or not item.module:
            raise unknown("module", item.module, [name for name in modules if name])
        if item.side not in HUNG_NAMES:
            raise unknown("side", item.side, HUNG_NAMES)
        if HUNG_NAMES[item.side] in host._modules or item.name in taken:
            raise UserError(f"{item.module} has a gate already: detach_ takes it off")
        taken.add(item.name)
        ready.append((host, item, settled(config.build(item.channels), host, model)))
    before = attached(model)
    for host, item, gate in ready:
        hang(host, item.side, gate)
    write_down(model, [*before, *(item for item, _ in items)])
    forget_compiled()


def settled(gate: nn.Module, *homes: nn.Module) -> nn.Module:
    """A gate on the device and in the dtype of the first of these modules that has one, training if the first does."""
    gate = gate.train(homes[0].training)
    like = next((t for home in homes for t in home.parameters() if t.is_floating_point()), None)
    return gate if like is None else gate.to(device=like.device, dtype=like.dtype)


def _check_each_runs_once(model: nn.Module, items: list[Attached], inputs: tuple[Any, ...]) -> None:
    try:
        _run_each_once(model, items, inputs)
    except BaseException:
        remove(model, {item.name for item in items})
        raise


def _run_each_once(model: nn.Module, items: list[Attached], inputs: tuple[Any, ...]) -> None:
    try:
        calls = record(model, inputs).calls
    except UserError as error:
        raise UserError(f"with gates there the network does not run: {error}") from error
    for item in items:
        count = sum(call.module == item.name for call in calls)
        if count != 1:
            raise UserError(f"{item.module} runs its gate {count} times in a forward pass: choose another place")


def attached(model: nn.Module) -> list[Attached]:
    """What was attached to a network, in the order of execution, whether or not it is still there."""
    model = unwrapped(model)
    found = []
    for prefix, module in model.named_modules():
        for item in module.__dict__.get(_RECORD, ()):
            inside = f"{prefix}.{item.module}" if prefix else item.module
            found.append(Attached(inside, item.side, item.channels, item.gate))
    known = {item.name for item in found}
    # A part of a network that gates were attached to has gates, but the record is the whole's.
    for there in hung(model):
        if there.name not in known:
            gate: Any = there.gate
            found.append(Attached(there.anchor.module, there.anchor.side, gate.channels, str(gate.config)))
    return found


def write_down(model: nn.Module, items: Sequence[Attached]) -> None:
    """Keep on the network what is attached to it."""
    for module in model.modules():
        module.__dict__.pop(_RECORD, None)
        hooks = module._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _accept_plain]:
            del hooks[key]
    if items:
        model.__dict__[_RECORD] = tuple(items)
        model.register_load_state_dict_post_hook(_accept_plain)  # type: ignore[no-untyped-call]


def _accept_plain(module: nn.Module, incompatible: Any) -> None:
    """A state dict without any gate is no error while each gate leaves its map as it is."""
    keys = [f"{item.name}.{key}" for item in hung(module, every_name=True) for key in item.gate.state_dict()]
    missing: list[str] = incompatible.missing_keys
    absent = [key for key in missing if key.endswith(tuple(keys))]
    if len(absent) == len(keys) and all(leaves_as_is(item.gate) for item in hung(module)):
        missing[:] = [key for key in missing if key not in absent]


def detach_(model: nn.Module) -> list[Attached]:
    """Take out every gate that was attached: structure, keys and outputs are as before.

    Gates that a network was built with stay. What ``fuse_training_`` did is undone as well.

    Returns:
        What was taken out, in the order of execution.

    Raises:
        ValueError: nothing is attached, and no tail was fused.
    """
    model = unwrapped(model)
    items = attached(model)
    there = list(hung(model))
    tails = take_tails_out(model)
    if not items and not there and not tails:
        raise UserError(f"{type(model).__name__} has no gate attached")
    remove(model, {item.name for item in there})
    return items


def remove(model: nn.Module, names: set[str]) -> None:
    """Take off the gates of these dotted names."""
    for item in list(hung(model)):
        if item.name in names:
            take(item.module, item.anchor.side)
    write_down(model, [item for item in attached(model) if item.name not in names])
    forget_compiled()


def verify(model: nn.Module) -> list[Attached]:
    """Check that every gate that was attached is still there and still called.

    Conversions that put other modules in the place of norms (SyncBatchNorm, frozen norms) lose gates without a word.

    Returns:
        What is attached, in the order of execution.

    Raises:
        ValueError: a gate is gone, or nothing calls it any more, by name and with the way out; nothing is attached.
    """
    model = unwrapped(model)
    items, there = attached(model), {item.name: item for item in hung(model)}
    gone = [item for item in items if item.name not in there]
    idle = [item for item in there.values() if not is_called(item.module, item.anchor.side)]
    if gone:
        names = ", ".join(f"{item.module} ({_kind(model, item.module)})" for item in gone)
        raise UserError(f"gates are gone with the modules they hung on: {names}. Convert first, attach afterwards")
    if idle:
        names = ", ".join(f"{item.anchor.module} ({type(item.module).__name__})" for item in idle)
        raise UserError(f"nothing calls the gates of {names}: the modules were replaced. reattach_(model) mends it")
    if not items and not there:
        raise UserError(f"{type(model).__name__} has no gate attached")
    return items


def _kind(model: nn.Module, name: str) -> str:
    try:
        return f"now {type(model.get_submodule(name)).__name__}"
    except AttributeError:
        return "no longer there"


def reattach_(model: nn.Module) -> list[Attached]:
    """Have gates called again whose modules were replaced by a conversion that kept them as children.

    Returns:
        What is attached, in the order of execution.

    Raises:
        ValueError: gates that are gone, as ``verify``.
    """
    model = unwrapped(model)
    idle: list[Hung] = [item for item in hung(model) if not is_called(item.module, item.anchor.side)]
    for item in idle:
        rehang(item.module, item.anchor.side)
    forget_compiled()
    return verify(model)
