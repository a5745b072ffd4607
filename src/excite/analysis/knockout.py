"""What a gate is worth: the change of loss and accuracy when it is replaced, image by image on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from excite.analysis.accumulate import image_keys
from excite.analysis.batches import Checked, checked_batches, kept_random, scores_of
from excite.analysis.moments import Floats, Ints
from excite.analysis.record import GateRecord, SiteRecord
from excite.analysis.recording import weights_digest
from excite.analysis.resume import Resumer
from excite.analysis.taps import Taps, tapped
from excite.errors import UserError, unknown
from excite.page import counted
from excite.significance import bootstrap_means, holm_adjust, mcnemar_p, paired_p, paired_proportions
from excite.training.progress import Bar, Silent

__all__ = ["MODES", "KnockOut", "KnockOuts", "Mode", "knock_out"]

Bools = NDArray[np.bool_]
Mode = Literal["mean", "one", "shuffle"]
MODES: tuple[Mode, ...] = ("mean", "one", "shuffle")


@dataclass(frozen=True, eq=False)
class KnockOut:
    """A network with one gate replaced, less the network as it is, on the same images.

    Attributes:
        site: name of the gate.
        mode: what replaced s: "mean", "one" or "shuffle".
        loss_change: mean over images of cross-entropy with it replaced, less with it; above 0, the gate helps.
        loss_interval: bootstrap interval of that.
        loss_p: two-sided, by the paired t test over images.
        loss_p_holm: corrected by Holm over all replacements made together.
        accuracy_change: accuracy with it replaced, less with it, a fraction; below 0, the gate helps.
        accuracy_interval: Newcombe's interval of that, see ``paired_proportions``.
        accuracy_p: two-sided, by McNemar's exact test.
        accuracy_p_holm: corrected by Holm over all replacements made together.
        gained: images that are right only with it replaced.
        lost: images that are right only with it.
        loss: cross-entropy of each image with it replaced, float64 [n], in the order of ``KnockOuts.index``.
        correct: whether each is then right, bool [n].
    """

    site: str
    mode: Mode
    loss_change: float
    loss_interval: tuple[float, float]
    loss_p: float
    loss_p_holm: float
    accuracy_change: float
    accuracy_interval: tuple[float, float]
    accuracy_p: float
    accuracy_p_holm: float
    gained: int
    lost: int
    loss: Floats
    correct: Bools


@dataclass(frozen=True, eq=False)
class KnockOuts:
    """What each gate is worth on a set of images.

    Attributes:
        items: gate by gate in the order of execution, for each the modes as asked for.
        level: coverage of the intervals, each for itself.
        index: the images, int64 [n], in the order in which they came.
        loss: cross-entropy of each with all gates as they are, float64 [n].
        correct: whether each is then right, bool [n].
    """

    items: tuple[KnockOut, ...]
    level: float
    index: Ints
    loss: Floats
    correct: Bools

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.index)

    @property
    def accuracy(self) -> float:
        """Share of images that are right with all gates as they are."""
        return float(self.correct.mean())

    def of(self, site: str, mode: Mode = "mean") -> KnockOut:
        """The replacement of one gate.

        Raises:
            ValueError: it was not made.
        """
        for item in self.items:
            if (item.site, item.mode) == (site, mode):
                return item
        raise unknown("knock-out", f"{site}:{mode}", [f"{item.site}:{item.mode}" for item in self.items])


def knock_out(
    model: nn.Module,
    batches: Iterable[Any],
    record: GateRecord,
    *,
    sites: Sequence[str] | None = None,
    modes: Sequence[Mode] = MODES,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> KnockOuts:
    """Replace one gate at a time, and see what becomes of loss and accuracy on the same images.

    Modes, for a gate's s [N, C]:

    - "mean": its mean over the images of the record, channel by channel: does it matter that the gate looks at images?
    - "one": 1, no gate at all. The network never saw that in training, and the layers behind it may be off balance, so
      this says less about the gate's use than "mean" does.
    - "shuffle": s of another image, drawn from the record's sample: values that occur, but for the wrong image.

    Each batch is run once as it is, and from the gate on once for each gate and mode; the network is left as it was.

    Args:
        model: a network in eval mode, the one that was recorded.
        batches: as for ``record_gates``; other images than the record's tell better what is lost.
        record: of the network.
        sites: names of gates; None for all of the record.
        modes: which of the above.
        level: coverage of each interval.
        resamples: of the bootstrap over images.
        seed: of the bootstrap and of whose s an image is given.
        progress: show a progress bar.

    Raises:
        ValueError: a record of another network: of gates that this one does not have, or of other weights; a gate that
            is not in the record, an unknown mode, a network without logits [N, K], or what ``record_gates`` refuses.
    """
    chosen = [record.site(name) for name in (sites if sites is not None else [site.name for site in record.sites])]
    _check(chosen, modes, record, level)
    stream = checked_batches(batches, model)
    first = next(stream, None)
    if first is None:
        raise UserError("batches gave no image: nothing to measure")
    bar = Bar() if progress else Silent()
    parts = []
    with kept_random(model), tapped(model, first.images) as taps:
        bar.start_run("replacing gates", len(batches) if isinstance(batches, Sized) else 0)
        resumer = Resumer(taps.view, [site.name for site in chosen], first.images)
        try:
            batch: Checked | None = first
            while batch is not None:
                parts.append(_run(taps, resumer, batch, chosen, modes, record, seed, check=batch is first))
                bar.advance(1)
                batch = next(stream, None)
        finally:
            bar.end_run()
    return _summed_up(parts, chosen, modes, level=level, resamples=resamples, seed=seed)


def _check(sites: Sequence[SiteRecord], modes: Sequence[str], record: GateRecord, level: float) -> None:
    if isinstance(modes, str) or not modes or not sites:
        raise UserError(f"sites={[site.name for site in sites]}, modes={modes!r}: give at least one of each, in a list")
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
    if "shuffle" in modes and len(record.sample_rows) < 2:
        raise UserError(
            "mode 'shuffle' draws from the record's sample, which has "
            f"{counted(len(record.sample_rows), 'image')}: record with a larger sample"
        )
    if not 0 < level < 1:
        raise UserError(f"level={level}: a confidence level lies between 0 and 1, for example 0.95")


@dataclass(frozen=True)
class _Part:
    """A batch: losses and correctness [N, 1 + replacements], as the network is first."""

    index: Ints
    loss: Floats
    correct: Bools


def _run(
    taps: Taps,
    resumer: Resumer,
    batch: Checked,
    sites: Sequence[SiteRecord],
    modes: Sequence[Mode],
    record: GateRecord,
    seed: int,
    *,
    check: bool,
) -> _Part:
    with resumer.keeping():
        columns = [_scored(taps.run(batch.images)[0], batch.labels)]
    if check:
        _check_same_network(taps, sites, record)
    donors = _donors(batch, record, seed) if "shuffle" in modes else None
    for site in sites:
        for mode in modes:
            put = {site.name: _Put(torch.from_numpy(_instead(site, mode, donors)))}
            if check and mode == modes[0]:
                resumer.check(taps, site.name, batch.images, put)
            output = resumer.run(taps, site.name, batch.images, put)
            columns.append(_scored(output, batch.labels))
    correct = np.stack([predicted == batch.labels for predicted, _ in columns], 1)
    return _Part(batch.indices, np.stack([loss for _, loss in columns], 1), correct)


@dataclass(frozen=True)
class _Put:
    """A replacement by given numbers, [C] or [N, C]."""

    instead: Tensor

    def __call__(self, s: Tensor) -> Tensor:
        return self.instead.to(s).expand(s.shape)


def _instead(site: SiteRecord, mode: Mode, donors: Ints | None) -> NDArray[np.floating[Any]]:
    if mode == "mean":
        return site.overall_mean
    if mode == "one":
        return np.ones(site.channels)
    return site.sample[donors]


def _donors(batch: Checked, record: GateRecord, seed: int) -> Ints:
    """For each image a place in the record's sample, never its own; whatever batch it comes in, the same."""
    own = image_keys(batch.indices, batch.names, record.seed)
    sample_keys, n = record.images.key[record.sample_rows], len(record.sample_rows)
    donors = (image_keys(own.astype(np.int64), None, seed + 1) % np.uint64(n)).astype(np.int64)
    return np.where(sample_keys[donors] == own, (donors + 1) % n, donors)


def _scored(output: Any, labels: Ints) -> tuple[Ints, Floats]:
    scores = scores_of(output, labels)
    if scores is None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"the network gives {shape} for {len(labels)} labels up to {labels.max()}: knock_out needs logits [N, K] "
            "with an output for each class"
        )
    return scores


def _check_same_network(taps: Taps, sites: Sequence[SiteRecord], record: GateRecord) -> None:
    """Refuses a record of another network; known once a batch has run."""
    there = {place.name: place for place in taps.places}
    for site in sites:
        if site.name not in there:
            raise unknown("gate in this network", site.name, there)
        place = there[site.name]
        if place.channels != site.channels:
            raise UserError(f"{site.name} has {place.channels} channels, in the record {site.channels}: record anew")
        if place.gate != site.gate:
            raise UserError(f"{site.name} is {place.gate}, in the record {site.gate}: record anew")
    if record.weights and record.weights != weights_digest(taps.model):
        raise UserError(
            "the record is of a network with these gates but other weights, as rounding to float16 makes them too, and "
            "its means say nothing of this one: record this one, or give the one that was recorded"
        )


def _summed_up(
    parts: Sequence[_Part],
    sites: Sequence[SiteRecord],
    modes: Sequence[Mode],
    *,
    level: float,
    resamples: int,
    seed: int,
) -> KnockOuts:
    loss, correct = (np.concatenate([getattr(part, what) for part in parts]) for what in ("loss", "correct"))
    changes = loss[:, 1:] - loss[:, :1]
    low, high = bootstrap_means(changes, level=level, resamples=resamples, seed=seed)
    right, was = correct[:, 1:], correct[:, :1]
    gained, lost = (right & ~was).sum(0), (was & ~right).sum(0)
    loss_p = paired_p(changes.T)
    p = [mcnemar_p(int(g), int(m)) for g, m in zip(gained, lost, strict=True)]
    loss_p_holm, p_holm = holm_adjust(loss_p), holm_adjust(p)
    items = []
    for i, (site, mode) in enumerate((site, mode) for site in sites for mode in modes):
        both, neither = int((right[:, i] & was[:, 0]).sum()), int((~right[:, i] & ~was[:, 0]).sum())
        items.append(
            KnockOut(
                site=site.name,
                mode=mode,
                loss_change=float(changes[:, i].mean()),
                loss_interval=(float(low[i]), float(high[i])),
                loss_p=float(loss_p[i]),
                loss_p_holm=float(loss_p_holm[i]),
                accuracy_change=float(int(gained[i]) - int(lost[i])) / len(loss),
                accuracy_interval=paired_proportions(both, int(gained[i]), int(lost[i]), neither, level),
                accuracy_p=p[i],
                accuracy_p_holm=float(p_holm[i]),
                gained=int(gained[i]),
                lost=int(lost[i]),
                loss=loss[:, 1 + i].copy(),
                correct=right[:, i].copy(),
            )
        )
    index = np.concatenate([part.index for part in parts])
    return KnockOuts(tuple(items), level, index, loss[:, 0].copy(), was[:, 0].copy())
