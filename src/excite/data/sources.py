"""Sets of pictures by name: ``load_data("folder:PATH")``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from excite.data.cifar import load_cifar10
from excite.data.dataset import DataSet
from excite.data.fashion import load_fashion, load_fashion_mini
from excite.errors import UserError, unknown

__all__ = ["DATA_SETS", "list_data", "load_data"]


@dataclass(frozen=True)
class _Ask:
    """What was asked for, beside the set's name."""

    path: str | None
    image_size: int | None
    seed: int
    download: bool
    bad_image_limit: float


def _fashion_mini(ask: _Ask) -> DataSet:
    if ask.path is not None:
        raise UserError(
            "fashion-mnist-mini comes with the package and takes no path; the full set is fashion-mnist:PATH"
        )
    return load_fashion_mini(image_size=ask.image_size)


def _fashion(ask: _Ask) -> DataSet:
    return load_fashion(ask.path, image_size=ask.image_size, download=ask.download)


def _cifar10(ask: _Ask) -> DataSet:
    return load_cifar10(ask.path, image_size=ask.image_size, download=ask.download)


def _folder(ask: _Ask) -> DataSet:
    if ask.path is None:
        raise UserError("folder needs a path: folder:PATH, with a subfolder for each class")
    if ask.download:
        raise UserError("folder:PATH is on this machine already; leave download off")
    from excite.data.folder import load_folder

    return load_folder(ask.path, image_size=ask.image_size, seed=ask.seed, bad_image_limit=ask.bad_image_limit)


DATA_SETS: dict[str, Callable[[_Ask], DataSet]] = {
    "fashion-mnist-mini": _fashion_mini,
    "fashion-mnist": _fashion,
    "cifar10": _cifar10,
    "folder": _folder,
}


def list_data() -> list[str]:
    """The names that `load_data` takes; "folder" needs a path, "fashion-mnist" and "cifar10" can have one."""
    return list(DATA_SETS)


def load_data(
    spec: str,
    *,
    image_size: int | None = None,
    seed: int = 0,
    download: bool = False,
    bad_image_limit: float = 0.01,
) -> DataSet:
    """A set of labelled pictures.

    Args:
        spec: "fashion-mnist-mini" (embedded), "fashion-mnist:PATH" (IDX files), "cifar10:PATH" (Python or binary
            batches, PNG sheets) or "folder:PATH" (a subfolder a class). "fashion-mnist" and "cifar10" alone look in the
            usual places.
        image_size: height and width in pixels; None keeps a set's own size (28, 32) and is 224 for folders.
        seed: of the split of a folder that has no val or test; nothing else here is random.
        download: whether a set that is not there may be fetched from its authors' address.
        bad_image_limit: the share of a folder's pictures, 0 to 1, that may be unreadable; those are skipped.

    Raises:
        UserError: an unknown name, a path that does not exist (both with the nearest names), data that is damaged or
            incomplete, a value out of range.
    """
    name, colon, path = spec.partition(":")
    if name not in DATA_SETS:
        raise unknown("data set", name, DATA_SETS, hint="A folder of your own pictures is folder:PATH")
    if colon and not path:
        raise UserError(f"data {spec!r}: the path after the colon is empty")
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size={image_size}: give a number of pixels, at least 1")
    if not 0 <= bad_image_limit <= 1:
        raise UserError(f"bad_image_limit={bad_image_limit}: give a share from 0 to 1")
    ask = _Ask(path or None, image_size, seed, download, bad_image_limit)
    try:
        return DATA_SETS[name](ask)
    except ModuleNotFoundError as error:
        if error.name != "PIL":
            raise
        raise UserError(f"{spec}: reading pictures needs Pillow; pip install 'excite[data]'") from error
