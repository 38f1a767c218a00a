"""The program for type checkers uses every public name, and does what its types say (typed_program.py)."""

import ast
import inspect
import typing

import numpy as np
import pytest
import typed_program
from conftest import require
from places import ROOT

import optimc
from optimc import schedules

PROGRAM = ast.parse((ROOT / "tests" / "repo" / "typed_program.py").read_text("utf-8"))
#: the names that the program uses: of attributes, of arguments, of what it imports
USED = {node.attr for node in ast.walk(PROGRAM) if isinstance(node, ast.Attribute)} \
    | {node.arg for node in ast.walk(PROGRAM) if isinstance(node, ast.keyword)} \
    | {alias.name for node in ast.walk(PROGRAM) if isinstance(node, ast.ImportFrom) for alias in node.names}
PARTS = {name.removesuffix("_program"): part for name, part in vars(typed_program).items()
         if inspect.isfunction(part) and part.__module__ == "typed_program"
         and name not in ("mistakes", "fits", "assert_type", "network")}
#: what an optimizer class declares for the package
INTERNAL = {"styles"}
#: parts that need more than NumPy
NEEDED = {"torch": "torch", "keras": "keras", "sklearn": "sklearn", "thinc": "thinc", "mpi": "mpi4py.MPI",
          "threads": "threadpoolctl"}


@pytest.mark.parametrize("name", PARTS)
def test_values_have_the_types_that_checkers_see(name, tmp_path, capsys):
    if name == "deepspeed":             # not among what .ci/run installs
        pytest.importorskip("deepspeed")
    elif name in NEEDED:
        require(NEEDED[name])
    part = PARTS[name]
    part(tmp_path) if inspect.signature(part).parameters else part()


def test_a_value_of_another_type_is_noticed():
    for value, kind in ((1, str), (None, float), ([1, "a"], list[int]), ("a", typing.Literal["b"]),
                        ({"a": 1}, dict[str, str]), (np.ones(2), int | None)):
        with pytest.raises(AssertionError, match="is not of type"):
            typed_program.assert_type(value, kind)


@pytest.mark.parametrize("module", ["", "torch", "keras", "sklearn", "thinc", "mpi"])
def test_every_name_of_a_module_is_used(module):
    if module:
        require(NEEDED[module])
    found = __import__(f"optimc.{module}".rstrip("."), fromlist=["__all__"])
    assert {*found.__all__} <= USED


def test_every_method_of_offloading_classes_is_used():
    require("torch")
    from optimc.torch import host
    for cls in (host.Offloaded, host.OffloadedScheduleFree):
        assert {name for name in vars(cls) if name[0] != "_"} <= USED


def test_every_schedule_is_used():
    assert {name for name, value in vars(schedules).items() if name[0] != "_"
            and getattr(value, "__module__", "") == "optimc.schedules"} - {"classes", "public"} <= USED


def test_every_attribute_is_used():
    routes = optimc.OptimizerMap(optimc.SGD())
    for thing in (optimc.Adam(), optimc.MultiOptimizer(routes), routes, optimc.LossScaleOptimizer(optimc.SGD()),
                  optimc.SGD(groups=[{"weights": "bias"}]).groups[0]):
        names = {name for name in dir(thing) if name[0] != "_"}
        assert names - INTERNAL <= USED, type(thing)


def test_words_are_those_that_are_accepted():
    from optimc import _types
    for name, words in (("check_finite", _types.CheckFinite), ("style", _types.Style)):
        assert typing.get_args(words) == vars(optimc.Optimizer)[name].check.choices
