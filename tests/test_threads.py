"""Threads, processes and the environment: whole steps, no hangs, one clear error each."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from cases import assert_same_bits

import optimc
from optimc import _core


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment})


def test_thread_counts(monkeypatch):
    before = optimc.get_num_threads()
    try:
        optimc.set_num_threads(1)
        assert optimc.get_num_threads() == 1
        for bad, error in ((0, ValueError), (-1, ValueError), (1025, ValueError), (2 ** 80, ValueError),
                           (True, TypeError), (1.0, TypeError), ("2", TypeError), (None, TypeError)):
            with pytest.raises(error, match="threads"):
                optimc.set_num_threads(bad)
        assert optimc.get_num_threads() == 1
        with pytest.warns(UserWarning, match="threads: using"):
            optimc.set_num_threads(1024)
        assert optimc.get_num_threads() <= len(os.sched_getaffinity(0))
    finally:
        optimc.set_num_threads(before)


def test_environment():
    ok = run("import optimc; print(optimc.isa, optimc.get_num_threads())",
             OPTIMC_ISA="baseline", OPTIMC_NUM_THREADS="1")
    assert ok.stdout.split() == ["baseline", "1"], ok.stderr
    empty = run("import optimc; print(optimc.isa)", OPTIMC_ISA="", OPTIMC_NUM_THREADS="")
    assert empty.stdout.split() == [_core.isas[-1]]
    bad = run("import optimc", OPTIMC_ISA="sse9")
    assert bad.stderr.splitlines()[-1].startswith("ImportError: OPTIMC_ISA=sse9: no such ISA here")
    assert all(name in bad.stderr for name in _core.isas)
    for value in ("0", "x", "-1", "2x", "99999999999999999999"):
        bad = run("import optimc", OPTIMC_NUM_THREADS=value)
        assert "ImportError: OPTIMC_NUM_THREADS=" in bad.stderr.splitlines()[-1]


def test_affinity_is_honoured():
    one = run("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
              "import optimc; print(optimc.get_num_threads())")
    assert one.stdout.strip() == "1", one.stderr


def test_two_python_threads_give_whole_steps(threads):
    """Steps of w <- w - 1 commute, so whole steps give exact counts; torn ones would not."""
    n = 300_000
    w, g = np.zeros(n, np.float32), np.ones(n, np.float32)
    optimizer = optimc.SGD(1.0)
    optimizer.build([w])

    def work():
        for _ in range(60):
            optimizer.apply([g], [w])

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert optimizer.iterations == 180
    assert (w == -180).all()


def test_large_steps_give_up_the_gil():
    """While one thread steps, another gets to run Python."""
    w, g = np.zeros(20_000_000, np.float32), np.ones(20_000_000, np.float32)
    optimizer = optimc.Adam()
    optimizer.build([w])
    inside, ticks, stop = threading.Event(), [0], threading.Event()

    def tick():
        inside.set()
        while not stop.is_set():
            ticks[0] += 1

    ticker = threading.Thread(target=tick)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.5)             # only giving up the GIL lets the other thread in
    try:
        ticker.start()
        inside.wait()
        before = ticks[0]
        optimizer.apply([g], [w])
        assert ticks[0] > before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        ticker.join()


def test_steps_of_two_optimizers_run_side_by_side(threads):
    def job(result):
        w, g = np.linspace(-1, 1, 200_001, dtype=np.float32), np.linspace(2, -1, 200_001, dtype=np.float32)
        optimizer = optimc.Adam()
        for _ in range(30):
            optimizer.apply([g], [w])
        result.append(w)

    results = [[] for _ in range(3)]
    workers = [threading.Thread(target=job, args=(result,)) for result in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert_same_bits(results[0][0], results[1][0])
    assert_same_bits(results[0][0], results[2][0])


FORK = """
import os, signal, sys, threading, warnings
import numpy as np, optimc
from optimc import _core
warnings.simplefilter("ignore")
_core._force_threads(2)
n = 100_000
w, g = np.zeros(n, np.float32), np.ones(n, np.float32)
optimizer = optimc.SGD(1.0)
optimizer.build([w])
def step(k=3):
    for _ in range(k):
        optimizer.apply([g], [w])
def fork_and_step():
    signal.alarm(20)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        before = w[0]
        step()
        os._exit(0 if (w == before - 3).all() else 3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("code", [
    "sys.exit(fork_and_step())",
    "step(); sys.exit(fork_and_step())",
    "step(); c = fork_and_step(); step(); sys.exit(c or fork_and_step())",
    "r = []; t = threading.Thread(target=lambda: r.append(fork_and_step())); t.start(); t.join(); "
    "sys.exit(r[0])",
    # a fork while another thread steps: the child gets a whole step and a lock it can take
    "t = threading.Thread(target=step, args=(3000,)); t.start(); "
    "c = [fork_and_step() for _ in range(5)]; t.join(); sys.exit(max(c))",
], ids=["before", "after", "twice", "from a thread", "during steps"])
def test_fork(code):
    done = run(FORK + code)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method):
    done = run(f"""
import multiprocessing as mp, warnings
import numpy as np, optimc
warnings.simplefilter("ignore")
def main():
    w = np.zeros(400_000, np.float32)
    opt = optimc.SGD(1.0)
    opt.apply([np.ones_like(w)], [w])
    with mp.get_context({method!r}).Pool(2) as pool:
        print(sum(pool.map(optimc.get, ["adam"] * 4), start=[]) if False else
              [o.name for o in pool.map(optimc.get, ["adam"] * 4)])
if __name__ == "__main__":
    main()
""" if method == "fork" else f"""
import multiprocessing as mp, optimc
if __name__ == "__main__":
    with mp.get_context({method!r}).Pool(1) as pool:
        print([o.name for o in pool.map(optimc.get, ["adam"])])
""")
    assert done.returncode == 0 and "'adam'" in done.stdout, done.stderr


def test_exit_with_the_pool_alive():
    done = run("import numpy as np, optimc\nfrom optimc import _core\n_core._force_threads(2)\n"
               "w = np.zeros(100_000, np.float32)\noptimc.SGD(1.0).apply([np.ones_like(w)], [w])\n"
               "print(w[0])")
    assert (done.returncode, done.stdout.strip()) == (0, "-1.0"), done.stderr


def test_workers_block_signals():
    done = run("""
import os, signal, numpy as np, optimc
from optimc import _core
_core._force_threads(2)
w = np.zeros(100_000, np.float32)
optimc.SGD(1.0).apply([np.ones_like(w)], [w])
main = os.getpid()
blocked = [int(line.split()[1], 16) for task in os.listdir("/proc/self/task") if int(task) != main
           for line in open(f"/proc/self/task/{task}/status") if line.startswith("SigBlk")]
ours = [mask for mask in blocked if mask >> (signal.SIGINT - 1) & 1]
print(len(ours))
""", OPENBLAS_NUM_THREADS="1")
    assert int(done.stdout) >= 1, done.stderr


def test_ctrl_c_leaves_a_whole_step():
    w, g = np.zeros(30_000_000, np.float32), np.ones(30_000_000, np.float32)
    optimizer = optimc.SGD(1.0)
    optimizer.build([w])
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            optimizer.apply([g], [w])
    timer.join()
    assert (w == -optimizer.iterations).all()
