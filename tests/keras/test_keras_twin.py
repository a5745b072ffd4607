"""The script that trains in Keras what excite trains in PyTorch: it starts from the same place, and what it found."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from test_keras_backends import ROOT, environment

RESULT = ROOT / "experiments" / "keras-twin" / "gradients.json"
TWIN = ROOT / "experiments" / "fashion-mnist-mini" / "comparison.json"

# PyTorch's side and Keras' in a process each: torch's training loads Triton, whose LLVM no process survives that has
# loaded TensorFlow's.
TINY = """
import json, math, sys
sys.path[:0] = ["scripts", "tests/training"]
from pathlib import Path
from training_cases import tiny_config, tiny_data

folder = Path(sys.argv[1])
data = tiny_data(train=64, val=24)
config = tiny_config(folder / "run", model="resnet20", gate="se(reduction=4)", epochs=3, weight_decay=0.0)
"""
IN_PYTORCH = """
import torch
from excite.data import make_loader, prepare
from excite.training import train
from excite.training.run import build_network

network = build_network(config, data).network.train()
loader = make_loader(data.train, data, config.batch_size, train=True, seed=config.seed)
batch = next(iter(loader))
images = prepare(batch.images, batch.indices, dataset=data, train=True, seed=config.seed, epoch=0)
losses = [torch.nn.functional.cross_entropy(network(images), batch.labels).item()]
losses.append(math.fsum(train(config, data=data).step_loss[:4]) / 4)
(folder / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
"""
IN_KERAS = """
from keras_twin import run_seed

expected, theirs = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
first = run_seed(config, data, steps=1)["epochs"][0]["train_loss"]
assert abs(first - expected) < 1e-5 * expected, (first, expected)

# An epoch's steps, whose learning rate changes, are PyTorch's too; with Keras' own momentum they are not.
run = run_seed(config, data)
ours = run["epochs"][0]["train_loss"]
stock = run_seed(config, data, momentum="steps")["epochs"][0]["train_loss"]
assert abs(ours - theirs) < 1e-3 * theirs < abs(stock - theirs), (ours, stock, theirs)
losses = [row["train_loss"] for row in run["epochs"]]
assert len(losses) == 3 and losses[-1] < losses[0], losses
assert run["val_top1"] == run["epochs"][-1]["val_top1"] and run["seed"] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
def test_it_starts_from_the_same_loss_and_learns(tmp_path):
    for side in (IN_PYTORCH, IN_KERAS):
        command = [sys.executable, "-c", TINY + side, tmp_path]
        done = subprocess.run(
            command, env=environment("tensorflow", tmp_path), cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.skipif(not RESULT.exists(), reason="the experiment is not in this copy")
def test_the_twins_agree():
    """Mean accuracy over three seeds within one point, from the rows of both files."""
    result, twin = (json.loads(path.read_text(encoding="utf-8")) for path in (RESULT, TWIN))
    gate = result["config"]["gate"]
    theirs = {run["seed"]: run["final"]["val_top1"] for run in twin["runs"] if run["gate"] == gate}
    ours = {run["seed"]: run["val_top1"] for run in result["runs"]}
    assert ours.keys() == theirs.keys() == {0, 1, 2}
    points = 100 * (sum(ours.values()) - sum(theirs.values())) / 3
    assert abs(points) <= 1.0 and points == pytest.approx(result["summary"]["difference_points"])
    assert all(
        result["config"][k] == v for k, v in twin["config"].items() if k in ("lr", "epochs", "model", "optimizer")
    )
