"""Every file of examples/ runs as it stands, and does what it says."""

import re
import subprocess
import sys

import pytest
from conftest import require
from places import ROOT, TESTS

require("sklearn")
EXAMPLES = ROOT / "examples"


def run(name, *arguments):
    """Runs an example and returns its output."""
    command = [sys.executable, "-W", "error", EXAMPLES / name, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr
    return result.stdout


@pytest.mark.parametrize("arguments", [(), ("nadam",)], ids=str)
def test_numpy_loop(arguments):
    out = run("numpy_loop.py", *arguments)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 10 and losses[-1] < losses[0]
    right = float(re.search(r"([\d.]+)% of 450 new digits", out)[1])
    assert right > 93


def test_federated_server():
    lines = re.findall(r"^(\w+) +([\d.]+)%$", run("federated_server.py"), re.M)
    right = {name: float(share) for name, share in lines}
    average = right.pop("FedAvg")
    assert set(right) == {"FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"}
    assert all(share > average + 5 for share in right.values())


def test_spacy_thinc():
    require("thinc")
    right = [float(share) for share in re.findall(r": ([\d.]+)% of 450 new digits", run("spacy_thinc.py"))]
    assert len(right) == 3 and min(right) > 92


def test_every_example_is_tested():
    text = "".join((TESTS / name).read_text() for name in ("repo/test_examples.py", "adapters/test_mpi.py"))
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []
