"""`compare`: trains every gate with every seed under one recipe, and says what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from excite.data import DataSet, load_data
from excite.errors import UserError
from excite.experiment.analysis import analyze
from excite.experiment.comparison import PLAIN, Comparison, Measured
from excite.experiment.config import CompareConfig, read_gates
from excite.experiment.costs import GateCost, count_costs, measure_costs, timing_devices
from excite.experiment.folder import CompareFolder
from excite.experiment.progress import CompareProgress, compare_progress
from excite.experiment.report import comparison_page
from excite.experiment.verdict import caveats, signed_points, verdict
from excite.gates import GateConfig
from excite.timing import describe_machine
from excite.training.progress import is_first_process
from excite.training.result import RunResult, describe_data, versions
from excite.training.run import Start, build_network, train

__all__ = ["compare"]


def compare(
    config: CompareConfig,
    *,
    gates: Sequence[str | GateConfig | None] | None = None,
    data: DataSet | None = None,
    progress: CompareProgress | None = None,
) -> Comparison:
    """Trains a network with each gate and each seed, paired, and writes comparison.json and comparison.html.

    Runs with the same seed start from the same weights in the layers that networks share, see the same images in the
    same order with the same augmentation, whatever numbers a gate draws for itself. They are trained seed by seed, so
    that what is there after an interruption is paired already; the result so far is written after every seed. A run
    that is over is never trained again: the same call continues, and another gate or seed trains only what is new.

    Args:
        config: the recipe, gates, seeds and folder.
        gates: compare these instead of ``config.gates``, each as ``parse_gate`` takes it.
        data: use this set instead of loading ``config.data``.
        progress: told how far the comparison is; None shows a bar on a terminal, else a line an epoch.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        ValueError: an unknown gate, network, data set or setting, a gate named twice, a folder that holds another
            recipe, or a run that diverged (the others are kept).
        KeyboardInterrupt: on ctrl-C; the same call continues after the last whole epoch.
    """
    study = _prepare(config, gates, data)
    open_runs = len(study.open_runs())
    progress = progress or compare_progress(open_runs)
    try:
        study.costs = _costs(study, progress)
        study.networks.clear()  # every run builds its own
        done = len(study.order) - open_runs
        if done:
            progress.say(f"{done} of {len(study.order)} runs are there already")
        for seed in range(config.seeds):
            for gate in study.gates:
                if (gate, seed) not in study.results:
                    _train(study, gate, seed, progress)
            if seed < config.seeds - 1:
                _conclude(study)
    finally:
        progress.close()
    return _conclude(study)


@dataclass
class _Study:
    """A comparison with everything checked that can be checked before training."""

    config: CompareConfig
    gates: dict[str, GateConfig | None]
    data: DataSet
    networks: dict[str, nn.Module]
    folder: CompareFolder
    results: dict[tuple[str, int], RunResult]
    notes: list[str]
    costs: dict[str, GateCost]

    @property
    def order(self) -> list[tuple[str, int]]:
        """All runs, seed by seed."""
        return [(gate, seed) for seed in range(self.config.seeds) for gate in self.gates]

    def open_runs(self) -> list[tuple[str, int]]:
        """The runs that are not over."""
        return [run for run in self.order if run not in self.results]


def _prepare(config: CompareConfig, gates: Sequence[str | GateConfig | None] | None, data: DataSet | None) -> _Study:
    configs, notes = read_gates(config.gates if gates is None else gates)
    config = replace(config, gates=",".join(configs), out=str(config.folder()))
    folder = CompareFolder(config.folder())
    if data is None:
        data = load_data(
            config.data,
            image_size=config.image_size,
            download=config.download,
            bad_image_limit=config.bad_image_limit,
        )
    identity = _identity(config, data)
    folder.check(identity)
    starts = {name: _start(config, folder, data, name) for name in configs}
    notes += [f"{name}: {start.said}" for name, start in starts.items() if start.said]
    if is_first_process():
        folder.claim(identity, config.to_yaml())
    if config.starts_neutral:
        notes.append("Gates start neutral: at first every network computes what the plain one does.")
    networks = {name: start.network for name, start in starts.items()}
    study = _Study(config, configs, data, networks, folder, {}, [*notes, *data.notes], {})
    for gate, seed in study.order:
        if (result := folder.finished(gate, seed)) is not None:
            result.correct()  # the conclusion needs it: known before anything is trained
            study.results[gate, seed] = result
    return study


def _identity(config: CompareConfig, data: DataSet) -> dict[str, Any]:
    """What all runs of a comparison share; what may differ between the runs (gate, seed) is not in it."""
    found = versions()
    device = timing_devices(config.accelerator)[0].type if config.accelerator == "auto" else config.accelerator
    return {
        "recipe": config.recipe(),
        "data": describe_data(data),
        "versions": {name: found[name] for name in ("excite", "torch") if name in found},
        "machine": {"device": device},
    }


def _start(config: CompareConfig, folder: CompareFolder, data: DataSet, name: str) -> Start:
    """The network as the first seed trains it: also the check, before any training, that it can be built."""
    run = config.train_config(name, 0, folder.run_folder(name, 0))
    return build_network(run, data)


def _costs(study: _Study, progress: CompareProgress) -> dict[str, GateCost]:
    """What each gate costs: measured before, if all of them together and on this machine, or measured now."""
    config, data, networks = study.config, study.data, study.networks
    if not is_first_process():
        return {}
    shape = (data.in_channels, data.image_size, data.image_size)
    costs = count_costs(networks, torch.zeros(1, *shape))
    if not config.measure:
        return costs
    devices = timing_devices(config.accelerator)
    where = {"devices": [describe_machine(device) for device in devices]}
    if (held := study.folder.read_costs(list(networks), where)) is not None:
        return held
    progress.say(f"timing {len(networks)} networks in turns")
    timings: dict[str, list[Measured]] = {gate: [] for gate in networks}
    for device in devices:
        measured = measure_costs(
            networks,
            torch.randn(config.batch_size, *shape, generator=torch.Generator().manual_seed(0)),
            len(data.classes),
            precision=config.precision,
            channels_last=config.channels_last,
            device=device,
            # What is trained on a GPU is not trained on the CPU beside it.
            train=device == devices[0],
        )
        for gate, found in measured.items():
            timings[gate] += found
    costs = {gate: replace(cost, timings=tuple(timings[gate])) for gate, cost in costs.items()}
    study.folder.write_costs(costs, where)
    return costs


def _train(study: _Study, gate: str, seed: int, progress: CompareProgress) -> None:
    config, folder = study.config, study.folder
    run = config.train_config(gate, seed, folder.run_folder(gate, seed))
    try:
        result = train(run, data=study.data, gate=study.gates[gate], progress=progress)
    except UserError as error:
        who = "plain" if gate == PLAIN else gate
        raise UserError(
            f"{who} with seed {seed}: {error} ({len(study.results)} of {len(study.order)} runs are over and kept)"
        ) from error
    study.results[gate, seed] = result
    top1 = result.final["val_top1"]
    plain = study.results[PLAIN, seed].final["val_top1"]
    assert top1 is not None and plain is not None
    against = "" if gate == PLAIN else f"  {signed_points(top1 - plain):>6} against plain"
    label = "plain" if gate == PLAIN else gate
    progress.say(f"seed {seed}  {label}  {100 * top1:.2f} %{against}  ({result.seconds:.0f} s)")


def _conclude(study: _Study) -> Comparison:
    """What the runs that are over say; writes it, in the first process."""
    config, folder = study.config, study.folder
    first = is_first_process()
    runs = [
        folder.as_run(gate, seed, study.results[gate, seed])
        for gate, seed in study.order
        if (gate, seed) in study.results
    ]
    correct = {(r.gate, r.seed): folder.correct(r.gate, r.seed) for r in runs} if first else {}
    results = analyze(runs, list(study.gates), correct=correct, costs=study.costs, level=config.level)
    differences = {g.gate: g.difference for g in results if g.difference is not None}
    looks = {g.gate: g.images for g in results if g.images is not None}
    last = study.results[runs[-1].gate, runs[-1].seed]
    comparison = Comparison(
        verdict=verdict(differences),
        caveats=tuple(caveats(differences, looks)),
        notes=tuple(study.notes + _timing_notes(study)),
        config=config.to_dict(),
        data=last.data | {"augmentation": study.data.augmentation},
        level=config.level,
        gates=results,
        runs=tuple(runs),
        complete=not study.open_runs(),
        versions=last.versions | {"scipy": version("scipy")},
        machine=last.machine,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=folder.path,
    )
    if first:
        comparison.write(folder.result)
        comparison_page(comparison).write(folder.page)
    return comparison


def _timing_notes(study: _Study) -> list[str]:
    """Where the timings are not those of the runs."""
    notes = []
    steps = {t.batch_size for cost in study.costs.values() for t in cost.timings if t.what == "training step"}
    if steps and steps != {study.config.batch_size}:
        notes.append(
            f"Training steps were timed with {max(steps)} images, not {study.config.batch_size}, to take seconds."
        )
    if study.config.compile and steps:
        notes.append("Networks were trained with torch.compile and timed without it.")
    return notes
