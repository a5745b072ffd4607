"""Fashion-MNIST (arXiv 1708.07747): the subset embedded in the package, and the full set from IDX files."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from excite.data.dataset import DataSet, array_data_set
from excite.data.files import Remote, existing, fetch, find_usual
from excite.errors import UserError

__all__ = ["EMBEDDED", "FASHION_CLASSES", "load_fashion", "load_fashion_mini", "read_idx"]

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
EMBEDDED = Path(__file__).parent / "embedded" / "fashion-mnist-mini.npz"

_PARTS = {"train": "train", "val": "t10k"}
# Where a download goes, where torchvision puts it, and where Debian's package does.
_PLACES = ("data/fashion-mnist", "data", "/usr/share/datasets/fashion-mnist")
# The authors' repository at a fixed commit, and the address its README gives.
_MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
_REMOTE = tuple(
    Remote(name, tuple(mirror + name for mirror in _MIRRORS), sha256)
    for name, sha256 in (
        ("train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    )
)


def load_fashion_mini(*, image_size: int | None = None) -> DataSet:
    """The embedded subset: the first 1,000 training and 200 test pictures of each class, 28 x 28, grey.

    Args:
        image_size: resize to this height and width in pixels; None keeps 28.

    Raises:
        UserError: the file that came with the package is missing or damaged.
    """
    try:
        with EMBEDDED.open("rb") as packed, np.load(packed, allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        train, val = ((arrays[f"{part}_images"], arrays[f"{part}_labels"].long()) for part in ("train", "test"))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{EMBEDDED} came with the package and cannot be read ({error}); install it again") from error
    return array_data_set("fashion-mnist-mini", FASHION_CLASSES, train, val, image_size=image_size)


def load_fashion(path: str | None = None, *, image_size: int | None = None, download: bool = False) -> DataSet:
    """Fashion-MNIST from its four IDX files, packed by gzip or not.

    Args:
        path: the folder that holds them (or holds ``FashionMNIST/raw``); None looks in the usual places.
        image_size: resize to this height and width in pixels; None keeps 28.
        download: fetch the files that are missing, into ``path`` or ``data/fashion-mnist``.

    Raises:
        UserError: no such folder, a missing or damaged file, or a failed download.
    """
    if download:
        folder = Path(path or _PLACES[0]).expanduser()
        if not _holds(folder):
            fetch(_REMOTE, folder)
    else:
        folder = existing(path, "fashion-mnist") if path else find_usual("fashion-mnist", _PLACES, _holds)
    splits = {}
    for which, part in _PARTS.items():
        images = read_idx(_idx_file(folder, f"{part}-images", 3))
        labels = read_idx(_idx_file(folder, f"{part}-labels", 1))
        splits[which] = (images.unsqueeze(1), labels.long())
    return array_data_set("fashion-mnist", FASHION_CLASSES, splits["train"], splits["val"], image_size=image_size)


def read_idx(path: Path) -> Tensor:
    """The array in an IDX file of unsigned bytes, packed by gzip or not (told by its first bytes, not its name).

    Raises:
        UserError: not such a file, or one with bytes missing or left over.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    # Two zeros, the type (8: unsigned byte), the number of axes, and each axis as a big-endian 32-bit number.
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise UserError(f"{path} is not an IDX file of unsigned bytes (it begins with {data[:4].hex() or 'nothing'})")
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[k : k + 4], "big") for k in range(4, start, 4)]
    if len(data) != start + math.prod(shape):
        raise UserError(
            f"{path} should hold {math.prod(shape)} values, as {shape}, and holds {max(len(data) - start, 0)}; "
            "get it again"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def _idx_file(folder: Path, stem: str, axes: int) -> Path:
    # The authors write "-idx3-ubyte"; unpacking tools on some systems make the first dash a dot.
    names = [f"{stem}{dash}idx{axes}-ubyte{gz}" for dash in "-." for gz in ("", ".gz")]
    for inside in (folder, folder / "raw", folder / "FashionMNIST" / "raw"):
        for name in names:
            if (inside / name).is_file():
                return inside / name
    raise UserError(f"fashion-mnist: {folder} has no {names[0]} (packed as .gz or not)")


def _holds(folder: Path) -> bool:
    try:
        for part in _PARTS.values():
            _idx_file(folder, f"{part}-images", 3)
            _idx_file(folder, f"{part}-labels", 1)
    except UserError:
        return False
    return True
