"""``record_gates``: run a network over images and write down what its gates do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Sized
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from excite.analysis.accumulate import Accumulator, image_keys
from excite.analysis.all_values import AllValues
from excite.analysis.batches import Checked, checked_batches, kept_random, scores_of
from excite.analysis.record import GateRecord, Images
from excite.analysis.taps import Taps, tapped
from excite.errors import UserError
from excite.training.progress import Bar, Silent

__all__ = ["record_gates", "weights_digest"]


def record_gates(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    example: Tensor | Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    sample: int = 2000,
    keep_all: Path | None = None,
    top_images: int = 12,
    progress: bool = False,
    seed: int = 0,
) -> GateRecord:
    """Run a network over images and write down what its gates do.

    Gates of ``excite``, attached ones, timm's, torchvision's and any other that scales whole channels by what it
    computes from the map. The network is left as it was, and so are random generators. Statistics are kept, not the
    numbers: memory does not grow with the images but for a few numbers each.

    Args:
        model: a network in eval mode.
        batches: gives tuples (images, labels), or (images, labels, indices or names), with images as the network takes
            them, each image once; ``ImageBatches`` makes them of a data set. It is gone through once.
        example: an input the network takes; only its shape matters. None takes the first batch's images.
        classes: names of the classes; None counts the network's outputs.
        sample: how many images to keep s of, chosen at random, the same for all gates.
        keep_all: also write s of every image and gate to this Parquet file; needs ``pip install 'excite[explain]'``.
        top_images: how many images to keep for each channel, those with the largest s.
        progress: show a progress bar.
        seed: of the choice of the sample.

    Returns:
        The record. Under several processes it is of this one's images; ``GateRecord.gathered`` adds them up.

    Raises:
        ValueError: a network in training mode, or without gates; batches of another form, no image, an image twice;
            labels beyond the classes; numbers that are not finite.
    """
    if sample < 0 or top_images < 0:
        raise UserError(f"sample={sample}, top_images={top_images}: give numbers of images, 0 or more")
    stream = checked_batches(batches, model)
    first = next(stream, None)
    if first is None:
        raise UserError("batches gave no image: nothing to record")
    bar = Bar() if progress else Silent()
    with (
        kept_random(model),
        tapped(model, first.images if example is None else example) as taps,
        ExitStack() as at_end,
    ):
        bar.start_run("recording gates", len(batches) if isinstance(batches, Sized) else 0)
        at_end.callback(bar.end_run)
        s, images, outputs = _run(taps, first, seed)
        names = _class_names(classes, outputs)
        accumulator = Accumulator(taps.places, names, sample=sample, top_images=top_images, seed=seed)
        takers: list[Accumulator | AllValues] = [accumulator]
        if keep_all is not None:
            takers.append(at_end.enter_context(AllValues(keep_all, taps.places, names)))
        while True:
            for taker in takers:
                taker.add(s, images)
            bar.advance(1)
            batch = next(stream, None)
            if batch is None:
                return replace(accumulator.finish(taps.skipped), weights=weights_digest(model))
            s, images, _ = _run(taps, batch, seed)


def weights_digest(model: nn.Module) -> str:
    """16 hex digits that tell a network's parameters from those of another training; buffers do not count.

    As bfloat16: half as many bytes, and a float32 network in that precision stays the same.
    """
    content = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        content.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return content.hexdigest()


def _run(taps: Taps, batch: Checked, seed: int) -> tuple[NDArray[np.float32], Images, int | None]:
    """s of all gates side by side [N, sum of C], the images, and how many classes the network tells apart."""
    output, seen = taps.run(batch.images)
    s = torch.cat([seen[place.name].float() for place in taps.places], 1).cpu().numpy()
    n = len(batch.labels)
    predicted, loss = scores_of(output, batch.labels) or (np.full(n, -1), np.full(n, np.nan))
    images = Images(
        index=batch.indices,
        key=image_keys(batch.indices, batch.names, seed),
        name=batch.names or ("",) * n,
        label=batch.labels,
        predicted=predicted,
        loss=loss,
    )
    return s, images, output.shape[1] if isinstance(output, Tensor) and output.dim() == 2 else None


def _class_names(classes: Sequence[str] | None, outputs: int | None) -> tuple[str, ...]:
    if classes is not None:
        if isinstance(classes, str) or not classes:
            raise UserError(f"classes={classes!r}: give the names of the classes, one each")
        return tuple(map(str, classes))
    if outputs is None:
        raise UserError("the network returns no logits [N, K] to count classes by: give classes, their names")
    return tuple(str(k) for k in range(outputs))
