"""The README: its commands, its examples and its claims."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
from conftest import require
from pages import keras_gains
from places import ROOT, search_path

from optimc.registry import classes

if not (ROOT / "notebooks").exists():
    pytest.skip("needs the repository: an sdist has neither notebooks nor benchmarks", allow_module_level=True)

TEXT = (ROOT / "README.md").read_text("utf-8")
#: what the example of the frameworks takes for given
GIVEN = """import torch, keras, optimc
net, model = torch.nn.Linear(10, 1), keras.Sequential([keras.layers.Dense(1)])
"""


def blocks(language, text=TEXT):
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


def printed(program, **environment):
    """Runs a program, in which a warning is an error, and returns its output."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": search_path(ROOT), **environment}, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_the_first_two_commands_are_the_main_job_and_the_tests():
    commands = blocks("sh")
    assert len(commands) == 2
    for command, does in zip(commands, ("-m optimc compare", "-m pytest "), strict=True):
        assert command.count("\n") == 1 and command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        install, does_it = command.split(" && ")[1:]
        assert does in does_it and " -q" not in install             # pip is not silent while it works


def test_the_tests_of_ci_are_the_second_command():
    script = (ROOT / ".ci" / "tests").read_text("utf-8")
    awk = re.search(r"awk '(.*?)' README.md", script)[1]
    done = subprocess.run(["awk", awk, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == blocks("sh")[1]


def test_the_example_prints_what_it_says():
    example, output = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", TEXT, re.S | re.M).groups()
    assert printed(example) == output
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", output)]
    assert len(losses) == 5 and losses == sorted(losses, reverse=True) and losses[-1] < 0.001 * losses[0]


def test_another_optimizer_is_one_line():
    other = re.search(r"change one line: `(opt = .*?)`", TEXT)[1]
    example, n = re.subn("^opt = .*", other, blocks("python")[0], flags=re.M)
    assert n == 1
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed(example))]
    assert len(losses) == 5 and losses[-1] < 0.01 * losses[0]


def test_the_lines_for_frameworks_run():
    for module in ("torch", "keras", "sklearn"):
        require(module)
    block, = (block for block in blocks("python") if "optimc.torch" in block)
    seen = "print(isinstance(optimizer, torch.optim.AdamW), isinstance(model.optimizer, keras.Optimizer), clf)"
    assert re.match(r"True True MLPClassifier\(solver=.*AdamW", printed(GIVEN + block + seen, KERAS_BACKEND="torch"))


def test_its_counts_are_right():
    assert f"{len(classes)} optimizers, with their" in TEXT and f"[{len(classes)} optimizers]" in TEXT
    assert f"Adam, SGD and {len(classes) - 2} more optimizers" in TEXT


def test_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    versions = re.findall(r":: (3\.\d+)$", "\n".join(project["classifiers"]), re.M)
    assert f"[![Python {', '.join(versions)}]" in TEXT and "%20%7C%20".join(versions) in TEXT
    assert f"CPython {versions[0]} to {versions[-1]}" in TEXT
    assert f"Version {project['version']} is not released" in TEXT


def test_its_claims_on_speed_are_in_the_results():
    sys.path.append(str(ROOT))          # last: optimc may be an installed one
    from benchmarks import libraries, report
    results = report.load(report.RESULTS)
    _, others, _ = libraries.race(results)
    least = int(re.search(r"optimc is over (\d+) times as fast as every other", TEXT)[1])
    assert least <= min(entry["ratio"] for entry, _ in others.values()) < 1.2 * least


def test_its_claims_on_whole_steps_are_those_of_the_pages():
    folder, said = ROOT / "docs" / "howto", " ".join(TEXT.split())
    of = keras_gains((folder / "keras.md").read_text("utf-8"))
    assert f"[Keras on torch](docs/howto/keras.md#cost-of-a-step) {of['torch'][0]:.1f} times" in said
    assert f"With Keras on jax a training step of a large network became {of['jax'][-1]} times as fast" in said
    assert "many or large layers {:.1f} to {:.1f} times".format(*of["tensorflow"][1:]) in said
