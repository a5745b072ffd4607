"""Gated networks in other processes: pickled into a fresh one, and trained by two with DistributedDataParallel."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from surgery_cases import image, lively, move_gates, small
from torch import nn

from excite.surgery import Attached, attach_, attach_at_

HERE = Path(__file__).parent

READ = """
import pickle
import torch
torch.set_num_threads(1)
with open({path!r}, "rb") as file:
    model, x = pickle.load(file)
y = model(x)
from excite.surgery import detach_, verify
assert len(verify(model)) == 4
detach_(model)
torch.save((y, model(x)), {out!r})
"""


def launch(*command):
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_pickle_runs_in_a_fresh_process(tmp_path):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)]
    model, x = lively(nn.Sequential(*layers)).eval(), image()
    plain = model(x)
    attach_(model, "se(reduction=4)", x, where="conv")
    attach_(model, "eca", x, where=["5"])
    attach_at_(model, [Attached("3", "in", 8, "ese(neutral=true)")])
    move_gates(model)
    path, out = tmp_path / "model.pickle", tmp_path / "outputs.pt"
    path.write_bytes(pickle.dumps((model, x)))
    launch(sys.executable, "-W", "error", "-c", READ.format(path=str(path), out=str(out)))
    y, detached = torch.load(out)
    assert torch.equal(y, model(x)) and not torch.equal(y, plain) and torch.equal(detached, plain)


RANKS = """
import sys
sys.path[:0] = [{here!r}, str({here!r} + "/..")]
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from excite.models import gate_parameters
from excite.surgery import attach_, attached, detach_, verify
from surgery_cases import image, small

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = small(dtype=torch.float64)  # in eval mode: norms of a batch would tell two halves from a whole
x = image(n=4, dtype=torch.float64)
if rank == 1:
    torch.manual_seed(7)  # gates that start otherwise: the first rank's are taken
attach_(model, "se(reduction=4)", x, start="paper")
parallel = DistributedDataParallel(model)
try:
    attach_(parallel, "eca", x)
    raise SystemExit("attached to a network in DistributedDataParallel")
except ValueError as error:
    assert "before wrapping" in str(error), error
assert len(verify(model)) == len(attached(parallel)) == 4
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    parallel(x[2 * rank : 2 * rank + 2]).square().sum().backward()
    optimizer.step()
gradients = [p.grad for p in gate_parameters(model)]
torch.save((gradients, model.state_dict(), x), {out!r} + str(rank))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_the_same_gates(tmp_path):
    script, out = tmp_path / "ranks.py", tmp_path / "rank"
    script.write_text(RANKS.format(here=str(HERE), out=str(out)))
    launch(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script))
    (gradients, state, x), (others, other_state, _) = (torch.load(f"{out}{rank}") for rank in (0, 1))
    assert len(gradients) == 16 and all(g.abs().max() > 0 for g in gradients[3::4])
    assert all(torch.equal(g, h) for g, h in zip(gradients, others, strict=True))
    assert all(torch.equal(state[key], other_state[key]) for key in state)
    # One process with the mean over both halves.
    torch.manual_seed(0)
    alone = small(dtype=torch.float64)
    image(n=4, dtype=torch.float64)
    attach_(alone, "se(reduction=4)", x, start="paper")
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (alone(x).square().sum() / 2).backward()
        optimizer.step()
    torch.testing.assert_close(alone.state_dict(), state)
