"""A step by rows equals the dense step in the rows that are present, bit for bit, and leaves the others as they were.

The oracle of a step is the dense step with `np.add.at` into zeros, tested elsewhere, after which every row that is
not present is put back.
"""

import ml_dtypes
import numpy as np
import pytest
from cases import CASES, assert_same_bits, values
from stored import STEP_OPTIONS, Way, chosen, has, made, ways_of

import optimc
from optimc import _core

BY_ROWS = [case for case in CASES if case.cls._elementwise or case.cls is optimc.RowwiseAdagrad]
SHAPES = {False: [(60, 1), (40, 7), (30, 64), (9, 2, 5), (13, 300), (50,), (3, 4096)], True: [(20, 256), (5, 2, 512)]}
PLAIN = Way("float32", "as numbers")
FLOATS = (np.float32, ml_dtypes.bfloat16, np.float64, np.float16)
INTEGERS = (np.int64, np.uint8, np.int32, np.uint64, np.int16, np.uint32, np.int8, np.uint16)
EVERY = [(isa, threads) for threads in (1, 2) for isa in _core.isas]


@pytest.fixture(params=BY_ROWS, ids=repr)
def case(request):
    return request.param


@pytest.fixture(autouse=True)
def no_forced_threads():
    yield
    _core._force_threads(0)


def table_of(case, shape, way):
    return values(np.random.default_rng(0), shape, np.float32).astype(way.dtype)


def rows_for(rng, shape, step, all_present=False):
    """Rows of a table: some occur several times; every type of index and of value takes its turn."""
    n = shape[0]
    indices = rng.integers(0, n, max(2, n // 2))
    indices = np.concatenate([indices, rng.choice(indices, len(indices) // 3 + 1)])
    if all_present:
        indices = rng.permutation(np.concatenate([np.arange(n), indices]))
    numbers = values(rng, (len(indices), *shape[1:]), np.float32).astype(FLOATS[step % len(FLOATS)])
    if step % 3 == 2:
        numbers = np.repeat(numbers, 2, axis=0)[::2]                    # another stride
    return optimc.Rows(indices.astype(INTEGERS[step % len(INTEGERS)]), numbers)


def dense(rows, shape, real):
    """The gradient that rows stand for, as NumPy adds it up."""
    total = np.zeros(shape, real)
    np.add.at(total, rows.indices.astype(np.int64), rows.values.astype(real))
    return total


def parts_of(optimizer, weight):
    """Every array that a step may write, in the form of rows."""
    arrays = [weight]
    arrays += [held[0] for held in (optimizer._averages, optimizer._accumulators, optimizer._masters) if held]
    for slot in optimizer._slots.values():
        if slot[0] is not None and slot[0].dtype == np.uint8:
            codes, scales = slot[0][:weight.size], slot[0][-(-weight.size // 4) * 4:].view(np.float32)
            arrays += [codes.reshape(len(weight), -1), scales.reshape(len(weight), -1)]
        elif slot[0] is not None:
            arrays.append(slot[0])
    return [array for array in arrays if array is not None]


class Lazy:
    """The oracle: a dense optimizer, some of whose rows are put back."""

    def __init__(self, optimizer, weight):
        self.optimizer, self.weight, self.present = optimizer, weight, set()
        self.real = np.float64 if weight.dtype == np.float64 else np.float32

    def step(self, rows):
        optimizer, steps = self.optimizer, self.optimizer.gradient_accumulation_steps or 1
        call = self.calls
        self.present |= {*rows.indices.tolist()}
        updates = (call + 1) % steps == 0
        present = self.present if updates else {*rows.indices.tolist()}
        before = [array.copy() for array in parts_of(optimizer, self.weight)]
        optimizer.apply([dense(rows, self.weight.shape, self.real)], [self.weight])
        gone = np.setdiff1d(np.arange(len(self.weight)), [*present])
        for array, old in zip(parts_of(optimizer, self.weight), before, strict=True):
            array[gone] = old[gone]
        if optimizer.use_ema and call < steps:              # the average begins with the weight
            optimizer._averages[0][gone] = self.numbers()[gone]
        if updates:
            self.present.clear()

    @property
    def calls(self):
        return self.optimizer._calls

    def numbers(self):
        """The weight as a step computes with it."""
        master = self.optimizer._masters and self.optimizer._masters[0]
        if master is None:
            return self.weight.astype(self.real)
        if master.dtype == np.float32:
            return master
        codes = self.weight.view(np.uint16).astype(np.uint32) << 16
        return (codes + master.astype(np.int32).view(np.uint32)).view(np.float32)


def compare(case, way, shape, routes=EVERY, steps=4, all_present=False, **options):
    table = table_of(case, shape, way)
    oracle, (expected,) = made(case, way, "baseline", [table], seed=3, **options)
    lazy, runs = Lazy(oracle, expected), [(*made(case, way, isa, [table], seed=3, **options), threads)
                                          for isa, threads in routes]
    rng, forced = np.random.default_rng(1), 0
    for step in range(steps):
        rows = rows_for(rng, shape, step, all_present)
        lazy.step(rows)
        for optimizer, (weight,), threads in runs:
            if threads != forced:
                _core._force_threads(forced := threads)
            optimizer.apply([rows], [weight])
            what = f"{way}, {options}, {shape}, {threads} threads, step {step}"
            for got, want in zip(parts_of(optimizer, weight), parts_of(oracle, expected), strict=True):
                if optimizer._accumulators and got is optimizer._accumulators[0]:
                    got, want = got + 0, want + 0           # a sum of 0 waits as a -0
                assert got.tobytes() == want.tobytes(), what
            if oracle.last_global_norm is not None:
                assert optimizer.last_global_norm == oracle.last_global_norm, what


def shapes_for(way, case):
    return SHAPES["int8" in (way.arguments(case).get("state_dtype") or {}).values()]


def test_every_way_to_store_by_rows(case):
    for k, way in enumerate([PLAIN, Way("float64", "as numbers"), *ways_of(case)]):
        shapes = shapes_for(way, case)
        for i, shape in enumerate(shapes):
            if way is PLAIN or (i + k) % 3 == 0:
                compare(case, way, shape, EVERY if i == k % len(shapes) else EVERY[-1:], steps=3)


def test_options_by_rows(case):
    for k, options in enumerate(STEP_OPTIONS.values()):
        for way in (PLAIN, chosen(case, k)):
            if has(case, options):
                shapes = shapes_for(way, case)
                compare(case, way, shapes[k % len(shapes)], EVERY[k % 2::2], steps=6,
                        all_present="cautious" in options, **options)


def test_threads_share_many_rows():
    """More rows than chunks."""
    case = next(case for case in BY_ROWS if case.cls is optimc.AdamW)
    for width in (1, 16, 65):
        for options in ({}, {"global_clipnorm": 1.0}, {"gradient_accumulation_steps": 2}):
            compare(case, PLAIN, (20_000, width), steps=4, **options)


@pytest.mark.parametrize("cls", [optimc.SGD, optimc.Adagrad, optimc.RowwiseAdagrad])
@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 0.5}, {"clipvalue": 0.1}], ids=str)
def test_rules_without_memory_of_time_equal_the_dense_step(cls, options):
    rng, table = np.random.default_rng(0), np.ones((100, 12), np.float32)
    other, lazy, whole = table.copy(), cls(**options), cls(**options)
    for step in range(5):
        rows = rows_for(rng, table.shape, step)
        lazy.apply([rows], [table])
        whole.apply([dense(rows, table.shape, np.float32)], [other])
        assert_same_bits(table, other)
    assert lazy.last_global_norm == whole.last_global_norm


def test_a_cautious_step_takes_the_mean_of_the_rows_that_are_present():
    rng, table = np.random.default_rng(0), values(np.random.default_rng(1), (50, 30), np.float32)
    present = rng.permutation(50)[:20]
    gathered = table[present]
    by_rows, dense_one = (optimc.AdamW(cautious=True) for _ in range(2))
    for _ in range(4):
        grads = values(rng, gathered.shape, np.float32)
        by_rows.apply([optimc.Rows(present, grads)], [table])
        dense_one.apply([grads], [gathered])
        assert_same_bits(table[present], gathered)


#: a table of 4 rows after four steps of FBGEMM's exact row-wise Adagrad on a CPU (fbgemm-gpu-cpu 1.8.0), by its bytes
OF_FBGEMM = bytes.fromhex(
    "a31eb23ff4ddc83e7eed473f888d763f74907e3e157f153feb77823f39b441bf3b07bcbf939f2cbfa655f5befdaa8b3f"
    "26e0b93fc703c8bf330168be0f6b513f134c87bf19a89a3f17a99fbf855b4cbd3ad4633fd8d639bfd4a5adbe808881bf"
    "a837543fc0715abf5010b53f7bd066be76bf773d1c96bebdda4c3b3e299965bd786c2f3dd8abd53f27c78b3f6b025f3f"
    "0000203f0000c03e000000bf0000c23f0000e0bd000064bf00008a3f000088bf00008e3f0000b03e00009abf0000b6bf")


def test_row_wise_adagrad_has_the_bits_of_fbgemm():
    """Rows of 12 elements, which its 8 lanes do not divide, that occur several times in a batch."""
    rng = np.random.default_rng(7)
    table = rng.integers(-99, 100, (4, 12)).astype(np.float32) / 64
    optimizer = optimc.RowwiseAdagrad(learning_rate=0.1, epsilon=1e-8)
    for _ in range(4):
        indices = rng.integers(0, 3, 5)
        numbers = (rng.integers(-999, 1000, (5, 12)) / 256).astype(np.float32)
        optimizer.apply([optimc.Rows(indices, numbers)], [table])
    assert table.tobytes() == OF_FBGEMM
