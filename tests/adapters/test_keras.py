"""optimc.keras on each backend of Keras, each in a process of its own.

The tests are in keras*_on_backend.py; and Keras's own tests of its optimizers run with these classes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require
from places import ROOT, search_path

keras = require("keras")

#: backend -> the module it needs
BACKENDS = {"torch": "torch", "tensorflow": "tensorflow", "jax": "jax", "numpy": "numpy"}
HERE = Path(__file__).parent
KERAS_TESTS = Path(keras.__file__).parent / "src" / "optimizers"

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def run_pytest(backend, *arguments):
    """Runs pytest with that backend; returns how many tests passed."""
    require(BACKENDS[backend])
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "",
                   "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": search_path(ROOT, HERE)}
    for name in list(environment):
        if name.startswith(("PYTEST_XDIST", "PYTEST_CURRENT")):
            del environment[name]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
                           *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout).group(1))


@each_backend
def test_on_backend(backend):
    files = [str(path) for path in sorted(HERE.glob("keras*_on_backend.py"))]
    assert run_pytest(backend, *files, "-W", "default") >= 80


@each_backend
def test_kerass_own_tests(backend, soak):
    if backend != "torch" and not soak:
        pytest.skip("takes minutes: --soak runs it on this backend too")
    require("tensorflow")                                       # one of them is about TensorBoard
    files = sorted(map(str, KERAS_TESTS.glob("*_test.py")))
    if not files:
        pytest.skip("this Keras came without its tests")
    assert run_pytest(backend, "-p", "keras_own", "-c", os.devnull, "--rootdir", str(KERAS_TESTS), "-W", "ignore",
                      *files) >= 150
