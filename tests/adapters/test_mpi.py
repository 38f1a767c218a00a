"""optimc.mpi, in jobs of 1 to 4 ranks under mpiexec; what the ranks do is in mpi_jobs.py."""

import contextlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
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


def run(ranks, *arguments, patience=120, **script):
    """Runs a job, which must end well, and returns its output."""
    process = start(ranks, *arguments, **script)
    try:
        output, _ = process.communicate(timeout=patience)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_steps_have_the_bits_of_the_serial_sum(ranks):
    assert "runs" in run(ranks, "serial", "everything", ranks % 2, 2)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_storage_has_the_bits_of_one_process(ranks, soak):
    for turn in range(10) if soak else (ranks * 2,):
        run(ranks, "narrow", turn)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_state_is_converted_as_in_one_process(ranks):
    run(ranks, "converted")


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


def test_threads_make_optimizers_on_other_communicators_in_any_order():
    run(2, "crossed")


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
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert optimc.load(tmp_path / "adam").iterations >= 3


@pytest.mark.parametrize("early", [True, False])
def test_a_rank_that_left_is_waited_for_no_longer_than_the_timeout(early):
    process = start(3, "until_left", 1.5, early)
    output, _ = process.communicate(timeout=60)
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


ROWS = HERE / "mpi_rows.py"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_rows_of_all_ranks_have_the_bits_of_one_process(ranks, soak):
    for turn in range(12) if soak else (ranks * 2,):
        run(ranks, "alike", turn, script=ROWS)


@pytest.mark.parametrize("ranks", [2, 3])
def test_rows_are_refused_skipped_and_resumed_together(ranks, tmp_path):
    for job in ("errors", "skips", "resumed"):
        run(ranks, job, *[tmp_path] * (job == "resumed"), script=ROWS)


FUZZ = HERE / "mpi_fuzz.py"


@pytest.mark.parametrize("ranks, kind", [(2, "clipped"), (3, "whole")])
def test_ranks_that_call_other_things_refuse_together(tmp_path, ranks, kind):
    printed = run(ranks, "table", kind, tmp_path, 3, script=FUZZ)
    assert printed.startswith("9 methods apply apply_gradients averaged build exclude_from_weight_decay "
                              "finalize_variable_values save mpi.Sharded mpi.load")


def test_ranks_with_other_optimizers_refuse_together(tmp_path):
    run(2, "others", "plain", tmp_path, script=FUZZ)


@pytest.mark.parametrize("ranks, kind", [(2, "scaled"), (4, "plain")])
def test_ranks_that_draw_their_calls_stay_in_step(tmp_path, ranks, kind, soak):
    for seed in range(20 if soak else 1):
        run(ranks, "calls", kind, tmp_path, seed, 400 if soak else 40, patience=600, script=FUZZ)


def test_ctrl_c_on_one_rank_comes_before_or_after_a_whole_call(tmp_path, soak):
    for kind in ("clipped", "whole", "scaled", "plain") if soak else ("clipped",):
        printed = run(2, "interrupts", kind, tmp_path, *((0, 1) if soak else (3, 67)), patience=1200, script=FUZZ)
        assert "interrupted {'apply': " in printed


def test_ctrl_c_at_any_time_leaves_the_ranks_in_step(tmp_path, soak):
    assert "alarmed" in run(2, "alarms", "whole", tmp_path, 0, 4000 if soak else 40, patience=1200, script=FUZZ)


def test_ctrl_c_in_the_first_meeting_leaves_the_ranks_in_step(tmp_path):
    run(2, "first", "plain", tmp_path, script=FUZZ)


@pytest.mark.parametrize("what, message", [
    ("memory", "rank 1 stopped within apply: MemoryError: no room: the job ends"),
    ("meeting", "is at meeting "),
])
def test_an_error_in_the_middle_of_a_step_ends_the_job(tmp_path, what, message):
    process = start(2, "half", "clipped", tmp_path, what, script=FUZZ)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert message in output


def stepped(rate, **options):
    """A sharded optimizer of this one rank after a step with a rate, a function that may be called; its weights."""
    sharded, weights = mpi.Sharded(optimc.SGD(rate, use_ema=True, **options)), [np.ones(3, np.float32)]
    sharded.apply([np.ones(3)], weights)
    return sharded, weights


@pytest.mark.parametrize("make, messages", [
    (optimc.Adam, 3),                                               # meet, gradients, weights
    (lambda: optimc.Adam(clipnorm=1.0), 5),                         # and look, sums of squares
    (lambda: optimc.Muon(check_finite="skip"), 6),                  # and the products
])
def test_a_step_meets_no_more_than_it_must(make, messages, monkeypatch):
    sharded, weights, waits = mpi.Sharded(make()), [np.ones((2, 3), np.float32)], []
    sharded.build(weights)
    monkeypatch.setattr(sharded._team, "wait", waits.append)
    sharded.apply([weights[0].copy()])
    assert len(waits) == messages


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError, StopIteration, ValueError])
def test_whatever_a_schedule_raises_nothing_stays_locked(kind):
    raised = []

    def rate():
        if raised:
            raise raised.pop()
        return 0.25

    sharded, weights = stepped(rate)
    raised.append(kind("stop"))
    with pytest.raises(kind, match="stop"):
        sharded.apply([np.ones(3)], weights)
    sharded.apply([np.ones(3)], weights)
    assert weights[0].tolist() == [0.5] * 3 and sharded.iterations == 2


@pytest.mark.parametrize("act", [
    lambda sharded, weights: sharded.apply([np.ones(3)], weights),
    lambda sharded, weights: sharded.build([weights[0].copy()]),
    lambda sharded, weights: sharded.averaged().__enter__(),
    lambda sharded, weights: sharded.finalize_variable_values(),
    lambda sharded, weights: sharded.exclude_from_weight_decay([]),
    lambda sharded, weights: sharded.save("never"),
    lambda sharded, weights: mpi.Sharded(optimc.SGD()),
    lambda sharded, weights: mpi.load("never"),
])
def test_a_call_within_a_call_is_refused(act):
    acts = []

    def rate():
        if acts:
            acts.pop()(sharded, weights)
        return 0.25

    sharded, weights = stepped(rate)
    acts.append(act)
    with pytest.raises(RuntimeError, match=r"rank 0: \w+ was called within apply of the same communicator"):
        sharded.apply([np.ones(3)], weights)
    sharded.apply([np.ones(3)], weights)
    assert weights[0].tolist() == [0.5] * 3 and sharded.iterations == 2


def test_another_thread_builds_after_the_step():
    threads, moved = [], [np.full(3, 0.5, np.float32)]

    def rate():
        if threads:
            threads[0].start()
            threads[0].join(0.2)
            assert threads.pop().is_alive()
        return 0.25

    sharded, weights = stepped(rate)
    thread = threading.Thread(target=sharded.build, args=[moved])
    threads.append(thread)
    sharded.apply([np.ones(3)], weights)
    thread.join()
    sharded.apply([np.ones(3)])
    assert weights[0].tolist() == [0.5] * 3 and moved[0].tolist() == [0.25] * 3


def test_averages_that_end_in_another_order_leave_the_weights():
    sharded, weights = stepped(0.25)
    sharded.apply([np.ones(3)])
    one, two = sharded.averaged(), sharded.averaged()
    one.__enter__()
    assert weights[0][0] > 0.5
    two.__enter__()
    one.__exit__(None, None, None)
    two.__exit__(None, None, None)
    assert weights[0].tolist() == [0.5] * 3


def test_a_step_beside_averages_that_end_is_whole():
    sharded, weights = stepped(0.25)
    context = sharded.averaged()
    context.__enter__()

    def trace(frame, event, argument):
        with contextlib.suppress(RuntimeError):         # refused within averaged
            sharded.apply([np.ones(3)])
        return trace

    sys.settrace(trace)
    try:
        context.__exit__(None, None, None)
    finally:
        sys.settrace(None)
    assert sharded.iterations > 1 and weights[0].tolist() == [1 - 0.25 * sharded.iterations] * 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_program_of_the_how_to_prints_what_it_says(ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "howto" / "mpi.md").read_text("utf-8")
    fences = dict(re.findall(r"^```(python|text)\n(.*?)^```", page, re.M | re.S)[:2])
    (tmp_path / "train.py").write_text(fences["python"])
    assert run(ranks, script=tmp_path / "train.py") == fences["text"]
    assert (tmp_path / "run.optimc").exists()


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
