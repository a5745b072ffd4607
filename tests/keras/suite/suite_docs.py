"""The page on Keras: its code prints what stands beneath it, its tables are the suite's own."""

import re
from pathlib import Path

import pytest
from keras_cases import only
from suite_insert import APPLICATIONS

from excite_keras.gates import GATES

PAGE = (Path(__file__).parents[3] / "docs" / "keras.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_example_has_its_output():
    assert len(BLOCKS) == PAGE.count("```python") == 5


@only("tensorflow")
@pytest.mark.parametrize("code, printed", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_prints_what_the_page_says(code, printed, capsys):
    exec(compile(code, "docs/keras.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == printed


def test_the_layers_are_all_there():
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \| \[", PAGE, flags=re.MULTILINE))
    assert rows == {layer.__name__: name for name, layer in GATES.items()}


def test_the_networks_are_those_of_the_suite():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \| (\d+) \| equal \|$", PAGE, flags=re.MULTILINE)
    assert [(name, eval(where), int(count)) for name, where, count in rows] == [
        (name, where, count) for name, _, where, count in APPLICATIONS
    ]
