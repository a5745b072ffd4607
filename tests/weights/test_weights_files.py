"""What files are read, and why others are not: nothing in a file ever runs."""

import argparse
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from excite.errors import UserError
from excite.models import create_model
from excite.weights import detect, load_weights
from excite.weights.files import read_weights

STATE = {"conv1.weight": torch.randn(4, 3, 3, 3), "bn1.weight": torch.ones(4)}


class Trap:
    """What an attacker would put into a pickle."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file ran')",))


def same(read):
    return read.tensors.keys() == STATE.keys() and all(torch.equal(read.tensors[k], v) for k, v in STATE.items())


# --- formats ---


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_save_writes(tmp_path, zipped):
    path = tmp_path / "resnet18-5c106cde.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    read = read_weights(path)
    assert same(read) and read.origin == path.name and read.hints == ("resnet18-5c106cde",)


def test_safetensors_whatever_the_name(tmp_path):
    path = tmp_path / "weights.bin"
    save_file(STATE, path)
    assert same(read_weights(path)) and read_weights(path).spec is None


def test_a_state_dict_is_taken_as_it_is():
    assert same(read_weights(STATE)) and read_weights(STATE).hints == ()


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "net"])
def test_checkpoints_of_training_scripts(tmp_path, name):
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 3, "arch": "eca_resnet50", name: STATE, "best_prec1": torch.tensor(77.4)}, path)
    read = read_weights(path)
    assert same(read) and read.hints[0] == "eca_resnet50"


def test_other_versions_in_a_checkpoint_are_named():
    (note,) = read_weights({"state_dict": STATE, "state_dict_ema": STATE}).notes
    assert "took 'state_dict'; the file also has 'state_dict_ema'" in note


@pytest.mark.parametrize("prefixes", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(prefixes):
    read = read_weights({prefixes + key: value for key, value in STATE.items()})
    assert same(read) and len(read.notes) == prefixes.count(".")


def test_a_prefix_that_not_all_have_stays():
    state = {"module.conv1.weight": torch.ones(1), "bn1.weight": torch.ones(1)}
    assert read_weights(state).tensors.keys() == state.keys()


# --- refusals ---


def refused(content, match):
    with pytest.raises(UserError, match=match):
        read_weights(content)


def test_code_in_a_file_does_not_run(tmp_path):
    content = {"state_dict": STATE, "trap": Trap()}
    torch.save(content, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "holds exec, which only running code from the file could rebuild")
    torch.save(content, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "b.pth", "holds exec, which only running code from the file could rebuild")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "c.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        refused(tmp_path / "c.pkl", "which only running code from the file could rebuild")


def test_numbers_of_numpy_are_no_code(tmp_path):
    kept = {"state_dict": STATE, "best": np.float64(77.4), "epoch": np.int64(3), "lr": np.float32(0.1)}
    torch.save(kept, tmp_path / "a.pth")
    assert same(read_weights(tmp_path / "a.pth"))


def test_objects_in_a_checkpoint_are_named_with_the_way_out(tmp_path):
    torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"holds argparse.Namespace, which only running code.*model\[.state_dict.\]")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
@pytest.mark.parametrize("write", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_file_that_was_cut_short(tmp_path, write, share):
    path = tmp_path / "weights"
    write({"conv1.weight": torch.randn(64, 3, 7, 7)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "weights: not a whole .*was its writing cut short")


def test_a_pickle_that_was_cut_short(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.randn(64, 3, 7, 7)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:1000])
    refused(path, "not a whole file of torch.save")


def test_other_formats_and_no_files(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(b"\x0a\x0bSE-ResNet-50" * 50)
    refused(tmp_path / "a.caffemodel", "not a format that is read here.*safetensors.*torch.save.*h5")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth", "an empty file; was its writing cut short")
    refused(tmp_path / "none.pth", "no such file")
    refused(tmp_path, "is a folder")
    refused("https://example.com/resnet50.pth", "nothing is downloaded here")
    refused(3, "got int")


def test_an_archive_of_a_file_is_to_be_unpacked(tmp_path):
    torch.save(STATE, tmp_path / "resnet50b.pth")
    with zipfile.ZipFile(tmp_path / "resnet50b.pth.zip", "w") as archive:
        archive.write(tmp_path / "resnet50b.pth", "resnet50b.pth")
    refused(tmp_path / "resnet50b.pth.zip", "an archive of resnet50b.pth, no file of weights: unpack it")
    with tarfile.open(tmp_path / "resnet50b.tar", "w") as archive:
        archive.add(tmp_path / "resnet50b.pth", "resnet50b.pth")
    refused(tmp_path / "resnet50b.tar", "the first .tar format of PyTorch, or another archive, which only running code")


def test_what_is_no_state_dict():
    refused({}, "no state dict: it is empty")
    refused({"epoch": 3}, "'epoch' is a int")
    refused({**STATE, "epoch": 3}, "'epoch' is a int")
    refused({"state_dict": {"a": [1]}}, "'a' is a list")


def test_a_model_saved_whole_is_refused(tmp_path):
    torch.save(create_model("resnet20"), tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "holds excite.models.cifar.CifarResNet, which only running code")


# --- checkpoints of excite ---


def checkpoint(path, model, **spec):
    """As ``excite.checkpoint`` writes it."""
    fields = {"name": "resnet20", "gate": "none", "placement": "standard", "stages": None, "variant": None}
    fields |= {"num_classes": 10, "in_channels": 3, "options": {}} | spec
    save_file(model.state_dict(), path, metadata={"excite": json.dumps({"spec": fields, "shared": {}})})


def test_a_checkpoint_of_excite_says_what_it_is(tmp_path):
    model = create_model("resnet20", gate="se(reduction=4)", stages=(2, 3), num_classes=10)
    checkpoint(tmp_path / "a.safetensors", model, gate="se(reduction=4)", stages=[2, 3])
    found = detect(tmp_path / "a.safetensors")
    assert found.source == "excite" and found.arguments == {
        "name": "resnet20",
        "gate": "se(reduction=4)",
        "stages": (2, 3),
        "num_classes": 10,
    }
    again = create_model(**found.arguments)
    report = load_weights(again, tmp_path / "a.safetensors")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert not report.renamed


def test_gates_of_another_function_are_seen_in_a_checkpoint(tmp_path):
    model = create_model("resnet20", gate="se(gate_function=hard_sigmoid)", num_classes=10)
    checkpoint(tmp_path / "a.safetensors", model, gate="se(gate_function=hard_sigmoid)")
    with pytest.raises(
        UserError, match=r"its gates are 'se\(gate_function=hard_sigmoid\)' and this network's are 'se'"
    ):
        load_weights(create_model("resnet20", gate="se", num_classes=10), tmp_path / "a.safetensors")


def test_a_checkpoint_of_another_placement_is_seen(tmp_path):
    model = create_model("resnet20", gate="se", placement="post", num_classes=10)
    checkpoint(tmp_path / "a.safetensors", model, gate="se", placement="post")
    with pytest.raises(UserError, match="placement='post', this network's at 'standard'"):
        load_weights(create_model("resnet20", gate="se", num_classes=10), tmp_path / "a.safetensors")


def test_options_of_another_network_are_seen_in_a_checkpoint(tmp_path):
    """What no shape shows stands in the checkpoint, also where a variant says it."""
    theirs = create_model("resnet50", variant="official", num_classes=10)
    fields = {"name": "resnet50", "variant": "official", "options": {"zero_init_last_norm": True}}
    checkpoint(tmp_path / "a.safetensors", theirs, **fields)
    found = detect(tmp_path / "a.safetensors")
    with torch.device("meta"):
        model = create_model("resnet50", num_classes=10)
    with pytest.raises(UserError, match="has stride_in='1x1', stem_pool='ceil' where this network has stride_in='3x3'"):
        load_weights(model.to_empty(device="cpu"), tmp_path / "a.safetensors")
    assert not load_weights(create_model(**found.arguments), tmp_path / "a.safetensors").missing


def test_a_checkpoint_of_another_librarys_network_names_its_source(tmp_path):
    theirs = timm.create_model("legacy_seresnet18", num_classes=10)
    checkpoint(tmp_path / "a.safetensors", theirs, name="timm:legacy_seresnet18")
    with pytest.raises(UserError, match="ReLU before the gate"):
        detect(tmp_path / "a.safetensors")
    theirs = timm.create_model("seresnet18", num_classes=10)
    checkpoint(tmp_path / "b.safetensors", theirs, name="timm:seresnet18")
    found = detect(tmp_path / "b.safetensors")
    assert (found.source, found.name, found.gate) == ("timm", "resnet18", "se(round_to=8)")
    assert not load_weights(create_model(**found.arguments), tmp_path / "b.safetensors").missing


def test_damaged_entry(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors", metadata={"excite": "{"})
    refused(tmp_path / "a.safetensors", "its 'excite' entry is damaged")
    save_file(STATE, tmp_path / "b.safetensors", metadata={"excite": json.dumps({"spec": {"name": "resnet20"}})})
    with pytest.raises(UserError, match="the network in the checkpoint is damaged"):
        detect(tmp_path / "b.safetensors")
