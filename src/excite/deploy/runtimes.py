"""The files that networks are exported to, and the runtimes that run them: one entry of ``RUNTIMES`` each.

Every entry writes a program of ``torch.export`` with text beside it, and gives both back from the file. Inputs are
"images" [N, C, *S] in float32, outputs "logits".
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from excite.errors import UserError, unknown

__all__ = ["ONNX_OPSET", "RUNTIMES", "Loaded", "Runtime", "quiet", "runtime_of"]

ONNX_OPSET = 20
"""The version of ONNX's operators that files are written in."""

INPUT, OUTPUT = "images", "logits"
# Names of the axes of images with 1 to 3 spatial ones.
AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}

# Where the text is in a .pt2 file of torch.export, and in OpenVINO's.
_ENTRY = "excite.json"
_SECTION = "excite"

Run = Callable[[Tensor], Tensor]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what compilers tell each other."""
    loggers = [logging.getLogger(n) for n in ("torch.fx.experimental.symbolic_shapes", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True)
class Loaded:
    """A file in the runtime that it is for.

    Args:
        run: images [N, C, *S] -> logits, both float32 on the CPU (or, for files of PyTorch, on the network's device).
        entries: the text in the file, by key.
    """

    run: Run
    entries: dict[str, str]


@dataclass(frozen=True)
class Runtime:
    """A format of files.

    Args:
        name: the format, as ``export`` takes it.
        title: what runs the files.
        suffix: of the files.
        packages: what writing and loading need beside torch.
        extra: the extra of the package that brings these.
        write: writes a program with its entries to a path with this suffix; of several files, to paths beside it.
        load: loads such a file.
        runs_code: whether loading a file can run code that is in it.
    """

    name: str
    title: str
    suffix: str
    packages: tuple[str, ...]
    extra: str
    write: Callable[[ExportedProgram, Path, Mapping[str, str]], None]
    load: Callable[[Path], Loaded]
    runs_code: bool

    def require(self) -> None:
        """Imports what it needs.

        Raises:
            ValueError: a package is missing; names the extra that brings it.
        """
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as error:
                raise UserError(
                    f"format {self.name!r} needs {error.name}, which is not installed: pip install excite[{self.extra}]"
                ) from None

    @property
    def tool(self) -> str:
        """The runtime and its version."""
        return f"{self.title} {version(self.packages[-1] if self.packages else 'torch')}"


# --- ONNX ---


def _write_onnx(program: ExportedProgram, path: Path, entries: Mapping[str, str]) -> None:
    import onnx

    made = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], opset_version=ONNX_OPSET, verbose=False
    )
    assert made is not None
    model = made.model_proto
    # Beside the graph PyTorch writes where in whose files each node comes from.
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        _name_axes(value)
    onnx.helper.set_model_props(model, dict(entries))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _name_axes(value: Any) -> None:
    """Axes that are free by their names."""
    axes = value.type.tensor_type.shape.dim
    names = ("batch", "channels", *AXES.get(len(axes) - 2, ()))
    for axis, name in zip(axes, names, strict=False):
        if axis.HasField("dim_param"):
            axis.dim_param = name


def _load_onnx(path: Path) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors, which are raised as well
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        raise _unreadable(path, "ONNX Runtime", error) from None
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: _array(images)})[0])

    return Loaded(run, dict(session.get_modelmeta().custom_metadata_map))


# --- OpenVINO, by way of ONNX ---


def _write_openvino(program: ExportedProgram, path: Path, entries: Mapping[str, str]) -> None:
    import openvino

    onnx_file = path.with_suffix(".onnx")
    _write_onnx(program, onnx_file, {})
    model = openvino.Core().read_model(onnx_file)
    for key, value in entries.items():
        model.set_rt_info(value, [_SECTION, key])
    openvino.save_model(model, path, compress_to_fp16=False)
    del model  # it reads its weights from the file
    onnx_file.unlink()


def _load_openvino(path: Path) -> Loaded:
    import openvino

    core = openvino.Core()
    # Left to itself it computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        model = core.read_model(path)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _unreadable(path, "OpenVINO", error) from None
    entries = {}
    if model.has_rt_info([_SECTION]):
        entries = {key: str(value.astype(str)) for key, value in model.get_rt_info([_SECTION]).astype(dict).items()}

    def run(images: Tensor) -> Tensor:
        # A copy: the array is the runtime's own memory, which the next call writes over.
        return torch.from_numpy(np.array(compiled(_array(images))[0]))

    return Loaded(run, entries)


# --- PyTorch ---


def _write_torch(program: ExportedProgram, path: Path, entries: Mapping[str, str]) -> None:
    torch.export.save(program, path, extra_files={_ENTRY: json.dumps(dict(entries))})


def _load_torch(path: Path) -> Loaded:
    held = {_ENTRY: ""}
    try:
        program = torch.export.load(path, extra_files=held)
    except Exception as error:  # whatever reading a broken archive raises
        raise _unreadable(path, "PyTorch", error) from None
    return Loaded(_without_gradients(program.module()), json.loads(held[_ENTRY] or "{}"))


def _write_aoti(program: ExportedProgram, path: Path, entries: Mapping[str, str]) -> None:
    import torch._inductor

    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        torch._inductor.aoti_compile_and_package(
            program, package_path=os.fspath(path), inductor_configs={"aot_inductor.metadata": dict(entries)}
        )


def _load_aoti(path: Path) -> Loaded:
    import torch._inductor

    try:
        with quiet():
            package = torch._inductor.aoti_load_package(os.fspath(path))
    except Exception as error:  # whatever reading a broken archive, or code for another machine, raises
        raise _unreadable(path, "PyTorch", error) from None
    metadata: Any = package.loader.get_metadata()
    return Loaded(_without_gradients(package), dict(metadata))


def _without_gradients(network: Callable[[Tensor], Any]) -> Run:
    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        y: Tensor = network(images)
        return y

    return run


def _array(images: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(images.numpy())


def _unreadable(path: Path, title: str, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return UserError(f"{path}: {title} cannot load it ({reason})")


_make = partial(Runtime, packages=(), extra="", runs_code=True)
RUNTIMES: dict[str, Runtime] = {
    "onnx": Runtime(
        "onnx", "ONNX Runtime", ".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnx", _write_onnx, _load_onnx, False
    ),
    "openvino": Runtime(
        "openvino", "OpenVINO", ".xml", ("onnx", "onnxscript", "openvino"), "openvino", _write_openvino, _load_openvino,
        False,
    ),
    "torch": _make("torch", "torch.export", ".pt2", write=_write_torch, load=_load_torch),
    "aoti": _make("aoti", "AOTInductor", ".pt2", write=_write_aoti, load=_load_aoti),
}  # fmt: skip


def runtime_of(path: Path) -> Runtime:
    """What runs a file, by its suffix, and for .pt2 by what is in it.

    Raises:
        ValueError: no runtime has files of this suffix, or it is no such file.
    """
    suffixes = {runtime.suffix: runtime for runtime in RUNTIMES.values()}
    if path.suffix not in suffixes:
        raise unknown("kind of file", path.suffix or path.name, suffixes)
    if path.suffix != ".pt2":
        return suffixes[path.suffix]
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any("/aotinductor/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        raise UserError(f"{path} is no whole .pt2 file; was its writing cut short?") from None
    return RUNTIMES["aoti" if compiled else "torch"]
