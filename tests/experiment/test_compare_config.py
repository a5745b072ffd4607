"""What a comparison can be told, and where its runs lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from excite.errors import UserError
from excite.experiment import CompareConfig
from excite.experiment.config import read_gates
from excite.experiment.folder import CompareFolder
from excite.gates import SEConfig


def test_gates_by_their_canonical_text_with_plain_first() -> None:
    parsed, notes = read_gates("eca, se(reduction=16), none")
    assert list(parsed) == ["none", "eca", "se"]
    assert parsed["se"] == SEConfig()
    assert notes == []


def test_plain_is_added_and_said() -> None:
    parsed, notes = read_gates([SEConfig(reduction=8)])
    assert list(parsed) == ["none", "se(reduction=8)"]
    assert "added" in notes[0]


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ("se,se", "has 'se' twice"),
        ("se,eca,se(reduction=16)", r"'se' and 'se\(reduction=16\)' are the same gate"),
        ("none,none,se", "has 'none' twice"),
        ("none", "nothing to compare with plain"),
        ("none,sse", "did you mean 'se'"),
        ("none,,se", "empty place"),
    ],
)
def test_gates_that_cannot_be_compared(gates: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_gates(gates)


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"level": 1.0}, {"level": 0.0}, {"seeds": "x"}])
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        CompareConfig(**wrong)


def test_the_folder_follows_the_recipe_and_nothing_else() -> None:
    folder = CompareConfig().folder()
    assert folder.parent == Path("runs")
    assert CompareConfig(seeds=5, gates="se", level=0.9, workers=3, measure=False).folder() == folder
    assert CompareConfig(lr=0.2).folder() != folder
    assert CompareConfig(out="here").folder() == Path("here")


def test_a_runs_settings_are_the_recipe_with_gate_and_seed(tmp_path: Path) -> None:
    config = CompareConfig(lr=0.3, epochs=7, label_smoothing=0.1)
    run = config.train_config("se", 2, tmp_path)
    assert (run.lr, run.epochs, run.label_smoothing) == (0.3, 7, 0.1)
    assert (run.gate, run.seed, run.out, run.resume) == ("se", 2, str(tmp_path), True)


def test_every_gate_and_seed_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = CompareFolder(tmp_path)
    gates = [
        "none",
        "se",
        "se(reduction=8)",
        "eca(kernel_size=released:resnet50)",
        "eca(kernel_size=released_resnet50)",
    ]
    gates += [f"se(reduction={'1' * 90})", f"se(reduction={'1' * 91})"]
    places = [folder.run_folder(g, s).relative_to(tmp_path).as_posix() for g in gates for s in (0, 1)]
    assert places[:2] == ["runs/none/seed-0", "runs/none/seed-1"]
    assert places[4] == "runs/se-reduction=8/seed-0"
    assert len({p.lower() for p in places}) == len(places)
    assert all(len(part) < 100 and ":" not in part for p in places for part in p.split("/"))
