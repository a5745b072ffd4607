"""``export``: a network as a file for another runtime, compared with the network before it takes its name."""

from __future__ import annotations

import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from excite.deploy.export_check import Comparison, compare_outputs
from excite.deploy.export_sizes import Sizes, find_sizes, with_minimum
from excite.deploy.manifest import Manifest
from excite.deploy.runtimes import AXES, INPUT, ONNX_OPSET, RUNTIMES, Runtime, quiet
from excite.errors import UserError, unknown
from excite.files import check_writable
from excite.graph import unwrapped
from excite.training.progress import say

__all__ = ["Exported", "export", "export_file", "runtime_for"]

# However much a network rounds by itself, a file that differs by more than this share is another network.
_MOST = 0.1


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how it did.

    Args:
        path: the file.
        format: of ``RUNTIMES``.
        tool: the runtime it was run in, and its version.
        opset: the version of ONNX's operators; None for files of PyTorch.
        sizes: the images that it takes.
        comparisons: largest differences of its outputs from the network's, see ``compare_outputs``.
        tolerance: what they were allowed to be.
        rounding: largest difference of the network in float32 from itself in float64.
    """

    path: Path
    format: str
    tool: str
    opset: int | None
    sizes: Sizes
    comparisons: tuple[Comparison, ...]
    tolerance: float
    rounding: float

    @property
    def difference(self) -> float:
        """The largest difference of an output from the network's, as a share of the largest output."""
        return max(comparison.difference for comparison in self.comparisons)


def export(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    format: str = "onnx",
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    tolerance: float | None = None,
) -> Path:
    """Writes a network to a file that another runtime runs: gated, attached, fused or slimmed, or any other.

    Batch and image size stay free; where a network needs images of some least size, or of sides that are multiples of
    a number, the file says so. The file is written under another name, loaded by its own runtime and compared with
    the network, on random images and on pictures, at several batch and image sizes; the largest difference is logged.
    Only then does it take its name. The network itself is left as it is.

    Args:
        model: a network in eval mode and in float32: images [N, C, *S] -> one tensor [N, ...].
        example: images it takes, with data; outputs are compared on them too.
        path: the file, ``.onnx``, ``.xml`` for OpenVINO (its weights are beside it in ``.bin``), or ``.pt2``.
        format: "onnx" (opset 20), "openvino", "torch" (a program of ``torch.export``), or "aoti" (compiled for this
            kind of machine; takes a C++ compiler and a minute).
        preprocessing: how an image becomes an input, as checkpoints hold it and ``DataSet.preprocessing()`` says it.
        classes: names of the classes, by output.
        tolerance: largest difference that is allowed, as a share of the largest output; None is 1e-4, or ten times
            the network's own rounding (float32 against float64) where that is more, up to 10 %.

    Returns:
        The path.

    Raises:
        ValueError: an unknown format, a path with another suffix, a package or compiler that is missing, a model in
            training mode or not in float32, an example that it does not take, a network that cannot be exported, or
            outputs that differ by more than ``tolerance``; no file is left then, and one that was there stays.
    """
    done = export_file(
        model, example, path, format=format, preprocessing=preprocessing, classes=classes, tolerance=tolerance
    )
    say("%s: largest difference of the outputs %.1e, in %s", done.path, done.difference, done.tool)
    return done.path


def export_file(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    format: str = "onnx",
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    tolerance: float | None = None,
    network: Mapping[str, Any] | None = None,
    reference: nn.Module | None = None,
) -> Exported:
    """``export``, with what came of it.

    Args:
        model: see ``export``, as all others.
        example: see there.
        path: see there.
        format: see there.
        preprocessing: see there.
        classes: see there.
        tolerance: see there.
        network: what it is, JSON-able, kept in the file.
        reference: compare with this network instead of ``model``, which was made from it.

    Raises:
        ValueError: see ``export``.
    """
    path = Path(path)
    runtime = runtime_for(format, path)
    if tolerance is not None and not tolerance > 0:
        raise UserError(f"tolerance={tolerance}: give a number above 0, or none")
    runtime.require()
    model = unwrapped(model)
    _check_network(model, example, runtime, len(classes))
    _check_normalisation(preprocessing or {"mean": [0] * example.shape[1], "std": [1] * example.shape[1]}, example)
    sizes = find_sizes(model, example)
    program = _program(model, example, sizes)
    if runtime.runs_code:  # programs of PyTorch also refuse what they were not traced for
        sizes = with_minimum(sizes, _guards(program, example))
    opset = ONNX_OPSET if "onnx" in runtime.packages else None
    manifest = Manifest(
        tuple(classes),
        None if preprocessing is None else dict(preprocessing),
        None if network is None else dict(network),
        {"name": INPUT, "shape": ["batch", example.shape[1], *AXES[example.dim() - 2]], **sizes.to_dict()},
        {
            "format": format,
            "opset": opset,
            "torch": torch.__version__,
            "tool": runtime.tool,
            "device": example.device.type,
        },
    )
    with _beside(path) as part:
        _write(runtime, program, part, manifest)
        loaded = runtime.load(part)
        assert Manifest.read(loaded.entries, part) == manifest
        found = compare_outputs(loaded.run, unwrapped(reference or model), example, sizes, preprocessing)
        allowed = max(1e-4, min(10 * found.rounding, _MOST)) if tolerance is None else tolerance
        worst = max(found.comparisons, key=lambda comparison: comparison.difference)
        if not worst.difference <= allowed:
            raise UserError(
                f"{path} was not written: in {runtime.tool} its outputs differ by {worst.difference:.1e} of the "
                f"largest ({worst}), more than tolerance={allowed:.1e}; the network's own rounding is "
                f"{found.rounding:.1e}"
            )
    return Exported(path, format, runtime.tool, opset, sizes, found.comparisons, allowed, found.rounding)


def runtime_for(format: str, path: Path) -> Runtime:
    """The runtime of a format, whose suffix the path has.

    Raises:
        ValueError: an unknown format, or a path with another suffix or where nothing can be written.
    """
    if format not in RUNTIMES:
        raise unknown("format", format, RUNTIMES)
    runtime = RUNTIMES[format]
    if path.suffix != runtime.suffix:
        others = [name for name, other in RUNTIMES.items() if other.suffix == path.suffix]
        instead = f", or format {' or '.join(map(repr, others))} for this one" if others else ""
        raise UserError(f"{path}: format {format!r} is written to files that end in {runtime.suffix}{instead}")
    check_writable(path, "path")
    return runtime


def _check_network(model: nn.Module, example: Tensor, runtime: Runtime, classes: int) -> None:
    if any(module.training for module in model.modules()):
        raise UserError("export takes a network in eval mode: its norms and dropout are written as they act. "
                        "Call model.eval() first")  # fmt: skip
    tensors = [*model.parameters(), *model.buffers()]
    kinds = sorted({str(t.dtype) for t in [*tensors, example] if t.is_floating_point()})
    if kinds != ["torch.float32"]:
        raise UserError(f"export takes a network and an example in float32; got {', '.join(kinds)}: call .float()")
    devices = {t.device for t in [*tensors, example]}
    if len(devices) > 1 or example.is_meta:
        raise UserError(f"network and example are on {', '.join(sorted(map(str, devices)))}: move both to one device")
    if runtime.packages and example.device.type != "cpu":
        raise UserError(f"{runtime.title} is compared on the CPU: move network and example there, model.cpu()")
    if example.dim() - 2 not in AXES or not len(example):
        raise UserError(f"the example must be images [N, C, *S] with 1 to 3 spatial axes; got {tuple(example.shape)}")
    with torch.no_grad():
        try:
            y, again = model(example), model(example)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{type(model).__name__} does not take the example: {error}") from error
    if not isinstance(y, Tensor):
        found = f"a {type(y).__name__}"
    elif not y.numel():
        found = "an empty one"
    else:
        found = "" if torch.isfinite(y).all() else "numbers that are not finite"
    if found:
        raise UserError(f"export takes networks that give one tensor; {type(model).__name__} gave {found}")
    if not torch.allclose(y, again, rtol=1e-4, atol=1e-4 * float(y.abs().max())):
        raise UserError(f"{type(model).__name__} gives other outputs for the same images: nothing could be compared")
    if classes and y.shape[1:] != (classes,):
        raise UserError(f"{classes} class names for outputs of shape {tuple(y.shape)}: give one a column")


def _check_normalisation(preprocessing: Mapping[str, Any], example: Tensor) -> None:
    for key in ("mean", "std"):
        held = preprocessing.get(key)
        if held is None or (isinstance(held, list | tuple) and len(held) != example.shape[1]):
            raise UserError(
                f"preprocessing has {key}={held!r}: give a number for each of the {example.shape[1]} channels "
                "(DataSet.preprocessing() has them)"
            )


class _Named(nn.Module):
    """A network with one input of a known name, whatever its own forward calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        y: Tensor = self.network(images)
        return y


def _program(model: nn.Module, example: Tensor, sizes: Sizes) -> ExportedProgram:
    """The network's program for any batch and any of the sizes."""
    # An example of one image would be taken for a constant.
    images = example if len(example) > 1 else torch.cat([example, example])
    free: dict[int, Any] = {0: Dim.DYNAMIC(min=1)}
    if sizes.step is not None:
        free |= {axis: Dim.DYNAMIC(min=sizes.minimum) for axis in range(2, example.dim())}
    # Sizes of 1 are then no special case: without, batches of 1 and small images would be refused.
    patched = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    # Before it raises, torch prints the graph as far as it came.
    with torch.no_grad(), quiet(), patched, redirect_stderr(io.StringIO()):
        try:
            return torch.export.export(_Named(model), (images,), dynamic_shapes=(free,), strict=False)
        except Exception as error:  # whatever a forward does that cannot be traced
            raise _refused(type(model).__name__, "torch.export", error) from error


def _guards(program: ExportedProgram, example: Tensor) -> Callable[[tuple[int, ...]], bool]:
    """Whether a program takes images of these sides."""
    module = program.module()

    def runs(sides: tuple[int, ...]) -> bool:
        try:
            with torch.no_grad(), redirect_stderr(io.StringIO()):
                module(torch.zeros(2, example.shape[1], *sides, device=example.device))
        except (AssertionError, RuntimeError):
            return False
        return True

    return runs


def _write(runtime: Runtime, program: ExportedProgram, path: Path, manifest: Manifest) -> None:
    entries = manifest.entries()
    with torch.no_grad(), quiet():
        try:
            runtime.write(program, path, entries)
        except OSError:
            raise
        except Exception as error:  # of converters and compilers; each has its own kinds
            raise _refused("the network", f"format {runtime.name!r}", error) from error


def _refused(what: str, how: str, error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # What a compiler said stands below its command.
    said = lines[lines.index("Output:") + 1 :][:1] if "Output:" in lines else []
    return UserError(f"{what} cannot be exported by {how}: {': '.join([lines[0], *said])}")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A path of the same name in a new folder beside; what is there at the end takes its place, after an error not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        yield folder / path.name
        # The file that was asked for last: it is whole with those that it reads.
        for part in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path.with_name(part.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
