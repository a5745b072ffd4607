"""Starting from weights that were trained elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from excite.errors import UserError, unknown
from excite.models.base import Classifier, gate_modules
from excite.weights import load_weights
from excite.weights.files import read_weights

__all__ = ["start_from"]

_WRAPPERS = ("module.", "_orig_mod.", "model.")


def start_from(network: nn.Module, path: str | os.PathLike[str], *, num_classes: int, gates_may_be_fresh: bool) -> str:
    """Put the weights of a file into a network that is to be trained on.

    A classifier for another number of classes stays fresh, and so do gates that the file does not have. All else must
    be there and fit, or nothing is changed.

    Args:
        network: of ``create_model``, or any other whose tensors the file names as it does.
        path: see ``load_weights``.
        num_classes: outputs of the network.
        gates_may_be_fresh: whether gates that scale what they stand on may stay fresh; neutral ones always may.

    Returns:
        What was loaded and what was not, in a sentence.

    Raises:
        ValueError: an unreadable file, or one of another network.
    """
    if isinstance(network, Classifier):
        return _into_ours(network, path, gates_may_be_fresh)
    return _into_any(network, read_weights(path).tensors, path, num_classes)


def _into_ours(network: Classifier, path: str | os.PathLike[str], gates_may_be_fresh: bool) -> str:
    choices: list[tuple[str, ...]] = [(), ("classifier",)]
    if gates_may_be_fresh and gate_modules(network):
        choices += [("gates",), ("gates", "classifier")]
    first: UserError | None = None
    for fresh in choices:
        try:
            report = load_weights(network, path, fresh=fresh)
        except UserError as error:
            first = first or error
        else:
            return _summary(path, len(report.matched), report.fresh)
    assert first is not None
    raise first


def _into_any(network: nn.Module, given: Mapping[str, Tensor], path: str | os.PathLike[str], num_classes: int) -> str:
    own = network.state_dict()
    # What is common to all names may have been taken for a wrapper's.
    prefix = next((p for p in _WRAPPERS if all(key.startswith(p) for key in own)), "")
    given = {prefix + key: tensor for key, tensor in given.items()}
    gates = tuple(f"{name}." for name in gate_modules(network))
    ready: dict[str, Tensor] = {}
    fresh: list[str] = []
    for key, tensor in own.items():
        theirs = given.get(key)
        if theirs is not None and theirs.shape == tensor.shape:
            ready[key] = theirs
        elif (theirs is None and key.startswith(gates)) or _is_classifier(theirs, tensor, num_classes):
            fresh.append(key)
        elif theirs is not None:
            shapes = f"{tuple(theirs.shape)} in the file, {tuple(tensor.shape)} in the network"
            raise UserError(f"{path}: {key!r} is {shapes}; is it of another network?")
        elif not key.endswith("num_batches_tracked"):
            raise UserError(f"{path}: it has no {key!r}, which the network has. {unknown('tensor', key, given)}")
    surplus = [key for key in given if key not in own]
    if surplus:
        raise UserError(
            f"{path}: {len(surplus)} of its tensors are not the network's, {surplus[0]!r} first; is it of another one?"
        )
    with torch.no_grad():
        for key, tensor in ready.items():
            own[key].copy_(tensor)
    return _summary(path, len(ready), fresh)


def _is_classifier(theirs: Tensor | None, own: Tensor, num_classes: int) -> bool:
    """Whether two tensors differ by the number of classes alone."""
    return theirs is not None and own.dim() >= 1 and own.shape[0] == num_classes and theirs.shape[1:] == own.shape[1:]


def _summary(path: str | os.PathLike[str], loaded: int, fresh: Sequence[str]) -> str:
    left = f"; {len(fresh)} stay fresh, {fresh[0]} first" if fresh else ""
    return f"{loaded} tensors from {path}{left}"
