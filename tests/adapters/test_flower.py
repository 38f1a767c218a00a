"""The optimizers of examples/federated_server.py beside Flower's strategies: the same weights after every round.

Flower's weights are recorded, so the tests run without it.  tests/clients/test_flower_strategy.py runs Flower.
"""

import importlib.util
import json

import numpy as np
import pytest
from conftest import require
from places import ROOT, TESTS

ROUNDS, ETA = 8, 0.1
RECORDED = TESTS / "files" / "data" / "flower.json"


def start():
    """The weights before the first round."""
    return [np.sin(np.arange(6, dtype=np.float32)).reshape(2, 3), np.cos(np.arange(2, dtype=np.float32))]


def clients(number, weights):
    """Three clients' weights after a round, which depend on those that they got, and their numbers of examples."""
    drawn = [np.float32(0.2) * np.cos(np.float32(k + 1) * (np.float32(number) + np.float32(2) * weight))
             for k in range(3) for weight in map(np.float32, weights)]
    moved = [np.float32(weight) + change for weight, change in zip([*weights] * 3, drawn, strict=True)]
    return [(moved[len(weights) * k:len(weights) * (k + 1)], examples) for k, examples in enumerate((30, 12, 5))]


@pytest.fixture(scope="module")
def example():
    require("sklearn")
    spec = importlib.util.spec_from_file_location("federated_server", ROOT / "examples" / "federated_server.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"])
def test_weights_are_flowers_after_every_round(name, example):
    recorded = json.loads(RECORDED.read_text())[name]
    server = example.Server(name, ETA, start())
    assert len(recorded) == ROUNDS
    for number, expected in enumerate(recorded, 1):
        weights = server.aggregate(clients(number, server.weights))
        flat = np.concatenate([weight.ravel() for weight in weights])
        np.testing.assert_allclose(flat, np.float32(expected), rtol=0, atol=1e-6)


def test_flat_averaging_is_the_mean(example):
    server, sent = example.Server("FedAvg", 1.0, start()), clients(1, start())
    total = sum(examples for _, examples in sent)
    for weight, *theirs in zip(server.aggregate(sent), *(weights for weights, _ in sent), strict=True):
        mean = sum(examples * their for their, (_, examples) in zip(theirs, sent, strict=True)) / total
        np.testing.assert_allclose(weight, mean, atol=1e-6)
