"""`explain`: what a network's gates do on a set of images, as one page and as numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from excite.analysis.batches import ImageBatches, checked_batches
from excite.analysis.collect import collected, drawable, only_sites
from excite.analysis.config import ExplainConfig
from excite.analysis.explanation import Explanation
from excite.analysis.knockout import KnockOuts, knock_out
from excite.analysis.page import explanation_page
from excite.analysis.record import GateRecord
from excite.analysis.recording import record_gates
from excite.analysis.thumbnails import pictures_of, pictures_seen, thumbnails
from excite.checkpoint import Checkpoint, read_checkpoint
from excite.data import DataSet
from excite.data.dataset import FileSplit
from excite.errors import UserError
from excite.files import check_folder, expanded, write_atomic
from excite.training.trained import checkpoint_file, data_as_trained, pick_device

__all__ = ["explain", "explain_checkpoint"]

Pictures = Callable[[Sequence[int]], dict[int, Tensor]]


def explain(
    model: nn.Module,
    loader: Iterable[Any],
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    sample: int = 2000,
    sites: Sequence[str] = (),
    show_classes: Sequence[str] = (),
    knock_out: bool = True,
    pictures: bool = True,
    permutations: int = 999,
    level: float = 0.95,
    seed: int = 0,
    name: str | None = None,
    progress: bool = False,
) -> Path:
    """Looks at what a network's gates do on a set of images, and writes a page that shows it.

    Args:
        model: a network in eval mode, its gates of ``excite``, attached, or of another library.
        loader: gives tuples (images, labels), or (images, labels, indices or names), with images as the network takes
            them; the same ones in the same order each time it is gone through, which is up to three times.
        out: the folder for explain.html and explain.json; made where missing.
        classes: names of the classes; None counts the network's outputs.
        sample: of how many images s itself is kept, drawn at random: for histograms, tests and what is knocked out.
        sites: only these gates, by name or block, as "layer4.*"; none is all.
        show_classes: names of the classes to draw; none is all, or up to 20 spread over the list.
        knock_out: replace each gate by its mean, by 1 and by what it gives for another image, and see what is lost.
        pictures: put small pictures into the page, stretched from each input's smallest number to its largest.
        permutations: how often labels are dealt out at random to test specificity, at least; more for many gates.
        level: coverage of the intervals.
        seed: of every random choice.
        name: what the page calls the network; None is its class.
        progress: show a bar.

    Returns:
        Where explain.html is.

    Raises:
        ValueError: a network without gates or in training mode, batches of another form, unknown gates or classes, too
            few images, a loader that cannot be gone through again, or an ``out`` that is a file.
    """
    if iter(loader) is loader:
        raise UserError(
            f"loader is a {type(loader).__name__}, which ends once it was gone through: give a list or DataLoader"
        )
    config = ExplainConfig(
        checkpoint="", sample=sample, sites=tuple(sites), show_classes=tuple(show_classes), knock_out=knock_out,
        pictures=pictures, permutations=permutations, level=level, seed=seed,
    )  # fmt: skip
    found = _explained(
        model,
        loader,
        config,
        classes=classes,
        network={"name": name or type(model).__name__},
        data={},
        pictures=pictures_seen(loader),
        out=Path(out),
        progress=progress,
    )
    assert found.folder is not None
    return found.folder / "explain.html"


def explain_checkpoint(config: ExplainConfig, *, data: DataSet | None = None) -> Explanation:
    """Looks at what the gates of a trained network do, and writes explain.html and explain.json.

    Args:
        config: the checkpoint, the data and what to look at.
        data: use this set instead of loading ``config.data``.

    Raises:
        ValueError: a missing or damaged checkpoint, a network without gates, unreadable data or data whose classes or
            channels are not the network's, unknown gates or classes, or too few images.
    """
    path = checkpoint_file(config.checkpoint)
    checkpoint = read_checkpoint(path)
    device = pick_device(config.accelerator)
    model = checkpoint.load(trust=config.trust).to(device)
    loaded = data_as_trained(
        checkpoint, data or config.data, download=config.download, bad_image_limit=config.bad_image_limit
    )
    batches = ImageBatches(
        loaded,
        config.split,
        batch_size=config.batch_size,
        limit=config.images,
        seed=config.seed,
        workers=config.workers,
    )
    return _explained(
        model,
        batches,
        config,
        classes=loaded.classes,
        network=_network(checkpoint),
        data=_described(loaded, config),
        pictures=pictures_of(loaded, config.split),
        image_name=_image_names(loaded, config.split),
        out=expanded(config.out) if config.out else path.parent / "explain",
        progress=sys.stdout.isatty(),
    )


def _explained(
    model: nn.Module,
    batches: Iterable[Any],
    config: ExplainConfig,
    *,
    classes: Sequence[str] | None,
    network: Mapping[str, Any],
    data: Mapping[str, Any],
    pictures: Pictures,
    out: Path,
    progress: bool,
    image_name: Callable[[int], str] | None = None,
) -> Explanation:
    check_folder(out, "explain.html", "out")
    record = record_gates(model, batches, classes=classes, sample=config.sample, progress=progress, seed=config.seed)
    record = only_sites(record, config.sites)
    drawable(record, config.show_classes)  # what cannot be drawn is said before the long part, not after it
    knocked = _knocked_out(model, batches, record, config, progress) if config.knock_out else None
    settings = config.to_dict()
    for field in ("checkpoint", "data", "out", "download", "workers", "trust", "bad_image_limit"):
        del settings[field]
    found = collected(
        record,
        knocked,
        network=network,
        data=data,
        settings=settings | {"knock_out_images": knocked.n if knocked else 0},
        device=next((p.device for p in model.parameters()), "cpu"),
        show_classes=config.show_classes,
        permutations=config.permutations,
        image_name=image_name,
    )
    small = thumbnails(pictures([i.index for i in found.images])) if config.pictures else {}
    page = explanation_page(found, small)
    page.write(out / "explain.html")
    write_atomic(out / "explain.json", json.dumps(found.to_dict(), allow_nan=False) + "\n")
    return dataclasses.replace(found, folder=out)


def _knocked_out(
    model: nn.Module, batches: Iterable[Any], record: GateRecord, config: ExplainConfig, progress: bool
) -> KnockOuts | None:
    """Of the sample's images; None where the network gives no logits to tell by."""
    if (record.images.predicted < 0).any():
        return None
    sample = _Chosen(batches, model, record.images.index[record.sample_rows])
    return knock_out(model, sample, record, level=config.level, seed=config.seed, progress=progress)


class _Chosen:
    """Some images of batches, the same ones each time."""

    def __init__(self, batches: Iterable[Any], model: nn.Module, index: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._batches, self._model, self._index = batches, model, index

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Any]]:
        for batch in checked_batches(self._batches, self._model):
            rows = np.flatnonzero(np.isin(batch.indices, self._index))
            if len(rows):
                names = batch.indices[rows] if batch.names is None else [batch.names[i] for i in rows]
                yield batch.images[torch.from_numpy(rows)], torch.from_numpy(batch.labels[rows]), names


def _image_names(data: DataSet, split: str) -> Callable[[int], str]:
    whole = data.train if split == "train" else data.val
    if isinstance(whole, FileSplit):
        return lambda index: whole.paths[index]
    return lambda index: f"image {index}"


def _network(checkpoint: Checkpoint) -> dict[str, Any]:
    gates = sorted({item.to_dict().get("gate", "") for item in checkpoint.attached} - {""})
    gate = ", ".join(gates) if gates else checkpoint.spec.gate
    trained = checkpoint.extra.get("config", {})
    seed = {"seed": trained["seed"], "epochs": trained.get("epochs")} if "seed" in trained else {}
    return {"name": checkpoint.spec.name, "gate": gate, "checkpoint": str(checkpoint.path), **seed}


def _described(data: DataSet, config: ExplainConfig) -> dict[str, Any]:
    whole = data.train if config.split == "train" else data.val
    split = {"split": config.split, "of": len(whole), "digest": whole.digest()}
    return {"name": data.name, **split, "image_size": data.image_size}
