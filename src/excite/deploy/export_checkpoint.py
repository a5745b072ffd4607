"""``excite export CHECKPOINT``: a trained network as a file for another runtime."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from excite.deploy.export import Exported, export_file, runtime_for
from excite.deploy.export_check import pictures
from excite.deploy.fuse import fuse
from excite.deploy.runtimes import RUNTIMES
from excite.deploy.trained import class_names, open_checkpoint
from excite.files import expanded
from excite.training.settings import Settings

__all__ = ["ExportConfig", "export_checkpoint", "show_export"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Write a trained network to a file that another runtime runs, and compare the two.

    Args:
        checkpoint: a .safetensors file that training wrote, or the folder of a run (its last.safetensors).
        format: onnx, openvino, torch (a program of torch.export) or aoti (compiled for this machine).
        out: the file; null is the checkpoint's name with the format's suffix.
        fuse: fuse gates, norms, additions and activations first, see `excite.fuse`.
        classes: a text file of class names, one a line in the order of the outputs; null is the checkpoint's own.
        tolerance: largest difference of an output that is allowed, as a share of the largest; null is 1e-4, or ten
            times the network's own rounding where that is more.
        trust: run the function that a checkpoint of a module:function network names; only for files you trust.
        json: print what was compared as JSON.
    """

    checkpoint: str
    format: Literal["onnx", "openvino", "torch", "aoti"] = "onnx"
    out: str | None = None
    fuse: bool = False
    classes: str | None = None
    tolerance: float | None = None
    trust: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("tolerance", above=0)


def export_checkpoint(config: ExportConfig) -> Exported:
    """Exports a checkpoint; the file is compared with the checkpoint's network, fused or not.

    Raises:
        ValueError: a missing or damaged checkpoint, or what ``export`` refuses.
    """
    checkpoint = open_checkpoint(config.checkpoint)
    prepared = checkpoint.preprocessing
    out = expanded(config.out or checkpoint.path.with_suffix(RUNTIMES[config.format].suffix))
    runtime_for(config.format, out).require()
    names = class_names(checkpoint.classes, config.classes, checkpoint.path)
    network = checkpoint.load(trust=config.trust).float()
    side = int(prepared["image_size"])
    example = pictures(2, int(prepared["in_channels"]), (side, side), prepared)
    model: nn.Module = fuse(network, example) if config.fuse else network
    return export_file(
        model, example, out, format=config.format, preprocessing=prepared, classes=names, tolerance=config.tolerance,
        network=checkpoint.spec.to_dict() | {"fused": config.fuse}, reference=network,
    )  # fmt: skip


def show_export(done: Exported, config: ExportConfig) -> None:
    """Prints what was written and how its outputs compare; or all of it as JSON."""
    if config.json:
        print(json.dumps(_plain(done), indent=1))
        return
    files = [done.path, done.path.with_suffix(".bin")] if done.format == "openvino" else [done.path]
    size = sum(file.stat().st_size for file in files) / 1e6
    opset = "" if done.opset is None else f", opset {done.opset}"
    print(f"{' and '.join(map(str, files))}: {size:.1f} MB, {config.format}{opset}")
    print(f"batch: any; images: {done.sizes}")
    print(f"run in {done.tool} and compared with the network:")
    for comparison in done.comparisons:
        print(f"  {comparison!s:32} {comparison.difference:.1e}")
    print(
        f"largest difference {done.difference:.1e} of the largest output "
        f"(allowed {done.tolerance:.1e}; the network's own rounding {done.rounding:.1e})"
    )


def _plain(done: Exported) -> dict[str, Any]:
    """Everything, JSON-able."""
    fields = {name: value for name, value in vars(done).items() if name not in ("path", "sizes", "comparisons")}
    compared = [dataclasses.asdict(comparison) for comparison in done.comparisons]
    about = {"path": str(done.path), "images": done.sizes.to_dict(), "difference": done.difference}
    return {**about, **fields, "comparisons": compared}
