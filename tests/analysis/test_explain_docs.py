"""docs/explain.md: its table is that of the experiments, its options and fields are those that there are."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

from explained import explained

from excite.analysis import ExplainConfig
from excite.analysis.statistics import CONSTANT_SD
from excite.analysis.summary import AGNOSTIC, NEARLY_ALL
from page_scripts import load_script

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explain.md").read_text()


def test_the_table_of_observations_is_that_of_the_experiments() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "explain_page.py", "--check"], check=True)


def test_the_script_says_of_a_planted_network_what_was_planted() -> None:
    found = explained()[1]
    known = {**found, "data": {**found["data"], "name": "planted"}, "network": {"name": "net", "gate": "se"}}
    text = load_script("explain_page").observations([known])
    assert "| `net` with `se`, planted | 240 | holds | holds | holds | does not hold | blocks.2, 0.39 |" in text
    assert found["summary"][0] in text


def test_options_and_fields_exist() -> None:
    fields = {f.name for f in dataclasses.fields(ExplainConfig)}
    named = set(re.findall(r"--(\w+)", PAGE)) - {"check"}
    assert len(named) > 8 and named <= fields, named - fields
    held = explained()[1]
    table = PAGE.partition("## explain.json")[2]
    for name in re.findall(
        r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    ):
        assert name in held, name
    for name in re.findall(r"`(\w+)`", table.partition("one entry a gate: ")[2].partition("|")[0]):
        known = {*held["gates"][0], *held["gates"][0]["knock_outs"][0], *held["gates"][0]["specificity"]}
        assert name in known, name


def test_bounds_are_those_of_the_code() -> None:
    assert (CONSTANT_SD, AGNOSTIC, NEARLY_ALL) == (0.01, 0.1, 0.9)
    for said in ("specificity is under 0.1", "at most 0.01 apart", "at least 90 % of its channels"):
        assert said in PAGE
