"""The training of `optimc compare`: the network, its contestants, the sweep of learning rates.

    network   inputs -> Dense 64 relu -> Dense 1, mean squared error, in NumPy and float32.
    sweep     every optimizer gets the rate of `RATES` with the lowest validation loss, averaged
              over the epochs and the first `SWEEP_SEEDS` seeds: fast, and good to the end.
    training  with that rate, once per seed.  A seed fixes the first weights and the batches, so
              that all optimizers start alike and see the same.

Next: numbers.py makes the numbers of the table from the results.
"""

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

import optimc
from optimc import registry
from optimc.base.narrow import by_slot
from optimc.cli.compare.data import Data
from optimc.cli.errors import InputError, no_such

#: name -> constructor, called with the learning rate; any class of optimc may be named besides
CONTESTANTS: dict[str, Callable[..., optimc.Optimizer]] = {
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


def new_weights(inputs: int, hidden: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Kernel and bias of both layers, as Keras's Dense starts them (Glorot uniform, zeros)."""
    weights = []
    for shape in ((inputs, hidden), (hidden, 1)):
        limit = math.sqrt(6 / sum(shape))
        weights += [rng.uniform(-limit, limit, shape).astype("f4"), np.zeros(shape[1], "f4")]
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
    state_dtype: str | None = None              # of the slots that may have it


class Run(NamedTuple):
    training: np.ndarray        # loss before training and after each epoch
    validation: np.ndarray
    test: np.ndarray
    step_ns: float              # median
    slots: dict[str, list[np.ndarray | None]]
    n_weights: int

    @property
    def diverged(self) -> bool:
        """Whether the training loss became infinite or NaN, or ended above its start."""
        return bool(not np.isfinite(self.training).all() or self.training[-1] > self.training[0])


def train(optimizer: optimc.Optimizer, data: Data, settings: Settings, seed: int) -> Run:
    """Trains a new network from `seed`; stops early when the loss is no longer finite."""
    x, y = data.parts["training"]
    rng = np.random.default_rng(seed)
    weights = new_weights(x.shape[1], settings.hidden, rng)
    losses = np.full((3, settings.epochs + 1), math.inf)
    times = []
    with np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(settings.epochs + 1):
            order = rng.permutation(len(x) if epoch else 0)
            for start in range(0, len(order), settings.batch_size):
                batch = order[start:start + settings.batch_size]
                grads = backward(x[batch], y[batch], weights)
                before = time.perf_counter_ns()
                optimizer.apply(grads, weights)
                times.append(time.perf_counter_ns() - before)
            losses[:, epoch] = [mean_squared_error(*data.parts[part], weights)
                                for part in ("training", "validation", "test")]
            if not np.isfinite(losses[0, epoch]):
                break
    return Run(losses[0], losses[1], losses[2], statistics.median(times), optimizer._slots,
               sum(weight.size for weight in weights))


def best_rate(scores: dict[float, float]) -> float:
    """Returns the rate with the lowest score; of equal ones, as when none is finite, the smallest."""
    return min(sorted(scores), key=scores.__getitem__)


class Result(NamedTuple):
    learning_rate: float
    scores: dict[float, float]      # the sweep: rate -> mean validation loss
    runs: list[Run]


def measure(name: str, data: Data, settings: Settings, tick: Callable[[str], None]) -> Result:
    """Finds the rate of one optimizer and trains with every seed; `tick` is called before each run."""
    make, options = constructor(name), storage(name, settings.state_dtype)[0]

    def runs(rate, seeds, purpose):
        for seed in range(seeds):
            tick(f"{name}: {purpose} {rate:g}, seed {seed}")
            yield train(make(rate, **options), data, settings, seed)

    rate, scores = settings.learning_rate, {}
    if rate is None:
        seeds = min(SWEEP_SEEDS, settings.seeds)
        scores = {rate: statistics.fmean(run.validation[1:].mean()
                                         for run in runs(rate, seeds, "trying rate"))
                  for rate in RATES}
        rate = best_rate(scores)
    return Result(rate, scores, list(runs(rate, settings.seeds, "training at rate")))


def measure_all(names: Iterable[str], data: Data, settings: Settings,
                tick: Callable[[str], None]) -> dict[str, Result]:
    """Returns the results of all optimizers; after Ctrl-C, of those that were done."""
    results = {}
    with contextlib.suppress(KeyboardInterrupt):
        for name in names:
            results[name] = measure(name, data, settings, tick)
    return results


def constructor(name: str) -> Callable[..., optimc.Optimizer]:
    """Returns the constructor of a contestant, or of a class of optimc, by its name."""
    known: dict[str, Callable[..., optimc.Optimizer]] = {
        key.lower(): value for key, value in registry.classes.items()}
    known |= CONTESTANTS
    if name not in known:
        raise InputError(no_such("optimizer", name, sorted(known)))
    return known[name]


def storage(name: str, state_dtype: str | None) -> tuple[dict[str, Any], list[str]]:
    """The arguments that store the slots of an optimizer so, and the slots that must stay float32.

    There are no arguments if no slot can be stored so.
    """
    if state_dtype is None:
        return {}, []
    narrow, exact = by_slot(constructor(name)(RATES[0]), state_dtype)
    return {"state_dtype": narrow} if narrow else {}, exact
