"""Makes the golden files: small checkpoints and pickles that every later version must read.

A golden file is made once and never again.  `make record` makes those that are missing.
"""

import pathlib
import pickle
import tempfile

import numpy as np
from hashes import numbers
from places import TESTS

import optimc
from optimc import schedules

FOLDER = TESTS / "files" / "data"
VERSION = 2                     # of the files that are made now; those of version 1 are of optimc 0.1
PROTOCOL = 4
SHAPES = {"kernel": (5, 4), "bias": (4,), "scale": ()}


def optimizers():
    return {
        "sgd": optimc.SGD(0.1),
        "adam": optimc.Adam(schedules.ExponentialDecay(0.01, 10, 0.5), amsgrad=True, weight_decay=0.1,
                            groups=[{"params": "bias", "weight_decay": 0.0}]),
        "everything": optimc.RMSprop(0.01, momentum=0.5, centered=True, global_clipnorm=1.0, use_ema=True,
                                     gradient_accumulation_steps=2, loss_scale_factor=4.0),
        "varying": optimc.Adam(0.01, beta_1=schedules.ExponentialDecay(0.9, 10, 0.5)),
        "nadam": optimc.Nadam(0.01), "asgd": optimc.ASGD(0.01),
        "adafactor": optimc.Adafactor(0.01), "muon": optimc.Muon(0.01),
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


def path_of(name, kind=".safetensors", version=VERSION):
    return FOLDER / f"v{version}_{name}{kind}"


def kinds(optimizer):
    """The kinds of golden files of an optimizer: a checkpoint, a pickle, and a pickle of its `state_dict`, if any."""
    return [".safetensors", ".pickle", *["_state.pickle"] * hasattr(optimizer, "state_dict")]


def contents(optimizer, kind):
    if kind == ".pickle":
        return pickle.dumps(optimizer, PROTOCOL)
    if kind == "_state.pickle":
        return pickle.dumps(optimizer.state_dict(), PROTOCOL)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "checkpoint"
        optimizer.save(path)
        return path.read_bytes()


def restored(name, kind, version):
    """The optimizer that a golden file holds."""
    path = path_of(name, kind, version)
    if kind == ".safetensors":
        return optimc.load(path)
    stored = pickle.loads(path.read_bytes())
    if kind == ".pickle":
        return stored
    optimizer = optimizers()[name]
    optimizer.load_state_dict(stored)
    return optimizer


def missing():
    """Path -> bytes of the golden files of this version that are not there yet."""
    files = {}
    for name, optimizer in optimizers().items():
        wanted = [kind for kind in kinds(optimizer) if not path_of(name, kind).exists()]
        if wanted:
            train(optimizer, start(), 0, 5)
        files |= {path_of(name, kind): contents(optimizer, kind) for kind in wanted}
    return files
