"""Time of one step before and after a change on the step path: python benchmarks/step.py

Adam on four workloads, beside NumPy with `out=` and torch fused, interleaved in one process, on one thread.  The
benchmark of everything is `python -m benchmarks`; peers and timing are its own.  Figures: minimum, median, maximum
of the repeats; ratios are of medians.
"""

import argparse
import importlib.util

import optimc
from optimc.cli.bench.peers import Ours, Work, numpy_out, torch_step, torch_threads
from optimc.cli.bench.processes import OURS
from optimc.cli.bench.shapes import SMALL_NETWORK, in_words, read_shapes
from optimc.cli.bench.timing import Contestant, interleaved, summary
from optimc.cli.bench.words import duration, merged, table

WORKLOADS = (read_shapes(SMALL_NETWORK), [(100,)] * 50, [(10_000,)] * 100, [(25_000_000,)])


def contestants(work):
    """Name -> a step to be timed."""
    steps = {OURS: Contestant(Ours(work).step), "NumPy out=": Contestant(numpy_out(work))}
    if importlib.util.find_spec("torch"):
        torch_threads(1)
        steps["torch fused"] = Contestant(torch_step(fused=True)(work))
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    optimc.set_num_threads(1)
    print(f"optimc {optimc.__version__}, {optimc.isa}, Adam, float32, 1 thread, {arguments.repeats} repeats")
    for shapes in WORKLOADS:
        times = interleaved(contestants(Work(shapes)), arguments.repeats)
        entries = merged({"": {name: summary(measured) for name, measured in times.items()
                               if not isinstance(measured, str)}})
        print("\n" + table((in_words(shapes), "min", "median", "max", "of optimc"), [
            [name, *(duration(entry[key]) for key in ("min", "median", "max")), f"{entry['ratio']:.2f}x"]
            for name, entry in entries.items()]))


if __name__ == "__main__":
    main()
