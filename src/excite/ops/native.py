"""The map-sized passes as compiled code for the CPU, built on this machine when they are first used.

The files of ``cpp/`` are plain C functions on raw pointers. They are compiled by the C++ compiler found here, kept in
the user's cache folder, and loaded with ctypes; they run on PyTorch's own OpenMP threads, ``torch.get_num_threads()``
of them. Without a compiler everything works on the passes written in PyTorch: ``library`` gives None, having said so
once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["DTYPES", "NATIVE_ACTS", "is_rows", "library", "mean", "rescale_add_act_", "rows_if_usable", "sizes"]

log = logging.getLogger("excite.ops")

# Their numbers in cpp/numbers.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
NATIVE_ACTS = {"none": 0, "relu": 1, "silu": 2, "hardswish": 3}

_FOLDER = Path(__file__).with_name("cpp")
_UNITS = ("forward.cpp", "backward.cpp", "norm.cpp", "pointwise.cpp", "scale.cpp")
_COMPILERS = ("c++", "g++", "clang++")
_COMPILE = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi")
_SECONDS = 120
_lock = threading.Lock()

# Each takes element type, layout, threads, N, C and P, then so many pointers, then an act or an epsilon.
_FUNCTIONS: dict[str, tuple[int, list[Any]]] = {
    "excite_affine_act": (6, [ctypes.c_int]),
    "excite_affine_act_grad": (10, [ctypes.c_int]),
    "excite_mean": (2, []),
    "excite_moments": (3, []),
    "excite_moments_grad": (7, []),
    "excite_pointwise": (7, [ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_float]),
    "excite_scale": (3, []),
    "excite_statistics": (10, [ctypes.c_double]),
    "excite_statistics_grad": (11, [ctypes.c_double]),
}


def library() -> ctypes.CDLL | None:
    """The compiled passes, built first if this machine has not built them yet; None where that cannot be done.

    Why it cannot is logged once, as a warning of the logger ``excite.ops``.
    """
    with _lock:
        return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return _load(_built())
    except (OSError, subprocess.SubprocessError, _Unsupported) as error:
        log.warning("no compiled passes for the CPU, using those written in PyTorch: %s", _reason(error))
        return None


class _Unsupported(Exception):
    """Why this machine builds nothing."""


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or "").strip().splitlines()
        return f"the compiler failed ({next((s for s in said if 'error' in s), said[0] if said else error)})"
    return str(error)


def _built() -> Path:
    """The library's file, compiled if it is not there. Several processes may do so at once: the last one's stays."""
    if sys.platform != "linux":
        raise _Unsupported(f"they are built on Linux, this is {platform.system()}")
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise _Unsupported(f"no C++ compiler ({', '.join(_COMPILERS)}) on the path")
    folder = _cache_folder()
    target = folder / f"passes-{_key(compiler)}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            linked = Path(scratch) / "passes.so"
            # Linked without OpenMP's runtime: its symbols are those of the one PyTorch has loaded, never a second pool.
            for unit in _UNITS:
                _run(compiler, *_COMPILE, "-c", str(_FOLDER / unit), "-o", f"{scratch}/{unit}.o")
            _run(compiler, "-shared", *(f"{scratch}/{unit}.o" for unit in _UNITS), "-o", str(linked))
            os.replace(linked, target)
    return target


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
    return done.stdout


def _cache_folder() -> Path:
    """A folder of this user's alone; one for this process if the home folder takes none."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "excite"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(_process_folder().name)


@functools.cache
def _process_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="excite-")


def _key(compiler: str) -> str:
    """What the file depends on: the source, the compiler, the processor and PyTorch."""
    parts = (
        *(source.read_text() for source in sorted(_FOLDER.glob("*.[ch]*"))),
        _run(compiler, "--version"),
        " ".join(_COMPILE),
        _processor(),
        torch.__version__,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """What ``-march=native`` looks at: another machine with the same home folder must not load this one's code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    wanted = ("flags", "Features", "model name", "CPU part", "isa")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, (pointers, last) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.argtypes = [ctypes.c_int] * 3 + [ctypes.c_int64] * 3 + [ctypes.c_void_p] * pointers + last
        function.restype = None
    return loaded


def is_rows(x: Tensor) -> bool | None:
    """How a map [N, C, *S] lies in memory: False planes (contiguous), True rows (channels_last), None otherwise."""
    if x.is_contiguous():
        return False
    if x.dim() == 4:
        last = x.is_contiguous(memory_format=torch.channels_last)
    elif x.dim() == 5:
        last = x.is_contiguous(memory_format=torch.channels_last_3d)
    else:
        last = x.movedim(1, -1).is_contiguous()
    return True if last else None


def sizes(x: Tensor, rows: bool) -> tuple[int, bool, int, int, int, int]:
    """The arguments every function starts with: element type, layout, threads, N, C, P."""
    n, c = x.shape[:2]
    positions = x.numel() // (n * c)
    # Maps of one position are rows of channels in either layout, and faster walked as such.
    return DTYPES[x.dtype], rows or positions == 1, torch.get_num_threads(), n, c, positions


def rows_if_usable(x: Tensor) -> bool | None:
    """``is_rows`` of a map that the compiled passes take, None for one they do not."""
    if x.device.type != "cpu" or x.dtype not in DTYPES or not 3 <= x.dim() <= 5 or x.numel() == 0:
        return None
    return is_rows(x)


def rescale_add_act_(
    u: Tensor, s: Tensor, shortcut: Tensor | None = None, act: str = "none", *, out: Tensor | None = None
) -> bool:
    """``out = act(s[n, c] * u + shortcut)`` in one pass; for inference: autograd does not see it.

    Args:
        u: map [N, C, *S] on the CPU, contiguous or channels_last, in a dtype of ``DTYPES``.
        s: channel scale [N, C] of any floating dtype.
        shortcut: of u's shape, dtype and layout, or None.
        act: "relu", "silu", "hardswish" or "none".
        out: ``shortcut``, to write over it; None writes over u.

    Returns:
        Whether it was done. False, with u and shortcut as they were, where tensors are not as above or nothing could
        be compiled.

    Bytes moved: reads u and shortcut once, writes one of them once.
    """
    rows = rows_if_usable(u)
    if rows is None or s.shape != u.shape[:2] or act not in NATIVE_ACTS or (loaded := library()) is None:
        return False
    if shortcut is not None and (
        shortcut.shape != u.shape or shortcut.dtype != u.dtype or shortcut.device != u.device
        or (shortcut.stride() != u.stride() and is_rows(shortcut) is not rows)
    ):  # fmt: skip
        return False
    factor = s.to(torch.float64 if u.dtype == torch.float64 else torch.float32).contiguous()
    added = None if shortcut is None else shortcut.data_ptr()
    assert out is None or out is shortcut
    into = u if out is None else out
    pointers = (u.data_ptr(), added, None, factor.data_ptr(), None, into.data_ptr())
    loaded.excite_affine_act(*sizes(u, rows), *pointers, NATIVE_ACTS[act])
    if not into.is_inference():
        torch.autograd.graph.increment_version(into)
    return True


def mean(x: Tensor) -> Tensor | None:
    """Mean over positions [N, C], in float32 (float64 for float64 maps); None where it cannot be done, as above.

    Bytes moved: reads x once.
    """
    rows = rows_if_usable(x)
    if rows is None or (loaded := library()) is None:
        return None
    out = torch.empty(x.shape[:2], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
    loaded.excite_mean(*sizes(x, rows), x.data_ptr(), out.data_ptr())
    return out
