"""The notebooks: what is committed is whole, small and tells nothing of a machine; each runs in a fresh kernel."""

import ast
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import require
from places import ROOT

import optimc

FOLDER = ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
#: what a notebook must print, by its name; numbers as its text claims them
FACTS = {
    "lesson": [
        *(rf"{rule} +200 steps of 1000 weights, same bits: True"
          for rule in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "textbook_adam", "adam")),
        r"Textbook\s+ranking:\s+adam,\s+rmsprop,\s+momentum,\s+sgd\.\s+Measured:",
        r"Each at its best rate, all 4 optimizers reached the target loss in 3-4 epochs",
        r"cancer, 569 rows \| adam \| adam \| momentum \| 0\.\d\d \| holds",
        r"recurrent, digits by rows \| rmsprop or adam \| adam \| momentum \| 0\.\d\d \| holds",
        r"large linear, digits \| momentum \| momentum \| adam \| 1\.\d\d \| does not hold",
        r"adagrad +rate \S+ +first jumps 0\.[23]\d+, last jumps 0\.[789]\d+",
        r"momentum +keeps 4 bytes per weight, moves 20 per step",
    ],
    "torch": [
        r"relative difference of the loss: (\d\.\de-0[6-9]|0\.0e\+00)\n",
        r"optimc\.torch\.Adam +step +\d+\.\d µs",
        r"steps counted: 270; largest relative difference of the loss: (\d\.\de-1[0-9]|0\.0e\+00)\n",
        r"optimc\.torch +is a torch optimizer: True",
        r"same memory after the step: True\nRuntimeError: one of the variables needed for gradient computation",
    ],
    "keras": [
        r"Keras 3\.\S+ on torch",
        *(rf"{name} +largest relative difference of the loss over 20 epochs: (\d\.\de-0[4-9]|0\.0e\+00)\n"
          for name in ("sgd", "momentum", "rmsprop", "adam", "adagrad")),
        r"optimc\.keras\.Adam, 36 steps, weights equal to the bit: True",
    ],
}
PRIVATE = re.compile(r"/(?:home|root|tmp|usr)/|[A-Z]:\\\\|site-packages|localhost")


def read(path):
    return require("nbformat").read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def modules(notebook):
    """The modules that it imports, without the standard library and optimc; and the adapters of optimc."""
    names = set()
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    return {name if name.startswith("optimc.") else name.split(".")[0] for name in names} - {"optimc"}


def printed(notebook):
    """The text of all outputs."""
    return "\n".join(text if isinstance(text, str) else "".join(text)
                     for cell in code(notebook) for out in cell.outputs
                     for text in (out.get("text", ""), out.get("data", {}).get("text/markdown", "")))


def kinds(notebook):
    """The kinds of each cell's outputs; the pieces in which a stream happens to arrive count once."""
    return [sorted({out.get("name") or min(out.data) for out in cell.outputs}) for cell in code(notebook)]


def test_every_fact_is_of_a_notebook():
    assert set(FACTS) <= {path.stem for path in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_is_committed(path):
    notebook = read(path)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [out for cell in code(notebook) for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]
    assert path.stat().st_size < 1_000_000
    text = "\n".join(cell.source for cell in notebook.cells) + printed(notebook)
    assert not PRIVATE.search(text), PRIVATE.search(text)
    for fact in FACTS.get(path.stem, []):
        assert re.search(fact, printed(notebook)), fact


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_it_runs_and_shows_the_same(path, tmp_path, monkeypatch):
    nbclient = require("nbclient")
    require("ipykernel")
    committed = read(path)
    for name in sorted(modules(committed) - set(sys.stdlib_module_names)):
        require(name)
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    monkeypatch.setenv("PYTHONPATH", str(Path(optimc.__file__).parents[1]), prepend=os.pathsep)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))         # nobody's settings
    fresh = read(tmp_path / "notebooks" / path.name)
    for cell in code(fresh):
        cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(fresh, timeout=1200, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    assert kinds(fresh) == kinds(committed)
    for fact in FACTS.get(path.stem, []):
        assert re.search(fact, printed(fresh)), fact
