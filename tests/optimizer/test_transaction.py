"""A transaction: steps that are checked one after the other, and committed together or not at all."""

import contextlib
import gc
import os
import signal
import sys
import threading

import forks
import numpy as np
import pytest
from cases import assert_same_bits

import optimc
from optimc import _core, schedules


@pytest.fixture
def pair():
    """Two optimizers with momentum and accumulated averages, their gradients and weights."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=n).astype(np.float32) for n in (5, 7)]
    optimizers = [optimc.SGD(0.5, momentum=0.5, use_ema=True), optimc.Adam(0.5, check_finite="skip")]
    for optimizer, w in zip(optimizers, weights, strict=True):
        optimizer.apply([w * 2], [w])
    return optimizers, [np.ones_like(w) for w in weights], weights


def state_of(optimizers, weights):
    return repr([[w.tobytes() for w in weights], *[
        (o.iterations, o.skipped_steps, [array.tobytes() for array in o.variables], o._get_running(), o.built)
        for o in optimizers]])


def is_free(optimizer):
    """Whether another thread can lock an optimizer at once."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: optimizer._locked(done.set), daemon=True)
    thread.start()
    return done.wait(10)


def check_both(steps, pair):
    for optimizer, grad, w in zip(*pair, strict=True):
        assert steps.check(optimizer, [grad], [w])


def test_a_commit_makes_every_step(pair):
    optimizers, grads, weights = pair
    twins, expected = [o.__deepcopy__({}) for o in optimizers], [w.copy() for w in weights]
    for twin, grad, w in zip(twins, grads, expected, strict=True):
        twin.apply([grad], [w])
    with _core.Transaction() as steps:
        check_both(steps, pair)
        assert not steps.committed and [o.iterations for o in optimizers] == [1, 1]
        steps.commit()
        assert steps.committed
    for w, e in zip(weights, expected, strict=True):
        assert_same_bits(w, e)
    assert state_of(optimizers, weights) == state_of(twins, expected) and all(map(is_free, optimizers))


def leave(steps):
    raise KeyError("left")


def test_what_was_not_committed_is_given_up(pair):
    optimizers, _, weights = pair
    before = state_of(optimizers, weights)
    with _core.Transaction() as steps:                      # no commit
        check_both(steps, pair)
    assert not steps.committed
    with pytest.raises(KeyError), _core.Transaction() as steps:
        check_both(steps, pair)
        leave(steps)
    steps = _core.Transaction()                             # dropped, without `with`
    check_both(steps, pair)
    del steps
    steps = _core.Transaction()                             # dropped by the collector
    entries = {"steps": steps, "self": None}
    entries["self"] = entries
    steps.store(entries, "self", entries)
    check_both(steps, pair)
    del steps, entries
    gc.collect()

    def generator():
        with _core.Transaction() as within:
            check_both(within, pair)
            yield
            within.commit()
    halfway = generator()
    next(halfway)
    halfway.close()
    assert state_of(optimizers, weights) == before and all(map(is_free, optimizers))


def test_an_error_of_a_check_leaves_the_others_checked(pair):
    optimizers, grads, weights = pair
    before = state_of(optimizers, weights)
    with _core.Transaction() as steps:
        steps.check(optimizers[0], [grads[0]], [weights[0]])
        with pytest.raises(ValueError, match=r"grads\[0\]: expected shape"):
            steps.check(optimizers[1], [grads[0]], [weights[1]])
        assert is_free(optimizers[1])
        assert state_of(optimizers, weights) == before
        steps.commit()
    assert [o.iterations for o in optimizers] == [2, 1]


def test_a_build_is_undone_without_a_commit():
    fresh, w = optimc.Adam(), np.ones(3, np.float32)
    with _core.Transaction() as steps:
        steps.check(fresh, [w * 2], [w])
        assert fresh.built
    assert not fresh.built and len(fresh.variables) == 2    # the count and the learning rate
    fresh.apply([w * 2], [w])
    assert fresh.iterations == 1


def test_refusals_in_one_line(pair):
    optimizers, grads, weights = pair
    before = state_of(optimizers, weights)
    steps = _core.Transaction()
    with steps:
        check_both(steps, pair)
        with pytest.raises(RuntimeError, match=r"^SGD: a step was asked for while one is in progress") as caught:
            steps.check(optimizers[0], [grads[0]], [weights[0]])
        assert "\n" not in str(caught.value)
        with pytest.raises(RuntimeError, match="in progress"):      # nor in another one of this thread
            _core.Transaction().check(optimizers[0], [grads[0]], [weights[0]])
        with pytest.raises(TypeError, match="optimizer: expected an optimizer, got int"):
            steps.check(1, [grads[0]], [weights[0]])
        with pytest.raises(ValueError, match="it has no step in this transaction"):
            steps.set_value(optimc.SGD(), 0, 0, 0.5)
        with pytest.raises(IndexError, match="no such value"):
            steps.set_value(optimizers[0], 0, 99, 0.5)
        with pytest.raises(ValueError, match="learning_rate must be finite and >= 0, got -1"):
            steps.set_value(optimizers[0], 0, 0, -1.0)
        with pytest.raises(TypeError, match="learning_rate must be a number, got function"):
            steps.set_value(optimizers[0], 0, 0, lambda: 1.0)
        with pytest.raises(KeyError, match="missing"):
            steps.store({}, "missing", 1)
        with pytest.raises(ValueError, match="loss_scale_factor must be finite and > 0"):
            steps.check(optimc.SGD(), [grads[0]], [weights[0]], loss_scale=0.0)
        with pytest.raises(TypeError, match="loss_scale must be a number, got str"):
            steps.check(optimc.SGD(), [grads[0]], [weights[0]], loss_scale="2")
    assert state_of(optimizers, weights) == before
    for use in (steps.commit, steps.__enter__, lambda: steps.check(optimizers[0], [grads[0]], [weights[0]])):
        with pytest.raises(RuntimeError, match=r"^the transaction is over: it was given up$"):
            use()
    with _core.Transaction() as steps:
        check_both(steps, pair)
        steps.commit()
        with pytest.raises(RuntimeError, match=r"^the transaction is over: it was committed$"):
            steps.commit()
    assert [o.iterations for o in optimizers] == [2, 2]


def test_a_check_cannot_use_its_own_transaction():
    steps, w = _core.Transaction(), np.ones(3, np.float32)
    optimizer = optimc.SGD(lambda: steps.commit() or 0.5)
    with steps, pytest.raises(RuntimeError, match=r"^the transaction is checking a step$"):
        steps.check(optimizer, [w], [w.copy()])
    assert is_free(optimizer) and optimizer.iterations == 0


def test_steps_with_bad_gradients_are_counted_or_left_to_the_caller(pair):
    optimizers, grads, weights = pair
    before = weights[1].copy()
    grads[1][0] = np.nan
    with _core.Transaction() as steps:
        assert steps.check(optimizers[0], [grads[0]], [weights[0]])
        assert not steps.check(optimizers[1], [grads[1]], [weights[1]])
        assert optimizers[1].skipped_steps == 0
        steps.commit()
    assert (optimizers[0].iterations, optimizers[1].iterations, optimizers[1].skipped_steps) == (2, 1, 1)
    with _core.Transaction() as steps:
        assert not steps.check(optimizers[1], [grads[1]], [weights[1]], finite=True)
        steps.commit()
    assert optimizers[1].skipped_steps == 1
    assert_same_bits(weights[1], before)


def test_changes_come_with_the_commit_only(pair):
    optimizers, grads, weights = pair
    optimizer, (grad, _), (w, _) = optimizers[0], grads, weights
    optimizer.learning_rate = schedules.ExponentialDecay(0.5, 1, 0.5)
    twin, expected = optimizer.__deepcopy__({}), w.copy()
    twin.apply([grad], [expected])
    counts = {"good": 1}
    for commits in (False, True):
        with _core.Transaction() as steps:
            steps.check(optimizer, [grad], [w])
            steps.store(counts, "good", 2)
            steps.set_value(optimizer, 0, optimizer._index["learning_rate"], 0.125)
            steps.set_value(optimizer, 0, optimizer._index["clipnorm"], 1.0)
            assert counts == {"good": 1} and optimizer.clipnorm is None
            if commits:
                steps.commit()
        assert counts == {"good": 1 + commits}
        assert optimizer.clipnorm == (1.0 if commits else None)
        assert callable(optimizer._get_value(0, 0)) != commits
    assert_same_bits(w, expected)                           # the step itself ran with the values as they were
    assert optimizer.learning_rate == 0.125


def test_an_entry_that_cannot_be_stored_stops_the_commit(pair):
    optimizers, _, weights = pair

    class Key(str):
        __slots__ = ()
        broken = False

        def __hash__(self):
            if Key.broken:
                raise MemoryError("planted")
            return str.__hash__(self)
    counts, key = {"a": 1}, Key("b")
    counts[key] = 1
    with _core.Transaction() as steps:
        check_both(steps, pair)
        before = state_of(optimizers, weights)
        steps.store(counts, "a", 2)
        steps.store(counts, key, 2)
        Key.broken = True
        with pytest.raises(MemoryError, match="planted"):
            steps.commit()
        Key.broken = False
        assert counts == {"a": 1, "b": 1} and not steps.committed
    assert state_of(optimizers, weights) == before and all(map(is_free, optimizers))


def test_a_loss_scale_of_one_step():
    w, twin = np.ones(3, np.float32), np.ones(3, np.float32)
    optimizer, plain = optimc.SGD(0.5), optimc.SGD(0.5)
    plain.apply([w * 2], [twin])
    for commits in (False, True):
        with _core.Transaction() as steps:
            assert steps.check(optimizer, [w * 16], [w], loss_scale=8.0)
            if commits:
                steps.commit()
        assert optimizer.loss_scale_factor is None
    assert_same_bits(w, twin)
    optimizer.loss_scale_factor = lambda: 2.0
    with _core.Transaction() as steps, pytest.raises(ValueError, match="has a schedule for it"):
        steps.check(optimizer, [w], [w.copy()], loss_scale=8.0)
    assert is_free(optimizer)


def test_an_interruption_at_every_line_is_before_or_after(pair):
    optimizers, grads, weights = pair
    for optimizer in optimizers:
        optimizer.learning_rate = lambda: 0.5               # Python code within the checks, too
    counts = {"steps": 0}

    def body():
        with _core.Transaction() as steps:
            check_both(steps, (optimizers, grads, weights))
            steps.store(counts, "steps", counts["steps"] + 1)
            steps.commit()

    def interrupt(after):
        def trace(frame, event, argument):
            nonlocal after
            after -= 1
            if not after:
                raise KeyboardInterrupt
            return trace
        return trace
    seen, before = set(), state_of(optimizers, weights)
    for after in range(1, 60):
        first = counts["steps"]
        sys.settrace(interrupt(after))
        try:
            body()
        except KeyboardInterrupt:
            interrupted = True
        else:
            interrupted = False
        finally:
            sys.settrace(None)
        done = counts["steps"] - first
        assert [o.iterations for o in optimizers] == [1 + counts["steps"]] * 2
        assert (state_of(optimizers, weights) == before) == (not done)
        assert all(map(is_free, optimizers))
        before = state_of(optimizers, weights)
        seen.add((interrupted, done))
        if not interrupted:
            break
    assert seen == {(True, 0), (True, 1), (False, 1)}


@pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(signal, "setitimer"), reason="needs fork and setitimer")
def test_signals_and_forks_find_whole_commits_only():
    """A child process, and a handler that raises, see as many steps as the count that is stored with them says."""
    weights = [np.ones(200_000, np.float32) for _ in range(2)]
    grads = [np.ones_like(w) for w in weights]
    optimizers, counts, children = [optimc.SGD(0.25), optimc.SGD(0.25)], {"steps": 0}, []
    armed = [False]

    def whole():
        expected = np.float32(1 - 0.25 * counts["steps"])
        return all(o.iterations == counts["steps"] for o in optimizers) and all(
            (w == expected).all() for w in weights)

    class Stop(Exception):
        pass

    def stop(number, frame):
        if armed[0]:
            raise Stop

    def step(seconds):
        try:
            armed[0] = True
            signal.setitimer(signal.ITIMER_REAL, seconds)
            with _core.Transaction() as steps:
                for optimizer, grad, w in zip(optimizers, grads, weights, strict=True):
                    steps.check(optimizer, [grad], [w])
                steps.store(counts, "steps", counts["steps"] + 1)
                steps.commit()
        finally:
            armed[0] = False

    def fork(_):
        child = forks.fork()
        if not child:
            os._exit(0 if whole() else 1)
        children.append(child)
    for optimizer, w in zip(optimizers, weights, strict=True):
        optimizer.build([w])
    before, stopping = signal.signal(signal.SIGALRM, stop), threading.Event()
    forker = threading.Thread(target=lambda: [fork(k) for k in range(20) if not stopping.wait(0.01)])
    forker.start()
    try:
        for k in range(200):
            with contextlib.suppress(Stop):
                step(1e-5 * (k % 50 + 1))
            assert whole()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        stopping.set()
        forker.join()
    assert counts["steps"]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)
