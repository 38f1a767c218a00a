"""The walls between the parts of optimc stand, and each breach would be found (walls.py holds the rules)."""

import ast
import shutil

import pytest
import walls
from places import ROOT

if not (ROOT / "csrc").is_dir():
    pytest.skip("needs the source tree", allow_module_level=True)

LONG = "\n".join(["    x += 1"] * 90)

#: rule -> breaches of it: a file, made or added to, and the text that breaks the rule
BREACHES = {
    walls.only_python_includes_python: [("csrc/plan/planted.c", "#include <Python.h>"),
                                        ("csrc/kernels/planted.h", "#  include <numpy/arrayobject.h>")],
    walls.rules_include_nothing: [("csrc/rules.inc", "#include <math.h>")],
    walls.folders_include_downwards: [("csrc/kernels/planted.c", '#include "plan/plan.h"'),
                                      ("csrc/kernels/planted.inc", '#include "python/views.h"'),
                                      ("csrc/plan/planted.c", '#include "python/views.h"')],
    walls.includes_name_their_folder: [("csrc/plan/planted.c", '#include "plan.h"'),
                                       ("csrc/plan/planted.c", '#include "../kernels/kernels.h"')],
    walls.machinery_names_no_optimizer: [("csrc/plan/planted.c", "static int is_adam;"),
                                         ("csrc/kernels/planted.inc", "/* as Muon needs it */")],
    walls.only_isa_files_name_an_isa: [("csrc/plan/planted.c", "static int has_avx2;"),
                                       ("csrc/kernels/planted.c", "#ifdef __x86_64__")],
    walls.only_system_files_ask_for_a_system: [("csrc/plan/planted.c", "#if defined(_WIN32)"),
                                               ("csrc/python/planted.c", "#include <pthread.h>")],
    walls.macros_are_short: [("csrc/plan/planted.c", "#define LONG(x) \\\n" + "    f(x); \\\n" * 6 + "    g(x)")],
    walls.c_files_open_with_their_name: [("csrc/plan/planted.c", "/* other.c - what was here before */")],
    walls.stories_name_files_that_exist: [("csrc/rules.inc", "/* Next: nowhere.inc */"),
                                          ("csrc/rules.inc", "/* see plan/nowhere.c. */")],
    walls.stems_lie_in_one_folder: [("csrc/python/plan.c", "/* plan.c - a second one */"),
                                    ("tests/files/cases.py", '"""A second one."""')],
    walls.modules_import_in_one_direction: [
        ("optimc/schedules.py", "def planted():\n    from optimc import optimizers\n    return optimizers"),
        ("optimc/schedules.py", "from . import optimizers"),
        ("optimc/schedules.py", "if TYPE_CHECKING:\n    x = 1\nelse:\n    from . import optimizers")],
    walls.only_adapters_import_frameworks: [("optimc/optimizers.py", "def planted():\n    import torch"),
                                            ("optimc/sklearn.py", "from keras.src import optimizers")],
    walls.modules_have_a_docstring: [("optimc/planted.py", "x = 1")],
    walls.files_are_short: [("csrc/plan/planted.c", "\n" * 601), ("csrc/python/planted.c", "\n" * 451),
                            ("optimc/planted.py", "\n" * 601)],
    walls.classes_and_functions_are_short: [
        ("csrc/plan/planted.c", f"static void planted(int x,\n                    int y)\n{{\n{LONG}\n}}"),
        ("optimc/planted.py", f"def planted(x):\n    '''{LONG}'''\n{LONG}"),
        ("optimc/planted.py", "class Planted:\n" + "\n".join(f"    x{i} = 0" for i in range(300)))],
    walls.c_lines_are_narrow: [("csrc/plan/planted.c", "/*" + " " * 115 + "*/")],
}

#: the rules that do not hold yet
WAITING = set()


@pytest.mark.parametrize("rule", [
    pytest.param(rule, marks=[pytest.mark.xfail(strict=True)] * (rule in WAITING)) for rule in walls.RULES],
    ids=lambda rule: rule.__name__)
def test_walls_stand(rule):
    assert rule(ROOT) == [], rule.__doc__


@pytest.mark.parametrize(("rule", "name", "text"), [
    (rule, name, text) for rule, planted in BREACHES.items() for name, text in planted],
    ids=[f"{rule.__name__}-{k}" for rule, planted in BREACHES.items() for k in range(len(planted))])
def test_a_breach_would_be_found(tmp_path, rule, name, text):
    for folder in filter(lambda folder: (ROOT / folder).is_dir(), (
            "csrc", "optimc", "tests", "tools", "benchmarks", "examples")):
        shutil.copytree(ROOT / folder, tmp_path / folder,
                        ignore=lambda _, names: [n for n in names if not n.endswith(
                            (".py", ".c", ".h", ".inc", ".def", ".txt")) and "." in n])
    shutil.copy(ROOT / "setup.py", tmp_path)
    before, path = rule(tmp_path), tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{text}\n" if path.stat().st_size else f"{text}\n")
    assert len(rule(tmp_path)) > len(before) or rule(tmp_path) != before


def test_imports_for_type_checkers_alone_are_none():
    tree = ast.parse("if TYPE_CHECKING:\n    import torch\nif not TYPE_CHECKING:\n    import keras")
    assert [name for _, (name,) in walls.imports(tree, "optimc.planted", False)] == ["keras"]


def test_every_rule_has_a_breach():
    assert set(BREACHES) == set(walls.RULES)


def test_lengths_leave_out_docstrings_and_nothing_else():
    node = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    x = 1\n\n    return x\n').body[0]
    assert walls.length(node) == 4
