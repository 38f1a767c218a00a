"""Time of one step beside its peers, interleaved in one process: python benchmarks/step.py

NumPy's peer is Adam written with `out=` throughout, into scratch made once: the fastest plain NumPy.
torch's is `torch.optim.Adam(fused=True)`.  One thread each.  Figures: minimum, median, maximum of the
repeats; ratios are of medians.
"""

import argparse
import random
import statistics
import time

import numpy as np

import optimc

LESSON = [(10, 64), (64,), (64, 1), (1,)]


class NumPyAdam:
    """Adam over a list of arrays, every operation into memory that is already there."""

    def __init__(self, weights, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        self.learning_rate, self.beta_1, self.beta_2, self.epsilon = learning_rate, beta_1, beta_2, epsilon
        self.state = [tuple(np.zeros_like(w) for _ in range(4)) for w in weights]
        self.t = 0

    def apply(self, grads, weights):
        self.t += 1
        alpha = self.learning_rate * (1 - self.beta_2 ** self.t) ** 0.5 / (1 - self.beta_1 ** self.t)
        for w, g, (m, v, a, b) in zip(weights, grads, self.state, strict=True):
            np.subtract(g, m, out=a)
            np.multiply(a, 1 - self.beta_1, out=a)
            np.add(m, a, out=m)
            np.multiply(g, g, out=a)
            np.subtract(a, v, out=a)
            np.multiply(a, 1 - self.beta_2, out=a)
            np.add(v, a, out=v)
            np.sqrt(v, out=a)
            np.add(a, self.epsilon, out=a)
            np.multiply(m, alpha, out=b)
            np.divide(b, a, out=b)
            np.subtract(w, b, out=w)


def arrays(shapes, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def contestants(shapes):
    """Name -> a function that does one step."""
    grads = arrays(shapes, 1)
    steps = {}
    weights = arrays(shapes, 0)
    ours = optimc.Adam()
    ours.build(weights)
    steps["optimc"] = lambda: ours.apply(grads, weights)
    numpy_weights = arrays(shapes, 0)
    numpy = NumPyAdam(numpy_weights)
    steps["numpy out="] = lambda: numpy.apply(grads, numpy_weights)
    try:
        import torch
    except ImportError:
        return steps
    torch.set_num_threads(1)
    params = [torch.nn.Parameter(torch.tensor(w)) for w in arrays(shapes, 0)]
    for p, g in zip(params, arrays(shapes, 1), strict=True):
        p.grad = torch.tensor(g)
    theirs = torch.optim.Adam(params, fused=True)
    steps["torch fused"] = theirs.step
    return steps


def interleaved(steps, repeats, seconds):
    """Times of each step in ns, one per repeat, the contestants in a new order each time."""
    loops, times = {}, {name: [] for name in steps}
    for name, step in steps.items():
        step()
        start = time.perf_counter()
        step()
        loops[name] = max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))
    for _ in range(repeats):
        for name in random.sample(list(steps), len(steps)):
            step = steps[name]
            start = time.perf_counter()
            for _ in range(loops[name]):
                step()
            times[name].append((time.perf_counter() - start) / loops[name] * 1e9)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    optimc.set_num_threads(1)
    print(f"optimc {optimc.__version__}, {optimc.isa}, float32, 1 thread, Adam, "
          f"{arguments.repeats} repeats; us: min / median / max")
    for title, shapes in {"lesson's network, 769 weights in 4 arrays": LESSON,
                          "50 arrays of 100": [(100,)] * 50,
                          "100 arrays of 10 000": [(10_000,)] * 100,
                          "one array of 25 million": [(25_000_000,)]}.items():
        times = interleaved(contestants(shapes), arguments.repeats, 0.02)
        best = statistics.median(times["optimc"])
        print(title)
        for name, measured in times.items():
            low, middle, high = min(measured), statistics.median(measured), max(measured)
            print(f"    {name:12} {low / 1e3:12.2f} {middle / 1e3:12.2f} {high / 1e3:12.2f}"
                  f"   {middle / best:6.2f}x")


if __name__ == "__main__":
    main()
