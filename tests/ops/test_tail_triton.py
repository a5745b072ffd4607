"""``impl="triton"``: its cases in Triton's interpreter and on a GPU, what is said without one, what is compiled."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from excite.gates import parse_gate
from excite.models import create_model
from excite.models.blocks import run_tail
from excite.ops import choose_tail_impl, tail, tail_tiles

triton = pytest.importorskip("triton")
from excite.ops import tail_kernels, tail_triton  # noqa: E402

MAPS = [(256, 256, 56, 56), (256, 2048, 7, 7), (2, 64, 56, 56), (64, 24, 28, 28), (8, 13, 5, 5), (1, 8, 64, 64, 64)]
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64"}


def run_cases(interpreted, *options):
    """In a process of their own: when it is imported, Triton decides whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpreted))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "triton_cases.py", *options]
    done = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_cases_in_the_interpreter(which):
    run_cases(True, "-m", which)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cases_on_a_gpu():
    run_cases(False)


def test_tensors_that_are_not_on_a_gpu_are_refused():
    norm = nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="impl='triton' takes tensors on a GPU, these are on 'cpu'"):
        tail(x, running_mean=norm.running_mean, num_batches_tracked=norm.num_batches_tracked, impl="triton")
    assert norm.num_batches_tracked == 0
    with pytest.raises(ValueError, match="on a GPU; got one on cpu"):
        tail_triton.moments(x)


def test_without_the_package_it_is_said(monkeypatch):
    # By its name among modules: in the package this name is the function.
    monkeypatch.setattr(sys.modules["excite.ops.tail"], "_TRITON_INSTALLED", False)
    with pytest.raises(ValueError, match="needs the package triton, which is not installed"):
        create_model("resnet18", impl="triton", num_classes=2)
    assert choose_tail_impl("auto", device=torch.device("cuda")) == "reference"


def test_a_gate_that_needs_another_pass_is_refused():
    with pytest.raises(ValueError, match="impl='triton' has descriptors.*'max'.*needs impl='auto'"):
        choose_tail_impl("triton", ("mean", "max"), torch.device("cuda"))


class Called(TorchDispatchMode):
    """The names of the operators called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("norm", "gate", "passes"),
    [
        ("BatchNorm2d", "se", True),
        ("BatchNorm2d", None, True),
        ("BatchNorm2d", "identity", False),
        ("InstanceNorm2d", "se", False),
        ("hooked", "se", False),
    ],
)
def test_auto_takes_it_on_a_gpu_wherever_it_can(norm, gate, passes):
    norm_module = nn.BatchNorm2d(16) if norm == "hooked" else getattr(nn, norm)(16)
    if norm == "hooked":
        norm_module.register_forward_hook(lambda module, args, y: y)
    gate_module = nn.Identity() if gate == "identity" else gate and parse_gate(gate).build(16)
    with FakeTensorMode(allow_non_fake_inputs=True), Called() as called:
        modules = [m if m is None else m.to("cuda") for m in (norm_module, gate_module)]
        x = torch.empty(2, 16, 4, 4, device="cuda")
        run_tail(*modules, x, x)
    ours = [name.split("_tail_")[1] for name in called.names if "triton_tail" in name]
    assert ours == (["moments", "affine_act"] if passes else [])


class Recorder:
    """Stands for a kernel; notes what it would be launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launches.append((self.kernel, grid, args, kwargs))


@pytest.fixture
def launches(monkeypatch):
    """What is launched, in place of launching it."""
    noted = []
    monkeypatch.setattr(tail_triton, "_on_device_of", lambda x: contextlib.nullcontext())
    for name in tail_kernels.__all__:
        monkeypatch.setattr(tail_kernels, name, Recorder(getattr(tail_kernels, name), noted))
    return noted


def launch_all(shape, dtype, act, channels_last):
    x = torch.empty(shape, dtype=dtype, device="meta")
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    rows = [torch.empty(shape[:2], dtype=tail_triton.sum_dtype(dtype), device="meta") for _ in range(4)]
    tail_triton.launch_moments(x)
    tail_triton.launch_affine_act(x, x, *rows[:3], act)
    tail_triton.launch_affine_act_grad(x, x, x, x, *rows[:3], act)
    tail_triton.launch_moments_grad(x, x, *rows)


def compile_for_h200(kernel, args, kwargs):
    """Its PTX; compiling needs no GPU."""
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = args[i] if i < len(args) else kwargs[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif value is None or i >= len(args):
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "i32"
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": kwargs["num_warps"], "enable_fp_fusion": kwargs["enable_fp_fusion"]}
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options=options).asm["ptx"]


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_launches_cover_the_map_with_enough_programs(shape, channels_last, launches):
    launch_all(shape, torch.bfloat16, "relu", channels_last)
    for kernel, (programs,), _, kwargs in launches:
        if kernel is tail_kernels.combine_kernel.kernel:
            continue
        positions, channels = kwargs["BLOCK_P"], kwargs["BLOCK_C"]
        for block in (positions, channels):
            assert block & (block - 1) == 0
        assert programs * positions * channels >= torch.Size(shape).numel()
        # Few programs only where the map has few values, never so many that each has next to nothing to do.
        assert programs >= min(132, torch.Size(shape).numel() // 1024)
        assert programs <= max(1, torch.Size(shape).numel() // 128)


@pytest.mark.parametrize(
    ("shape", "dtype", "act", "channels_last", "wide"),
    [
        ((256, 256, 56, 56), torch.bfloat16, "relu", True, True),
        ((256, 256, 56, 56), torch.float32, "silu", False, True),
        ((64, 24, 28, 28), torch.float16, "none", True, True),
        ((8, 13, 5, 5), torch.float64, "silu", True, False),
    ],
    ids=str,
)
def test_compiles_for_a_gpu_that_is_not_here(shape, dtype, act, channels_last, wide, launches, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    launch_all(shape, dtype, act, channels_last)
    assert len(launches) >= 4
    for kernel, _, args, kwargs in launches:
        ptx = compile_for_h200(kernel, args, kwargs)
        assert not re.search(r"\b(atom|red)\.", ptx), "the order of an atomic sum is nobody's"
        assert "__local_depot" not in ptx, "values that ought to stay in registers went to memory"
        if wide and kernel is not tail_kernels.combine_kernel.kernel:
            assert re.search(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64", ptx), "loads of less than 16 bytes"


def test_tiles_depend_on_the_shape_alone():
    tile = tail_tiles.TILES["moments"]
    x = torch.empty(2, 3, 5, 7, device="meta")
    assert tail_tiles.cut_up(x, tile) == tail_tiles.cut_up(torch.empty_like(x), tile)
    assert tail_tiles.cut_up(torch.empty(4, 2**28, 4, device="meta").movedim(1, 2), tile).block_p > 1
    # A row so long that a tile's offsets would not fit into 32 bits gets a tile of one row.
    long = torch.empty(4, 600, 2**23, device="meta").movedim(2, 1)
    plan = tail_tiles.cut_up(long, tail_tiles.Tile(2**16, 4))
    assert not plan.p_inner and plan.block_p * plan.channels < 2**31
