import pytest
import torch

from excite.ops import DESCRIPTORS, rescale, squeeze
from tolerances import PARITY

SHAPES = [(2, 3, 5), (3, 1, 7, 4), (1, 5, 1, 1), (2, 7, 3, 5, 2), (0, 4, 3, 3)]


def by_hand(u, descriptor):
    flat = u.double().flatten(2)
    return {
        "mean": lambda: flat.sum(-1) / flat.shape[-1],
        "max": lambda: flat.max(-1).values if flat.numel() else flat.sum(-1),
        "std": lambda: ((flat - flat.mean(-1, keepdim=True)) ** 2).mean(-1).sqrt(),
        "l2": lambda: (flat**2).sum(-1).sqrt(),
    }[descriptor]()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_each_descriptor_is_its_definition(shape, dtype):
    u = torch.randn(shape, dtype=torch.float64).to(dtype)
    for d in DESCRIPTORS:
        z = squeeze(u, (d,))
        assert z.shape == shape[:2] and z.dtype == dtype
        torch.testing.assert_close(z.double(), by_hand(u, d), **PARITY[dtype], msg=lambda m, d=d: f"{d}: {m}")


def test_several_descriptors_are_stacked_in_order():
    u = torch.randn(2, 3, 4, 5)
    z = squeeze(u, ("max", "mean"))
    assert z.shape == (2, 2, 3)
    assert torch.equal(z[:, 0], squeeze(u, ("max",))) and torch.equal(z[:, 1], squeeze(u))


def test_half_precision_sums_do_not_saturate():
    # 65504 is the largest float16: a half sum of 300 x 300 values of 30 would be infinite.
    u = torch.full((1, 2, 300, 300), 30.0, dtype=torch.float16)
    assert torch.equal(squeeze(u), torch.full((1, 2), 30.0, dtype=torch.float16))


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_gradients(descriptor):
    u = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: squeeze(u, (descriptor,)), u)


@pytest.mark.parametrize("descriptor", ["std", "l2"])
def test_a_constant_or_zero_map_has_a_finite_gradient(descriptor):
    u = torch.zeros(2, 3, 4, requires_grad=True)
    squeeze(u, (descriptor,)).sum().backward()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_rescale(dims):
    u, s = torch.randn(2, 3, *(4, 5, 2)[:dims]), torch.randn(2, 3)
    y = rescale(u, s)
    for n in range(2):
        for c in range(3):
            assert torch.equal(y[n, c], u[n, c] * s[n, c])


def test_rescale_keeps_channels_last_and_dtype():
    u = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    y = rescale(u, torch.rand(2, 3))
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: squeeze(torch.zeros(2, 3)), "1 to 3 spatial axes"),
        (lambda: squeeze(torch.zeros(2, 3, 0)), "without positions"),
        (lambda: squeeze(torch.zeros(2, 3, 4), ("maen",)), "did you mean 'mean'"),
        (lambda: squeeze(torch.zeros(2, 3, 4), "mean"), "give a tuple"),
        (lambda: squeeze(torch.zeros(2, 3, 4), ()), "give a tuple"),
        (lambda: rescale(torch.zeros(2, 3, 4), torch.zeros(3)), r"needs s of shape \(2, 3\)"),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
