"""A warning points at the line of the program that called optimc, by whichever method."""

import inspect

import numpy as np
import pytest

import optimc

STEPS = {
    "apply": lambda optimizer, grads, weights: optimizer.apply(grads, weights),
    "apply_gradients": lambda optimizer, grads, weights: optimizer.apply_gradients(
        (grads[name], weights[name]) for name in weights),
}


def routed():
    return optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD(), {"bias": optimc.Adam()}))


MAKERS = {"SGD": optimc.SGD, "Muon": optimc.Muon, "loss scale": lambda: optimc.LossScaleOptimizer(optimc.SGD()),
          "routed": routed, "loss scale of routed": lambda: optimc.LossScaleOptimizer(routed())}


def line_of(function):
    return inspect.getsourcelines(function)[1]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("how", ["apply", "apply_gradients"])
def test_a_missing_gradient_is_warned_of_at_the_call(make, how):
    optimizer = make()
    if how == "apply_gradients" and not isinstance(optimizer, optimc.Optimizer) \
            and isinstance(getattr(optimizer, "inner_optimizer", optimizer), optimc.MultiOptimizer):
        pytest.skip("pairs have no names")
    weights = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    with pytest.warns(UserWarning, match=r"Gradients do not exist for weights\[('bias'|1)\]: ") as caught:
        STEPS[how](optimizer, {"kernel": np.ones((2, 2), np.float32), "bias": None}, weights)
    warned, = caught
    first = line_of(STEPS[how])
    assert warned.filename == __file__ and first <= warned.lineno <= first + 1


def test_many_missing_gradients_are_named():
    weights = [np.ones(1, np.float32) for _ in range(3)]
    with pytest.warns(UserWarning, match=r"^Gradients do not exist for weights\[0\], weights\[2\]: these"):
        optimc.SGD().apply([None, np.ones(1, np.float32), None], weights)
