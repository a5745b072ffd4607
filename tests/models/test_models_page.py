"""docs/models.md: its table is what the script writes today, and its examples run."""

import re
from pathlib import Path

import pytest
import torch

from excite.models import MODELS
from page_scripts import load_script

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text()


@pytest.mark.slow
def test_the_table_is_counted_not_typed():
    script = load_script("models_table")
    assert f"{script.BEGIN}{script.table()}{script.END}" in PAGE


@pytest.mark.parametrize("name", ["resnet50", "resnet20", "wrn16_8", "shake_shake26_2x96d", "vgg11_bn", "mobilenetv2"])
def test_rows_are_counted_not_typed(name):
    assert load_script("models_table").row(name) + "\n" in PAGE


def test_the_table_has_every_network():
    assert set(re.findall(r"^\| `(\w+)` \| [\d, ]+ \|", PAGE, re.MULTILINE)) == set(MODELS)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_examples_run(code):
    with torch.device("meta"):
        exec("import torch\nfrom excite import create_model\n" + code, {})
