"""What `excite explain` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from excite.training.settings import Settings

__all__ = ["ExplainConfig"]


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(Settings):
    """Explain what the gates of a trained network do on a set of images: one page, and every number as JSON.

    Args:
        checkpoint: a .safetensors file that training wrote, or the folder of a run (its last.safetensors).
        data: the images, as in training; null is what the network was trained on.
        split: val, or train (without augmentation).
        out: the folder for explain.html and explain.json; null is explain/ beside the checkpoint.
        images: how many images to look at, drawn at random; null is all.
        sample: of how many of them, drawn at random, s itself is kept: for histograms, tests and what is knocked out.
        sites: only these gates, by name or block, as "layer4.*".
        show_classes: names of the classes to draw; none is all, or up to 20 spread over the list.
        knock_out: replace each gate by its mean, by 1 and by what it gives for another image, and see what is lost;
            takes three times the sample's images for each gate.
        pictures: put small pictures of images into the page.
        permutations: how often labels are dealt out at random to test specificity, at least; more for many gates.
        level: coverage of the intervals.
        seed: of every random choice.
        download: fetch a data set that is not on this machine.
        batch_size: images a step.
        accelerator: auto, cpu, cuda or mps.
        workers: processes that read images; null is none for data held in memory, else one a core, at most 8.
        bad_image_limit: share of unreadable images that is skipped with a notice; more than this is an error.
        trust: run the function that a checkpoint of a module:function network names; only for files you trust.
    """

    checkpoint: str
    data: str | None = None
    split: Literal["val", "train"] = "val"
    out: str | None = None
    images: int | None = None
    sample: int = 2000
    sites: tuple[str, ...] = ()
    show_classes: tuple[str, ...] = ()
    knock_out: bool = True
    pictures: bool = True
    permutations: int = 999
    level: float = 0.95
    seed: int = 0
    download: bool = False
    batch_size: int = 64
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int | None = None
    bad_image_limit: float = 0.01
    trust: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("images", at_least=4)
        self.require("sample", at_least=4)
        self.require("batch_size", at_least=1)
        self.require("permutations", at_least=0)
        self.require("workers", at_least=0)
        self.require("seed", at_least=0, below=2**63)
        self.require("level", above=0, below=1)
        self.require("bad_image_limit", at_least=0, below=1)
