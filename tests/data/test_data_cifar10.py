"""CIFAR-10 in its formats: one set of pictures, written in each, read back the same."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from excite.data import load_data
from excite.data.cifar import CIFAR10_CLASSES, read_batch
from excite.errors import UserError

TRAIN = [f"data_batch_{k}" for k in range(1, 6)]
PER_BATCH = 7


def contents():
    """rows [n, 3072], colour planes as CIFAR-10 stores them, and labels of every batch."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8),
            [int(v) for v in rng.integers(0, 10, PER_BATCH)],
        )
        for name in [*TRAIN, "test_batch"]
    }


def pickled(rows, labels):
    return pickle.dumps({b"data": rows, b"labels": labels, b"batch_label": b"a batch"}, protocol=2)


def write_python(folder):
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for name, (rows, labels) in contents().items():
        (folder / "cifar-10-batches-py" / name).write_bytes(pickled(rows, labels))


def write_archive(folder):
    folder.mkdir()
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, (rows, labels) in contents().items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(pickled(rows, labels))
            archive.addfile(info, io.BytesIO(pickled(rows, labels)))


def write_binary(folder):
    folder.mkdir()
    for name, (rows, labels) in contents().items():
        (folder / f"{name}.bin").write_bytes(np.column_stack([np.uint8(labels), rows]).tobytes())


def write_sheets(folder):
    folder.mkdir()
    for name, (rows, _) in contents().items():
        pixels = rows.reshape(-1, 3, 1024).transpose(0, 2, 1)
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.png")
    train = [label for name in TRAIN for label in contents()[name][1]]
    (folder / "train_lables.json").write_text(json.dumps(train))
    (folder / "test_lables.json").write_text(json.dumps(contents()["test_batch"][1]))


FORMATS = {"python": write_python, "archive": write_archive, "binary": write_binary, "sheets": write_sheets}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    FORMATS[name](tmp_path / "set")
    data = load_data(f"cifar10:{tmp_path / 'set'}")
    batches = contents()
    train = np.concatenate([batches[b][0] for b in TRAIN]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train.images.numpy(), train)
    assert data.train.labels.tolist() == [label for b in TRAIN for label in batches[b][1]]
    assert np.array_equal(data.val.images.numpy(), batches["test_batch"][0].reshape(-1, 3, 32, 32))
    assert data.val.labels.tolist() == batches["test_batch"][1]
    assert (data.name, data.classes, data.in_channels, data.image_size) == ("cifar10", CIFAR10_CLASSES, 3, 32)
    assert data.augmentation == "crop-flip" and data.train.in_memory
    (note,) = data.notes
    assert "holds 35 + 7 pictures; CIFAR-10 has 50000 + 10000" in note
    np.testing.assert_allclose(data.mean, train.mean((0, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(data.std, train.std((0, 2, 3)) / 255, rtol=1e-12)


def test_the_archive_itself_is_a_path(tmp_path):
    write_archive(tmp_path / "set")
    assert len(load_data(f"cifar10:{tmp_path / 'set' / 'cifar-10-python.tar.gz'}").train) == 35


def test_python_2_wrote_the_official_batches():
    """Such a pickle names numpy.core.multiarray and holds text as latin-1: this one's opcodes are like theirs."""
    rows = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    body = pickled(rows, [3, 9]).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in body
    images, labels = read_batch(io.BytesIO(body), "batch")
    assert np.array_equal(images.numpy().reshape(2, -1), rows) and labels.tolist() == [3, 9]
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64


class Evil:
    """Runs a function when a plain unpickler reads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EVIL = {
    "os.system": lambda path: Evil(__import__("os").system, f"touch {path}"),
    "eval": lambda path: Evil(eval, f"open({str(path)!r}, 'w')"),
    "open": lambda path: Evil(open, str(path), "w"),
    "numpy's own loader": lambda path: Evil(np.load, str(path)),
    "a codec": lambda path: Evil(__import__("_codecs").encode, "x", "rot13"),
}


@pytest.mark.parametrize("how", EVIL)
@pytest.mark.parametrize("where", ["value", "label"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, how, where):
    write_python(tmp_path)
    target = tmp_path / "written"
    rows, labels = contents()["data_batch_3"]
    bad = EVIL[how](target)
    body = pickled(rows, [*labels[1:], bad]) if where == "label" else pickle.dumps({b"x": bad, b"data": rows}, 2)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(body)
    with pytest.raises(UserError, match=r"data_batch_3: it asks (to load|for the codec) .*"):
        load_data(f"cifar10:{tmp_path}")
    assert not target.exists()


def damage(folder, name, change):
    path = next(folder.rglob(name))
    path.write_bytes(change(path.read_bytes()))


DAMAGED = {
    "cut pickle": ("python", "data_batch_2", lambda b: b[:1000], "data_batch_2 cannot be read as a Python batch"),
    "no pickle": ("python", "data_batch_2", lambda b: b"hello", "data_batch_2 cannot be read as a Python batch"),
    "other pickle": ("python", "data_batch_2", lambda b: pickle.dumps([1]), "data_batch_2 cannot be read"),
    "float rows": (
        "python",
        "data_batch_2",
        lambda b: pickled(np.zeros((2, 3072)), [0, 1]),
        r"data_batch_2 should hold uint8 \[n, 3072\]; got float64 \[2, 3072\]",
    ),
    "labels missing": (
        "python",
        "data_batch_2",
        lambda b: pickled(np.zeros((2, 3072), np.uint8), [0]),
        r"data_batch_2 should hold 2 labels; got int64 \[1\]",
    ),
    "label 10": (
        "python",
        "data_batch_2",
        lambda b: pickled(np.zeros((2, 3072), np.uint8), [0, 10]),
        r"labels run from 0 to 10, but there are 10 classes \(0 to 9\)",
    ),
    "cut archive": ("archive", "*.tar.gz", lambda b: b[: len(b) // 2], "cifar-10-python.tar.gz.* cannot be read"),
    "cut binary": ("binary", "test_batch.bin", lambda b: b[:-1], "not a multiple of 1 label"),
    "cut sheet": ("sheets", "data_batch_4.png", lambda b: b[: len(b) // 2], "data_batch_4.png cannot be read"),
    "labels not JSON": ("sheets", "train_lables.json", lambda b: b"[1, 2", "train_lables.json cannot be read"),
    "labels too few": ("sheets", "test_lables.json", lambda b: b"[1, 2]", r"should hold 7 labels; got int64 \[2\]"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path, case):
    how, name, change, said = DAMAGED[case]
    FORMATS[how](tmp_path / "set")
    damage(tmp_path / "set", name, change)
    with pytest.raises(UserError, match=said):
        load_data(f"cifar10:{tmp_path / 'set'}")


@pytest.mark.parametrize(("how", "name"), [("python", "data_batch_5"), ("sheets", "test_lables.json")])
def test_a_missing_file_is_named(tmp_path, how, name):
    FORMATS[how](tmp_path / "set")
    next((tmp_path / "set").rglob(name)).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file"):
        load_data(f"cifar10:{tmp_path / 'set'}")


def test_a_sheet_of_another_shape(tmp_path):
    write_sheets(tmp_path / "set")
    Image.new("RGB", (32, 32)).save(tmp_path / "set" / "data_batch_1.png")
    with pytest.raises(UserError, match="should be 1024 pixels wide in RGB"):
        load_data(f"cifar10:{tmp_path / 'set'}")


def test_a_folder_without_it(tmp_path):
    with pytest.raises(UserError, match="has none of data_batch_1, data_batch_1.bin, data_batch_1.png and cifar-10-py"):
        load_data(f"cifar10:{tmp_path}")
