"""Threads and the environment: whole steps, no hangs, one clear error each.  For processes see test_processes.py."""

import os
import subprocess
import sys
import threading
import warnings

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


def test_openmp_of_the_environment_is_heeded():
    """torchrun sets OMP_NUM_THREADS=1, so that the processes of a machine leave each other their processors."""
    ask = "import optimc; print(optimc.get_num_threads())"
    most = run(ask, OMP_NUM_THREADS="").stdout
    for value, expected in (("1", "1\n"), ("1,4", "1\n"), ("1 ", "1\n"), ("1024", most), ("0", most), ("x", most),
                            ("1x", most)):
        assert run(ask, OMP_NUM_THREADS=value).stdout == expected, value
    assert run(ask, OMP_NUM_THREADS="1", OPTIMC_NUM_THREADS=most.strip()).stdout == most


WITH_RUNTIME = """
import ctypes, threading
import numpy as np
import optimc

entered, threads = [], 2
WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
def parallel(work, data, n, flags):
    entered.append((n, flags))
    helper = threading.Thread(target=WORK(work), args=(data,))
    helper.start()
    WORK(work)(data)
    helper.join()


@ctypes.CFUNCTYPE(ctypes.c_int)
def most():
    return threads


def address(function):
    return ctypes.cast(function, ctypes.c_void_p).value


def train():
    w, g = np.linspace(-1, 1, 2_000_003, dtype=np.float32), np.linspace(2, -1, 2_000_003, dtype=np.float32)
    optimizer = optimc.Adam(global_clipnorm=1.0)
    for _ in range(5):
        optimizer.apply([g], [w])
    return w


before = optimc.get_num_threads()
alone = train()
optimc._core._use_team(address(parallel), address(most))
"""


def with_runtime(code):
    done = run(WITH_RUNTIME + code)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(optimc.get_num_threads() < 2, reason="a single processor")
def test_steps_in_the_threads_of_a_runtime():
    """A runtime in Python, of one worker: the bits are those of the pool."""
    found = with_runtime("print((train() == alone).all(), set(entered), len(entered) > 0)")
    assert found == ["True", "{(0,", "0)}", "True"]


@pytest.mark.skipif(optimc.get_num_threads() < 2, reason="a single processor")
def test_a_runtime_says_how_many_threads_unless_optimc_is_told():
    found = with_runtime("""
threads = 1
print(optimc.get_num_threads(), (train() == alone).all(), len(entered))
optimc.set_num_threads(2)
print(optimc.get_num_threads(), (train() == alone).all(), len(entered))     # more than the team has: the pool's
threads = 2
optimc.set_num_threads(1)
print(optimc.get_num_threads(), (train() == alone).all(), len(entered))
optimc._core._use_team(0, 0)
optimc._core._force_threads(0)
print(optimc.get_num_threads() == before)
""")
    assert found == ["1", "True", "0", "2", "True", "0", "1", "True", "0", "True"]


@pytest.mark.skipif(optimc.get_num_threads() < 2, reason="a single processor")
def test_a_child_of_a_fork_leaves_the_team_of_its_parent():
    found = with_runtime("""
import os, warnings
warnings.simplefilter("ignore")
train()
asked = len(entered)
child = os.fork()
if not child:
    os._exit(int(not ((train() == alone).all() and len(entered) == asked)))
print(asked > 0, os.waitpid(child, 0)[1])
""")
    assert found == ["True", "0"]


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


@pytest.mark.parametrize("ask", [lambda o: setattr(o, "learning_rate", 1e-3), lambda o: o.state_dict()],
                         ids=["set", "state_dict"])
def test_who_waits_for_a_thread_that_trains_is_next(ask):
    """That thread has the GIL whenever its step does not: who waits gets neither without a turn of its own."""
    w = [np.ones(1_000_000, np.float32)]
    g = [w[0].copy()]
    optimizer, stop, asked = optimc.SGD(1e-3), threading.Event(), []
    optimizer.build(w)

    def train():
        while not stop.is_set():
            optimizer.apply(g, w)

    def wait():
        for _ in range(5):
            ask(optimizer)
            asked.append(optimizer.iterations)

    threads = [threading.Thread(target=train), threading.Thread(target=wait)]
    optimc_threads = optimc.get_num_threads()
    optimc.set_num_threads(1)
    try:
        for thread in threads:
            thread.start()
        threads[1].join(30)
        assert not threads[1].is_alive()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        optimc.set_num_threads(optimc_threads)
    assert len(asked) == 5


def test_threads_that_train_one_optimizer_take_turns():
    w = [np.ones(1_000_000, np.float32)]
    g = [w[0].copy()]
    optimizer, stop, steps = optimc.SGD(1e-3), threading.Event(), [0] * 4
    optimizer.build(w)

    def train(k):
        while not stop.is_set():
            optimizer.apply(g, w)
            steps[k] += 1
            if sum(steps) >= 400:
                stop.set()

    threads = [threading.Thread(target=train, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert optimizer.iterations == sum(steps)
    assert min(steps) >= 20


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


def test_more_weights_than_the_pool_takes_chunks():
    done = run("""
import numpy as np, optimc
from optimc.base import binding
matrices, empty = np.ones((2, 2, 2), np.float32), np.ones(0, np.float32)
optimizer, grad, many = optimc.Adafactor(0.5), np.ones((2, 2), np.float32), 1 << 18
optimizer.build([matrices[0], empty, matrices[1]])
state = optimizer._state.mapped(lambda arrays: [arrays[0], *[arrays[1]] * many, arrays[2]])
weights = [matrices[0], *[empty] * many, matrices[1]]
optimizer._bind(binding.plan_of(optimizer, weights, state.but(waiting=(False,) * len(weights))))
optimc._core._force_threads(2)
optimizer.apply([grad, *[empty] * many, grad])
print((matrices == 0.5).all())
""")
    assert done.stdout == "True\n", done.stderr


def test_what_a_step_reads_waits_for_it(threads):
    """Another thread sets the rate and rebuilds the plan all the time: every step still has one rate, one plan."""
    n = 300_000
    w, g = np.zeros(n, np.float32), np.ones(n, np.float32)
    optimizer = optimc.SGD(1.0)
    optimizer.build({"w": w})
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            for rate in (1.0, 2.0):
                optimizer.learning_rate = rate
                optimizer.clipvalue = rate
                optimizer.exclude_from_weight_decay(var_names=["w"])

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(300):
            optimizer.apply({"w": g}, {"w": w})
    finally:
        stop.set()
        thread.join()
    assert optimizer.iterations == 300
    assert (w == w[0]).all() and -600 <= w[0] <= -300


def test_a_new_exclusion_keeps_what_a_step_accumulates_meanwhile(monkeypatch):
    """Another thread's step comes while the plan is made anew: it waits, or its gradient would be lost."""
    weights, one = [np.zeros(1, np.float32) for _ in range(2)], np.ones(1, np.float32)
    optimizer = optimc.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.build(weights)
    stepper = threading.Thread(target=optimizer.apply, args=([one, one],))
    kernels = optimizer._kernels

    def meanwhile(*arguments):
        if not stepper.ident:
            stepper.start()
            stepper.join(0.2)
        return kernels(*arguments)

    monkeypatch.setattr(optimizer, "_kernels", meanwhile)
    optimizer.exclude_from_weight_decay(weights)
    stepper.join()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, one])
    assert weights == [-0.5, -1]


def test_two_optimizers_on_the_same_weights(threads):
    """Their values are not specified, but each element has got every step of at least one of them."""
    n, steps = 300_000, 100
    w, g = np.zeros(n, np.float32), np.ones(n, np.float32)
    optimizers = [optimc.SGD(1.0), optimc.SGD(1.0)]

    def work(optimizer):
        for _ in range(steps):
            optimizer.apply([g], [w])

    workers = [threading.Thread(target=work, args=(optimizer,)) for optimizer in optimizers]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [optimizer.iterations for optimizer in optimizers] == [steps, steps]
    assert (w == np.round(w)).all() and w.max() <= -1 and w.min() >= -2 * steps


def test_wrappers_that_share_optimizers_wait_in_one_order(threads):
    one, two = optimc.SGD(1.0), optimc.SGD(1.0)
    weights = {name: np.zeros(200_000, np.float32) for name in "ab"}
    one.build({"a": weights["a"]})
    two.build({"b": weights["b"]})
    grads = {name: np.ones_like(weight) for name, weight in weights.items()}

    def work(names):
        wrapper = optimc.MultiOptimizer(optimc.OptimizerMap(two, {"a": one}))
        for _ in range(100):
            wrapper.apply({name: grads[name] for name in names}, {name: weights[name] for name in names})

    workers = [threading.Thread(target=work, args=(names,), daemon=True) for names in ("ab", "ba")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert one.iterations == two.iterations == 200
    assert all((weight == -200).all() for weight in weights.values())


def test_a_warning_handler_cannot_rebuild_the_step_it_interrupts():
    weights = {name: np.ones(3, np.float32) for name in "ab"}
    optimizer = optimc.SGD(1.0)
    optimizer.build(weights)
    grads = {"a": None, "b": np.ones(3, np.float32)}
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *_: optimizer.exclude_from_weight_decay(var_names=["a"])
        with pytest.raises(RuntimeError, match="while one is in progress"):
            optimizer.apply(grads, weights)
    assert optimizer.iterations == 0 and (weights["b"] == 1).all()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply(grads, weights)
    assert optimizer.iterations == 1 and (weights["b"] == 0).all()
