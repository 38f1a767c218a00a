"""Waiting for a turn: whose turn it is when threads end, are interrupted, or use the optimizer while they wait."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from forks import fork
from places import search_path

import optimc
from optimc import _core

ONE = np.ones(3, np.float32)


class Held:
    """An optimizer whose turn a thread has, within a schedule, until it is let go."""

    def __init__(self, **arguments):
        self.inside, self.go, self.first = threading.Event(), threading.Event(), True
        self.weights = np.zeros(3, np.float32)
        self.optimizer = optimc.SGD(self.rate, **arguments)
        self.optimizer.build([self.weights])
        self.owner = threading.Thread(target=self.step)

    def rate(self):
        if self.first:
            self.first = False
            self.inside.set()
            self.go.wait()
        return 1.0

    def step(self):
        self.optimizer.apply([ONE])

    def __enter__(self):
        self.owner.start()
        self.inside.wait()
        return self

    def __exit__(self, *args):
        self.go.set()
        self.owner.join()


@pytest.fixture
def on_signal():
    """Sets what SIGUSR1 does, and gives a function that sends it, time and again, once this thread waits."""
    before = signal.getsignal(signal.SIGUSR1)
    over, threads = threading.Event(), []

    def send():
        while not over.wait(0.02):
            os.kill(os.getpid(), signal.SIGUSR1)

    def start(handler):
        signal.signal(signal.SIGUSR1, handler)
        threads.append(threading.Thread(target=send))
        threads[0].start()

    yield start
    over.set()
    for thread in threads:
        thread.join()
    signal.signal(signal.SIGUSR1, before)


def interrupt(*_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    raise KeyboardInterrupt


@pytest.mark.parametrize("wait", [
    lambda held: held.step(),
    lambda held: held.optimizer.state_dict(),
    lambda held: setattr(held.optimizer, "momentum", 0.0),
    lambda held: optimc.MultiOptimizer(optimc.OptimizerMap(held.optimizer)).apply({"0": ONE}, {"0": held.weights}),
], ids=["step", "state_dict", "set", "a wrapper's step"])
def test_ctrl_c_ends_the_wait_for_a_turn(wait, on_signal):
    with Held() as held:
        on_signal(interrupt)
        with pytest.raises(KeyboardInterrupt):
            wait(held)                                  # the owner never ends while this waits
        assert held.owner.is_alive()
    held.step()
    assert held.optimizer.iterations == 2 and (held.weights == -2).all()


def test_who_waits_behind_an_interrupted_thread_goes_on(on_signal):
    order = []

    def step(k):
        held.step()
        order.append(k)

    with Held() as held:
        started = []
        for k in range(3):
            started.append(threading.Thread(target=step, args=(k,)))
            started[k].start()
        on_signal(interrupt)
        with pytest.raises(KeyboardInterrupt):
            held.step()
    for thread in started:
        thread.join(20)
    assert sorted(order) == [0, 1, 2] and held.optimizer.iterations == 4 and (held.weights == -4).all()


@pytest.mark.parametrize("use", [lambda held: held.step(), lambda held: held.optimizer.state_dict(),
                                 lambda held: setattr(held.optimizer, "momentum", 0.0)],
                         ids=["step", "state_dict", "set"])
def test_a_signal_handler_may_use_the_optimizer_that_is_waited_for(use, on_signal):
    used = []

    def handler(*_):
        if not used:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            used.append(True)
            held.go.set()
            use(held)

    with Held() as held:
        on_signal(handler)
        held.step()
    assert used and (held.weights == -held.optimizer.iterations).all() and held.optimizer.iterations >= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_a_signal_handler_has_the_turn_that_is_waited_for(on_signal):
    children = []

    def handler(*_):
        if not children:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            children.append(fork())
            held.go.set()

    with Held() as held:
        on_signal(handler)
        try:
            held.step()                                 # in the child the owner does not exist: its step never was
            whole = held.optimizer.iterations == 1 and (held.weights == -1).all()
        finally:
            if children == [0]:
                os._exit(not whole)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert held.optimizer.iterations == 2


def test_the_turn_of_a_thread_that_ended_is_nobodys():
    """A transaction that the program holds outlives the thread that began it."""
    weights, held = np.zeros(3, np.float32), []
    optimizer = optimc.SGD(1.0)
    optimizer.build([weights])

    def begin():
        held.append(_core.Transaction())
        held[0].check(optimizer, [ONE])

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    optimizer.learning_rate = 2.0
    optimizer.apply([ONE])
    with pytest.raises(RuntimeError, match="checked by a thread that is gone"):
        held[0].commit()
    optimizer.apply([ONE])
    assert (weights == -4).all() and optimizer.iterations == 2


def test_who_waits_for_a_thread_that_ends_goes_on():
    weights, held, taken, go = np.zeros(3, np.float32), [], threading.Event(), threading.Event()
    optimizer = optimc.SGD(1.0)
    optimizer.build([weights])

    def begin():
        held.append(_core.Transaction())
        held[0].check(optimizer, [ONE])
        taken.set()
        go.wait()

    owner = threading.Thread(target=begin)
    waiting = [threading.Thread(target=optimizer.apply, args=([ONE],)) for _ in range(2)]
    owner.start()
    taken.wait()
    for thread in waiting:
        thread.start()
    go.set()
    for thread in (owner, *waiting):
        thread.join(20)
    assert (weights == -2).all() and optimizer.iterations == 2


ENDS = """
import collections, itertools, threading, time, numpy as np, optimc
w = np.zeros(1 << 22, np.float32)
opt = optimc.SGD(1.0)
opt.build([w])
opt.apply([w + 1])
class Last:
    kept = opt, w, w * 0 + 1
    def __del__(self):
        opt, w, g = self.kept
        opt.learning_rate = 1.0
        for _ in range(3):
            opt.apply([g])
        print(w.tobytes() == w[:1].tobytes() * len(w) and w[0] == -opt.iterations)  # `all` would import
last = Last()
for _ in range(3):                                      # one steps, the others wait; all are ended where they are
    threading.Thread(target=collections.deque, args=(map(opt.apply, itertools.repeat([w * 0 + 1])), 0),
                     daemon=True).start()
while opt.iterations < 20:
    time.sleep(0.001)
"""


def test_a_daemon_that_is_ended_with_a_turn_holds_up_nobody():
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=True,
                          env={**os.environ, "PYTHONPATH": search_path()})
    assert (done.stdout, done.stderr) == ("True\n", "")
