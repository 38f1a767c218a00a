"""The life of an optimizer: nothing works before its constructor, and the constructor runs once."""

import copy
import pickle

import numpy as np
import pytest
from cases import assert_same_bits

import optimc
from optimc import _core

NOT_CALLED = r"^Own: __init__ was not called, or failed$"


class Own(optimc.Adam):
    """A class that leaves its base's constructor out, until it is told otherwise."""

    def __init__(self, *args, **kwargs):
        pass


def ones():
    return [np.ones(3, np.float32)]


USES = {
    "apply": lambda opt: opt.apply(ones(), ones()),
    "apply_gradients": lambda opt: opt.apply_gradients(zip(ones(), ones(), strict=True)),
    "a transaction": lambda opt: _core.Transaction().check(opt, ones(), ones()),
    "build": lambda opt: opt.build(ones()),
    "get_config": lambda opt: opt.get_config(),
    "state_dict": lambda opt: opt.state_dict(),
    "load_state_dict": lambda opt: opt.load_state_dict(optimc.Adam().state_dict()),
    "repr": repr,
    "copy": copy.copy,
    "pickle": pickle.dumps,
    "variables": lambda opt: opt.variables,
    "a value": lambda opt: opt.learning_rate,
    "an option": lambda opt: opt.amsgrad,
    "a flag of every optimizer": lambda opt: opt.keeps_averages,
    "setting a value": lambda opt: setattr(opt, "learning_rate", 0.5),
    "setting an option": lambda opt: setattr(opt, "clipnorm", 1.0),
    "setting iterations": lambda opt: setattr(opt, "iterations", 3),
    "exclude_from_weight_decay": lambda opt: opt.exclude_from_weight_decay(var_names=["bias"]),
    "scale_loss": lambda opt: opt.scale_loss(1.0),
    "a loss scale": lambda opt: optimc.LossScaleOptimizer(opt),
    "_bind": lambda opt: opt._bind(optimc.Adam()._build(ones())),
    "_add_group": lambda opt: opt._add_group(),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("make", [Own, lambda: Own.__new__(Own)], ids=["without super", "new"])
def test_nothing_works_before_init(name, make):
    with pytest.raises(RuntimeError, match=NOT_CALLED):
        USES[name](make())


def test_saving_before_init_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match=NOT_CALLED):
        Own().save(tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_a_constructor_that_failed_can_be_called_again():
    optimizer = optimc.Adam.__new__(optimc.Adam)
    for _ in range(2):
        for wrong in ({"beta_2": 2.0}, {"amsgrad": 3}, {"rate": 0.1},
                      {"groups": [{"weights": "bias", "epsilon": -1}]}):
            with pytest.raises((TypeError, ValueError)):
                optimizer.__init__(0.25, **wrong)
            with pytest.raises(RuntimeError, match="__init__ was not called, or failed"):
                optimizer.get_config()
    optimizer.__init__(0.25, amsgrad=True)
    other, w, v = optimc.Adam(0.25, amsgrad=True), ones(), ones()
    assert optimizer.get_config() == other.get_config()
    for _ in range(3):
        optimizer.apply(ones(), w)
        other.apply(ones(), v)
    assert_same_bits(w[0], v[0])


def test_a_live_optimizer_is_not_constructed_again():
    optimizer, other, w, v = optimc.Adam(0.25), optimc.Adam(0.5, epsilon=1.0), ones(), ones()
    twin = copy.deepcopy(optimizer)
    for step in range(3):
        optimizer.apply(ones(), w)
        twin.apply(ones(), v)
        if step == 1:
            before = optimizer.get_config()
            for again in (lambda: optimizer.__init__(0.5), lambda: optimizer.__init__(rate=0.5),
                          lambda: optimizer.__setstate__(other.__reduce__()[2])):
                with pytest.raises(RuntimeError, match=r"^Adam: __init__ was called before: make another optimizer$"):
                    again()
            assert optimizer.get_config() == before
    assert_same_bits(w[0], v[0])


def test_a_class_has_the_values_of_one_rule():
    with pytest.raises(TypeError, match=r"^Both: its rule 'adam' has no momentum, dampening: derive a class from"):
        type("Both", (optimc.Adam, optimc.SGD), {})
    assert type("Both", (optimc.AdamW, optimc.Adam), {})().get_config() == {**optimc.AdamW().get_config(),
                                                                             "name": "both"}


def test_gradients_per_update_fit_the_plan():
    optimizer, (w,) = optimc.SGD(0.5), ones()
    for wrong in (0, -1, 2 ** 31, 2 ** 70):
        with pytest.raises((ValueError, OverflowError)):
            optimizer._steps = wrong
    plan = optimizer._build([w])
    optimizer.gradient_accumulation_steps = 2
    with pytest.raises(ValueError, match="the plan has no accumulators"):
        optimizer._bind(plan)
    optimizer.gradient_accumulation_steps = None
    optimizer._bind(plan)
    with pytest.raises(ValueError, match="the plan has no accumulators"):
        optimizer._steps = 2
    optimizer.apply([w * 1])
    assert optimizer.iterations == 1


def test_a_number_may_take_back_the_constructor():
    class Rate(np.float32):
        def __float__(self):
            optimizer._forget()
            return -1.0

    optimizer = optimc.SGD()
    with pytest.raises(ValueError, match=r"^learning_rate must be finite and >= 0, got 1"):
        optimizer.learning_rate = Rate(1)
    with pytest.raises(RuntimeError, match="__init__ was not called"):
        repr(optimizer)
    optimizer.__init__(0.5)
    assert optimizer.learning_rate == 0.5


@pytest.mark.parametrize("kind, name", [("MultiOptimizer", "iterations"), ("MultiOptimizer", "loss_scale_factor"),
                                        ("LossScaleOptimizer", "step_counter")])
def test_nor_do_counts_of_a_wrapper(kind, name):
    cls = getattr(optimc, kind)
    with pytest.raises(RuntimeError, match=f"^{kind}: __init__ was not called, or failed$"):
        getattr(cls.__new__(cls), name)
