"""Keras's own NumPy backend as a second oracle: the same arguments give the same trajectory.

Where its coefficients are plain constants the bits are equal.  Adam's family differs by the rounding of
Keras's float32 1 - beta ** t, which optimc computes in double: at most 2.3e-5 of an update, at first.
"""

import numpy as np
import pytest
from cases import CASES, assert_same_bits
from conftest import require

keras = require("keras")
if keras.backend.backend() != "numpy":
    pytest.skip("needs KERAS_BACKEND=numpy", allow_module_level=True)

SHAPES = [(10, 64), (64,), (64, 1), (1,), (3, 5, 7)]
OURS_ALONE = {name for case in CASES for name, argument in case.cls._arguments.items() if argument.keyword_only}
KERAS_CASES = [case for case in CASES
               if hasattr(keras.optimizers, case.cls.__name__) and not OURS_ALONE & set(case.arguments)]
#: rules whose coefficients hold a power, which Keras takes in float32
POWERS = {"adam", "adamax", "nadam", "schedule_free"}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


#: rules with a norm or a mean, which Keras takes in float32
NORMS = {"lamb", "adafactor"}
#: rules with a matrix product
PRODUCTS = {"muon"}


def equal_bits(case):
    return case.kernel != "ftrl_power" and case.cls._rule not in POWERS | NORMS | PRODUCTS \
        and "beta" not in case.arguments


def trajectories(case, steps, **arguments):
    """Yields weights of ours and of Keras's, and the size of the last update, step by step."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    ours, theirs = case.make(**arguments), getattr(keras.optimizers, case.cls.__name__)(
        **{**case.arguments, **arguments})
    weights, variables = [w.copy() for w in start], [keras.Variable(w) for w in start]
    for _ in range(steps):
        grads = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
        before = [w.copy() for w in weights]
        ours.apply(grads, weights)
        theirs.apply(grads, variables)
        yield [(w, np.asarray(v.value), np.abs(w - b))
               for w, v, b in zip(weights, variables, before, strict=True)]


OPTIONS = {
    "defaults": {},
    "decay": {"learning_rate": 0.03, "weight_decay": 0.1},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 1.0},
    "global clipnorm": {"global_clipnorm": 1.0},
    "ema": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss scale": {"loss_scale_factor": 100.0},
    "together": {"weight_decay": 0.1, "clipvalue": 0.5, "use_ema": True, "gradient_accumulation_steps": 3,
                 "loss_scale_factor": 2.0},
}
#: options that take a norm: Keras sums squares in float32
WITH_NORM = {"clipnorm", "global clipnorm"}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("case", KERAS_CASES, ids=repr)
def test_trajectories_equal_keras(case, name):
    drift = 0.0
    share = 2e-3 if case.cls._rule in PRODUCTS else 2.3e-5
    for step in trajectories(case, 20, **OPTIONS[name]):
        drift += share * max(update.max() for _, _, update in step)
        for ours, theirs, _ in step:
            if equal_bits(case) and name not in WITH_NORM:
                assert_same_bits(ours, theirs)
            elif case.cls._rule != "lion" or name not in WITH_NORM:      # a sign may turn on a rounding
                assert np.abs(ours - theirs).max() <= drift + 2e-6


def test_enough_is_compared():
    assert len(KERAS_CASES) * len(OPTIONS) >= 60


def test_signatures_are_kerass():
    import inspect
    for cls in {case.cls for case in KERAS_CASES}:
        theirs = inspect.signature(getattr(keras.optimizers, cls.__name__)).parameters
        ours = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        known = [p for p in theirs.values() if p.name in {q.name for q in ours}]
        assert [p.name for p in ours] == [p.name for p in known], cls
        for a, b in zip(ours, known, strict=True):
            assert a.default == b.default or (a.name == "name"), (cls, a, b)
