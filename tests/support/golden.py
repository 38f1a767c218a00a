"""Makes the golden files: small checkpoints and pickles that every later version must read.

A golden file is made once and never again.  `make record` makes those that are missing.
"""

import pathlib
import pickle
import tempfile

import ml_dtypes
import numpy as np
from hashes import numbers
from places import TESTS

import optimc
from optimc import schedules

FOLDER = TESTS / "files" / "data"
PROTOCOL = 4
SHAPES = {"kernel": (5, 4), "bias": (4,), "scale": ()}
#: optimizers with storage in fewer bits -> the type of their weights, of which one has more than a block
STORED = {"int8": np.float32, "split": ml_dtypes.bfloat16, "at_random": ml_dtypes.bfloat16, "float16": np.float16}
STORED_SHAPES = {"kernel": (20, 15), "bias": (4,)}


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
        "int8": optimc.Adam(0.01, state_dtype={"m": "int8", "v": "int8"}, seed=3),
        "split": optimc.AdamW(0.01, state_dtype="bfloat16", seed=4),
        "at_random": optimc.AdamW(0.01, state_dtype="bfloat16", master_weights=False, seed=5),
        "float16": optimc.SGD(0.1, momentum=0.9),
    }


def versions(name):
    """The versions of the format that have golden files of an optimizer; only the last one is made now."""
    return (3,) if name in STORED else (1, 2)


def train(optimizer, weights, first, last):
    for step in range(first, last):
        optimizer.apply({name: numbers(w.size, 50 + step).astype(w.dtype).reshape(w.shape)
                         for name, w in weights.items()}, weights)


def start(name):
    """The weights of an optimizer before its first step."""
    shapes = STORED_SHAPES if name in STORED else SHAPES
    return {w: numbers(int(np.prod(shape)), 7).astype(STORED.get(name, np.float64 if w == "scale" else np.float32))
            .reshape(shape) for w, shape in shapes.items()}


def path_of(name, kind=".safetensors", version=None):
    return FOLDER / f"v{version or versions(name)[-1]}_{name}{kind}"


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
    """Path -> bytes of the golden files of the last versions that are not there yet."""
    files = {}
    for name, optimizer in optimizers().items():
        wanted = [kind for kind in kinds(optimizer) if not path_of(name, kind).exists()]
        if wanted:
            train(optimizer, start(name), 0, 5)
        files |= {path_of(name, kind): contents(optimizer, kind) for kind in wanted}
    return files
