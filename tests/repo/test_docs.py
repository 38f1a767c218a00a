"""Every public name has a docstring, and every example in a docstring runs and prints what it says."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import optimc
from optimc.registry import classes

#: what cannot be imported everywhere, or runs when it is
ELSEWHERE = {"optimc._core", "optimc.__main__", "optimc.torch", "optimc.keras", "optimc.sklearn", "optimc.mpi",
             "optimc.threadpoolctl"}


def modules(package):
    """A package and the modules within it, those of its packages included."""
    yield package
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.name not in ELSEWHERE:
            module = importlib.import_module(found.name)
            yield from modules(module) if found.ispkg else (module,)


MODULES = list(modules(optimc))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_examples_of_the_core_run():
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    tests = finder.find(optimc.Optimizer.apply, "apply", module=False, globs={})
    assert tests[0].examples
    for test in tests:
        assert runner.run(test).failed == 0


def test_public_names_are_documented():
    for name in optimc.__all__:
        thing = getattr(optimc, name)
        if callable(thing):
            assert inspect.getdoc(thing), name


def test_optimizers_say_arguments_slots_and_an_example():
    for cls in classes.values():
        text = cls.__doc__
        for parameter in cls._arguments:
            assert parameter in text or parameter in optimc.Optimizer.__doc__ \
                or any(parameter in base.__doc__ for base in cls.__mro__[1:-2]), (cls, parameter)
        assert ">>>" in text, cls
