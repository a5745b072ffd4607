"""What a file of weights is, without a network at hand: the one whose tensors have these names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from excite.errors import UserError
from excite.models import MODELS
from excite.weights.files import Weights, read_weights
from excite.weights.fit import converted
from excite.weights.gates import gate_names, infer_gate, is_of_a_gate
from excite.weights.layout import Layout
from excite.weights.options import hidden_options
from excite.weights.recognise import match_layout, name_in, refuse_by_name, refuse_by_tensors, say
from excite.weights.report import listed
from excite.weights.skeleton import Skeleton, skeleton
from excite.weights.zoos import OWN, named_layouts, parse_source

__all__ = ["Detected", "detect"]


@dataclass(frozen=True)
class Detected:
    """A network as ``create_model`` builds it, and whose weights these are.

    Args:
        source: the zoo or zoos that write these names.
        name: of the network in ``MODELS``.
        gate: its gates' text; "none" without.
        stages: the stages that have gates; None for all.
        num_classes: size of the classifier; 0 where the file has none.
        in_channels: channels of the images.
        options: the family's options that this network takes.
        placement: where the gates stand.
        notes: what a user of these weights should know.
    """

    source: str
    name: str
    gate: str
    stages: tuple[int, ...] | None
    num_classes: int
    in_channels: int
    options: Mapping[str, Any] = field(default_factory=dict)
    placement: str = "standard"
    notes: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``create_model``: those that are not its defaults, and always name and gate."""
        given: dict[str, Any] = {"name": self.name, "gate": self.gate}
        rest = {
            "placement": (self.placement, "standard"),
            "stages": (self.stages, None),
            "num_classes": (self.num_classes, 1000),
            "in_channels": (self.in_channels, 3),
        }
        given |= {argument: value for argument, (value, default) in rest.items() if value != default}
        return given | dict(self.options)

    def __str__(self) -> str:
        name, *others = self.arguments.items()
        return f"create_model({name[1]!r}, {say(dict(others))})"


def detect(path_or_state_dict: Any, *, source: str = "auto") -> Detected:
    """Which network weights belong to, and which of its options they need.

    Args:
        path_or_state_dict: as for ``load_weights``.
        source: as for ``load_weights``.

    Returns:
        The network: ``create_model(**detect(file).arguments)`` builds the one that ``load_weights`` fills.

    Raises:
        ValueError: a file that cannot be read; tensors of no network that ``MODELS`` has; two networks of a zoo that
            only a name tells apart.
    """
    return detect_in(read_weights(path_or_state_dict), source)


def detect_in(weights: Weights, source: str) -> Detected:
    """``detect`` for weights that are read already."""
    zoo, name = parse_source(weights.told if source == "auto" else source)
    if weights.spec is not None and zoo in (None, OWN):
        return _from_spec(weights.spec)
    if zoo is None:
        refuse_by_name(weights)
    found = [d for layout in named_layouts(zoo, name) if (d := _identify(layout, weights, name)) is not None]
    if not found:
        refuse_by_tensors(weights, zoo)
        if zoo in (None, OWN):
            found = [d for layout in _own_layouts() if (d := _identify(layout, weights, None)) is not None][:1]
    if not found:
        raise UserError(
            f"{weights.origin}: the tensors of no network of `excite models`; names are like {listed(weights.tensors)}"
        )
    return _one(found, weights, named_layouts(zoo, name))


def _one(found: list[tuple[Layout, Detected]], weights: Weights, layouts: list[Layout]) -> Detected:
    """The only network among those found, by its name where there are several."""
    if len({str(detected) for _, detected in found}) > 1:
        said = name_in(weights, layouts)
        named = [(layout, detected) for layout, detected in found if said in layout.networks]
        if len({str(detected) for _, detected in named}) != 1:
            which = ", or ".join(f"{detected.source}: {detected}" for _, detected in found)
            raise UserError(
                f"{weights.origin}: the shapes of more than one network: {which}. Say which by source='ZOO:NETWORK'"
            )
        found = named
    first = found[0][1]
    source = " or ".join(dict.fromkeys(detected.source for _, detected in found))
    return Detected(**{**vars(first), "source": source})


def options_in(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options that no shape shows of the network in a checkpoint of excite."""
    found = _from_spec(spec)
    return skeleton(found.name, found.options).options


def _from_spec(spec: Mapping[str, Any]) -> Detected:
    try:
        stages = spec["stages"]
        return Detected(
            source=OWN,
            name=spec["name"],
            gate=spec["gate"],
            stages=None if stages is None else tuple(stages),
            num_classes=spec["num_classes"],
            in_channels=spec["in_channels"],
            options={**({"variant": spec["variant"]} if spec["variant"] else {}), **spec["options"]},
            placement=spec["placement"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"the network in the checkpoint is damaged ({type(error).__name__}: {error})") from None


def _own_layouts() -> list[Layout]:
    families = dict.fromkeys(architecture.family for architecture in MODELS.values())
    heads = {layout.family: layout.head for layout in named_layouts(None, None)}
    rule = ((r"(.+)", "{1}"),)
    return [Layout(OWN, family, {}, rule, head=heads.get(family, "fc")) for family in families]


# --- one layout against the networks it may be ---


def _identify(layout: Layout, weights: Weights, name: str | None) -> tuple[Layout, Detected] | None:
    keys = match_layout(layout, weights)
    if keys is None:
        return None
    needed = [key for key in weights.tensors if layout.why_idle(key) is None]
    if not all(key in keys for key in needed):
        return None
    tensors = {keys[key]: weights.tensors[key] for key in needed}
    if name is not None:
        names = [layout.networks[name]]
    else:
        known = set(layout.networks.values()) or MODELS
        names = [n for n in MODELS if n in known and MODELS[n].family is layout.family]
    for candidate in names:
        detected = _compare(candidate, layout, tensors)
        if detected is not None:
            return layout, detected
    return None


def _compare(name: str, layout: Layout, tensors: Mapping[str, Tensor]) -> Detected | None:
    """The network ``name`` if the tensors are its, whatever its gates, classes and channels of images."""
    # An option that this network of the family does not have would be an error.
    has, hidden = skeleton(name, {}).options, hidden_options(layout.family)
    options = {o: v for o, v in layout.options.items() if o in has or o not in hidden}
    network = skeleton(name, options)
    plain = {key: tensor for key, tensor in tensors.items() if not is_of_a_gate(key)}
    free = _differences(network, layout, plain)
    if free is None:
        return None
    gate, stages = _gates_in(tensors, network) if len(plain) < len(tensors) else ("none", None)
    return Detected(layout.zoo, name, gate, stages, *free, options, notes=layout.notes)


def _differences(network: Skeleton, layout: Layout, plain: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Classes and channels of the images, if these are all that the tensors differ in from the network."""
    classes, channels = 0, 3
    if not plain.keys() <= network.shapes.keys():
        return None
    stem = next(key for key, shape in network.shapes.items() if len(shape) == 4)
    for key, shape in network.shapes.items():
        theirs = plain.get(key)
        in_head = key.startswith(f"{layout.head}.")
        if theirs is None:
            if not (in_head or layout.is_zero(key) or key.endswith("num_batches_tracked")):
                return None
            continue
        if in_head and theirs.dim():
            classes = theirs.shape[0]
            shape = (classes, *shape[1:])
        elif key == stem and theirs.dim() == 4:
            channels = theirs.shape[1]
            shape = (shape[0], channels, *shape[2:])
        if converted(theirs, shape) is None:
            return None
    return classes, channels


def _gates_in(tensors: Mapping[str, Tensor], network: Skeleton) -> tuple[str, tuple[int, ...] | None]:
    """The text of the gates that the tensors belong to, and their stages."""
    found = gate_names(tensors)
    config = infer_gate(tensors, {name: channels for name, (channels, _) in network.gates.items()})
    if config is None:
        raise UserError(f"no single gate has the shapes of {listed(found)}")
    stages = {network.gates[name][1] for name in found}
    every = {stage for _, stage in network.gates.values()}
    return str(config), None if stages == every else tuple(sorted(stage for stage in stages if stage is not None))
