"""docs/interop.md: every row is made again, and the pages on export and predict run."""

import importlib
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "interop.jsonl"
ROWS = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
EXPORTED = {(r["network"], r["format"], r["state"]): r for r in ROWS if r["benchmark"] == "interop"}
KERAS = {(r["network"], r["backend"]): r for r in ROWS if r["benchmark"] == "interop_keras"}
here = pytest.mark.skipif(not ROWS, reason="the rows are not in this copy")


def benchmark(name="interop"):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    module = importlib.import_module(name)
    sys.path.pop(0)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("row", EXPORTED, ids=", ".join)
def test_a_row_is_what_it_says(row, tmp_path):
    name, format, state = row
    said = EXPORTED[row]
    done = benchmark().exported(name, said["side"], format, state == "fused", tmp_path)
    assert done.difference <= max(3 * said["difference"], 2e-6)
    assert len(done.comparisons) == said["batches"] and done.opset == said["opset"]


@pytest.mark.slow
@pytest.mark.parametrize("row", KERAS, ids=" on ".join)
def test_a_row_of_keras_is_what_it_says(row):
    name, backend = row
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    said = KERAS[row]
    done = benchmark("interop_keras").in_process(backend, name, rounds=0, threads=1)
    assert done["difference"] <= max(3 * said["difference"], 2e-6)
    assert (done["batches"], done["state"], done["tool"]) == (said["batches"], said["state"], said["tool"])


@here
def test_every_case_has_its_row():
    moved = {(name, backend) for name, _, _, backends in benchmark("interop_keras").CASES for backend in backends}
    assert set(KERAS) == moved
    cases = {
        (name, format, state)
        for name, _, as_built, fused in benchmark().CASES
        for state, formats in (("as built", as_built), ("fused", fused))
        for format in formats
    }
    assert set(EXPORTED) == cases


@here
def test_the_table_is_the_rows():
    subprocess.run([sys.executable, ROOT / "scripts" / "interop_table.py", "--check"], check=True)


def code(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_page_on_export_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for part in code("export.md"):
        exec(compile(part, "docs/export.md", "exec"), names)
    assert names["classes"] == ["cat", "dog", "horse", "sheep"] and os.listdir() == ["net.onnx"]


def test_the_page_on_predict_runs(tmp_path, monkeypatch, capsys):
    from export_cases import gates_in_a_row, images
    from PIL import Image

    from excite import export

    monkeypatch.chdir(tmp_path)
    about = {"in_channels": 3, "image_size": 24, "view": 1, "mean": [0.5] * 3, "std": [0.25] * 3}
    export(gates_in_a_row("se"), images(), "net.onnx", classes=list("abcd"), preprocessing=about)
    Path("photos").mkdir()
    Image.fromarray(torch.randint(0, 256, (32, 40, 3), dtype=torch.uint8).numpy()).save("photos/one.png")
    (part,) = code("predict.md")
    names = {}
    exec(compile(part, "docs/predict.md", "exec"), names)
    assert capsys.readouterr().out.startswith("photos/one.png ") and names["found"].skipped == ()
