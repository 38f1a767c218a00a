"""LossScaleOptimizer and MultiOptimizer: Keras's behaviour, and all or nothing across what they wrap."""

import copy
import pickle
import sys
import threading

import numpy as np
import pytest
from cases import assert_same_bits, slots_of, values
from conftest import require

import optimc

F = np.float32


def weights_and_grads(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"dense/kernel": (4, 3), "dense/bias": (3,), "out/kernel": (3, 1)}
    return ({k: values(rng, s, F) for k, s in shapes.items()}, {k: values(rng, s, F) for k, s in shapes.items()})


@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_skipped_steps_change_the_scale_alone(case, first, bad):
    inner = case.make()
    optimizer = optimc.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=3)
    weights, grads = weights_and_grads()
    if not first:
        optimizer.apply(grads, weights)
    before = ([w.copy() for w in weights.values()], copy.deepcopy(slots_of(inner)), inner.iterations,
              inner._get_running(), inner.built, inner.get_config())
    wrong = {**grads, "out/kernel": np.full_like(grads["out/kernel"], bad)}
    optimizer.apply(wrong, weights)
    assert (optimizer.dynamic_scale, optimizer.step_counter) == (4.0, 0)
    for w, k in zip(weights.values(), before[0], strict=True):
        assert_same_bits(w, k)
    for slot, arrays in before[1].items():
        for a, b in zip(arrays, slots_of(inner)[slot], strict=True):
            assert a is None or (a == b).all()
    assert (inner.iterations, inner.built) == (before[2], before[4])
    assert repr(inner._get_running()) == repr(before[3])
    assert inner.get_config() == {**before[5], "loss_scale_factor": 4.0}


def test_good_steps_are_the_inner_optimizers(case):
    plain, inner = case.make(), case.make()
    optimizer = optimc.LossScaleOptimizer(inner, initial_scale=2.0 ** 10, dynamic_growth_steps=2)
    weights, _ = weights_and_grads()
    expected = {k: w.copy() for k, w in weights.items()}
    for step in range(5):
        _, grads = weights_and_grads(step)
        grads = {k: g * F(1.5) for k, g in grads.items()}
        plain.apply(grads, expected)
        optimizer.apply({k: g * F(optimizer.dynamic_scale) for k, g in grads.items()}, weights)
        for k in weights:
            assert_same_bits(weights[k], expected[k])
    assert optimizer.dynamic_scale == 2.0 ** 12 and optimizer.step_counter == 1
    assert optimizer.iterations == 5 and optimizer.scale_loss(1.0) == 2.0 ** 12


def test_loss_scale_equals_keras():
    keras = require("keras")
    ours = optimc.LossScaleOptimizer(optimc.SGD(0.1), 16.0, 2)
    theirs = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 16.0, 2)
    w, v = np.ones(3, F), keras.Variable(np.ones(3, F))
    theirs.build([v])
    for k in range(12):
        g = np.full(3, 2.0 ** k if k % 5 else np.inf, F)
        ours.apply([g], [w])
        theirs.apply([g], [v])
        assert_same_bits(w, np.asarray(v.value))
        assert ours.dynamic_scale == float(theirs.dynamic_scale)
        assert ours.step_counter == int(theirs.step_counter)


@pytest.mark.parametrize("arguments,error,message", [
    ({"dynamic": False}, ValueError, "always dynamic"),
    ({"clipnorm": 1.0}, ValueError, "set clipnorm on the inner_optimizer"),
    ({"no_such": 1.0}, ValueError, "LossScaleOptimizer has no argument 'no_such'"),
    ({"initial_scale": 0.0}, ValueError, "loss_scale_factor must be"),
    ({"dynamic_growth_steps": 0}, ValueError, "at least 1"),
    ({"dynamic_growth_steps": 2.0}, TypeError, "must be an int"),
])
def test_bad_arguments_of_the_loss_scale(arguments, error, message):
    with pytest.raises(error, match=message):
        optimc.LossScaleOptimizer(optimc.SGD(), **arguments)
    with pytest.raises(TypeError, match="must be an optimizer"):
        optimc.LossScaleOptimizer("sgd")


def make_multi(**more):
    return optimc.MultiOptimizer(optimc.OptimizerMap(
        optimc.Adam(0.1), {".*/bias": optimc.SGD(0.2, momentum=0.9), "out/.*": optimc.Lion(0.3)}), **more)


def test_weights_are_routed_by_name():
    multi, apart = make_multi(), [optimc.Adam(0.1), optimc.SGD(0.2, momentum=0.9), optimc.Lion(0.3)]
    weights, _ = weights_and_grads()
    expected = {k: w.copy() for k, w in weights.items()}
    for step in range(4):
        _, grads = weights_and_grads(step)
        multi.apply(grads, None if step == 2 else weights)
        for optimizer, name in zip(apart, expected, strict=True):
            optimizer.apply([grads[name]], [expected[name]])
            assert_same_bits(weights[name], expected[name])
        if step == 1:
            multi = pickle.loads(pickle.dumps(multi)) if step % 2 else copy.deepcopy(multi)
            multi.build(weights)
    assert multi.iterations == 4 and multi.built
    assert len(multi.variables) == 2 + sum(len(o.variables) for o in multi._inner())


def test_routed_weights_move_as_by_themselves(case):
    multi, alone = optimc.MultiOptimizer(optimc.OptimizerMap(case.make())), case.make()
    weights, _ = weights_and_grads()
    expected = {k: w.copy() for k, w in weights.items()}
    for step in range(3):
        _, grads = weights_and_grads(step)
        multi.apply(grads, weights)
        alone.apply(grads, expected)
        for k in weights:
            assert_same_bits(weights[k], expected[k])


def test_nothing_moves_when_one_part_is_refused():
    for build in (False, True):
        multi = make_multi()
        weights, grads = weights_and_grads()
        if build:
            multi.build(weights)
        before = {k: w.copy() for k, w in weights.items()}
        for bad in ({**grads, "out/kernel": np.ones(7, F)}, {**grads, "dense/bias": grads["dense/bias"] > 0},
                    {**grads, "dense/kernel": weights["dense/kernel"]}):
            with pytest.raises((ValueError, TypeError), match="grads"):
                multi.apply(bad, weights)
            assert all((weights[k] == before[k]).all() for k in weights)
            assert [o.iterations for o in multi._inner()] == [0, 0, 0] and multi.iterations == 0
            assert [o.built for o in multi._inner()] == [build] * 3
        multi.apply(grads, weights)
        assert all((weights[k] != before[k]).any() for k in weights)


def test_a_refused_call_leaves_no_routes():
    """Neither a loss scale nor a mistyped name, and no part that was built before another was refused."""
    a, b = optimc.SGD(0.5), optimc.SGD(0.5)
    one, integers = np.ones(1, F), np.ones(1, int)
    multi = optimc.MultiOptimizer({"a": a, "b": b, "typo": optimc.SGD()}.get, loss_scale_factor=8.0)
    for refused in (lambda: multi.apply({"a": one, "b": one}, {"a": one.copy(), "b": integers}),
                    lambda: multi.apply({"a": one, "typo": one}, {"a": one.copy()}),
                    lambda: multi.build({"a": one, "b": integers})):
        with pytest.raises((TypeError, ValueError)):
            refused()
        assert a.loss_scale_factor is None and not multi._inner() and not a.built and len(multi.variables) == 2
    multi.build({"a": one})
    with pytest.raises((TypeError, ValueError)):
        multi.build({"a": np.zeros(1, F), "b": integers})
    multi.apply({"a": 8 * np.ones(1, F)}, {"a": one})
    assert one == 0.5 and multi.built and a.loss_scale_factor == 8


def test_parts_without_gradients_rest():
    multi = make_multi()
    weights, grads = weights_and_grads()
    before = {k: w.copy() for k, w in weights.items()}
    with pytest.warns(UserWarning, match=r"weights\['dense/bias'\]"):
        multi.apply({**grads, "dense/bias": None}, weights)
    assert (weights["dense/bias"] == before["dense/bias"]).all()
    assert (weights["dense/kernel"] != before["dense/kernel"]).any()
    with pytest.raises(ValueError, match="No gradients"):
        multi.apply(dict.fromkeys(grads), weights)


def test_loss_scales_are_checked_when_they_are_given():
    with pytest.raises(TypeError, match="initial_scale must be a number, got None"):
        optimc.LossScaleOptimizer(optimc.SGD(), initial_scale=None)
    for wrong, error in ((-1, ValueError), (0, ValueError), ("8", TypeError)):
        with pytest.raises(error, match="loss_scale_factor"):
            optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD()), loss_scale_factor=wrong)


def test_multi_refuses_what_it_cannot_route():
    multi = make_multi()
    weights, grads = weights_and_grads()
    with pytest.raises(TypeError, match="must be a dict"):
        multi.apply(list(grads.values()), list(weights.values()))
    with pytest.raises(ValueError, match="no entry"):
        multi.apply({k: g for k, g in grads.items() if k != "out/kernel"}, weights)
    with pytest.raises(ValueError, match=r"matches '.*' and"):
        optimc.OptimizerMap(optimc.SGD(), {"a.*": optimc.SGD(), ".*b": optimc.SGD()})["ab"]
    with pytest.raises(AttributeError, match="no learning_rate of its own"):
        _ = multi.learning_rate
    with pytest.raises(TypeError, match="must give an optimizer"):
        optimc.MultiOptimizer(lambda name: None).apply(grads, weights)
    for key, value, error in ((3, optimc.SGD(), ValueError), ("a", 3, ValueError), ("(", optimc.SGD(), ValueError)):
        with pytest.raises(error):
            optimc.OptimizerMap(optimc.SGD(), {key: value})
    with pytest.raises(TypeError):
        optimc.OptimizerMap("sgd")


class Steps:
    """An attribute of a wrapper that steps it when it is copied, as another thread may at any time."""

    def __init__(self, step):
        self.step, self.armed = step, True

    def __reduce__(self):
        self.step()
        return Steps, (None,)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda wrapper: pickle.loads(pickle.dumps(wrapper))],
                         ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", [
    lambda: optimc.LossScaleOptimizer(optimc.SGD(0.5, momentum=0.5), 1.0),
    lambda: make_multi(),
    lambda: optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD(0.5)), loss_scale_factor=2.0),
], ids=["LossScaleOptimizer", "MultiOptimizer", "MultiOptimizer of one"])
@pytest.mark.parametrize("place", range(4))
def test_a_copy_of_a_wrapper_is_of_one_moment(make, copied, place):
    wrapper, (weights, grads) = make(), weights_and_grads()
    wrapper.apply(grads, weights)
    state = list(wrapper.__dict__.items())
    state.insert(place, ("note", Steps(lambda: wrapper.apply(grads, weights))))
    wrapper.__dict__.clear()
    wrapper.__dict__.update(state)
    before, moved = copied(wrapper), copy.deepcopy(weights)
    assert wrapper.iterations == 2 and before.iterations == 1
    assert all(inner.iterations == 1 for inner in before._inner())
    assert [int(number) for number in before._own_variables()[:1]] == [1] * (len(before._own_variables()) > 0)
    again = copied(wrapper)                             # no picture of before is left
    assert again.iterations == 2 and all(inner.iterations == 2 for inner in again._inner())
    again.apply(grads, moved)                           # as the second copy did
    for name in weights:
        assert_same_bits(weights[name], moved[name])


@pytest.mark.parametrize("wrapped", [False, True])
def test_steps_of_two_threads_count_both(wrapped):
    """Another thread steps other weights just before this one commits.  It waits if they share a scale."""
    weights = {name: np.ones(2, np.float32) for name in "ab"}
    routed = optimizer = optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD(0.5), {"b": optimc.SGD(0.5)}))
    if wrapped:
        optimizer = optimc.LossScaleOptimizer(routed)
    optimizer.build(weights)

    def step(name):
        optimizer.apply({name: np.ones(2, np.float32)}, {name: weights[name]})

    def meanwhile(frame, event, function):
        if event == "c_call" and function.__name__ == "commit" and not other.ident:
            other.start()
            other.join(0.2 if wrapped else None)
            waited.append(other.is_alive())

    other, before, waited = threading.Thread(target=step, args=("b",)), sys.getprofile(), []
    sys.setprofile(meanwhile)
    try:
        step("a")
    finally:
        sys.setprofile(before)
    other.join()
    assert routed.iterations == 2 and waited == [wrapped]


def test_a_copy_of_a_wrapper_has_the_routes_of_its_moment():
    optimizers = {name: optimc.SGD(0.5) for name in "ab"}
    weights = {name: np.ones(2, np.float32) for name in "ab"}
    wrapper = optimc.MultiOptimizer(lambda name: optimizers[name])
    wrapper.build({"a": weights["a"]})
    state = dict(wrapper.__dict__)
    wrapper.__dict__.clear()
    wrapper.__dict__.update({"note": Steps(lambda: wrapper.build(weights)), **state})
    again = copy.deepcopy(wrapper)
    assert list(wrapper._routes) == ["a", "b"] and list(again._routes) == ["a"]
    again.apply({name: weight * 1 for name, weight in weights.items()}, weights)
    assert all((weight == 0.5).all() for weight in weights.values())


def test_copies_of_a_wrapper_and_of_its_parts_stay_together():
    wrapper = optimc.LossScaleOptimizer(optimc.SGD(0.5))
    for copied in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        for both in ((wrapper, wrapper.inner_optimizer), (wrapper.inner_optimizer, wrapper)):
            again = sorted(copied(both), key=lambda one: isinstance(one, optimc.SGD))
            assert again[0].inner_optimizer is again[1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle_takes_wrappers(protocol):
    wrapper, (weights, grads) = make_multi(), weights_and_grads()
    wrapper.apply(grads, weights)
    assert pickle.loads(pickle.dumps(wrapper, protocol)).iterations == 1


def test_wrappers_are_stored():
    multi = make_multi(loss_scale_factor=2.0)
    for wrapper in (multi, optimc.LossScaleOptimizer(optimc.Adam(0.5), 4.0, 10, name="mine")):
        again = optimc.get(optimc.serialize(wrapper))
        assert type(again) is type(wrapper) and again.get_config() == wrapper.get_config()
        assert optimc.get(wrapper) is wrapper
    with pytest.raises(ValueError, match="only with an OptimizerMap"):
        optimc.MultiOptimizer(lambda name: optimc.SGD()).get_config()
    scaled = optimc.LossScaleOptimizer(optimc.SGD(0.5, momentum=0.5), 4.0)
    w = np.ones(2, F)
    scaled.apply([w * 2], [w])
    twin, moved = pickle.loads(pickle.dumps(scaled)), w.copy()
    scaled.apply([np.ones(2, F)], [w])
    twin.apply([np.ones(2, F)], [moved])
    assert_same_bits(w, moved)
    assert twin.step_counter == 2
