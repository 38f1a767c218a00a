"""Every public name has a docstring, and every example in a docstring or a page runs and prints what it says."""

import doctest
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys

import pytest
from conftest import require
from made_pages import patterns, written_pages
from pages import failures, needs
from places import ROOT, TESTS, search_path

import optimc
from optimc.registry import classes

#: what cannot be imported everywhere, or runs when it is
ELSEWHERE = {"optimc._core", "optimc.__main__", "optimc.torch", "optimc.keras", "optimc.sklearn", "optimc.mpi",
             "optimc.deepspeed", "optimc.thinc", "optimc.threadpoolctl"}


def modules(package):
    """A package and the modules within it, those of its packages included."""
    yield package
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.name not in ELSEWHERE:
            module = importlib.import_module(found.name)
            yield from modules(module) if found.ispkg else (module,)


MODULES = list(modules(optimc))
repository = pytest.mark.skipif(not (ROOT / "notebooks").exists(),
                                reason="needs the repository: an sdist has no notebooks")
PAGES = [page for page in written_pages(ROOT) if ">>> " in page.read_text("utf-8")]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_examples_of_the_core_run():
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    tests = finder.find(optimc.Optimizer.apply, "apply", module=False, globs={})
    assert tests[0].examples
    for test in tests:
        assert runner.run(test).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_examples_of_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)                 # what an example writes
    modules = needs(page)
    for name in [*modules, *["torch"] * ("keras" in modules)]:
        require(name)
    if not modules:
        assert failures(page) == 0
        return
    # a framework stays out of this process; Keras takes one backend per process
    run = subprocess.run(
        [sys.executable, TESTS / "support" / "pages.py", page], capture_output=True, text=True,
        env={**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1", "PYTHONPATH": search_path(ROOT)})
    assert run.returncode == 0, run.stdout + run.stderr


def test_an_example_that_fails_would_be_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```pycon\n>>> import keras.ops, os, optimc.torch\n>>> from torch.optim import SGD\n```\n")
    assert needs(page) == ["keras", "optimc.torch", "torch"]
    page.write_text("```pycon\n>>> x = 1\n>>> x\n1\n```\n\n```pycon\n>>> x + 1\n2\n```\n")
    assert failures(page) == 0
    page.write_text("```pycon\n>>> 1 + 1\n3\n```\n")
    assert failures(page) == 1


HOW_TO = ROOT / "docs" / "howto"


@pytest.mark.parametrize("page", sorted(set(HOW_TO.glob("*.md")) - {HOW_TO / "index.md"}), ids=lambda page: page.stem)
def test_a_how_to_begins_with_an_example_and_is_listed(page):
    first_screen = page.read_text("utf-8").splitlines()[:12]
    assert first_screen[0].startswith("# ") and any(line.startswith("```py") for line in first_screen)
    index = (HOW_TO / "index.md").read_text("utf-8")
    assert f"({page.name})" in index and f"\n{page.stem}\n" in index


def test_the_how_to_of_schedules_has_every_schedule():
    text = (HOW_TO / "schedules.md").read_text("utf-8")
    assert [name for name in optimc.schedules.public() if f"| `{name}` |" not in text] == []


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


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-")
            for text in re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.M)}


def prose(page):
    """The text of a page, or of the Markdown cells of a notebook without the code in them."""
    text = page.read_text("utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return text


def broken_links(root):
    """The links of Markdown files and notebooks that lead to no file, or to no heading of one."""
    broken = []
    pages = {*root.glob("*.md"), *written_pages(root), *root.glob("csrc/*.md"), *root.glob("notebooks/*.ipynb")}
    for page in sorted(pages):
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
            name, _, heading = target.partition("#")
            path = page.parent / name if name else page
            if not path.exists() or (heading and heading not in anchors(path)):
                broken.append(f"{page.relative_to(root).as_posix()}: {target}")
    return broken


@repository
def test_links_lead_somewhere():
    assert broken_links(ROOT) == []


def test_a_broken_link_would_be_noticed(tmp_path):
    (tmp_path / "README.md").write_text(
        "# A b\n[1](nowhere.md) [2](#a-b) [3](#c) [4](README.md) [5](https://x.y/z)\n")
    (tmp_path / "notebooks").mkdir()
    cells = [{"cell_type": "code", "source": "x[0](y)"},
             {"cell_type": "markdown", "source": ["[1](../README.md)\n", "[2](gone.ipynb)\n", "```\nx[0](y)\n```"]}]
    (tmp_path / "notebooks" / "a.ipynb").write_text(json.dumps({"cells": cells}))
    assert broken_links(tmp_path) == ["README.md: nowhere.md", "README.md: #c", "notebooks/a.ipynb: gone.ipynb"]


@repository
def test_made_pages_are_neither_committed_nor_given_away():
    ignored = re.findall(r"^/(docs/.*?)/?$", (ROOT / ".gitignore").read_text("utf-8"), re.M)
    left_out = re.findall(r"^(?:prune|exclude) (docs/.*)$", (ROOT / "MANIFEST.in").read_text("utf-8"), re.M)
    assert set(ignored) == set(" ".join(left_out).split()) == patterns()


@repository
def test_made_pages_are_not_read(tmp_path):
    for name in ("faq.md", "project/changelog.md", "project/code.md", "gallery/a.md", "_build/html/faq.md",
                 "reference/optimizers/Adam.md", "reference/options.md"):
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_text("[1](nowhere.md)")
    assert broken_links(tmp_path) == ["docs/faq.md: nowhere.md", "docs/reference/options.md: nowhere.md"]
