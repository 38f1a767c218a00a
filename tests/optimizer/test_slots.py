"""`slots` shows the arrays that an optimizer keeps; `repr` says in words what it is."""

import copy
import pickle
import warnings

import numpy as np
import pytest

import optimc

F = np.float32


def some_weights():
    return {"kernel": np.ones((3, 2), F), "bias": np.ones(2, F)}


def stepped(optimizer, weights):
    grads = {name: np.full_like(weight, 0.5) for name, weight in weights.items()}
    optimizer.apply(grads, weights)
    return optimizer


def test_slots_are_the_live_arrays(case):
    optimizer, weights = case.make(), some_weights()
    assert optimizer.slots == {}
    optimizer.build(weights)
    before = optimizer.slots
    stepped(optimizer, weights)
    expected = {slot: {name: array for name, array in zip(weights, arrays, strict=True) if array is not None}
                for slot, arrays in optimizer._slots.items() if slot not in optimizer._scratch_slots}
    for slots in (before, optimizer.slots):
        assert {slot: list(arrays) for slot, arrays in slots.items()} == {
            slot: list(arrays) for slot, arrays in expected.items()}
        for slot, arrays in slots.items():
            for name, array in arrays.items():
                assert np.shares_memory(array, expected[slot][name]) or not array.size
                assert (array == expected[slot][name]).all() and not array.flags.writeable
                with pytest.raises(ValueError, match="read-only"):
                    array[...] = 0
    before.clear()
    assert optimizer.slots.keys() == expected.keys()


def test_weights_without_names_are_given_by_position():
    optimizer, weights = optimc.Muon(), list(some_weights().values())
    optimizer.apply([weight * 1 for weight in weights], weights)
    assert {slot: list(arrays) for slot, arrays in optimizer.slots.items()} == {"m": [0, 1], "v": [1]}


def test_a_loaded_state_has_slots_before_it_is_bound():
    optimizer = stepped(optimc.Adam(), some_weights())
    again = pickle.loads(pickle.dumps(optimizer))
    assert not again.built and (again.slots["m"]["bias"] == optimizer.slots["m"]["bias"]).all()


def test_wrappers_show_the_slots_of_their_optimizers():
    routes = optimc.OptimizerMap(optimc.Adam(), {"bias": optimc.SGD(momentum=0.9), "scale": optimc.Adam()})
    inner, weights = optimc.MultiOptimizer(routes), {**some_weights(), "scale": np.ones(1, F)}
    outer = stepped(optimc.LossScaleOptimizer(inner, 1.0), weights)
    for one in (inner, outer):
        assert {slot: sorted(arrays) for slot, arrays in one.slots.items()} == {
            "velocity": ["bias"], "m": ["kernel", "scale"], "v": ["kernel", "scale"]}


def test_repr_counts_in_words():
    optimizer = optimc.Adam(0.1, amsgrad=True)
    assert repr(optimizer) == "<Adam(learning_rate=0.1, amsgrad=True): 0 steps, not built>"
    w = np.ones(1, F)
    optimizer.apply([w * 1], [w])
    assert repr(optimizer) == "<Adam(learning_rate=0.1, amsgrad=True): 1 step, 1 weight of 1 element>"
    grouped = optimc.SGD(groups=[{"params": "bias"}, {"params": "kernel"}])
    stepped(stepped(grouped, weights := some_weights()), weights)
    assert repr(grouped) == "<SGD(learning_rate=0.01, 2 groups): 2 steps, 2 weights of 8 elements>"


def test_groups_cannot_be_replaced():
    optimizer = optimc.SGD(groups=[{"params": "bias"}])
    with pytest.raises(AttributeError, match="groups cannot be replaced"):
        optimizer.groups = []
    assert len(optimizer.groups) == 1


def test_nesterov_without_momentum_warns_once():
    with pytest.warns(UserWarning, match=r"SGD\(nesterov=True\) without momentum is plain SGD") as caught:
        optimizer = optimc.SGD(nesterov=True)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in (optimc.SGD.from_config(optimizer.get_config()), optimc.get(optimc.serialize(optimizer)),
                      copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert again.nesterov
        optimc.SGD(momentum=0.9, nesterov=True)
        optimc.SGD(momentum=0.0, nesterov=True)
        optimc.SGD(nesterov=True, groups=[{"params": "kernel", "momentum": 0.9}])
        optimc.SGD(momentum=optimc.schedules.OneCycle(0.9, 10), nesterov=True)
