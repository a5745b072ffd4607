"""Networks by name: paired initialisation, other libraries' networks, the user's own, and what is refused."""

import json
import random
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from excite.errors import UserError
from excite.gates import Gate, GateConfig, SEConfig, list_gates
from excite.models import PLACEMENTS
from excite.networks import NetworkSpec, build, seeded
from excite.surgery import attached

TINY = {"name": "resnet20", "num_classes": 3, "in_channels": 1}


def shared(model):
    return {key: value for key, value in model.state_dict().items() if ".gate." not in key}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


# --- pairing ---


@pytest.mark.parametrize("gate", [*list_gates(), "se(reduction=2,bias=false)"])
def test_shared_weights_depend_on_the_seed_alone(gate):
    plain = build(NetworkSpec(**TINY), seed=5)
    gated = build(NetworkSpec(**TINY, gate=gate), seed=5)
    assert_same(shared(gated), plain.state_dict())
    # SE-Var1 has no parameters: its gates are there all the same.
    assert str(gated.layer1[0].gate.config) == gate


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_shared_weights_depend_on_no_placement_either(placement):
    plain = build(NetworkSpec(**TINY), seed=1)
    gated = build(NetworkSpec(**TINY, gate="se", placement=placement, stages=(2,)), seed=1)
    assert_same(shared(gated), plain.state_dict())


def test_a_seed_fixes_everything_and_another_changes_everything():
    spec = NetworkSpec(**TINY, gate="se")
    first, again, other = build(spec, seed=3), build(spec, seed=3), build(spec, seed=4)
    assert_same(first.state_dict(), again.state_dict())
    for key, value in first.named_parameters():
        drawn = value.dim() > 1 or "bn" not in key
        assert torch.equal(value, other.get_parameter(key)) != drawn, key


def test_gates_do_not_repeat_the_plain_networks_numbers():
    with seeded(0):
        first_draws = torch.rand(4096)
    gated = build(NetworkSpec(**TINY, gate="se"), seed=0)
    weight = gated.layer3[0].gate.fc1.weight
    bound = weight.shape[1] ** -0.5
    uniform = (weight.flatten() / bound + 1) / 2
    assert (first_draws[:, None] - uniform[None, :16]).abs().min(0).values.max() > 1e-6


def test_global_random_states_do_not_move():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    build(NetworkSpec(**TINY, gate="se"), seed=11)
    build(NetworkSpec("timm:resnet10t", num_classes=2), seed=11)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[2], strict=True))


def test_without_a_seed_the_global_state_draws():
    torch.manual_seed(9)
    first, second = build(NetworkSpec(**TINY)), build(NetworkSpec(**TINY))
    torch.manual_seed(9)
    again = build(NetworkSpec(**TINY))
    assert_same(first.state_dict(), again.state_dict())
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


def test_seeded_networks_are_real_even_where_the_default_device_is_not():
    with torch.device("meta"):
        assert build(NetworkSpec(**TINY, gate="eca"), seed=0).conv1.weight.device.type == "cpu"
        assert build(NetworkSpec(**TINY, gate="eca")).conv1.weight.is_meta


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True])
def test_impossible_seeds(seed):
    with pytest.raises(UserError, match="seed="):
        build(NetworkSpec(**TINY), seed=seed)


class OneConfig(GateConfig):
    """A gate without a text of its own: s = 1."""

    name = "one"

    def build(self, channels):
        class One(Gate):
            def excite(self, z):
                return torch.ones_like(z)

        return One(channels, self)


def test_a_gate_may_be_given_in_place_of_the_specs():
    plain = build(NetworkSpec(**TINY), seed=2).eval()
    gated = build(NetworkSpec(**TINY, gate="se"), seed=2, gate=OneConfig()).eval()
    assert_same(gated.state_dict(), plain.state_dict())
    x = torch.randn(2, 1, 12, 12)
    assert torch.equal(gated(x), plain(x))
    by_config = build(NetworkSpec(**TINY), seed=2, gate=SEConfig(reduction=8))
    assert_same(by_config.state_dict(), build(NetworkSpec(**TINY, gate="se(reduction=8)"), seed=2).state_dict())


# --- specs ---


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec("resnet20"),
        NetworkSpec("resnet50", "se(reduction=8,bias=false)", "pre", (2, 3), "official", 7, 1),
        NetworkSpec("resnet20", "eca", options={"shortcut": "B", "zero_init_last_norm": True}),
        NetworkSpec("timm:resnet10t", options={"drop_rate": 0.1}),
        NetworkSpec("tests.nets:make", options={"widths": (1, 2)}),
    ],
)
def test_specs_survive_json(spec):
    text = json.dumps(spec.to_dict())
    assert NetworkSpec.from_dict(json.loads(text)) == spec


def test_specs_of_the_same_network_are_equal():
    assert NetworkSpec("se_resnet50") == NetworkSpec("resnet50", gate="se(reduction=16)")
    assert NetworkSpec("resnet50") == NetworkSpec("resnet50", gate="none", stages=None)
    assert NetworkSpec("resnet50", "eca", stages=[1, 2]) == NetworkSpec("eca_resnet50", stages=(1, 2))
    assert NetworkSpec("resnet50").gate == "none"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "resnt50"}, "did you mean 'resnet50'"),
        ({"name": "resnet50", "gate": "see"}, "did you mean 'se'"),
        ({"name": "se_resnet50", "gate": "none"}, "already says gate 'se'"),
        ({"name": "timm:resnet18", "variant": "official"}, "variant='official' is for networks of excite"),
        ({"name": "timm:resnet18", "options": {"checkpoint_path": "x"}}, "'checkpoint_path' reads weights"),
        ({"name": "torchvision:resnet18", "options": {"weights": "DEFAULT"}}, "'weights' reads weights"),
        ({"name": "resnet18", "options": {"num_classes": 3}}, "'num_classes' is a field"),
        ({"name": "resnet18", "options": {"x": object()}}, "JSON-able"),
    ],
)
def test_mistaken_specs(fields, message):
    with pytest.raises(UserError, match=message):
        NetworkSpec(**fields)


def test_mistaken_fields_of_a_file():
    with pytest.raises(UserError, match="did you mean 'placement'"):
        NetworkSpec.from_dict({"name": "resnet18", "placment": "pre"})
    with pytest.raises(UserError, match="needs a name"):
        NetworkSpec.from_dict({"gate": "se"})


def test_unknown_options_are_named_when_building():
    with pytest.raises(UserError, match="did you mean 'shortcut'"):
        build(NetworkSpec("resnet20", options={"shortcuts": "A"}))


# --- networks that are not ours ---


def test_torchvisions_networks():
    ours = build(NetworkSpec("torchvision:resnet18", num_classes=5), seed=0)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=5)
    assert_same(ours.state_dict(), theirs.state_dict())
    with pytest.raises(UserError, match="takes 3 channels, not 1"):
        build(NetworkSpec("torchvision:resnet18", in_channels=1))
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build(NetworkSpec("torchvision:resnet19"))
    with pytest.raises(UserError, match="does not take .*blocks=3"):
        build(NetworkSpec("torchvision:resnet18", options={"blocks": 3}))


def test_timms_networks():
    network = build(NetworkSpec("timm:resnet10t", num_classes=5, in_channels=1, options={"drop_rate": 0.5}), seed=0)
    assert isinstance(network, timm.models.resnet.ResNet) and network.drop_rate == 0.5
    assert network.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 5)
    with pytest.raises(UserError, match="did you mean 'seresnet50'"):
        build(NetworkSpec("timm:seresnet5O"))
    with pytest.raises(UserError, match="does not take .*depth=3"):
        build(NetworkSpec("timm:resnet10t", options={"depth": 3}))


NETS = """
from torch import nn

def make(num_classes, in_channels, *, width=4):
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.Flatten(), nn.LazyLinear(num_classes))

def broken(num_classes, in_channels):
    return [num_classes][in_channels + "x"]

def nothing(num_classes, in_channels):
    return None
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the user's in the working directory, which is not on the path."""
    (tmp_path / "users_nets.py").write_text(NETS)
    (tmp_path / "users_broken.py").write_text("import a_module_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("users_nets", None)


def test_a_function_of_the_users(nets):
    spec = NetworkSpec("users_nets:make", num_classes=5, in_channels=2, options={"width": 3})
    first, again = build(spec, seed=1), build(spec, seed=1)
    assert isinstance(first, nn.Sequential) and first[0].weight.shape == (3, 2, 3, 3)
    assert torch.equal(first[0].weight, again[0].weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("users_nets:mke", "did you mean 'make'"),
        ("users_nest:make", "cannot import 'users_nest'"),
        ("users_broken:make", "a_module_that_is_not_there"),
        ("users_nets:nothing", "it returned NoneType"),
        ("users_nets:broken", "does not take num_classes=1000, in_channels=3"),
    ],
)
def test_mistaken_functions(nets, name, message):
    with pytest.raises(UserError, match=message):
        build(NetworkSpec(name))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_is_named_with_its_install_command(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"pip install {library}"):
        build(NetworkSpec(f"{library}:resnet18"))


def test_other_networks_take_no_impl():
    with pytest.raises(UserError, match="no network of excite"):
        build(NetworkSpec("timm:resnet10t"), impl="fused")


@pytest.mark.parametrize(
    ("name", "placement", "hosts"),
    [
        ("timm:resnet10t", "standard", ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2", "layer4.0.bn2"]),
        ("torchvision:resnet18", "post", [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]),
        ("timm:resnet10t", "block:layer?.0.conv1", [f"layer{stage}.0.conv1" for stage in (1, 2, 3, 4)]),
    ],
)
def test_gates_are_attached_to_other_networks(name, placement, hosts):
    spec = NetworkSpec(name, "se", placement, num_classes=3)
    gated, plain = build(spec, seed=1), build(NetworkSpec(name, num_classes=3), seed=1)
    assert [item.module for item in attached(gated)] == hosts
    assert {item.gate for item in attached(gated)} == {"se"}
    own = gated.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in plain.state_dict().items())
    again = build(spec, seed=1).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in own.items())
    elsewhere = build(NetworkSpec(name, num_classes=3), attached=[item.to_dict() for item in attached(gated)])
    assert elsewhere.state_dict().keys() == own.keys()


def test_a_network_without_places_for_gates_says_so():
    with pytest.raises(UserError, match="the network has no residual additions; where='conv'"):
        build(NetworkSpec("torchvision:vgg11_bn", "se"))
    with pytest.raises(UserError, match=r"stages=\(7,\): this network has stages 1 to 4"):
        build(NetworkSpec("timm:resnet10t", "se", stages=(7,)))
