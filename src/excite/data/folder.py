"""Folders of pictures: one subfolder a class, in ``train`` and ``val`` (or ``test``) or split here."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from excite.data.dataset import IMAGENET_MEAN, IMAGENET_STD, DataSet, FileSplit
from excite.data.files import existing
from excite.data.pictures import check_pictures
from excite.errors import UserError, unknown

__all__ = ["list_pictures", "load_folder"]

_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif".split()
)
_VAL_NAMES = ("val", "valid", "validation", "test")
_VAL_SHARE = 0.2
_SHOWN = 5
_VIEW = 224 / 256

# The pictures of every class, relative to the root.
_Listing = dict[str, list[str]]


def load_folder(path: str, *, image_size: int | None = None, seed: int = 0, bad_image_limit: float = 0.01) -> DataSet:
    """Pictures in class subfolders.

    ``path`` holds ``train`` and one of ``val``, ``valid``, ``validation`` and ``test``, each with a subfolder a class;
    or it holds the class subfolders, and a fifth of each class, fixed by ``seed`` and the file names, becomes val.
    Pictures may lie in nested folders and behind links; hidden names and files that are not pictures are passed over.
    Every picture is decoded once here, so that the order and the labels cannot change later.

    Args:
        path: the folder.
        image_size: height and width in pixels; None is 224.
        seed: of the split, where one is made.
        bad_image_limit: the share of pictures, 0 to 1, that may be unreadable; those are skipped.

    Raises:
        UserError: no such folder, no class or a single one, a class without pictures, a class of val that train lacks,
            or more unreadable pictures than allowed.
    """
    root = existing(path, "folder")
    if not root.is_dir():
        raise UserError(f"folder: {str(root)!r} is a file; give the folder that holds the class subfolders")
    notes: list[str] = []
    train_folder, val_folder = _layout(root, notes)
    ignored: Counter[str] = Counter()
    found = {"train": _list_classes(root, train_folder, ignored)}
    if val_folder is not None:
        found["val"] = _list_classes(root, val_folder, ignored)
    if ignored:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(ignored.items()))
        notes.append(f"files passed over because they are not pictures: {kinds}")
    classes = _check_classes(root, found, notes)
    unreadable = _drop_unreadable(root, found, bad_image_limit, notes)
    if val_folder is None:
        found = _split(found["train"], seed)
        notes.append(
            f"no val or test folder: {_VAL_SHARE:.0%} of each class are kept for validation (split seed {seed})"
        )
    splits = {which: _file_split(root, classes, listing) for which, listing in found.items()}
    return DataSet(
        name=root.resolve().name,
        classes=classes,
        in_channels=3,
        image_size=image_size or 224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train=splits["train"],
        val=splits["val"],
        augmentation="resized-crop-flip",
        view=_VIEW,
        notes=tuple(notes),
        unreadable=tuple(f"{root / name}: {reason}" for name, reason in unreadable.items()),
    )


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below, by name; links are followed, hidden names and what is no file passed over.

    Raises:
        UserError: a folder that cannot be listed.
    """
    return sorted(f for f in _walk(folder, frozenset()) if f.suffix.lower() in _SUFFIXES and f.is_file())


def _layout(root: Path, notes: list[str]) -> tuple[Path, Path | None]:
    """The folders of train and val; None for val where a split must be made."""
    folders = {p.name.lower(): p for p in _subfolders(root)}
    nested = [name for name in ("train", *_VAL_NAMES) if name in folders and _subfolders(folders[name])]
    # "train" and "test" may be classes themselves (of vehicles, say): beside other folders they are splits only if
    # both hold folders.
    if "train" not in folders or not (
        folders.keys() <= {"train", *_VAL_NAMES} or ("train" in nested and len(nested) > 1)
    ):
        return root, None
    vals = [name for name in nested if name != "train"]
    used = ["train", *vals[:1]]
    unused = sorted(p.name for name, p in folders.items() if name not in used)
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    if not vals:
        return folders["train"], None
    notes.append(f"validation is on {folders[vals[0]].name}/")
    return folders["train"], folders[vals[0]]


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder) if (folder / name).is_dir()]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not _hidden(name))
    except OSError as error:
        raise UserError(f"folder: {folder} cannot be listed: {error.strerror}") from error


def _hidden(name: str) -> bool:
    # The second and third are what unpacking on a Mac and a network drive leave behind.
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def _list_classes(root: Path, folder: Path, ignored: Counter[str]) -> _Listing:
    listing: _Listing = {}
    for class_folder in _subfolders(folder):
        pictures = []
        for file in _walk(class_folder, frozenset()):
            if file.suffix.lower() in _SUFFIXES:
                pictures.append(file.relative_to(root).as_posix())
            else:
                ignored[file.suffix.lower()] += 1
        listing[class_folder.name] = sorted(pictures)
    outside = sum(not (folder / name).is_dir() for name in _names(folder))
    if outside:
        ignored["outside the class folders"] += outside
    return listing


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """All files below, through links; ``above`` holds the real folders on the way, so that a loop of links ends."""
    real = folder.resolve()
    if real in above:
        return
    for name in _names(folder):
        if (folder / name).is_dir():
            yield from _walk(folder / name, above | {real})
        else:
            yield folder / name


def _check_classes(root: Path, found: dict[str, _Listing], notes: list[str]) -> tuple[str, ...]:
    train = found["train"]
    if not train:
        raise UserError(
            f"folder: {str(root)!r} has no class subfolders; put the pictures of each class in one of its own"
        )
    if len(train) == 1:
        raise UserError(
            f"folder: {str(root)!r} has a single class, {next(iter(train))!r}; a classifier needs at least 2"
        )
    _refuse_empty(train, "has no pictures")
    if "val" in found:
        for name in sorted(found["val"].keys() - train.keys()):
            raise unknown("class in val", name, train, hint="Its name must be one of train's")
        lacking = [name for name in train if not found["val"].get(name)]
        if lacking:
            notes.append(f"classes without validation pictures: {', '.join(lacking)}")
        if len(lacking) == len(train):
            raise UserError(f"folder: {str(root)!r} has no validation pictures in any class")
    return tuple(sorted(train))


def _refuse_empty(train: _Listing, what: str) -> None:
    empty = [name for name, pictures in train.items() if not pictures]
    if empty:
        names = ", ".join(repr(name) for name in empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
        raise UserError(f"folder: class {names} {what} to train on; add some or remove its folder")


def _drop_unreadable(root: Path, found: dict[str, _Listing], limit: float, notes: list[str]) -> dict[str, str]:
    """Take unreadable pictures out of ``found`` and give their reasons."""
    names = [name for listing in found.values() for pictures in listing.values() for name in pictures]
    bad = check_pictures(root, names)
    if len(bad) > limit * len(names):
        first = "; ".join(f"{root / name}: {reason}" for name, reason in list(bad.items())[:_SHOWN])
        raise UserError(
            f"folder: {len(bad)} of {len(names)} pictures cannot be read, more than the limit of {limit:.2%} "
            f"(bad_image_limit={limit}); mend or remove them, or raise the limit. {first}"
            + ("; ..." if len(bad) > _SHOWN else "")
        )
    if bad:
        notes.append(f"{len(bad)} of {len(names)} pictures cannot be read and are skipped")
        for listing in found.values():
            for name, pictures in listing.items():
                listing[name] = [p for p in pictures if p not in bad]
        _refuse_empty(found["train"], "has no readable pictures")
    return bad


def _split(listing: _Listing, seed: int) -> dict[str, _Listing]:
    """A fifth of each class for val, at least one picture: those whose names hash lowest under ``seed``.

    A picture added or removed later leaves nearly all others on the side where they were.
    """
    train: _Listing = {}
    val: _Listing = {}
    for name, pictures in listing.items():
        if len(pictures) < 2:
            raise UserError(
                f"folder: class {name!r} has {len(pictures)} readable picture; a split needs at least 2 in each class"
            )
        ranked = sorted(pictures, key=lambda p: hashlib.sha256(f"{seed}:{p}".encode()).digest())
        held = set(ranked[: max(1, round(_VAL_SHARE * len(pictures)))])
        val[name] = [p for p in pictures if p in held]
        train[name] = [p for p in pictures if p not in held]
    return {"train": train, "val": val}


def _file_split(root: Path, classes: tuple[str, ...], listing: _Listing) -> FileSplit:
    labelled = [(p, label) for label, name in enumerate(classes) for p in listing.get(name, [])]
    labels = torch.tensor([label for _, label in labelled], dtype=torch.int64)
    return FileSplit(labels=labels, root=root, paths=tuple(p for p, _ in labelled))
