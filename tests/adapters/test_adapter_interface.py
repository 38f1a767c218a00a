"""docs/project/design/adapters.md lists every underscore name of optimc's core that adapters use, and no other."""

import ast
import re
from pathlib import Path

import optimc
from optimc import _core

TOP = Path(__file__).parents[2]
PAGE = TOP / "docs" / "project" / "design" / "adapters.md"
ADAPTERS = [*(TOP / "optimc" / "torch").glob("*.py"), *(TOP / "optimc" / "keras").glob("*.py"),
            TOP / "optimc" / "sklearn.py", TOP / "optimc" / "thinc.py", TOP / "optimc" / "migrate.py"]


def names_used(source):
    """The underscore names that a module asks of other objects than its own `self`."""
    return {node.attr for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))}


def names_of_core():
    """The underscore names of an optimizer, of the wrapper whose parts scikit-learn's solver asks for, and of the
    C module."""
    return {name for thing in (optimc.Muon(), optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD())), _core)
            for name in (dir(thing) if thing is _core else object.__dir__(thing)) if re.match("_[a-z]", name)}


def test_the_page_lists_the_names_that_adapters_use():
    used = set().union(*(names_used(path.read_text()) for path in ADAPTERS)) & names_of_core()
    listed = re.findall(r"^\| `(_\w+)", PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(used)


def test_a_name_not_listed_is_noticed():
    assert names_used("inner._bind(1)\nself._own\nother.inner._calls += 1") == {"_bind", "_calls"}
