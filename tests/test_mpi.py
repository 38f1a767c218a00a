"""optimc.mpi, in jobs of 1 to 4 ranks under mpiexec; what the ranks do is in mpi_jobs.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import require

require("mpi4py")

HERE = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
if MPIEXEC is None:
    if os.environ.get("OPTIMC_REQUIRE_ADAPTERS") == "1":
        raise FileNotFoundError("mpiexec")
    pytest.skip("no mpiexec", allow_module_level=True)


def start(ranks, job, *arguments, runner=("-m", "mpi4py")):
    return subprocess.Popen(
        [MPIEXEC, "-n", str(ranks), sys.executable, *runner, str(HERE / "mpi_jobs.py"), job, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OPTIMC_NUM_THREADS": "1"})


def run(ranks, job, *arguments):
    """What a job printed, which must end well."""
    process = start(ranks, job, *arguments)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_steps_have_the_bits_of_the_serial_sum(ranks):
    assert "runs" in run(ranks, "serial", "everything", ranks % 2, 2)
