import itertools

import pytest
import torch
from torch.nn import functional as F

from excite.ops import squeeze, squeeze_ahead
from tolerances import PARITY

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def squeeze_after(h, weight, bias, scale, shift, **conv):
    """The definition: make the map, norm it, take its mean."""
    u = CONV[h.dim() - 2](h, weight, bias, **conv)
    spread = (1, -1, *(1,) * (h.dim() - 2))
    return squeeze(u * scale.reshape(spread) + shift.reshape(spread))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        *itertools.product([1, 2, 3], [1, 2, 3], [0, 1, 2], [1, 2], [1]),
        *[(3, 2, 1, 1, 2), (1, 1, 0, 1, 4), (5, 4, 7, 1, 1), (1, 3, 4, 1, 2)],
    ],
)
def test_equals_the_squeeze_of_the_convolution(axes, kernel, stride, padding, dilation, groups):
    sizes = (9, 8, 7)[:axes]
    h = torch.randn(2, 4, *sizes, dtype=torch.float64)
    weight = torch.randn(8, 4 // groups, *(kernel,) * axes, dtype=torch.float64)
    bias, scale, shift = torch.randn(3, 8, dtype=torch.float64)
    conv = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    expected = squeeze_after(h, weight, bias, scale, shift, **conv)
    z = squeeze_ahead(h, weight, bias, scale=scale, shift=shift, **conv)
    torch.testing.assert_close(z, expected, **PARITY[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_narrower_dtypes_sum_in_float32(dtype, n):
    h = torch.randn(n, 6, 11, 9).to(dtype).to(memory_format=torch.channels_last)
    weight = (torch.randn(5, 6, 1, 1) / 3).to(dtype)
    ones, zeros = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    expected = squeeze_after(h.double(), weight.double(), None, ones, zeros)
    z = squeeze_ahead(h, weight)
    assert z.dtype == dtype
    torch.testing.assert_close(z.double(), expected, **PARITY[dtype])


def test_uneven_options_an_axis():
    h, weight = torch.randn(2, 3, 8, 9, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
    conv = {"stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)}
    expected = squeeze(F.conv2d(h, weight, **conv))
    torch.testing.assert_close(squeeze_ahead(h, weight, **conv), expected, **PARITY[torch.float64])


def test_gradients_reach_input_kernel_and_norm():
    h = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h, w, a: squeeze_ahead(h, w, scale=a, stride=2, padding=1), (h, weight, scale)
    )


def test_compiles_whole():
    h, weight = torch.randn(2, 4, 5, 6), torch.randn(3, 4, 3, 3)
    compiled = torch.compile(squeeze_ahead, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(h, weight, padding=1), squeeze_ahead(h, weight, padding=1))


@pytest.mark.parametrize(
    ("args", "conv", "says"),
    [
        (((2, 4, 5), (3, 4, 1, 1)), {}, "as many axes"),
        (((2, 4, 5, 5), (3, 2, 1, 1)), {}, "does not fit the 4 channels"),
        (((2, 4, 5, 5), (3, 4, 7, 7)), {}, "no position"),
        (((2, 4, 5, 5), (3, 4, 1, 1)), {"stride": (1, 2, 3)}, "2 spatial axes"),
    ],
)
def test_mistakes_are_named(args, conv, says):
    with pytest.raises(ValueError, match=says):
        squeeze_ahead(torch.zeros(args[0]), torch.zeros(args[1]), **conv)
