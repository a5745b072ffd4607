"""classification_models for Keras: the SE authors' networks in legacy HDF5 files.

Read from the package's source, image-classifiers 1.0.0 (``classification_models/models/senet.py``,
``_common_blocks.py``). Layers have no names but those that Keras counts, ``conv2d_17``, so what a tensor is follows
from the order in which the code makes the layers; the gates' layers are the only convolutions with biases, two at the
end of every block. A grouped convolution is as many convolutions, side by side. The order of ``layer_names`` in the
file is another one and tells nothing.

The files are conversions of Cadene's, but the network is not: it pools with padding where Cadene's, as the SE authors',
pools in ceil mode. The Keras network is what its weights are loaded as.

Its other networks are other architectures: ``resnet*``, ``seresnet18`` and ``34`` are pre-activation networks that norm
their input (``bn_data``), ``resnext*`` norm it too, and the rest is ``keras.applications``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from excite.errors import UserError
from excite.models.resnet import ResNet
from excite.models.resnext import ResNeXt
from excite.models.senet import SENet
from excite.weights.layout import Layout, Refusal

__all__ = ["LAYOUTS", "REFUSALS", "read_h5"]

ZOO = "classification_models"

_NOTES = ("its networks pool with padding; the files they were converted from belong to networks in ceil mode",)

LAYOUTS = (
    Layout(
        ZOO,
        ResNet,
        {f"seresnet{depth}": f"resnet{depth}" for depth in (50, 101, 152)},
        (),
        {"stride_in": "1x1", "stem_pool": "padded"},
        notes=_NOTES,
    ),
    Layout(
        ZOO,
        ResNeXt,
        {f"seresnext{depth}": f"resnext{depth}_32x4d" for depth in (50, 101)},
        (),
        {"stem_pool": "padded"},
        notes=_NOTES,
    ),
    Layout(ZOO, SENet, {"senet154": "senet154"}, (), {"stem_pool": "padded"}, notes=_NOTES),
)

REFUSALS = (
    Refusal(
        ZOO,
        "it is a pre-activation network that norms its input; no network here is",
        names=r"(se)?resnet(18|34)|resnet(50|101|152)",
    ),
    Refusal(ZOO, "it norms its input; the ResNeXts here do not", names=r"resnext(50|101)"),
)

_COUNTED = re.compile(r"(conv2d|batch_normalization(?:_v\d)?|dense)(?:_(\d+))?")
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class _Layer(NamedTuple):
    name: str
    tensors: dict[str, Tensor]


class _Conv(NamedTuple):
    """A convolution, or as many side by side as it has groups."""

    layers: list[_Layer]

    @property
    def size(self) -> int:
        return self.layers[0].tensors["kernel"].shape[0]

    @property
    def name(self) -> str:
        first, last = self.layers[0].name, self.layers[-1].name
        return first if first == last else f"{first} to {last}"


def read_h5(path: Path) -> tuple[dict[str, Tensor], dict[str, str], frozenset[str], tuple[str, ...]]:
    """The tensors of a Keras file, with PyTorch's axes, by Keras' names.

    Args:
        path: what ``Model.save_weights`` or ``Model.save`` wrote as HDF5.

    Returns:
        the tensors; their names -> ours; the names of those whose axes were put in another order; hints.

    Raises:
        ValueError: h5py is missing, the file is damaged, or it holds another network than those of this zoo.
    """
    layers = _read_layers(path)
    named = sorted(layer.name for layer in layers if not _COUNTED.fullmatch(layer.name))
    if named:
        pre = "they norm their input, as pre-activation networks do; " if "bn_data" in named else ""
        raise UserError(
            f"{path}: Keras weights of layers such as {', '.join(named[:3])}: {pre}of Keras files only "
            "classification_models' seresnet50 to 152, seresnext50 and 101, and senet154 are read"
        )
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    transposed: set[str] = set()
    try:
        for theirs, ours, tensor, moved in _walk(layers):
            tensors[theirs], names[theirs] = tensor, ours
            if moved:
                transposed.add(theirs)
    except (IndexError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: its layers are not those of an SE network of classification_models "
            f"({type(error).__name__}: {error})"
        ) from None
    return tensors, names, frozenset(transposed), (path.stem,)


# --- the file ---


def _read_layers(path: Path) -> list[_Layer]:
    """The layers that have weights."""
    try:
        h5py: Any = importlib.import_module("h5py")
    except ModuleNotFoundError:
        raise UserError(f"{path}: reading Keras' .h5 needs h5py: pip install h5py") from None
    layers = []
    try:
        with h5py.File(path, "r") as file:
            root = file["model_weights"] if "model_weights" in file else file
            if "layers" in root and not any(name.startswith("layer_names") for name in root.attrs):
                raise UserError(
                    f"{path}: written by save_weights of Keras 3, whose own names for layers are not read here; save "
                    "the model whole: model.save('NAME.h5')"
                )
            for name in _attribute(root, "layer_names"):
                tensors = {
                    weight.rpartition("/")[2].partition(":")[0]: torch.from_numpy(root[name][weight][()])
                    for weight in _attribute(root[name], "weight_names")
                }
                if tensors:
                    layers.append(_Layer(name, tensors))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no whole HDF5 file of Keras weights ({type(error).__name__}: {error}); was its writing cut short?"
        ) from None
    return layers


def _attribute(group: Any, name: str) -> list[str]:
    """An attribute that is a list of names; Keras cuts one that is too long into parts numbered from 0."""
    parts = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{name}{len(parts)}"])
    if not parts:
        raise KeyError(name)
    return [entry.decode() if isinstance(entry, bytes) else str(entry) for part in parts for entry in part]


# --- the order ---


def _walk(layers: list[_Layer]) -> Iterator[tuple[str, str, Tensor, bool]]:
    """Keras' name, ours, the tensor with our axes, and whether they were others."""
    convs, norms, heads = (_counted(layers, kind) for kind in ("conv2d", "batch_normalization", "dense"))
    order = list(_structure(convs))
    bare = [(conv, ours) for conv, ours in order if "bias" not in conv.layers[0].tensors]
    if len(bare) != len(norms):
        raise ValueError(f"{len(bare)} convolutions without bias and {len(norms)} norms")
    for conv, ours in order:
        kernels = [layer.tensors["kernel"].permute(3, 2, 0, 1) for layer in conv.layers]
        yield f"{conv.name}/kernel", f"{ours}.weight", torch.cat(kernels), True
        if "bias" in conv.layers[0].tensors:
            yield f"{conv.name}/bias", f"{ours}.bias", conv.layers[0].tensors["bias"], False
    for norm, (_, ours) in zip(norms, bare, strict=True):
        for theirs, kind in _NORM.items():
            yield f"{norm.name}/{theirs}", f"{_norm_of(ours)}.{kind}", norm.tensors[theirs], False
    for head in heads:
        yield f"{head.name}/kernel", "fc.weight", head.tensors["kernel"].T, True
        yield f"{head.name}/bias", "fc.bias", head.tensors["bias"], False


def _counted(layers: list[_Layer], kind: str) -> list[_Layer]:
    """The layers of a kind in the order in which they were made."""
    numbers = {}
    for layer in layers:
        found = _COUNTED.fullmatch(layer.name)
        if found and found[1].startswith(kind):
            numbers[int(found[2] or 0)] = layer
    return [numbers[number] for number in sorted(numbers)]


def _structure(convs: list[_Layer]) -> Iterator[tuple[_Conv, str]]:
    """Each convolution with our name of it."""
    # One of 7x7, or three of 3x3.
    stem = 1 if convs[0].tensors["kernel"].shape[0] == 7 else 3
    for i in range(stem):
        yield _Conv([convs[i]]), f"conv{i + 1}"
    stage, block, at = 0, 0, stem
    while at < len(convs):
        end = at
        while "bias" not in convs[end].tensors:
            end += 1
        body = _grouped(convs[at:end])
        # Only the first block of a stage changes the shape, and so projects its shortcut.
        stage, block = (stage + 1, 0) if len(body) == 4 else (stage, block + 1)
        parts = ("conv1", "conv2", "conv3", "downsample.0")[: len(body)]
        if len(body) < 3:
            raise ValueError(f"a block of {len(body)} convolutions")
        for conv, part in zip(body, parts, strict=True):
            yield conv, f"layer{stage}.{block}.{part}"
        for i in (0, 1):
            yield _Conv([convs[end + i]]), f"layer{stage}.{block}.gate.fc{i + 1}"
        at = end + 2


def _grouped(convs: list[_Layer]) -> list[_Conv]:
    """A block's convolutions: 1x1, all of 3x3 that follow as one, 1x1, and the shortcut's if any."""
    inner = 1
    while inner < len(convs) and convs[inner].tensors["kernel"].shape[0] == 3:
        inner += 1
    return [_Conv([convs[0]]), _Conv(convs[1:inner]), *(_Conv([conv]) for conv in convs[inner:])]


def _norm_of(conv: str) -> str:
    module, _, name = conv.rpartition(".")
    norm = "1" if name == "0" else name.replace("conv", "bn")
    return f"{module}.{norm}" if module else norm
