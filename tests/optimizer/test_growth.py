"""Work grows with the number of weights, not with its square.

Calls are counted, of Python and of C functions, and comparisons of names, so that nothing depends on the speed of the
machine.  The search for a row of the plan is C code without calls: its time is compared with itself.
"""

import copy
import sys
import time

import numpy as np
import pytest

import optimc
from optimc import _core
from optimc.registry import classes

FEW, MANY = 15, 60
MOST = 2 * MANY / FEW           # of work for MANY over that for FEW; a square makes it 16


class Name(str):
    """A name of which each comparison is a call."""

    __slots__ = ()

    def __eq__(self, other):
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def calls(action, of=None):
    """The number of calls that an action makes: of all functions, or of one Python function."""
    count, before = 0, sys.getprofile()

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call") if of is None else event == "call" and frame.f_code is of.__code__

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def set_each(optimizer):
    for group in optimizer.groups:
        group["learning_rate"] = 0.5


#: what is done with an optimizer that has been built for weights
ACTIONS = {
    "build": lambda optimizer, weights: type(optimizer)(groups=optimizer.get_config().get("groups")).build(weights),
    "build again": lambda optimizer, weights: optimizer.build(weights),
    "load a state": lambda optimizer, weights: optimizer.load_state_dict(optimizer.state_dict()),
    "copy": lambda optimizer, weights: copy.deepcopy(optimizer),
    "configuration": lambda optimizer, weights: optimizer.get_config(),
    "set each group": lambda optimizer, weights: set_each(optimizer),
    "running values": lambda optimizer, weights: optimizer._set_all_scalars(optimizer._all_scalars()),
}


def work(cls, action, n, of=None):
    weights = {Name(f"layer_{i}/kernel"): np.ones(2, np.float32) for i in range(n)}
    optimizer = cls(groups=[{"weights": [w], "learning_rate": 0.25} for w in weights.values()])
    optimizer.build(weights)
    return calls(lambda: action(optimizer, weights), of)


@pytest.mark.parametrize("cls", classes.values(), ids=lambda cls: cls.__name__)
def test_work_grows_with_the_number_of_weights(cls):
    grown = {name: work(cls, action, MANY) / work(cls, action, FEW) for name, action in ACTIONS.items()}
    assert {name: ratio for name, ratio in grown.items() if ratio > MOST} == {}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_a_name_is_not_compared_with_all_others(action):
    assert work(optimc.Adam, action, MANY, Name.__eq__) <= MANY


def seconds_to_add(n):
    """The processor's time to add n weights, each of a group of its own, to a plan: the least of three."""
    weights, kernel = np.ones((n, 2), np.float32), _core.kernels["sgd"][0]
    times = []
    for _ in range(3):
        plan = _core.Plan(n)
        start = time.thread_time()
        for i, weight in enumerate(weights):
            plan.add(weight, kernel=kernel, slot_names=(), slots=(), group=i)
        times.append(time.thread_time() - start)
    return min(times)


def test_rows_of_many_groups_are_found_at_once():
    ratio = seconds_to_add(8000) / seconds_to_add(1000)
    assert ratio < 24, f"8 times as many weights took {ratio:.0f} times as long; a square makes it 64"


def test_a_square_is_noticed():
    def compare_all(n):
        names = [Name(i) for i in range(n)]
        return calls(lambda: [name in names for name in map(str, range(n))])

    assert compare_all(MANY) / compare_all(FEW) > MOST
    names = [Name(i) for i in range(MANY)]
    assert calls(lambda: [name in names for name in names], Name.__eq__) > MANY


@pytest.mark.parametrize("n", [3, 300])
def test_rows_are_those_of_the_groups(n):
    weights = [np.zeros(1, np.float32 if i % 2 else np.float64) for i in range(n)]
    optimizer = optimc.SGD(0.0, groups=[{"weights": [i], "learning_rate": float(i)} for i in range(n)])
    optimizer.apply([np.ones_like(w) for w in weights], weights)
    assert [float(w[0]) for w in weights] == [float(-i) for i in range(n)]
