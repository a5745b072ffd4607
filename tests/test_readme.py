"""The README shows what is there: its links and pictures exist, its table is that of the experiment, its code runs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)", README) + re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert len(targets) > 5
    for target in targets:
        assert (ROOT / target).exists(), target


def test_the_table_is_the_experiments():
    subprocess.run([sys.executable, ROOT / "scripts" / "readme_table.py", "--check"], check=True)
    assert "| plain | 8" in README


def test_the_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    run = []
    for code in blocks:
        run.append({})
        exec(compile(code, "README.md", "exec"), run[-1])
    cost = run[1]["cost"]
    assert round(100 * cost.gates.macs / cost.total.macs, 1) == 0.1
    assert round(100 * cost.gates.bytes_moved / cost.total.bytes_moved) == 12
    fused = run[2]["fast"].report
    assert [gate.how for gate in fused.gates] == ["tail"] * 8 and not fused.norms_left
