"""classification_models' Keras files: written here as Keras writes them, from a network whose output is known."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import timm.models.senet as timm_senet
import torch
from torch import nn
from weight_cases import images, trained

from excite.errors import UserError
from excite.gates import SEConfig
from excite.models.resnet import Bottleneck, ResNet, ResNetOptions
from excite.models.resnext import ResNeXt
from excite.models.senet import SENet, SENetOptions
from excite.weights import detect, load_weights

DEPTHS = (1, 2, 1, 1)


def peer(kind, depths=DEPTHS):
    """The network that the Keras one is a port of, pooling with padding as the port does."""
    if kind == "seresnet":
        model = timm_senet.SENet(timm_senet.SEResNetBottleneck, depths, 1, 16, num_classes=10)
    elif kind == "seresnext":
        model = timm_senet.SENet(timm_senet.SEResNeXtBottleneck, depths, 32, 16, num_classes=10)
    else:
        deep = {"inplanes": 128, "input_3x3": True, "downsample_kernel_size": 3, "downsample_padding": 1}
        model = timm_senet.SENet(timm_senet.SEBottleneck, depths, 64, 16, num_classes=10, **deep)
    model.pool0 = nn.MaxPool2d(3, 2, padding=1)
    return model


def ours(kind):
    gate = SEConfig()
    if kind == "seresnet":
        return ResNet(Bottleneck, DEPTHS, gate=gate, options=ResNetOptions("1x1", "padded"), num_classes=10)
    if kind == "seresnext":
        return ResNeXt(DEPTHS, gate=gate, num_classes=10)
    return SENet(DEPTHS, gate=gate, options=SENetOptions(stem_pool="padded"), num_classes=10)


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
        for part in conv.weight.detach().chunk(conv.groups):  # a Keras layer a group
            bias = {} if conv.bias is None else {"bias": conv.bias.detach()}
            self.add("conv2d", {"kernel": part.permute(2, 3, 1, 0).contiguous(), **bias})

    def norm(self, norm):
        values = (norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var)
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        self.add("batch_normalization", dict(zip(names, values, strict=True)))

    def network(self, model, head=True):
        for i in (1, 2, 3):
            if hasattr(model.layer0, f"conv{i}"):
                self.conv(getattr(model.layer0, f"conv{i}"))
                self.norm(getattr(model.layer0, f"bn{i}"))
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

    def write(self, path, *, group="", suffix=":0", parts=1):
        """The file, its ``layer_names`` in another order, cut into parts where Keras would cut them."""
        names = sorted((name for name, _ in self.layers), key=lambda name: name[::-1])
        names += ["activation_1", "zero_padding2d"]  # layers without weights
        with h5py.File(path, "w") as file:
            root = file.create_group(group) if group else file
            cut = np.array_split(np.array([name.encode() for name in names]), parts)
            for i, part in enumerate(cut):
                root.attrs[f"layer_names{i}" if parts > 1 else "layer_names"] = part
            for name, tensors in [*self.layers, ("activation_1", {}), ("zero_padding2d", {})]:
                layer = root.create_group(name)
                layer.attrs["weight_names"] = [f"{name}/{key}{suffix}".encode() for key in tensors]
                for key, value in tensors.items():
                    layer[f"{name}/{key}{suffix}"] = value
        return path


@pytest.mark.parametrize("kind", ["seresnet", "seresnext", pytest.param("senet", marks=pytest.mark.slow)])
def test_outputs_are_the_keras_networks(kind, tmp_path):
    x = images(66)
    theirs = trained(peer(kind).double(), x)
    path = KerasFile().network(theirs).write(tmp_path / "weights.h5")
    model = ours(kind).double().eval()
    report = load_weights(model, path)
    with torch.no_grad():
        y, expected = model(x), theirs(x)
    assert (y - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert report.source == "classification_models" and not report.unused and not report.missing
    assert report.renamed["fc.weight"] == "dense/kernel"
    convs = [key for key, value in model.state_dict().items() if value.dim() >= 2]
    assert sorted(report.transposed) == sorted(convs)
    assert set(report.reshaped) == {key for key in convs if ".gate." in key}
    assert any("pool with padding" in note for note in report.notes)


@pytest.mark.parametrize(
    "written",
    [
        {"group": "model_weights"},  # of the whole model
        {"suffix": ""},  # by Keras 3
        {"parts": 5},  # more names than an attribute holds
    ],
    ids=str,
)
def test_files_as_several_versions_write_them(written, tmp_path):
    theirs = peer("seresnet").double()
    path = KerasFile(start=1).network(theirs).write(tmp_path / "weights.h5", **written)
    model = ours("seresnet").double()
    load_weights(model, path)
    assert torch.equal(model.layer3[0].conv2.weight, theirs.layer3[0].conv2.weight)
    assert torch.equal(model.layer2[1].gate.fc2.weight, theirs.layer2[1].se_module.fc2.weight[:, :, 0, 0])


def test_the_pool_is_the_keras_networks_not_the_ported_ones(tmp_path):
    path = KerasFile().network(peer("seresnet")).write(tmp_path / "weights.h5")
    official = ResNet(Bottleneck, DEPTHS, gate=SEConfig(), options=ResNetOptions("1x1", "ceil"), num_classes=10)
    with pytest.raises(UserError, match="has stem_pool='padded' where this network has stem_pool='ceil'"):
        load_weights(official, path)


def test_a_file_without_its_top(tmp_path):
    path = KerasFile().network(peer("seresnet"), head=False).write(tmp_path / "no_top.h5")
    model = ours("seresnet")
    with pytest.raises(UserError, match="it has no classifier: fresh='classifier'"):
        load_weights(model, path)
    before = model.fc.weight.clone()
    report = load_weights(model, path, fresh="classifier")
    assert torch.equal(model.fc.weight, before) and report.fresh == ("fc.weight", "fc.bias")
    headless = ResNet(Bottleneck, DEPTHS, gate=SEConfig(), options=ResNetOptions("1x1", "padded"), num_classes=0)
    assert not load_weights(headless, path).fresh


def test_whole_networks_are_told_apart(tmp_path):
    """SE-ResNet-50 and SE-ResNeXt-50 by their structure alone."""
    for kind, name in (("seresnet", "resnet50"), ("seresnext", "resnext50_32x4d")):
        path = KerasFile().network(peer(kind, (3, 4, 6, 3))).write(tmp_path / f"{kind}.h5")
        found = detect(path)
        assert (found.name, found.gate, found.num_classes) == (name, "se", 10)
        assert found.options["stem_pool"] == "padded"


def test_other_keras_files_are_refused(tmp_path):
    named = KerasFile()
    named.layers = [("bn_data", {"beta": np.zeros(3)}), ("conv0", {"kernel": np.zeros((7, 7, 3, 64))})]
    with pytest.raises(UserError, match="bn_data, conv0: they norm their input, as pre-activation networks do"):
        load_weights(ours("seresnet"), named.write(tmp_path / "preact.h5"))
    plain = KerasFile()
    plain.conv(nn.Conv2d(3, 8, 3, bias=False))
    with pytest.raises(UserError, match="not those of an SE network of classification_models"):
        load_weights(ours("seresnet"), plain.write(tmp_path / "other.h5"))
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(UserError, match="no whole HDF5 file of Keras weights"):
        load_weights(ours("seresnet"), tmp_path / "empty.h5")
    whole = KerasFile().network(peer("seresnet")).write(tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short"):
        load_weights(ours("seresnet"), tmp_path / "cut.h5")


def test_without_h5py_the_way_out_is_named(tmp_path, monkeypatch):
    path = KerasFile().network(peer("seresnet")).write(tmp_path / "weights.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        load_weights(ours("seresnet"), path)


def test_no_model_is_changed_by_a_refused_file(tmp_path):
    path = KerasFile().network(peer("seresnet")).write(Path(tmp_path) / "weights.h5")
    model = ours("seresnext")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
