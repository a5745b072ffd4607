"""Checkpoints: what comes back, what a killed writer leaves, and what is refused."""

import dataclasses
import io
import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from excite import checkpoint as checkpoint_module
from excite.checkpoint import read_checkpoint, save_checkpoint
from excite.errors import UserError
from excite.networks import NetworkSpec, build
from excite.surgery import attach_, attached, verify

SPEC = NetworkSpec("resnet20", "se(reduction=8,bias=false)", "pre", (1, 3), None, 4, 1, {"shortcut": "B"})
WITH = {
    "classes": ["cat", "dog", "Käse", "\N{SNOWMAN}"],
    "preprocessing": {"mean": [0.5], "std": [0.25], "image_size": 28},
    "metrics": {"val_top1": 0.875, "val_loss": float("inf")},
}


def trained(spec=SPEC):
    """A network whose norms have seen data, so that no buffer is at its start."""
    model = build(spec, seed=0)
    with torch.no_grad():
        model(torch.randn(8, spec.in_channels, 16, 16) * 3 + 1)
    return model


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_everything_comes_back(tmp_path):
    model = trained()
    path = save_checkpoint(tmp_path / "new" / "last.safetensors", model, spec=SPEC, **WITH, extra={"epoch": 3})
    read = read_checkpoint(path)
    assert read.spec == SPEC and read.path == path
    assert read.classes == tuple(WITH["classes"])
    assert (read.preprocessing, read.metrics) == (WITH["preprocessing"], WITH["metrics"])
    assert read.extra == {"epoch": 3}
    assert same(read.state_dict, model.state_dict())
    assert read.state_dict["bn1.num_batches_tracked"] == 1
    assert os.listdir(path.parent) == ["last.safetensors"]


def test_the_loaded_network_gives_the_same_outputs(tmp_path):
    model = trained()
    save_checkpoint(tmp_path / "c", model, spec=SPEC, **WITH)
    state = torch.get_rng_state()
    loaded = read_checkpoint(tmp_path / "c").load()
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(3, 1, 28, 28)
    assert not loaded.training and torch.equal(loaded(x), model.eval()(x))
    # Copies: training the loaded network leaves the file and what was read alone.
    read = read_checkpoint(tmp_path / "c")
    read.load().conv1.weight.data.zero_()
    assert same(read.state_dict, model.state_dict())


@pytest.mark.parametrize("gate", ["none", "eca(kernel_size=5)", "se(gate_function=hard_sigmoid)", "se_gc(groups=4)"])
def test_every_gates_text_comes_back(tmp_path, gate):
    spec = NetworkSpec("resnet20", gate, num_classes=2)
    save_checkpoint(tmp_path / "c", trained(spec), spec=spec, **WITH)
    read = read_checkpoint(tmp_path / "c")
    assert read.spec.gate == gate
    assert same(read.load().state_dict(), read.state_dict)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_layouts_come_back_exactly(tmp_path, dtype):
    model = trained().to(dtype).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "c", model, spec=SPEC, **WITH)
    loaded = read_checkpoint(tmp_path / "c").load()
    assert same(loaded.state_dict(), model.state_dict())
    x = torch.randn(2, 1, 12, 12).to(dtype)
    torch.testing.assert_close(loaded(x), model.eval()(x))


def test_wrappers_are_looked_through(tmp_path):
    model = trained()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    save_checkpoint(tmp_path / "c", wrapped, spec=SPEC, **WITH)
    assert same(read_checkpoint(tmp_path / "c").state_dict, model.state_dict())


TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.a = nn.Linear(n, n)
        self.b = nn.Linear(n, n)
        self.b.weight = self.a.weight
        self.register_buffer("rows", torch.arange(6.0).reshape(2, 3))
        self.register_buffer("row", self.rows[0])

def make(num_classes, in_channels):
    return Tied(num_classes)
"""


def test_shared_tensors_stay_shared_and_views_come_back(tmp_path, monkeypatch):
    (tmp_path / "tied_nets.py").write_text(TIED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    spec = NetworkSpec("tied_nets:make", num_classes=3)
    model = build(spec, seed=0)
    save_checkpoint("c", model, spec=spec, **WITH)
    read = read_checkpoint("c")
    with pytest.raises(UserError, match="trust=True"):
        read.load()
    loaded = read.load(trust=True)
    assert same(loaded.state_dict(), model.state_dict())
    assert loaded.a.weight is loaded.b.weight
    sys.modules.pop("tied_nets")


# --- writers that die ---


def test_no_cut_of_the_file_is_taken_for_a_whole_one(tmp_path):
    spec = NetworkSpec("resnet20", "eca", num_classes=2, in_channels=1)
    whole = save_checkpoint(tmp_path / "whole", trained(spec), spec=spec, **WITH).read_bytes()
    header = int.from_bytes(whole[:8], "little")
    assert 8 + header < len(whole)
    cuts = {0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, 8 + header + 1, len(whole) - 1}
    cuts |= set(range(0, len(whole), len(whole) // 97))
    path = tmp_path / "cut"
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cut"):
            read_checkpoint(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="cut"):
        read_checkpoint(path)


@pytest.mark.parametrize("step", ["save_file", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch, step):
    path = save_checkpoint(tmp_path / "c", trained(), spec=SPEC, **WITH)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module if step == "save_file" else os, step, fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, trained(), spec=SPEC, **WITH)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c"]


KILLED = """
import os, signal, sys
import excite.checkpoint as checkpoint
from excite.networks import NetworkSpec, build

whole = checkpoint.save_file

def die_halfway(tensors, target, metadata):
    whole(tensors, target, metadata)
    os.truncate(target, os.path.getsize(target) // 2)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_file = die_halfway
spec = NetworkSpec("resnet20")
checkpoint.save_checkpoint(sys.argv[1], build(spec), spec=spec, classes=[], preprocessing={}, metrics={})
"""


def test_a_killed_write_leaves_the_old_checkpoint(tmp_path):
    """The process dies with half of the new file written: no clean-up runs, the temporary file stays."""
    path = save_checkpoint(tmp_path / "c", trained(), spec=SPEC, **WITH)
    before = path.read_bytes()
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -signal.SIGKILL
    left = [name for name in os.listdir(tmp_path) if name != "c"]
    assert len(left) == 1 and left[0].endswith(".tmp")
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="cut short"):
        read_checkpoint(tmp_path / left[0])
    # The next write is not disturbed by what lies about.
    model = trained()
    save_checkpoint(path, model, spec=SPEC, **WITH, extra={"epoch": 2})
    assert read_checkpoint(path).extra == {"epoch": 2}


# --- what is no checkpoint ---


class Bomb:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_ever_unpickled(tmp_path):
    for name, write in {"pickle": pickle.dump, "torch": torch.save}.items():
        buffer = io.BytesIO()
        write({"weight": Bomb(tmp_path / "exploded")}, buffer)
        (tmp_path / name).write_bytes(buffer.getvalue())
        with pytest.raises(UserError, match="not a whole safetensors file"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_named(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign", metadata={"format": "pt"})
    with pytest.raises(UserError, match="foreign: a safetensors file, but no checkpoint of excite"):
        read_checkpoint(tmp_path / "foreign")
    with pytest.raises(UserError, match="missing: no such file"):
        read_checkpoint(tmp_path / "missing")
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry | {"format": 99}, "has format 99"),
        (lambda entry: {"format": 1}, "damaged"),
        (lambda entry: [entry], "damaged"),
        (lambda entry: entry | {"spec": {"name": "resnet20", "gate": "ce"}}, "unknown gate 'ce'"),
        (lambda entry: entry | {"shared": {"a": "not there"}}, "damaged"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path, change, message):
    read = read_checkpoint(save_checkpoint(tmp_path / "c", trained(), spec=SPEC, **WITH))
    entry = {"format": 1, "spec": SPEC.to_dict(), "extra": {}, "shared": {}, **WITH}
    (tmp_path / "c").write_bytes(save(read.state_dict, metadata={"excite": json.dumps(change(entry))}))
    with pytest.raises(UserError, match=f"{tmp_path / 'c'}: .*{message}"):
        read_checkpoint(tmp_path / "c")


def test_tensors_of_another_network_are_named(tmp_path):
    other = NetworkSpec("resnet20", "se", num_classes=4, in_channels=1)
    save_checkpoint(tmp_path / "c", trained(other), spec=SPEC, **WITH)
    with pytest.raises(UserError, match="not those of 'resnet20' with gate"):
        read_checkpoint(tmp_path / "c").load()
    wider = NetworkSpec("resnet20", num_classes=9, in_channels=1)
    plain = NetworkSpec("resnet20", num_classes=4, in_channels=1)
    save_checkpoint(tmp_path / "c", trained(wider), spec=plain, **WITH)
    with pytest.raises(UserError, match="'fc.weight' first"):
        read_checkpoint(tmp_path / "c").load()


@pytest.mark.parametrize(
    ("name", "where"), [("timm:resnet10t", "residual"), ("torchvision:vgg11_bn", "conv"), ("resnet20", "post")]
)
def test_attached_gates_come_back_where_they_were(tmp_path, name, where):
    spec = NetworkSpec(name, num_classes=3)
    model = build(spec, seed=0)
    x = torch.randn(2, 3, 32, 32)
    attach_(model, "se(reduction=4)", x, where=where, stages=(1, 2), start="paper")
    attach_(model, "eca", x, where=where, stages=(3,))
    save_checkpoint(tmp_path / "c", model, spec=spec, **WITH)
    read = read_checkpoint(tmp_path / "c")
    assert list(read.attached) == attached(model)
    loaded = read.load()
    assert torch.equal(loaded(x), model.eval()(x)) and attached(loaded) == attached(model)
    assert len({item.gate for item in verify(loaded)}) == 2


def test_gates_whose_place_is_gone_are_named(tmp_path):
    spec = NetworkSpec("timm:resnet10t", "se", num_classes=2)
    path = save_checkpoint(tmp_path / "c", build(spec, seed=0), spec=spec, **WITH)
    read = read_checkpoint(path)
    moved = dataclasses.replace(read.attached[0], module="layer1.0.bn9")
    with pytest.raises(UserError, match="unknown module 'layer1.0.bn9': did you mean"):
        dataclasses.replace(read, attached=(moved,)).load()


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(UserError, match="metrics of a checkpoint must be JSON-able"):
        save_checkpoint(tmp_path / "c", trained(), spec=SPEC, **(WITH | {"metrics": {"top1": torch.ones(1)}}))

    class Stateful(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

    with pytest.raises(UserError, match="'_extra_state' of Stateful is a dict"):
        save_checkpoint(tmp_path / "c", Stateful(1, 1), spec=SPEC, **WITH)
    assert not os.listdir(tmp_path)
