"""``excite predict``: the likeliest classes of pictures, by a checkpoint or a file that ``excite export`` wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from excite.data import normalise
from excite.data.files import existing
from excite.data.folder import list_pictures
from excite.deploy.manifest import Manifest
from excite.deploy.runtimes import RUNTIMES, runtime_of
from excite.deploy.trained import check_preprocessing, class_names, open_checkpoint
from excite.errors import UserError
from excite.files import check_writable, expanded
from excite.training.settings import Settings
from excite.training.trained import pick_device

__all__ = ["Guess", "PredictConfig", "Predictions", "Predictor", "open_predictor", "predict"]


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Settings):
    """Name the likeliest classes of pictures.

    Args:
        model: a .safetensors file that training wrote, the folder of a run, or a file that `excite export` wrote.
        images: pictures, and folders that are searched for pictures.
        top: how many classes to name for each.
        format: text (a line a picture), csv (a line a class) or json, on stdout.
        out: write to this file instead, .csv or .json.
        batch_size: pictures a step.
        classes: a text file of class names, one a line in the order of the outputs; null is the network's own.
        accelerator: auto, cpu, cuda or mps, for checkpoints; exported files run where they were made for.
        trust: load files that can run code, .pt2 and checkpoints of module:function networks; only if you trust them.
    """

    model: str
    images: tuple[str, ...] = ()
    top: int = 5
    format: Literal["text", "csv", "json"] = "text"
    out: str | None = None
    batch_size: int = 64
    classes: str | None = None
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    trust: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("top", at_least=1)
        self.require("batch_size", at_least=1)
        if not self.images:
            raise UserError("images: name at least one picture or folder, as `excite predict runs/mine photos/`")
        if self.out is not None and Path(self.out).suffix not in (".csv", ".json"):
            raise UserError(f"out={self.out!r}: give a file that ends in .csv or .json")


@dataclass(frozen=True)
class Guess:
    """A class and how likely it is.

    Args:
        name: of the class.
        probability: its softmax output, 0 to 1.
    """

    name: str
    probability: float


@dataclass(frozen=True)
class Predictions:
    """What was found in a number of pictures.

    Args:
        model: the network's file.
        tool: what ran it.
        images: each picture's path with its likeliest classes, the likeliest first, in the order asked for.
        skipped: pictures that could not be read, each with the reason.
    """

    model: str
    tool: str
    images: tuple[tuple[str, tuple[Guess, ...]], ...]
    skipped: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        images = [
            {"image": image, "top": [{"class": guess.name, "probability": guess.probability} for guess in guesses]}
            for image, guesses in self.images
        ]
        skipped = [{"image": image, "reason": reason} for image, reason in self.skipped]
        return {"model": self.model, "tool": self.tool, "images": images, "skipped": skipped}


@dataclass(frozen=True)
class Predictor:
    """A network that is ready to run.

    Args:
        run: images [N, C, S, S], normalised, on the CPU -> logits [N, classes] on the CPU.
        classes: names, by output.
        preprocessing: how pictures are prepared.
        path: its file.
        tool: what runs it.
    """

    run: Callable[[Tensor], Tensor]
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    path: Path
    tool: str


def predict(config: PredictConfig) -> Predictions:
    """The likeliest classes of every picture; pictures that cannot be read are skipped and named.

    Raises:
        ValueError: a network's file that is missing, damaged, not trusted or says too little, a path that does not
            exist, a folder without pictures, or ``out`` where nothing can be written.
    """
    if config.out is not None:
        check_writable(expanded(config.out), "out")
    paths = _find(config.images)
    predictor = open_predictor(
        config.model, classes=config.classes, trust=config.trust, device=pick_device(config.accelerator)
    )
    found: list[tuple[str, tuple[Guess, ...]]] = []
    skipped: list[tuple[str, str]] = []
    with _progress(len(paths)) as advance:
        for names, read in _batches(paths, predictor.preprocessing, config.batch_size):
            good = {name: image for name, image in zip(names, read, strict=True) if isinstance(image, Tensor)}
            skipped += [(name, reason) for name, reason in zip(names, read, strict=True) if isinstance(reason, str)]
            if good:
                images = torch.stack(list(good.values()))
                found += zip(good, _guesses(predictor, images, config.top), strict=True)
            advance(len(names))
    return Predictions(str(predictor.path), predictor.tool, tuple(found), tuple(skipped))


def open_predictor(
    model: str, *, classes: str | None = None, trust: bool = False, device: torch.device | None = None
) -> Predictor:
    """A network's file, loaded to predict with.

    Args:
        model: as `PredictConfig` says, and so are the others.
        classes: a text file of class names.
        trust: whether files that can run code are loaded.
        device: what checkpoints run on; None is the CPU.

    Raises:
        ValueError: see ``predict``.
    """
    path = expanded(model)
    if path.suffix not in {runtime.suffix for runtime in RUNTIMES.values()}:
        return _from_checkpoint(model, classes, trust, device or torch.device("cpu"))
    path = existing(model, "model")
    runtime = runtime_of(path)
    runtime.require()
    if runtime.runs_code and not trust:
        raise UserError(f"{path}: loading a {runtime.title} file can run code that is in it; if you trust it, "
                        "say --trust true (trust=True)")  # fmt: skip
    loaded = runtime.load(path)
    manifest = Manifest.read(loaded.entries, path)
    names = class_names(manifest.classes, classes, path)
    prepared = dict(check_preprocessing(manifest.preprocessing, path))
    return Predictor(_on(loaded.run, manifest.made_with.get("device", "cpu")), names, prepared, path, runtime.tool)


def _from_checkpoint(model: str, classes: str | None, trust: bool, device: torch.device) -> Predictor:
    checkpoint = open_checkpoint(model)
    names = class_names(checkpoint.classes, classes, checkpoint.path)
    network = checkpoint.load(trust=trust).float().to(device)
    return Predictor(
        _on(network, device), names, checkpoint.preprocessing, checkpoint.path, f"PyTorch {torch.__version__}"
    )


def _on(run: Callable[[Tensor], Tensor], device: torch.device | str) -> Callable[[Tensor], Tensor]:
    @torch.inference_mode()
    def there_and_back(images: Tensor) -> Tensor:
        return run(images.to(device)).cpu()

    return there_and_back


def _guesses(predictor: Predictor, images: Tensor, top: int) -> Iterator[tuple[Guess, ...]]:
    """The likeliest classes of uint8 pictures [N, C, S, S]."""
    about, names = predictor.preprocessing, predictor.classes
    logits = predictor.run(normalise(images, tuple(about["mean"]), tuple(about["std"])))
    if logits.shape[1:] != (len(names),):
        raise UserError(f"{predictor.path} gives outputs {tuple(logits.shape)} for {len(names)} class names: "
                        "give one a column")  # fmt: skip
    shares = logits.float().softmax(1).topk(min(top, len(names)), dim=1)
    for values, places in zip(shares.values.tolist(), shares.indices.tolist(), strict=True):
        yield tuple(Guess(names[place], value) for place, value in zip(places, values, strict=True))


def _find(images: Sequence[str]) -> list[Path]:
    """Every picture that is named or in a named folder, in this order."""
    found: dict[Path, None] = {}  # each once, in order
    for name in images:
        path = existing(name, "images")
        pictures = list_pictures(path) if path.is_dir() else [path]
        if not pictures:
            raise UserError(f"images: folder {name!r} holds no pictures")
        found |= dict.fromkeys(pictures)
    return list(found)


def _batches(
    paths: Sequence[Path], preprocessing: dict[str, Any], size: int
) -> Iterator[tuple[list[str], list[Tensor | str]]]:
    """Names and uint8 pictures, or why one cannot be read; the next batch is decoded while this one is used."""
    from excite.data.pictures import load_image

    def read(path: Path) -> Tensor | str:
        try:
            return load_image(path, preprocessing)
        except UserError as error:
            return str(error).removeprefix(f"{path} cannot be read as a picture: ")

    waiting: tuple[list[str], list[Future[Tensor | str]]] | None = None
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), size):
            part = paths[start : start + size]
            following = [str(path) for path in part], [pool.submit(read, path) for path in part]
            if waiting is not None:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = following
        if waiting is not None:
            yield waiting[0], [future.result() for future in waiting[1]]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; stdout is for results."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)
