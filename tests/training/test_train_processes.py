"""Runs in real processes: two that share the work, and one that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_cases import Watch, same_run, tiny_config, tiny_data

from excite.training import EvalConfig, RunResult, evaluate, train
from excite.training.progress import Silent

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

# Trains, and writes down per rank what it saw and ended with.
SCRIPT = """
import json, os, sys, time
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from torch import nn
from training_cases import tiny_config, tiny_data
import excite.training.callbacks as callbacks
import excite.training.module as module
from excite.training import train
from excite.training.progress import Silent

out, settings = sys.argv[1], json.loads(sys.argv[2])
network = None
if settings.pop("linear", False):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).double()
    nn.init.zeros_(network[1].weight), nn.init.zeros_(network[1].bias)
pause, end_before_epoch = settings.pop("pause", 0), settings.pop("end_before_epoch", None)
seen = []

class Task(module.Task):
    def training_step(self, batch, batch_idx):
        seen.append((self.current_epoch, batch.indices.tolist()))
        time.sleep(pause)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        if self.current_epoch == end_before_epoch:
            os._exit(1)

    def on_train_end(self):
        tensors = {{key: tensor.contiguous() for key, tensor in self.network.state_dict().items()}}
        save_file(tensors, f"{{out}}-rank{{self.trainer.global_rank}}.safetensors")

module.Task = Task
result = train(tiny_config(out, **settings), data=tiny_data(train=53), network=network, progress=Silent())
rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
json.dump({{"seen": seen, "result": result.to_dict()}}, open(f"{{out}}-rank{{rank}}.json", "w"))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "job.py"
    path.write_text(SCRIPT.format(here=str(HERE)))
    return str(path)


def start(command, out, **settings):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*command, str(out), json.dumps(settings)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)


def launch(command, out, **settings):
    done = start(command, out, **settings)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{out}-rank{rank}.json").read_text()) for rank in (0, 1)]


def torchrun(script):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]


@pytest.fixture(scope="module")
def shared(script, tmp_path_factory):
    """A run of two processes under torchrun: its folder, and what each rank wrote down."""
    out = tmp_path_factory.mktemp("shared") / "run"
    return out, launch(torchrun(script), out, batch_size=8, gate="se")


def test_each_image_is_seen_once_an_epoch(shared):
    _, ranks = shared
    for epoch in range(3):
        images = [i for rank in ranks for e, indices in rank["seen"] if e == epoch for i in indices]
        assert sorted(images) == list(range(53))
    steps = [len(rank["seen"]) for rank in ranks]
    assert steps[0] == steps[1] == 3 * 4


def test_both_ranks_end_with_the_same_weights(shared):
    out, _ = shared
    first, second = (load_file(f"{out}-rank{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first), "running statistics too"
    saved = load_file(out / "last.safetensors")
    assert all(torch.equal(first[key], saved[key]) for key in first)


def test_validation_counts_every_image_once_on_both_ranks(shared):
    out, ranks = shared
    results = [rank["result"] for rank in ranks]
    rows = [[row | {"seconds": 0} for row in result["epochs"]] for result in results]
    assert rows[0] == rows[1] and results[0]["step_loss"] == results[1]["step_loss"]
    # 23 images: 12 for one rank, 11 for the other.
    data = tiny_data(train=53)
    alone = evaluate(EvalConfig(checkpoint=str(out), accelerator="cpu", batch_size=16), data=data)
    run = RunResult.load(out)
    assert len(run.correct()) == 23 and int(run.correct().sum()) == round(23 * alone.top1)
    assert run.final["val_top1"] == alone.top1 and run.final["val_loss"] == pytest.approx(alone.loss, rel=1e-6)


def test_two_processes_of_eight_are_one_of_sixteen(script, tmp_path):
    """Without batch norm, gradients of two ranks average to those of one, the smaller last batch included."""
    settings = {"linear": True, "precision": "64-true", "channels_last": False}
    launch(torchrun(script), tmp_path / "two", batch_size=8, **settings)
    assert start([sys.executable, script], tmp_path / "one", batch_size=16, **settings).returncode == 0
    one, two = RunResult.load(tmp_path / "one"), RunResult.load(tmp_path / "two")
    assert two.step_loss == pytest.approx(one.step_loss, rel=1e-12)
    torch.testing.assert_close(
        load_file(tmp_path / "one" / "last.safetensors"), load_file(tmp_path / "two" / "last.safetensors")
    )


def test_two_processes_resume_exactly(script, shared, tmp_path):
    out, settings = tmp_path / "run", {"batch_size": 8, "gate": "se"}
    assert start(torchrun(script), out, end_before_epoch=2, **settings).returncode != 0
    assert not (out / "result.json").exists()
    ranks = launch(torchrun(script), out, **settings)
    assert {epoch for rank in ranks for epoch, _ in rank["seen"]} == {2}, "only the last epoch was left"
    assert same_run(RunResult.load(shared[0]), RunResult.load(out))


def test_devices_start_processes_of_their_own(script, shared, tmp_path):
    """The same run without torchrun: Lightning starts the second process."""
    out = tmp_path / "run"
    ranks = launch([sys.executable, script], out, batch_size=8, gate="se", devices=2)
    assert ranks[0]["result"]["step_loss"] == shared[1][0]["result"]["step_loss"]
    assert ranks[1]["seen"] == shared[1][1]["seen"]


def test_a_killed_run_loses_at_most_one_epoch(script, tmp_path):
    settings = {"epochs": 6, "gate": "se"}
    arguments = [sys.executable, script, str(tmp_path / "cut"), json.dumps(settings | {"pause": 0.1})]
    process = subprocess.Popen(arguments, env=os.environ | {"OMP_NUM_THREADS": "1"})
    metrics = tmp_path / "cut" / "metrics.csv"
    deadline = time.monotonic() + 240
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 1 + 3:
        assert process.poll() is None and time.monotonic() < deadline, "it should be training"
        time.sleep(0.02)
    time.sleep(0.15)  # into the fourth epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "result.json").exists()
    before = len(metrics.read_text().splitlines()) - 1
    data, watch = tiny_data(train=53), Watch()
    resumed = train(tiny_config(tmp_path / "cut", **settings), data=data, progress=watch)
    epochs = [call[1] for call in watch.calls if call[0] == "epoch"]
    assert epochs == list(range(epochs[0], 7)) and before <= epochs[0] <= before + 1
    whole = train(tiny_config(tmp_path / "whole", **settings), data=data, progress=Silent())
    assert same_run(whole, resumed)
