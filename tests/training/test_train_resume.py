"""A run that was interrupted ends as one that was not: weights, curves and scores, bit for bit."""

import re
import shutil
from pathlib import Path

import pytest
from training_cases import PowerCut, Watch, same_run, tiny_config, tiny_data

from excite.errors import UserError
from excite.training import train
from excite.training.progress import Silent


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def interrupted(config, data, **stop):
    with pytest.raises(PowerCut):
        train(config, data=data, progress=Watch(**stop, error=PowerCut()))


RECIPES = [
    {},
    {"gate": "se", "ema": 0.9},
    {"optimizer": "adamw", "lr": 1e-3, "accumulate": 3},
    {"precision": "bf16-mixed", "gate": "eca"},
]


@pytest.mark.parametrize("settings", RECIPES, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path, settings):
    whole = train(tiny_config(tmp_path / "whole", **settings), data=data, progress=Silent())
    config = tiny_config(tmp_path / "cut", **settings)
    interrupted(config, data, stop_after_epoch=1)
    interrupted(config, data, stop_after_epoch=2)
    watch = Watch()
    resumed = train(config, data=data, progress=watch)
    assert same_run(whole, resumed)
    assert ("epoch", 3) in watch.calls and ("epoch", 2) not in watch.calls, "only what was missing was run"
    assert watch.steps == 12, "the display counts what was done before"
    for name in ("metrics.csv", "steps.csv"):
        rows = [(tmp_path / run / name).read_text().splitlines() for run in ("whole", "cut")]
        if name == "metrics.csv":
            rows = [[row.rpartition(",")[0] for row in file] for file in rows]  # without seconds
        assert rows[0] == rows[1]


def test_an_epoch_cut_in_the_middle_is_run_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr("excite.training.callbacks.DRAW_SECONDS", 0.0)
    whole = train(tiny_config(tmp_path / "whole"), data=data, progress=Silent())
    config = tiny_config(tmp_path / "cut")
    interrupted(config, data, stop_at_step=6)
    watch = Watch()
    assert same_run(whole, train(config, data=data, progress=watch))
    assert [call for call in watch.calls if call[0] == "epoch"] == [("epoch", 2), ("epoch", 3)]


def test_a_run_cut_after_its_last_epoch_only_gets_its_result(data, tmp_path):
    whole = train(tiny_config(tmp_path / "whole"), data=data, progress=Silent())
    config = tiny_config(tmp_path / "cut")
    interrupted(config, data, stop_after_epoch=3)
    watch = Watch()
    assert same_run(whole, train(config, data=data, progress=watch))
    assert [call for call in watch.calls if call[0] == "epoch"] == []


@pytest.fixture
def cut(data, tmp_path):
    """The folder of a run that was cut after its second epoch."""
    interrupted(tiny_config(tmp_path / "cut"), data, stop_after_epoch=2)
    return tmp_path / "cut"


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_state_gives_way_to_the_one_before(data, cut, tmp_path, caplog):
    truncate(cut / "last.ckpt")
    watch = Watch()
    resumed = train(tiny_config(cut), data=data, progress=watch)
    assert [call for call in watch.calls if call[0] == "epoch"] == [("epoch", 2), ("epoch", 3)]
    assert "last.ckpt is damaged" in caplog.text and "after epoch 1" in caplog.text
    assert same_run(train(tiny_config(tmp_path / "whole"), data=data, progress=Silent()), resumed)


def test_without_a_whole_state_training_starts_again_and_says_so(data, cut, tmp_path, caplog):
    truncate(cut / "last.ckpt")
    truncate(cut / "previous.ckpt")
    resumed = train(tiny_config(cut), data=data, progress=Silent())
    assert "training starts again at the beginning" in caplog.text
    assert same_run(train(tiny_config(tmp_path / "whole"), data=data, progress=Silent()), resumed)


def test_a_state_half_written_beside_its_place_is_ignored(data, cut, caplog):
    half = shutil.copy(cut / "last.ckpt", cut / ".last.ckpt.new.01234567.tmp")
    truncate(half)
    train(tiny_config(cut), data=data, progress=Silent())
    assert "after epoch 2" in caplog.text and "damaged" not in caplog.text
    assert not half.exists()


def test_between_the_two_moves_of_a_save_the_previous_state_serves(data, cut, caplog):
    (cut / "last.ckpt").unlink()
    train(tiny_config(cut), data=data, progress=Silent())
    assert "after epoch 1" in caplog.text


def test_other_versions_are_pointed_out(data, cut, caplog, monkeypatch):
    monkeypatch.setattr("excite.training.folder.versions", lambda: {"torch": "99.0"})
    train(tiny_config(cut), data=data, progress=Silent())
    assert re.search(r"it was begun with python 3\S+, torch \d\S+, .*bits may differ", caplog.text)


def test_a_run_is_not_continued_on_other_data(data, cut):
    with pytest.raises(UserError, match=r"holds a run on other data \(tiny\)"):
        train(tiny_config(cut), data=tiny_data(seed=1), progress=Silent())
