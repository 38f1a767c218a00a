"""Processes and signals: no hang, and whole steps, whatever is forked, pooled, interrupted or ended."""

import copy
import ctypes
import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time

import jobs
import numpy as np
import pytest
from conftest import require
from places import search_path

import optimc

ENVIRONMENT = {**os.environ, "PYTHONPATH": search_path()}


def run(code, timeout=60, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout,
                          env={**ENVIRONMENT, **environment})


def succeed(code, timeout=60, **environment):
    done = run(code, timeout, **environment)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


# -------------------------------------------------------------------------------------------- fork

FORK = """
import os, random, signal, sys, threading, time, warnings
import numpy as np, optimc, jobs
from optimc import _core
warnings.simplefilter("ignore")
_core._force_threads(2)

def fork_and(check, then=lambda: None):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            os._exit(0 if check() else 3)
        finally:
            os._exit(4)
    then()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def child_trains():
    return jobs.same(jobs.train(optimc.Adam())[0], straight)

straight = jobs.train(optimc.Adam())[0] if {before} else None
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("code", [
    "straight = None; c = fork_and(lambda: jobs.train(optimc.Adam())); sys.exit(c)",
    "straight = jobs.train(optimc.Adam())[0]; sys.exit(fork_and(child_trains))",
    "straight = jobs.train(optimc.Adam())[0]; c = fork_and(child_trains); "
    "sys.exit(c or not child_trains() or fork_and(lambda: child_trains() and fork_and(child_trains) == 0))",
    "straight = jobs.train(optimc.Adam())[0]; r = []; "
    "t = threading.Thread(target=lambda: r.append(fork_and(child_trains))); t.start(); t.join(); sys.exit(r[0])",
], ids=["before the pool", "after", "twice, and in the child", "from a thread"])
def test_fork(code):
    succeed(FORK.replace("{before}", "False") + code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("name", sorted({*jobs.SUBJECTS} - {"Muon"}))
def test_a_fork_during_steps_finds_a_whole_one(name, soak):
    """Two threads share an optimizer, so one steps or has just stepped, and one waits for it.

    A matrix product of another thread is the BLAS's, which need not survive a fork.
    """
    succeed(FORK.replace("{before}", "False") + f"""
subject, rng = jobs.SUBJECTS[{name!r}](), random.Random(0)
subject.step()
done, go = threading.Event(), threading.Event()
def work():
    while not done.is_set():
        go.wait()
        subject.step()
def check():
    before = subject.check()                        # what the parent was doing has been done, or not begun
    for _ in range(3):
        subject.step()
    return before and subject.check()
workers = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for worker in workers:
    worker.start()
codes = []
for _ in range({200 if soak else 12}):
    go.set()
    time.sleep(rng.random() * 0.01)
    codes.append(fork_and(check, go.clear))
    subject.check()                                 # lets the twin catch up
done.set()
go.set()
for worker in workers:
    worker.join()
assert subject.check()
sys.exit(max(codes, key=abs))
""", timeout=600 if soak else 60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_inside_a_schedule_goes_on_in_both():
    succeed(FORK.replace("{before}", "False") + """
w, children = np.zeros(jobs.SIZE, np.float32), []
def rate():
    children.append(os.fork())
    return 1.0
optimizer = optimc.SGD(rate)
optimizer.apply([np.ones_like(w)], [w])
optimizer.learning_rate = 2.0
optimizer.apply([np.ones_like(w)], [w])
assert (w == -3).all() and optimizer.iterations == 2
if children[0]:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_step_that_goes_on_after_a_fork_is_waited_for():
    """The child makes its thread itself: CPython 3.13.0 starts none that was made before the fork."""
    succeed("""
import os, sys, threading
import numpy as np, optimc
forked, threads, weights, iterations = [], [], [np.ones(1000, np.float32)], []

def rate():
    if optimizer.iterations == 1 and not forked:
        forked.append(os.fork())
        if forked[0]:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]))
        threads.append(threading.Thread(target=lambda: iterations.append(step())))
        threads[0].start()
        threads[0].join(0.2)
        if iterations:
            os._exit(3)                             # it did not wait
    return 0.01

def step():
    optimizer.apply([np.ones(1000, np.float32)], weights)
    return optimizer.iterations

optimizer = optimc.Adam(rate)
step()
step()
threads[0].join()
os._exit(0 if iterations == [3] else 4)
""")


# ------------------------------------------------------------------------------ pools of processes


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method):
    """Optimizers travel to workers and back; the workers' steps have the same bits."""
    out = succeed(f"""
import multiprocessing, warnings, optimc, jobs
warnings.simplefilter("ignore")
if __name__ == "__main__":
    straight, optimizer = jobs.train(optimc.Adam())
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        for weights, moved in pool.map(jobs.train, [optimc.Adam()] * 3):
            assert jobs.same(weights, straight) and moved.iterations == 3
            assert jobs.same(moved.variables, optimizer.variables)
    print("done")
""")
    assert out.split() == ["done"]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(backend):
    require("joblib")
    out = succeed(f"""
import joblib, warnings, optimc, jobs
warnings.simplefilter("ignore")
if __name__ == "__main__":
    straight, _ = jobs.train(optimc.Adam())
    for _ in range(2):
        for weights, moved in joblib.Parallel(2, backend={backend!r})(
                joblib.delayed(jobs.train)(optimc.Adam()) for _ in range(3)):
            assert jobs.same(weights, straight) and moved.iterations == 3
    print("done")
""")
    assert out.split() == ["done"]


def test_threadpoolctl():
    """Its limits hold, for optimc alone and for all, and end; other libraries are left alone."""
    require("threadpoolctl")
    succeed("""
import numpy, threadpoolctl, optimc
from optimc import _core
others = threadpoolctl.threadpool_info()
import optimc.threadpoolctl
_core._force_threads(2)
info = threadpoolctl.threadpool_info()
own, = [entry for entry in info if entry["user_api"] == "optimc"]
assert own["num_threads"] == 2 and own["version"] == optimc.__version__ and own["filepath"] == _core.__file__
assert [entry for entry in info if entry != own] == others
for limits in (1, {"optimc": 1}):
    with threadpoolctl.threadpool_limits(limits):
        assert optimc.get_num_threads() == 1
import doctest
assert not doctest.testmod(optimc.threadpoolctl).failed
""")


# -------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("code", [
    "jobs.train(optimc.Adam())",
    "def work():\n"
    "    while True:\n"
    "        jobs.train(optimc.Adam())\n"
    "threading.Thread(target=work, daemon=True).start(); time.sleep(0.2)",
    "def leave():\n"
    "    jobs.train(optimc.Adam())\n"
    "    sys.exit()\n"
    "thread = threading.Thread(target=leave); thread.start(); thread.join()",
    "import atexit; atexit.register(jobs.train, optimc.Adam())",
], ids=["pool alive", "a daemon steps", "a thread leaves", "steps at exit"])
def test_the_interpreter_ends(code):
    assert succeed(FORK.replace("{before}", "False") + code + "\nprint('end')").split() == ["end"]


# ----------------------------------------------------------------------------------------- signals


def test_workers_block_signals():
    out = succeed(FORK.replace("{before}", "True") + """
main = os.getpid()
blocked = [int(line.split()[1], 16) for task in os.listdir("/proc/self/task") if int(task) != main
           for line in open(f"/proc/self/task/{task}/status") if line.startswith("SigBlk")]
every = sum(1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1))
print(len([mask for mask in blocked if mask & every == every]))
""", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    assert int(out) == 1


@pytest.mark.parametrize("name", jobs.SUBJECTS)
def test_ctrl_c_leaves_whole_steps(name, soak):
    """SIGINT at random moments; afterwards the weights and slots are those of as many steps as are counted."""
    rng = random.Random(name)
    stepper = subprocess.Popen([sys.executable, "-c", f"import jobs; jobs.interrupt({name!r})"], env=ENVIRONMENT,
                               stdout=subprocess.PIPE, text=True)
    before = 0
    try:
        for _ in range(400 if soak else 20):
            word, step = stepper.stdout.readline().split()
            assert word == "stepping"
            time.sleep(rng.random() * max(0.02, 2 * float(step)))
            stepper.send_signal(signal.SIGINT)
            word, iterations = stepper.stdout.readline().split()
            assert word == "whole" and int(iterations) >= before
            before = int(iterations)
    finally:
        stepper.kill()
        stepper.wait()
        stepper.stdout.close()
    assert before > 5


def test_ctrl_c_between_the_halves_of_a_step_gives_it_up():
    """The signal arrives in C, while a step is checked, so that Python hears of it between check and run."""
    rate = functools.partial(getattr(ctypes.CDLL(None), "raise"), signal.SIGINT)
    for make in (lambda: optimc.Muon(rate),
                 lambda: optimc.LossScaleOptimizer(optimc.SGD(rate)),
                 lambda: optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD(0.5), {"a": optimc.SGD(rate)})),
                 lambda: optimc.SGD(rate)):
        optimizer, weights = make(), {"a": np.ones((2, 2), np.float32), "b": np.ones(2, np.float32)}
        grads = {name: np.ones_like(weight) for name, weight in weights.items()}
        optimizer.build(weights)
        with pytest.raises(KeyboardInterrupt):
            optimizer.apply(grads, weights)
        assert optimizer.iterations == isinstance(optimizer, optimc.SGD)    # one call into C: the step is whole
        assert all((weight == 1).all() for weight in weights.values())
        for one in optimizer._inner() if hasattr(optimizer, "_inner") else [optimizer]:
            one.learning_rate = 0.5
        optimizer.apply(grads, weights)
        assert all((weight < 1).any() for weight in weights.values())


def test_ctrl_c_reaches_a_thread_that_waits_for_a_step():
    """The wait for another thread's step ends with that step."""
    w = np.zeros(3_000_000, np.float32)
    optimizer = optimc.SGD(1.0)
    optimizer.build([w])
    stop = threading.Event()

    def work():
        while not stop.is_set():
            optimizer.apply([np.ones_like(w)], [w])

    worker = threading.Thread(target=work)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    worker.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                optimizer.apply([np.ones_like(w)], [w])
    finally:
        stop.set()
        worker.join()
        timer.join()
    assert (w == -optimizer.iterations).all()


@pytest.mark.parametrize("action", [
    lambda optimizer, weights: optimizer.build(weights),
    lambda optimizer, weights: optimizer.finalize_variable_values(),
    lambda optimizer, weights: optimizer.save(os.devnull),
    lambda optimizer, weights: optimc.MultiOptimizer(optimc.OptimizerMap(optimizer)).save(os.devnull),
    lambda optimizer, weights: optimizer.state_dict(),
    lambda optimizer, weights: optimizer.load_state_dict(optimizer.state_dict()),
    lambda optimizer, weights: copy.deepcopy(optimizer),
], ids=["build", "finalize", "save", "a wrapper's save", "state_dict", "load_state_dict", "copy"])
def test_ctrl_c_while_waiting_for_a_step_leaves_no_lock(action):
    """The signal is pending when the wait ends, so that Python hears of it with the lock just taken."""
    started, ready, weights = threading.Event(), threading.Event(), [np.ones(3, np.float32)]

    def rate():
        started.set()
        ready.wait()
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        return 0.5

    def step():
        optimizer.apply([np.ones(3, np.float32)])

    optimizer = optimc.SGD(rate, use_ema=True)
    optimizer.build(weights)
    stepper = threading.Thread(target=step)
    stepper.start()
    started.wait()
    with pytest.raises(KeyboardInterrupt):
        ready.set()
        action(optimizer, weights)
    stepper.join()
    optimizer.learning_rate = 0.5
    step()
    assert optimizer.iterations == 2
