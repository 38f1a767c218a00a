"""A plan that no optimizer holds: it matches gradients, reads them and names one that is not finite."""

import gc
import threading
import weakref

import numpy as np
import pytest
from cases import assert_same_bits

import optimc
from optimc import _core

PLAIN = {"kernel": _core.kernels["sgd"][0], "slot_names": (), "slots": ()}


def plan_of(weights, names=None, groups=None):
    plan = _core.Plan(len(weights))
    for i, weight in enumerate(weights):
        plan.add(weight, name=names and names[i], group=groups[i] if groups else 0, **PLAIN)
    plan.seal()
    return plan


class Tracked(np.ndarray):
    """An array whose end can be seen."""


def test_gradients_are_matched_and_pulled():
    weights = [np.ones((2, 3), np.float32), np.ones(4)]
    plan = plan_of(weights)
    first = np.arange(6, dtype=np.float16).reshape(2, 3)
    with pytest.warns(UserWarning, match=r"Gradients do not exist for weights\[1\]"):
        assert plan.match([first, None], weights) == (True, False)
    assert plan.match([None, first], weights[::-1], True) == (True, False)
    to = np.empty((2, 3), np.float32)
    assert plan.pull(0, to)
    assert_same_bits(to, first.astype(np.float32))
    part = np.empty(2, np.float32)
    assert plan.pull(0, part, 3)
    assert part.tolist() == [3, 4]
    assert not plan.pull(1, np.empty(4))
    with pytest.raises(IndexError, match="no weight 2"):
        plan.pull(2, to)
    plan.end()
    with pytest.raises(RuntimeError, match="the plan has no gradients"):
        plan.pull(0, to)


def test_a_gradient_that_is_not_finite_is_named():
    weights = {"kernel": np.ones(3, np.float32), "bias": np.ones(3, np.float32)}
    plan = plan_of(list(weights.values()), list(weights))
    grads = {"bias": np.array([1, np.nan, 1], np.float32), "kernel": np.ones(3, np.float32)}
    plan.match(grads)
    with pytest.raises(FloatingPointError, match=r"^grads\['bias'\] is not finite$"):
        plan.survey()
    plan.match({**grads, "bias": np.ones(3)}, weights)
    assert plan.survey() is None
    long = np.ones(10**6)
    plan = plan_of([long])
    plan.match([np.full(10**6, np.inf)])
    with pytest.raises(FloatingPointError, match=r"^grads\[0\] is not finite$"):
        plan.survey()


def test_a_refused_match_leaves_no_gradients():
    weights = [np.ones(3, np.float32), np.ones(3)]
    plan = plan_of(weights)
    grad = np.ones(3).view(Tracked)
    seen = weakref.ref(grad)
    with pytest.raises(ValueError, match=r"grads\[1\]: expected shape \(3,\)"):
        plan.match([grad, np.ones(2)], weights)
    del grad
    gc.collect()
    assert seen() is None
    with pytest.raises(RuntimeError, match="the plan has no gradients"):
        plan.survey()


def test_what_needs_an_optimizer_is_refused():
    weight = np.ones(3)
    open_plan = _core.Plan(1)
    open_plan.add(weight, **PLAIN)
    for call in (lambda: open_plan.match([weight]), open_plan.survey, open_plan.end):
        with pytest.raises(RuntimeError, match="the plan is not sealed"):
            call()
    with pytest.raises(ValueError, match="the plan has groups"):
        plan_of([weight], groups=[1]).match([np.ones(3)])
    optimizer = optimc.SGD()
    optimizer.build([weight])
    held = optimizer._plan
    for call in (lambda: held.match([np.ones(3)]), held.survey, held.end):
        with pytest.raises(RuntimeError, match="the plan belongs to an optimizer"):
            call()
    with pytest.raises(RuntimeError, match="the plan has no gradients"):
        held.pull(0, np.empty(3))
    plan = plan_of([weight])
    plan.match([np.ones(3)])
    with pytest.raises(ValueError, match="the plan has gradients"):
        optimizer._bind(plan)
    assert optimizer._plan is held
    with _core.Transaction() as steps, pytest.raises(ValueError, match="the plan belongs to an optimizer"):
        steps.enter(optimizer, held)


def test_code_of_a_gradient_cannot_use_the_plan():
    plan = plan_of([np.ones(3)])
    said = []

    class Gradient:
        def __array__(self, dtype=None, copy=None):
            for call in (lambda: plan.match([np.ones(3)]), plan.survey, lambda: plan.pull(0, np.empty(3)), plan.end):
                with pytest.raises(RuntimeError) as error:
                    call()
                said.append(str(error.value))
            return np.full(3, 2.0)

    assert plan.match([Gradient()]) == (True,)
    assert said == ["the plan is in use"] * 4
    to = np.empty(3)
    assert plan.pull(0, to) and to.tolist() == [2, 2, 2]


@pytest.mark.parametrize("commit", [True, False])
def test_a_step_that_was_entered_ends_with_its_plan(commit):
    whole, part = np.ones(4), np.ones(2)
    plan, optimizer = plan_of([whole]), optimc.SGD(0.5)
    optimizer.build([part])
    grad = np.ones(4).view(Tracked)
    seen = weakref.ref(grad)
    with _core.Transaction() as steps:
        steps.enter(optimizer, plan)
        for use in (lambda: steps.survey(optimizer, False), lambda: steps.advance(optimizer, True, 0, 0)):
            with pytest.raises(ValueError, match="no step in this transaction"):
                use()
        assert plan.match([grad]) == (True,)
        with pytest.raises(ValueError, match="expected shape"):
            steps.match(optimizer, [np.ones(3)], None, True)
        with pytest.raises(RuntimeError, match="a step was asked for while one is in progress"):
            optimizer.apply([np.ones(2)])                   # still locked
        assert steps.match(optimizer, [np.ones(2)], None, True) == (True,)
        del grad
        assert seen() is not None
        assert steps.survey(optimizer, False)
        if commit:
            steps.commit()
    assert seen() is None
    assert part.tolist() == ([0.5, 0.5] if commit else [1, 1])
    with pytest.raises(RuntimeError, match="the plan has no gradients"):
        plan.survey()


def test_a_thread_waits_for_a_step_that_was_entered():
    weight = np.ones(2)
    plan, optimizer, order = plan_of([weight]), optimc.SGD(0.5), []
    optimizer.build([np.ones(2)])

    def step():
        with _core.Transaction() as steps:
            steps.enter(optimizer, plan)
            order.append("other")

    with _core.Transaction() as steps:
        steps.enter(optimizer, plan)
        thread = threading.Thread(target=step)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


@pytest.mark.parametrize("order", [(), (0,), (0, 0), (0, 2), (-1, 0), (0, 1, 2), (0, True), (2 ** 70, 0), 3, [0, 1]])
def test_an_order_names_every_axis(order):
    optimizer = optimc.SGD()
    optimizer.build([np.ones((2, 3), np.float32)])
    optimizer._prepare_tensors(((1, 0),), (({}, "a", 1),))
    with pytest.raises(ValueError, match=r"^orders\[0\]: expected None or a tuple of all 2 axes$"):
        optimizer._prepare_tensors((order,), ())
    assert not optimizer._is_as_watched()


@pytest.mark.parametrize("watched", [1, (1, 2, 3), ({}, "a"), [{}, "a", 1]])
def test_what_is_watched_is_an_item_of_a_dict(watched):
    optimizer = optimc.SGD()
    optimizer.build([np.ones(3, np.float32)])
    with pytest.raises(ValueError, match=r"^watched\[0\]: expected \(dict, key, value\)$"):
        optimizer._prepare_tensors((None,), (watched,))
    assert optimizer._is_as_watched()
