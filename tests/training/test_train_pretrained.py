"""Starting from weights that were trained elsewhere: what is taken, what stays fresh, and what is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from training_cases import tiny_config, tiny_data, weights

from excite.checkpoint import read_checkpoint
from excite.errors import UserError
from excite.experiment import CompareConfig, compare
from excite.models import create_model
from excite.surgery import attached, verify
from excite.training import train
from excite.training.pretrained import start_from
from excite.training.run import build_network

NAME = "timm:test_resnet"


@pytest.fixture(scope="module")
def data():
    return tiny_data(size=32)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A network of timm's for other classes, its norms as training leaves them, and the file of its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=7, in_chans=1)
        for _ in range(3):
            model(torch.randn(8, 1, 32, 32))
        for name, tensor in model.named_parameters():
            if name.endswith("bn2.weight"):
                nn.init.uniform_(tensor, 0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "pretrained.safetensors"
    save_file(model.state_dict(), path)
    return model.eval(), str(path)


def features(model, x):
    with torch.no_grad():
        return model.eval().forward_features(x)


@pytest.mark.parametrize("gate", ["none", "se", "eca"])
def test_a_gated_network_starts_as_the_pretrained_one(tmp_path, data, pretrained, gate):
    theirs, path = pretrained
    config = tiny_config(tmp_path, model=NAME, gate=gate, weights=path)
    spec, ours, _ = build_network(config, data)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(features(ours, x), features(theirs, x))
    assert spec.gate == ("none" if gate == "none" else f"{gate}(neutral=true)")
    assert len(attached(ours)) == (0 if gate == "none" else 4)
    assert ours.fc.out_features == len(data.classes)


def test_start_paper_halves_and_neutral_needs_no_weights(tmp_path, data, pretrained):
    theirs, path = pretrained
    x = torch.randn(2, 1, 32, 32)
    _, halved, _ = build_network(tiny_config(tmp_path, model=NAME, gate="se", weights=path, start="paper"), data)
    assert not torch.allclose(features(halved, x), features(theirs, x), rtol=0.01)
    config = tiny_config(tmp_path, model="resnet20", gate="eca", start="neutral")
    spec, fresh, _ = build_network(config, data)
    _, plain, _ = build_network(tiny_config(tmp_path, model="resnet20"), data)
    assert spec.gate == "eca(neutral=true)"
    assert torch.equal(features(fresh, x), features(plain, x))


def test_fine_tuning_trains_old_weights_and_gates(tmp_path, data, pretrained):
    theirs, path = pretrained
    run = train(tiny_config(tmp_path / "run", model=NAME, gate="se", weights=path, epochs=1), data=data)
    state, old = weights(run), theirs.state_dict()
    assert not torch.equal(state["layer1.0.conv1.weight"], old["layer1.0.conv1.weight"])
    gates = [key for key in state if key.endswith("excite_gate.fc2.weight")]
    assert len(gates) == 4 and all(state[key].abs().max() > 0 for key in gates)
    loaded = read_checkpoint(tmp_path / "run" / "last.safetensors").load()
    assert len(verify(loaded)) == 4
    assert run.config["weights"] == path and run.config["gate"] == "se"


def test_comparison_fine_tunes_each_gate(tmp_path, data, pretrained):
    _, path = pretrained
    config = CompareConfig(
        data="tiny", model=NAME, weights=path, gates="none,se", seeds=2, epochs=1, batch_size=16, measure=False,
        out=str(tmp_path / "compare"), accelerator="cpu",
    )  # fmt: skip
    comparison = compare(config, data=data)
    assert [gate.gate for gate in comparison.gates] == ["none", "se"]
    assert comparison.gates[1].parameters > comparison.gates[0].parameters
    assert any("90 tensors from" in note for note in comparison.notes)
    assert any("start neutral" in note for note in comparison.notes)


def test_own_networks_take_any_zoos_weights(tmp_path):
    with torch.random.fork_rng():
        theirs = timm.create_model("resnet18", num_classes=10)
        ours = create_model("resnet18", gate="eca(neutral=true)", num_classes=3)
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    said = start_from(ours, tmp_path / "resnet18.safetensors", num_classes=3, gates_may_be_fresh=False)
    assert "stay fresh" in said
    assert torch.equal(ours.layer2[0].conv1.weight, theirs.layer2[0].conv1.weight)
    gated = create_model("resnet18", gate="se", num_classes=10)
    with pytest.raises(UserError, match="neutral=true"):
        start_from(gated, tmp_path / "resnet18.safetensors", num_classes=10, gates_may_be_fresh=False)
    start_from(gated, tmp_path / "resnet18.safetensors", num_classes=10, gates_may_be_fresh=True)
    assert torch.equal(gated.fc.weight, theirs.fc.weight)


def small(num_classes=3, in_channels=1):
    """A network whose every name begins as a wrapper's would."""
    net = nn.Sequential()
    net.add_module("model", nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes)))
    net(torch.zeros(1, in_channels, 8, 8))
    return net


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "model.0.bias"}, "has no 'model.0.bias'"),
        (lambda s: s | {"model.9.weight": torch.ones(1)}, "1 of its tensors are not the network's, 'model.9.weight'"),
        (lambda s: s | {"model.0.weight": torch.ones(4, 3, 3, 3)}, r"is \(4, 3, 3, 3\) in the file, \(4, 1, 3, 3\)"),
        (lambda s: {}, "no|empty"),
    ],
)
def test_another_networks_weights_are_refused_and_nothing_changes(tmp_path, change, message):
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = tmp_path / "w.safetensors"
    save_file(change(small().state_dict()), path)
    with pytest.raises(UserError, match=message):
        start_from(model, path, num_classes=3, gates_may_be_fresh=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_names_of_the_users_own_are_not_taken_for_a_wrappers(tmp_path):
    theirs, model = small(num_classes=5), small()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    said = start_from(model, tmp_path / "w.safetensors", num_classes=3, gates_may_be_fresh=False)
    assert torch.equal(model.model[0].weight, theirs.model[0].weight) and "2 stay fresh" in said


def test_gates_without_a_neutral_form_are_named(tmp_path, data, pretrained):
    config = tiny_config(tmp_path, model=NAME, gate="se_var1", weights=pretrained[1])
    with pytest.raises(UserError, match="weights are given, so gates start neutral, but gate 'se_var1' has no neutral"):
        build_network(config, data)
