"""Schedules: Keras's values within its float32 rounding, checks, storing, and what they cost a step."""

import copy
import math
import pickle

import numpy as np
import pytest
from conftest import require

import optimc
from optimc import schedules as s

SCHEDULES = {
    "exponential": (s.ExponentialDecay, {"initial_learning_rate": 0.3, "decay_steps": 7, "decay_rate": 0.6}),
    "exponential stairs": (s.ExponentialDecay, {"initial_learning_rate": 0.3, "decay_steps": 7,
                                                "decay_rate": 0.6, "staircase": True}),
    "inverse": (s.InverseTimeDecay, {"initial_learning_rate": 0.3, "decay_steps": 7, "decay_rate": 0.6}),
    "inverse stairs": (s.InverseTimeDecay, {"initial_learning_rate": 0.3, "decay_steps": 7,
                                            "decay_rate": 0.6, "staircase": True}),
    "polynomial": (s.PolynomialDecay, {"initial_learning_rate": 0.3, "decay_steps": 20, "power": 2.0}),
    "polynomial cycle": (s.PolynomialDecay, {"initial_learning_rate": 0.3, "decay_steps": 9, "cycle": True,
                                             "end_learning_rate": 0.01}),
    "pieces": (s.PiecewiseConstantDecay, {"boundaries": [3, 10], "values": [0.3, 0.1, 0.01]}),
    "cosine": (s.CosineDecay, {"initial_learning_rate": 0.3, "decay_steps": 20, "alpha": 0.1}),
    "cosine warm": (s.CosineDecay, {"initial_learning_rate": 0.0, "decay_steps": 20, "warmup_target": 0.3,
                                    "warmup_steps": 5}),
    "restarts": (s.CosineDecayRestarts, {"initial_learning_rate": 0.3, "first_decay_steps": 5, "m_mul": 0.8,
                                         "alpha": 0.1}),
    "restarts even": (s.CosineDecayRestarts, {"initial_learning_rate": 0.3, "first_decay_steps": 5,
                                              "t_mul": 1.0}),
    "one cycle": (s.OneCycle, {"maximum": 0.3, "total_steps": 40}),
    "join": (s.Join, {"schedules": [0.1, s.ExponentialDecay(0.3, 7, 0.6)], "boundaries": [12]}),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    cls, arguments = SCHEDULES[request.param]
    return cls(**arguments)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("one cycle", "join")])
def test_values_equal_keras(name):
    keras = require("keras")
    cls, arguments = SCHEDULES[name]
    theirs = getattr(keras.optimizers.schedules, cls.__name__)(**arguments)
    for step in range(60):
        assert cls(**arguments)(step) == pytest.approx(float(theirs(step)), rel=5e-6, abs=2e-8), step


def test_one_cycle_equals_torch():
    torch = require("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=40)
    ours = s.OneCycle(0.3, 40)
    for step in range(40):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        if step < 39:
            theirs.step()
    assert ours(1000) == ours(39)


def test_schedules_are_stored_and_copied(schedule):
    for twin in (s.deserialize(s.serialize(schedule)), pickle.loads(pickle.dumps(schedule)),
                 copy.deepcopy(schedule)):
        assert twin == schedule and repr(twin) == repr(schedule)
        assert [twin(k) for k in range(50)] == [schedule(k) for k in range(50)]
    optimizer = optimc.Adam(schedule, weight_decay=schedule)
    again = optimc.deserialize(optimc.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


def test_schedules_drive_every_step(schedule, dtype):
    w = np.zeros(1, np.float64)
    optimizer = optimc.SGD(schedule)
    for step in range(30):
        before = w[0]
        optimizer.apply([np.ones(1)], [w])
        assert w[0] == before - schedule(step)


def test_any_hyperparameter_takes_a_schedule(case):
    twin, optimizer = case.make(), case.make()
    w, e = np.linspace(1, 2, 9), np.linspace(1, 2, 9)
    names = [name for name, argument in case.cls._arguments.items()
             if hasattr(argument, "low") and case.optimizer._get_value(0, case.cls._index[name]) is not None
             and name not in ("clipnorm", "clipvalue", "global_clipnorm")]
    for name in names:
        value = optimizer._get_value(0, optimizer._index[name])
        setattr(optimizer, name, lambda value=value: value)
    for k in range(4):
        g = np.linspace(-1, 1 + k, 9)
        optimizer.apply([g], [w])
        twin.apply([g], [e])
    np.testing.assert_allclose(w, e, rtol=1e-14)        # products of beta instead of powers


@pytest.mark.parametrize("make,error,message", [
    (lambda: s.ExponentialDecay(0.1, 0, 0.5), ValueError, "decay_steps must be finite and > 0, got 0"),
    (lambda: s.ExponentialDecay("x", 1, 0.5), TypeError, "initial_learning_rate must be a number"),
    (lambda: s.ExponentialDecay(0.1, 1, math.nan), ValueError, "decay_rate"),
    (lambda: s.ExponentialDecay(0.1, 1, 0.5, staircase=1), TypeError, "staircase must be a bool"),
    (lambda: s.PiecewiseConstantDecay([1], [1.0]), ValueError, "one entry more"),
    (lambda: s.PiecewiseConstantDecay([2, 1], [1.0, 2.0, 3.0]), ValueError, "must not decrease"),
    (lambda: s.PiecewiseConstantDecay(3, [1.0]), TypeError, "must be lists"),
    (lambda: s.CosineDecayRestarts(0.1, 5, t_mul=0.5), ValueError, "t_mul"),
    (lambda: s.join([], []), ValueError, "one entry more"),
    (lambda: s.join(["x"], []), TypeError, r"schedules\[0\] must be a number"),
    (lambda: s.join([0.1, 0.2], [-1]), ValueError, r"boundaries\[0\]"),
    (lambda: s.deserialize({"class_name": "Nothing", "config": {}}), ValueError, "Could not interpret"),
    (lambda: s.LearningRateSchedule()(0), NotImplementedError, "must define __call__"),
    (lambda: s.LearningRateSchedule().get_config(), NotImplementedError, "must define get_config"),
])
def test_bad_schedules(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_kerass_own_schedules_work():
    keras = require("keras")
    w = np.zeros(1, np.float64)
    optimizer = optimc.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5))
    for rate in (0.5, 0.25):
        before = w[0]
        optimizer.apply([np.ones(1)], [w])
        assert before - w[0] == rate


def test_restarts_begin_exactly():
    schedule = s.CosineDecayRestarts(1.0, 10)
    step, length = 0, 10
    for _ in range(12):
        assert schedule(step) == 1.0 and schedule(step + length - 1) < 0.1
        step, length = step + length, length * 2
