"""The fused tail against the reference: values, gradients to every input, statistics, dtypes, layouts, compilation."""

import itertools

import pytest
import torch
from torch import nn

from excite.ops import tail, tail_passes
from tolerances import PARITY, TAIL_OFF_CENTRE

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SHAPES = [(3, 5, 7, 6), (4, 1, 3, 3), (2, 7, 1, 1), (1, 13, 5, 3), (2, 4, 9), (2, 3, 2, 3, 4)]


class Middle(nn.Module):
    """A small SE middle; ``descriptors`` > 1 are averaged first."""

    def __init__(self, channels, dtype):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 3).to(dtype), nn.Linear(3, channels).to(dtype)

    def forward(self, z):
        if z.dim() == 3:
            z = z.mean(1)
        return self.fc2(self.fc1(z).relu()).sigmoid()


def make(shape, dtype=torch.float64, *, affine=True, offset=0.0, parameters=None):
    """x, shortcut, norm and middle; parameters of the norm and middle in ``parameters`` dtype (default: x's)."""
    parameters = parameters or dtype
    x = (torch.randn(shape, dtype=torch.float64) + offset).to(dtype).requires_grad_()
    shortcut = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    norm = NORMS[len(shape) - 2](shape[1], affine=affine).to(parameters)
    with torch.no_grad():
        for p in norm.parameters():
            p.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return x, shortcut, norm, Middle(shape[1], dtype)


def run(impl, x, shortcut, norm, middle, *, act="relu", descriptors=("mean",), dy=None):
    """y, every gradient, and the running statistics after one call."""
    # Its own copies, so that one run leaves no trace for the next.
    mean, var, count = (
        t if t is None else t.clone() for t in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    )
    y = tail(
        x, shortcut, weight=norm.weight, bias=norm.bias, running_mean=mean, running_var=var, num_batches_tracked=count,
        training=norm.training, momentum=norm.momentum, eps=norm.eps, excite=middle, descriptors=descriptors,
        act=act, impl=impl,
    )  # fmt: skip
    inputs = [t for t in (x, shortcut, *norm.parameters(), *(middle.parameters() if middle else ())) if t is not None]
    if dy is None:
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    grads = torch.autograd.grad(y, inputs, dy)
    return [y.detach(), *grads, *(t for t in (mean, var, count) if t is not None)]


def assert_same(ours, theirs, dtype):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b.double(), **PARITY[dtype])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("act", ["relu", "silu", "none"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_fused_equals_reference(shape, act, training, poisoned):
    for gated, with_shortcut, affine in itertools.product([True, False], repeat=3):
        x, shortcut, norm, middle = make(shape, affine=affine)
        norm.train(training)
        args = (x, shortcut if with_shortcut else None, norm, middle if gated else None)
        assert_same(run("fused", *args, act=act), run("reference", *args, act=act), torch.float64)


@pytest.mark.parametrize("descriptors", [("std",), ("l2",), ("mean", "std"), ("l2", "mean", "std")], ids="+".join)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_descriptors_that_follow_from_mean_and_variance(descriptors, training):
    x, shortcut, norm, middle = make((3, 5, 4, 6))
    norm.train(training)
    args = (x, shortcut, norm, middle)
    assert_same(
        run("fused", *args, descriptors=descriptors), run("reference", *args, descriptors=descriptors), torch.float64
    )


@pytest.mark.parametrize("offset", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_inputs_far_from_zero_mean_in_float32(offset, gated):
    x, shortcut, norm, middle = make((4, 6, 9, 11), torch.float32, offset=offset)
    middle = middle if gated else None
    exact = [t.double().requires_grad_() for t in (x.detach(), shortcut.detach())]
    fused = run("fused", x, shortcut, norm, middle)
    expected = run("reference", *exact, norm.double(), middle.double() if middle else None)
    for a, b in zip(fused, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), **TAIL_OFF_CENTRE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_narrower_dtypes_and_layouts(dtype, channels_last, poisoned):
    x, shortcut, norm, middle = make((3, 5, 6, 7), dtype, parameters=torch.float32)
    if channels_last:
        x, shortcut = (t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in (x, shortcut))
    fused = run("fused", x, shortcut, norm, middle)
    y, dx, dshortcut = fused[:3]
    for t in (y, dx, dshortcut):
        assert t.dtype == dtype
        assert t.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    # ReLU's mask is the fused run's own: a sum that rounds across zero flips a whole gradient in half precision.
    exact = [t.detach().double().requires_grad_() for t in (x, shortcut)]
    expected = run("reference", *exact, norm.double(), middle.double(), act="none", dy=masked_dy(y))
    expected[0] = expected[0].relu()
    assert_same(fused, expected, dtype)


def masked_dy(y):
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return dy.double() * (y > 0)


def test_shortcut_of_another_dtype_promotes():
    x, _, norm, middle = make((2, 3, 4, 5), torch.bfloat16, parameters=torch.float32)
    shortcut = torch.randn(2, 3, 4, 5, requires_grad=True)
    y, dx, dshortcut = run("fused", x, shortcut, norm, middle)[:3]
    assert (y.dtype, dx.dtype, dshortcut.dtype) == (torch.float32, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("act", ["relu", "silu", "none"])
def test_gradcheck(act):
    x, shortcut, norm, middle = make((2, 3, 3, 2))

    def call(x, shortcut, weight, bias, *parameters):
        excite = lambda z: torch.func.functional_call(middle, dict(zip(names, parameters, strict=True)), (z,))  # noqa: E731
        return tail(x, shortcut, weight=weight, bias=bias, excite=excite, act=act, impl="fused")

    names = [n for n, _ in middle.named_parameters()]
    assert torch.autograd.gradcheck(call, (x, shortcut, norm.weight, norm.bias, *middle.parameters()))


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("momentum", [0.1, 0.37, 1.0, None])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
def test_statistics_are_kept_as_batchnorm2d_keeps_them(impl, momentum, affine, tracked):
    ours = nn.BatchNorm2d(5, eps=1e-3, momentum=momentum, affine=affine, track_running_stats=tracked).double()
    theirs = nn.BatchNorm2d(5, eps=1e-3, momentum=momentum, affine=affine, track_running_stats=tracked).double()
    for step in range(4):
        training = step != 2
        x = torch.randn(3, 5, 4, 6, dtype=torch.float64) * 2 + 1
        y = tail(
            x, weight=ours.weight, bias=ours.bias, running_mean=ours.running_mean, running_var=ours.running_var,
            num_batches_tracked=ours.num_batches_tracked, training=training, momentum=momentum, eps=1e-3,
            act="none", impl=impl,
        )  # fmt: skip
        torch.testing.assert_close(y, theirs.train(training)(x), **PARITY[torch.float64])
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b, **PARITY[torch.float64])


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_empty_batch(impl):
    x = torch.zeros(0, 5, 4, 4, requires_grad=True)
    norm, middle = nn.BatchNorm2d(5), Middle(5, torch.float32)
    y = tail(x, x, weight=norm.weight, bias=norm.bias, running_mean=norm.running_mean, running_var=norm.running_var,
             excite=middle, impl=impl)  # fmt: skip
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(norm.running_mean, torch.zeros(5)) and torch.equal(norm.running_var, torch.ones(5))


def test_only_the_shortcut_needs_a_gradient():
    x, shortcut, norm, _ = make((2, 3, 4, 5))
    y = tail(x.detach(), shortcut, impl="fused")
    (grad,) = torch.autograd.grad(y.sum(), shortcut)
    assert torch.equal(grad, (y > 0).double())


def test_a_shortcut_that_is_x_itself_gets_both_gradients():
    x, _, norm, middle = make((2, 3, 4, 5))
    grads = [
        torch.autograd.grad(tail(x, x, weight=norm.weight, bias=norm.bias, excite=middle, impl=impl).square().sum(), x)[
            0
        ]
        for impl in ("fused", "reference")
    ]
    torch.testing.assert_close(*grads, **PARITY[torch.float64])


def test_saves_nothing_map_sized_but_x_and_y():
    x, shortcut, norm, middle = make((4, 8, 16, 16), torch.float32)
    saved = {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = tail(x, shortcut, weight=norm.weight, bias=norm.bias, excite=middle, impl="fused")
    maps = {p for p, t in saved.items() if t.numel() >= x.numel()}
    assert maps == {x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()}


@pytest.mark.parametrize("act", ["relu", "silu", "none"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_whole(act, training):
    x, shortcut, norm, middle = make((2, 5, 4, 6))
    norm.train(training)

    def compiled(*args, **kwargs):
        return torch.compile(tail, fullgraph=True, backend="aot_eager")(*args, **kwargs)

    norm.momentum = None if act == "silu" else 0.1
    expected = run("fused", x, shortcut, norm, middle, act=act)
    y = compiled(
        x, shortcut, weight=norm.weight, bias=norm.bias, running_mean=norm.running_mean, running_var=norm.running_var,
        num_batches_tracked=norm.num_batches_tracked, momentum=norm.momentum, training=training, excite=middle,
        act=act, impl="fused",
    )  # fmt: skip
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad(y, [x, shortcut, *norm.parameters(), *middle.parameters()], dy)
    assert_same([y.detach(), *grads], expected[: 1 + len(grads)], torch.float64)
    torch.testing.assert_close(norm.running_mean, expected[-3])


def test_autocast():
    x, shortcut, norm, middle = make((2, 5, 4, 6), torch.float32)
    low, lows = x.detach().bfloat16().requires_grad_(), shortcut.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        fused, expected = (run(impl, low, lows, norm, middle) for impl in ("fused", "reference"))
    assert fused[0].dtype == expected[0].dtype == torch.bfloat16
    torch.testing.assert_close(fused[0], expected[0], **PARITY[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_passes_are_sound_ops(dtype, layout):
    x, y, shortcut, dy = torch.randn(4, 2, 3, 4, 5).to(dtype)
    x, y, shortcut, dy = (t.contiguous(memory_format=layout) for t in (x, y, shortcut, dy))
    coefficients = [torch.randn(2, 3, dtype=tail_passes.sum_dtype(dtype)) for _ in range(3)]
    check = torch.library.opcheck
    check(tail_passes.moments, (x,))
    check(tail_passes.moments_grad, (dy, x, *coefficients[:2], coefficients[2], coefficients[0]))
    for act, cut in itertools.product(["relu", "silu", "none"], [shortcut, None]):
        check(tail_passes.affine_act, (x, cut, *coefficients, act))
        check(tail_passes.affine_act_grad, (dy, y, x, cut, *coefficients, act))


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"x": torch.zeros(2, 3)}, "1 to 3 spatial axes"),
        ({"shortcut": torch.zeros(2, 3, 4, 1)}, "shortcut must have the shape"),
        ({"act": "rleu"}, "did you mean 'relu'"),
        ({"impl": "fsued"}, "did you mean 'fused'"),
        ({"impl": "fused", "descriptors": ("max",), "excite": torch.sigmoid}, "'max'.*needs impl='auto'"),
        ({"impl": "fused", "excite": lambda z: z[:1]}, r"s of shape \(2, 3\)"),
        ({"x": torch.zeros(1, 3, 1, 1), "impl": "fused"}, "more than 1 value per channel"),
        ({"x": torch.zeros(1, 3, 1, 1), "impl": "reference"}, "more than 1 value per channel"),
    ],
)
def test_mistakes_are_named(kwargs, says):
    with pytest.raises(ValueError, match=says):
        tail(**{"x": torch.randn(2, 3, 4, 4), **kwargs})


@pytest.mark.parametrize("act", ["relu", "silu", "none"])
def test_a_second_derivative_is_refused_whatever_it_is_taken_to(act):
    x, shortcut, norm, middle = make((2, 3, 4, 5))
    for wanted in (x, shortcut, norm.weight, norm.bias, middle.fc2.weight):
        y = tail(x, shortcut, weight=norm.weight, bias=norm.bias, excite=middle, act=act, impl="fused")
        with pytest.raises(ValueError, match="no second derivative"):
            torch.autograd.grad(y.square().sum(), wanted, create_graph=True)


@pytest.mark.parametrize("which", ["x", "weight", "bias", "gate", "shortcut"])
def test_a_gradient_to_one_input_alone(which):
    x, shortcut, norm, middle = make((2, 3, 4, 5))
    inputs = {"x": x, "shortcut": shortcut, "weight": norm.weight, "bias": norm.bias, "gate": middle.fc1.weight}
    for t in (x, shortcut, *norm.parameters(), *middle.parameters()):
        t.requires_grad_(t is inputs[which])
    grads = [
        torch.autograd.grad(
            tail(x, shortcut, weight=norm.weight, bias=norm.bias, excite=middle, impl=impl).square().sum(),
            inputs[which],
        )[0]
        for impl in ("fused", "reference")
    ]
    torch.testing.assert_close(*grads, **PARITY[torch.float64])


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    x, shortcut, norm, middle = make((2, 3, 4, 5))

    def call(x, shortcut):
        return tail(x, shortcut, weight=norm.weight, bias=norm.bias, excite=middle, impl="fused")

    whole = torch.autograd.grad(call(x, shortcut).square().sum(), [x, norm.weight], retain_graph=True)
    x.grad = norm.weight.grad = None
    torch.utils.checkpoint.checkpoint(call, x, shortcut, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close([x.grad, norm.weight.grad], list(whole))


def test_expanded_and_strided_inputs_and_gradients():
    x, shortcut, norm, middle = make((4, 6, 5, 7))
    odd = x.detach().transpose(2, 3)[:, ::2].requires_grad_()
    wide = torch.randn(1, 3, 7, 5, dtype=torch.float64).expand(4, 3, 7, 5).requires_grad_()
    norm, middle = nn.BatchNorm2d(3).double(), Middle(3, torch.float64)
    dy = torch.ones((), dtype=torch.float64).expand(4, 3, 7, 5)
    args = (odd, wide, norm, middle)
    for act in ("relu", "silu", "none"):
        assert_same(run("fused", *args, act=act, dy=dy), run("reference", *args, act=act, dy=dy), torch.float64)


def test_passes_write_their_result_once():
    x, scale = torch.randn(2, 3, 4, 5), torch.randn(2, 3)
    with torch.profiler.profile() as profile:
        tail_passes.affine_act(x, None, scale, scale, scale, "relu")
    assert not any(event.name == "aten::copy_" for event in profile.events())
