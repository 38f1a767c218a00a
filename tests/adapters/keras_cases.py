"""Helpers of the tests of optimc.keras on every backend: options, weights, gradients, a model."""

import keras
import numpy as np
import pytest

from optimc import registry

BACKEND = keras.backend.backend()
NAMES = sorted(registry.classes)
COMMON = [name for name in NAMES if hasattr(keras.optimizers, name)]
IN_PLACE = BACKEND in ("torch", "numpy")
OPTIONS = {
    "defaults": {},
    "decay": {"weight_decay": 0.1},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 1.0},
    "global clipnorm": {"global_clipnorm": 1.0},
    "ema": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss scale": {"loss_scale_factor": 128.0},
    "together": {"weight_decay": 0.1, "clipvalue": 0.5, "use_ema": True, "gradient_accumulation_steps": 3,
                 "loss_scale_factor": 2.0},
}
SHAPES = {"kernel": (4, 3), "bias": (3,), "embedding": (5, 2), "scale": ()}
needs_fit = pytest.mark.skipif(BACKEND == "numpy", reason="the numpy backend cannot fit")
each_optimizer = pytest.mark.parametrize("name", NAMES)
each_common = pytest.mark.parametrize("name", COMMON)


def start():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]


def gradients(step):
    rng = np.random.default_rng(step + 1)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]


def variables():
    return [keras.Variable(value, name=name) for value, name in zip(start(), SHAPES, strict=True)]


def tensors(arrays):
    return [keras.ops.convert_to_tensor(array) for array in arrays]


def numpy(values):
    return [np.array(keras.ops.convert_to_numpy(value)) for value in values]


def rate_of(name):
    """The default learning rate, as Keras's variable holds it."""
    return float(np.float32(registry.classes[name]._arguments["learning_rate"].default))


def run(optimizer, weights, steps, first=0):
    for step in range(first, first + steps):
        optimizer.apply(tensors(gradients(step)), weights)
    return numpy(weights)


def run_kerass(optimizer, weights, steps):
    """As `run` from the first step, for an optimizer of Keras's own.

    On jax it is one compiled function: else every step that accumulates compiles its conditions again.
    """
    if BACKEND != "jax" or not optimizer.gradient_accumulation_steps:
        return run(optimizer, weights, steps)
    import jax

    optimizer.build(weights)
    apply = jax.jit(optimizer.stateless_apply)
    values, state = ([variable.value for variable in each] for each in (weights, optimizer.variables))
    for step in range(steps):
        values, state = apply(state, tensors(gradients(step)), values)
    for variable, value in zip([*weights, *optimizer.variables], [*values, *state], strict=True):
        variable.assign(value)
    return numpy(weights)


def make_model(**keywords):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((10,)), keras.layers.Dense(64, activation="relu", **keywords),
                             keras.layers.Dense(1)])


def data():
    rng = np.random.default_rng(0)
    x = rng.random((256, 10), np.float32)
    return x, (x.sum(1, keepdims=True) / 5 - 1).astype(np.float32)


def fit(optimizer, epochs=3, model=None, **keywords):
    """The program that courses on optimizers print; the losses."""
    model = model or make_model()
    if optimizer is not None:
        model.compile(optimizer=optimizer, loss="mse")
    history = model.fit(*data(), batch_size=32, epochs=epochs, verbose=0, shuffle=False, **keywords)
    return [float(loss) for loss in history.history["loss"]], model
