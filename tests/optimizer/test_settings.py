"""Values and options are checked before they are set: nobody sees a refused one, and a set one is set as a whole."""

import sys
import threading

import numpy as np
import pytest
from interrupting import every_interruption

import optimc
from optimc.base import setting

ONE = np.ones(3, np.float32)


def grouped(optimizer=optimc.SGD, **arguments):
    optimizer = optimizer(0.5, groups=[{"weights": [1], "weight_decay": 0.5}], **arguments)
    optimizer.build([np.zeros(3, np.float32) for _ in range(2)])
    return optimizer


def everything(optimizer):
    """Every value of all groups and every option, and what C knows of these."""
    values = [optimizer._get_value(group, k) for group in range(len(optimizer.groups) + 1)
              for k in range(len(optimizer._index))]
    core = ("_cautious", "_coupled", "_decay_as_factor", "_maximize", "_check_finite", "_overwrite")
    return values, [getattr(optimizer, name) for name in core], optimizer._given()


REFUSED = {
    "a second clip": (lambda: grouped(global_clipnorm=1.0), lambda o: setattr(o, "clipnorm", 1e-9)),
    "a second clip of a group": (lambda: grouped(clipvalue=1.0),
                                 lambda o: o.groups[0].__setitem__("clipnorm", 1e-9)),
    "a clip that a group cannot have": (
        lambda: optimc.SGD(groups=[{"weights": [0], "clipnorm": 1.0}]), lambda o: setattr(o, "clipvalue", 1e-9)),
    "a slot that is not kept": (grouped, lambda o: setattr(o, "momentum", 0.9)),
    "a slot of a group": (grouped, lambda o: o.groups[0].__setitem__("momentum", 0.9)),
    "a slot for a schedule": (grouped, lambda o: setattr(o, "momentum", optimc.schedules.CosineDecay(0.9, 5))),
    "out of range": (grouped, lambda o: setattr(o, "learning_rate", -1)),
    "no number": (grouped, lambda o: setattr(o, "learning_rate", "x")),
    "an option": (grouped, lambda o: setattr(o, "check_finite", "sometimes")),
    "an option that is fixed": (grouped, lambda o: setattr(o, "nesterov", True)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_value_is_never_seen(name):
    """Looks at everything before each bytecode, as another thread may."""
    make, change = REFUSED[name]
    optimizer = make()
    before, seen = everything(optimizer), []

    def look(frame, event, _):
        frame.f_trace_opcodes = True
        sys.settrace(None)
        seen.append(everything(optimizer) == before)
        sys.settrace(look)
        return look

    sys.settrace(look)
    try:
        with pytest.raises((ValueError, TypeError)):
            change(optimizer)
    finally:
        sys.settrace(None)
    assert all(seen) and len(seen) > 20 and everything(optimizer) == before


@pytest.mark.parametrize("change", [
    lambda o: setattr(o, "learning_rate", 0.25),
    lambda o: setattr(o, "clipnorm", 1.0),
    lambda o: setattr(o, "weight_decay", optimc.schedules.CosineDecay(0.9, 5)),
    lambda o: o.groups[0].__setitem__("weight_decay", 0.25),
    lambda o: setattr(o, "maximize", True),
    lambda o: setattr(o, "check_finite", "skip"),
    lambda o: setattr(o, "coupled_weight_decay", True),
    lambda o: setattr(o, "ema_overwrite_frequency", 3),
    lambda o: setattr(o, "iterations", 5),
], ids=["value", "clip", "schedule", "group", "maximize", "check_finite", "coupled", "overwrite", "iterations"])
def test_an_interrupted_assignment_is_whole(change):
    optimizers = []

    def prepare():
        optimizers.append(grouped(use_ema=True))
        return lambda: change(optimizers[-1])

    def seen(optimizer):
        return repr((everything(optimizer), optimizer.iterations))

    before, after = seen(grouped(use_ema=True)), None
    for _ in every_interruption(prepare=prepare, opcodes=True):
        after = seen(optimizers[-1])
    assert after != before and {seen(optimizer) for optimizer in optimizers} <= {before, after}


@pytest.mark.parametrize("make", [lambda: optimc.SGD(cautious=True, momentum=0.9), lambda: optimc.Ftrl(),
                                  lambda: optimc.Nadam()], ids=["SGD", "Ftrl", "Nadam"])
def test_options_reach_c(make):
    """An option that coefficients depend on is a value of C's too."""
    for name, argument in make()._arguments.items():
        if getattr(argument, "core", None) and isinstance(argument.default, bool):
            optimizer = make()
            setattr(optimizer, name, not argument.default)
            assert getattr(optimizer, argument.core) == (not argument.default) == getattr(optimizer, name)


def test_two_threads_set_no_two_clips(monkeypatch):
    """Another thread sets the other clip between the check and the assignment: it waits."""
    optimizer, check = grouped(), setting._check_clips
    errors = []

    def other():
        try:
            optimizer.clipvalue = 1.0
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=other)

    def meanwhile(*arguments):
        check(*arguments)
        if not thread.ident:
            thread.start()
            thread.join(0.2)

    monkeypatch.setattr(setting, "_check_clips", meanwhile)
    optimizer.clipnorm = 1.0
    thread.join()
    assert len(errors) == 1 and (optimizer.clipnorm, optimizer.clipvalue) == (1.0, None)


def test_a_schedule_may_still_set_values_of_its_own_step():
    def rate():
        optimizer.clipvalue = 0.25
        return 1.0

    optimizer, w = optimc.SGD(rate), np.zeros(3, np.float32)
    optimizer.apply([ONE], [w])
    optimizer.apply([ONE], [w])
    assert (w == -0.5).all()                    # the first step is clipped already


def test_a_schedule_that_is_set_within_a_step_counts_from_the_next():
    """By a schedule that is asked later, for all weights and for a group, and by a gradient."""
    def later():
        optimizer.learning_rate = lambda: 0.25
        optimizer.groups[0]["learning_rate"] = lambda: 0.125
        return 0.0

    class Gradient:
        def __array__(self, *args, **kwargs):
            later()
            return ONE

    for momentum, gradient in ((later, ONE), (0.0, Gradient())):
        weights = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
        optimizer = optimc.SGD(0.5, momentum=0.0, groups=[{"weights": [1], "momentum": momentum}])
        optimizer.apply([gradient, ONE], weights)
        assert [float(w[0]) for w in weights] == [-0.5, -0.5]
        optimizer.groups[0]["momentum"] = 0.0
        optimizer.apply([ONE, ONE], weights)
        assert [float(w[0]) for w in weights] == [-0.75, -0.625]
