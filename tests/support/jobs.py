"""The jobs that the process tests run in other processes; a module, so that each process can import it."""

import signal
import time

import numpy as np

import optimc

SIZE = 60_000


def train(optimizer, steps=3):
    """The weights and the optimizer after some steps that are large enough for the pool."""
    weights = [np.linspace(-1, 1, SIZE, dtype=np.float32), np.ones((3, 4), np.float32)]
    for step in range(steps):
        optimizer.apply([np.cos(weight * (step + 2)) for weight in weights], weights)
    return weights, optimizer


def same(a, b):
    """True if two lists of arrays have the same bits."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def counted(optimizer):
    """Calls of apply, those that only accumulate included."""
    return inner_of(optimizer)[0]._calls


def inner_of(optimizer):
    return optimizer._inner() if hasattr(optimizer, "_inner") else [optimizer]


class Subject:
    """An optimizer or wrapper, its weights, and a twin that is never interrupted or forked away."""

    def __init__(self, make, shapes):
        rng = np.random.default_rng(0)
        self.make, self.grads = make, {k: rng.standard_normal(shape, np.float32) for k, shape in shapes.items()}
        self.optimizer, self.weights = make(), self.start()
        self.twin, self.twins_weights = make(), self.start()

    def start(self):
        return {name: np.ones_like(grad) for name, grad in self.grads.items()}

    def step(self):
        self.optimizer.apply(self.grads, self.weights)

    def check(self):
        """True if weights and state are those after as many whole steps as are counted."""
        while counted(self.twin) < counted(self.optimizer):
            self.twin.apply(self.grads, self.twins_weights)
        return same(self.optimizer.variables, self.twin.variables) and same(
            self.weights.values(), self.twins_weights.values())


SUBJECTS = {
    "Adam": lambda: Subject(lambda: optimc.Adam(use_ema=True, global_clipnorm=1.0, weight_decay=0.1),
                            {"a": 400_000, "b": (300, 400), "c": 3}),
    "Nadam": lambda: Subject(optimc.Nadam, {k: 20_000 for k in "abcdefghijklmnopqrstuvwxyz"}),
    "accumulating": lambda: Subject(lambda: optimc.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2),
                                    {"a": 400_000, "b": 1000}),
    "Muon": lambda: Subject(lambda: optimc.Muon(ns_steps=1), {"a": (32, 512), "b": 100_000}),
    "LossScaleOptimizer": lambda: Subject(lambda: optimc.LossScaleOptimizer(
        optimc.Adam(), 4.0, dynamic_growth_steps=3), {"a": 400_000}),
    "MultiOptimizer": lambda: Subject(lambda: optimc.MultiOptimizer(optimc.OptimizerMap(
        optimc.Adam(), {"[ab]": optimc.Nadam(), "c": optimc.Lion()})),
        {"a": 200_000, "b": 3, "c": 200_000, "d": 200_000}),
}


def interrupt(name):
    """Steps until SIGINT, again and again.  Says the seconds of a step before it, and if steps are whole after it."""
    subject, caught = SUBJECTS[name](), False
    subject.step()
    start = time.monotonic()
    subject.step()
    seconds = time.monotonic() - start
    while True:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("stepping", seconds, flush=True)
            while True:
                subject.step()
        except KeyboardInterrupt:
            caught = True
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("whole" if caught and subject.check() else "torn", subject.optimizer.iterations, flush=True)
