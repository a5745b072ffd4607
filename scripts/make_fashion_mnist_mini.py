"""Make the embedded subset of Fashion-MNIST from the IDX files of the full set.

    python scripts/make_fashion_mnist_mini.py FOLDER [--out FILE]

FOLDER holds train-images-idx3-ubyte(.gz) and its three companions, for example /usr/share/datasets/fashion-mnist of
Debian's package dataset-fashion-mnist. The first 1,000 training and 200 test pictures of each class are taken, in the
order of the files: nothing is drawn by chance. Prints the sha256 of the file and of what it holds; the first may differ
where another zlib packs, the second never does.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np

from excite.data.dataset import ArraySplit
from excite.data.fashion import EMBEDDED, FASHION_CLASSES, load_fashion

PER_CLASS = {"train": 1000, "test": 200}


def select(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Positions of the first ``per_class`` of each class, in the order of the file."""
    first = [np.flatnonzero(labels == label)[:per_class] for label in range(len(FASHION_CLASSES))]
    return np.sort(np.concatenate(first))


def content_sha256(arrays: dict[str, np.ndarray]) -> str:
    """One sha256 over the names, shapes and bytes of all arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def make(folder: str) -> dict[str, np.ndarray]:
    full = load_fashion(folder)
    arrays = {}
    for part, split in (("train", full.train), ("test", full.val)):
        assert isinstance(split, ArraySplit)
        labels = split.labels.numpy().astype(np.uint8)
        chosen = select(labels, PER_CLASS[part])
        arrays[f"{part}_images"] = np.ascontiguousarray(split.images.numpy()[chosen])
        arrays[f"{part}_labels"] = labels[chosen]
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the four IDX files lie")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    arguments = parser.parse_args()
    arrays = make(arguments.folder)
    # numpy stamps members with the year 1980, so equal arrays give equal files.
    np.savez_compressed(arguments.out, allow_pickle=False, **arrays)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
    print(f"sha256 of the file      {hashlib.sha256(arguments.out.read_bytes()).hexdigest()}")
    print(f"sha256 of what it holds {content_sha256(arrays)}")


if __name__ == "__main__":
    main()
