"""A data set and a recipe small enough to train on in a second, and ways to cut a run short."""

import torch

from excite.data import array_data_set
from excite.training import TrainConfig

CLASSES = ("a", "b", "c", "d", "e", "f")


def tiny_data(train=52, val=23, classes=CLASSES, size=8, seed=0, name="tiny"):
    """Grey pictures whose brightness pattern gives the class away; odd counts, so that batches and ranks are uneven."""
    generator = torch.Generator().manual_seed(seed)

    def split(n):
        labels = torch.arange(n) % len(classes)
        noise = torch.randint(0, 120, (n, 1, size, size), generator=generator)
        rows = torch.arange(size).view(1, 1, size, 1)
        bars = 100 * ((rows + labels.view(-1, 1, 1, 1)) % len(classes) < 2)
        return (noise + bars).to(torch.uint8), labels

    return array_data_set(name, tuple(classes), split(train), split(val))


def tiny_config(out, **settings):
    """Three epochs of four steps, the last one smaller."""
    settings = {"data": "tiny", "epochs": 3, "batch_size": 16, "lr": 0.05, "accelerator": "cpu"} | settings
    return TrainConfig(out=str(out), **settings)


class Watch:
    """A progress display that remembers what it was told, and can end the run at a given epoch or step."""

    def __init__(self, stop_after_epoch=None, stop_at_step=None, error=None):
        self.stop_after_epoch, self.stop_at_step, self.error = stop_after_epoch, stop_at_step, error
        self.calls, self.steps = [], 0

    def start_run(self, label, total_steps):
        self.calls.append(("start_run", label, total_steps))

    def advance(self, steps):
        self.steps += steps
        if self.stop_at_step is not None and self.steps >= self.stop_at_step:
            raise self.error

    def epoch(self, row):
        self.calls.append(("epoch", row["epoch"]))
        if row["epoch"] == self.stop_after_epoch:
            raise self.error

    def end_run(self):
        self.calls.append(("end_run",))


class PowerCut(Exception):
    """What tests end a run with."""


def weights(run):
    """Every tensor of a run's last checkpoint."""
    from safetensors.torch import load_file

    return load_file(f"{run.run_dir}/last.safetensors")


def same_run(one, other):
    """Whether two results agree in everything but time and place."""
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.epochs] for run in (one, other)]
    ours, theirs = weights(one), weights(other)
    return (
        rows[0] == rows[1]
        and one.step_loss == other.step_loss
        and one.final == other.final
        and ours.keys() == theirs.keys()
        and all(torch.equal(ours[key], theirs[key]) for key in ours)
        and torch.equal(one.correct(), other.correct())
    )
