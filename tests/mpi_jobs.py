"""What the ranks of a job do in tests/test_mpi.py: `mpiexec -n N python -m mpi4py mpi_jobs.py NAME ARGUMENTS`.

Each job checks with `assert`; a rank that fails ends the job.
"""

import sys

import numpy as np
from cases import CASES, assert_same_bits, values
from mpi4py import MPI
from test_options import OPTIONS

from optimc import mpi

WORLD = MPI.COMM_WORLD
SHAPES = [(40, 33), (1,), (5000,), (0,), (3, 2, 5, 7), (17,), ()]
DTYPES = [np.float32, np.float64, np.float32, np.float32, np.float64, np.float32, np.float32]


def some(seed, dtypes=DTYPES):
    """Weights, or the gradients of a rank."""
    rng = np.random.default_rng(seed)
    return [values(rng, shape, dtype) for shape, dtype in zip(SHAPES, dtypes, strict=True)]


def all_grads(step, dtypes=DTYPES):
    return [some((step, rank), dtypes) for rank in range(WORLD.size)]


def mean(grads):
    """The ranks' gradients, added up in their order and divided, as `deterministic` has it."""
    means = []
    for parts in zip(*grads, strict=True):
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        means.append(total / total.dtype.type(len(parts)) if len(parts) > 1 else total)
    return means


def assert_same_everywhere(arrays):
    for array in arrays:
        rows = WORLD.allgather(array.tobytes())
        assert all(row == rows[0] for row in rows)


def serial(name="", start=0, step=1):
    """Every case and set of options: the bits of the serial step on the ordered sum."""
    start, step, count = int(start), int(step), 0
    for case in CASES[start::step]:
        for options in OPTIONS if not name else [name]:
            sharded = mpi.Sharded(case.make(**OPTIONS[options]), deterministic=True, bucket_bytes=9000)
            alone = case.make(**OPTIONS[options])
            weights, expected = some(0), some(0)
            for t in range(5):
                grads = all_grads(t)
                sharded.apply(grads[WORLD.rank], weights)
                alone.apply(mean(grads), expected)
                for w, e in zip(weights, expected, strict=True):
                    assert_same_bits(w, e, f"{case!r}, {options}, step {t}")
            count += 1
            assert sharded.iterations == alone.iterations and sharded.last_global_norm == alone.last_global_norm
    if WORLD.rank == 0:
        print(count, "runs")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
