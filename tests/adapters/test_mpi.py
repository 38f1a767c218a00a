"""optimc.mpi, in jobs of 1 to 4 ranks under mpiexec; what the ranks do is in mpi_jobs.py."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import require
from places import ROOT, search_path

import optimc

require("mpi4py")
mpi = pytest.importorskip("optimc.mpi")
Layout, Like = mpi.layout.Layout, mpi.layout.Like

HERE = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
if MPIEXEC is None:
    if os.environ.get("OPTIMC_REQUIRE_ADAPTERS") == "1":
        raise FileNotFoundError("mpiexec")
    pytest.skip("no mpiexec", allow_module_level=True)


def start(ranks, *arguments, script=HERE / "mpi_jobs.py"):
    """Starts a job; its output is a pipe."""
    return subprocess.Popen(
        [MPIEXEC, "-n", str(ranks), sys.executable, "-m", "mpi4py", str(script), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": search_path(ROOT), "OPTIMC_NUM_THREADS": "1"})


def run(ranks, *arguments, **script):
    """Runs a job, which must end well, and returns its output."""
    process = start(ranks, *arguments, **script)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_steps_have_the_bits_of_the_serial_sum(ranks):
    assert "runs" in run(ranks, "serial", "everything", ranks % 2, 2)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_hold_the_same_weights(ranks):
    run(ranks, "equal")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_options_of_an_unsharded_optimizer(ranks):
    run(ranks, "features")


@pytest.mark.parametrize("ranks", [2, 3])
def test_skips_are_agreed(ranks):
    run(ranks, "skips")


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_keeps_its_share_of_the_slots(ranks):
    run(ranks, "memory", ranks)


def test_ranks_without_a_share():
    run(3, "few")


@pytest.mark.parametrize("ranks", [2, 3])
def test_errors_are_agreed(ranks):
    run(ranks, "errors")


@pytest.mark.parametrize("saving, loading", [(2, 1), (2, 3), (2, 4), (4, 2), (1, 2)])
def test_checkpoints_are_loaded_by_any_number_of_ranks(tmp_path, saving, loading):
    part = (saving + loading) % 4, 4
    run(saving, "save", tmp_path, *part)
    run(loading, "load", tmp_path, *part)


@pytest.mark.parametrize("ranks", [1, 2])
def test_broken_saves_and_loads_are_agreed(tmp_path, ranks):
    run(ranks, "broken_saves", tmp_path)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_ends_the_job_and_leaves_a_checkpoint(tmp_path, victim):
    process = start(3, "until_killed", tmp_path, victim)
    deadline = time.monotonic() + 60
    while not (tmp_path / "victim").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(int((tmp_path / "victim").read_text()), signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert optimc.load(tmp_path / "adam").iterations >= 3


@pytest.mark.parametrize("early", [True, False])
def test_a_rank_that_left_is_waited_for_no_longer_than_the_timeout(early):
    process = start(3, "until_left", 1.5, early)
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "waited 1.5 s for the other ranks" in output


def test_the_example_prints_the_same_for_any_number_of_ranks(tmp_path):
    require("sklearn")
    example = ROOT / "examples" / "mpi_train.py"
    one, two, four = (run(ranks, "--epochs", 3, "--checkpoint", tmp_path / "last", script=example)
                      for ranks in (1, 2, 4))
    assert one == two == four
    losses = [float(line.split()[4].rstrip(",")) for line in one.splitlines()]
    assert len(losses) == 4 and losses[-1] < 0.8 * losses[0]
    assert optimc.load(tmp_path / "last").iterations == 3 * 9


def test_the_example_of_the_class(tmp_path):
    _, _, example = mpi.Sharded.__doc__.partition("example.py`:\n")
    (tmp_path / "example.py").write_text(textwrap.dedent(example))
    printed = run(2, script=tmp_path / "example.py").replace("\n", "")  # the ranks' lines may run into each other
    assert printed == "[0.75 0.75 0.75 0.75]" * 2


RECKONING = runpy.run_path(str(ROOT / "benchmarks" / "mpi_reckoning.py"))


def test_the_page_has_the_reckoned_numbers():
    page = RECKONING["PAGE"].read_text()
    for name in ("sizes", "times", "buckets"):
        assert f"<!-- {name} -->\n" + "\n".join(RECKONING["TABLES"][name]()) + "\n<!-- end -->" in page
    assert all(RECKONING["default"](ranks) == mpi.default_bucket(ranks) for ranks in (1, 64, 65, 4096))


@pytest.mark.parametrize("algorithm", ["ring", "halving"])
@pytest.mark.parametrize("ranks, bucket", [(8, 1 << 22), (64, 1 << 22), (128, 1 << 25)])
def test_the_reckoning_is_what_the_simulation_finds(ranks, bucket, algorithm):
    weights = 12 * bucket // 4
    for network in RECKONING["NETWORKS"]:
        seconds, sent = RECKONING["simulate"](
            RECKONING["buckets_of"](weights, ranks, bucket), network, algorithm)
        reckoned = RECKONING["step_time"](weights, ranks, network, algorithm, bucket)
        assert abs(seconds - reckoned) < 0.05 * reckoned
        assert abs(sent - RECKONING["bytes_sent"](weights, ranks)).max() <= 1e-3 * sent.max()


def test_a_share_is_reckoned_as_it_is_cut():
    weights = [np.ones(1 << 20, np.float32)]
    layout = Layout([Like((1 << 20,), np.dtype("f4"), "C")], 4, "elements")
    reckoned = RECKONING["memory"](1 << 20, 4, 2, 1 << 22) - 4 * (1 << 22) - 2 * weights[0].nbytes
    assert reckoned == 3 * 4 * layout.share(np.dtype("f4"), 1)


@pytest.mark.parametrize("arguments, error, message", [
    ({"optimizer": "adam"}, TypeError, "optimizer must be an optimizer or a LossScaleOptimizer, got str"),
    ({"optimizer": optimc.MultiOptimizer(lambda name: None)}, TypeError, "got MultiOptimizer"),
    ({"comm": 3}, TypeError, "comm must be an intracommunicator of mpi4py, got int"),
    ({"average": 1}, TypeError, "average must be a bool"),
    ({"deterministic": None}, TypeError, "deterministic must be a bool"),
    ({"bucket_bytes": -1}, ValueError, "bucket_bytes must be None or at least 1, got -1"),
    ({"bucket_bytes": 1.5}, TypeError, "bucket_bytes must be an int"),
    ({"timeout": 0}, ValueError, "timeout must be finite and > 0"),
    ({"timeout": "long"}, TypeError, "timeout"),
])
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        mpi.Sharded(**{"optimizer": optimc.SGD(), **arguments})


def test_without_mpi4py_the_error_names_the_extra():
    code = "import sys; sys.modules['mpi4py'] = None; import optimc.mpi"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: optimc.mpi needs mpi4py" in done.stderr and "optimc[mpi]" in done.stderr
