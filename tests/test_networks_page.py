"""docs/networks.md: its tables are what the script writes today, and every figure off by more has its reason."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "networks.md").read_text()


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("networks_page", ROOT / "scripts" / "networks_page.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["networks_page"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["networks_page"]


@pytest.mark.slow
def test_every_table_is_counted_not_typed(script):
    assert script.written(PAGE) == PAGE


@pytest.mark.parametrize("name", ["reasons", "formula", "stages", "reduction"])
def test_tables_of_parameters_are_counted_not_typed(script, name):
    assert f"<!-- {name} -->\n{script.TABLES[name]()}<!-- end -->" in PAGE


def test_every_table_has_its_place(script):
    assert sorted(re.findall(r"<!-- (\w+) -->\n(?=[|-])", PAGE)) == sorted(script.TABLES)


def test_rows_are_counted_not_typed(script, monkeypatch):
    chosen = [row for row in script.SE_ROWS if row.network in ("resnet50", "mobilenetv1", "shufflenetv1")]
    monkeypatch.setattr(script, "SE_ROWS", chosen)
    rows = [row for row in script.classification().splitlines()[2:] if "senet154" not in row]
    assert len(rows) == 6 and all(row + "\n" in PAGE for row in rows)


def test_a_figure_without_its_reason_stops_the_script(script, monkeypatch):
    monkeypatch.setattr(script, "REASONS", {})
    monkeypatch.setattr(script, "SE_ROWS", [row for row in script.SE_ROWS if row.network == "shufflenetv1"])
    with pytest.raises(AssertionError, match="shufflenetv1"):
        script.classification()
