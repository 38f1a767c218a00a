"""What the ranks of a job do in tests/test_mpi.py: `mpiexec -n N python -m mpi4py mpi_jobs.py NAME ARGUMENTS`.

Each job checks with `assert`; a rank that fails ends the job.
"""

import sys

import numpy as np
from cases import CASES, assert_equal, assert_same_bits, values
from mpi4py import MPI
from test_options import OPTIONS

import optimc
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


KEPT = ["everything", "decay", "ema", "accumulation"]


def stored(case):
    """Cases of optimizers as checkpoints are tested with them; some within a loss scale."""
    for k, options in enumerate(KEPT):
        optimizer = case.make(**OPTIONS[options], groups=[{"params": [0, 4], "learning_rate": 0.5}])
        optimizer.exclude_from_weight_decay([4])
        optimizer.name = f"{case!r} {options}".replace("/", " ")
        if k % 2:
            optimizer.loss_scale_factor = None
            optimizer = optimc.LossScaleOptimizer(optimizer, initial_scale=4.0)
        yield optimizer


def path_of(folder, optimizer):
    return f"{folder}/{getattr(optimizer, 'inner_optimizer', optimizer).name}"


def share_of(grads):
    """A rank's part of gradients whose sum has the same bits for any number of ranks."""
    return [grad if i % WORLD.size == WORLD.rank else np.zeros_like(grad) for i, grad in enumerate(grads)]


def save(folder, start, step):
    """Steps each case, and saves it after three steps."""
    for case in CASES[int(start)::int(step)]:
        for optimizer in stored(case):
            sharded, weights = mpi.Sharded(optimizer, average=False), some(0)
            for t in range(3):
                sharded.apply(share_of(some(t + 1)), weights)
            sharded.save(path_of(folder, optimizer))
            if WORLD.rank == 0:
                np.savez(path_of(folder, optimizer), *weights)


def load(folder, start, step):
    """Goes on from `save` in another job, and saves again; both as if it had never stopped."""
    for case in CASES[int(start)::int(step)]:
        for optimizer in stored(case):
            path = path_of(folder, optimizer)
            with np.load(f"{path}.npz") as file:
                weights = [file[f"arr_{i}"].copy() for i in range(len(SHAPES))]
            expected = some(0)
            sharded = mpi.load(path, average=False)
            for t in range(6):
                optimizer.apply(some(t + 1), expected)
                if t < 3:
                    continue
                sharded.apply(share_of(some(t + 1)), weights)
                for w, e in zip(weights, expected, strict=True):
                    assert_equal(case, w, e, f"{path}, step {t}")
            assert sharded.iterations == optimizer.iterations
            assert repr(sharded.optimizer.get_config()) == repr(optimizer.get_config())
            sharded.save(f"{path}.again")
            if WORLD.rank == 0:
                one = optimc.load(f"{path}.again")
                one.apply(some(9), expected)
            sharded.apply(share_of(some(9)), weights)
            if WORLD.rank == 0:
                for w, e in zip(weights, expected, strict=True):
                    assert_equal(case, w, e, f"{path}, in one piece")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
