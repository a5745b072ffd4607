"""What excite_keras may import of excite, and that its files and functions stay small."""

import ast
from pathlib import Path

import pytest

import excite
from excite.gates import GATES

ROOT = Path(excite.__file__).parents[1] / "excite_keras"
FILES = sorted(ROOT.rglob("*.py"))
# Plain numbers and text, which no framework is needed for.
RULES = {
    "errors",
    *(f"gates.{name}" for name in ("function_names", "grammar", "group_count", "kernel_sizes", "reduction")),
}


def imported(source: str) -> set[str]:
    """The modules of excite that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        found |= {name.removeprefix("excite.") for name in names if name == "excite" or name.startswith("excite.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_weights_know_pytorch(path):
    source = path.read_text(encoding="utf-8")
    if path.name == "weights.py":
        assert "import torch" in source
        return
    assert imported(source) <= RULES
    assert "import torch" not in source and "from torch" not in source


def test_an_import_of_a_module_is_seen():
    assert imported("from excite.gates import SE") == {"gates"}
    assert imported("import excite.models.resnet, excite") == {"models.resnet", "excite"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "a file of over 400 lines is two ideas"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.body[0].lineno + 1
            doc = ast.get_docstring(node, clean=False)
            length -= doc.count("\n") + 1 if doc else 0
            assert length <= 50, f"{node.name} has {length} lines"


def test_every_gate_has_its_layer_in_a_file_of_the_same_name():
    theirs = {
        Path(ROOT.parent / "excite" / "gates" / f"{GATES[n].__module__.rpartition('.')[2]}.py").name for n in GATES
    }
    assert theirs - {p.name for p in (ROOT / "gates").glob("*.py")} == {"no_squeeze.py"}
