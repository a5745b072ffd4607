"""`evaluate`: counts that add up, preprocessing of the checkpoint, and data that does not fit it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from training_cases import CLASSES, tiny_config, tiny_data

from excite.checkpoint import read_checkpoint
from excite.data import prepare
from excite.errors import UserError
from excite.training import EvalConfig, evaluate, train
from excite.training.progress import Silent


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A finished run's folder."""
    return train(tiny_config(tmp_path_factory.mktemp("run") / "r"), data=data, progress=Silent()).run_dir


def config(folder, **settings):
    return EvalConfig(checkpoint=str(folder), accelerator="cpu", **settings)


@pytest.mark.parametrize("split", ["val", "train"])
def test_counts_are_those_of_the_predictions(folder, data, split):
    got = evaluate(config(folder, split=split), data=data)
    chosen = getattr(data, split)
    network = read_checkpoint(f"{folder}/last.safetensors").load()
    with torch.no_grad():
        images = prepare(chosen.images, torch.arange(len(chosen)), dataset=data, train=False, seed=0, epoch=0)
        predicted = network(images).argmax(1)
    for i, row in enumerate(got.per_class):
        there, called = chosen.labels == i, predicted == i
        assert row["name"] == CLASSES[i] and row["images"] == int(there.sum())
        assert row["correct"] == int((there & called).sum())
        assert row["recall"] == row["correct"] / int(there.sum())
        assert row["precision"] == (row["correct"] / int(called.sum()) if called.any() else None)
        assert got.confusion[i] == [int((there & (predicted == j)).sum()) for j in range(6)]
    assert got.top1 == sum(row["correct"] for row in got.per_class) / len(chosen)
    assert got.images == len(chosen)


def test_the_result_is_json(folder, data):
    got = evaluate(config(folder), data=data)
    assert json.loads(json.dumps(got.to_dict())) == got.to_dict()


def test_images_are_prepared_as_the_checkpoint_says(folder, data):
    shifted = dataclasses.replace(data, mean=(0.9,), std=(0.01,))
    assert evaluate(config(folder), data=shifted).loss == evaluate(config(folder), data=data).loss


def test_a_class_without_images_has_no_recall(folder, data):
    few = tiny_data(val=4)
    got = evaluate(config(folder), data=dataclasses.replace(data, val=few.val))
    assert [row["recall"] is None for row in got.per_class] == [False] * 4 + [True] * 2


def test_best_and_last_are_files_of_their_own(folder, data):
    for name in ("best", "last"):
        got = evaluate(config(f"{folder}/{name}.safetensors"), data=data)
        assert got.top1 == read_checkpoint(f"{folder}/{name}.safetensors").metrics["val_top1"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"classes": ("a", "b", "c", "d", "e", "z")}, "has 6 classes, the network was trained on 6 others"),
        ({"classes": ("b", "a", "c", "d", "e", "f")}, "the same ones in another order"),
        ({"classes": ("a", "b", "c", "d", "e")}, "has 5 classes, the network was trained on 6 others"),
    ],
)
def test_data_with_other_classes_is_refused(folder, other, message):
    with pytest.raises(UserError, match=message):
        evaluate(config(folder), data=tiny_data(**other))


def test_data_with_other_channels_is_refused(folder, data):
    with pytest.raises(UserError, match="has images with 3 channels; the network takes 1"):
        evaluate(config(folder), data=dataclasses.replace(data, in_channels=3))


def test_a_bad_checkpoint_is_named(folder, data, tmp_path):
    with pytest.raises(UserError, match="no-such.safetensors"):
        evaluate(config(tmp_path / "no-such.safetensors"), data=data)
    with pytest.raises(UserError, match="holds no last.safetensors"):
        evaluate(config(tmp_path), data=data)
    half = tmp_path / "half.safetensors"
    whole = Path(folder, "last.safetensors").read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="half.safetensors"):
        evaluate(config(half), data=data)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what this machine lacks")
def test_a_device_that_is_not_there_is_said(folder, data):
    with pytest.raises(UserError, match="accelerator='cuda' is not available here"):
        evaluate(EvalConfig(checkpoint=folder, accelerator="cuda"), data=data)
