"""Records add up: over splits, in any order, over real processes, and to and from files."""

import os
import subprocess
import sys
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import in_batches, planted, planted_images
from safetensors.numpy import save_file

from excite.analysis import GateRecord, record_gates
from excite.analysis.moments import Moments
from excite.errors import UserError

HERE = Path(__file__).parent
IMAGES = 97


def assert_same(one, other, rtol=1e-12):
    """Counts, samples and images alike; sums but for their order."""
    assert one.images.index.tolist() == other.images.index.tolist()
    assert one.images.name == other.images.name and one.classes == other.classes
    for name in ("key", "label", "predicted", "loss"):
        np.testing.assert_array_equal(getattr(one.images, name), getattr(other.images, name))
    assert one.sample_rows.tolist() == other.sample_rows.tolist()
    for a, b in zip(one.sites, other.sites, strict=True):
        assert (a.name, a.gate, a.stage, a.label, a.range) == (b.name, b.gate, b.stage, b.label, b.range)
        for name in ("count", "near_low", "near_high", "min", "max", "sample", "top_s", "top_rows"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        np.testing.assert_allclose(a.mean, b.mean, rtol=rtol)
        np.testing.assert_allclose(a.m2, b.m2, rtol=rtol, atol=1e-12 * max(b.m2.max(), 1e-300))


@pytest.fixture(scope="module")
def network():
    return planted()


@pytest.fixture(scope="module")
def images():
    return planted_images(IMAGES)


def recorded(network, images, rows, size=1, **options):
    # One image at a time: what a convolution gives for one must not hang on its neighbours' number.
    options = {"sample": 25, "top_images": 4} | options
    return record_gates(network, in_batches(*images, size, torch.as_tensor(rows)), **options)


@pytest.fixture(scope="module")
def whole(network, images):
    return recorded(network, images, np.arange(IMAGES))


@pytest.mark.parametrize("seed", range(4))
def test_any_split_adds_up(network, images, whole, seed):
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, IMAGES), size=rng.integers(1, 6), replace=False))
    parts = [recorded(network, images, rows) for rows in np.split(rng.permutation(IMAGES), cuts)]
    assert_same(reduce(GateRecord.merge, parts), whole)
    assert_same(reduce(lambda a, b: b.merge(a), parts), whole)
    assert sum(part.n for part in parts) == IMAGES


def test_moments_of_any_split():
    rng = np.random.default_rng(0)
    s = 1e6 + rng.normal(size=(1000, 3))  # a mean a million times the deviation: sums of squares would lose it
    labels = rng.integers(0, 5, 1000)
    labels[labels == 3] = 2  # a class without images
    one = Moments.of(s, labels, 5)
    for k in (0, 1, 2, 4):
        np.testing.assert_allclose(one.m2[k], s[labels == k].var(0) * (labels == k).sum(), rtol=1e-8)
    assert one.count[3] == 0 and not one.mean[3].any()
    other = Moments.empty(5, 3)
    for part in np.split(rng.permutation(1000), [1, 2, 300, 999]):
        other = Moments.of(s[part], labels[part], 5).merged(other)
    np.testing.assert_allclose(other.mean, one.mean, rtol=1e-14)
    np.testing.assert_allclose(other.m2, one.m2, rtol=1e-8)
    pooled = other.pooled()
    np.testing.assert_allclose(pooled.m2[0], s.var(0) * 1000, rtol=1e-8)
    assert (
        Moments.of(s - 1e6, labels, 5).moving().all()
        and not Moments.of(np.full((9, 2), 0.3), labels[:9], 5).moving().any()
    )


def test_what_does_not_add_up(network, images):
    one = recorded(network, images, np.arange(9))
    with pytest.raises(UserError, match="image 8 is in both records, 1 image in all: give"):
        one.merge(recorded(network, images, np.arange(8, 12)))
    with pytest.raises(UserError, match="records with sample_size=25 and 26 do not add up"):
        one.merge(recorded(network, images, np.arange(9, 12), sample=26))
    with pytest.raises(UserError, match="records with classes="):
        one.merge(recorded(network, images, np.arange(9, 12), classes=list("abcd")))
    with pytest.raises(UserError, match="different networks do not add up"):
        one.merge(recorded(planted(("class", "dead")), images, np.arange(9, 12)))
    trained = planted()
    with torch.no_grad():
        trained.stem.weight.mul_(1.1)
    with pytest.raises(UserError, match="different networks do not add up: .* their weights are not"):
        one.merge(recorded(trained, images, np.arange(9, 12)))


def test_fewer_images_than_kept(network, images):
    one = recorded(network, images, [3, 1], sample=0, top_images=0)
    two = recorded(network, images, [2], sample=0, top_images=0)
    both = one.merge(two)
    assert both.images.index.tolist() == [1, 2, 3] and both.sites[0].sample.shape == (0, 8)
    few = recorded(network, images, [5], top_images=6).merge(recorded(network, images, [4], top_images=6))
    assert few.sites[0].top_s.shape == (2, 8) and len(few.sample_rows) == 2


def test_named_images_are_numbered_by_name(network, images):
    x, y = images
    names = [f"{i * 7 % 97:02}.png" for i in range(IMAGES)]
    parts = [record_gates(network, [(x[i::3], y[i::3], names[i::3])], sample=IMAGES) for i in range(3)]
    assert all(part.images.name == tuple(names[i::3]) for i, part in enumerate(parts))
    one, other = reduce(GateRecord.merge, parts), reduce(GateRecord.merge, parts[::-1])
    assert_same(one, other)
    assert one.images.name == tuple(sorted(names)) and one.images.index.tolist() == list(range(IMAGES))
    assert one.images.label.tolist() == y[np.argsort(names)].tolist()
    top = one.sites[0].top_rows[0, 2]
    assert one.images.label[top] == 2, "who opened the channel of class 2 most"


RANK = """
import sys
sys.path.insert(0, {here!r})
import numpy as np
import torch
import torch.distributed as dist

torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + {out!r} + "store", rank=rank, world_size=2)
from planted import planted, planted_images
from test_gate_record_merge import IMAGES, recorded

recorded(planted(), planted_images(IMAGES), np.arange(IMAGES)[rank::2]).gathered().save({out!r} + str(rank))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_real_processes_add_up(whole, tmp_path):
    out = str(tmp_path / "record")
    command = [sys.executable, "-W", "error", "-c", RANK.format(here=str(HERE), out=out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in range(2)]
    said = [rank.communicate(timeout=300)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for rank in range(2):
        assert_same(GateRecord.load(f"{out}{rank}"), whole)


def test_one_process_is_all(whole):
    assert whole.gathered() is whole


# --- files ---


def test_a_file_holds_all(network, images, tmp_path):
    x, y = images
    names = [f"ünï {i}.png" for i in range(6)]
    record = record_gates(network, [(x[:6], y[:6], names)], classes=["a", "b", "<c>", "d"])
    path = record.save(tmp_path / "new" / "record.safetensors")
    assert_same(GateRecord.load(path), record, rtol=0)
    read = GateRecord.load(path)
    assert (read.sample_size, read.top_images, read.seed, read.skipped) == (2000, 12, 0, ())
    more = record_gates(network, [(x[6:9], y[6:9], list("xyz"))], classes=record.classes)
    assert_same(read.merge(more), record.merge(more), rtol=0)
    assert not list(path.parent.glob("*.part"))


def test_files_that_are_none(network, images, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        GateRecord.load(tmp_path / "missing")
    with pytest.raises(UserError, match="is a folder, not a record"):
        GateRecord.load(tmp_path)
    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3)}, other)
    with pytest.raises(UserError, match="no record of gates"):
        GateRecord.load(other)
    path = recorded(network, images, [0, 1]).save(tmp_path / "record.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="was its writing cut short"):
        GateRecord.load(path)
    save_file({"a": np.zeros(3)}, path, {"excite_record": '{"format": 2}'})
    with pytest.raises(UserError, match="has format 2; this version of excite reads format 1"):
        GateRecord.load(path)
    save_file({"a": np.zeros(3)}, path, {"excite_record": '{"format": 1}'})
    with pytest.raises(UserError, match="entry is damaged"):
        GateRecord.load(path)


# --- everything, in Parquet ---


def test_everything_in_parquet(network, images, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("excite.analysis.all_values._ROWS", 40)
    path = tmp_path / "new" / "all.parquet"
    record = recorded(network, images, np.arange(IMAGES), size=16, keep_all=path, sample=IMAGES, classes=list("abcd"))
    table = parquet.read_table(path)
    assert table.num_rows == IMAGES and parquet.ParquetFile(path).num_row_groups == 3
    assert table.schema.metadata[b"classes"] == b'["a", "b", "c", "d"]'
    assert table["index"].to_pylist() == record.images.index.tolist()
    assert table["label"].to_pylist() == record.images.label.tolist()
    np.testing.assert_array_equal(table["loss"].to_numpy(), record.images.loss)
    for site in record.sites:
        np.testing.assert_array_equal(np.array(table[site.name].to_pylist(), np.float32), site.sample)
    assert not list(path.parent.glob("*.part"))


def test_a_failed_run_leaves_no_parquet(network, images, tmp_path):
    pytest.importorskip("pyarrow")
    x, y = images
    with pytest.raises(UserError, match="labels run from"):
        record_gates(network, [(x[:4], y[:4]), (x[4:8], y[4:8] + 7)], keep_all=tmp_path / "all.parquet")
    assert not list(tmp_path.iterdir())


def test_parquet_needs_pyarrow(network, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'excite\[explain\]'"):
        record_gates(network, in_batches(*images), keep_all=tmp_path / "all.parquet")
