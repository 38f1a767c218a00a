"""Losses of a network whose optimizer stores numbers in fewer bits: python -m benchmarks.quality.digits

A network of 61, 32 and 10 units learns scikit-learn's digits in 3000 steps of 64, with a rate that falls to 0 along a
cosine.  Ftrl learns a linear model with a constant rate, because its weights are a function of the rate.  Rprop takes
60 steps of all data and has 16 times as many seeds: it goes by signs, which multiply chance.

Figures: the training loss of the weights as they are stored, geometric means over the seeds.  Ratios are to float32's
with the same first weights and batches.  `int8` codes every slot that may be, whatever its size; others that
may be narrow have 16 bits.  The first ratio, `again`, is of float32 with other batches: what chance does.
"""

import argparse
from functools import cache, partial
from itertools import pairwise

import ml_dtypes
import numpy as np

import optimc
from optimc.base.narrow import choices_of
from optimc.base.rules import slots_of
from optimc.cli.bench.words import table

STEPS, FULL_STEPS, BATCH, HIDDEN = 3000, 60, 64, 32
#: name -> class, its arguments, and a rate with which float32 ends at a small loss
CASES = {
    "SGD": (optimc.SGD, {}, 1.0),
    "SGD, momentum": (optimc.SGD, {"momentum": 0.9}, 0.2),
    "SGD, Nesterov": (optimc.SGD, {"momentum": 0.9, "nesterov": True}, 0.2),
    "RMSprop": (optimc.RMSprop, {}, 0.006),
    "RMSprop, momentum": (optimc.RMSprop, {"momentum": 0.9}, 0.0006),
    "RMSprop, centered": (optimc.RMSprop, {"centered": True}, 0.006),
    "Adam": (optimc.Adam, {}, 0.01),
    "Adam, AMSGrad": (optimc.Adam, {"amsgrad": True}, 0.01),
    "AdamW": (optimc.AdamW, {}, 0.01),
    "Adagrad": (optimc.Adagrad, {}, 0.3),
    "Adadelta": (optimc.Adadelta, {}, 4.0),
    "Adamax": (optimc.Adamax, {}, 0.03),
    "Nadam": (optimc.Nadam, {}, 0.01),
    "Ftrl": (optimc.Ftrl, {}, 1.0),
    "Lion": (optimc.Lion, {}, 0.001),
    "ScheduleFreeAdamW": (optimc.ScheduleFreeAdamW, {}, 0.01),
    "RAdam": (optimc.RAdam, {}, 0.02),
    "Yogi": (optimc.Yogi, {}, 0.02),
    "AdaBelief": (optimc.AdaBelief, {}, 0.01),
    "Rprop": (optimc.Rprop, {}, 0.003),
    "ASGD": (optimc.ASGD, {}, 0.5),
    "Adan": (optimc.Adan, {}, 0.01),
    "Lamb": (optimc.Lamb, {}, 0.003),
    "LARS": (optimc.LARS, {}, 2.0),
    "LARS, Nesterov": (optimc.LARS, {"nesterov": True}, 2.0),
    "Adafactor": (optimc.Adafactor, {"epsilon_1": 1e-15}, 0.015),
    "Muon": (optimc.Muon, {}, 0.003),
}
#: name -> dtype of the weights, and whether they have masters
WEIGHTS = {
    "float32": (np.float32, True), "split": (ml_dtypes.bfloat16, True),
    "at random": (ml_dtypes.bfloat16, False), "float16": (np.float16, True),
}
SLOTS = ("float32", "bfloat16", "int8")


@cache
def digits():
    """The pixels that are not always 0, and the digits in one-hot code."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x[:, x.std(0) > 0] / 16).astype(np.float32), np.eye(10, dtype=np.float32)[y]


def first_weights(sizes, seeds):
    """Weights of networks, one per seed, stacked."""
    rngs = [np.random.default_rng(seed) for seed in seeds]
    return [stack.astype(np.float32) for a, b in pairwise(sizes)
            for stack in (np.stack([rng.normal(0, a**-0.5, (a, b)) for rng in rngs]), np.zeros((len(rngs), b)))]


def softmax(logits, y):
    """The mean losses of stacked networks, and their gradients."""
    logits -= logits.max(2, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(2, keepdims=True)
    losses = -np.log((p * y).sum(2) + np.float32(1e-30)).mean(1)
    return losses, (p - y) / np.float32(y.shape[1])


def losses_and_gradients(w, x, y):
    back = x.transpose(0, 2, 1)
    if len(w) == 2:
        losses, p = softmax(x @ w[0] + w[1][:, None], y)
        return losses, [back @ p, p.sum(1)]
    hidden = np.maximum(x @ w[0] + w[1][:, None], 0)
    losses, p = softmax(hidden @ w[2] + w[3][:, None], y)
    h = p @ w[2].transpose(0, 2, 1) * (hidden > 0)
    return losses, [back @ h, h.sum(1), hidden.transpose(0, 2, 1) @ p, p.sum(1)]


def train(make, rate, seeds, dtype=np.float32, batches=0):
    """The final losses, one per seed, with one or another order of batches."""
    x, y = digits()
    all_data, linear = make().name == "rprop", make().name == "ftrl"
    steps, rng = FULL_STEPS if all_data else STEPS, np.random.default_rng(batches)
    every = np.tile(np.arange(len(y)), (len(seeds), 1))
    sizes = (x.shape[1], 10) if linear else (x.shape[1], HIDDEN, 10)
    stacks = [stack.astype(dtype) for stack in first_weights(sizes, seeds)]
    optimizers = [make(rate if linear else optimc.schedules.CosineDecay(rate, steps), seed=seed) for seed in seeds]
    for k, optimizer in enumerate(optimizers):
        optimizer.build([stack[k] for stack in stacks])
    for _ in range(steps):
        rows = every if all_data else rng.integers(len(y), size=(len(seeds), BATCH))
        wide = [stack.astype(np.float32, copy=False) for stack in stacks]
        _, grads = losses_and_gradients(wide, x[rows], y[rows])
        for k, optimizer in enumerate(optimizers):
            optimizer.apply([grad[k] for grad in grads])
    return losses_and_gradients([stack.astype(np.float32) for stack in stacks], x[every], y[every])[0]


def narrow_slots(optimizer, stored):
    """A `state_dtype` that stores every slot so, in more bits where it must be, and not where it has to be exact."""
    slots = sorted({slot for kernel in optimizer._possible_kernels() for slot in slots_of(kernel)})
    return {slot: stored if stored in choices else choices[-1] for slot in slots
            if slot not in optimizer._scratch_slots and (choices := choices_of(optimizer, slot))}


def mean(x):
    return float(np.exp(np.log(x).mean()))


def row(name, seeds):
    cls, arguments, rate = CASES[name]
    seeds = range(16 * len(seeds)) if cls is optimc.Rprop else seeds
    stores = {stored: narrow_slots(cls(**arguments), stored) for stored in SLOTS[1:]}
    exact = train(partial(cls, **arguments), rate, seeds)
    ratios = [mean(train(partial(cls, **arguments), rate, seeds, batches=1) / exact)]
    for dtype, masters in WEIGHTS.values():
        for stored in SLOTS if any(stores.values()) else SLOTS[:1]:
            if stored != "float32" or dtype is not np.float32:
                make = partial(cls, **arguments, master_weights=masters, state_dtype=stores.get(stored))
                ratios.append(mean(train(make, rate, seeds, dtype) / exact))
    cells = [f"{ratio:.2f}" for ratio in ratios]
    if not any(stores.values()):
        cells = [cells[0], "-", "-", *(cell for ratio in cells[1:] for cell in (ratio, "-", "-"))]
    return [name, f"{mean(exact):.5f}", *cells]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="names of cases, separated by ;", default=";".join(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    header = ["optimizer", "loss", "again", *[f"{weights}/{stored}" for weights in WEIGHTS for stored in SLOTS][1:]]
    rows = []
    for name in arguments.only.split(";"):
        rows.append(row(name, range(arguments.seeds)))
        print(*rows[-1], sep="\t", flush=True)
    print("\n" + table(header, rows))


if __name__ == "__main__":
    main()
