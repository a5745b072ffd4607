"""What `excite train` and `excite eval` can be told. Light: nothing here loads torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from excite.errors import UserError
from excite.training.settings import Settings

__all__ = ["FREE", "EvalConfig", "Recipe", "TrainConfig"]

#: Settings that change where or how fast a run goes, never its numbers: they may differ when a run is continued.
FREE = ("out", "resume", "download", "workers")

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """How a network is trained: everything but the gate and the seed, which a comparison varies.

    Args:
        data: the images: fashion-mnist-mini (comes with the package), fashion-mnist:PATH, cifar10:PATH or folder:PATH.
        download: fetch a data set that is not on this machine.
        model: the network: a name `excite models` lists, torchvision:NAME, timm:NAME or module:function.
        placement: where gates stand in a residual block: standard, pre, post, identity or inner; in networks of other
            libraries also conv (after each convolution) or block:PATTERN (after modules by their names).
        stages: the stages that get gates, as [1, 2, 3]; null is all of them.
        variant: a named set of the network's options, as "official"; null is the common one.
        options: the network's own named options, as {stem_pool: ceil}.
        weights: a file of weights to start from (fine-tuning); a classifier for other classes stays fresh.
        start: how gates start: neutral (the network does at first what it did without), paper, or auto, which is
            neutral with weights and paper without.
        image_size: side of the images in pixels; null is the data set's own.
        epochs: times every training image is seen.
        batch_size: images a step on each device.
        optimizer: sgd or adamw.
        lr: peak learning rate.
        momentum: SGD's momentum (0: none).
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 penalty of SGD, decoupled decay of AdamW; biases, norms and other 1-d weights go without.
        decay_norms: decay biases, norms and other 1-d weights too, as the original papers did.
        schedule: the learning rate after warm-up: cosine to zero, linear to zero, step, or constant.
        warmup_epochs: epochs (fractions too) over which the learning rate rises linearly from near zero to its peak;
            null is one, or a fifth of all where that is less.
        step_epochs: epochs after which schedule=step multiplies the learning rate by step_factor, as [30, 60, 90].
        step_factor: what schedule=step multiplies by.
        label_smoothing: share of the target spread evenly over all classes.
        clip_norm: largest norm of the whole gradient; null does not clip.
        accumulate: batches whose gradients are added up for one step.
        ema: decay of a moving average of the weights, which is then what is validated and saved; null is none.
        augment: random crops and flips of the training images.
        cutout: side in pixels of the square that is blanked in every training image (Cutout); null blanks nothing.
        precision: 32-true, bf16-mixed, 16-mixed (GPUs only) or 64-true.
        channels_last: keep maps in the channels-last memory format, the faster one on most machines.
        compile: compile the network with torch.compile.
        accelerator: auto, cpu, gpu, cuda, mps ... as Lightning takes it.
        devices: how many devices on each node; auto is one, or what torchrun started.
        num_nodes: how many machines; under torchrun, what it started.
        strategy: how devices work together: auto (ddp where there are several), ddp or ddp_find_unused_parameters_true.
        workers: processes that read images; null is none for data held in memory, else one a core, at most 8.
        impl: how tails are computed: auto, reference or fused.
        bad_image_limit: share of unreadable images that is skipped with a notice; more than this is an error.
    """

    data: str = "fashion-mnist-mini"
    download: bool = False
    model: str = "resnet20"
    placement: str = "standard"
    stages: tuple[int, ...] | None = None
    variant: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    start: Literal["auto", "neutral", "paper"] = "auto"
    image_size: int | None = None
    epochs: int = 5
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = False
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warmup_epochs: float | None = None
    step_epochs: tuple[float, ...] = ()
    step_factor: float = 0.1
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    augment: bool = True
    cutout: int | None = None
    precision: Precision = "32-true"
    channels_last: bool = True
    compile: bool = False
    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = "auto"
    workers: int | None = None
    impl: Literal["auto", "reference", "fused"] = "auto"
    bad_image_limit: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "accumulate", "image_size", "cutout", "devices", "num_nodes", "stages"):
            if getattr(self, name) != "auto":
                self.require(name, at_least=1)
        for name in ("warmup_epochs", "weight_decay", "workers"):
            self.require(name, at_least=0)
        for name in ("lr", "clip_norm", "step_epochs"):
            self.require(name, above=0)
        for name in ("momentum", "label_smoothing", "bad_image_limit"):
            self.require(name, at_least=0, below=1)
        self.require("ema", above=0, below=1)
        self.require("step_factor", above=0, at_most=1)
        self._check_together()

    @property
    def starts_neutral(self) -> bool:
        """Whether gates start neutral."""
        return self.start == "neutral" or (self.start == "auto" and self.weights is not None)

    def _check_together(self) -> None:
        if self.nesterov and self.momentum == 0 and self.optimizer == "sgd":
            raise UserError("nesterov=True with momentum=0: give a momentum above 0, or nesterov=false")
        if self.cutout is not None and not self.augment:
            raise UserError(f"cutout={self.cutout} with augment=false: give augment=true, or leave cutout out")
        if self.schedule == "step" and not self.step_epochs:
            raise UserError("schedule='step' needs step_epochs, as [30, 60]")
        if self.schedule != "step" and self.step_epochs:
            raise UserError(f"step_epochs has no effect with schedule={self.schedule!r}: give schedule=step")
        if self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs={self.warmup_epochs:g}: give less than epochs={self.epochs}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Recipe):
    """Train one network: a recipe, a gate and a seed.

    Args:
        gate: the channel attention to put in: a name `excite gates` lists, as se or "se(reduction=8)"; none is plain,
            and so is null where the network's name does not say otherwise (se_resnet50).
        seed: fixes the initial weights, the order of the images, every augmentation and every dropout.
        out: the run's folder; null is runs/ and a name made of network, gate, seed and a digest of the settings.
        resume: continue a run that was interrupted; false makes a folder that holds one an error.
    """

    gate: str | None = None
    seed: int = 0
    out: str | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("seed", at_least=0, below=2**63)

    def settled(self) -> TrainConfig:
        """The same run in the one form that folders know it by: the network's plain name, and its gate spelled out.

        Raises:
            ValueError: an unknown gate or option, or a gate for a network whose name says its own.
        """
        from excite.gates import parse_gate
        from excite.models import split_alias

        model, gate = split_alias(self.model, self.gate)
        return replace(self, model=model, gate=str(parse_gate(gate) or "none"))

    def differences(self, other: TrainConfig) -> list[str]:
        """Names of the settings that differ and would change the numbers."""
        names = [f.name for f in fields(TrainConfig) if f.name not in FREE]
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def digest(self) -> str:
        """Eight hex digits that change with every setting that changes the numbers."""
        import hashlib
        import json

        values: dict[str, Any] = {k: v for k, v in self.to_dict().items() if k not in FREE}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Settings):
    """Evaluate a trained network: top-1, top-5, loss, each class, and what is taken for what.

    Args:
        checkpoint: a .safetensors file that training wrote, or the folder of a run (its last.safetensors).
        data: the images, as in training; null is what the network was trained on.
        split: val, or train (without augmentation).
        download: fetch a data set that is not on this machine.
        batch_size: images a step.
        precision: 32-true, bf16-mixed, 16-mixed (GPUs only) or 64-true.
        channels_last: keep maps in the channels-last memory format.
        accelerator: auto, cpu, cuda or mps.
        workers: processes that read images; null is none for data held in memory, else one a core, at most 8.
        bad_image_limit: share of unreadable images that is skipped with a notice; more than this is an error.
        json: print the result as JSON instead of a table.
        trust: run the function that a checkpoint of a module:function network names; only for files you trust.
    """

    checkpoint: str
    data: str | None = None
    split: Literal["val", "train"] = "val"
    download: bool = False
    batch_size: int = 256
    precision: Precision = "32-true"
    channels_last: bool = True
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int | None = None
    bad_image_limit: float = 0.01
    json: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("batch_size", at_least=1)
        self.require("workers", at_least=0)
        self.require("bad_image_limit", at_least=0, below=1)
