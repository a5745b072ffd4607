"""Every gate has a page; what stands on the pages runs and is true."""

import dataclasses
import re
import sys
import types
from pathlib import Path

import pytest

from excite.gates import GATES, list_gates, parse_gate, split_gates
from excite.gates.eca import RELEASED_KERNEL_SIZES

PAGES = Path(__file__).parents[2] / "docs" / "gates"
INDEX = (PAGES / "index.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_index_lists_every_gate_and_links_its_page():
    rows = re.findall(r"^\| `(\w+)` .*\((\w+)\.md\) \|$", INDEX, flags=re.MULTILINE)
    assert rows == [(name, name) for name in list_gates()]
    assert {page.stem for page in PAGES.glob("*.md")} == {"index", *GATES}


@pytest.mark.parametrize("page", ["index", *GATES])
def test_python_on_the_page_runs(page, monkeypatch):
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found = blocks(text, "python")
    assert found
    for code in found:
        scope = {"__name__": "page"}
        # Dataclasses look their annotations up in the module they name.
        monkeypatch.setitem(sys.modules, "page", types.ModuleType("page"))
        exec(compile(code, page, "exec"), scope)
        if "y" in scope:
            assert scope["y"].dim() == 4


@pytest.mark.parametrize("page", ["index", *GATES])
def test_gates_named_on_the_page_exist(page):
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    lists = re.findall(r'--gates "([^"]+)"', text)
    assert lists
    for gates in lists:
        for gate in split_gates(gates):
            parse_gate(gate)
    for gate in re.findall(r"`(\w+\([^`]*=[^`]*\))`", text):
        if gate.split("(")[0] in GATES and "R" not in gate:
            parse_gate(gate)


@pytest.mark.parametrize("name", GATES)
def test_the_page_has_every_option_with_its_default(name):
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    section = text.partition("## Options\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, flags=re.MULTILINE))
    fields = {f.name: f.default for f in dataclasses.fields(GATES[name])}
    assert rows.keys() == fields.keys()
    for option, default in fields.items():
        said = "1/6" if option == "hard_sigmoid_slope" else str(default).lower()
        assert rows[option] == said, option


@pytest.mark.parametrize("name", GATES)
def test_the_page_and_the_module_name_the_same_source(name):
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    module = sys.modules[GATES[name].__module__]
    papers = re.findall(r"arXiv (\d{4}\.\d{5})", module.__doc__ or "")
    assert papers and all(paper in text for paper in papers)


def test_released_kernel_sizes_on_the_page_are_the_ones_in_use():
    text = (PAGES / "eca.md").read_text(encoding="utf-8")
    said: dict[str, dict[int, int]] = {}
    for names, sizes in re.findall(r"^\| ((?:`released:\w+`(?:, )?)+) \| (.+) \|$", text, flags=re.MULTILINE):
        table: dict[int, int] = {}
        waiting: list[int] = []
        for part in sizes.split(", "):
            channels, _, size = part.partition(": ")
            waiting.append(int(channels))
            if size:
                table |= dict.fromkeys(waiting, int(size))
                waiting = []
        for network in re.findall(r"released:\w+", names):
            said[network] = table
    assert said == RELEASED_KERNEL_SIZES
