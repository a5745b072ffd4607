"""Slimmed networks as checkpoints, and the verb that makes them."""

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn

from excite.checkpoint import read_checkpoint, save_checkpoint
from excite.cli import main
from excite.data import array_data_set
from excite.deploy import fold_gates_
from excite.deploy.slim_run import SlimConfig, slim_checkpoint
from excite.errors import UserError
from excite.gates import SE
from excite.models.base import gate_modules
from excite.networks import NetworkSpec, build, seeded
from excite.surgery import attach_, attached
from excite.surgery.constants import ChannelScale, Slimmed, slim_at_, slimmed
from excite.weights import load_weights

CLASSES = ("dark", "light")


def network(name, seed=0, **fields):
    spec = NetworkSpec(name, num_classes=2, **fields)
    with seeded(seed):
        return spec, build(spec).eval()


def constants_of(model, names=None):
    """A constant for each gate, of ``excite``'s or attached."""
    gates = {name: gate for name, gate in gate_modules(model).items() if names is None or name in names}
    return {name: torch.rand(gate.channels) + 0.2 for name, gate in gates.items()}


def saved(path, model, spec, size=32):
    preprocessing = {"image_size": size, "in_channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    return save_checkpoint(path, model, spec=spec, classes=CLASSES, preprocessing=preprocessing, metrics={})


def assert_comes_back(path, model, spec, x):
    checkpoint = read_checkpoint(saved(path, model, spec))
    again = checkpoint.load()
    assert list(checkpoint.slimmed) == slimmed(model) == slimmed(again) and attached(again) == attached(model)
    assert list(again.state_dict()) == list(model.state_dict()) and str(again) == str(model)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    # Once more, from what was loaded.
    assert read_checkpoint(saved(path, again, spec)).slimmed == checkpoint.slimmed


@pytest.mark.parametrize("placement", ["standard", "post"])
@pytest.mark.parametrize("some", [True, False])
def test_a_network_of_excite_comes_back(tmp_path, placement, some):
    spec, model = network("resnet20", gate="se", placement=placement)
    names = ["layer1.1.gate", "layer2.0.gate"] if some else None
    x = torch.randn(2, 3, 32, 32)
    done = fold_gates_(model, constants_of(model, names), x)
    assert any(not gate.folded for gate in done) == (placement == "post")
    assert_comes_back(tmp_path / "slim.safetensors", model, spec, x)


@pytest.mark.parametrize("some", [True, False])
def test_a_network_with_attached_gates_comes_back(tmp_path, some):
    # All folded, none is attached again, although the spec names a gate.
    spec, model = network("torchvision:resnet18", gate="se", placement="post")
    x = torch.randn(2, 3, 64, 64)
    names = [next(iter(gate_modules(model)))] if some else None
    done = fold_gates_(model, constants_of(model, names), x)
    assert any(not gate.folded for gate in done)
    assert_comes_back(tmp_path / "slim.safetensors", model, spec, x)
    spec, model = network("torchvision:resnet18", gate="se")
    fold_gates_(model, constants_of(model), x)
    assert attached(model) == [] and str(model) == str(network("torchvision:resnet18")[1])
    assert_comes_back(tmp_path / "slim.safetensors", model, spec, x)


def test_gates_attached_by_hand_come_back(tmp_path):
    spec, model = network("torchvision:resnet18")
    x = torch.randn(2, 3, 64, 64)
    attach_(model, "se", x, stages=(2, 3))
    fold_gates_(model, constants_of(model, ["layer2.0.bn2.excite_gate"]), x)
    assert len(attached(model)) == 3
    assert_comes_back(tmp_path / "slim.safetensors", model, spec, x)


def test_gates_of_other_libraries_come_back(tmp_path):
    spec, model = network("timm:mobilenetv3_small_050")
    x = torch.randn(2, 3, 64, 64)
    se = {name: m for name, m in model.named_modules() if type(m).__name__ == "SqueezeExcite"}
    widths = {name: m.conv_expand.out_channels for name, m in se.items()}
    fold_gates_(model, {name: torch.rand(width) + 0.1 for name, width in list(widths.items())[::2]}, x)
    assert len(slimmed(model)) == len(list(widths)[::2])
    assert_comes_back(tmp_path / "slim.safetensors", model, spec, x)


def test_all_gates_folded_the_file_loads_into_the_plain_network(tmp_path):
    spec, model = network("se_resnet20")
    x = torch.randn(2, 3, 32, 32)
    fold_gates_(model, constants_of(model), x)
    path = saved(tmp_path / "slim.safetensors", model, spec)
    _, plain = network("resnet20", seed=1)
    load_weights(plain, path)
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))


def test_what_became_of_gates_is_copied_and_pickled_and_trained_on():
    _, model = network("resnet20", gate="se", placement="post")
    x = torch.randn(4, 3, 32, 32)
    fold_gates_(model, constants_of(model), x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert slimmed(twin) == slimmed(model)
    name, left = next((name, m) for name, m in model.named_modules() if isinstance(m, ChannelScale))
    before = left.scale.detach().clone()
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(left.scale, before)
    model.get_submodule(name.removesuffix(".gate")).gate = SE(left.channels)
    assert name not in [item.name for item in slimmed(model)]


def test_a_record_of_gates_that_are_not_there():
    _, model = network("resnet20")
    with pytest.raises(UserError, match="unknown gate 'layer1.0.gate'"):
        slim_at_(model, [Slimmed("layer1.0.gate", 16, 2, folded=True)])
    slim_at_(model, [Slimmed("layer1.0.bn1.excite_gate", 16, 2, folded=True)])
    assert str(model) == str(network("resnet20")[1])


def test_constants_on_maps_of_one_axis():
    make = partial(nn.Sequential, nn.Conv1d(3, 4, 3), nn.SiLU(), SE(4, 2), nn.Sigmoid())
    model, again = make().eval(), make().eval()
    x = torch.randn(2, 3, 9)
    (done,) = fold_gates_(model, {"2": torch.rand(4)}, x)
    assert not done.folded
    slim_at_(again, slimmed(model))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


# --- the verb ---


def pictures(n, seed):
    """n dark and light squares in turn, uint8 [n, 3, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = 60 + 100 * labels[:, None, None, None] + torch.randint(0, 60, (n, 3, 16, 16), generator=generator)
    return images.to(torch.uint8), labels


@pytest.fixture
def checkpoint(tmp_path):
    spec, model = network("resnet20", gate="se", stages=(2, 3))
    return saved(tmp_path / "run" / "last.safetensors", model, spec, size=16)


def config(checkpoint, **fields):
    return SlimConfig(**{"checkpoint": str(checkpoint), "max_drop": 90, "rounds": 0, "progress": False} | fields)


def test_a_checkpoint_is_slimmed(checkpoint):
    data = array_data_set("squares", CLASSES, pictures(40, 1), pictures(20, 2))
    run = slim_checkpoint(config(checkpoint, calibration=24), data=data)
    assert run.model_path == checkpoint.parent / "slim" / "slimmed.safetensors"
    report = json.loads(run.report_path.read_text())
    assert report["calibration"]["images"] == 24 and report["proof"]["images"] == 20
    assert report["settings"]["max_drop"] == 90 and report["finding"] == run.result.report.finding
    again = read_checkpoint(run.model_path)
    assert again.metrics["val_top1"] == report["proof"]["after"] and again.extra["slim"] == report["finding"]
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.load()(x), run.result.model(x))


def test_calibration_images_are_drawn_from_all_of_the_split(checkpoint, tmp_path, monkeypatch):
    """Folders hold their images class by class: the first so many would be of one class."""

    class Seen(Exception):
        pass

    def seen(model, calibration, validation, **options):
        raise Seen([batch.labels for batch in calibration], [batch.labels for batch in validation])

    monkeypatch.setattr("excite.deploy.slim_run.slim", seen)
    images, labels = pictures(40, 1)
    order = labels.argsort()
    data = array_data_set("squares", CLASSES, (images[order], labels[order]), (images, labels))
    config = SlimConfig(
        checkpoint=str(checkpoint), max_drop=1.0, calibration=20, batch_size=8, workers=0, out=str(tmp_path / "out")
    )
    with pytest.raises(Seen) as caught:
        slim_checkpoint(config, data=data)
    calibration, validation = (torch.cat(part) for part in caught.value.args)
    assert len(calibration) == 20 and set(calibration.tolist()) == {0, 1}
    assert torch.equal(validation, labels)


def test_the_command(checkpoint, tmp_path, capsys):
    for which, n in (("train", 12), ("val", 8)):
        images, labels = pictures(n, 1)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = tmp_path / "pictures" / which / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    asked = ["slim", str(checkpoint.parent), "--data", f"folder:{tmp_path / 'pictures'}", "--max-drop", "80"]
    asked += ["--out", str(tmp_path / "out"), "--rounds", "1", "--calibration", "8", "--progress", "false"]
    assert main([*asked, "--workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "gates         6: 6 folded, 0 left as a multiplication, 0 kept" in shown
    assert str(tmp_path / "out" / "slimmed.safetensors") in shown and "MACs" in shown and "ratio" in shown
    assert not gate_modules(read_checkpoint(tmp_path / "out" / "slimmed.safetensors").load())
    assert main([*asked, "--workers", "0", "--json", "--rounds", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["latency"] is None


def test_mistakes_of_the_command(checkpoint, tmp_path, capsys):
    assert main(["slim", str(checkpoint)]) == 2
    assert "max_drop" in capsys.readouterr().err
    for wrong, said in [
        ({"max_drop": -1}, "max_drop=-1"),
        ({"max_drop": 100}, "max_drop=100"),
        ({"level": 0.4}, "level=0.4"),
        ({"calibration": 0}, "calibration=0"),
        ({"rounds": -1}, "rounds=-1"),
    ]:
        with pytest.raises(UserError, match=said):
            config(checkpoint, **wrong)
    data = array_data_set("squares", CLASSES, pictures(8, 1), pictures(8, 2))
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken' is a file"):
        slim_checkpoint(config(checkpoint, out=str(tmp_path / "taken")), data=data)
    with pytest.raises(UserError, match="cannot be written: .*taken is a file"):
        slim_checkpoint(config(checkpoint, out=str(tmp_path / "taken" / "below")), data=data)
    spec, plain = network("resnet20")
    with pytest.raises(UserError, match="has no gate"):
        slim_checkpoint(config(saved(tmp_path / "plain.safetensors", plain, spec, size=16)), data=data)
