"""Runs the examples of a page.

    python tests/support/pages.py PAGE      in a process of its own; the exit code says whether all examples hold

A page is one namespace, and its fences end an example's output as blank lines do.
"""

import ast
import doctest
import re
import sys
from pathlib import Path


def text_of(page):
    """The page with blank lines for its fences."""
    return re.sub(r"^ *```.*$", "", page.read_text("utf-8"), flags=re.M)


def needs(page):
    """What its examples import: packages, without optimc, NumPy and the standard library; and adapters of optimc."""
    names = set()
    for example in doctest.DocTestParser().get_examples(text_of(page)):
        for node in ast.walk(ast.parse(example.source)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    names = {name if name.startswith("optimc.") else name.split(".")[0] for name in names}
    return sorted(names - {"optimc", "numpy", *sys.stdlib_module_names})


def failures(page):
    """The number of examples that do not print what the page says; each is reported on stdout."""
    test = doctest.DocTestParser().get_doctest(text_of(page), {"__name__": "__main__"}, page.name, str(page), 0)
    return doctest.DocTestRunner().run(test).failed


def keras_gains(text):
    """The tables of the page on Keras: how many times as fast steps of `fit` are, by backend, the least first."""
    row = r"^\| (\w+) \|(?!.*\| step alone \|).* ([\d.]+) \([\d.]+ to [\d.]+\) \|(?: [\d.]+ \|)?$"
    gains = {}
    for backend, gain in re.findall(row, text, re.M):
        gains.setdefault(backend, []).append(float(gain))
    return {backend: sorted(found) for backend, found in gains.items()}


if __name__ == "__main__":
    sys.exit(failures(Path(sys.argv[1])) > 0)
