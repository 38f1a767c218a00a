"""Steps of Adam with slots in fewer bits, beside those of float32: python -m benchmarks.quality.update_errors

All get the same 1000 gradients, noise with a small drift that falls 30-fold.  The gradients of the weights of a block
differ in size by up to so many decades.  Figures are of the last 100 steps: the root mean square of the difference
from float32's steps, and in brackets the length along them, both as shares of float32's.
"""

import numpy as np

import optimc
from optimc.cli.bench.words import table

WEIGHTS, STEPS, LAST = 16_384, 1000, 100
#: (decades, beta_2)
SETTINGS = ((0, 0.999), (3, 0.999), (6, 0.999), (0, 0.95))
BETA_1S = (0.9, 0.95, 0.98, 0.99, 0.995)
STORED = {
    "m bfloat16": {"m": "bfloat16"}, "m and v bfloat16": {"m": "bfloat16", "v": "bfloat16"},
    "m int8, v bfloat16": {"m": "int8", "v": "bfloat16"}, "m and v int8": {"m": "int8", "v": "int8"},
}
MOMENTA = {"m int8": {"m": "int8"}, "m bfloat16": {"m": "bfloat16"}}
NEAREST = "m and v bfloat16, both to nearest"


def nearest(x):
    """Rounds float32 numbers to bfloat16, to nearest even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) & np.uint32(0xffff0000)).view(np.float32)


class NearestAdam:
    """Adam in NumPy whose m and v are rounded to nearest after each step."""

    def __init__(self, beta_2):
        self.m = self.v = np.zeros(WEIGHTS, np.float32)
        self.beta_2, self.t = beta_2, 0

    def step(self, g):
        self.t += 1
        self.m = nearest(self.m + (g - self.m) * np.float32(0.1))
        self.v = nearest(self.v + (g * g - self.v) * np.float32(1 - self.beta_2))
        alpha = (1 - self.beta_2**self.t) ** 0.5 / (1 - 0.9**self.t)
        return -self.m / np.sqrt(self.v) * np.float32(alpha)


def stepper(stored, beta_1=0.9, beta_2=0.999):
    """A function of a gradient that gives Adam's step, for a learning rate of 1."""
    opt, w = optimc.Adam(1.0, beta_1, beta_2, 1e-30, state_dtype=stored), np.zeros(WEIGHTS, np.float32)

    def step(g):
        w[...] = 0
        opt.apply([g], [w])
        return w.copy()

    return step


def last_steps(steppers, decades=0):
    """The last steps of functions by name."""
    rng = np.random.default_rng(0)
    size, drift = 10.0 ** -rng.uniform(0, decades, WEIGHTS), rng.normal(0, 0.1, WEIGHTS)
    made = {name: [] for name in steppers}
    for t in range(1, STEPS + 1):
        g = (size * 30.0 ** (-t / STEPS) * (rng.normal(size=WEIGHTS) + drift)).astype(np.float32)
        for name, step in steppers.items():
            made[name] = [*made[name][1 - LAST:], step(g)]
    return {name: np.array(last, np.float64) for name, last in made.items()}


def steps(decades, beta_2):
    ways = {"float32": None, **STORED}
    return last_steps({**{name: stepper(stored, beta_2=beta_2) for name, stored in ways.items()},
                       NEAREST: NearestAdam(beta_2).step}, decades)


def momenta(beta_1):
    return last_steps({name: stepper(stored, beta_1) for name, stored in {"float32": None, **MOMENTA}.items()})


def error(last, exact):
    length = (last * exact).sum() / (exact**2).sum()
    return f"{np.linalg.norm(last - exact) / np.linalg.norm(exact):.4f} ({length:.3f})"


def errors(names, columns):
    return [[name, *(error(last[name], last["float32"]) for last in columns)] for name in names]


def main():
    header = ["slots", *(f"{decades} decades, beta_2 {beta_2}" for decades, beta_2 in SETTINGS)]
    print(table(header, errors((*STORED, NEAREST), [steps(*setting) for setting in SETTINGS])))
    print()
    print(table(["slots", *(f"beta_1 {beta_1}" for beta_1 in BETA_1S)], errors(MOMENTA, [*map(momenta, BETA_1S)])))


if __name__ == "__main__":
    main()
