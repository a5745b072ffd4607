"""Which zoo wrote a set of tensors: the one whose rules place most of them in the network at hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from excite.errors import UserError
from excite.models.base import Classifier
from excite.weights.files import Weights
from excite.weights.gates import is_of_a_gate
from excite.weights.layout import Layout
from excite.weights.options import options_of
from excite.weights.report import listed
from excite.weights.zoos import OWN, REFUSALS, named_layouts, parse_source

__all__ = ["Match", "best_match", "match_layout", "name_in", "refuse_by_name", "refuse_by_tensors"]


@dataclass(frozen=True)
class Match:
    """Tensors as one zoo writes them.

    Args:
        layout: how it writes them.
        source: the zoo, or the zoos that write them alike, with the network where a name decided.
        keys: their names -> ours, of those that a rule is for.
        notes: what was decided.
    """

    layout: Layout
    source: str
    keys: Mapping[str, str]
    notes: tuple[str, ...] = ()


def match_layout(layout: Layout, weights: Weights) -> dict[str, str] | None:
    """Their names -> ours by the rules of ``layout``; None where it is not for such tensors at all."""
    keys = weights.tensors
    if weights.zoo and layout.zoo != weights.zoo:
        return None
    if not layout.may_be(keys):
        return None
    if weights.names is not None:
        return dict(weights.names)
    return {key: ours for key in keys if (ours := layout.our_key(key)) is not None}


def best_match(weights: Weights, model: Classifier, source: str) -> Match:
    """The zoo that wrote the tensors, given the network they are meant for.

    Raises:
        ValueError: no zoo's names, those of another network or one that is refused, or two networks of a zoo that
            no shape tells apart and no name does.
    """
    zoo, name = parse_source(weights.told if source == "auto" else source)
    if zoo == OWN or (zoo is None and weights.spec is not None):
        return _own(weights, model)
    if name is None and zoo is None:
        refuse_by_name(weights)
    placed: list[tuple[int, Layout, Mapping[str, str]]] = []
    for layout in named_layouts(zoo, name):
        keys = match_layout(layout, weights) if layout.family is type(model) else None
        if keys is not None:
            placed.append((_explained(weights, layout, keys, model), layout, keys))
    if zoo is None:
        own = _own(weights, model)
        placed.append((_explained(weights, own.layout, own.keys, model), own.layout, own.keys))
    most = max((count for count, *_ in placed), default=0)
    if most < len(weights.tensors):
        refuse_by_tensors(weights, zoo)
    # Half is few enough for a part of a network, and too many for chance.
    if 2 * most < len(weights.tensors):
        raise UserError(_unrecognised(weights, model, source))
    best = [(layout, keys) for count, layout, keys in placed if count == most]
    others = [(layout, keys) for layout, keys in best if layout.zoo != OWN]
    return _decide(others or best, weights, model, name)


def _own(weights: Weights, model: Classifier) -> Match:
    layout = Layout(OWN, type(model), {}, ((r"(.+)", "{1}"),), head=_own_head(model))
    return Match(layout, OWN, {key: key for key in weights.tensors if layout.our_key(key) is not None})


def _own_head(model: Classifier) -> str:
    layouts = [layout.head for layout in named_layouts(None, None) if layout.family is type(model)]
    return layouts[0] if layouts else "fc"


def _explained(weights: Weights, layout: Layout, keys: Mapping[str, str], model: Classifier) -> int:
    """How many tensors have a place in the network, gates counted whether it has them or not, or need none."""
    known = model.state_dict().keys()
    placed = {key for key, ours in keys.items() if ours in known or is_of_a_gate(ours)}
    return sum(key in placed or layout.why_idle(key) is not None for key in weights.tensors)


# --- several that fit ---


def _decide(
    found: list[tuple[Layout, Mapping[str, str]]], weights: Weights, model: Classifier, name: str | None
) -> Match:
    """One of several layouts that fit alike, by the name of the network where they are different networks."""
    shown = options_of(model)
    variants: dict[str, list[tuple[Layout, Mapping[str, str]]]] = {}
    for layout, keys in found:
        variants.setdefault(say({o: v for o, v in layout.options.items() if o in shown}), []).append((layout, keys))
    notes = []
    if len(variants) > 1:
        said = name_in(weights, [layout for layout, _ in found])
        fitting = [v for v in variants.values() if said and any(said in layout.networks for layout, _ in v)]
        if len(fitting) != 1:
            raise UserError(_ambiguous(weights, variants))
        variants = {"": fitting[0]}
        name = said
        notes.append(f"{weights.origin} is called {said!r}; other networks of the same shapes stride or pool elsewhere")
    (chosen,) = variants.values()
    layout, keys = chosen[0]
    zoos = list(dict.fromkeys(layout.zoo for layout, _ in chosen))
    if len(zoos) > 1:
        notes.append(f"{' and '.join(zoos)} write this network with the same names")
    source = " or ".join(zoos) + (f":{name}" if name else "")
    return Match(layout, source, keys, tuple(notes))


def name_in(weights: Weights, layouts: Iterable[Layout]) -> str | None:
    """The network's name among those of ``layouts``, from an entry of the file or the beginning of its name."""
    names = {name for layout in layouts for name in layout.networks}
    for hint in weights.hints:
        known = [name for name in names if re.match(re.escape(name) + r"(?![A-Za-z0-9])", hint)]
        if known:
            return max(known, key=len)
    return None


def say(options: Mapping[str, Any]) -> str:
    """Options as they are written in a call."""
    return ", ".join(f"{option}={value!r}" for option, value in options.items())


def _ambiguous(weights: Weights, variants: Mapping[str, list[tuple[Layout, Mapping[str, str]]]]) -> str:
    cases = []
    for options, found in variants.items():
        layout = found[0][0]
        cases.append(f"source='{layout.zoo}:{_example(layout)}' ({options})")
    return (
        f"{weights.origin}: names and shapes are those of more than one network, and the file's name is none of "
        f"theirs; say which it is: {', or '.join(cases)}"
    )


def _example(layout: Layout) -> str:
    return next((name for name in layout.networks if re.search(r"50|101", name)), next(iter(layout.networks)))


# --- none that fits ---


def refuse_by_name(weights: Weights) -> None:
    """Refuse a file whose name is that of a network with a known one's names and shapes that computes another thing.

    Raises:
        ValueError: it is.
    """
    for hint in weights.hints:
        for refusal in REFUSALS:
            if refusal.alike and refusal.is_called(hint):
                raise UserError(
                    f"{weights.origin}: called after a network of {refusal.zoo} that no network here computes: "
                    f"{refusal.reason}. If it is another one, give source='ZOO:NETWORK'"
                )


def refuse_by_tensors(weights: Weights, zoo: str | None) -> None:
    """Refuse tensors that are known to be another network's.

    Raises:
        ValueError: they are.
    """
    for refusal in REFUSALS:
        if zoo in (None, refusal.zoo) and refusal.fits(weights.tensors):
            raise UserError(
                f"{weights.origin}: no network here computes what this one of {refusal.zoo} does: {refusal.reason}"
            )


def _unrecognised(weights: Weights, model: Classifier, source: str) -> str:
    of = "" if source == "auto" else f" by the names of {source!r}"
    return f"{weights.origin}: no tensors of a {type(model).__name__}{of}; its names are like {listed(weights.tensors)}"
