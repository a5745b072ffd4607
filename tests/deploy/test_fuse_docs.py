"""The pages on fusing: their code runs, their counts are those the tests hold, their figures those of the rows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_fuse import NETWORKS

ROOT = Path(__file__).parents[2]
FUSE = (ROOT / "docs" / "fuse.md").read_text(encoding="utf-8")


def test_the_examples_run(capsys):
    code, training = re.findall(r"```python\n(.*?)```", FUSE, flags=re.DOTALL)
    names = {}
    exec(compile(code, "docs/fuse.md", "exec"), names)
    assert names["logits"].shape == (5, 1000)
    assert "gates: 16 squeeze ahead\nnorms folded: 53, left: 0" in capsys.readouterr().out
    exec(compile(training, "docs/fuse.md", "exec"), names)
    assert len(names["sites"]) == 16


def test_the_counts_are_the_tests_own():
    rows = re.findall(r"^\| (.*?`.*?) \| ([\d, ]+) \| (.*?) \|$", FUSE, flags=re.MULTILINE)
    assert len(rows) == 8
    for names, counts, how in rows:
        library = "excite"
        said = []
        for word, name in re.findall(r"(timm|torchvision)?\s*`(\w+)`", names):
            library = word or library
            said.append(f"{library}:{name}")
        for name, count in zip(said, counts.split(", ") * (len(said) if "," not in counts else 1), strict=True):
            kind = "tail" if how.startswith("one pass") else how
            assert NETWORKS[name] == {kind: int(count)}, name


@pytest.mark.skipif(not (ROOT / "benchmarks" / "results").exists(), reason="the rows are not in this copy")
def test_the_figures_are_the_rows():
    subprocess.run([sys.executable, ROOT / "scripts" / "performance_page.py", "--check"], check=True)
