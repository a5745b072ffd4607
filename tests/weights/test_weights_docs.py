"""The page lists every network of every zoo with its options, and its code runs."""

import itertools
import re
from pathlib import Path

import pytest

from excite.weights.zoos import LAYOUTS, REFUSALS

PAGE = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| .+? \| (.*?) ?\|$", flags=re.MULTILINE)


def expanded(text):
    """Names with their braces written out: `vgg{11,13}_bn` is two."""
    parts = [part.split(",") if i % 2 else [part] for i, part in enumerate(re.split(r"[{}]", text))]
    return {"".join(choice) for choice in itertools.product(*parts)}


def test_the_table_is_the_zoos():
    said = set()
    for zoo, names, options in ROW.findall(PAGE):
        shown = frozenset(re.findall(r"`([^`]+)`", options))
        for name in set().union(*map(expanded, re.findall(r"`([^`]+)`", names))):
            said.add((zoo, name, shown))
    true = set()
    for zoo, layouts in LAYOUTS.items():
        for layout in layouts:
            shown = frozenset(f"{o}={v!r}" if o != "groups" else "groups=" for o, v in layout.options.items())
            true |= {(zoo, name, shown) for name in layout.networks}
    assert said == true


def test_refused_networks_are_named():
    section = PAGE.partition("### Networks that none here computes")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+)`", section)
    for refusal in REFUSALS:
        if refusal.needs or refusal.alike:  # the others are not looked like by anything here
            assert not refusal.names or any(refusal.is_called(name) for name in named), refusal


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
def test_code_on_the_page_runs(code, capsys):
    exec(compile(code, "weights.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    said = re.search(r"print\(found\)  # (.+)", code)
    assert printed.strip() and (said is None or said[1] in printed)
