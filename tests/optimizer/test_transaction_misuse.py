"""A transaction whose own code, or another thread, uses it at the wrong time: it refuses, and stays whole."""

import contextlib
import gc
import os
import sys
import threading
import weakref

import forks
import numpy as np
import pytest

import optimc
from optimc import _core

COMMITTING = r"^the transaction is committing its steps$"
CHECKING = r"^the transaction is checking a step$"


class Key(str):
    """A key that runs `action` once when it is compared, after it was armed."""

    action = None

    def __hash__(self):
        return 7

    def __eq__(self, other):
        action, Key.action = Key.action, None
        if action:
            action()
        return str.__eq__(self, other)


def ones(n=3):
    return np.ones(n, np.float32)


def fork(child):
    """The exit code of a child process that runs a function."""
    process = forks.fork()
    if not process:
        code = 1
        try:
            code = 0 if child() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def within_a_thread(function):
    """What another thread's call raises, or gives, in at most ten seconds."""
    outcome = []

    def run():
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    return outcome[0]


def test_a_refused_use_within_a_check_does_not_open_the_transaction():
    steps, first, w = _core.Transaction(), optimc.SGD(0.5), ones()
    messages = []

    def schedule():
        for use in (lambda: steps.check(optimc.SGD(), [w], [ones()]), steps.commit,
                    lambda: steps.__exit__(None, None, None)):
            with pytest.raises(RuntimeError, match=CHECKING) as caught:
                use()
            messages.append(str(caught.value))
        return 0.5
    with steps:
        steps.check(first, [ones()], [w])
        assert steps.check(optimc.SGD(schedule), [ones()], [ones()])
        assert not steps.committed and first.iterations == 0
    assert len(messages) == 3


def test_a_commit_cannot_be_used_by_keys():
    steps, optimizer, w = _core.Transaction(), optimc.SGD(0.5), ones()
    counts, refused = {Key("a"): 1, Key("b"): 1}, []

    def use():
        for method in (steps.commit, lambda: steps.__exit__(None, None, None), lambda: steps.store({"k": 1}, "k", 2)):
            with pytest.raises(RuntimeError, match=COMMITTING):
                method()
            refused.append(method)
    with steps:
        steps.check(optimizer, [ones()], [w])
        steps.store(counts, Key("b"), 2)
        Key.action = use
        steps.commit()
    assert len(refused) == 3 and counts[Key("b")] == 2 and (w == 0.5).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_key_may_fork_in_a_commit():
    optimizer, w, codes = optimc.SGD(0.5), ones(4_000_000), []
    counts = {Key("a"): 1, Key("b"): 1}
    with _core.Transaction() as steps:
        steps.check(optimizer, [ones(w.size)], [w])         # long enough to give up the GIL
        steps.store(counts, Key("b"), 2)
        Key.action = lambda: codes.append(fork(lambda: True))
        steps.commit()
    assert codes == [0] and (w == 0.5).all()


def test_one_of_many_threads_commits():
    w, optimizer, steps, outcomes = ones(5_000_000), optimc.SGD(0.5), _core.Transaction(), []
    steps.check(optimizer, [ones(w.size)], [w])
    start = threading.Barrier(4)

    def commit():
        start.wait()
        try:
            outcomes.append(steps.commit())
        except RuntimeError as error:
            outcomes.append(str(error))
    threads = [threading.Thread(target=commit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 1 and optimizer.iterations == 1 and (w == 0.5).all()


def test_numbers_with_code_of_their_own_cannot_use_the_transaction():
    steps, refused = _core.Transaction(), []

    class Number(np.float32):
        def __float__(self):
            with pytest.raises(RuntimeError, match=CHECKING):
                steps.__exit__(None, None, None)
            refused.append(self)
            return 2.0
    optimizer, w = optimc.SGD(0.5), ones()
    with steps:
        steps.check(optimizer, [ones() * 2], [w], loss_scale=Number(1))
        steps.set_value(optimizer, 0, optimizer._index["learning_rate"], Number(1))
        steps.commit()
    assert len(refused) == 2 and (w == 0.5).all() and optimizer.learning_rate == 2.0


def test_an_optimizer_is_not_checked_twice_by_two_threads():
    optimizer, w = optimc.SGD(0.5), ones()
    with _core.Transaction() as steps:
        steps.check(optimizer, [ones()], [w])
        error = within_a_thread(lambda: steps.check(optimizer, [ones()], [w]))
        assert "it has a step in this transaction already" in str(error)
        steps.commit()
    assert optimizer.iterations == 1


def test_a_loss_scale_that_is_set_outlasts_that_of_the_step():
    optimizer, w = optimc.SGD(0.5, loss_scale_factor=2.0), ones()
    with _core.Transaction() as steps:
        steps.check(optimizer, [ones() * 8], [w], loss_scale=8.0)
        steps.set_value(optimizer, 0, optimizer._index["loss_scale_factor"], 4.0)
        steps.commit()
    assert optimizer.loss_scale_factor == 4.0 and (w == 0.5).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_ends_the_step_of_a_thread_that_it_lacks():
    """Its loss scale ends too, and the transaction cannot be committed there."""
    optimizer, w, steps = optimc.SGD(0.5, loss_scale_factor=2.0), ones(), _core.Transaction()
    checked, stop = threading.Event(), threading.Event()

    def hold():
        steps.check(optimizer, [ones() * 8], [w], loss_scale=8.0)
        checked.set()
        stop.wait(60)

    def child():
        optimizer.apply([ones()], [w])
        with pytest.raises(RuntimeError, match="the step was checked by a thread that is gone"):
            steps.commit()
        return optimizer.loss_scale_factor == 2.0 and (w == 0.75).all() and optimizer.iterations == 1
    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert checked.wait(60) and fork(child) == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_gives_up_the_plan_of_a_step_that_did_not_run():
    """The step of another thread had built it.  The child builds for the weights that it steps."""
    optimizer, w, v, steps = optimc.SGD(0.5, momentum=0.5), ones(), ones(4), _core.Transaction()
    thread = threading.Thread(target=lambda: steps.check(optimizer, [ones()], [w]))
    thread.start()
    thread.join()

    def child():
        with optimizer._locked(contextlib.nullcontext):
            assert not optimizer.built
        optimizer.apply([ones(4)], [v])
        return (v == 0.5).all() and optimizer.iterations == 1
    assert optimizer.built and fork(child) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_uses_a_plan_that_another_thread_was_using():
    class Gradient:
        def __array__(self, dtype=None, copy=None):
            reached.set()
            stop.wait(60)
            return ones()
    plan, reached, stop = optimc.SGD()._build([ones()]), threading.Event(), threading.Event()
    thread = threading.Thread(target=plan.match, args=([Gradient()],))
    thread.start()
    try:
        assert reached.wait(60)
        with pytest.raises(RuntimeError, match=r"^the plan is in use$"):
            plan.match([ones()])
        assert fork(lambda: plan.match([ones()]) == (True,)) == 0
    finally:
        stop.set()
        thread.join()


def test_a_failed_commit_keeps_nothing_and_restores_every_entry():
    class Broken(str):
        __slots__ = ()
        broken = False

        def __hash__(self):
            if Broken.broken:
                raise MemoryError("planted")
            return str.__hash__(self)
    value, key = object(), Broken("c")
    counts = {"a": value, "b": 1, key: 1}
    references = sys.getrefcount(value)
    with _core.Transaction() as steps:
        steps.store(counts, "a", 2)
        steps.store(counts, key, 2)
        Broken.broken = True
        for _ in range(3):
            with pytest.raises(MemoryError, match="planted"):
                steps.commit()
        Broken.broken = False
    assert sys.getrefcount(value) == references and counts == {"a": value, "b": 1, "c": 1}
    with _core.Transaction() as steps:
        steps.store(counts, "a", 2)
        steps.store(counts, "b", 2)
        del counts["b"]
        with pytest.raises(KeyError, match="b"):
            steps.commit()
    assert counts == {"a": value, "c": 1}


def test_a_key_that_leads_back_to_its_transaction_is_collected():
    class Node(str):
        pass
    key = Node("a")
    key.steps = _core.Transaction()
    key.steps.store({key: 1}, key, 2)
    alive = weakref.ref(key)
    del key
    gc.collect()
    assert alive() is None


def test_a_step_that_has_begun_is_not_looked_at_again():
    optimizer, w = optimc.SGD(0.5), ones()
    with _core.Transaction() as steps:
        steps.match(optimizer, [ones()], [w], True)
        steps.survey(optimizer, False)
        steps.advance(optimizer, False, 0, w.size)
        for look in (lambda: steps.survey(optimizer, False), lambda: steps.skip(optimizer, False),
                     lambda: steps.refold(optimizer, False, np.ones(1), np.ones(1, np.int64))):
            with pytest.raises(RuntimeError, match=r"^the step has begun$"):
                look()
        steps.commit()
    assert optimizer.iterations == 1 and (w == 0.5).all()


def test_the_end_of_a_commit_is_not_the_end_of_a_step_that_was_given_up():
    """What the first step drops asks to give up the transaction: the plan that the second step built stays."""
    class Gradient(np.ndarray):
        def __del__(self):
            if steps.committed:
                ended.append(steps.__exit__(None, None, None))
    steps, ended, first, second = _core.Transaction(), [], optimc.SGD(0.5), optimc.SGD(0.5, momentum=0.5)
    with steps:
        assert steps.check(first, [ones()], [ones()])
        assert steps.check(second, [ones().view(Gradient)], [ones()])
        assert steps.check(optimc.SGD(), [ones().view(Gradient)], [ones()])
        steps.commit()
    assert ended and first.built and second.built
    assert first.iterations == second.iterations == 1


def test_a_step_that_has_begun_is_collected_with_its_optimizer():
    optimizer, w, steps = optimc.SGD(0.5), ones(), _core.Transaction()
    steps.match(optimizer, [ones()], [w], True)
    steps.survey(optimizer, False)
    steps.advance(optimizer, False, 0, 1)
    cycle, alive = [optimizer, steps], weakref.ref(optimizer)
    cycle.append(cycle)
    del cycle, optimizer, steps                 # the optimizer, which is older, is cleared first
    gc.collect()
    assert alive() is None and w.tolist() == [0.5, 1, 1]


def test_plans_are_bound_with_the_commit_alone():
    one, two = optimc.SGD(0.5), optimc.SGD(0.5)
    weights = [ones()]
    plan = one._locked(one._build, weights)
    with _core.Transaction() as steps:
        with pytest.raises(ValueError, match="no step in this transaction"):
            steps.bind(one, plan)
        for optimizer in (one, two):
            steps.lock(optimizer)
        with pytest.raises(TypeError, match="expected a plan"):
            steps.bind(one, None)
        steps.bind(one, plan)
        with pytest.raises(ValueError, match="bound in this transaction already"):
            steps.bind(two, plan)
        steps.set_value(one, 0, one._index["learning_rate"], 0.25)
        assert not one.built and one.learning_rate == 0.5
        steps.commit()
    assert one.built and not two.built and one.learning_rate == 0.25
    one.apply([ones()])
    assert (weights[0] == 0.75).all()


def test_a_plan_that_was_taken_meanwhile_is_not_bound():
    one, two = optimc.SGD(0.5), optimc.SGD(0.5)
    plan, entries = one._locked(one._build, [ones()]), {}
    with _core.Transaction() as steps:
        steps.lock(one)
        steps.bind(one, plan)
        steps.store(entries, "new", 1, True)
        two._bind(plan)
        with pytest.raises(ValueError, match="belongs to another optimizer"):
            steps.commit()
        assert not steps.committed
    assert not one.built and two.built and entries == {}


def test_a_new_entry_goes_when_another_cannot_be_stored():
    class Refused(str):
        armed = False

        def __hash__(self):
            if self.armed:
                raise ValueError("no hash")
            return 7

    entries, key = {"old": 1}, Refused("key")
    with _core.Transaction() as steps:
        steps.store(entries, "old", 2)
        steps.store(entries, "new", 3, True)
        steps.store(entries, key, 4, True)
        Refused.armed = True
        with pytest.raises(ValueError, match="no hash"):
            steps.commit()
    assert entries == {"old": 1}
