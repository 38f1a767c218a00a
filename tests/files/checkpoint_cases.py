"""Helpers of the tests of checkpoints: weights, steps, and a comparison of two optimizers."""

import numpy as np
from cases import assert_same_bits, slots_of, values

SHAPES = {"a": (4, 3), "b": (5,), "c": (), "d": (0, 2), "e": (2, 3, 4)}
OPTIONS = {
    "plain": {},
    "everything": {"weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True, "gradient_accumulation_steps": 3,
                   "loss_scale_factor": 3.0, "check_finite": "skip"},
}


def weights_of(seed=0):
    rng = np.random.default_rng(seed)
    return {k: values(rng, shape, np.float32 if k != "b" else np.float64) for k, shape in SHAPES.items()}


def steps(optimizer, weights, seeds):
    for seed in seeds:
        optimizer.apply(weights_of(seed), weights)


def same(a, b):
    assert a.iterations == b.iterations and a.get_config() == b.get_config()
    for slot, arrays in slots_of(a).items():
        for x, y in zip(arrays, slots_of(b)[slot], strict=True):
            if x is not None:
                assert_same_bits(x, y)
