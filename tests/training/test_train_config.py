"""Configs: what they accept, what they say of what they do not, and their way through YAML."""

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from excite.errors import UserError
from excite.training import EvalConfig, Recipe, TrainConfig
from excite.training.config import FREE

WRONG = [
    ({"epochs": 0}, "epochs=0: give at least 1"),
    ({"epochs": 2.5}, "epochs=2.5: give a whole number"),
    ({"epochs": True}, "epochs=True: give a whole number"),
    ({"batch_size": -4}, "batch_size=-4: give at least 1"),
    ({"lr": 0}, "lr=0.0: give more than 0"),
    ({"lr": "fast"}, "lr='fast': give a number"),
    ({"lr": float("nan")}, "lr=nan: give a number"),
    ({"momentum": 1}, "momentum=1.0: give at least 0 and less than 1"),
    ({"weight_decay": -1e-4}, "weight_decay=-0.0001: give at least 0"),
    ({"label_smoothing": 1.5}, "label_smoothing=1.5: give at least 0 and less than 1"),
    ({"clip_norm": 0}, "clip_norm=0.0: give more than 0"),
    ({"accumulate": 0}, "accumulate=0: give at least 1"),
    ({"ema": 1.0}, "ema=1.0: give more than 0 and less than 1"),
    ({"optimizer": "sdg"}, "unknown optimizer 'sdg': did you mean 'sgd'?"),
    ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'?"),
    ({"precision": "bf16"}, "unknown precision 'bf16': did you mean"),
    ({"strategy": "fsdp"}, "unknown strategy 'fsdp'"),
    ({"stages": "1"}, "stages='1': give a list of whole numbers or null"),
    ({"stages": [0]}, "stages=0: give at least 1"),
    ({"devices": 0}, "devices=0: give at least 1"),
    ({"devices": "all"}, "devices='all': give a whole number or 'auto'"),
    ({"augment": "yes"}, "augment='yes': give true or false"),
    ({"options": 3}, "options=3: give names with values"),
    ({"warmup_epochs": 5}, "warmup_epochs=5: give less than epochs=5"),
    ({"momentum": 0.0}, "nesterov=True with momentum=0"),
    ({"schedule": "step"}, "schedule='step' needs step_epochs"),
    ({"cutout": 8, "augment": False}, "cutout=8 with augment=false"),
    ({"step_epochs": [1]}, "step_epochs has no effect with schedule='cosine'"),
    ({"seed": -1}, "seed=-1: give at least 0"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[str(s) for s, _ in WRONG])
def test_a_wrong_value_is_named_with_the_range(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        TrainConfig(**settings)


def test_values_are_converted_where_nothing_is_lost(tmp_path):
    config = TrainConfig(lr=1, stages=[2, 3], out=tmp_path, weight_decay="1e-4")
    assert config.lr == 1.0 and isinstance(config.lr, float)
    assert config.stages == (2, 3)
    assert config.out == str(tmp_path)
    assert config.weight_decay == 1e-4


def test_yaml_gives_the_config_back(tmp_path):
    config = TrainConfig(gate="se(reduction=8)", stages=(1, 2), step_epochs=(2.0, 4.0), schedule="step", ema=0.99)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert TrainConfig.from_yaml(file) == config


def test_yaml_fills_in_defaults_and_reads_exponents(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("lr: 1e-3\nepochs: 2\n")
    assert TrainConfig.from_yaml(file) == TrainConfig(lr=1e-3, epochs=2)
    file.write_text("")
    assert TrainConfig.from_yaml(file) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown setting 'epoch': did you mean 'epochs'"),
        ("epochs: three", "epochs='three': give a whole number"),
        ("- 1\n- 2", "must hold lines of `name: value`; it holds a list"),
        ("a: b: c", "is not YAML at line 1"),
        ("lr: -1", "lr=-1.0: give more than 0"),
    ],
)
def test_a_bad_yaml_file_is_named(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        TrainConfig.from_yaml(file)
    assert str(file) in str(error.value) and message in str(error.value)


def test_a_missing_or_binary_yaml_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the config file .*none.yaml"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is not text"):
        TrainConfig.from_yaml(tmp_path / "b.yaml")


def test_one_run_has_one_form_however_it_is_spelled():
    plain = [TrainConfig(model="resnet20", gate=gate).settled() for gate in (None, "none", " none ")]
    assert {(c.model, c.gate) for c in plain} == {("resnet20", "none")}
    spelled = [("se_resnet20", None), ("resnet20", "se"), ("resnet20", "se(reduction=16)"), ("resnet20", "se()")]
    gated = [TrainConfig(model=model, gate=gate).settled() for model, gate in spelled]
    assert {(c.model, c.gate) for c in gated} == {("resnet20", "se")}
    assert TrainConfig(model="senet154").settled().gate == "se", "the gate that the name says"
    assert TrainConfig(model="senet154", gate="none").settled().gate == "none"
    assert TrainConfig(model="timm:resnet50d").settled().gate == "none"


def test_free_settings_leave_the_digest_alone_and_others_change_it():
    config = TrainConfig()
    other = {"out": "x", "resume": False, "download": True, "workers": 3}
    assert set(other) == set(FREE)
    free = dataclasses.replace(config, **other)
    assert free.digest() == config.digest() and config.differences(free) == []
    changed = dataclasses.replace(config, lr=0.2, gate="se")
    assert changed.digest() != config.digest()
    assert config.differences(changed) == ["lr", "gate"]


@pytest.mark.parametrize("kind", [Recipe, TrainConfig, EvalConfig])
def test_every_field_is_explained(kind):
    from excite.cli import _field_help

    about = _field_help(kind)
    assert list(about) == [f.name for f in dataclasses.fields(kind)], "same fields, same order, in docstring and class"
    assert all(len(text) > 10 for text in about.values())


def test_configs_load_no_torch():
    code = "import sys, excite.training.config, excite.training; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there():
    import excite.training as training

    for name in training.__all__:
        assert inspect.getdoc(getattr(training, name)), name
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        training.tarin  # noqa: B018
