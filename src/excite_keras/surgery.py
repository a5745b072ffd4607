"""Putting gates into a functional model: find the places, check everything, and make the model anew with them.

The given model is left as it is; the new one has its layers' names and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from excite.errors import UserError, unknown
from excite_keras.gates import Gate, parse_gate
from excite_keras.graph import Graph
from excite_keras.places import PLACES, Place, matches, named

__all__ = ["STARTS", "Site", "Where", "find_sites", "insert"]

Where = str | Sequence[str] | Callable[[str, Any], bool]
"""Where gates go; see ``insert``."""

STARTS = ("neutral", "paper")


@dataclass(frozen=True)
class Site:
    """A place where a gate can be put.

    Args:
        layer: the layer whose output the gate takes.
        gate: the name that a gate there gets.
        channels: of the map.
        size: its spatial axes; None for those that the model leaves open.
        stage: counted from 1, see ``insert``; 0 is the stem, and where the image size is open.
        label: what the place belongs to: the addition, the convolution, or the layer that was named.
    """

    layer: str
    gate: str
    channels: int
    size: tuple[int | None, ...]
    stage: int
    label: str


@dataclass(frozen=True)
class _Found:
    """A site, with what ``insert`` needs to know of it."""

    site: Site
    place: Place


def insert(
    model: Any,
    gate: str | Gate = "se",
    where: Where = "residual",
    *,
    stages: Sequence[int] | None = None,
    start: str = "neutral",
) -> Any:
    """The same model with a gate at each site.

    Layers keep their names and weights; the gates are new layers, ``NAME_gate`` behind the layer ``NAME``. With the
    neutral start the outputs are those of the model, bit for bit where Keras runs layer by layer. A model that was
    compiled comes back compiled alike, with a fresh optimizer.

    Args:
        model: a functional model, as those of ``keras.applications``, or a built Sequential one, which comes back
            Sequential. It is left as it is.
        gate: a gate's text, as "se(reduction=8)", or a layer without weights yet, as ``SqueezeExcite(reduction=8)``.
        where: one of

            - "residual": what each branch brings to its residual addition, before drop path and layer scale: the SE
              paper's standard
            - "pre", "post", "identity", "inner": its other placements (arXiv 1709.01507, Sec. 6.5)
            - "conv": after the activation of each convolution, as in VGG
            - "block:PATTERN": the output of each layer whose name matches, as "block:mixed*" in InceptionV3
            - names of layers: the output of each
            - a function of a layer's name and the layer: the output of each for which it is true
        stages: only places in these stages: the resolutions at which the model adds residuals (where it does not, at
            which it convolves), finest first, from 1. The model must know its image size.
        start: "neutral", or "paper": gates as the paper starts them, which scale what they stand on by about 1/2.

    Raises:
        ValueError: a model that is not functional; a gate without a neutral form; no site, or a stage that is not
            there; a gate stands there already.
    """
    layer = _checked_gate(gate, start)
    plain = _functional(model)
    found = _find(plain, where, stages)
    taken = {operation.name for operation in plain.operations}
    clashes = [f.site.gate for f in found if f.site.gate in taken]
    if clashes:
        raise UserError(f"{model.name}: a layer is called {clashes[0]!r} already, as the gate would be")
    gated = _Gated(layer, Graph(plain), found)
    try:
        twin = keras.models.clone_model(
            plain, input_tensors=_inputs_of(plain), clone_function=_copy, call_function=gated
        )
    except NotImplementedError as error:
        raise UserError(f"{model.name}: a layer cannot be made again from its config: {error}") from error
    for operation in plain.layers:
        if operation.weights:
            twin.get_layer(operation.name).set_weights(operation.get_weights())
    return _in_a_row(twin, model) if isinstance(model, keras.Sequential) else twin


def _in_a_row(twin: Any, model: Any) -> Any:
    """The layers of a functional model as a Sequential one, compiled as the given model is."""
    row = keras.Sequential(twin.layers, name=model.name)
    if model.compiled:
        row.compile_from_config(model.get_compile_config())
    return row


def _inputs_of(model: Any) -> Any:
    """Inputs like a model's: Keras would name fresh ones by their tensors, not by their layers."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.InputLayer)]
    names = {id(t): layer.name for layer in layers for t in keras.tree.flatten(layer.output)}

    def fresh(t: Any) -> Any:
        return keras.Input(batch_shape=t.shape, dtype=t.dtype, name=names.get(id(t)), sparse=t.sparse)

    return keras.tree.map_structure(fresh, model.input)


def find_sites(model: Any, where: Where = "residual", *, stages: Sequence[int] | None = None) -> list[Site]:
    """The places where ``insert`` would put gates, in the order of execution; at least one.

    Args:
        model: as in ``insert``.
        where: as in ``insert``.
        stages: as in ``insert``.

    Raises:
        ValueError: as ``insert``.
    """
    return [found.site for found in _find(_functional(model), where, stages)]


# --- check ---


def _checked_gate(gate: str | Gate, start: str) -> Gate:
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    layer = parse_gate(gate)
    if layer is None:
        raise UserError("gate='none' inserts nothing: the model is plain as it is")
    if layer.built:
        raise UserError(f"{layer.name} has weights already: each place gets a gate of its own; give a fresh layer")
    return layer.as_neutral() if start == "neutral" else layer


def _functional(model: Any) -> Any:
    """The model as a plain functional one over the same layers."""
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise UserError(f"{model.name} does not know its input yet: begin it with keras.Input, or build it")
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not isinstance(model, keras.Function):
        raise UserError(
            f"{type(model).__name__} is no functional model: only keras.Model(inputs, outputs) says what is computed "
            "from what. Put the gate layers into the code of a subclassed model"
        )
    if "input_layers" in model.get_config():
        return model
    return keras.Model(model.input, model.output, name=model.name)


# --- find ---


def _find(model: Any, where: Where, stages: Sequence[int] | None) -> list[_Found]:
    graph = Graph(model)
    places = list(_places(graph, where))
    levels = _levels(graph)
    found: list[_Found] = []
    refused: list[str] = []
    for place in places:
        reason = place.reason or _obstacle(graph, place)
        if reason:
            refused.append(f"{place.label}: {reason}")
            continue
        channels = graph.channels(place.value)
        assert channels is not None
        host = graph.nodes[place.value].name
        name = f"{host}_gate" if place.readers is None else f"{place.label}_{where}_gate"
        site = Site(host, name, channels, graph.size(place.value), _stage(graph, place, levels), place.label)
        if name not in {f.site.gate for f in found}:
            found.append(_Found(site, place))
    if stages is not None:
        chosen = _checked_stages(model, stages, levels)
        found = [f for f in found if f.site.stage in chosen]
    if not found:
        raise UserError(f"{model.name}: {_why_none(graph, model, where, refused)}")
    return found


def _places(graph: Graph, where: Where) -> Iterable[Place]:
    if callable(where):
        return named(graph, where)
    if not isinstance(where, str):
        names = list(where)
    elif where in PLACES:
        return PLACES[where](graph)
    elif where.startswith("block:"):
        return named(graph, matches(where.removeprefix("block:")))
    else:
        names = [where]
    known = [node.name for node in graph.nodes if node.inputs]
    for name in names:
        if name not in known:
            kinds = f"places are {', '.join(PLACES)} and 'block:PATTERN'"
            raise unknown("place or layer", name, [*PLACES, *known], hint=kinds)
    return named(graph, lambda name, layer: name in names)


def _obstacle(graph: Graph, place: Place) -> str:
    if graph.channels(place.value) is None:
        return f"its value is {graph.nodes[place.value].shape}, no feature map with known channels"
    calls = [graph.nodes[n] for n in [place.value, *(n for n, _ in place.readers or ())]]
    shared = next((node for node in calls if node.calls > 1), None)
    return f"{shared.name} is called {shared.calls} times" if shared else ""


def _why_none(graph: Graph, model: Any, where: Where, refused: list[str]) -> str:
    said = (
        where if isinstance(where, str) else getattr(where, "__name__", ", ".join(where) if not callable(where) else "")
    )
    inner = [node.name for node in graph.nodes if isinstance(node.operation, keras.Model)]
    if refused:
        more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
        return f"where={said!r}: no place can take a gate. {'; '.join(refused[:3])}{more}"
    if inner:
        return (
            f"where={said!r}: nothing here; the model {inner[0]!r} within it is one layer: insert into that one first"
        )
    if not graph.joins and said in ("residual", "pre", "post", "identity"):
        return (
            f"where={said!r}: the network has no residual additions; where='conv' puts gates after convolutions, "
            "where='block:PATTERN' after layers by their names"
        )
    return f"where={said!r}: nothing in the network is such a place"


# --- stages ---


def _levels(graph: Graph) -> list[int]:
    """The numbers of positions at which each stage begins, the most first; empty where the image size is open."""
    values = [join.node for join in graph.joins] or [conv.index for conv in graph.convs]
    positions = {graph.positions(value) for value in values}
    return [] if None in positions else sorted((p for p in positions if p is not None), reverse=True)


def _stage(graph: Graph, place: Place, levels: list[int]) -> int:
    if graph.channels(place.level) is None:
        return 0
    positions = graph.positions(place.level)
    return 0 if positions is None else sum(level >= positions for level in levels)


def _checked_stages(model: Any, stages: Sequence[int], levels: list[int]) -> set[int]:
    if not levels:
        raise UserError(f"stages={stages!r}: {model.name} leaves the image size open; build it with an input_shape")
    if isinstance(stages, str) or not isinstance(stages, Iterable):
        raise UserError(f"stages={stages!r}: give a sequence of some of 1 to {len(levels)}, as (2, 3)")
    wrong = [s for s in stages if isinstance(s, bool) or s not in range(1, len(levels) + 1)]
    if wrong or not list(stages):
        raise UserError(f"stages={tuple(stages)!r}: this network has stages 1 to {len(levels)}")
    return set(stages)


# --- change ---


class _Gated:
    """Calls each layer of the new model, with gates on what it reads and on what it gives."""

    def __init__(self, gate: Gate, graph: Graph, found: Sequence[_Found]) -> None:
        self._behind: dict[str, Gate] = {}
        self._before: dict[tuple[str, int], Gate] = {}
        self._made: dict[Gate, Any] = {}
        for f in found:
            layer = _settled(gate, f.site, graph.nodes[f.place.value].operation, graph.data_format)
            if f.place.readers is None:
                self._behind[f.site.layer] = layer
            for n, at in f.place.readers or ():
                self._before[graph.nodes[n].name, at] = layer

    def __call__(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """The layer's output."""
        at = -1

        def gated(x: Any) -> Any:
            nonlocal at
            if not isinstance(x, keras.KerasTensor):
                return x
            at += 1
            gate = self._before.get((layer.name, at))
            if gate is None:
                return x
            # One gate for all who read it.
            if gate not in self._made:
                self._made[gate] = gate(x)
            return self._made[gate]

        args, kwargs = keras.tree.map_structure(gated, (args, kwargs))
        output = layer(*args, **kwargs)
        behind = self._behind.get(layer.name)
        return output if behind is None else behind(output)


def _settled(gate: Gate, site: Site, host: Any, data_format: str) -> Gate:
    """A gate of its own for a site, in the dtype of the layer it stands behind."""
    policy = getattr(host, "dtype_policy", None)
    dtype = {} if policy is None else {"dtype": keras.dtype_policies.serialize(policy)}
    return gate.fresh(name=site.gate, data_format=data_format, **dtype)


def _copy(layer: Any) -> Any:
    """A layer without weights yet, of the same config."""
    if isinstance(layer, keras.layers.Lambda):
        # A function of the user's own, in this process: nothing unsafe is read from a file.
        return type(layer).from_config(layer.get_config(), safe_mode=False)
    return type(layer).from_config(layer.get_config())
