"""Where the networks of docs/networks.md get weights from, and what their outputs were compared with.

Zoos come from the tables by which ``excite.weights`` reads them; tests/test_networks_page_peers.py builds every
network of a library that the page names and compares outputs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from excite.models import create_model
from excite.models.base import Classifier
from excite.weights.options import options_of
from excite.weights.zoos import LAYOUTS

__all__ = ["LIBRARIES", "WRITTEN", "Source", "checked", "is_compared", "kind_of", "on_meta", "sources", "weights"]

LIBRARIES = ("torchvision", "timm", "pytorchcv")
"""Zoos that are installed with the tests."""

# The test that compares a network, or shortened ones of its kind, with a forward pass written from the paper or with
# the authors' modules, for what no library has; by network and kind of gate.
WRITTEN: dict[tuple[str, str], str] = {
    ("vgg16_bn", "se"): "tests/models/test_vgg.py::test_gates_follow_each_nonlinearity_of_their_stages",
    ("bn_inception", "se"): "tests/models/test_inception.py::test_gate_of_a_unit_takes_its_concatenation",
    ("inception_resnet_v2", "se"): "tests/models/test_inception.py::test_placements_in_a_residual_unit",
    ("mobilenetv1", "se"): "tests/models/test_mobilenet.py::test_v1_gates_follow_the_pointwise_activation",
    ("shufflenetv1", "se"): "tests/models/test_shufflenet.py::test_placements",
    **{
        (f"resnet{depth}", kind): f"tests/weights/test_weights_parity.py::{test}"
        for depth in (18, 34, 50, 101, 152)
        # In rows without biases.
        for kind, test in (
            ("se", "test_moskomules_networks"),
            ("eca", "test_the_eca_authors_networks_as_they_save_them"),
        )
    },
    ("mobilenetv2", "se"): "tests/models/test_mobilenet.py::test_v2_placements",
    ("mobilenetv2", "eca"): "tests/models/test_mobilenet.py::test_v2_with_eca_is_the_authors_structure",
    ("preresnet164", "se"): "tests/models/test_cifar_preact.py::test_placements_are_the_papers",
    **{
        ("wrn16_8", kind): "tests/models/test_cifar_preact.py::test_wide_network_is_the_papers"
        for kind in ("none", "se")
    },
    **{
        (name, kind): "tests/models/test_shake_shake.py::test_networks_and_placements_are_the_papers"
        for name in ("shake_shake26_2x96d", "shake_even29_2x4x64d")
        for kind in ("none", "se")
    },
}


@dataclass(frozen=True)
class Source:
    """A zoo's network that ``load_weights`` reads into one of ours.

    Attributes:
        zoo: the zoo's name.
        name: its name of the network.
        exact: whether it is the very network asked about; else its stride, pool, widths, biases or the like differ, and
            ``options`` and ``gate`` build the one that it is.
        options: of ``create_model``.
        gate: the text of its gate.
    """

    zoo: str
    name: str
    exact: bool
    options: Mapping[str, Any]
    gate: str


def kind_of(gate: str) -> str:
    """The kind of a gate's text: none, se or eca."""
    return gate.partition("(")[0]


def _kind_in(name: str) -> str:
    """The kind of gate that a zoo's name of a network says."""
    found = re.match(r"(?:legacy_)?(se|eca)(?=_|net|resne)", name)
    return found[1] if found else "none"


def _gate_of(zoo: str, theirs: str, ours: str) -> str:
    """The gates of a zoo's network: the SE paper's with biases, where these two do not have others."""
    kind = _kind_in(theirs)
    own = {"moskomule": "se(bias=false)", "ecanet": f"eca(kernel_size=released:{ours})"}
    return "none" if kind == "none" else own.get(zoo, kind)


@functools.cache
def _on_meta(name: str, gate: str, items: tuple[tuple[str, Any], ...]) -> Classifier:
    with torch.device("meta"):
        return create_model(name, gate=gate, **dict(items))


def on_meta(name: str, gate: str = "none", **kwargs: Any) -> Classifier:
    """A network without data."""
    return _on_meta(name, gate, tuple(sorted(kwargs.items())))


def _same(ours: Classifier, theirs: Classifier) -> bool:
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    return shapes[0] == shapes[1] and options_of(ours) == options_of(theirs)


def sources(name: str, gate: str, **kwargs: Any) -> list[Source]:
    """The network of each zoo that is this one, or is it with other options; one a zoo, exact ones first choice."""
    ours = on_meta(name, gate, **kwargs)
    found: dict[str, Source] = {}
    for zoo, layouts in LAYOUTS.items():
        for layout in layouts:
            for theirs, own in layout.networks.items():
                if own != name or _kind_in(theirs) != kind_of(gate) or zoo in found and found[zoo].exact:
                    continue
                text = _gate_of(zoo, theirs, own)
                exact = _same(ours, on_meta(name, text, **layout.options))
                if exact or zoo not in found:
                    found[zoo] = Source(zoo, theirs, exact, layout.options, text)
    return list(found.values())


def weights(found: list[Source]) -> str:
    """The zoos that have this very network; where none has, those in brackets that have it with other options."""
    exact = [source.zoo for source in found if source.exact]
    if exact:
        return ", ".join(exact)
    return f"({', '.join(source.zoo for source in found)})" if found else ""


def is_compared(source: Source, gate: str) -> bool:
    """Whether the page says of a zoo's network that its outputs are those of ours with its options and this gate."""
    return source.zoo in LIBRARIES and source.gate == gate


def checked(name: str, gate: str, found: list[Source]) -> str:
    """The libraries whose whole network, with this gate, has the same outputs; where there is none, what else has."""
    libraries = [source.zoo for source in found if is_compared(source, gate)]
    if libraries:
        return ", ".join(libraries)
    assert (name, kind_of(gate)) in WRITTEN, (name, gate)
    return "forward pass"
