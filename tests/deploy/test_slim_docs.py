"""The page on slimming: its code runs, its counts and bounds are those of the tests, its table that of the reports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_folding import NETWORKS

from excite.deploy.proof import fall_bound

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "slim.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {}
    exec(compile(code, "docs/slim.md", "exec"), names)
    assert names["logits"].shape == (60, 10)
    assert "calibration   " in capsys.readouterr().out


def test_the_counts_are_the_tests_own():
    rows = re.findall(r"^\| (.*`.*) \| ([\d, ]+) \| (\d+) \|$", PAGE, flags=re.MULTILINE)
    checked = 0
    for names, folded, left in rows:
        library = re.match(r"timm|torchvision|attached", names)
        names = [name for name in re.findall(r"`(\w+)`", names) if not (library and name == "resnet18")]
        for name, count in zip(names, folded.split(", "), strict=True):
            case = f"{library[0]} {name}" if library else name
            _, *counts = NETWORKS[case]
            assert counts == [int(count), int(left)], case
            checked += 1
    assert checked == 20


def test_the_least_falls_are_those_of_the_bound():
    rows = re.findall(r"^\| ([\d,]+) \| (0\.\d\d) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == 4
    for images, points in rows:
        assert f"{100 * fall_bound(0, 0, int(images.replace(',', ''))):.2f}" == points


@pytest.mark.skipif(not (ROOT / "experiments").exists(), reason="the reports are not in this copy")
def test_the_table_is_the_reports():
    subprocess.run([sys.executable, ROOT / "scripts" / "slim_table.py", "--check"], check=True)


def test_a_report_as_a_line_of_the_table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from slim_table import table

    report = {
        "network": {"name": "resnet20", "gate": "se"},
        "data": "squares",
        "max_drop": 0.5,
        "gates": [{"outcome": "folded"}] * 3 + [{"outcome": "kept"}],
        "proof": {"before": 0.9, "after": 0.895, "bound": 0.0081, "images": 2000, "proven": False},
        "parameters": {"before": 200, "after": 190},
        "macs": {"before": 1000, "after": 998},
        "latency": {"ratio": {"p20": 0.8, "p50": 0.85, "p80": 0.9}},
    }
    assert table([report]).splitlines()[2] == (
        "| squares | `resnet20` | `se` | 3, 0, 1 | 90.00 → 89.50 | 0.81 (2,000 images), not the 0.5 allowed | -5.00 % "
        "| -0.20 % | x 0.85 (0.80 to 0.90) |"
    )
    untouched = table([report | {"proof": None, "latency": None}]).splitlines()[2]
    assert "nothing was taken out" in untouched and untouched.endswith("| -0.20 % |  |")
