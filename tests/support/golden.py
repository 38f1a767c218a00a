"""Makes the golden files: small checkpoints that every later version must read.

A golden file is made once and never again.  `make record` makes those that are missing.
"""

import pathlib
import tempfile

import numpy as np
from hashes import numbers
from places import TESTS

import optimc
from optimc import schedules

FOLDER = TESTS / "files" / "data"
SHAPES = {"kernel": (5, 4), "bias": (4,), "scale": ()}


def optimizers():
    return {
        "sgd": optimc.SGD(0.1),
        "adam": optimc.Adam(schedules.ExponentialDecay(0.01, 10, 0.5), amsgrad=True, weight_decay=0.1,
                            groups=[{"params": "bias", "weight_decay": 0.0}]),
        "everything": optimc.RMSprop(0.01, momentum=0.5, centered=True, global_clipnorm=1.0, use_ema=True,
                                     gradient_accumulation_steps=2, loss_scale_factor=4.0),
        "nadam": optimc.Nadam(0.01), "adafactor": optimc.Adafactor(0.01), "muon": optimc.Muon(0.01),
        "loss_scale": optimc.LossScaleOptimizer(optimc.Adagrad(0.1), 16.0, 3),
        "multi": optimc.MultiOptimizer(optimc.OptimizerMap(optimc.Adam(0.1), {"bias": optimc.SGD(0.1)})),
    }


def train(optimizer, weights, first, last):
    for step in range(first, last):
        optimizer.apply({name: numbers(w.size, 50 + step).astype(w.dtype).reshape(w.shape)
                         for name, w in weights.items()}, weights)


def start():
    return {name: numbers(int(np.prod(shape)), 7).astype(np.float32 if name != "scale" else np.float64).reshape(shape)
            for name, shape in SHAPES.items()}


def path_of(name):
    return FOLDER / f"v1_{name}.safetensors"


def missing():
    """Path -> bytes of the golden files that are not there yet."""
    files = {}
    for name, optimizer in optimizers().items():
        if not path_of(name).exists():
            train(optimizer, start(), 0, 5)
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / path_of(name).name
                optimizer.save(path)
                files[path_of(name)] = path.read_bytes()
    return files
