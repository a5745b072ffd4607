"""The comparison as a whole: what is trained, continued, refused and written."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_data import small_data

from excite.errors import UserError
from excite.experiment import CompareConfig, Comparison, compare, read_comparison
from excite.experiment.costs import measure_costs
from excite.experiment.progress import CompareLines
from excite.training import RunResult

SMALL = {"epochs": 2, "batch_size": 24, "measure": False, "accelerator": "cpu"}


class Watch(CompareLines):
    """Notes what is trained; stops like ctrl-C after an epoch of a run, if asked to."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        super().__init__(0)
        self.trained: list[str] = []
        self.said: list[str] = []
        self.epochs: list[int] = []
        self._stop = stop

    def start_run(self, label: str, total_steps: int) -> None:
        self.trained.append(label.partition(", gate ")[2])

    def epoch(self, row: dict[str, Any]) -> None:
        self.epochs.append(row["epoch"])
        if self._stop == (len(self.trained), row["epoch"]):
            raise KeyboardInterrupt

    def say(self, line: str) -> None:
        self.said.append(line)


def run(out: Path, watch: Watch | None = None, **settings: Any) -> Comparison:
    config = CompareConfig(**{**SMALL, "gates": "none,se", "seeds": 2, "out": str(out), **settings})
    return compare(config, data=small_data(), progress=watch or Watch())


def numbers(comparison: Comparison) -> Any:
    """All results, without what another run of the same thing may change."""
    values = comparison.to_dict()
    for r in values["runs"]:
        del r["seconds"]
        for row in r["epochs"]:
            del row["seconds"]
    return values["gates"], values["runs"], values["verdict"], values["caveats"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, Watch]:
    """One comparison that nothing interrupts."""
    out, watch = tmp_path_factory.mktemp("whole") / "out", Watch()
    return out, run(out, watch), watch


def test_runs_go_seed_by_seed_with_plain_first(whole: tuple[Path, Comparison, Watch]) -> None:
    out, comparison, watch = whole
    assert watch.trained == ["none, seed 0", "se, seed 0", "none, seed 1", "se, seed 1"]
    assert [(r.gate, r.seed) for r in comparison.runs] == [("none", 0), ("se", 0), ("none", 1), ("se", 1)]
    assert comparison.complete
    assert (out / "runs/se/seed-1/result.json").exists()
    assert (out / "comparison.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_results_are_those_of_the_runs(whole: tuple[Path, Comparison, Watch]) -> None:
    out, comparison, _ = whole
    scores = {g: [RunResult.load(out / f"runs/{g}/seed-{s}").final["val_top1"] for s in (0, 1)] for g in ("none", "se")}
    plain, se = comparison.gates
    assert plain.accuracy.mean == pytest.approx(sum(scores["none"]) / 2)
    assert se.difference.values == pytest.approx([b - a for a, b in zip(*scores.values(), strict=True)])
    assert se.images.mean == pytest.approx(se.difference.mean)
    assert se.images.images == 24
    assert se.parameters > plain.parameters
    assert se.macs > plain.macs


def test_json_gives_the_comparison_back(whole: tuple[Path, Comparison, Watch]) -> None:
    out, comparison, _ = whole
    values = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert (values["kind"], values["schema_version"]) == ("excite.comparison", 1)
    assert values["config"]["gates"] == "none,se"
    assert {"torch", "excite", "scipy", "python"} <= set(values["versions"])
    assert values["machine"]["cores"] >= 1
    assert read_comparison(out) == read_comparison(out / "comparison.json") == comparison


def test_nothing_is_trained_twice_and_nothing_changes(whole: tuple[Path, Comparison, Watch]) -> None:
    out, comparison, _ = whole
    watch = Watch()
    assert numbers(run(out, watch)) == numbers(comparison)
    assert watch.trained == []
    assert watch.said == ["4 of 4 runs are there already"]


@pytest.mark.parametrize(
    ("more", "trained"),
    [
        ({"gates": "none,se,eca"}, ["eca, seed 0", "eca, seed 1"]),
        ({"seeds": 3}, ["none, seed 2", "se, seed 2"]),
        ({"gates": "se(reduction=4)", "seeds": 1}, ["se(reduction=4), seed 0"]),
    ],
)
def test_a_gate_or_a_seed_more_trains_only_what_is_new(
    tmp_path: Path, whole: tuple[Path, Comparison, Watch], more: dict[str, Any], trained: list[str]
) -> None:
    import shutil

    shutil.copytree(whole[0], tmp_path / "out")
    watch = Watch()
    comparison = run(tmp_path / "out", watch, **more)
    assert watch.trained == trained
    # What was there gives the numbers it gave.
    assert comparison.runs_of("none")[0].epochs == whole[1].runs_of("none")[0].epochs
    assert comparison.complete


@pytest.mark.parametrize("stop", [(1, 1), (3, 1), (4, 1)])
def test_an_interrupted_comparison_ends_like_one_that_was_not(
    tmp_path: Path, whole: tuple[Path, Comparison, Watch], stop: tuple[int, int]
) -> None:
    first = Watch(stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", first)
    if stop[0] > 2:  # the first seed is whole: what it says so far is there, and says that more is to come
        partial = read_comparison(tmp_path / "out")
        assert not partial.complete
        assert len(partial.runs) == 2
        assert partial.verdict.startswith("One seed cannot tell")
    second = Watch()
    assert numbers(run(tmp_path / "out", second)) == numbers(whole[1])
    assert len(first.trained) + len(second.trained) == 5  # the stopped run appears twice
    assert second.epochs[0] == stop[1] + 1  # the epoch that was over is not trained again


@pytest.mark.parametrize("content", [None, b"", b"nonsense", "cut"])
def test_images_that_cannot_be_read_are_named_and_come_back_without_training(
    tmp_path: Path, whole: tuple[Path, Comparison, Watch], content: bytes | str | None
) -> None:
    import shutil

    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    file = out / "runs/se/seed-1/correct.safetensors"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5] if isinstance(content, str) else content)
    watch = Watch()
    with pytest.raises(
        UserError, match=r"seed-1/correct.safetensors is missing or damaged \(.+\): remove \S+result.json,"
    ):
        run(out, watch, gates="none,se,eca")
    assert watch.trained == []
    (out / "runs/se/seed-1/result.json").unlink()
    assert numbers(run(out, watch))[0] == numbers(whole[1])[0]
    assert watch.epochs == []


def test_another_recipe_in_the_same_folder_is_an_error(whole: tuple[Path, Comparison, Watch]) -> None:
    out, _, _ = whole
    with pytest.raises(UserError, match=r"differ from these in lr \(0.1 there, 0.05 now\).*name another folder"):
        run(out, lr=0.05)
    with pytest.raises(UserError, match=r"train \(48 there, 45 now\)"):
        config = CompareConfig(**SMALL, gates="none,se", seeds=2, out=str(out))
        compare(config, data=small_data(train=45), progress=Watch())


def test_other_versions_in_the_same_folder_are_an_error(tmp_path: Path, whole: tuple[Path, Comparison, Watch]) -> None:
    import shutil

    shutil.copytree(whole[0], tmp_path / "out")
    identity = tmp_path / "out/identity.json"
    held = json.loads(identity.read_text())
    held["versions"]["torch"] = "2.0.0"
    identity.write_text(json.dumps(held))
    with pytest.raises(UserError, match=r'torch \("2.0.0" there'):
        run(tmp_path / "out")
    identity.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        run(tmp_path / "out")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="holds no comparison"):
        run(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        run(tmp_path / "mine.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_written_before_every_network_can_be_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stages"):
        run(tmp_path / "out", stages=(1, 9))
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plain with seed 0: training diverged.*0 of 4 runs are over and kept"):
        run(tmp_path / "out", lr=1e20, schedule="constant")


def test_costs_are_measured_once_and_anew_for_another_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excite.experiment.run.measure_costs", partial(measure_costs, seconds=0.02))
    settings = {"measure": True, "seeds": 1, "epochs": 1}
    first = run(tmp_path / "out", **settings)
    again = run(tmp_path / "out", **settings)
    assert again.gates == first.gates
    for g in first.gates:
        assert [t.what for t in g.timings] == ["inference", "training step"]
        assert all(t.p20_ms <= t.p50_ms <= t.p80_ms and t.ratio_p20 <= t.ratio <= t.ratio_p80 for t in g.timings)
    assert [t.ratio for t in first.plain.timings] == [1.0, 1.0]
    more = run(tmp_path / "out", gates="none,se,eca", **settings)
    assert more.gates[1].timings != first.gates[1].timings  # all in turns again


def test_numbers_that_are_not_finite_become_null() -> None:
    from made_up import make_comparison

    comparison = make_comparison(seeds=1)
    comparison.runs[0].epochs[0]["val_loss"] = math.nan
    text = json.dumps(comparison.to_dict(), allow_nan=False)
    assert json.loads(text)["runs"][0]["epochs"][0]["val_loss"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "not a comparison"), ('{"kind": "excite.comparison"}', "schema_version=None")],
)
def test_a_file_that_is_no_comparison(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_comparison(tmp_path)
