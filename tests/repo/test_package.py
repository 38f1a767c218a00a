"""The package as a whole: what `dir`, `help` and Tab find, adapters at their first use, a missing extension."""

import inspect
import os
import pydoc
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import optimc
from optimc import schedules
from optimc.base import lazy
from optimc.base.documents import arguments_in
from optimc.base.extras import advice
from optimc.base.names import ELSEWHERE
from optimc.registry import classes

PACKAGE = Path(optimc.__file__).parent

#: an editable install finds what a copy of the package lacks
UNLINKED = "import sys\nsys.meta_path = [one for one in sys.meta_path if 'editable' not in one.__module__]"


def run(code, folder=None, **variables):
    """Runs some code and gives its output and the last line of its errors."""
    environment = {**os.environ, **variables, **({"PYTHONPATH": str(folder)} if folder else {})}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment,
                          cwd=folder)
    return done.stdout.strip(), (done.stderr.splitlines() or [""])[-1]


# ------------------------------------------------------------------------------------------------ adapters


def test_dir_lists_what_is_public_and_the_adapters():
    listed = {name for name in dir(optimc) if not name.startswith("__")}
    assert listed == {*optimc.__all__, *lazy.ADAPTERS}
    adapters = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"}
    assert set(lazy.ADAPTERS) <= adapters


def test_looking_at_the_package_imports_no_adapter():
    code = ("import inspect, sys, rlcompleter, optimc\n"
            "inspect.getmembers(optimc, inspect.isclass)\n"
            "rlcompleter.Completer({'optimc': optimc}).attr_matches('optimc.t')\n"
            f"print([name for name in {list(lazy.ADAPTERS)} if 'optimc.' + name in sys.modules])")
    assert run(code) == ("[]", "")


@pytest.mark.parametrize("adapter", lazy.ADAPTERS)
def test_an_adapter_whose_package_is_missing_says_how_to_install_it(adapter):
    package = {"mpi": "mpi4py"}.get(adapter, adapter)
    for use in (f"optimc.{adapter}.anything", f"import optimc.{adapter}", f"from optimc import {adapter}"):
        code = f"import sys\nsys.modules[{package!r}] = None\nimport optimc\n{use}"
        assert run(code)[1] == f"ImportError: optimc.{adapter} needs {lazy.ADAPTERS[adapter]}: {advice(adapter)}"


def test_an_adapter_is_imported_at_its_first_use():
    if not find_spec("threadpoolctl"):
        pytest.skip("needs threadpoolctl")
    code = ("import sys, optimc\nfirst = optimc.threadpoolctl\nprint('optimc.threadpoolctl' in sys.modules)\n"
            "print(first.Controller is optimc.threadpoolctl.Controller, 'Controller' in dir(first))\n"
            "print(optimc.threadpoolctl is sys.modules['optimc.threadpoolctl'])\n"
            "from optimc import threadpoolctl\nprint(threadpoolctl is optimc.threadpoolctl)")
    assert run(code) == ("False\nTrue True\nTrue\nTrue", "")


def test_a_missing_backend_of_keras_is_named():
    if not find_spec("keras"):
        pytest.skip("needs keras")
    code = "import sys\nsys.modules['jax'] = None\nimport optimc.keras"
    line = run(code, KERAS_BACKEND="jax")[1]
    assert line.startswith("ImportError: optimc.keras: Keras cannot import its backend jax: install it, or set the "
                           "environment variable KERAS_BACKEND to one that is installed (tensorflow, torch, jax)")


# ------------------------------------------------------------------------------------------- the extension


def test_a_tree_without_the_extension_says_so(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "optimc", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    for code in ("import optimc", "from optimc import Adam", "import optimc.schedules"):
        line = run(f"{UNLINKED}\n{code}", tmp_path)[1]
        assert line.startswith("ImportError: optimc's C extension is not built for this Python"), line
        assert "pip install -e ." in line


def test_another_missing_module_keeps_its_own_error(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "optimc", ignore=shutil.ignore_patterns("__pycache__", "muon.py"))
    assert run(f"{UNLINKED}\nimport optimc", tmp_path)[1] == "ModuleNotFoundError: No module named 'optimc.muon'"


# ------------------------------------------------------------------------------------------------- help


def text_of(thing):
    return pydoc.plain(pydoc.render_doc(thing))


def test_help_of_the_package_is_a_map():
    for name in {*optimc.__all__, *lazy.ADAPTERS}:
        assert name == "Optimizer" or name in optimc.__doc__, name
    assert len(optimc.__doc__.splitlines()) <= 40


def test_every_attribute_has_a_text():
    for cls in (optimc.Optimizer, *classes.values()):
        for name, argument in getattr(cls, "_arguments", {}).items():
            assert argument.__doc__ and repr(argument.default) in argument.__doc__, (cls, name)
        for name in dir(cls):
            if name[0] != "_" and name not in ELSEWHERE and name != "styles":
                assert inspect.getdoc(inspect.getattr_static(cls, name)), (cls, name)


def test_help_shows_the_attributes_and_no_internals():
    text = text_of(optimc.Adam)
    for shown in (" |  beta_1\n |      Decay of the first moment m",
                  " |  iterations\n |      Number of updates so far",
                  " |  slots\n", " |  groups\n |      Weights with values of their own"):
        assert shown in text
    for hidden in ("rule = ", "keras_slots", "late_slots", "scratch_slots", "elementwise"):
        assert hidden not in text
    assert max(map(len, text.splitlines())) < 125
    for cls, first in ((optimc.Adam, "learning_rate=0.001"), (optimc.Optimizer, "weight_decay=None")):
        # from 3.13 on pydoc gives every argument a line of its own
        assert re.search(rf"^ \|  {cls.__name__}\((\n \| *)?{first},", text_of(cls), re.M)


def test_schedules_explain_their_arguments():
    for cls in schedules.classes().values():
        if cls is not schedules.LearningRateSchedule:
            explained = arguments_in(cls.__doc__)
            assert list(explained) == list(inspect.signature(cls).parameters), cls


@pytest.mark.parametrize(("code", "message"), [
    (lambda: schedules.ExponentialDecay(0.1), r"ExponentialDecay needs decay_steps and decay_rate: "
     r"ExponentialDecay\(initial_learning_rate, decay_steps, decay_rate\)$"),
    (lambda: schedules.CosineDecay(0.1, steps=3), "CosineDecay has no argument 'steps': did you mean decay_steps"),
    (lambda: schedules.CosineDecay(lr=0.1, decay_steps=3), "no argument 'lr': did you mean initial_learning_rate"),
    (lambda: schedules.CosineDecay(0.1, "3"), "decay_steps must be a number, got str"),
    (lambda: schedules.CosineDecay(*range(20)), "takes from 3 to 7 positional arguments")])
def test_a_schedule_says_what_it_takes(code, message):
    with pytest.raises(TypeError, match=message):
        code()
