"""docs/attach.md: its code runs and prints what it says, its table is that of the networks, its names exist."""

import re

import pytest
from network_cases import CASES, expected

import excite
from excite.surgery.places import PLACES
from page_scripts import ROOT, load_script

PAGE = (ROOT / "docs" / "attach.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def script():
    return load_script("attach_table")


@pytest.mark.parametrize("code", BLOCKS)
def test_code_on_the_page_runs(code, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "page"}
    exec(compile(code, "attach.md", "exec"), scope)
    printed = capsys.readouterr().out
    for said in re.findall(r"print\(.*\)  # (.+)", code):
        parts = [part.strip(" ,)") for part in said.split("...")]
        assert all(part in printed for part in parts), printed
    if "sites" in scope:
        assert f"# {len(scope['sites'])} gates" in code


def test_the_first_example_is_short():
    assert len([line for line in BLOCKS[0].splitlines() if line]) < 10


def test_the_table_is_that_of_the_networks(script):
    """Whether these are true the tests of the networks say."""
    assert script.written(PAGE, expected) == PAGE
    assert len(CASES) == PAGE.partition("<!-- networks -->\n")[2].partition("<!-- end -->")[0].count("\n") - 2


@pytest.mark.slow
def test_the_table_is_found_not_typed(script):
    assert script.written(PAGE) == PAGE


def test_every_place_is_explained():
    rows = re.findall(r"^\| `\"(\w+)(?::PATTERN)?\"` \|", PAGE, flags=re.MULTILINE)
    assert rows == [*PLACES, "block"]


def test_every_function_named_exists():
    called = set(re.findall(r"\b(\w+_|attached|verify|survey|gate_parameters)\(", PAGE))
    assert called >= {"attach_", "detach_", "reattach_", "swap_", "attach_at_", "verify", "attached"}
    assert all(hasattr(excite, name) for name in called)


def test_the_page_is_in_the_navigation():
    assert '{ "Attach" = "attach.md" }' in (ROOT / "zensical.toml").read_text()
