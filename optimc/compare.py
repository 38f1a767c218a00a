"""`python -m optimc compare`: the lesson's comparison of optimizers, measured.

The lesson trains a small network (inputs -> Dense 64 relu -> Dense 1, mean squared error) with one
optimizer after another and says which is fast, stable, adaptive and frugal.  This command trains that
network, in NumPy and float32, and puts numbers in the lesson's table:

    data      a table of numbers, cut 60/20/20 into training, validation and test rows, always the same
              way; features and target are standardised by the training rows.
    sweep     every optimizer gets the learning rate of `RATES` with the lowest validation loss, averaged
              over the epochs and over the first `SWEEP_SEEDS` seeds: fast, and good to the end.
    training  with that rate, once per seed.  A seed fixes the first weights and the batches, so that
              all optimizers start and see the same.
    report    `summarise` makes the numbers, once, for table, JSON and sentences.

It imports what it draws and prints with (the extra `optimc[compare]`) only when it runs, and nothing
but NumPy when it is imported.  It sets no threads and changes no global state of these libraries.
"""

import argparse
import csv
import functools
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import optimc
from optimc import registry

#: name -> constructor, called with the learning rate; any class of optimc may be named besides
CONTESTANTS = {
    "sgd": optimc.SGD,
    "momentum": functools.partial(optimc.SGD, momentum=0.9),
    "nesterov": functools.partial(optimc.SGD, momentum=0.9, nesterov=True),
    "rmsprop": optimc.RMSprop,
    "adam": optimc.Adam,
    "adam-textbook": functools.partial(optimc.Adam, bias_correction=False),
    "adamw": optimc.AdamW,
    "adagrad": optimc.Adagrad,
}
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
SWEEP_SEEDS = 5
MIN_ROWS = 10
WITHIN = 1.05           # "fast" is to come this close to the lowest validation loss
ADAPTIVE_SLOTS = {"v", "v_max", "u", "n", "accumulator"}    # histories of the gradients' size
#: what the lesson says: fastest and most stable first, adaptive, least memory (0) to most (2)
LESSON_ORDER = ("adam", "rmsprop", "momentum", "sgd")
LESSON_ADAPTIVE = {"adam": True, "rmsprop": True, "momentum": False, "sgd": False}
LESSON_MEMORY = {"adam": 2, "rmsprop": 1, "momentum": 1, "sgd": 0}


class InputError(ValueError):
    """Something the user can put right, said in one line."""


# ------------------------------------------------------------------------------------------- data


class Data(NamedTuple):
    name: str
    features: list[str]
    target: str
    parts: dict[str, tuple[np.ndarray, np.ndarray]]     # training, validation, test -> x, y


def load_data(path: str | None, target: str | None) -> Data:
    """The user's table, or scikit-learn's 442 diabetes patients."""
    if path is None:
        from sklearn.datasets import load_diabetes
        bunch = load_diabetes(scaled=False)
        return prepare("diabetes", list(bunch.feature_names), "progression", bunch.data, bunch.target)
    names, table = read_table(path)
    if target not in names:
        raise InputError(f"{path}: there is no column {target!r}, only {_listed(names)}")
    k = names.index(target)
    if len(names) < 2:
        raise InputError(f"{path}: there are no columns beside the target {target!r}")
    return prepare(Path(path).name, names[:k] + names[k + 1:], target,
                   np.delete(table, k, axis=1), table[:, k])


def read_table(path: str) -> tuple[list[str], np.ndarray]:
    """Column names and rows of a comma-separated file of finite numbers with a header row."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: this is not text in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: {error}") from None
    if not names:
        raise InputError(f"{path}: the file is empty; expected a header row and rows of numbers")
    for k, name in enumerate(names):
        if not name or name in names[:k]:
            raise InputError(f"{path}: column {k + 1} of the header has "
                             + (f"the same name {name!r} as another" if name else "no name"))
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(f"{path}: row {line} has {len(row)} cells, the header has {len(names)}")
    if len(rows) < MIN_ROWS:
        raise InputError(f"{path}: at least {MIN_ROWS} rows of numbers are needed, got {len(rows)}")
    return names, np.array([[_cell(path, line, name, text) for name, text in
                             zip(names, row, strict=True)] for line, row in rows])


def _cell(path, line, name, text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        raise InputError(f"{path}: row {line}, column {name!r}: expected a finite number, got {text!r}")
    return value


def prepare(name: str, features: list[str], target: str, x: np.ndarray, y: np.ndarray) -> Data:
    """Cuts the rows into the three parts and standardises them."""
    order = np.random.default_rng(0).permutation(len(y))
    training, validation, _ = rows = np.split(order, [len(y) * 3 // 5, len(y) * 4 // 5])
    assert len(training) and len(validation)
    x, y = standardise(x, training), standardise(y[:, None], training)
    return Data(name, features, target, {part: (x[index], y[index]) for part, index in
                                         zip(("training", "validation", "test"), rows, strict=True)})


def standardise(table: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1 over the training rows, float32; constant ones become 0."""
    largest = np.abs(table).max(axis=0)
    table = table / np.where(largest > 0, largest, 1)           # so that no square can overflow
    mean, deviation = table[training].mean(axis=0), table[training].std(axis=0)
    varies = (np.ptp(table[training], axis=0) > 0) & (deviation > 0)
    with np.errstate(over="ignore"):
        return np.where(varies, (table - mean) / np.where(varies, deviation, 1), 0).astype(np.float32)


# --------------------------------------------------------------------------- network and training


def new_weights(inputs: int, hidden: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Kernel and bias of both layers, as Keras's Dense starts them (Glorot uniform, zeros)."""
    weights = []
    for shape in ((inputs, hidden), (hidden, 1)):
        limit = math.sqrt(6 / sum(shape))
        weights += [rng.uniform(-limit, limit, shape).astype(np.float32),
                    np.zeros(shape[1], np.float32)]
    return weights


def forward(x: np.ndarray, weights: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer and the output."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    return hidden, hidden @ w2 + b2


def backward(x: np.ndarray, y: np.ndarray, weights: list[np.ndarray]) -> list[np.ndarray]:
    """The gradients of `mean_squared_error`, one per weight."""
    hidden, output = forward(x, weights)
    d_output = (output - y) * (2 / y.size)
    d_hidden = (d_output @ weights[2].T) * (hidden > 0)
    return [x.T @ d_hidden, d_hidden.sum(axis=0), hidden.T @ d_output, d_output.sum(axis=0)]


def mean_squared_error(x: np.ndarray, y: np.ndarray, weights: list[np.ndarray]) -> float:
    """The loss; infinite where it is not a number."""
    loss = float(np.mean(np.square(forward(x, weights)[1] - y)))
    return loss if math.isfinite(loss) else math.inf


class Settings(NamedTuple):
    epochs: int
    batch_size: int
    hidden: int
    seeds: int
    learning_rate: float | None = None          # None: sweep


class Run(NamedTuple):
    training: np.ndarray        # loss before training and after each epoch
    validation: np.ndarray
    test: float                 # loss at the end
    step_ns: float              # median
    slots: dict[str, list[np.ndarray]]
    n_weights: int

    @property
    def diverged(self) -> bool:
        """Whether the training loss was lost, or ended above where it began."""
        return not np.isfinite(self.training).all() or self.training[-1] > self.training[0]


def train(optimizer: optimc.Optimizer, data: Data, settings: Settings, seed: int) -> Run:
    """Trains a new network from `seed`; stops early when the loss is no longer finite."""
    x, y = data.parts["training"]
    rng = np.random.default_rng(seed)
    weights = new_weights(x.shape[1], settings.hidden, rng)
    losses = np.full((2, settings.epochs + 1), math.inf)
    times = []
    with np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(settings.epochs + 1):
            if epoch:
                order = rng.permutation(len(x))
                for start in range(0, len(x), settings.batch_size):
                    batch = order[start:start + settings.batch_size]
                    times.append(step(optimizer, backward(x[batch], y[batch], weights), weights))
            losses[:, epoch] = [mean_squared_error(*data.parts[part], weights)
                                for part in ("training", "validation")]
            if not np.isfinite(losses[0, epoch]):
                break
        test = mean_squared_error(*data.parts["test"], weights)
    return Run(*losses, test, statistics.median(times), optimizer._slots,
               sum(weight.size for weight in weights))


def step(optimizer: optimc.Optimizer, grads: list[np.ndarray], weights: list[np.ndarray]) -> int:
    """One step of the optimizer; returns how many nanoseconds it took."""
    start = time.perf_counter_ns()
    optimizer.apply(grads, weights)
    return time.perf_counter_ns() - start


def best_rate(scores: dict[float, float]) -> float:
    """The rate with the lowest score; of equals, as when none is finite, the smallest."""
    return min(sorted(scores), key=scores.get)


class Result(NamedTuple):
    learning_rate: float
    scores: dict[float, float]      # of the sweep: rate -> mean validation loss
    runs: list[Run]


def measure(name: str, data: Data, settings: Settings, tick: Callable[[str], None]) -> Result:
    """Finds the rate of one optimizer and trains with every seed; `tick` hears before each run."""
    def runs(rate, seeds, purpose):
        for seed in range(seeds):
            tick(f"{name}: {purpose} {rate:g}, seed {seed}")
            yield train(constructor(name)(rate), data, settings, seed)

    rate, scores = settings.learning_rate, {}
    if rate is None:
        seeds = min(SWEEP_SEEDS, settings.seeds)
        scores = {rate: statistics.fmean(float(run.validation[1:].mean())
                                         for run in runs(rate, seeds, "trying rate"))
                  for rate in RATES}
        rate = best_rate(scores)
    return Result(rate, scores, list(runs(rate, settings.seeds, "training with rate")))


def constructor(name: str) -> Callable[[float], optimc.Optimizer]:
    """What makes the contestant of this name, or the class of this name."""
    classes = {key.lower(): value for key, value in registry.classes.items()}
    known = {**classes, **CONTESTANTS}
    if name not in known:
        raise InputError(f"there is no optimizer {name!r}, only {_listed(sorted(known))}")
    return known[name]


# -------------------------------------------------------------------------------------- the numbers


def summarise(results: dict[str, Result]) -> tuple[float, list[dict]]:
    """The target loss of the speed column, and the numbers of each optimizer: a row of the table."""
    target = WITHIN * min(np.mean([run.validation for run in result.runs], axis=0).min()
                          for result in results.values())
    return target, [_row(name, result, target) for name, result in results.items()]


def _row(name, result, target):
    good = [run for run in result.runs if not run.diverged]
    final = [float(run.training[-1]) for run in good]
    last = result.runs[-1]
    slot_bytes = sum(array.nbytes for arrays in last.slots.values() for array in arrays)
    return {
        "optimizer": name,
        "learning_rate": result.learning_rate,
        "epochs_to_target": statistics.median_high(_epochs_to(target, run) for run in result.runs),
        "loss_spread": statistics.stdev(final) if len(final) > 1 else math.nan,
        "diverged": len(result.runs) - len(good),
        "adaptive": not ADAPTIVE_SLOTS.isdisjoint(last.slots),
        "slot_bytes_per_weight": slot_bytes / last.n_weights,
        "training_loss": statistics.fmean(final) if final else math.inf,
        "test_loss": statistics.fmean(run.test for run in good) if good else math.inf,
        "microseconds_per_step": statistics.median(run.step_ns for run in result.runs) / 1e3,
    }


def _epochs_to(target, run):
    reached = run.validation <= target
    return int(reached.argmax()) if reached.any() else math.inf


def sentences(rows: list[dict], target: float) -> list[str]:
    """What the numbers say, in words, and where they agree with the lesson."""
    by_speed = sorted(rows, key=lambda row: row["epochs_to_target"])
    by_stability = sorted(rows, key=_instability)
    said = []
    if math.isfinite(by_speed[0]["epochs_to_target"]):
        said.append(f"Fastest: {_first(by_speed, 'epochs_to_target')} with "
                    f"{_epochs(by_speed[0])} epochs.")
    if math.isfinite(by_stability[0]["loss_spread"]):
        said.append(f"Most stable: {by_stability[0]['optimizer']}, whose final training loss spreads "
                    f"by {by_stability[0]['loss_spread']:.2g} over the seeds.")
    return said


def _instability(row):
    spread = row["loss_spread"]
    return row["diverged"], math.inf if math.isnan(spread) else spread
