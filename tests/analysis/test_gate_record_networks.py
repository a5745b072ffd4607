"""Gates of other libraries and of nobody's: what is recorded is what their own modules gave."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from planted import in_batches
from torch import nn

from excite.analysis import record_gates
from excite.analysis.taps import tapped


def own_scales(model, images, kind, of):
    """s by another way: what the gates' own last layers returned, copied at once."""
    seen = {}

    def hook(name):
        return lambda module, args, output: seen.update({name: output.detach().flatten(1).clone()})

    gates = [(name, m) for name, m in model.named_modules() if type(m).__name__ == kind]
    handles = [gate.get_submodule(of).register_forward_hook(hook(name)) for name, gate in gates]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


NETWORKS = {
    "timm:seresnet18": ("SEModule", "gate", 8, "se(reduced_channels=8)"),
    "timm:efficientnet_b0": ("SqueezeExcite", "gate", 16, "se(reduced_channels=8,activation=silu)"),
    "torchvision:mobilenet_v3_small": ("SqueezeExcitation", "scale_activation", 9, None),
    "torchvision:efficientnet_b0": ("SqueezeExcitation", "scale_activation", 16, None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_zoos_gates(name):
    kind, of, gates, text = NETWORKS[name]
    library, _, own = name.partition(":")
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    model = make(own, num_classes=5).eval()
    images, labels = torch.randn(6, 3, 64, 64), torch.arange(6) % 5
    expected = own_scales(model, images, kind, of)
    record = record_gates(model, in_batches(images, labels, 6))
    assert [site.name for site in record.sites] == list(expected) and len(expected) == gates
    for site in record.sites:
        # The very numbers: nothing is computed again, by other code or from a map that was written over.
        np.testing.assert_array_equal(site.sample, expected[site.name].numpy())
    assert text is None or record.sites[0].gate == text
    assert record.skipped == () and [s.stage for s in record.sites] == sorted(s.stage for s in record.sites)


class Signed(nn.Module):
    """Computes what no gate of excite does, by the written form that is asked for."""

    def __init__(self, how):
        super().__init__()
        self.fc, self.how = nn.Conv2d(6, 6, 1), how

    def forward(self, u):
        s = self.fc(u.mean((2, 3), keepdim=True)).square() * 3  # a product before the one that matters
        if self.how == "mul_":
            return u.mul_(s)
        if self.how == "reversed":
            return s * u
        if self.how == "expanded":
            return u * s.expand_as(u)
        if self.how == "flat":
            return torch.mul(u, s.flatten(1)[:, :, None, None])
        return u * s


class InPlace(nn.Module):
    """Writes over what its gate returns, and over what the gate took."""

    def __init__(self, gate):
        super().__init__()
        self.conv, self.gate, self.relu = nn.Conv2d(3, 6, 1), gate, nn.ReLU(inplace=True)
        nn.init.zeros_(self.conv.bias)
        with torch.no_grad():
            self.conv.weight[0] = 0  # a channel whose values tell nothing of s

    def forward(self, x):
        u = self.conv(x)
        shortcut = u.clone()
        y = self.gate(u)
        y += shortcut
        y = self.relu(y)
        if y is not u:
            u.zero_()
        return y.mean((2, 3))


@pytest.mark.parametrize("size", [5, 1], ids=["maps", "maps of one position"])
@pytest.mark.parametrize("how", ["mul", "mul_", "reversed", "expanded", "flat"])
def test_a_gate_of_no_library(how, size):
    model = InPlace(Signed(how)).eval()
    x = torch.randn(4, 3, size, size)
    with torch.no_grad():
        u = model.conv(x)
        expected = model.gate.fc(u.mean((2, 3), keepdim=True)).square().flatten(1) * 3
        output = model(x)
    record = record_gates(model, in_batches(x, torch.arange(4)))
    (site,) = record.sites
    assert site.name == "gate" and site.gate == "Signed" and site.channels == 6
    np.testing.assert_allclose(site.sample, expected, rtol=1e-6)
    with tapped(model, x) as taps:
        again, _ = taps.run(x, {"gate": lambda s: s})
        ones, _ = taps.run(x, {"gate": torch.ones_like})
        rows, seen = taps.run(x, {"gate": lambda s: s.flip(0)})
    assert torch.equal(again, output)
    torch.testing.assert_close(ones, (2 * u).relu().mean((2, 3)))
    torch.testing.assert_close(rows, (u * expected.flip(0)[:, :, None, None] + u).relu().mean((2, 3)))
    np.testing.assert_allclose(seen["gate"], expected, rtol=1e-6)


class Twice(nn.Module):
    """One gate that runs twice, one that does not run, and one between modules."""

    def __init__(self):
        super().__init__()
        self.gate = timm.layers.SEModule(8, rd_ratio=0.5)
        self.idle = timm.layers.SEModule(8)

    def forward(self, x):
        y = self.gate(x)
        y = self.gate(y + 1)
        z = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        return z.mean((2, 3))


def test_one_gate_that_runs_twice():
    model = Twice().eval()
    x = torch.randn(3, 8, 4, 4)
    record = record_gates(model, in_batches(x, torch.arange(3)))
    assert [site.name for site in record.sites] == ["gate", "gate#2"]
    assert record.skipped == (("", "it is computed between modules"),)
    with torch.no_grad():
        scale = lambda u: torch.sigmoid(model.gate.fc2(model.gate.fc1(u.mean((2, 3), keepdim=True)).relu()))  # noqa: E731
        first = scale(x)
        second = scale(x * first + 1)
    np.testing.assert_allclose(record.sites[0].sample, first.flatten(1), rtol=1e-5)
    np.testing.assert_allclose(record.sites[1].sample, second.flatten(1), rtol=1e-5)


@pytest.mark.slow
def test_a_compiled_network():
    model = timm.create_model("seresnet18", num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    record = record_gates(compiled, in_batches(x, torch.arange(2)))
    expected = own_scales(model, x, "SEModule", "gate")
    np.testing.assert_allclose(record.sites[3].sample, expected[record.sites[3].name], rtol=1e-6)


def test_half_precision():
    model = timm.create_model("seresnet18", num_classes=5).eval().bfloat16()
    x = torch.randn(3, 3, 32, 32)
    record = record_gates(model, in_batches(x, torch.arange(3)))
    expected = own_scales(model, x.bfloat16(), "SEModule", "gate")
    np.testing.assert_array_equal(record.sites[0].sample, expected[record.sites[0].name].float())


class Shifting(nn.Module):
    """Writes over a part of the map that its gate takes."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 8, 1), timm.layers.SEModule(8, rd_ratio=0.5)

    def forward(self, x):
        u = self.conv(x)
        u[:, :2] = 0
        return self.gate(u).mean((2, 3))


def test_a_map_that_was_written_in_part():
    model, x = Shifting().eval(), torch.randn(3, 3, 4, 4)
    record = record_gates(model, in_batches(x, torch.arange(3)))
    expected = own_scales(model, x, "SEModule", "gate")["gate"]
    np.testing.assert_array_equal(record.sites[0].sample, expected)
