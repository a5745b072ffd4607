"""classification_models' Keras files: as its own networks are saved by Keras, and damaged or other ones made here."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm.models.senet as timm_senet
import torch
from torch import nn
from weight_cases import unwritten

from excite.errors import UserError
from excite.gates import SEConfig
from excite.models import create_model
from excite.models.resnet import Bottleneck, ResNet, ResNetOptions
from excite.models.resnext import ResNeXt, ResNeXtOptions
from excite.models.senet import SENet, SENetOptions
from excite.weights import detect, load_weights
from tolerances import PEER_SCALED

# --- the package's networks ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with networks as Keras saved them, their images and their outputs."""
    folder = tmp_path_factory.mktemp("keras")
    # A home of its own: what a user set for Keras is no part of this, and nothing is left in it.
    environment = os.environ | {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu", "KERAS_HOME": str(folder)}
    program = [sys.executable, Path(__file__).with_name("keras_peer.py"), folder]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield folder
    for file in folder.iterdir():  # half a GB, which pytest would keep for three runs
        file.unlink()


def same_outputs(model, folder, name):
    """Whether a network of ours, in float64, gives the softmax that the Keras network gave in float32."""
    with np.load(folder / f"{name}.npz") as kept:
        x, expected = (torch.from_numpy(kept[key]).double() for key in ("images", "outputs"))
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.max(), "the images are not told apart"
    with torch.no_grad():
        y = model(x.permute(0, 3, 1, 2)).softmax(-1)
    return bool((y - expected).abs().max() <= PEER_SCALED[torch.float32] * expected.max())


SAVED = {
    "seresnet50": "create_model('resnet50', gate='se', num_classes=10, stride_in='1x1', stem_pool='padded')",
    "seresnext50": "create_model('resnext50_32x4d', gate='se', num_classes=10, stem_pool='padded')",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_whole_networks_that_keras_saved(name, saved):
    """Found by their structure alone; the second's layers go on counting where the first's ended."""
    path = saved / f"{name}.h5"
    found = detect(path)
    assert str(found) == SAVED[name]
    model = unwritten(partial(create_model, **found.arguments))
    report = load_weights(model, path)
    assert same_outputs(model, saved, name)
    assert report.source == "classification_models" and not report.unused and not report.missing
    assert report.renamed["fc.weight"] == ("dense/kernel" if name == "seresnet50" else "dense_1/kernel")
    convs = [key for key, value in model.state_dict().items() if value.dim() >= 2]
    assert sorted(report.transposed) == sorted(convs)
    assert set(report.reshaped) == {key for key in convs if ".gate." in key}
    assert any("pool with padding" in note for note in report.notes)


@pytest.mark.slow
def test_a_cut_senet154_that_keras_saved(saved):
    path = saved / "senet154.h5"
    with h5py.File(path) as file:
        assert "layer_names1" in file["model_weights"].attrs, "one attribute holds all names: this tests less"
    options = SENetOptions(stem_pool="padded")
    model = unwritten(partial(SENet, (1, 7, 12, 1), gate=SEConfig(), options=options, num_classes=10))
    report = load_weights(model, path)
    assert same_outputs(model, saved, "senet154") and not report.unused and not report.missing


@pytest.mark.slow
@pytest.mark.parametrize("options", [("1x1", "ceil"), ("3x3", "padded")], ids=str)
def test_a_moved_stride_or_pool_is_refused_and_would_show(options, saved):
    path = saved / "seresnet50.h5"
    right, moved = (
        unwritten(
            partial(create_model, "resnet50", gate="se", num_classes=10, stride_in=stride_in, stem_pool=stem_pool)
        )
        for stride_in, stem_pool in (("1x1", "padded"), options)
    )
    load_weights(right, path)
    with pytest.raises(UserError, match="the same shapes, another function"):
        load_weights(moved, path)
    moved.load_state_dict(right.state_dict())
    assert same_outputs(right, saved, "seresnet50") and not same_outputs(moved, saved, "seresnet50")


@pytest.mark.slow
def test_weights_as_keras_3_saves_them_alone_are_refused(saved):
    with pytest.raises(UserError, match="whose own names for layers are not read here; save the model whole"):
        detect(saved / "seresnet50.weights.h5")


# --- files made here: as Keras 2 wrote them, damaged ones, and others ---

DEPTHS = (1, 2, 1, 1)
OPTIONS = ResNetOptions("1x1", "padded")


def peer():
    """The network that the Keras one is a port of."""
    return timm_senet.SENet(timm_senet.SEResNetBottleneck, DEPTHS, 1, 16, num_classes=10)


def ours(options=OPTIONS, num_classes=10):
    return ResNet(Bottleneck, DEPTHS, gate=SEConfig(), options=options, num_classes=num_classes)


class KerasFile:
    """Layers in the order in which the code of classification_models makes them, named as Keras counts them."""

    def __init__(self, start=0):
        self.start = start
        self.counts: dict[str, int] = {}
        self.layers: list[tuple[str, dict[str, np.ndarray]]] = []

    def add(self, kind, tensors):
        number = self.counts.get(kind, self.start)
        self.counts[kind] = number + 1
        self.layers.append((f"{kind}_{number}" if number else kind, {k: v.numpy() for k, v in tensors.items()}))

    def conv(self, conv):
        bias = {} if conv.bias is None else {"bias": conv.bias.detach()}
        self.add("conv2d", {"kernel": conv.weight.detach().permute(2, 3, 1, 0).contiguous(), **bias})

    def norm(self, norm):
        values = (norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var)
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        self.add("batch_normalization", dict(zip(names, values, strict=True)))

    def network(self, model, head=True):
        self.conv(model.layer0.conv1)
        self.norm(model.layer0.bn1)
        for block in (b for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for b in layer):
            for i in (1, 2, 3):
                self.conv(getattr(block, f"conv{i}"))
                self.norm(getattr(block, f"bn{i}"))
            if block.downsample is not None:
                self.conv(block.downsample[0])
                self.norm(block.downsample[1])
            self.conv(block.se_module.fc1)
            self.conv(block.se_module.fc2)
        if head:
            linear = model.last_linear
            self.add("dense", {"kernel": linear.weight.detach().T.contiguous(), "bias": linear.bias.detach()})
        return self

    def write(self, path):
        """As ``save_weights`` of Keras 2: ``:0`` behind the names of weights, layers in another order."""
        names = sorted((name for name, _ in self.layers), key=lambda name: name[::-1])
        names += ["activation_1", "zero_padding2d"]  # layers without weights
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [name.encode() for name in names]
            for name, tensors in [*self.layers, ("activation_1", {}), ("zero_padding2d", {})]:
                layer = file.create_group(name)
                layer.attrs["weight_names"] = [f"{name}/{key}:0".encode() for key in tensors]
                for key, value in tensors.items():
                    layer[f"{name}/{key}:0"] = value
        return path


def test_files_as_keras_2_wrote_them(tmp_path):
    theirs = peer()
    path = KerasFile(start=1).network(theirs).write(tmp_path / "weights.h5")
    model = ours()
    report = load_weights(model, path)
    assert torch.equal(model.layer3[0].conv2.weight, theirs.layer3[0].conv2.weight)
    assert torch.equal(model.layer2[1].gate.fc2.weight, theirs.layer2[1].se_module.fc2.weight[:, :, 0, 0])
    assert report.renamed["fc.weight"] == "dense_1/kernel" and not report.unused and not report.missing


def test_the_pool_is_the_keras_networks_not_the_ported_ones(tmp_path):
    path = KerasFile().network(peer()).write(tmp_path / "weights.h5")
    with pytest.raises(UserError, match="has stem_pool='padded' where this network has stem_pool='ceil'"):
        load_weights(ours(ResNetOptions("1x1", "ceil")), path)


def test_a_file_without_its_top(tmp_path):
    path = KerasFile().network(peer(), head=False).write(tmp_path / "no_top.h5")
    model = ours()
    with pytest.raises(UserError, match="it has no classifier: fresh='classifier'"):
        load_weights(model, path)
    before = model.fc.weight.clone()
    report = load_weights(model, path, fresh="classifier")
    assert torch.equal(model.fc.weight, before) and report.fresh == ("fc.weight", "fc.bias")
    assert not load_weights(ours(num_classes=0), path).fresh


def test_other_keras_files_are_refused(tmp_path):
    named = KerasFile()
    named.layers = [("bn_data", {"beta": np.zeros(3)}), ("conv0", {"kernel": np.zeros((7, 7, 3, 64))})]
    with pytest.raises(UserError, match="bn_data, conv0: they norm their input, as pre-activation networks do"):
        load_weights(ours(), named.write(tmp_path / "preact.h5"))
    plain = KerasFile()
    plain.conv(nn.Conv2d(3, 8, 3, bias=False))
    with pytest.raises(UserError, match="not those of an SE network of classification_models"):
        load_weights(ours(), plain.write(tmp_path / "other.h5"))
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(UserError, match="no whole HDF5 file of Keras weights"):
        load_weights(ours(), tmp_path / "empty.h5")
    whole = KerasFile().network(peer()).write(tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short"):
        load_weights(ours(), tmp_path / "cut.h5")


def test_without_h5py_the_way_out_is_named(tmp_path, monkeypatch):
    path = KerasFile().network(peer()).write(tmp_path / "weights.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        load_weights(ours(), path)


def test_no_model_is_changed_by_a_refused_file(tmp_path):
    path = KerasFile().network(peer()).write(tmp_path / "weights.h5")
    model = ResNeXt(DEPTHS, gate=SEConfig(), options=ResNeXtOptions(stem_pool="padded"), num_classes=10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
