"""What can be counted can be set, stepped, saved and loaded: one bound for counts of every kind."""

import pickle

import numpy as np
import pytest

import optimc

MOST = 2 ** 62 - 1
ONE = np.ones(3, np.float32)


def stepped(make):
    optimizer, weights = make(), {"a": np.ones(3, np.float32)}
    optimizer.apply({"a": ONE}, weights)
    return optimizer, weights


def through_a_file(optimizer, path):
    optimizer.save(path)
    return optimc.load(path)


def through_a_state(optimizer, path):
    other = type(optimizer)()
    other.load_state_dict(optimizer.state_dict())
    return other


def through_a_pickle(optimizer, path):
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("count", [MOST, MOST - 1, 2 ** 53 + 1])
@pytest.mark.parametrize("through", [through_a_file, through_a_state, through_a_pickle])
def test_the_most_iterations_travel(through, count, tmp_path):
    optimizer, weights = stepped(optimc.SGD)
    optimizer.iterations = count
    assert through(optimizer, tmp_path / "x").iterations == count
    while optimizer.iterations < MOST < count + 3:
        optimizer.apply({"a": ONE}, weights)
    before = weights["a"].copy()
    if optimizer.iterations == MOST:
        with pytest.raises(OverflowError, match="the most that it counts"):
            optimizer.apply({"a": ONE}, weights)
    assert (weights["a"] == before).all() and through(optimizer, tmp_path / "x").iterations == optimizer.iterations


@pytest.mark.parametrize("make,names,most", [
    (optimc.Adam, ["iterations"], MOST),
    (lambda: optimc.SGD(gradient_accumulation_steps=7), ["iterations"], MOST // 7),
    (lambda: optimc.LossScaleOptimizer(optimc.SGD(), 1.0, 2 ** 70), ["step_counter"], MOST),
    (lambda: optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD())), ["iterations"], MOST),
], ids=["Adam", "accumulating", "LossScaleOptimizer", "MultiOptimizer"])
def test_counts_are_checked_when_they_are_set(make, names, most, tmp_path):
    optimizer, weights = stepped(make)
    for name in names:
        for wrong, error in ((most + 1, ValueError), (2 ** 63 - 1, ValueError), (2 ** 63, ValueError),
                             (2 ** 200, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError),
                             ("1", TypeError), (None, TypeError)):
            before = getattr(optimizer, name)
            with pytest.raises(error, match=rf"{name} must be (an int|in \[0, {most}\]), got"):
                setattr(optimizer, name, wrong)
            assert getattr(optimizer, name) == before
        setattr(optimizer, name, np.int64(most))
        assert getattr(through_a_file(optimizer, tmp_path / "x"), name) == most
        if not isinstance(optimizer, optimc.Optimizer):         # a wrapper's own count stays there
            optimizer.apply({"a": ONE}, weights)
            assert getattr(optimizer, name) == getattr(through_a_file(optimizer, tmp_path / "x"), name) == most


@pytest.mark.parametrize("key", ["calls", "skipped"])
def test_counts_beyond_are_refused_in_a_state(key):
    optimizer, _ = stepped(optimc.SGD)
    state = optimizer.state_dict()
    with pytest.raises(optimc.CheckpointError, match=rf"{key} must be in \[0, {MOST}\], got {MOST + 1}"):
        optimizer.load_state_dict({**state, key: MOST + 1})
    optimizer.load_state_dict({**state, key: MOST})


def test_skipped_steps_stay_at_the_most():
    optimizer, weights = stepped(lambda: optimc.SGD(check_finite="skip"))
    optimizer.load_state_dict({**optimizer.state_dict(), "skipped": MOST})
    optimizer.apply({"a": ONE * np.nan}, weights)
    assert optimizer.skipped_steps == MOST and through_a_pickle(optimizer, None).skipped_steps == MOST
