"""The compiled 1x1 convolution against its formula in float64: odd shapes, every ending, in place or fresh."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from excite.ops.native import library
from excite.ops.pointwise import ACTS, in_panels, pointwise

CLAMP = (1, 0.0, 6.0)
ACTIVATIONS = {
    "none": (ACTS["none"], lambda y: y),
    "relu": (ACTS["relu"], torch.relu),
    "hardswish": (ACTS["hardswish"], F.hardswish),
    "clamp": (CLAMP, lambda y: y.clamp(0, 6)),
}
# Channels in and out around whole panels and whole vectors, positions around whole tiles.
SHAPES = [
    (2, 3, 1, 1, 1),
    (1, 7, 64, 5, 5),
    (3, 64, 65, 3, 2),
    (2, 17, 130, 7, 7),
    (1, 33, 40, 1, 6),
    (2, 128, 24, 4, 9),
]

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler on this machine")


def maps(n, c_in, c_out, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x = draw(n, c_in, h, w).to(memory_format=torch.channels_last)
    shortcut = draw(n, c_out, h, w).to(memory_format=torch.channels_last)
    return x, draw(c_out, c_in) / math.sqrt(c_in), draw(c_out), draw(n, c_out), shortcut


def formula(x, weight, bias, scale, shortcut, act, taken=None):
    x = x.double() if taken is None else x.double() * taken.double()[:, :, None, None]
    y = F.conv2d(x, weight.double()[:, :, None, None], bias.double())
    y = y if scale is None else y * scale.double()[:, :, None, None]
    return act(y if shortcut is None else y + shortcut.double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_formula(shape, name):
    told, act = ACTIVATIONS[name]
    x, weight, bias, s, add = maps(*shape)
    panels = in_panels(weight)
    for scale, shortcut in itertools.product((None, s), (None, add)):
        y = pointwise(x, panels, bias, scale=scale, shortcut=shortcut, act=told)
        assert y.shape == add.shape and y.is_contiguous(memory_format=torch.channels_last)
        expected = formula(x, weight, bias, scale, shortcut, act)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gates", [(True, False), (True, True)], ids=["before", "before and after"])
def test_the_formula_with_a_scale_of_the_input(shape, gates):
    x, weight, bias, s, add = maps(*shape)
    taken = torch.randn(shape[0], shape[1], generator=torch.Generator().manual_seed(2))
    scale = s if gates[1] else None
    y = pointwise(x, in_panels(weight), bias, taken=taken, scale=scale, shortcut=add, act=ACTS["relu"])
    expected = formula(x, weight, bias, scale, add, torch.relu, taken)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_in_place_it_is_the_shortcut():
    x, weight, bias, s, add = maps(3, 20, 70, 5, 7)
    kept, version = add.clone(), add._version
    y = pointwise(x, in_panels(weight), bias, scale=s, shortcut=add, act=ACTS["relu"], in_place=True)
    assert y is add and add._version > version
    fresh = pointwise(x, in_panels(weight), bias, scale=s, shortcut=kept, act=ACTS["relu"])
    assert torch.equal(y, fresh) and fresh.data_ptr() != kept.data_ptr()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    x, weight, bias, s, add = maps(2, 300, 200, 14, 14)
    before = torch.get_num_threads()
    expected = pointwise(x, in_panels(weight), bias, scale=s, shortcut=add)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(pointwise(x, in_panels(weight), bias, scale=s, shortcut=add), expected)
    finally:
        torch.set_num_threads(before)


def test_what_is_no_number_stays():
    x, weight, bias, s, add = maps(1, 4, 16, 2, 2)
    x[0, 0, 0, 0] = math.nan
    for told, _ in ACTIVATIONS.values():
        y = pointwise(x, in_panels(weight), bias, scale=s, shortcut=add, act=told)
        assert y[0, :, 0, 0].isnan().all() and y[0, :, 1, 1].isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        lambda x, add: (x.double(), add.double()),
        lambda x, add: (x.contiguous(), add),
        lambda x, add: (x, add.contiguous()),
        lambda x, add: (x, add[:, :, :1]),
        lambda x, add: (x, add.bfloat16()),
    ],
)
def test_other_maps_are_not_touched(change):
    x, weight, bias, _, add = maps(2, 8, 32, 3, 3)
    x, add = change(x, add)
    before = add.clone()
    assert pointwise(x, in_panels(weight), bias, shortcut=add, in_place=True) is None
    assert torch.equal(add, before)
