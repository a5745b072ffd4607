"""docs/models.md: its table is what the script writes today, and its examples run."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()


def test_the_table_is_counted_not_typed():
    spec = importlib.util.spec_from_file_location("models_table", ROOT / "scripts" / "models_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert f"{script.BEGIN}{script.table()}{script.END}" in PAGE


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_examples_run(code):
    with torch.device("meta"):
        exec("from excite import create_model\n" + code, {})
