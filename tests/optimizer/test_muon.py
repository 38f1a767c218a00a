"""Muon beside the generic tests: which weights are its own, what an update is, Adam for the others."""

import numpy as np
import pytest
from cases import assert_same_bits

import optimc


def test_muon_takes_a_groups_own_momentum():
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal((3, 4, 3)).astype(np.float32)
    ended = []
    for arguments in ({"momentum": 0.5}, {"momentum": 0.95, "groups": [{"weights": [0], "momentum": 0.5}]}):
        w = start.copy()
        optimizer = optimc.Muon(0.1, **arguments)
        for g in grads:
            optimizer.apply([g], [w])
        ended.append(w)
    assert_same_bits(ended[1], ended[0])


def moved_by(optimizer, weights, steps=3):
    """The weights after some steps with the same gradients each time."""
    rng = np.random.default_rng(1)
    weights = {name: w.copy() for name, w in weights.items()}
    for _ in range(steps):
        optimizer.apply({name: rng.standard_normal(w.shape).astype(w.dtype) for name, w in weights.items()}, weights)
    return weights


@pytest.mark.parametrize("arguments,own", [
    ({}, {"dense/kernel", "head/kernel"}),
    ({"exclude_embeddings": False}, {"dense/kernel", "head/kernel", "Embedding/table"}),
    ({"exclude_layers": ["^head", "nothing"]}, {"dense/kernel"}),
])
def test_matrices_are_muons_unless_excluded(arguments, own):
    weights = {"dense/kernel": np.ones((4, 3), np.float32), "dense/bias": np.ones(3, np.float32),
               "Embedding/table": np.ones((5, 2), np.float32), "head/kernel": np.ones((3, 2), np.float32),
               "conv": np.ones((2, 2, 3), np.float32), "scale": np.ones((), np.float32)}
    optimizer = optimc.Muon(0.1, **arguments)
    moved_by(optimizer, weights)
    matrices = {name for name, update in zip(weights, optimizer._slots["update"], strict=True) if update is not None}
    assert matrices == own


@pytest.mark.parametrize("shape", [(6, 6), (40, 7), (7, 40)])
def test_an_update_is_nearly_orthogonal(shape):
    w = np.zeros(shape, np.float64)
    optimizer = optimc.Muon(1.0, weight_decay=0.0, rms_rate=None)
    optimizer.apply([np.random.default_rng(0).standard_normal(shape)], [w])
    singular = np.linalg.svd(w, compute_uv=False)
    assert singular.min() > 0.3 and singular.max() < 1.4        # what five Newton-Schulz steps promise


def test_other_weights_step_like_adams(dtype):
    weights = {"bias": np.linspace(-1, 1, 50, dtype=dtype)}
    muon = moved_by(optimc.Muon(0.01, adam_weight_decay=0.1), weights)
    adam = moved_by(optimc.Adam(0.01, weight_decay=0.1), weights)
    assert_same_bits(muon["bias"], adam["bias"])
