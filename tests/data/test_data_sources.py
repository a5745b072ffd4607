"""Sets by name: what is asked for, where it is looked for, and downloads from a server of our own."""

import gzip
import hashlib
import http.server
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from excite.data import array_data_set, fashion, list_data, load_data
from excite.data.dataset import channel_statistics
from excite.data.files import Remote, fetch
from excite.errors import UserError


def test_names_are_listed():
    assert list_data() == ["fashion-mnist-mini", "fashion-mnist", "cifar10", "folder"]


WRONG = {
    "fashion-mnist-mni": r"unknown data set 'fashion-mnist-mni': did you mean 'fashion-mnist-mini'",
    "imagenet": r"unknown data set 'imagenet': known: cifar10, .*A folder of your own pictures is folder:PATH",
    "./flowers": r"unknown data set './flowers'.*folder:PATH",
    "": "unknown data set ''",
    "folder": "folder needs a path: folder:PATH",
    "folder:": "the path after the colon is empty",
    "fashion-mnist-mini:/tmp": "comes with the package and takes no path",
}


@pytest.mark.parametrize("spec", WRONG)
def test_wrong_names(spec):
    with pytest.raises(UserError, match=WRONG[spec]):
        load_data(spec)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"bad_image_limit": 1.5}, "bad_image_limit=1.5: give a share from 0 to 1"),
        ({"bad_image_limit": -0.1}, "bad_image_limit=-0.1"),
    ],
)
def test_values_out_of_range(ask, said):
    with pytest.raises(UserError, match=said):
        load_data("fashion-mnist-mini", **ask)


def test_a_folder_cannot_be_downloaded(tmp_path):
    with pytest.raises(UserError, match="on this machine already"):
        load_data(f"folder:{tmp_path}", download=True)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_a_bare_name_says_where_it_looked(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    module = sys.modules[f"excite.data.{'fashion' if name == 'fashion-mnist' else 'cifar'}"]
    monkeypatch.setattr(module, "_PLACES", (f"data/{name}", "~/nowhere"))
    with pytest.raises(UserError, match=rf"{name} is not in data/{name}, .*nowhere; give its place as '{name}:PATH'"):
        load_data(name)


def test_preprocessing_is_json():
    data = load_data("fashion-mnist-mini")
    said = json.loads(json.dumps(data.preprocessing()))
    assert said["image_size"] == 28 and said["in_channels"] == 1 and said["view"] == 1.0
    assert said["mean"] == list(data.mean) and said["std"] == list(data.std)


def test_image_size_resizes_sets_in_memory():
    small, whole = load_data("fashion-mnist-mini", image_size=14), load_data("fashion-mnist-mini")
    expected = interpolate(whole.val.images[:50].double(), (14, 14), mode="bilinear", antialias=True)
    assert (small.val.images[:50].double() - expected).abs().max() <= 1
    assert small.image_size == 14 and small.train.images.shape == (10_000, 1, 14, 14)
    assert small.mean == channel_statistics(small.train.images)[0]


def test_statistics_of_a_constant_channel():
    mean, std = channel_statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8))
    assert mean == (0.2,) and std == (1 / 255,)


ARRAYS = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (ARRAYS[0].float(), ARRAYS[1], r"must be uint8 \[n, 1 or 3, H, W\]; got torch.float32"),
        (ARRAYS[0][:, :2], ARRAYS[1], r"must be uint8 .* got torch.uint8 \(4, 2, 8, 8\)"),
        (ARRAYS[0], ARRAYS[1][:3], r"labels must be int64 \[4\]"),
        (ARRAYS[0], ARRAYS[1].int(), "labels must be int64"),
        (ARRAYS[0], ARRAYS[1] + 1, "labels run from 1 to 2, but there are 2 classes"),
        (ARRAYS[0], ARRAYS[1] - 1, "labels run from -1 to 0"),
        (ARRAYS[0][:0], ARRAYS[1][:0], "there are no pictures"),
        (ARRAYS[0][..., :7], ARRAYS[1], "must agree"),
    ],
)
def test_arrays_that_do_not_fit(images, labels, said):
    with pytest.raises(UserError, match=said):
        array_data_set("mine", ("a", "b"), ARRAYS, (images, labels))


def test_pictures_that_are_not_square():
    wide = (ARRAYS[0][..., :6], ARRAYS[1])
    with pytest.raises(UserError, match="pictures are 8x6; they must be square, or give image_size"):
        array_data_set("mine", ("a", "b"), wide, wide)
    assert array_data_set("mine", ("a", "b"), wide, wide, image_size=5).image_size == 5


def test_importing_data_is_light():
    code = "import sys, excite.data; print(*{'PIL', 'torchvision', 'lightning', 'scipy', 'rich'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_pillow_missing_is_said_plainly(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    for name in [n for n in sys.modules if n in ("excite.data.folder", "excite.data.pictures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"needs Pillow; pip install 'excite\[data\]'"):
        load_data(f"folder:{tmp_path}")


@pytest.fixture
def server(monkeypatch):
    """Files by name on 127.0.0.1, and what was asked of it."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = files.get(self.path[1:])
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", files, asked
        running.shutdown()
        thread.join()


def remote(name, body, *addresses):
    return Remote(name, tuple(address + name for address in addresses), hashlib.sha256(body).hexdigest())


def test_download_only_when_asked_and_only_once(tmp_path, monkeypatch, server):
    address, files, asked = server
    wanted = []
    for part, count in (("train", 20), ("t10k", 10)):
        for kind, array in (
            ("images-idx3", np.zeros((count, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(count, dtype=np.uint8) % 10),
        ):
            name = f"{part}-{kind}-ubyte.gz"
            shape = b"".join(n.to_bytes(4, "big") for n in array.shape)
            files[name] = gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes())
            wanted.append(remote(name, files[name], address))
    monkeypatch.setattr(fashion, "_REMOTE", tuple(wanted))
    monkeypatch.setattr(fashion, "_PLACES", ("data/fashion-mnist",))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not in data/fashion-mnist"):
        load_data("fashion-mnist")
    assert asked == []
    assert len(load_data("fashion-mnist", download=True).train) == 20
    assert len(asked) == 4
    # Now it is there: under its bare name, by its path, and asking for it again fetches nothing.
    assert len(load_data("fashion-mnist").train) == 20
    assert len(load_data(f"fashion-mnist:{tmp_path / 'data' / 'fashion-mnist'}").val) == 10
    assert len(load_data("fashion-mnist", download=True).val) == 10
    assert len(asked) == 4
    assert len(load_data(f"fashion-mnist:{tmp_path / 'other'}", download=True).train) == 20
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == sorted(files)


def test_the_next_address_is_tried(tmp_path, server):
    address, files, _ = server
    files["good/x"] = b"whole"
    fetch([remote("x", b"whole", address + "none/", "http://127.0.0.1:9/", address + "good/")], tmp_path)
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_a_place_that_cannot_be_written_to(tmp_path, server):
    address, _, asked = server
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot download into .*file/sub"):
        fetch([remote("x", b"whole", address)], tmp_path / "file" / "sub")
    assert asked == []


def test_other_bytes_are_refused_and_leave_nothing(tmp_path, server):
    address, files, _ = server
    files["x"] = b"tampered with"
    with pytest.raises(UserError, match=r"could not download x: .*/x: its bytes have sha256 .*, not "):
        fetch([remote("x", b"whole", address)], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_bytes_is_named_not_replaced(tmp_path, server):
    address, files, asked = server
    files["x"] = b"whole"
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(UserError, match="x is not the file it should be .* delete it to download it again"):
        fetch([remote("x", b"whole", address)], tmp_path)
    assert (tmp_path / "x").read_bytes() == b"mine" and asked == []
