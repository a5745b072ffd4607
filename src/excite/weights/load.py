"""Weights of other zoos into networks of this project, with nothing guessed and nothing left unsaid."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from excite.errors import UserError, unknown
from excite.gates import GateConfig, parse_gate
from excite.models.base import Classifier, GatedBlock, gate_modules
from excite.weights.detect import detect_in, options_in
from excite.weights.files import Weights, read_weights
from excite.weights.fit import converted
from excite.weights.gates import are_exactly_one, function_of, infer_gate, is_of_a_gate, kind_of
from excite.weights.options import options_of
from excite.weights.recognise import Match, best_match, say
from excite.weights.report import LoadReport, listed
from excite.weights.zoos import OWN

__all__ = ["load_weights"]

GATES = "gates"
CLASSIFIER = "classifier"


def load_weights(
    model: nn.Module,
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    *,
    source: str = "auto",
    strict: bool = True,
    fresh: str | Iterable[str] = (),
) -> LoadReport:
    """Load weights into a network, whichever zoo wrote them, or say why not and leave it as it was.

    The source's names are mapped to ours; 1x1 convolutions become linear layers where ours are, and Keras' axes are put
    in PyTorch's order. What shapes do not show (which convolution strides, how the stem pools, the function of the
    gates) is known by the zoo and the network's name, and must be what the network here does.

    Args:
        model: a network of ``create_model``.
        path_or_state_dict: a file (safetensors, what ``torch.save`` wrote, Keras' .h5), read without running anything
            that is in it; or a state dict, also one inside a training script's checkpoint.
        source: "auto" finds the zoo by the tensors' names. "timm" names it, "timm:seresnet50" the network too, which is
            asked for where one zoo has two networks of the same names and shapes. "excite" takes all names as ours and
            the network for the one that was trained.
        strict: False leaves tensors that the source does not have as they are, and the source's own surplus unused.
        fresh: parts of the network that stay as they are, whatever the source has: "gates", "classifier" or both.
            Gates in their neutral form that are still at their start stay so without being named here, if the source
            has none: the network then computes what the source's does.

    Returns:
        What was loaded, renamed, reshaped, left and decided.

    Raises:
        ValueError: a file that cannot be read; names that no zoo writes; another network, or one with other options or
            gates, with the call of ``create_model`` that builds it; tensors missing or left over while ``strict``.
    """
    if not isinstance(model, Classifier):
        raise UserError(
            f"load_weights takes a network of create_model; got {type(model).__name__}. Of a wrapped or compiled one "
            "give what is inside (model.module, model._orig_mod)"
        )
    parts = _parts(fresh, model)
    weights = read_weights(path_or_state_dict)
    if _without_storage(model.state_dict()) and not _without_storage(weights.tensors):
        raise UserError(
            "this network has no storage (device meta), so nothing could be loaded: model.to_empty(...) first"
        )
    try:
        match = best_match(weights, model, source)
    except UserError as error:
        raise UserError(f"{error}{_whose(weights, source)}") from None
    plan = _Plan(model, weights, match, parts)
    plan.check_options()
    plan.sort_gates()
    plan.sort_classifier()
    plan.place()
    plan.raise_problems(strict, source)
    model.load_state_dict(plan.ready, strict=False)
    return plan.report()


def _whose(weights: Weights, source: str) -> str:
    """The network that the weights belong to, as the end of a message; "" where none is known."""
    try:
        return f". These weights are those of {detect_in(weights, source)}"
    except UserError:
        return ""


def _first(problems: list[str], most: int = 3) -> list[str]:
    rest = len(problems) - most
    return problems[:most] + ([f"and {rest} more such"] if rest > 0 else [])


def _without_storage(tensors: Mapping[str, Tensor]) -> bool:
    return any(tensor.is_meta for tensor in tensors.values())


def _parts(fresh: str | Iterable[str], model: Classifier) -> frozenset[str]:
    given = [part.strip() for part in fresh.split(",") if part.strip()] if isinstance(fresh, str) else list(fresh)
    for part in given:
        if part not in (GATES, CLASSIFIER):
            raise unknown("part to leave fresh", part, (GATES, CLASSIFIER))
    if GATES in given and not gate_modules(model):
        raise UserError("fresh='gates': this network has none")
    if CLASSIFIER in given and getattr(model, "num_classes", 0) == 0:
        raise UserError("fresh='classifier': this network has none (num_classes=0)")
    return frozenset(given)


@dataclass
class _Plan:
    """What goes where, worked out before anything is changed."""

    model: Classifier
    weights: Weights
    match: Match
    fresh_parts: frozenset[str]
    ready: dict[str, Tensor] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    zeroed: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    # The source's tensors that are not to be loaded, each with the reason where that is no loss.
    unused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    # What no strict=False helps against, and what it does.
    wrong: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = self.model.state_dict()
        self.gates = gate_modules(self.model)
        self.theirs = {ours: theirs for theirs, ours in self.match.keys.items()}
        self.notes += [*self.weights.notes, *self.match.notes, *self.match.layout.notes]
        for key in self.weights.tensors:
            if self.match.keys.get(key) not in self.own:
                self.unused[key] = self.match.layout.why_idle(key) or ""

    # --- what no shape shows ---

    def check_options(self) -> None:
        """The network's hidden options must be the source's."""
        shown = options_of(self.model)
        theirs = self.match.layout.options if self.weights.spec is None else options_in(self.weights.spec)
        expected = {o: v for o, v in theirs.items() if o in shown}
        differing = {o: v for o, v in expected.items() if v != shown[o]}
        if differing:
            mine = say({o: shown[o] for o in differing})
            self.wrong.append(
                f"{self.match.source} has {say(differing)} where this network has {mine}: the same shapes, another "
                f"function. Build it with create_model(..., {say(differing)})"
                + ("" if self.match.source == OWN else "; if excite wrote these weights, give source='excite'")
            )
        elif expected:
            self.notes.append(f"{self.match.source} has {say(expected)}, as this network")
        if self.match.source == OWN and self.weights.spec is None:
            self.notes.append("names are taken as ours, and options that no shape shows as this network's")

    # --- parts ---

    def sort_gates(self) -> None:
        """The source's gates into ours, or either of them left out."""
        theirs = {ours: self.weights.tensors[key] for ours, key in self.theirs.items() if is_of_a_gate(ours)}
        if GATES in self.fresh_parts:
            self._leave(is_of_a_gate, "gates were asked to stay fresh")
            self._say_what_fresh_gates_do()
        elif self.gates and not theirs:
            if are_exactly_one(self.gates):
                self._leave(is_of_a_gate, "")
            else:
                self.incomplete.append(
                    "it has no gates, and this network does. Plain weights load into gates that start neutral: "
                    "create_model(..., gate='se(neutral=true)'), or leave these as they are: fresh='gates'"
                )
            self._say_what_fresh_gates_do()
        elif theirs and not self.gates:
            gate = self._inferred(theirs)
            self.incomplete.append(f"it has gates, and this network has none: create_model(..., gate={gate!r})")
        elif theirs:
            self._compare_gates(theirs)

    def _say_what_fresh_gates_do(self) -> None:
        if are_exactly_one(self.gates):
            self.notes.append("the gates are exactly 1 now: the network computes what the source's does without gates")
        else:
            self.notes.append(
                "fresh gates scale what they stand on, sigmoid gates by about 1/2; with neutral=true they start at 1"
            )

    def _compare_gates(self, theirs: Mapping[str, Tensor]) -> None:
        expected = self._their_gate(theirs)
        configs = [gate.config for gate in self.gates.values() if isinstance(gate.config, GateConfig)]
        if expected is None:
            return
        other = next((config for config in configs if function_of(config) != function_of(expected)), None)
        said = self._inferred(theirs)
        if other is not None:
            self.wrong.append(
                f"its gates are {said!r} and this network's are {str(other)!r}, another function: "
                f"create_model(..., gate={said!r}), or keep yours: fresh='gates'"
            )
            return
        placements = {b.placement for b in self.model.modules() if isinstance(b, GatedBlock) and b.gate is not None}
        wanted = (self.weights.spec or {}).get("placement", "standard")
        if placements != {wanted}:
            self.wrong.append(f"its gates stand at placement={wanted!r}, this network's at {placements.pop()!r}")
        shapes = {k: v.shape for k, v in self.own.items() if is_of_a_gate(k)}
        if {k: v.numel() for k, v in theirs.items()} != {k: v.numel() for k, v in shapes.items()}:
            self.incomplete.append(f"its gates have other widths, biases or stages: gate={said!r} has them")

    def _their_gate(self, theirs: Mapping[str, Tensor]) -> GateConfig | None:
        if self.weights.spec is not None:
            return parse_gate(self.weights.spec.get("gate"))
        return None if self.match.source == OWN else kind_of(theirs)

    def _inferred(self, theirs: Mapping[str, Tensor]) -> str:
        if self.weights.spec is not None:
            return str(self.weights.spec.get("gate"))
        channels = {name: g.channels for name, g in self.gates.items() if isinstance(g.channels, int)}
        return str(infer_gate(theirs, channels) or kind_of(theirs) or "its own")

    def sort_classifier(self) -> None:
        """The classifier, where its size is the source's or it is to stay as it is."""
        head = f"{self.match.layout.head}."
        mine = [key for key in self.own if key.startswith(head)]
        found = [ours for ours in self.theirs if ours.startswith(head)]
        if CLASSIFIER in self.fresh_parts:
            # Inception-v3's auxiliary head is a classifier of the same classes.
            self._leave(lambda key: key.startswith((head, "AuxLogits.fc.")), "the classifier was asked to stay fresh")
        elif not mine:
            for key in found:
                self.unused[self.theirs[key]] = "this network has no classifier (num_classes=0)"
        elif not found:
            self.incomplete.append("it has no classifier: fresh='classifier' keeps this network's own")
        elif f"{head}weight" in self.theirs:
            theirs, own = (t[f"{head}weight"].shape[:1] for t in (self._by_our_names(), self.own))
            if theirs and theirs != own:
                self.incomplete.append(
                    f"its classifier has {theirs[0]} classes and this network's {own[0]}: create_model(..., "
                    f"num_classes={theirs[0]}), or keep this network's own: fresh='classifier'"
                )

    def _by_our_names(self) -> dict[str, Tensor]:
        return {ours: self.weights.tensors[theirs] for ours, theirs in self.theirs.items()}

    def _leave(self, belongs: Callable[[str], bool], reason: str) -> None:
        """Our tensors of a part stay; the source's of that part are not used."""
        self.fresh += [key for key in self.own if belongs(key)]
        for ours, theirs in self.theirs.items():
            if belongs(ours):
                self.unused[theirs] = reason

    # --- tensors ---

    def place(self) -> None:
        """Every tensor of the network from the source, or into the list that says why not."""
        left, counters = set(self.fresh), 0
        for key, own in self.own.items():
            if key in left:
                continue
            if key not in self.theirs:
                if key.endswith("num_batches_tracked"):
                    counters += 1
                elif self.match.layout.is_zero(key):
                    self.zeroed.append(key)
                    self.ready[key] = torch.zeros_like(own)
                else:
                    self.missing.append(key)
                continue
            self._place(key, own, self.weights.tensors[self.theirs[key]])
        if counters:
            self.notes.append(f"{counters} norms count no batches in the source; the count changes nothing in them")
        if self.zeroed:
            self.notes.append(f"{self.match.source} leaves out {listed(self.zeroed)}, being zero in its network")

    def _place(self, key: str, own: Tensor, theirs: Tensor) -> None:
        tensor = converted(theirs, tuple(own.shape))
        # Counters of batches may be no whole numbers: in averages of checkpoints, or where all is in half precision.
        if tensor is not None and own.is_floating_point() and not theirs.is_floating_point():
            self.wrong.append(f"{self.theirs[key]!r} holds {theirs.dtype}; quantised weights are not read")
        elif tensor is None:
            self.missing.append(key)
            self.unused[self.theirs[key]] = ""
            self.incomplete.append(
                f"{self.theirs[key]!r} has shape {list(theirs.shape)}, {key!r} of this network {list(own.shape)}"
            )
        else:
            self.ready[key] = tensor
            if theirs.shape != own.shape:
                self.reshaped.append(key)

    # --- the end ---

    def raise_problems(self, strict: bool, source: str) -> None:
        """One error with all that stands in the way, and the network that the weights belong to.

        Raises:
            ValueError: something does.
        """
        lost = [key for key, reason in self.unused.items() if not reason]
        problems = _first(self.wrong)
        if strict:
            problems += _first(self.incomplete)
            if not self.incomplete and self.missing:
                problems.append(f"it lacks {listed(self.missing)}")
            if not self.incomplete and lost:
                problems.append(f"it has {listed(lost)}, for which this network has no place")
        if not problems:
            return
        advice = _whose(self.weights, source) or ("" if self.wrong else ". strict=False loads what fits")
        raise UserError(f"{self.weights.origin} ({self.match.source}): {'; '.join(problems)}{advice}")

    def report(self) -> LoadReport:
        """What was done."""
        for reason in dict.fromkeys(reason for reason in self.unused.values() if reason):
            which = [key for key, why in self.unused.items() if why == reason]
            self.notes.append(f"not used: {listed(which)}: {reason}")
        loaded = [key for key in self.ready if key not in self.zeroed]
        return LoadReport(
            source=self.match.source,
            origin=self.weights.origin,
            matched=tuple(loaded),
            renamed={key: self.theirs[key] for key in loaded if self.theirs[key] != key},
            transposed=tuple(key for key in loaded if self.theirs[key] in self.weights.transposed),
            reshaped=tuple(self.reshaped),
            zeroed=tuple(self.zeroed),
            fresh=tuple(self.fresh),
            missing=tuple(self.missing),
            unused=tuple(self.unused),
            notes=tuple(self.notes),
        )
