"""One suite, on each backend of Keras in a process of its own: Keras takes its backend once and for all."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SUITE = Path(__file__).parent / "suite"
ROOT = Path(__file__).parents[2]


def environment(backend, folder):
    """As a user's shell, but for the backend, few threads and a home of its own for Keras."""
    own = {"KERAS_BACKEND": backend, "KERAS_HOME": str(folder), "KERAS_TORCH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    threads = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    return os.environ | own | threads | {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_suite_passes_on(backend, tmp_path):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    # Their names keep the suite's files out of the run that this test belongs to.
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "python_files=suite_*.py", "--basetemp", tmp_path / "own"]
    command = [sys.executable, "-m", "pytest", SUITE, *options]
    done = subprocess.run(command, env=environment(backend, tmp_path), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 80, done.stdout[-2000:]


def python(code, backend, folder):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment(backend, folder), capture_output=True, text=True)


@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
def test_gates_places_and_networks_need_no_torch(tmp_path):
    code = (
        "import sys, excite_keras, excite_keras.surgery, excite_keras.models, excite_keras.describe\n"
        "assert 'torch' not in sys.modules\n"
        "assert excite_keras.parse_gate('se_gc(groups=2)').text == 'se_gc(groups=2)'\n"
        "assert 'torch' not in sys.modules"
    )
    done = python(code, "jax", tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_keras_the_extra_is_named(tmp_path):
    code = "import sys; sys.modules['keras'] = None\nimport excite_keras"
    done = python(code, "torch", tmp_path)
    assert "UserError: excite_keras needs Keras 3" in done.stderr and "pip install 'excite[keras]'" in done.stderr


def test_an_older_keras_is_refused(tmp_path):
    code = "import sys, types\nsys.modules['keras'] = types.SimpleNamespace(__version__='2.15.0')\nimport excite_keras"
    done = python(code, "torch", tmp_path)
    assert "excite_keras needs Keras 3; Keras 2.15.0 is installed" in done.stderr
