"""docs/networks.md: its tables are what the script writes today, and every figure off by more has its reason."""

import ast
import re

import pytest
import torch

from excite.models import create_model
from excite.weights.zoos import LAYOUTS
from page_scripts import ROOT, load_script

PAGE = (ROOT / "docs" / "networks.md").read_text()


@pytest.fixture(scope="module")
def script():
    return load_script("networks_page")


@pytest.fixture(scope="module")
def provenance():
    return load_script("provenance")


@pytest.mark.slow
def test_every_table_is_counted_not_typed(script):
    assert script.written(PAGE) == PAGE


QUICK = ["reasons", "formula", "stages", "reduction", "placement", "modules"]


@pytest.mark.parametrize("name", QUICK)
def test_tables_of_parameters_are_counted_not_typed(script, name):
    assert f"<!-- {name} -->\n{script.TABLES[name]()}<!-- end -->" in PAGE


def test_every_table_has_its_place(script):
    assert sorted(re.findall(r"<!-- (\w+) -->\n(?=[|-])", PAGE)) == sorted(script.TABLES)


def test_rows_are_counted_not_typed(script, monkeypatch):
    chosen = [row for row in script.SE_ROWS if row.network in ("resnet50", "mobilenetv1", "shufflenetv1")]
    monkeypatch.setattr(script, "SE_ROWS", chosen)
    rows = [row for row in script.classification().splitlines()[2:] if "senet154" not in row]
    assert len(rows) == 6 and all(row + "\n" in PAGE for row in rows)


def test_rows_of_the_eca_paper_are_counted_not_typed(script, monkeypatch):
    monkeypatch.setattr(script, "ECA_ROWS", script.ECA_ROWS[:3])
    rows = script.eca().splitlines()[2:]
    assert len(rows) == 3 and all(row + "\n" in PAGE for row in rows)


def test_no_count_meets_every_reduction():
    """What the page says of r = 8."""
    printed = {2: 45.7, 4: 35.7, 8: 30.7, 16: 28.1, 32: 26.9}
    for bias, (r, counted) in (("false", (8, "30.64")), ("true", (2, "45.75"))):
        millions = {}
        for reduction in printed:
            with torch.device("meta"):
                model = create_model("resnet50", gate=f"se(reduction={reduction},bias={bias})")
            statistics = [b for b in model.buffers() if b.is_floating_point()]
            millions[reduction] = sum(t.numel() for t in (*model.parameters(), *statistics)) / 1e6
        assert [n for n in printed if round(millions[n], 1) != printed[n]] == [r]
        assert f"{millions[r]:.2f}" == counted and f"{counted} against {printed[r]}" in PAGE


def test_a_figure_without_its_reason_stops_the_script(script, monkeypatch):
    monkeypatch.setattr(script, "REASONS", {})
    monkeypatch.setattr(script, "SE_ROWS", [row for row in script.SE_ROWS if row.network == "shufflenetv1"])
    with pytest.raises(AssertionError, match="shufflenetv1"):
        script.classification()


def test_every_network_with_figures_has_its_sources(script):
    """The rows of each table of figures are those of the table of sources under it."""
    tables = dict(re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->", PAGE, re.DOTALL))
    for name in script.SOURCES:
        figures, sources = tables[name.removesuffix("_sources")], tables[name]
        assert [row.split("|")[1:3] for row in figures.splitlines()] == [
            row.split("|")[1:3] for row in sources.splitlines()
        ]


# --- where weights come from ---


def test_zoos_names_say_their_gates(provenance):
    kinds = {name: provenance._kind_in(name) for layouts in LAYOUTS.values() for la in layouts for name in la.networks}
    assert {name for name, kind in kinds.items() if kind == "eca"} == {name for name in kinds if "eca" in name}
    assert {name for name, kind in kinds.items() if kind == "se"} == {
        name for name in kinds if re.search(r"se_?(resne|net|inception)", name)
    }


def test_sources_tell_the_very_network_from_its_variants(provenance):
    def exact(*args, **kwargs):
        return {source.zoo: source.exact for source in provenance.sources(*args, **kwargs)}

    strided = {"timm": True, "cadene": True, "pytorchcv": False, "moskomule": False, "classification_models": False}
    assert exact("resnet50", "se", variant="official") == strided
    assert exact("shufflenetv1", "none") == {"pytorchcv": True}
    assert exact("bn_inception", "none") == {"cadene": False, "pytorchcv": False}
    assert exact("vgg16_bn", "se") == {}
    # Kernel sizes, and which gates have no biases, are told apart too.
    assert exact("resnet18", "eca") == {"ecanet": False}
    assert exact("resnet18", "eca(kernel_size=released:resnet18)") == {"ecanet": True}


def test_what_no_library_has_is_compared_in_a_test_that_exists(provenance):
    for place in provenance.WRITTEN.values():
        path, _, name = place.partition("::")
        names = {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert name in names, place
