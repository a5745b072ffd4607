"""Passes that begin at a gate: the same numbers as whole passes, and less work."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from planted import CHANNELS, in_batches, planted, planted_gate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from excite.analysis import knock_out, record_gates
from excite.analysis.resume import Resumer
from excite.analysis.taps import tapped
from excite.models import create_model
from excite.surgery import attach_


def lively(model):
    """With norms that let everything through, and statistics of their own."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def attached():
    model = torchvision.models.resnet18(num_classes=4)
    attach_(model, "se", torch.randn(1, 3, 32, 32), start="paper")
    return lively(model)


def attached_inside():
    """Gates that hang on modules before other gates in the same block."""
    model = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=4)
    attach_(model, "se", torch.randn(1, 3, 32, 32), where="inner", start="paper")
    attach_(model, "ese", torch.randn(1, 3, 32, 32), start="paper")
    return lively(model)


NETWORKS = {
    "planted": (planted, 5),
    "excite": (lambda: lively(create_model("resnet20", gate="se", num_classes=4)), 9),
    "attached": (attached, 8),
    "attached inside too": (attached_inside, 7),
    "timm, adding in place": (lambda: lively(timm.create_model("seresnet18", num_classes=4)), 8),
    "torchvision": (lambda: lively(torchvision.models.mobilenet_v3_small(num_classes=4)), 9),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_as_whole_passes(name):
    make, gates = NETWORKS[name]
    model = make()
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    x = torch.randn(3, channels, 32, 32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with tapped(model, x) as taps:
        taps.run(x)
        names = [place.name for place in taps.places]
        resumer = Resumer(taps.view, names, x)
        other = torch.randn(5, channels, 32, 32)  # as later batches: other images, and not as many
        with resumer.keeping():
            taps.run(other)
        assert len(names) == gates
        for site in names:
            put = {site: lambda s: s.flip(0) * 0.9 + 0.3}
            resumer.check(taps, site, other, put)
            assert resumer.can(site, other), "checked, and found right"
            whole, _ = taps.run(other, put)
            torch.testing.assert_close(resumer.run(taps, site, other, put), whole, rtol=1e-5, atol=1e-5)
            # What is handed out was not written over meanwhile.
            assert torch.equal(resumer.run(taps, site, other, put), resumer.run(taps, site, other, put))
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_less_work():
    model = NETWORKS["excite"][0]()
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    record = record_gates(model, in_batches(x, y, 2))
    with FlopCounterMode(display=False) as one, torch.no_grad():
        model(x)
    with FlopCounterMode(display=False) as all_of_them:
        knock_out(model, in_batches(x, y, 2), record)
    whole = one.get_total_flops() * (1 + 3 * len(record.sites))
    assert all_of_them.get_total_flops() < 0.65 * whole


class Sly(nn.Module):
    """Goes on with what a module wrote over, not with what it returned."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(5, CHANNELS, 1), nn.ReLU(inplace=True)
        self.gate, self.head = planted_gate("class"), nn.Linear(CHANNELS, 4)

    def forward(self, x):
        x = self.conv(x)
        self.relu(x)
        return self.head(self.gate(x).mean((2, 3)))


class Curious(Sly):
    """Decides by the numbers of a map that is not kept."""

    def forward(self, x):
        y = self.conv(x)
        scale = 2.0 if float(y.sum()) == float(y.sum()) else -1.0
        return self.head(self.gate(self.relu(y * scale)).mean((2, 3)))


@pytest.mark.parametrize("kind", [Sly, Curious])
def test_networks_that_do_not_go_by_what_modules_return(kind):
    torch.manual_seed(0)
    model = kind().eval()
    x, y = torch.randn(20, 5, 6, 6), torch.arange(20) % 4
    record = record_gates(model, in_batches(x, y, 5))
    found = knock_out(model, in_batches(x, y, 5), record, modes=["one"]).items[0]
    with torch.no_grad():
        gate, model.gate = model.gate, nn.Identity()
        expected = nn.functional.cross_entropy(model(x), y, reduction="none")
        model.gate = gate
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)


def test_only_so_much_is_kept():
    model = NETWORKS["excite"][0]()
    x = torch.randn(4, 3, 32, 32)
    with tapped(model, x) as taps:
        taps.run(x)
        names = [place.name for place in taps.places]
        late = [name for name in names if Resumer(taps.view, names, x, 300_000).can(name, x)]
        assert late == names[-len(late) :] and 0 < len(late) < len(names)
        resumer = Resumer(taps.view, names, x, 300_000)
        with resumer.keeping():
            taps.run(x)
        assert sum(t.numel() * 4 for t in resumer._kept.values()) <= 300_000
        none = Resumer(taps.view, names, x, 0)
        assert not any(none.can(name, x) for name in names)
        # Images of another size are run in full.
        assert not resumer.can(names[-1], torch.randn(4, 3, 48, 48))
        with none.keeping():
            taps.run(x)
        put = {names[3]: torch.ones_like}
        assert torch.equal(none.run(taps, names[3], x, put), taps.run(x, put)[0])
