"""A file imports from its own folder and from lower ranks only, and importing the core loads torch alone."""

import ast
import importlib
import inspect
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import excite

ROOT = Path(excite.__file__).parent
# Bottom to top; rooms in one row may not import each other.
RANKS = [
    {"errors"},
    {"files"},
    {"ops", "significance"},
    {"gates"},
    {"models", "graph", "page", "timing"},
    {"surgery", "weights", "cost", "data"},
    {"checkpoint", "networks"},
    {"training"},
    {"analysis", "bill", "listing", "sites"},
    {"deploy", "experiment"},
    {"cli"},
]
RANK = {room: i for i, row in enumerate(RANKS) for room in row}
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        rooms |= {n.split(".")[1] for n in names if n.startswith("excite.") and n.split(".")[1] in RANK}
    return rooms


def offences(room: str, source: str) -> set[str]:
    # checkpoint and networks share a row by need: a checkpoint names its network, a network may be a checkpoint.
    allowed = {r for r, i in RANK.items() if i < RANK[room]} | {room}
    if room == "checkpoint":
        allowed.add("networks")
    return imported_rooms(source) - allowed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room = room_of(path)
    assert room in RANK, f"{path.name} stands in no known room"
    assert not offences(room, path.read_text()), f"{path.name} ({room}) imports from above or beside"


def test_an_upward_import_is_seen():
    assert offences("ops", "from excite.gates import SE") == {"gates"}
    assert offences("ops", "def f():\n    import excite.training.fit") == {"training"}
    assert offences("gates", "from excite import models") == {"models"}
    assert not offences("models", "from excite.gates import SE\nfrom excite.ops import tail")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400, "a file of over 400 lines is two ideas"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.body[0].lineno + 1
            doc = ast.get_docstring(node, clean=False)
            length -= doc.count("\n") + 1 if doc else 0
            assert length <= 50, f"{node.name} has {length} lines"


def test_importing_the_core_loads_torch_alone():
    heavy = ["lightning", "torchvision", "PIL", "scipy", "rich", "jsonargparse", "safetensors", "timm", "keras"]
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import excite, excite.ops, excite.gates.se, excite.models\n"
        f"new = [m for m in {heavy} if m in sys.modules and m not in before]\n"
        "assert not new, new\n"
        "assert not torch.cuda.is_initialized()\n"
        "compiler = [m for m in ('torch._dynamo', 'triton') if m in sys.modules and m not in before]\n"
        "assert not compiler, compiler"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("room", ["surgery", "cost", "analysis", "deploy", "experiment"])
def test_no_room_loads_the_compiler(room):
    """In a process with TensorFlow, loading Triton ends it."""
    code = f"import sys, excite.{room}; assert not {{'triton', 'torch._dynamo'}} & set(sys.modules), list(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_face_is_whole():
    assert set(excite._HOMES) == set(excite.__all__)
    for name in excite.__all__:
        assert getattr(excite, name).__doc__
    assert set(excite.__all__) <= set(dir(excite))
    with pytest.raises(AttributeError, match="no attribute 'Se'"):
        _ = excite.Se


def test_import_excite_itself_loads_nothing():
    code = "import sys, excite; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_public_name_is_documented():
    for path in FILES:
        if path.stem in ("tail_kernels", "tail_triton") and find_spec("triton") is None:
            continue  # PyTorch for CPUs comes without
        module_name = "excite." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(module_name.removesuffix(".__init__"))
        assert module.__doc__, module_name
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                assert thing.__doc__, f"{module_name}.{name}"
