"""Fashion-MNIST: the embedded subset is what its script makes, and IDX files read back as written."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from excite.data import load_data
from excite.data.fashion import EMBEDDED, FASHION_CLASSES, read_idx
from excite.errors import UserError

# Of the file in the package, and of the names, shapes and bytes of its arrays.
FILE_SHA256 = "c5cd865fb76b0464b71a9220a1e9b23fcc6b8310f7d1174387aa8c939e583f77"
CONTENT_SHA256 = "968937d45e8f2732d69b4e8b91aff93fedfffb6dcacb91e2d3a749e082a667cf"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_fashion_mnist_mini.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_fashion_mnist_mini", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder, *, counts=(60, 20), pack=True, dash="-"):
    """A small set in the four files; returns images and labels by part."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    made = {}
    for part, count in zip(("train", "t10k"), counts, strict=True):
        made[part] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.permutation(np.arange(count) % 10)
        for kind, array in zip((f"images{dash}idx3", f"labels{dash}idx1"), made[part], strict=True):
            body = idx(array)
            (folder / f"{part}-{kind}-ubyte{'.gz' * pack}").write_bytes(gzip.compress(body) if pack else body)
    return made


def test_the_embedded_file_is_the_one_recorded():
    body = EMBEDDED.read_bytes()
    assert len(body) <= 8_000_000
    assert hashlib.sha256(body).hexdigest() == FILE_SHA256
    licence = (EMBEDDED.parent / "LICENSE-fashion-mnist").read_text()
    assert "Zalando SE" in licence and "Permission is hereby granted, free of charge" in licence


def test_the_embedded_arrays_are_the_ones_recorded(script):
    with np.load(EMBEDDED, allow_pickle=False) as file:
        assert script.content_sha256({name: file[name] for name in file.files}) == CONTENT_SHA256


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_embedded_arrays_are_made_from_the_full_set(script):
    assert script.content_sha256(script.make(str(DEBIAN))) == CONTENT_SHA256


def test_the_script_takes_the_first_of_each_class(script, tmp_path, monkeypatch):
    made = write_idx(tmp_path)
    monkeypatch.setattr(script, "PER_CLASS", {"train": 3, "test": 1})
    arrays = script.make(str(tmp_path))
    for part, stem, count in (("train", "train", 3), ("test", "t10k", 1)):
        images, labels = made[stem]
        seen, kept = dict.fromkeys(range(10), 0), []
        for k, label in enumerate(labels):
            seen[label] += 1
            if seen[label] <= count:
                kept.append(k)
        assert np.array_equal(arrays[f"{part}_images"][:, 0], images[kept])
        assert np.array_equal(arrays[f"{part}_labels"], labels[kept])


def test_the_embedded_set():
    data = load_data("fashion-mnist-mini")
    assert (len(data.train), len(data.val)) == (10_000, 2_000)
    assert torch.bincount(data.train.labels).tolist() == [1000] * 10
    assert torch.bincount(data.val.labels).tolist() == [200] * 10
    assert data.train.images.shape == (10_000, 1, 28, 28) and data.val.images.shape == (2_000, 1, 28, 28)
    assert (data.name, data.in_channels, data.image_size) == ("fashion-mnist-mini", 1, 28)
    assert data.classes == FASHION_CLASSES and data.notes == () and data.unreadable == ()
    pictures = {image.numpy().tobytes() for split in (data.train, data.val) for image in split.images}
    assert len(pictures) == 12_000


def test_embedded_labels_belong_to_their_pictures():
    """The nearest class mean is right for two thirds of the test pictures; with labels mixed up, for a tenth."""
    data = load_data("fashion-mnist-mini")
    train, val = data.train.images.flatten(1).float(), data.val.images.flatten(1).float()
    means = torch.stack([train[data.train.labels == label].mean(0) for label in range(10)])
    right = (torch.cdist(val, means).argmin(1) == data.val.labels).float().mean()
    assert right > 0.6


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("inside", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_idx_files(tmp_path, pack, inside, dash):
    made = write_idx(tmp_path / inside, pack=pack, dash=dash)
    data = load_data(f"fashion-mnist:{tmp_path}")
    for split, part in ((data.train, "train"), (data.val, "t10k")):
        assert np.array_equal(split.images.numpy()[:, 0], made[part][0])
        assert split.labels.tolist() == made[part][1].tolist()
    assert data.name == "fashion-mnist" and data.classes == FASHION_CLASSES
    np.testing.assert_allclose(data.mean, [made["train"][0].mean() / 255], rtol=1e-12)
    np.testing.assert_allclose(data.std, [made["train"][0].std() / 255], rtol=1e-12)


BROKEN = {
    "nothing": (b"", "is not an IDX file"),
    "text": (b"hello, world", "is not an IDX file of unsigned bytes .it begins with 68656c6c."),
    "floats": (bytes([0, 0, 13, 1, 0, 0, 0, 0]), "is not an IDX file"),
    "cut": (idx(np.zeros((3, 4)))[:-1], r"should hold 12 values, as \[3, 4\], and holds 11"),
    "cut in its head": (bytes([0, 0, 8, 3, 0, 0]), "get it again"),
    "too long": (idx(np.zeros(3)) + b"x", r"should hold 3 values, as \[3\], and holds 4"),
    "cut gzip": (gzip.compress(idx(np.zeros(1000)))[:-9], "cannot be read"),
    "damaged gzip": (b"\x1f\x8b" + b"hello", "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_idx_files_are_named(tmp_path, case):
    body, said = BROKEN[case]
    (tmp_path / "x-ubyte").write_bytes(body)
    with pytest.raises(UserError, match=f"x-ubyte.*{said}"):
        read_idx(tmp_path / "x-ubyte")


def test_a_missing_file_is_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="has no t10k-labels-idx1-ubyte"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_labels_and_pictures_must_agree(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(59)))
    with pytest.raises(UserError, match=r"labels must be int64 \[60\], one a picture; got torch.int64 \(59,\)"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_a_damaged_package_says_so(tmp_path, monkeypatch):
    import excite.data.fashion as module

    for body in (EMBEDDED.read_bytes()[:100_000], b"", b"hello"):
        (tmp_path / "x.npz").write_bytes(body)
        monkeypatch.setattr(module, "EMBEDDED", tmp_path / "x.npz")
        with pytest.raises(UserError, match="came with the package and cannot be read"):
            load_data("fashion-mnist-mini")
