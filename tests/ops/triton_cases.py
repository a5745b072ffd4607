"""The Triton tail against the reference, in Triton's interpreter (on the CPU) or on a GPU.

Not collected by name: ``test_tail_triton`` runs this file in a process of its own, because Triton decides when it is
imported whether it interprets.
"""

import itertools

import pytest
import torch
from test_tail import Middle, assert_same, make, run
from torch import nn

from excite.ops import tail, tail_passes, tail_triton
from excite.ops.tail_tiles import TILES, Tile, cut_up
from tolerances import PARITY, TAIL_OFF_CENTRE

DEVICE = "cpu" if tail_triton.INTERPRETED else "cuda"
# Odd sizes: 1 channel, primes, maps of one position, a batch of one, sizes just beyond a power of two; 1 to 3 axes.
SHAPES = [(3, 5, 7, 6), (4, 1, 3, 3), (2, 7, 1, 1), (1, 13, 5, 3), (2, 67, 3, 3), (2, 4, 9), (2, 3, 2, 3, 4)]
# Maps of several tiles, and programs that have less than one.
SEVERAL = [(2, 3, 37, 31), (1, 40, 17, 8), (3, 72, 5, 7)]
# So small that a few positions make several tiles.
SMALL = Tile(64, 1)
HALF = [torch.float16, torch.bfloat16]


def in_layout(t, layout):
    return t.contiguous() if layout == "contiguous" else t.movedim(1, -1).contiguous().movedim(-1, 1)


def in_it(t, layout):
    return t.stride() == in_layout(t, layout).stride()


def random_maps(n, shape, dtype, layout="contiguous"):
    maps = torch.randn(n, *shape, dtype=torch.float64).to(dtype).to(DEVICE)
    return [in_layout(t, layout) for t in maps]


def random_rows(n, shape, dtype):
    return list(torch.randn(n, *shape[:2], dtype=torch.float64).to(tail_passes.sum_dtype(dtype)).to(DEVICE))


def made(*args, layout="contiguous", **kwargs):
    """``make`` on the device and in a layout."""
    x, shortcut, norm, middle = make(*args, **kwargs)
    x, shortcut = (in_layout(t.detach().to(DEVICE), layout).requires_grad_() for t in (x, shortcut))
    return x, shortcut, norm.to(DEVICE), middle.to(DEVICE)


def random_dy(y):
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)


def assert_equals_float64(x, shortcut, norm, middle, *, act="relu", bounds=None, **kwargs):
    """``impl="triton"`` against the reference computed in float64 from the same inputs; gives the former."""
    dy = random_dy(x)
    ours = run("triton", x, shortcut, norm, middle, act=act, dy=dy, **kwargs)
    y = ours[0]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (x, shortcut)]
    # ReLU's mask is our own: a sum that rounds across zero flips a whole gradient.
    masked = dy.double() * (y > 0) if act == "relu" else dy.double()
    double = [None if m is None else m.double() for m in (norm, middle)]
    expected = run("reference", *exact, *double, act="none" if act == "relu" else act, dy=masked, **kwargs)
    if act == "relu":
        expected[0] = expected[0].relu()
    if bounds is None:
        assert_same(ours, expected, x.dtype)
    else:
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a.double(), b.double(), **bounds)
    return ours


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("act", ["relu", "silu", "none"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_equals_reference(shape, act, training, poisoned):
    # Each pair of settings comes up.
    for gated, with_shortcut, affine in [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        layout = "channels_last" if gated == training else "contiguous"
        x, shortcut, norm, middle = made(shape, affine=bool(affine), layout=layout)
        norm.train(training)
        args = (x, shortcut if with_shortcut else None, norm, middle if gated else None)
        dy = random_dy(x)
        ours, expected = (run(impl, *args, act=act, dy=dy) for impl in ("triton", "reference"))
        assert_same(ours, expected, torch.float64)
        for t in (ours[0], ours[1]):
            assert in_it(t, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("act", ["relu", "silu", "none"])
def test_dtypes_and_layouts(dtype, layout, act, poisoned):
    for shape in (SHAPES[0], SHAPES[-1], *SEVERAL):
        x, shortcut, norm, middle = made(shape, dtype, parameters=torch.float32, layout=layout)
        # A gate in half precision rounds more than sums over many positions forgive.
        gated = dtype == torch.float32 or shape in SHAPES
        y, dx, dshortcut = assert_equals_float64(x, shortcut, norm, middle if gated else None, act=act)[:3]
        # Without an activation the shortcut's gradient is dy itself, which is contiguous.
        for t in (y, dx) if act == "none" else (y, dx, dshortcut):
            assert t.dtype == dtype and in_it(t, layout)


@pytest.mark.parametrize("descriptors", [("std",), ("l2",), ("mean", "std"), ("l2", "mean", "std")], ids="+".join)
def test_descriptors_that_follow_from_mean_and_variance(descriptors):
    x, shortcut, norm, middle = made((3, 5, 4, 6))
    assert_equals_float64(x, shortcut, norm, middle, descriptors=descriptors)


@pytest.mark.parametrize("offset", [3.0, 30.0])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_inputs_far_from_zero_mean_in_float32(offset, layout, gated):
    x, shortcut, norm, middle = made((4, 6, 9, 11), torch.float32, offset=offset, layout=layout)
    assert_equals_float64(x, shortcut, norm, middle if gated else None, bounds=TAIL_OFF_CENTRE)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("tile", [TILES["moments"], SMALL], ids=["whole", "tiles"])
def test_variance_is_centred_however_far_the_mean_and_wherever_it_jumps(layout, tile):
    """A mean 1e4 deviations off, and a map whose halves lie that far apart: sums of squares would lose everything."""
    (x,) = random_maps(1, (2, 3, 30, 7), torch.float32, layout)
    x += 1e4
    apart = x.clone(memory_format=torch.preserve_format)
    apart[:, :, :11] -= 1e4
    for t in (x, apart):
        mean, variance = tail_triton.launch_moments(t, tile)
        exact = t.double().flatten(2)
        torch.testing.assert_close(mean.double(), exact.mean(2), rtol=1e-6, atol=0.0)
        # The means of tiles are 1e-3 apart at best there, 1e-3 of what they differ by.
        torch.testing.assert_close(variance.double(), exact.var(2, correction=0), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_parts_than_are_combined_at_a_time(layout):
    (x,) = random_maps(1, (1, 2, 29, 23), torch.float64, layout)
    assert cut_up(x, SMALL).tiles_p > 64
    assert_same(tail_triton.launch_moments(x, SMALL), tail_passes.moments(x), torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 20, 3, 5), (1, 1, 1, 1), (1, 2, 1, 67)], ids=str)
@pytest.mark.parametrize("act", ["relu", "silu", "none"])
def test_any_tile_gives_the_same(layout, shape, act, poisoned):
    x, y, shortcut, dy = random_maps(4, shape, torch.float64, layout)
    rows = random_rows(4, shape, torch.float64)
    ours = [
        *tail_triton.launch_moments(x, SMALL),
        tail_triton.launch_affine_act(x, shortcut, *rows[:3], act, SMALL),
        *tail_triton.launch_affine_act_grad(dy, y, x, shortcut, *rows[:3], act, SMALL),
        tail_triton.launch_moments_grad(dy, x, *rows, SMALL),
    ]
    expected = [
        *tail_passes.moments(x),
        tail_passes.affine_act(x, shortcut, *rows[:3], act),
        *tail_passes.affine_act_grad(dy, y, x, shortcut, *rows[:3], act),
        tail_passes.moments_grad(dy, x, *rows),
    ]
    assert x.shape[2:].numel() < 32 or cut_up(x, SMALL).tiles_p > 1
    assert_same(ours, expected, torch.float64)


def test_strided_expanded_and_mixed_layouts():
    x, _, _, _ = made((4, 6, 5, 7))
    norm, middle = nn.BatchNorm2d(3).double().to(DEVICE), Middle(3, torch.float64).to(DEVICE)
    odd = x.detach().transpose(2, 3)[:, ::2].requires_grad_()
    wide = torch.randn(1, 3, 7, 5, dtype=torch.float64).to(DEVICE).expand(4, 3, 7, 5).requires_grad_()
    dense = odd.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    last = in_layout(wide.detach(), "channels_last").requires_grad_()
    # NHCW: dense, but neither contiguous nor channels_last.
    between = dense.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    constant = torch.ones((), dtype=torch.float64, device=DEVICE).expand(4, 3, 7, 5)
    for x, shortcut in [(odd, wide), (dense, last), (last, dense), (between, wide)]:
        for act, dy in itertools.product(["relu", "silu", "none"], [constant, last.detach()]):
            args = (x, shortcut, norm, middle)
            ours, expected = (run(impl, *args, act=act, dy=dy) for impl in ("triton", "reference"))
            assert_same(ours, expected, torch.float64)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_shortcut_of_another_dtype_promotes(dtype):
    x, _, norm, middle = made((2, 3, 4, 5), dtype, parameters=torch.float32)
    shortcut = torch.randn(2, 3, 4, 5, device=DEVICE, requires_grad=True)
    y, dx, dshortcut = run("triton", x, shortcut, norm, middle, dy=torch.ones(2, 3, 4, 5, device=DEVICE))[:3]
    assert (y.dtype, dx.dtype, dshortcut.dtype) == (torch.float32, dtype, torch.float32)
    assert torch.equal(dshortcut, (y > 0).float())


@pytest.mark.slow
def test_gradcheck():
    x, shortcut, norm, middle = made((2, 3, 3, 2))

    def call(x, shortcut, weight, bias):
        return tail(x, shortcut, weight=weight, bias=bias, excite=middle, act="silu", impl="triton")

    assert torch.autograd.gradcheck(call, (x, shortcut, norm.weight, norm.bias))


@pytest.mark.parametrize("momentum", [0.37, None])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
def test_statistics_are_kept_as_batchnorm2d_keeps_them(momentum, affine, tracked):
    ours, theirs = (
        nn.BatchNorm2d(5, eps=1e-3, momentum=momentum, affine=affine, track_running_stats=tracked).double().to(DEVICE)
        for _ in range(2)
    )
    for step in range(4):
        training = step != 2
        (x,) = random_maps(1, (3, 5, 4, 6), torch.float64)
        x = 2 * x + 1
        y = tail(
            x, weight=ours.weight, bias=ours.bias, running_mean=ours.running_mean, running_var=ours.running_var,
            num_batches_tracked=ours.num_batches_tracked, training=training, momentum=momentum, eps=1e-3,
            act="none", impl="triton",
        )  # fmt: skip
        torch.testing.assert_close(y, theirs.train(training)(x), **PARITY[torch.float64])
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b, **PARITY[torch.float64])


@pytest.mark.parametrize("shape", [(0, 5, 4, 4), (3, 0, 4, 4), (3, 5, 0, 4)], ids=str)
def test_passes_take_empty_maps(shape):
    maps, rows = random_maps(4, shape, torch.float32), random_rows(4, shape, torch.float32)
    x, y, shortcut, dy = maps
    mean, variance = tail_triton.moments(x)
    assert mean.shape == variance.shape == shape[:2] and mean.isnan().all() and variance.isnan().all()
    assert tail_triton.affine_act(x, shortcut, *rows[:3], "relu").shape == shape
    g, total, centred = tail_triton.affine_act_grad(dy, y, x, shortcut, *rows[:3], "relu")
    assert g.shape == shape and torch.equal(total, torch.zeros_like(mean)) and torch.equal(centred, total)
    assert tail_triton.moments_grad(dy, x, *rows).shape == shape


def test_an_empty_batch():
    x = torch.zeros(0, 5, 4, 4, device=DEVICE, requires_grad=True)
    norm, middle = nn.BatchNorm2d(5).to(DEVICE), Middle(5, torch.float32).to(DEVICE)
    y = tail(x, x, weight=norm.weight, bias=norm.bias, running_mean=norm.running_mean, running_var=norm.running_var,
             excite=middle, impl="triton")  # fmt: skip
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


def test_nan_stays_nan():
    x, shortcut, dy = random_maps(3, (2, 3, 4, 5), torch.float32)
    rows = random_rows(3, x.shape, x.dtype)
    x[0, 1, 2, 3] = torch.nan
    for act in ("relu", "silu", "none"):
        y = tail_triton.affine_act(x, shortcut, *rows, act)
        assert torch.equal(y.isnan(), x.isnan())
        _, total, centred = tail_triton.affine_act_grad(dy, y, x, shortcut, *rows, act)
        assert torch.equal(centred.isnan(), x.isnan().any(-1).any(-1))
        assert torch.equal(total.isnan(), centred.isnan()) == (act == "silu")
    mean, variance = tail_triton.moments(x)
    assert torch.equal(mean.isnan(), x.isnan().any(-1).any(-1)) and torch.equal(mean.isnan(), variance.isnan())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_same_every_time(layout):
    x, shortcut, norm, middle = made((2, 6, 29, 31), torch.bfloat16, parameters=torch.float32, layout=layout)
    dy = random_dy(x)
    first, second = (run("triton", x, shortcut, norm, middle, dy=dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_saves_nothing_map_sized_but_x_and_y():
    x, shortcut, norm, middle = made((4, 8, 16, 16), torch.float32)
    saved = {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = tail(x, shortcut, weight=norm.weight, bias=norm.bias, excite=middle, impl="triton")
    maps = {p for p, t in saved.items() if t.numel() >= x.numel()}
    assert maps == {x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()}


@pytest.mark.slow
@pytest.mark.parametrize("act", ["relu", "silu", "none"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_whole(act, training):
    x, shortcut, norm, middle = made((2, 5, 4, 6))
    norm.train(training)
    dy = random_dy(x)
    expected = run("triton", x, shortcut, norm, middle, act=act, dy=dy)
    y = torch.compile(tail, fullgraph=True, backend="aot_eager")(
        x, shortcut, weight=norm.weight, bias=norm.bias, running_mean=norm.running_mean, running_var=norm.running_var,
        num_batches_tracked=norm.num_batches_tracked, momentum=norm.momentum, training=training, excite=middle,
        act=act, impl="triton",
    )  # fmt: skip
    grads = torch.autograd.grad(y, [x, shortcut, *norm.parameters(), *middle.parameters()], dy)
    assert_same([y.detach(), *grads], expected[: 1 + len(grads)], torch.float64)
    torch.testing.assert_close(norm.running_mean, expected[-3])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_passes_are_sound_ops(dtype, layout):
    x, y, shortcut, dy = random_maps(4, (2, 3, 4, 5), dtype, layout)
    rows = random_rows(4, x.shape, dtype)
    check = torch.library.opcheck
    check(tail_triton.moments, (x,))
    check(tail_triton.moments_grad, (dy, x, *rows))
    for act, cut in [("relu", shortcut), ("silu", shortcut), ("none", shortcut), ("relu", None)]:
        check(tail_triton.affine_act, (x, cut, *rows[:3], act))
        check(tail_triton.affine_act_grad, (dy, y, x, cut, *rows[:3], act))


def test_autocast():
    x, shortcut, norm, middle = made((2, 5, 4, 6), torch.float32)
    low, lows = (t.detach().bfloat16().requires_grad_() for t in (x, shortcut))
    with torch.autocast(DEVICE, torch.bfloat16):
        ours, expected = (run(impl, low, lows, norm, middle, dy=random_dy(low)) for impl in ("triton", "reference"))
    assert ours[0].dtype == expected[0].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0], expected[0], **PARITY[torch.bfloat16])


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: a map of 4 GiB")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_than_2_to_the_31_values(layout):
    shape = (33, 2, 2**25) if layout == "contiguous" else (33, 2**17, 2**9)
    x = in_layout(torch.zeros(shape, dtype=torch.float16, device=DEVICE), layout)
    x[-1] = torch.randn(shape[1:], device=DEVICE).half()
    expected = tail_passes.moments(x[-1:].double())
    for a, b in zip(tail_triton.moments(x), expected, strict=True):
        assert torch.equal(a[:-1], torch.zeros_like(a[:-1]))
        torch.testing.assert_close(a[-1:].double(), b, rtol=1e-4, atol=1e-6)
    rows = random_rows(3, shape, x.dtype)
    y = tail_triton.affine_act(x, None, *rows, "relu")
    last = tail_passes.affine_act(x[-1:], None, *(t[-1:] for t in rows), "relu")
    torch.testing.assert_close(y[-1:], last, **PARITY[torch.float16])
