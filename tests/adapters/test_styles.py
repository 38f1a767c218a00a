"""`style=` against the real libraries: 100 steps, in double within 1e-9, in float32 within 1e-6.

The table of conventions in the documentation has one row per entry here.
"""

import numpy as np
import pytest
from conftest import require

import optimc
from optimc.registry import classes

STEPS = 100
SHAPES = [(7, 5), (5,), ()]


def problem(dtype, seed=0):
    rng = np.random.default_rng(seed)
    start = [np.asarray(rng.uniform(0.5, 1.5, shape), dtype) for shape in SHAPES]
    grads = [[np.asarray(rng.standard_normal(shape) + 0.3, dtype) for shape in SHAPES] for _ in range(STEPS)]
    return start, grads


def ours(optimizer, start, grads):
    weights = [w.copy() for w in start]
    for g in grads:
        optimizer.apply(g, weights)
    return weights


def check(optimizer, run, dtype, bound=1e-9):
    """Ours beside theirs: in float32 within 1e-6 beyond theirs' own distance from what they do in double."""
    start, grads = problem(dtype)
    theirs, spread = run(start, grads), 0.0
    if dtype == np.float32:
        exact = run([w.astype(np.float64) for w in start], [[g.astype(np.float64) for g in gs] for gs in grads])
        bound, spread = 1e-6, max(np.abs(a - b).max() for a, b in zip(theirs, exact, strict=True))
    for a, b in zip(ours(optimizer, start, grads), theirs, strict=True):
        assert a.dtype == b.dtype
        error = np.abs(a - b).max() / max(1.0, np.abs(b).max())
        assert error <= bound + spread, (error, spread)


# ------------------------------------------------------------------------------------------- torch

TORCH = {       # our class -> [(our arguments, torch's class, torch's arguments)]
    "SGD": [({}, "SGD", {}), ({"learning_rate": 0.01, "momentum": 0.9}, "SGD", {"lr": 0.01, "momentum": 0.9}),
            ({"momentum": 0.9, "dampening": 0.3}, "SGD", {"momentum": 0.9, "dampening": 0.3}),
            ({"momentum": 0.9, "nesterov": True}, "SGD", {"momentum": 0.9, "nesterov": True}),
            ({"momentum": 0.5, "weight_decay": 0.1, "maximize": True}, "SGD",
             {"momentum": 0.5, "weight_decay": 0.1, "maximize": True})],
    "RMSprop": [({}, "RMSprop", {}), ({"momentum": 0.9}, "RMSprop", {"momentum": 0.9}),
                ({"centered": True, "weight_decay": 0.01}, "RMSprop", {"centered": True, "weight_decay": 0.01}),
                ({"centered": True, "momentum": 0.5, "rho": 0.9}, "RMSprop",
                 {"centered": True, "momentum": 0.5, "alpha": 0.9})],
    "Adam": [({}, "Adam", {}), ({"weight_decay": 0.1}, "Adam", {"weight_decay": 0.1}),
             ({"amsgrad": True, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}, "Adam",
              {"amsgrad": True, "betas": (0.8, 0.95), "eps": 1e-3}),
             ({"maximize": True}, "Adam", {"maximize": True}),
             ({"weight_decay": 0.3, "coupled_weight_decay": False}, "Adam",
              {"weight_decay": 0.3, "decoupled_weight_decay": True})],
    "AdamW": [({}, "AdamW", {}), ({"weight_decay": 0.3, "amsgrad": True}, "AdamW",
                                  {"weight_decay": 0.3, "amsgrad": True})],
    "Adagrad": [({}, "Adagrad", {}),
                ({"learning_rate_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2}, "Adagrad",
                 {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2})],
    "Adadelta": [({}, "Adadelta", {}), ({"rho": 0.8, "weight_decay": 0.1}, "Adadelta",
                                        {"rho": 0.8, "weight_decay": 0.1})],
    "Adamax": [({}, "Adamax", {}), ({"weight_decay": 0.1, "epsilon": 1e-2}, "Adamax",
                                    {"weight_decay": 0.1, "eps": 1e-2})],
    "Nadam": [({}, "NAdam", {}), ({"momentum_decay": 0.1, "weight_decay": 0.1}, "NAdam",
                                  {"momentum_decay": 0.1, "weight_decay": 0.1}),
              ({"weight_decay": 0.1, "coupled_weight_decay": False}, "NAdam",
               {"weight_decay": 0.1, "decoupled_weight_decay": True})],
    "RAdam": [({}, "RAdam", {}), ({"weight_decay": 0.1, "epsilon": 1e-3}, "RAdam",
                                  {"weight_decay": 0.1, "eps": 1e-3})],
    "Rprop": [({}, "Rprop", {}), ({"eta_minus": 0.6, "eta_plus": 1.3, "max_step": 0.1}, "Rprop",
                                  {"etas": (0.6, 1.3), "step_sizes": (1e-6, 0.1)})],
    "Adafactor": [({}, "Adafactor", {}),
                  ({"weight_decay": 0.1, "epsilon_1": 1e-2, "epsilon_2": 0.9, "clip_threshold": 1.5}, "Adafactor",
                   {"weight_decay": 0.1, "eps": (1e-2, 0.9), "d": 1.5}),
                  ({"learning_rate": 0.5, "beta_2_decay": -0.5, "epsilon_1": 2.0, "maximize": True}, "Adafactor",
                   {"lr": 0.5, "beta2_decay": -0.5, "eps": (2.0, 1e-3), "maximize": True})],
    "ASGD": [({}, "ASGD", {}), ({"lambd": 0.1, "alpha": 0.5, "t0": 10, "weight_decay": 0.1}, "ASGD",
                                {"lambd": 0.1, "alpha": 0.5, "t0": 10, "weight_decay": 0.1})],
}
TORCH_CASES = [(name, *row) for name, rows in TORCH.items() for row in rows]


@pytest.mark.parametrize("name,arguments,their_name,their_arguments", TORCH_CASES,
                         ids=[f"{row[0]}-{row[1]}" for row in TORCH_CASES])
def test_torch_style(name, arguments, their_name, their_arguments, dtype):
    torch = require("torch")

    def run(start, grads):
        params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
        theirs = getattr(torch.optim, their_name)(params, **their_arguments)
        for g in grads:
            for p, array in zip(params, g, strict=True):
                p.grad = torch.tensor(array)
            theirs.step()
        return [p.detach().numpy() for p in params]

    # torch keeps ASGD's eta in float32, whatever the weights are
    check(classes[name](**arguments, style="torch"), run, dtype, 1e-7 if name == "ASGD" else 1e-9)


def test_every_torch_style_is_tested():
    assert set(TORCH) == {name for name, cls in classes.items() if "torch" in cls.styles}


# ------------------------------------------------------------------------------------------- optax

OPTAX = {       # our class -> [(our arguments, optax's function, its arguments)]
    "SGD": [({"learning_rate": 0.1}, "sgd", {"learning_rate": 0.1}),
            ({"learning_rate": 0.1, "momentum": 0.9}, "sgd", {"learning_rate": 0.1, "momentum": 0.9}),
            ({"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}, "sgd",
             {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True})],
    "RMSprop": [({"learning_rate": 0.01}, "rmsprop", {"learning_rate": 0.01}),
                ({"learning_rate": 0.01, "momentum": 0.9, "centered": True}, "rmsprop",
                 {"learning_rate": 0.01, "momentum": 0.9, "centered": True})],
    "Adam": [({"learning_rate": 0.01}, "adam", {"learning_rate": 0.01}),
             ({"learning_rate": 0.01, "epsilon": 1e-2}, "adam", {"learning_rate": 0.01, "eps": 1e-2})],
    "AdamW": [({"learning_rate": 0.01}, "adamw", {"learning_rate": 0.01}),
              ({"learning_rate": 0.01, "weight_decay": 0.3}, "adamw",
               {"learning_rate": 0.01, "weight_decay": 0.3})],
    "Adagrad": [({"learning_rate": 0.1}, "adagrad", {"learning_rate": 0.1})],
    "Adadelta": [({"learning_rate": 1.0}, "adadelta", {"learning_rate": 1.0})],
    "Adamax": [({"learning_rate": 0.01}, "adamax", {"learning_rate": 0.01}),
               ({"learning_rate": 0.01, "epsilon": 1e-2}, "adamax", {"learning_rate": 0.01, "eps": 1e-2})],
    "Nadam": [({"learning_rate": 0.01}, "nadam", {"learning_rate": 0.01})],
    "Lion": [({"learning_rate": 0.01}, "lion", {"learning_rate": 0.01})],
    "RAdam": [({"learning_rate": 0.01, "epsilon": 1e-3}, "radam", {"learning_rate": 0.01, "eps": 1e-3})],
    "Yogi": [({"learning_rate": 0.01}, "yogi", {"learning_rate": 0.01})],
    "AdaBelief": [({"learning_rate": 0.01}, "adabelief", {"learning_rate": 0.01})],
    "LARS": [({}, "lars", {"learning_rate": 1.0}),
             ({"weight_decay": 0.1, "nesterov": True, "trust_coefficient": 0.01, "momentum": 0.5}, "lars",
              {"learning_rate": 1.0, "weight_decay": 0.1, "nesterov": True, "trust_coefficient": 0.01,
               "momentum": 0.5})],
}
OPTAX_CASES = [(name, *row) for name, rows in OPTAX.items() for row in rows]


@pytest.mark.parametrize("name,arguments,their_name,their_arguments", OPTAX_CASES,
                         ids=[f"{row[0]}-{row[1]}" for row in OPTAX_CASES])
def test_optax_style(name, arguments, their_name, their_arguments, dtype):
    optax, jax = require("optax"), require("jax")

    def run(start, grads):
        with jax.enable_x64(start[0].dtype == np.float64):
            theirs = getattr(optax, their_name)(**their_arguments)
            params = [jax.numpy.array(w) for w in start]
            state = theirs.init(params)

            @jax.jit
            def step(params, state, g):
                updates, state = theirs.update(g, state, params)
                return optax.apply_updates(params, updates), state

            for g in grads:
                params, state = step(params, state, [jax.numpy.array(array) for array in g])
            return [np.asarray(p) for p in params]

    check(classes[name](**arguments, style="optax"), run, dtype)


def test_every_optax_style_is_tested():
    assert set(OPTAX) == {name for name, cls in classes.items() if "optax" in cls.styles}


# ------------------------------------------------------------------------------------------ presets


def test_a_style_is_a_preset_of_arguments():
    optimizer = optimc.Adam(style="torch", epsilon=1e-5)
    assert optimizer.epsilon == 1e-5 and optimizer.corrected_epsilon and optimizer.coupled_weight_decay
    assert optimc.Adam(style="keras").get_config() == optimc.Adam().get_config()
    again = optimc.Adam.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    for cls in classes.values():
        for style, preset in cls.styles.items():
            assert all(getattr(cls(style=style), name) == value for name, value in preset.items())


def test_unknown_styles_are_refused():
    with pytest.raises(ValueError, match="Lamb has no style 'torch', only 'keras'"):
        optimc.Lamb(style="torch")
    with pytest.raises(ValueError, match="style must be one of 'keras', 'torch', 'optax', got 'jax'"):
        optimc.Adam(style="jax")
