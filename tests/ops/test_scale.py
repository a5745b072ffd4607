"""The channel scale in one compiled call against its formula in float64: odd shapes, every piece there or missing."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from excite.ops.native import library
from excite.ops.scale import FUNCTIONS, ScaleOp

ACTS = {"none": lambda y: y, "relu": torch.relu, "silu": F.silu, "hardswish": F.hardswish}
# Samples, channels in, hidden, channels out, then the map: cut by positions, by channels, and not at all.
SHAPES = [
    (1, 1, 1, 1, (1, 1)),
    (1, 64, 16, 256, (56, 56)),
    (2, 17, 5, 70, (7, 7)),
    (3, 130, 3, 33, (5,)),
    (1, 2100, 131, 515, (3, 2, 4)),
    (9, 48, 12, 48, (14, 15)),
]

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")


def drawn(n, c_in, hidden, c_out, size, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    first = (draw(hidden, c_in), draw(hidden))
    second = (draw(c_out, hidden) / math.sqrt(hidden), draw(c_out))
    direct = (draw(c_out, c_in), draw(c_out))
    return draw(n, c_in, *size) + 0.5, first, second, direct, draw(5)


def formula(x, first=None, second=None, taps=None, act="none", function="sigmoid", slope=1 / 6, factor=1.0):
    y = x.double().flatten(2).mean(2)
    for layer, then in ((first, ACTS[act]), (second, ACTS["none"])):
        if layer is not None:
            y = then(F.linear(y, layer[0].double(), None if layer[1] is None else layer[1].double()))
    if taps is not None:
        y = F.conv1d(y[:, None], taps.double()[None, None], padding=len(taps) // 2)[:, 0]
    return factor * (torch.sigmoid(y) if function == "sigmoid" else (slope * y + 0.5).clamp(0, 1))


def layouts(x):
    yield x
    if x.dim() > 3:
        yield x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    yield x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_formula(shape):
    x, first, second, direct, taps = drawn(*shape)
    unbiased = (second[0], None)
    pieces = [(first, second), (first, unbiased), (first, None), (None, direct), (None, None)]
    for (one, two), windows, function in itertools.product(pieces, (None, taps, taps[:1]), FUNCTIONS):
        act = "relu" if one is not None else "none"
        told = {"act": act, "function": function, "slope": 0.2, "factor": 2.0}
        op, expected = ScaleOp(one, two, windows, **told), formula(x, one, two, windows, **told)
        for y in layouts(x):
            torch.testing.assert_close(op(y).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", ACTS)
def test_every_activation(act):
    x, first, second, *_ = drawn(3, 33, 19, 40, (4, 4))
    found, expected = ScaleOp(first, second, act=act)(x), formula(x, first, second, act=act)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_number_of_threads_changes_nothing():
    before = torch.get_num_threads()
    try:
        for shape in SHAPES:
            x, first, second, *_ = drawn(*shape)
            for y in layouts(x):
                found = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    found.append(ScaleOp(first, second, act="silu")(y))
                assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(before)


def test_each_sample_is_its_own():
    x, first, second, *_ = drawn(7, 40, 9, 40, (6, 6))
    op = ScaleOp(first, second, act="relu")
    for y in layouts(x):
        alone = torch.cat([op(part.clone(memory_format=torch.preserve_format)) for part in y.split(1)])
        torch.testing.assert_close(op(y), alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_numbers_that_are_none_and_very_large_ones(function):
    """NaN stays in its sample; sigmoids of what is huge are 0 or 1."""
    x = torch.zeros(3, 4, 3, 3)
    x[0, 1, 0, 0] = math.nan
    x[1] = 1e30
    op = ScaleOp(second=(torch.ones(4, 4), None), function=function)
    s, huge = op(x), op(-x)
    assert s[0].isnan().all() and (s[1] == 1).all() and (s[2] == 0.5).all() and (huge[1] < 1e-37).all()


def test_what_is_not_taken():
    x, first, second, *_ = drawn(2, 8, 4, 8, (3, 3))
    op = ScaleOp(first, second, act="relu")
    assert op(x) is not None
    assert op(x.double()) is None and op(x.bfloat16()) is None and op(x[:, :, :, ::2]) is None and op(x[:0]) is None
    assert ScaleOp((first[0].double(), None), second)(x) is None
    assert ScaleOp((first[0].t().contiguous().t(), None), second)(x) is None
    assert ScaleOp(taps=torch.ones(6)[::2])(x) is None
    assert op(x.to("meta")) is None


def test_values_are_those_of_now():
    x, first, second, *_ = drawn(2, 8, 4, 8, (3, 3))
    op = ScaleOp(first, second, act="relu")
    second[0].mul_(2)
    torch.testing.assert_close(op(x).double(), formula(x, first, second, act="relu"), rtol=1e-5, atol=1e-6)
