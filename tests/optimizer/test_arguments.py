"""Arguments: what a constructor and an assignment take, a step can go on with; all else is refused at once."""

import functools
import inspect
import math

import numpy as np
import pytest
from cases import assert_same_bits

import optimc
from optimc import _core
from optimc.base.arguments import Value
from optimc.registry import classes

#: values at the edges, and of types that look like numbers
VALUES = [0, 1, 2, -1, None, math.nan, math.inf, -math.inf, True, False, 1.5, -0.5, 2 ** 31, 2 ** 63, 10 ** 400,
          np.float32(0.5), np.int64(3), np.int8(-1), np.bool_(True), np.array(1), np.zeros(1), np.ones(2), 1j, "1",
          b"1", (), [], {}, float, optimc.schedules.CosineDecay, optimc.SGD]


def stepped(optimizer):
    """The weights after three steps, in memory that held other things before."""
    junk = [np.full((3, 2), 1e3, dtype) for dtype in (np.float32, np.float64) for _ in range(20)]
    del junk
    weights = [np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), np.ones(3)]
    for _ in range(3):
        optimizer.apply([w / 2 for w in weights], weights)
    return weights


def own_arguments(cls):
    """The arguments of a class, those of every optimizer for one class only."""
    return [name for name in cls._arguments if cls is optimc.SGD or name not in vars(optimc.Optimizer)]


def check(cls, name, value):
    """A value is refused by the constructor and an assignment alike, or steps give the same each time."""
    try:
        optimizer = cls(**{name: value})
    except (TypeError, ValueError) as error:
        assert name in str(error) and "\n" not in str(error)
        optimizer = cls()
        before = optimizer.get_config()
        with pytest.raises(type(error), match=name):
            setattr(optimizer, name, value)
        assert optimizer.get_config() == before
        return
    first = stepped(optimizer)
    for a, b in zip(first, stepped(cls(**{name: value})), strict=True):
        assert_same_bits(a, b)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("cls", classes.values(), ids=lambda cls: cls.__name__)
def test_a_value_is_refused_at_once_or_can_be_stepped_with(cls):
    for name in own_arguments(cls):
        for value in VALUES:
            check(cls, name, value)


def test_a_value_that_fails_in_the_step_is_noticed():
    class Late(optimc.SGD):
        def apply(self, grads, weights):
            if self.momentum == 1:
                raise TypeError("late")

    with pytest.raises(TypeError, match="late"):
        check(Late, "momentum", 1)


@pytest.mark.parametrize("value,error", [(0, ValueError), (None, TypeError), (-1, ValueError), (True, TypeError),
                                         (1.0, TypeError), (2 ** 31, ValueError), (np.array(1), TypeError)])
def test_newton_schulz_steps_are_at_least_one(value, error):
    optimizer = optimc.Muon(ns_steps=np.int64(2))
    with pytest.raises(error, match="ns_steps must be"):
        optimizer.ns_steps = value
    assert optimizer.ns_steps == 2


@pytest.mark.parametrize("value", [0, None])
def test_counts_that_can_be_disabled(value):
    optimizer = optimc.SGD(gradient_accumulation_steps=value, ema_overwrite_frequency=value)
    assert not optimizer.gradient_accumulation_steps and not optimizer.ema_overwrite_frequency


@pytest.mark.parametrize("cls", classes.values(), ids=lambda cls: cls.__name__)
def test_a_class_is_no_schedule(cls):
    for name, argument in cls._arguments.items():
        if isinstance(argument, Value):
            with pytest.raises(TypeError, match=rf"^{name} must be .*, got the class CosineDecay itself$"):
                cls(**{name: optimc.schedules.CosineDecay})


def test_a_class_is_no_map():
    with pytest.raises(TypeError, match=r"^optimizer_map must be an OptimizerMap or a function, got type$"):
        optimc.MultiOptimizer(optimc.OptimizerMap)
    for wrong in ([], 0, ()):
        with pytest.raises(TypeError, match=r"^optimizer_map must be a dict"):
            optimc.OptimizerMap(optimc.SGD(), wrong)


@pytest.mark.parametrize("argument", ["var_list", "var_names"])
@pytest.mark.parametrize("given", [np.zeros(1, np.float32), np.ones(1, np.float32), np.ones(3, np.float32),
                                   np.array(0, np.float32), {"bias": 1}, 3, b"bias"], ids=repr)
def test_one_weight_is_no_list_of_weights(argument, given):
    optimizer = optimc.AdamW()
    with pytest.raises(TypeError, match=rf"^{argument} must be a list or None, got {type(given).__name__}$"):
        optimizer.exclude_from_weight_decay(**{argument: given})


def test_a_name_is_no_list_of_weights():
    with pytest.raises(TypeError, match=r"^var_list must be a list or None, got str$"):
        optimc.AdamW().exclude_from_weight_decay("bias")


def test_any_other_iterable_is_a_list_of_weights():
    weights = {"kernel": np.ones(1, np.float32), "bias": np.ones(1, np.float32)}
    for given in ({"var_list": (w for w in [weights["bias"]])}, {"var_names": "bias"}, {"var_names": ("bias",)}):
        optimizer = optimc.SGD(1.0, weight_decay=0.5)
        optimizer.build(weights)
        optimizer.exclude_from_weight_decay(**given)
        optimizer.apply({name: w * 0 for name, w in weights.items()}, weights)
        assert weights["bias"][0] == 1
    assert weights["kernel"][0] == 0.125


@pytest.mark.parametrize("groups", [np.zeros(0), np.ones((2, 2)), False, 0, 3.5, "bias", b"bias", {}], ids=repr)
def test_what_is_no_list_of_groups(groups):
    with pytest.raises(TypeError, match=rf"^groups must be a list of dicts, got {type(groups).__name__}$"):
        optimc.SGD(groups=groups)


WRAPPED = {"alone": lambda one: one, "LossScaleOptimizer": optimc.LossScaleOptimizer,
           "MultiOptimizer": lambda one: optimc.MultiOptimizer(optimc.OptimizerMap(one))}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("spelling", _core.SPELLINGS)
def test_weights_are_taken_by_their_older_names(spelling, wrap):
    """Every method that takes weights takes them by each name, once."""
    for cls in classes.values() if wrap is WRAPPED["alone"] else [optimc.Muon]:
        optimizer, weights = wrap(cls(use_ema=True)), {"a": np.ones((2, 2), np.float32)}
        grads, other = {"a": np.ones((2, 2), np.float32)}, next(s for s in _core.SPELLINGS if s != spelling)
        optimizer.build(**{spelling: weights})
        optimizer.apply(grads, **{spelling: weights})
        optimizer.apply(grads=grads, **{spelling: weights})
        with optimizer.averaged(**{spelling: weights}):
            pass
        optimizer.finalize_variable_values(**{spelling: weights})
        for method in (optimizer.build, optimizer.averaged, optimizer.finalize_variable_values,
                       functools.partial(optimizer.apply, grads)):
            for args, given in (((weights,), {spelling: weights}), ((), {spelling: weights, other: weights})):
                with pytest.raises(TypeError, match="multiple values for argument 'weights'"):
                    method(*args, **given)
        assert optimizer.iterations == 2


def test_signatures_have_one_name_for_what_is_trained():
    for cls in (optimc.Optimizer, *classes.values(), optimc.LossScaleOptimizer, optimc.MultiOptimizer):
        for name in ("apply", "build", "averaged", "finalize_variable_values"):
            parameters = inspect.signature(getattr(cls, name)).parameters
            assert set(parameters) & set(_core.SPELLINGS) == {"weights"}, (cls, name)


def test_groups_name_their_weights_by_either_word():
    weights = {"kernel": np.ones(2, np.float32), "bias": np.ones(2, np.float32)}
    for word in ("weights", "params"):
        optimizer = optimc.SGD(groups=[{word: "bias", "learning_rate": 0.5}])
        optimizer.build(weights)
        assert optimizer.get_config()["groups"] == [{"weights": ["bias"], "learning_rate": 0.5}]
        assert optimizer.groups[0]["learning_rate"] == 0.5
    with pytest.raises(TypeError, match=r"^groups\[0\]: expected a dict with an entry 'weights', got"):
        optimc.SGD(groups=[{"weights": "bias", "params": "bias"}])


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_apply_gradients_says_that_it_takes_pairs(wrap):
    weights = {"a": np.ones(2, np.float32)}
    optimizer = wrap(optimc.SGD())
    with pytest.raises(TypeError, match=r"^apply_gradients\(\) takes pairs, apply_gradients\(zip\(.*\), got 2 arg"):
        optimizer.apply_gradients(list(weights.values()), list(weights.values()))
    with pytest.raises(TypeError, match=r"^grads_and_vars must be pairs .*; lists are for apply\(grads, weights\)$"):
        optimizer.apply_gradients([1, 2])
    assert list(inspect.signature(optimizer.apply_gradients).parameters) == ["grads_and_vars"]


@pytest.mark.parametrize("cls", classes.values(), ids=classes)
def test_constructors_say_where_weights_are_given(cls):
    """torch's constructors take parameters first."""
    weights = [np.ones(2, np.float32)]
    for given in (weights, tuple(weights), {"a": weights[0]}, weights[0], iter(weights), (w for w in weights)):
        for args, named in (((given,), {}), ((given,), {"lr": 0.1}), ((), {"learning_rate": given})):
            with pytest.raises(TypeError, match=r"^learning_rate must be .*weights are given to apply\(grads, w"):
                cls(*args, **named)
