"""The compiled passes of the CPU: parity in every dtype and layout, threads, building, and when they are chosen."""

import itertools
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from excite.gates import parse_gate
from excite.models import create_model
from excite.models.blocks import run_tail
from excite.ops import native, tail_native, tail_norm, tail_passes
from excite.ops.tail import choose_tail_impl, worth_fusing
from tolerances import PARITY, TAIL_OFF_CENTRE

ACTS = ("relu", "silu", "none")
# Around the widths that the code walks in: 16 lanes, tiles of 4 rows, runs of 64 rows and of 1024 positions.
SHAPES = [(3, 5, 7, 6), (4, 1, 3, 3), (2, 37, 1, 1), (1, 13, 5, 13), (2, 16, 65), (2, 3, 2, 3, 4), (1, 2, 33, 33)]

built = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here")


@pytest.fixture
def without(monkeypatch):
    """Runs a function on the passes written in PyTorch."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(tail_native, "library", lambda: None)
            return function(*args)

    return call


def maps(shape, dtype, channels_last, count, offset=0.0):
    made = [(torch.randn(shape, dtype=torch.float64) + offset).to(dtype) for _ in range(count)]
    return [t.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else t for t in made]


def all_passes(x, shortcut, dy, coefficients):
    """Every result of the four passes, by name."""
    now, (centre, scale, offset) = tail_passes.NOW, coefficients
    results = dict(zip(("m", "v"), now.moments(x), strict=True))
    for act, cut in itertools.product(ACTS, (shortcut, None)):
        y = now.affine_act(x, cut, centre, scale, offset, act)
        names = [f"{act}{'+' if cut is not None else ''} {what}" for what in ("g", "sum g", "sum gx")]
        results[names[0].replace(" g", " y")] = y
        # One y for both, so that a sum that rounds across zero moves no mask.
        results |= zip(names, now.affine_act_grad(dy, shortcut, x, cut, centre, scale, offset, act), strict=True)
    results["dx"] = now.moments_grad(dy, x, centre, scale, offset, scale)
    return results


@built
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])
def test_passes_equal_those_in_pytorch(dtype, channels_last, poisoned, without):
    for shape in SHAPES:
        x, shortcut, dy = maps(shape, dtype, channels_last, 3)
        coefficients = [torch.randn(shape[:2], dtype=tail_passes.sum_dtype(dtype)) for _ in range(3)]
        ours = all_passes(x, shortcut, dy, coefficients)
        assert tail_native.moments(x) is not None, "these tensors are for the compiled passes"
        for name, expected in without(all_passes, x, shortcut, dy, coefficients).items():
            got = ours[name]
            assert got.dtype == expected.dtype and got.stride() == expected.stride(), name
            torch.testing.assert_close(
                got.double(), expected.double(), **PARITY[dtype], msg=lambda m, n=name: f"{n}: {m}"
            )


@built
@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])
@pytest.mark.parametrize("offset", [30.0, 3000.0])
def test_moments_far_from_zero(channels_last, offset):
    (x,) = maps((2, 19, 70, 70), torch.float32, channels_last, 1, offset)
    m, v = tail_native.moments(x)
    torch.testing.assert_close(m.double(), x.double().mean((2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(v.double(), x.double().var((2, 3), correction=0), **TAIL_OFF_CENTRE)


@built
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_read_and_rounded_as_pytorch_does(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(1, 1, 256, 256)
    for scale in (1.0, 0.3337, 3.337, 1e-3):
        ours = every.clone()
        assert native.rescale_add_act_(ours, torch.tensor([[scale]]))
        expected = (every.float() * torch.tensor(scale)).to(dtype)
        assert torch.equal(ours.isnan(), expected.isnan())
        assert torch.equal(ours.nan_to_num(7.0, 8.0, 9.0), expected.nan_to_num(7.0, 8.0, 9.0))


@built
def test_statistics_and_their_gradient(without):
    for dtype, by_batch, n in itertools.product((torch.float32, torch.float64), (True, False), (1, 5)):
        m, dz, dz_m = torch.randn(3, n, 300, dtype=dtype)
        v, var = torch.rand(n, 300, dtype=dtype), torch.rand(300, dtype=dtype)
        weight, bias, mu, da = torch.randn(4, 300, dtype=dtype)
        given = (None, None) if by_batch else (mu, var)
        for affine, part in itertools.product(((weight, bias), (None, None)), ((da, dz_m), (None, None))):

            def run(given=given, affine=affine, part=part, v=v, m=m, dz=dz, by_batch=by_batch):
                mu, var, a, z = tail_norm.NOW.statistics(m, v, *affine, *given, 1e-5)
                back = tail_norm.NOW.statistics_grad(m, mu, var, a, part[0], dz, part[1], 1e-5, by_batch, 7)
                return [mu, var, a, z, *back]

            for ours, expected in zip(run(), without(run), strict=True):
                torch.testing.assert_close(ours, expected, **PARITY[dtype])
        torch.library.opcheck(tail_norm.statistics, (m, v, weight, bias, *given, 1e-5))
        torch.library.opcheck(tail_norm.statistics_grad, (m, mu, var, weight, da, dz, dz_m, 1e-5, by_batch, 7))


@built
def test_strides_of_their_own_and_mixed_dtypes_are_left_to_pytorch(without):
    x = torch.randn(2, 6, 5, 4)
    c = torch.randn(2, 6)
    odd = x.transpose(2, 3)
    assert tail_native.moments(odd) is None
    assert tail_native.affine_act(x, x.double(), c, c, c, "relu") is None
    assert tail_native.moments(x[:0]) is None
    # An operand in another layout is copied: the result is laid out as x.
    other = x.to(memory_format=torch.channels_last)
    y = tail_passes.NOW.affine_act(x, other, c, c, c, "relu")
    assert y.is_contiguous()
    torch.testing.assert_close(y, without(tail_passes.NOW.affine_act, x, x, c, c, c, "relu"))
    expanded = torch.ones(2, 6, 1, 1).expand_as(x)
    g = tail_passes.NOW.affine_act_grad(expanded, x, x, None, c, c, c, "relu")[0]
    assert torch.equal(g, (x > 0).float())


@built
@pytest.mark.parametrize("channels_last", [False, True], ids=["planes", "rows"])
def test_results_are_the_same_bits_for_any_number_of_threads(channels_last):
    for shape in ((3, 70, 21, 20), (1, 2100, 3, 4)):
        x, shortcut, dy = maps(shape, torch.float32, channels_last, 3)
        coefficients = [torch.randn(shape[:2]) for _ in range(3)]
        runs = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            runs.append(all_passes(x, shortcut, dy, coefficients))
        torch.set_num_threads(1)
        for other in runs[1:]:
            assert [name for name in runs[0] if not torch.equal(runs[0][name], other[name])] == []


@built
def test_there_is_one_openmp_runtime():
    x = torch.randn(2, 64, 64, 64)
    torch.set_num_threads(2)
    tail_native.moments(x)
    torch.set_num_threads(1)
    with open("/proc/self/maps") as lines:
        runtimes = {line.split()[-1] for line in lines if "libgomp" in line or "libiomp" in line or "libomp" in line}
    assert len(runtimes) == 1, runtimes


BUILD = """
import sys, torch
from excite.ops import native, tail_native
x = torch.ones(2, 3, 4, 4)
assert native.library() is not None
assert tail_native.moments(x)[0].tolist() == [[1.0] * 3] * 2
"""


@built
@pytest.mark.slow
def test_processes_that_build_at_once(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    together = [subprocess.Popen([sys.executable, "-W", "error", "-c", BUILD], env=environment) for _ in range(2)]
    assert [p.wait() for p in together] == [0, 0]
    assert [p.suffix for p in (tmp_path / "excite").iterdir()] == [".so"]


@pytest.fixture
def unbuilt():
    """Nothing built yet; afterwards what there was."""
    native._library.cache_clear()
    yield
    native._library.cache_clear()


@pytest.mark.parametrize("what", ["no compiler", "a compiler that fails", "another system"])
def test_without_a_compiler_it_is_said_once_and_all_works(what, unbuilt, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if what == "another system":
        monkeypatch.setattr(native.sys, "platform", "darwin")
    elif what == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        (tmp_path / "c++").write_text("#!/bin/sh\necho 'x.cpp: error: no such option' >&2\nexit 1\n")
        (tmp_path / "c++").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    x = torch.randn(2, 3, 4, 4)
    with caplog.at_level(logging.WARNING, logger="excite.ops"):
        m, _ = tail_passes.moments(x)
        assert native.library() is None and native.mean(x) is None
    torch.testing.assert_close(m, x.mean((2, 3)))
    assert len(caplog.records) == 1
    assert "using those written in PyTorch" in caplog.text
    assert not worth_fusing(torch.randn(8, 64, 40, 40), None, training=True, gated=True)


def names_of_passes(function):
    with torch.profiler.profile() as profile:
        function()
    return {e.name for e in profile.events()}


def large(dtype=torch.float32, requires_grad=True):
    return torch.randn(8, 64, 20, 20, dtype=dtype, requires_grad=requires_grad)


@built
def test_auto_fuses_large_maps_in_training_alone():
    x = large()
    assert worth_fusing(x, x, training=True, gated=True)
    assert not worth_fusing(x, x, training=True, gated=False), "without a gate there is less to win"
    assert not worth_fusing(x, x, training=False, gated=True)
    assert not worth_fusing(x[:, :, ::2], None, training=True, gated=True)
    assert not worth_fusing(x, x.double(), training=True, gated=True)
    assert not worth_fusing(x[:1], None, training=True, gated=True)
    with torch.no_grad():
        assert not worth_fusing(x, x, training=True, gated=True)
    with torch.autograd.forward_ad.dual_level():
        assert not worth_fusing(x, x, training=True, gated=True)
    torch.func.grad(lambda t: (t * float(not worth_fusing(x, x, training=True, gated=True))).sum())(torch.ones(2))
    assert choose_tail_impl("auto", worth=True) == "fused"
    assert choose_tail_impl("auto", ("max",), worth=True) == choose_tail_impl("auto") == "reference"


@built
@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
@pytest.mark.parametrize("where", ["norm", "gate"])
def test_modules_with_hooks_are_called(register, where):
    norm, gate = nn.BatchNorm2d(64), parse_gate("se").build(64)
    x, called = large(), []
    getattr({"norm": norm, "gate": gate}[where], register)(lambda *args: called.append(where))
    run_tail(norm, gate, x, x).sum().backward()
    assert called == [where]


@built
def test_a_hook_that_changes_the_norms_output_is_heard():
    """As an attached gate does."""
    norm, x = nn.BatchNorm2d(64), torch.randn(32, 64, 20, 20, requires_grad=True)
    assert worth_fusing(x, None, training=True, gated=False)
    norm.register_forward_hook(lambda module, args, y: y * 0)
    assert run_tail(norm, None, x, act="none").abs().max() == 0


@built
def test_a_network_trains_as_its_reference():
    auto, reference = (create_model("resnet18", gate="se", num_classes=4, impl=i) for i in ("auto", "reference"))
    reference.load_state_dict(auto.state_dict())
    x = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    grads = []
    for model in (auto.double(), reference.double()):
        out = model(x.double())
        out.square().sum().backward()
        grads.append([out.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    for ours, theirs in zip(*grads, strict=True):
        scale = theirs.double().abs().max().clamp_min(1)
        torch.testing.assert_close(ours.double() / scale, theirs.double() / scale, rtol=1e-9, atol=1e-9)
