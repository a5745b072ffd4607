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
    assert len(blocks) == 2
    for code in blocks:
        names = {}
        exec(compile(code, "README.md", "exec"), names)
    cost = names["cost"]
    assert round(100 * cost.gates.macs / cost.total.macs, 1) == 0.1
    assert round(100 * cost.gates.bytes_moved / cost.total.bytes_moved) == 12
