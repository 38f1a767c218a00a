"""`averaged()` gives the trained weights back whatever interrupts it, and in whatever order contexts end."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from cases import assert_same_bits
from forks import fork
from interrupting import every_interruption
from jobs import same

import optimc
from optimc import _core

F = np.float32


def names(*optimizers):
    return optimc.OptimizerMap(optimizers[0], dict(zip("bc", optimizers[1:], strict=False)))


MAKERS = {
    "SGD": lambda: optimc.SGD(0.5, use_ema=True, ema_momentum=0.5),
    "ASGD": lambda: optimc.ASGD(0.5, t0=0),
    "ScheduleFreeAdamW": lambda: optimc.ScheduleFreeAdamW(0.5),
    "ScheduleFreeAdamW, EMA": lambda: optimc.ScheduleFreeAdamW(0.5, use_ema=True, ema_momentum=0.5),
    "LossScaleOptimizer": lambda: optimc.LossScaleOptimizer(optimc.Adam(0.5, use_ema=True), 1.0),
    "MultiOptimizer": lambda: optimc.MultiOptimizer(names(
        optimc.SGD(0.5, use_ema=True), optimc.SGD(0.5), optimc.ScheduleFreeAdamW(0.5))),
}


class Trained:
    """An optimizer after some steps: its weights as trained, and as they are in an evaluation."""

    def __init__(self, make, size=3):
        self.optimizer = make()
        self.weights = {"a": np.ones((size, 2), F), "b": np.asfortranarray(np.ones((2, size), F)), "c": np.ones(size),
                        "d": np.ones(0, F)}
        for k in range(3):
            self.step(k)
        self.trained = self.copied()
        with self.optimizer.averaged():
            self.averages = self.copied()
        self.are(self.trained)
        assert (self.averages["a"] != self.trained["a"]).any()

    def step(self, k=1):
        self.optimizer.apply({name: weight * 0 + k + 1 for name, weight in self.weights.items()}, self.weights)

    def copied(self):
        return {name: weight.copy() for name, weight in self.weights.items()}

    def are(self, expected):
        for name, weight in self.weights.items():
            assert_same_bits(weight, expected[name], name)

    def goes_on(self):
        """The weights are the trained ones, and a step is one from there."""
        self.are(self.trained)
        twin, weights = copy.deepcopy(self.optimizer), self.copied()
        grads = {name: weight * 0 + 1 for name, weight in weights.items()}
        twin.build(weights)
        twin.apply(grads, weights)
        self.optimizer.apply(grads, self.weights)
        self.are(weights)


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_contexts_end_in_any_order(make, order):
    job = Trained(make)
    contexts = [job.optimizer.averaged() for _ in order]
    for context in contexts:
        context.__enter__()
        job.are(job.averages)
    for k in order:
        job.are(job.averages)
        with pytest.raises(RuntimeError, match=r"^within averaged\(\)"):
            job.step()
        contexts[k].__exit__(None, None, None)
    job.goes_on()


def test_optimizers_may_share_a_weight():
    weight, make = np.ones(3, F), MAKERS["SGD"]
    weights = {"a": weight, "b": weight}
    optimizer = optimc.MultiOptimizer(names(make(), make()))
    for k in range(3):
        optimizer.apply({name: weight * 0 + k + 1 for name in weights}, weights)
    trained = weight.copy()
    with optimizer.averaged():
        assert (weight != trained).all()
    assert_same_bits(weight, trained, "the shared weight")


def test_threads_evaluate_side_by_side():
    """Large weights are copied without the GIL."""
    job, errors = Trained(MAKERS["SGD"], size=300_000), []

    def evaluate():
        for _ in range(30):
            with job.optimizer.averaged():
                if job.weights["a"][0, 0] != job.averages["a"][0, 0] or job.weights["c"][-1] != job.averages["c"][-1]:
                    errors.append("not the averages")

    threads = [threading.Thread(target=evaluate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    job.goes_on()


def test_a_context_that_is_lost_is_left(make):
    job = Trained(make)
    context = job.optimizer.averaged()
    context.__enter__()
    del context
    job.goes_on()


def test_a_context_in_a_cycle_is_left():
    job = Trained(MAKERS["SGD"])
    ring = [job.optimizer.averaged()]
    ring.append(ring)
    job.optimizer._ring = ring
    ring[0].__enter__()
    job.optimizer = None
    del ring
    gc.collect()
    job.are(job.trained)


def test_ctrl_c_at_any_point_gives_the_trained_weights_back(make):
    job = Trained(make)

    def evaluate():
        with job.optimizer.averaged(), job.optimizer.averaged():
            pass

    for _ in every_interruption(evaluate, opcodes=True):
        job.are(job.trained)
        job.step()
        job.trained = job.copied()
    job.goes_on()


def test_ctrl_c_at_any_point_finalizes_all_weights_or_none(make):
    jobs = []

    def prepare():
        jobs.append(Trained(make))
        return jobs[-1].optimizer.finalize_variable_values

    for _ in every_interruption(prepare=prepare, opcodes=True):
        job = jobs[-1]
        now = job.copied()
        job.optimizer.finalize_variable_values()
        assert any(same(now.values(), whole.values()) for whole in (job.trained, job.weights))


def test_misuse_is_refused(make):
    job = Trained(make)
    context = job.optimizer.averaged()
    with pytest.raises(RuntimeError, match="the context was not entered"):
        context.__exit__(None, None, None)
    with context:
        with pytest.raises(RuntimeError, match="the context is in use"):
            context.__enter__()
        with pytest.raises(RuntimeError, match=r"^within averaged\(\).*build after it"):
            job.optimizer.build({name: weight.copy() for name, weight in job.weights.items()})
        with pytest.raises(ValueError, match="weights"), job.optimizer.averaged({"a": job.weights["a"]}):
            pass
        job.are(job.averages)
    with context:                                       # it may be entered again
        job.are(job.averages)
    job.goes_on()


def test_averages_are_not_put_in_for_good_within_a_context():
    job = Trained(MAKERS["SGD"])
    with job.optimizer.averaged(), pytest.raises(RuntimeError, match="finalize them after it"):
        job.optimizer.finalize_variable_values()
    job.goes_on()


def test_copies_within_a_context_are_those_outside(make, tmp_path):
    job = Trained(make)
    with job.optimizer.averaged():
        job.optimizer.save(tmp_path / "x")
        copies = [copy.deepcopy(job.optimizer), pickle.loads(pickle.dumps(job.optimizer)),
                  optimc.load(tmp_path / "x")]
    starts = job.copied()
    job.goes_on()
    for other in copies:
        weights = {name: weight.copy(order="K") for name, weight in starts.items()}
        other.build(weights)
        other.apply({name: weight * 0 + 1 for name, weight in weights.items()}, weights)
        job.are(weights)


def test_state_is_loaded_within_a_context():
    job = Trained(MAKERS["SGD"])
    state = job.optimizer.state_dict()
    with job.optimizer.averaged():
        job.optimizer.load_state_dict(state)
        with job.optimizer.averaged():
            job.are(job.averages)
    job.goes_on()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("by", ["this thread", "another thread"])
@pytest.mark.parametrize("size", [3, 300_000])
def test_a_child_has_the_trained_weights_back(by, size):
    """This thread's context ends in the child too; that of another thread, which the child lacks, has ended there."""
    job = Trained(MAKERS["MultiOptimizer"], size)
    inside, go = threading.Event(), threading.Event()

    def evaluate():
        with job.optimizer.averaged():
            inside.set()
            go.wait()

    def child(whole):
        pid = fork()
        if not pid:
            try:
                whole()
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    if by == "another thread":
        thread = threading.Thread(target=evaluate)
        thread.start()
        inside.wait()
        code = child(lambda: (job.are(job.trained), job.goes_on()))
        go.set()
        thread.join()
    else:
        context = job.optimizer.averaged()
        with context:
            code = child(lambda: (context.__exit__(None, None, None), job.goes_on()))
    assert code == 0
    job.goes_on()


GARBAGE = """if True:
    import ctypes, gc, os, threading
    import numpy as np
    import optimc

    class Source:
        def __call__(self):
            return 0.5

    def make(weight):
        optimizer, source = optimc.SGD(0.5, use_ema=True), Source()
        optimizer.learning_rate = source
        for k in (1, 2):
            optimizer.apply([np.full_like(weight, k)], [weight])
        trained, source.context = weight.copy(), optimizer.averaged()
        thread = threading.Thread(target=source.context.__enter__)
        thread.start()
        thread.join()
        return trained

    gc.disable()
    weight = np.ones(1 << 18, np.float32)
    trained = make(weight)
    pid = ctypes.PyDLL(None).fork()
    if not pid:
        gc.collect()
        os._exit(not (weight == trained).all())
    assert os.waitpid(pid, 0)[1] == 0"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_an_optimizer_that_is_garbage_in_a_child_puts_its_weights_back():
    """It is cleared before its context, whose thread is gone there.  A C library forks: Python's hooks do not run."""
    run = subprocess.run([sys.executable, "-c", GARBAGE], env={**os.environ, "PYTHONMALLOC": "debug"},
                         capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("whole", [(None,), ([1.0, 2.0],), [np.ones(2, np.float32)]])
def test_only_arrays_are_kept(whole):
    weights = [np.ones(2, np.float32)]
    optimizer = optimc.SGD(0.5, use_ema=True)
    optimizer.apply([np.ones(2)], weights)
    with pytest.raises(TypeError), _core.Averaged([optimizer], lambda one: one._averages, whole):
        raise AssertionError("entered")
    optimizer.apply([np.ones(2)], weights)
    assert optimizer.iterations == 2
