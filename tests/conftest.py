"""Fixtures that every generic test runs over: case, dtype, ISA and number of threads."""

import importlib
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "numpy")

import pytest

sys.path.insert(0, str(Path(__file__).with_name("support")))

from cases import CASES, DTYPES, EXPECTED_WARNING

import optimc
from optimc import _core

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:       # as in the background of a script; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    for line in ("error", f"ignore:{EXPECTED_WARNING}:UserWarning"):        # the last one that fits decides
        config.addinivalue_line("filterwarnings", line)


def pytest_report_header():
    return f"optimc {optimc.__version__}: {_core.compiler}, ISAs {', '.join(_core.isas)}"


@pytest.fixture(params=CASES, ids=repr)
def case(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda dtype: dtype.__name__)
def dtype(request):
    return request.param


@pytest.fixture(params=_core.isas)
def isa(request):
    """Optimizers built in the test use this ISA."""
    _core._use_isa(request.param)
    yield request.param
    _core._use_isa(optimc.isa)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    """Two threads are forced: every step of several chunks uses them."""
    if request.param > 1:
        _core._force_threads(request.param)
    yield request.param
    _core._force_threads(0)


def require(name):
    """The module of that name; without it the tests are skipped, or fail with OPTIMC_REQUIRE_ADAPTERS=1."""
    if os.environ.get("OPTIMC_REQUIRE_ADAPTERS") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name, exc_type=ImportError)


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="run the long versions of the tests that have one")


@pytest.fixture
def soak(request):
    """True if the long version of a test is wanted."""
    return request.config.getoption("--soak")
