"""A loss scale around routed optimizers: one scale for all, and steps that run or are skipped as a whole."""

import copy
import pickle
import sys
import threading

import numpy as np
import pytest
from cases import assert_same_bits
from conftest import require
from test_wrappers import F, make_multi, weights_and_grads

import optimc


def make(**more):
    return optimc.LossScaleOptimizer(make_multi(), **{"initial_scale": 8.0, "dynamic_growth_steps": 3, **more})


def scaled(grads, optimizer):
    return {name: g * F(optimizer.dynamic_scale) for name, g in grads.items()}


def picture(optimizer):
    return [(inner.iterations, inner.built, inner.loss_scale_factor, {slot: [None if a is None else a.copy() for a in
             arrays] for slot, arrays in inner._slots.items()}) for inner in optimizer.inner_optimizer._inner()]


def test_good_steps_are_those_of_the_routed_optimizers():
    optimizer, plain = make(), make_multi()
    weights, _ = weights_and_grads()
    expected = {name: w.copy() for name, w in weights.items()}
    for step in range(4):
        _, grads = weights_and_grads(step)
        plain.apply(grads, expected)
        optimizer.apply(scaled(grads, optimizer), weights)
        for name in weights:
            assert_same_bits(weights[name], expected[name])
    assert (optimizer.dynamic_scale, optimizer.step_counter, optimizer.iterations) == (16.0, 1, 4)
    assert optimizer.scale_loss(1.0) == 16.0 and optimizer.built
    assert [inner.loss_scale_factor for inner in plain._inner()] == [None] * 3


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("name", ["dense/kernel", "dense/bias", "out/kernel"])
def test_a_step_is_skipped_as_a_whole(built, name):
    optimizer = make()
    weights, grads = weights_and_grads()
    if built:
        optimizer.apply(grads, weights)
    before, kept = {k: w.copy() for k, w in weights.items()}, picture(optimizer)
    optimizer.apply({**grads, name: np.full_like(grads[name], np.nan)}, weights)
    assert (optimizer.dynamic_scale, optimizer.step_counter, optimizer.iterations) == (4.0, 0, int(built))
    for k in weights:
        assert_same_bits(weights[k], before[k])
    assert repr(picture(optimizer)) == repr(kept)
    optimizer.apply(scaled(grads, optimizer), weights)
    assert (optimizer.step_counter, optimizer.iterations) == (1, 1 + built)


def test_a_refused_step_changes_nothing():
    optimizer = make()
    weights, grads = weights_and_grads()
    before = {k: w.copy() for k, w in weights.items()}
    for bad in ({**grads, "out/kernel": np.ones(7, F)}, {**grads, "dense/bias": np.ones(3, int)}):
        for also in (bad, {**bad, "dense/kernel": np.full((4, 3), np.nan, F)}):     # and if it would be skipped
            with pytest.raises((ValueError, TypeError), match="grads"):
                optimizer.apply(also, weights)
    assert (optimizer.dynamic_scale, optimizer.step_counter, optimizer.iterations) == (8.0, 0, 0)
    assert all((weights[k] == before[k]).all() for k in weights) and not optimizer.built


def test_threads_that_step_different_weights_count_for_one_scale():
    optimizer, interval = make(dynamic_growth_steps=10 ** 6), sys.getswitchinterval()
    weights, grads = weights_and_grads()
    optimizer.build(weights)

    def steps(name):
        for _ in range(3000):
            optimizer.apply({name: grads[name]})

    threads = [threading.Thread(target=steps, args=[name]) for name in weights]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert optimizer.step_counter == 3000 * len(weights)


@pytest.mark.parametrize("again", [
    copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer)), "file"], ids=["copy", "pickle", "file"])
def test_it_is_stored_with_its_scale(again, tmp_path):
    optimizer = make(initial_scale=2.0, name="mine")
    weights, grads = weights_and_grads()
    for _ in range(4):
        optimizer.apply(grads, weights)
    if again == "file":
        optimizer.save(tmp_path / "optimizer")
        other = optimc.load(tmp_path / "optimizer")
    else:
        other = again(optimizer)
    twin = {name: w.copy() for name, w in weights.items()}
    assert (other.dynamic_scale, other.step_counter, other.iterations, other.name) == (4.0, 1, 4, "mine")
    for _ in range(2):
        optimizer.apply(grads, weights)
        other.apply(grads, twin)
    for name in weights:
        assert_same_bits(weights[name], twin[name])
    assert other.dynamic_scale == optimizer.dynamic_scale == 8.0
    assert len(other.variables) == len(optimizer.variables)


def test_its_configuration_makes_another():
    optimizer = make()
    other = optimc.get(optimc.serialize(optimizer))
    assert other.get_config() == optimizer.get_config() and type(other.inner_optimizer) is optimc.MultiOptimizer
    assert other.dynamic_scale == 8.0


def test_what_it_cannot_wrap():
    for wrong in (make(), "adam", None):
        with pytest.raises(TypeError, match=r"^inner_optimizer must be an optimizer or a MultiOptimizer, got "):
            optimc.LossScaleOptimizer(wrong)
    with pytest.raises(ValueError, match="loss_scale_factor must be"):
        make(initial_scale=-1.0)
    with pytest.raises(AttributeError, match="no learning_rate of its own"):
        _ = make().learning_rate


@pytest.mark.parametrize("name", ["learning_rate", "skipped_steps", "last_global_norm"])
def test_what_mapped_optimizers_have_each_is_asked_of_them(name):
    for optimizer in make(), make_multi():
        with pytest.raises(AttributeError, match=f"no {name} of its own: ask the optimizers"):
            getattr(optimizer, name)
    with pytest.raises(AttributeError, match="no learning_rate of its own"):
        optimizer.learning_rate = 0.1


def test_a_scale_that_is_set_holds_for_optimizers_that_are_mapped_already():
    multi, alone = make_multi(loss_scale_factor=2.0), make_multi()
    weights, grads = weights_and_grads()
    expected = {name: w.copy() for name, w in weights.items()}
    for factor in (2.0, 8.0):
        multi.loss_scale_factor = factor
        multi.apply({name: g * F(factor) for name, g in grads.items()}, weights)
        alone.apply(grads, expected)
    for name in weights:
        assert_same_bits(weights[name], expected[name])
    with pytest.raises(ValueError, match="loss_scale_factor must be"):
        multi.loss_scale_factor = 0.0


def test_it_equals_keras():
    keras = require("keras")
    ours = optimc.LossScaleOptimizer(optimc.MultiOptimizer(optimc.OptimizerMap(
        optimc.SGD(0.1), {"b": optimc.SGD(0.2)})), 16.0, 2)
    variables = [keras.Variable(np.ones(3, F), name=name) for name in "ab"]
    a, b = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.2)
    theirs = keras.optimizers.LossScaleOptimizer(keras.optimizers.MultiOptimizer(
        lambda variable: a if variable is variables[0] else b), 16.0, 2)
    theirs.build(variables)
    weights = {name: np.ones(3, F) for name in "ab"}
    for k in range(12):
        grads = [np.full(3, 2.0 ** k if k % 5 else np.inf, F), np.full(3, 2.0 ** k if k != 7 else np.nan, F)]
        ours.apply(dict(zip("ab", grads, strict=True)), weights)
        theirs.apply(grads, variables)
        for w, v in zip(weights.values(), variables, strict=True):
            assert_same_bits(w, np.asarray(v.value))
        assert (ours.dynamic_scale, ours.step_counter) == (float(theirs.dynamic_scale), int(theirs.step_counter))


def test_exclude_layers_is_a_list():
    assert optimc.Muon().get_config()["exclude_layers"] == []
    assert optimc.Muon(exclude_layers=("a",)).get_config()["exclude_layers"] == ["a"]
