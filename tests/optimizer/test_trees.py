"""Nested dicts, lists and tuples of weights: the same bits as flat ones, with names joined by "/"."""

import collections
import copy
import inspect
import types

import numpy as np
import pytest

import optimc
from optimc import _core
from optimc.registry import classes

F = np.float32
NAMES = ("embedding", "layers/0/kernel", "layers/0/bias", "layers/1/kernel", "layers/1/bias", "head/0",
         "head/1/scale")


def tree(seed, dict_type=dict, list_type=list):
    rng = np.random.default_rng(seed)
    made = lambda *shape: rng.standard_normal(shape).astype(F)      # noqa: E731
    layers = list_type([dict_type(kernel=made(3, 4), bias=made(4)) for _ in range(2)])
    return dict_type(embedding=made(5, 2), layers=layers, head=(made(2), dict_type(scale=made())))


def flat(nested):
    return _core.flattened(nested)


def copied(nested):
    return copy.deepcopy(nested)


@pytest.mark.parametrize("cls", classes.values(), ids=classes)
@pytest.mark.parametrize("leave_out", [False, True], ids=["weights given", "weights left out"])
def test_nested_weights_step_like_flat_ones(cls, leave_out):
    nested, named = cls(use_ema=True), cls(use_ema=True)
    weights = tree(0)
    twins = {name: w.copy() for name, w in flat(weights).items()}
    for step in range(4):
        grads = tree(step + 1)
        nested.apply(grads, None if leave_out and step else weights)
        named.apply(flat(grads), twins)
    assert nested._names == named._names == tuple(twins) == NAMES
    for name, weight in flat(weights).items():
        assert weight.tobytes() == twins[name].tobytes(), name
    for ours, theirs in zip(nested.variables, named.variables, strict=True):
        assert ours.tobytes() == theirs.tobytes()
    with nested.averaged(weights):
        pass
    nested.finalize_variable_values(weights)


@pytest.mark.parametrize("list_type", [list, tuple, collections.deque, collections.UserList])
@pytest.mark.parametrize("dict_type", [dict, collections.OrderedDict, collections.UserDict,
                                       lambda **given: types.MappingProxyType(given),
                                       lambda **given: collections.ChainMap(given)])
def test_other_mappings_and_sequences_are_taken(dict_type, list_type):
    weights, twins = tree(0, dict_type, list_type), tree(0)
    ours, theirs = optimc.Adam(), optimc.Adam()
    ours.build(weights)
    for step in range(3):
        ours.apply(tree(step, dict_type, list_type), None if step == 2 else weights)
        theirs.apply(tree(step), twins)
    assert ours._names == NAMES
    for name, weight in flat(weights).items():
        assert weight.tobytes() == flat(twins)[name].tobytes()


@pytest.mark.parametrize("kind", [collections.deque, collections.UserList, tuple])
def test_a_flat_sequence_has_no_names(kind):
    optimizer, weights = optimc.SGD(1.0), kind([np.ones(2, F), np.ones(3, F)])
    optimizer.apply(kind([np.ones(2, F), np.ones(3, F)]), weights)
    optimizer.apply(kind([np.ones(2, F), np.zeros(3, F)]))
    assert optimizer._names is None
    assert weights[0][0] == -1 and weights[1][0] == 0


def test_lists_of_pairs_are_named_by_position():
    layers = [(np.ones((2, 2), F), np.ones(2, F)), (np.ones((2, 1), F), np.ones(1, F))]
    optimizer = optimc.SGD(1.0)
    optimizer.apply(copied(layers), layers)
    assert optimizer._names == ("0/0", "0/1", "1/0", "1/1")
    optimizer.apply([np.ones(w.shape, F) for w in optimizer._weights])      # flat, in their order
    assert layers[1][1] == -1


def test_a_none_is_a_missing_gradient_or_many():
    weights, grads = tree(0), tree(1)
    before = copied(weights)
    grads["layers"][0]["bias"] = grads["layers"][1] = None
    for leave_out in (False, True):
        optimizer = optimc.SGD(1.0)
        optimizer.build(weights)
        with pytest.warns(UserWarning, match=r"Gradients do not exist for weights\['layers/0/bias'\], "
                                             r"weights\['layers/1/kernel'\], weights\['layers/1/bias'\]: these"):
            optimizer.apply(grads, None if leave_out else weights)
        assert (weights["layers"][0]["bias"] == before["layers"][0]["bias"]).all()
        assert (weights["layers"][1]["kernel"] == before["layers"][1]["kernel"]).all()
        assert (weights["embedding"] != before["embedding"]).all()


def lacks(grads):
    del grads["layers"][1]["bias"]


def has_more(grads):
    grads["layers"][1]["other"] = np.ones(1, F)


def is_shorter(grads):
    grads["layers"].pop()


def is_array(grads):
    grads["layers"] = np.ones(2, F)


def is_list(grads):
    grads["layers"][0] = [1.0]


def is_deeper(grads):
    grads["embedding"] = [grads["embedding"]]


def has_other_shape(grads):
    grads["layers"][0]["bias"] = np.ones(5, F)


def has_ints(grads):
    grads["head"][1]["scale"] = np.array(1)


def has_number_as_key(grads):
    grads["layers"][0][3] = np.ones(1, F)


#: a change of the gradients, the error with the weights and the one without
WRONG = {
    lacks: (r"grads has no entry for weights\['layers/1/bias'\]", None),
    has_more: (r"weights has no entry for grads\['layers/1/other'\]", None),
    is_shorter: (r"grads\['layers'\] and weights\['layers'\] must have as many entries, got 1 and 2",
                 r"grads has no entry for weights\['layers/1/kernel'\]"),
    is_array: (r"grads\['layers'\]: expected a list or tuple, like weights\['layers'\], got ndarray",
               r"weights has no entry for grads\['layers'\]"),
    is_list: (r"grads\['layers/0'\]: expected a dict, like weights\['layers/0'\], got list",
              r"weights has no entry for grads\['layers/0/0'\]"),
    is_deeper: (r"grads\['embedding'\]: expected an array, like weights\['embedding'\], got list",
                r"weights has no entry for grads\['embedding/0'\]"),
    has_other_shape: (r"grads\['layers/0/bias'\]: expected shape \(4,\), like its weight, got \(5,\)", None),
    has_ints: (r"grads\['head/1/scale'\]: expected a floating-point gradient, got int64", None),
    has_number_as_key: (r"grads\['layers/0'\]: keys must be str, got int", None),
}


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_gradients_of_another_form_are_named_by_their_path(change, steps):
    """And refused with nothing changed; the next good step goes on."""
    for leave_out in (False, True):
        optimizer, weights = optimc.Adam(), tree(0)
        if leave_out:
            optimizer.build(weights)
        for step in range(steps):
            optimizer.apply(tree(step), None if leave_out else weights)
        before, grads = copied(weights), tree(1)
        change(grads)
        given, omitted = WRONG[change]
        with pytest.raises((TypeError, ValueError), match=f"^{(leave_out and omitted) or given}"):
            optimizer.apply(grads, None if leave_out else weights)
        assert optimizer.iterations == steps
        assert optimizer.built == bool(steps or leave_out)
        for name, weight in flat(weights).items():
            assert weight.tobytes() == flat(before)[name].tobytes()
        optimizer.apply(tree(1), None if leave_out else weights)
        assert optimizer.iterations == steps + 1


@pytest.mark.parametrize("weights, error, message", [
    ({"a/b": np.ones(1, F), "a": {"b": np.ones(1, F)}}, ValueError, "^weights: two entries have the name 'a/b'$"),
    ({"a": {1: np.ones(1, F)}}, TypeError, r"^weights\['a'\]: keys must be str, got int$"),
    ({"a": {"b": np.ones(1, int)}}, TypeError, r"^weights\['a/b'\]: expected an array of float32, .*, got int64$"),
    ({"a": {"b": None}}, TypeError, r"^weights\['a/b'\]: .*got NoneType$"),
    ([[np.ones(1, F)], [1.0, 2.0]], TypeError, r"^weights\[1\] is a list of numbers: expected a NumPy array$"),
    ([[np.ones(1, F)], "ab"], TypeError, r"^weights\['1'\]: .*got str$"),
    ([[], {}, ()], ValueError, "^weights is empty: expected at least one weight$"),
])
def test_nested_weights_that_cannot_be_trained(weights, error, message):
    optimizer = optimc.SGD()
    with pytest.raises(error, match=message):
        optimizer.build(weights)
    assert not optimizer.built


def test_weights_within_themselves_are_refused():
    weights = [np.ones(1, F)]
    weights.append(weights)
    for call in (lambda o: o.build(weights), lambda o: o.apply(weights, weights)):
        with pytest.raises(RecursionError, match="nested weights"):
            call(optimc.SGD())


def test_empty_branches_are_no_weights():
    weights, grads = {"a": {}, "b": [np.ones(1, F), []]}, {"a": {}, "b": [np.ones(1, F), []]}
    optimizer = optimc.SGD(1.0)
    optimizer.apply(grads, weights)
    optimizer.apply(grads)
    assert optimizer._names == ("b/0",)
    assert weights["b"][0] == -1


def test_names_of_a_tree_select_weights_and_name_slots(tmp_path):
    optimizer = optimc.AdamW(0.5, 0.5, groups=[{"weights": "layers/.*/bias", "learning_rate": 0.0}])
    weights = tree(0)
    before = copied(weights)
    optimizer.exclude_from_weight_decay(var_names="^head/0")
    optimizer.apply(tree(1), weights)
    assert (weights["layers"][0]["bias"] == before["layers"][0]["bias"]).all()
    optimizer.save(tmp_path / "state")
    again, twins = optimc.load(tmp_path / "state"), copied(weights)
    optimizer.apply(tree(2), weights)
    again.apply(flat(tree(2)), flat(twins))                         # by names, nested or not
    for name, weight in flat(weights).items():
        assert weight.tobytes() == flat(twins)[name].tobytes()
    assert tuple(again.state_dict()["names"]) == NAMES


def test_wrappers_take_trees():
    for wrap in (lambda: optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD(1.0), {".*bias": optimc.SGD(0.5)})),
                 lambda: optimc.LossScaleOptimizer(optimc.SGD(1.0), 1.0),
                 lambda: optimc.LossScaleOptimizer(optimc.MultiOptimizer(lambda name: optimc.SGD(1.0)), 1.0)):
        optimizer, weights = wrap(), tree(0)
        before = copied(weights)
        if not isinstance(getattr(optimizer, "inner_optimizer", optimizer), optimc.MultiOptimizer):
            optimizer.build(weights)
        optimizer.apply(tree(1), weights)
        optimizer.apply(tree(1))
        assert all((one != flat(before)[name]).all() for name, one in flat(weights).items())
        grads = tree(1)
        lacks(grads)
        with pytest.raises(ValueError, match=r"grads has no entry for weights\['layers/1/bias'\]"):
            optimizer.apply(grads, weights)


def test_gradients_of_other_libraries_in_trees():
    jax = pytest.importorskip("jax")
    weights, twins = tree(0), tree(0)
    grads = jax.tree_util.tree_map(jax.numpy.asarray, tree(1))
    ours, theirs = optimc.Adam(), optimc.Adam()
    for step in range(3):
        ours.apply(grads, None if step == 2 else weights)
        theirs.apply(tree(1), twins)
    assert all(w.tobytes() == flat(twins)[name].tobytes() for name, w in flat(weights).items())


def test_swapped_trees_are_recognised():
    optimizer, weights, grads = optimc.SGD(), tree(0), tree(1)
    optimizer.apply(grads, weights)
    with pytest.raises(ValueError, match=r"^weights\['embedding'\] is no weight .*grads\['embedding'\] is one: are"):
        optimizer.apply(weights, grads)


def test_the_form_of_gradients_may_change_between_steps():
    optimizer, weights = optimc.SGD(1.0), tree(0)
    twin, twins = optimc.SGD(1.0), tree(0)
    optimizer.build(weights)
    for step in range(6):
        grads = tree(step)
        optimizer.apply((grads, flat(grads), list(flat(grads).values()))[step % 3])
        twin.apply(grads, twins)
    assert all(w.tobytes() == flat(twins)[name].tobytes() for name, w in flat(weights).items())


def test_a_signature_says_that_trees_are_taken():
    assert "nested" in inspect.getdoc(optimc.Optimizer.apply) and "nested" in inspect.getdoc(optimc.Optimizer.build)


# ------------------------------------------------------- containers with code, branches without gradients


def ones(value=1.0):
    return np.full(3, value, F)


def test_weights_that_change_while_gradients_are_read_are_no_crash():
    weights = {"a": {"x": ones(), **{f"y{i}": ones() for i in range(400)}}}
    optimizer = optimc.SGD(0.5)
    optimizer.build(weights)

    class Shrinks:
        def __array__(self, dtype=None, copy=None):
            for name in list(weights["a"])[1:]:
                del weights["a"][name]
            return ones()

    step = weights["a"]["x"]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply({"a": {name: Shrinks() if name == "x" else None for name in weights["a"]}}, weights)
    assert (step == 0.5).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("before", [False, True])
def test_a_branch_without_gradients_changes_no_later_match(before):
    weights = {"a": {"1": ones(0), "0": ones(0)}, "b": {"z": ones(0)}}
    optimizer = optimc.SGD(1.0)
    optimizer.build(weights)
    if before:
        optimizer.apply({"a": None, "b": {"z": ones(0)}})
    optimizer.apply({"a": [ones(10), ones(20)], "b": {"z": ones(0)}})
    assert (weights["a"]["0"] == -10).all() and (weights["a"]["1"] == -20).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_branch_without_gradients_comes_back_in_another_container():
    weights = {"b": [ones(0), {"z": ones(0)}], "a": {"x": ones(0)}}
    optimizer = optimc.SGD(1.0)
    optimizer.build(weights)
    optimizer.apply({"b": None, "a": {"x": ones()}})
    optimizer.apply({"b": [ones(), types.MappingProxyType({"z": ones()})], "a": {"x": ones()}})
    assert (weights["b"][0] == -1).all() and (weights["b"][1]["z"] == -1).all() and (weights["a"]["x"] == -2).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("before", [False, True])
def test_flat_gradients_match_by_position_whatever_came_before(before):
    weights = {"1": {"x": ones(0)}, "0": ones(0)}
    optimizer = optimc.SGD(1.0)
    optimizer.build(weights)
    if before:
        optimizer.apply({"1": {"x": ones(0)}, "0": ones(0)})
    optimizer.apply([ones(10), None])
    assert (weights["1"]["x"] == -10).all() and (weights["0"] == 0).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist", "ignore:.*left as they are")
@pytest.mark.parametrize("given", [False, True], ids=["weights left out", "weights given"])
@pytest.mark.parametrize("make", [
    lambda: optimc.SGD(1.0),
    lambda: optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD(1.0), {"a/.*": optimc.SGD(1.0)})),
], ids=["optimizer", "wrapper"])
def test_none_stands_for_a_branch(make, given):
    weights = {"a": {"x": ones(0), "y": ones(0)}, "b": ones(0)}
    optimizer = make()
    optimizer.build(weights)
    optimizer.apply({"a": None, "b": ones()}, *([weights] if given else []))
    assert (weights["b"] == -1).all() and (weights["a"]["x"] == 0).all() and (weights["a"]["y"] == 0).all()


def test_an_error_of_a_container_is_not_taken_for_another_form():
    weights = {"a": {"x": ones()}, "b": ones()}
    optimizer = optimc.SGD(1.0)
    optimizer.build(weights)
    optimizer.apply({"a": {"x": ones(0)}, "b": ones(0)})

    class Broken(collections.UserDict):
        def __getitem__(self, name):
            raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        optimizer.apply({"a": Broken(x=ones()), "b": ones()})
    assert (weights["b"] == 1).all() and optimizer.iterations == 1
