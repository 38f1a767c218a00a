"""Every file of examples/ runs as it stands, and does what it says."""

import re
import signal
import subprocess
import sys

import pytest
from conftest import require
from places import ROOT, TESTS

require("sklearn")
EXAMPLES = ROOT / "examples"


FEW = ("--items", "2000", "--users", "200", "--width", "8", "--batch", "256")


def command(name, *arguments):
    return [sys.executable, "-W", "error", EXAMPLES / name, *arguments]


def run(name, *arguments):
    """Runs an example and returns its output."""
    result = subprocess.run(command(name, *arguments), capture_output=True, text=True)
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


@pytest.mark.parametrize("arguments", [(), ("--optimizer", "adagrad", "--learning-rate", "0.3")], ids=str)
def test_embeddings(arguments):
    require("rich")
    out = run("embeddings.py", *FEW, "--steps", "400", *arguments)
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss ([\d.]+)", out, re.M)]
    assert len(losses) == 10 and losses[-1] < losses[0] / 3
    loss, baseline, noise = map(float, re.search(r"ratings: (\S+); guessing 0: (\S+); .* alone: (\S+)", out).groups())
    assert noise < loss < baseline / 3
    assert 0 < int(re.search(r"the optimizer took (\d+)% of", out)[1]) < 100


def test_embeddings_refuse_an_optimizer_of_whole_weights_in_one_line():
    require("rich")
    done = subprocess.run(command("embeddings.py", *FEW, "--optimizer", "lamb"), capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert "takes no rows" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C would reach the tests as well")
def test_embeddings_that_are_interrupted_show_what_was_learnt():
    require("rich")
    with subprocess.Popen(command("embeddings.py", *FEW, "--steps", "40000"), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline().startswith("step 4000: loss ")
        running.send_signal(signal.SIGINT)
        out, said = running.communicate()
    assert running.returncode == 130 and "mean squared error of new ratings" in out
    assert re.fullmatch(r"interrupted after \d+ steps\n", said)


def test_every_example_is_tested():
    text = "".join((TESTS / name).read_text() for name in ("repo/test_examples.py", "adapters/test_mpi.py"))
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []
