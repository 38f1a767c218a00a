"""Every kernel equals its NumPy formula bit for bit: all sizes, offsets, ISAs, threads, special values."""

import subprocess
import sys

import numpy as np
import pytest
from cases import CASES, Guarded, assert_equal, assert_same_bits, values
from oracle import Reference

import optimc
from optimc import _core

SMALL = range(68)
EDGES = (2047, 2048, 2049, 4096, 8191, 8192, 8193, 3 * 8192 + 5)


def compare(case, sizes, dtype, steps=4, special=False, seed=0, **arguments):
    """Steps optimizer and oracle side by side over arrays of these sizes at all kinds of offsets."""
    rng = np.random.default_rng(seed)
    optimizer = case.make(**arguments)
    oracle = Reference(optimizer, case.slots_of)
    guarded = [Guarded(values(rng, n, dtype), offset=i % 16) for i, n in enumerate(sizes)]
    weights = [g.array for g in guarded]
    expected = [w.copy() for w in weights]
    for step in range(steps):
        guarded_grads = [Guarded(values(rng, n, dtype, special), offset=(i * 7 + step) % 16)
                         for i, n in enumerate(sizes)]
        grads = [g.array for g in guarded_grads]
        before = [g.copy() for g in grads]
        optimizer.apply(grads, weights)
        expected = oracle.step(expected, grads)
        for i in range(len(weights)):
            what = f"step {step + 1}, size {sizes[i]}"
            assert_equal(case, weights[i], expected[i], what)
            assert_same_bits(grads[i], before[i], f"{what}: the gradient was changed")
            guarded[i].assert_intact()
            guarded_grads[i].assert_intact()
            for slot in case.slots_of(weights[i]):
                assert_equal(case, optimizer._slots[slot][i], oracle.state[i][slot], f"{what}, slot {slot}")


def test_small_sizes_equal_the_formula(case, dtype, isa):
    compare(case, list(SMALL), dtype)


def test_chunk_edges_equal_the_formula(case, dtype, isa, threads):
    compare(case, list(EDGES), dtype, steps=2)


def test_special_values_equal_the_formula(case, dtype, isa):
    compare(case, list(range(1, 40)), dtype, special=True)


def test_weight_decay_equals_the_formula(case, dtype, isa):
    compare(case, [1, 31, 64, 1000], dtype, weight_decay=0.01)


@pytest.mark.parametrize("shapes", [[(10, 64), (64,), (64, 1), (1,), (3, 5, 7), (1031,)]])
def test_fifty_steps_equal_the_formula(case, isa, threads, shapes):
    rng = np.random.default_rng(1)
    weights = [values(rng, shape, np.float32) for shape in shapes]
    expected = [w.copy() for w in weights]
    optimizer = case.make()
    oracle = Reference(optimizer, case.slots_of)
    for _ in range(50):
        grads = [values(rng, shape, np.float32) for shape in shapes]
        optimizer.apply(grads, weights)
        expected = oracle.step(expected, grads)
    for w, e in zip(weights, expected, strict=True):
        assert_equal(case, w, e)


def test_later_steps_equal_the_formula(case):
    """Powers of beta far out, where 1 - beta ** t is nearly or exactly 1."""
    if case.has_scalars:
        pytest.skip("what it keeps from update to update cannot jump")
    optimizer = case.make()
    oracle = Reference(optimizer, case.slots_of)
    rng = np.random.default_rng(2)
    w = values(rng, 33, np.float64)
    expected = w.copy()
    optimizer.apply([np.ones(33)], [w])
    expected, = oracle.step([expected], [np.ones(33)])
    for t in (62, 63, 64, 65, 4095, 10 ** 6, 2 ** 31 + 7, 2 ** 40):
        optimizer.iterations = oracle.t = t
        g = values(rng, 33, np.float64)
        optimizer.apply([g], [w])
        expected, = oracle.step([expected], [g])
        assert_equal(case, w, expected, f"t = {t + 1}")


def test_the_cases_reach_every_kernel():
    shapes = [np.ones(shape, np.float32) for shape in ((3,), (2, 2))]
    reached = {case.kernel_of(w) for case in CASES for w in shapes}
    assert reached == set(_core.kernels)


def test_one_optimizer_holds_both_dtypes(case):
    rng = np.random.default_rng(3)
    weights = [values(rng, 50, np.float32), values(rng, 50, np.float64)]
    expected = [w.copy() for w in weights]
    optimizer = case.make()
    oracle = Reference(optimizer, case.slots_of)
    for _ in range(3):
        grads = [values(rng, 50, np.float32), values(rng, 50, np.float64)]
        optimizer.apply(grads, weights)
        expected = oracle.step(expected, grads)
    for w, e in zip(weights, expected, strict=True):
        assert_equal(case, w, e)


def test_schedules_and_callables_give_the_rate(case):
    rates = [0.1, 0.2, 0.05]
    optimizer = case.make(learning_rate=lambda: rates[optimizer.iterations])
    oracle = Reference(optimizer, case.slots_of)
    w = np.linspace(-1, 1, 20, dtype=np.float32)
    expected = w.copy()
    g = np.linspace(1, -2, 20, dtype=np.float32)
    for rate in rates:
        optimizer.apply([g], [w])
        oracle.o.learning_rate = rate
        expected, = oracle.step([expected], [g])
        assert_equal(case, w, expected)


def test_isa_is_printable(capsys):
    optimc.show_config()
    assert f"ISA: {optimc.isa}" in capsys.readouterr().out


def test_the_version_costs_nothing_until_it_is_asked_for():
    code = "import sys, optimc; print('importlib.metadata' in sys.modules, optimc.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", optimc.__version__]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = optimc.nothing
