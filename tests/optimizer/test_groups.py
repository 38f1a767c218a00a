"""Groups have values of their own; weights are chosen by name, position or array, and a choice must fit."""

import copy

import numpy as np
import pytest
from cases import assert_same_bits, values

import optimc


def test_groups_have_values_of_their_own(case):
    rng = np.random.default_rng(0)
    names = ["dense/kernel", "dense/bias", "out/kernel", "out/bias"]
    start = {name: values(rng, 50, np.float32) for name in names}
    grads = [{name: values(rng, 50, np.float32) for name in names} for _ in range(4)]
    groups = [{"weights": "bias", "learning_rate": 0.5, "weight_decay": 0.0},
              {"weights": ["^out/k"], "learning_rate": 0.25, "clipvalue": 0.1}]
    one = case.make(learning_rate=0.125, weight_decay=0.5, groups=groups)
    apart = {"dense/kernel": case.make(learning_rate=0.125, weight_decay=0.5),
             "dense/bias": case.make(learning_rate=0.5, weight_decay=0.0),
             "out/bias": case.make(learning_rate=0.5, weight_decay=0.0),
             "out/kernel": case.make(learning_rate=0.25, weight_decay=0.5, clipvalue=0.1)}
    weights = {name: w.copy() for name, w in start.items()}
    expected = {name: w.copy() for name, w in start.items()}
    for k, g in enumerate(grads):
        if k == 2:
            one.groups[0]["learning_rate"] = 0.75
            apart["dense/bias"].learning_rate = apart["out/bias"].learning_rate = 0.75
            one.weight_decay = apart["dense/kernel"].weight_decay = 0.25
            apart["out/kernel"].weight_decay = 0.25
        if k == 3:
            one, moved = copy.deepcopy(one), {name: w.copy() for name, w in weights.items()}
            weights = moved
        one.apply(g, weights)
        for name in names:
            apart[name].apply([g[name]], [expected[name]])
            assert_same_bits(weights[name], expected[name], name)
    again = type(one).from_config(one.get_config())
    assert again.get_config() == one.get_config()
    assert again.groups[0]["learning_rate"] == 0.75


@pytest.mark.parametrize("name,value,more", [
    ("clipvalue", 0.25, {}), ("clipnorm", 0.5, {}), ("loss_scale_factor", 8.0, {"global_clipnorm": 0.5}),
    ("loss_scale_factor", 8.0, {"gradient_accumulation_steps": 2})])
def test_a_change_for_all_reaches_the_groups_at_once(name, value, more):
    g = [np.full(3, 4.0, np.float32), np.full(3, 8.0, np.float32)]
    ended = []
    for groups in (None, [{"weights": [1]}]):
        weights = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
        optimizer = optimc.SGD(1.0, groups=groups, **{name: 1.0}, **more)
        optimizer.apply(g, weights)
        setattr(optimizer, name, value)
        optimizer.apply(g, weights)
        ended.append(weights)
    for alone, grouped in zip(*ended, strict=True):
        assert_same_bits(grouped, alone)


def test_groups_of_weights_and_positions():
    a, b = np.zeros(2, np.float32), np.zeros(2, np.float32)
    g = np.ones(2, np.float32)
    for params in ([b], [1]):
        optimizer = optimc.SGD(1.0, groups=[{"weights": params, "learning_rate": 2.0}])
        a[:], b[:] = 0, 0
        optimizer.apply([g, g], [a, b])
        assert a[0] == -1 and b[0] == -2
    assert optimizer.get_config()["groups"] == [{"weights": [1], "learning_rate": 2.0}]


@pytest.mark.parametrize("groups,error,message", [
    ([{"learning_rate": 1.0}], TypeError, "an entry 'weights'"),
    (["bias"], TypeError, r"^groups\[0\]: expected a dict with an entry 'weights', got 'bias'$"),
    ({"weights": "bias"}, TypeError, "^groups must be a list of dicts, got dict$"),
    ([{"weights": "bias"}, {}], TypeError, r"^groups\[1\]: expected a dict with an entry 'weights', got {}$"),
    ([{"weights": "bias", "no_such": 1.0}], ValueError, "'no_such' is not a value"),
    ([{"weights": "bias", "global_clipnorm": 1.0}], ValueError,
     r"^groups\[0\]: global_clipnorm is one value for all weights: set it on the optimizer$"),
    ([{"weights": "bias", "nesterov": True}], ValueError, "'nesterov' is not a value"),
    ([{"weights": "bias", "learning_rate": -1.0}], ValueError, "learning_rate must be"),
    ([{"weights": "(", "learning_rate": 1.0}], ValueError, "not a regular expression"),
    ([{"weights": 3.0}], TypeError, "expected a list"),
    ([{"weights": [3.0]}], TypeError, "expected names or weights"),
])
def test_bad_groups(groups, error, message):
    with pytest.raises(error, match=message):
        optimc.SGD(groups=groups)


@pytest.mark.parametrize("groups,message", [
    ([{"weights": "nothing"}], "'nothing' matches none of the weights kernel, bias"),
    ([{"weights": [5]}], r"^groups\[0\]: entry 0, 5, is not one of the 2 weights$"),
    ([{"weights": "bias"}, {"weights": [1]}], r"weights\['bias'\] is in groups\[0\] and groups\[1\]"),
    ([{"weights": [np.zeros(3)]}], r"^groups\[0\]: entry 0 is not one of the 2 weights$"),
])
def test_groups_that_do_not_fit_the_weights(groups, message):
    weights = {"kernel": np.zeros(3, np.float32), "bias": np.zeros(2, np.float32)}
    optimizer = optimc.SGD(groups=groups)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            optimizer.apply({k: w + 1 for k, w in weights.items()}, weights)
        assert not optimizer.built
    with pytest.raises(ValueError, match=r"names, but the weights have none|not one of|is in groups"):
        optimizer.build(list(weights.values()))


def test_empty_weights_can_be_chosen():
    weights = [np.ones(2, np.float32), *(np.ones((0, 3), np.float32) for _ in range(3))]
    optimizer = optimc.AdamW(0.5, groups=[{"weights": [weights[2]], "learning_rate": 0.25}])
    optimizer.exclude_from_weight_decay([weights[3]])
    optimizer.build(weights)
    assert optimizer.get_config()["groups"][0]["weights"] == [2]
    with pytest.raises(ValueError, match="entry 0 is not one of the 4 weights"):
        optimizer.exclude_from_weight_decay([np.ones((0, 3), np.float32)])


def test_exclusions_by_name():
    weights = {"kernel": np.ones(3, np.float32), "bias": np.ones(2, np.float32)}
    grads = {k: np.zeros_like(w) for k, w in weights.items()}
    optimizer = optimc.SGD(1.0, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply(grads, weights)
    assert weights["kernel"][0] == 0.5 and weights["bias"][0] == 1
    optimizer.exclude_from_weight_decay(var_list=[weights["kernel"]])
    optimizer.apply(grads, weights)
    assert weights["kernel"][0] == 0.5 and weights["bias"][0] == 0.5
    with pytest.raises(ValueError, match="'nothing' matches none"):
        optimizer.exclude_from_weight_decay(var_names=["nothing"])
    optimizer.apply(grads, weights)
    assert weights["kernel"][0] == 0.5 and weights["bias"][0] == 0.25
