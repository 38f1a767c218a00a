"""The jobs of test_mpi.py for gradients by rows: `mpiexec -n N python -m mpi4py mpi_rows.py NAME ARGUMENTS`."""

import sys

import ml_dtypes
import numpy as np
from cases import CASES, OPTIONS, assert_same_bits, values
from mpi_jobs import (
    DTYPES,
    STORAGES,
    WORLD,
    assert_same_everywhere,
    assert_steps_alike,
    mean,
    reals,
    refused,
    some,
    stored_as,
)

import optimc
from optimc import mpi
from optimc.mpi import layout

BY_ROWS = [case for case in CASES if case.cls._elementwise or case.cls is optimc.RowwiseAdagrad]
SHAPES = [(40, 33), (1,), (5000,), (0, 3), (3, 2, 5, 7), (17,), ()]
CODED = [(40, 256), (1,), (5000,), (0, 256), (3, 2, 512), (17,), ()]
TABLES, CODED_TABLES = (0, 2, 3, 4), (0, 3, 4)      # a table with slots of 8 bits has rows of whole blocks
FLOATS = (np.float32, ml_dtypes.bfloat16, np.float64, np.float16)
INTEGERS = (np.int64, np.uint16, np.int32, np.uint64)


def rows_of(seed, shape, rank):
    """The rows of a rank, some of them several times; in some steps it has none."""
    rng = np.random.default_rng((seed, rank))
    n = 0 if (seed + rank) % 4 == 3 else shape[0] // 2 + rank
    indices = rng.integers(0, shape[0] or 1, n if shape[0] else 0)
    numbers = values(rng, (len(indices), *shape[1:]), np.float32)
    return optimc.Rows(indices.astype(INTEGERS[seed % 4]), numbers.astype(FLOATS[(seed + rank) % 4]))


def joined(rows, shape, real, divisor):
    """The rows of all ranks as those of one process: each once, and divided, unless by 1."""
    indices = np.concatenate([one.indices.astype(np.int64) for one in rows])
    numbers = np.concatenate([one.values.astype(real) for one in rows])
    if divisor == 1:
        return optimc.Rows(indices, numbers)
    sums = {}
    for index, value in zip(indices.tolist(), numbers, strict=True):
        sums[index] = sums[index] + value if index in sums else value
    total = np.array([*sums.values()], real).reshape(-1, *shape[1:])
    return optimc.Rows(np.array([*sums], np.int64), total / real(divisor))


def by_rows(shapes, tables):
    """A function as `arrays_of`, with rows for some weights; in step 3 the first of them has an array."""
    def grads_of(t, dtypes):
        every = [some((t, rank), reals(dtypes), shapes) for rank in range(WORLD.size)]
        mine, of_all = list(every[WORLD.rank]), mean(every)
        for i in tables if t != 3 else tables[1:]:
            rows = [rows_of(t + i, shapes[i], rank) for rank in range(WORLD.size)]
            mine[i], of_all[i] = rows[WORLD.rank], joined(rows, shapes[i], reals(dtypes)[i], WORLD.size)
        return mine, of_all

    return grads_of


def alike(turn):
    """Every case, each with another storage, other options and cuts in each turn: the bits of one process."""
    sets = [*OPTIONS.values(), {"cautious": True, **OPTIONS["everything"]}]
    for k, case in enumerate(BY_ROWS, int(turn)):
        dtypes, *storage = STORAGES[k % len(STORAGES)]
        arguments = {**sets[k * 5 % len(sets)], **stored_as(case, *storage)}
        if "cautious" not in case.cls._arguments:
            arguments.pop("cautious", None)
        layout.ROWS = 1 if k % 2 else 256               # cut between rows, and within
        coded = storage[-1] == "int8"
        shapes, tables = (CODED, CODED_TABLES) if coded else (SHAPES, TABLES)
        assert_steps_alike(lambda case=case, arguments=arguments: case.make(**arguments), dtypes,
                           f"{case!r}, {arguments}, {[np.dtype(dtype).name for dtype in dtypes]}", shapes,
                           by_rows(shapes, tables))


def errors():
    """All ranks refuse what one rank cannot step by rows, and nothing has changed; then all go on."""
    last = WORLD.size - 1
    bad, weights = WORLD.rank == last, [np.ones((6, 4), np.float32), np.ones((6, 4), np.float32)]
    dense, good = np.ones((6, 4)), optimc.Rows([1, 5], np.ones((2, 4)))

    def wrong(kind, message, grad, other=good):
        refused(kind, message, sharded, lambda: sharded.apply([grad if bad else good, other], weights), weights)

    sharded = mpi.Sharded(optimc.Adam(check_finite="raise"))
    for _ in range(2):
        wrong(ValueError, f"rank {last}: grads.0..indices.1.: expected a row from 0 to 5, got 6",
              optimc.Rows([0, 6], np.ones((2, 4))))
        wrong(ValueError, f"rank {last}: grads.0..values: expected rows", optimc.Rows([0], np.ones((1, 3))))
        for other in (dense, good):
            wrong(ValueError, f"rank {last} has gradients for other weights or of another form", dense, other)
        wrong(FloatingPointError, f"rank {last}: grads.0. is not finite|rank .: what they add up to",
              optimc.Rows([0], np.full((1, 4), np.nan)))
        sharded.apply([good, dense], weights)
    for make, message in ((optimc.Lamb, "looks at the whole weight"),
                          (lambda: optimc.Adam(state_dtype="int8"), "whose blocks of 256 would hold")):
        sharded, weights = mpi.Sharded(make()), [np.ones((6000, 4), np.float32), np.ones((6, 4), np.float32)]
        refused(ValueError, f"rank .: grads.0..*{message}", sharded, lambda sharded=sharded, weights=weights: (
            sharded.apply([optimc.Rows([], np.ones((0, 4))), dense], weights)), weights)
        sharded.apply([np.ones((6000, 4)), dense], weights)


def skips():
    """A number that is not finite in rows of one rank: all skip the step."""
    for make in (lambda: optimc.Adam(check_finite="skip", global_clipnorm=1.0),
                 lambda: optimc.LossScaleOptimizer(optimc.Adam(), initial_scale=8.0, dynamic_growth_steps=2)):
        sharded, weights = mpi.Sharded(make(), average=False), [np.ones((50, 3), np.float32)]
        alone, expected = make(), [np.ones((50, 3), np.float32)]
        for t in range(5):
            rows = [rows_of(t, (50, 3), rank) for rank in range(WORLD.size)]
            if t in (0, 3):
                rows[-1] = optimc.Rows([7], np.full((1, 3), np.inf, np.float32))
            sharded.apply([rows[WORLD.rank]], weights)
            alone.apply([joined(rows, (50, 3), np.float32, 1)], expected)
            assert_same_bits(weights[0], expected[0])
        assert repr(sharded.optimizer.get_config()) == repr(alone.get_config())
        assert sharded.iterations == alone.iterations == 3
        assert_same_everywhere(weights)


def resumed(folder):
    """A job goes on from a checkpoint between two accumulated gradients, by rows in rows that were cut elsewhere."""
    shapes = SHAPES[:5]
    grads_of, dtypes = by_rows(shapes, TABLES), DTYPES[:5]
    sharded = mpi.Sharded(optimc.Adam(gradient_accumulation_steps=2), deterministic=True)
    alone = optimc.Adam(gradient_accumulation_steps=2)
    weights, expected = some(0, dtypes, shapes), some(0, dtypes, shapes)
    for t in range(6):
        mine, of_all = grads_of(t, dtypes)
        sharded.apply(mine, weights)
        alone.apply(of_all, expected)
        for w, e in zip(weights, expected, strict=True):
            assert_same_bits(w, e, f"step {t}")
        layout.ROWS = 256 if layout.ROWS == 1 else 1
        sharded.save(f"{folder}/adam")
        sharded = mpi.load(f"{folder}/adam", deterministic=True)
        one, copies = optimc.load(f"{folder}/adam"), [e.copy() for e in expected]
        one.apply(grads_of(t + 1, dtypes)[1], copies)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
