"""A step in parts, as optimc.mpi takes it: matched, looked at, advanced piece by piece; equal to `apply`."""

import itertools

import numpy as np
import pytest
from cases import OPTIONS, assert_same_bits, slots_of, values

import optimc
from optimc import _core

SHAPES = [(40, 33), (1,), (5000,), (0,), (3, 2, 5, 7), (17,)]
DTYPES = [np.float32, np.float64, np.float32, np.float32, np.float64, np.float32]


def setting(rng):
    return ([values(rng, shape, dtype) for shape, dtype in zip(SHAPES, DTYPES, strict=True)],
            [values(rng, shape, dtype) for shape, dtype in zip(SHAPES, DTYPES, strict=True)])


def step_in_parts(optimizer, grads, weights, rng):
    with _core.Transaction() as steps:
        steps.match(optimizer, grads, weights, True)
        if steps.survey(optimizer, False):
            optimizer._between()
            for double in (False, True):
                size = sum(w.size for w in weights if (w.itemsize == 8) == double)
                cuts = [0, *sorted(rng.integers(0, size + 1, 4).tolist()), size]
                for begin, end in itertools.pairwise(cuts):
                    steps.advance(optimizer, double, begin, end)
        steps.commit()


@pytest.mark.parametrize("name", ["decay", "everything", "everything per weight", "coupled decay, clipped"])
def test_parts_make_a_step(case, threads, name):
    rng = np.random.default_rng(0)
    weights, _ = setting(rng)
    expected = [w.copy() for w in weights]
    whole, parts = case.make(**OPTIONS[name]), case.make(**OPTIONS[name])
    for step in range(4):
        _, grads = setting(rng)
        if step == 2:
            grads[0] = None
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                whole.apply(grads, expected)
        else:
            whole.apply(grads, expected)
        step_in_parts(parts, grads, weights, rng)
        for w, e in zip(weights, expected, strict=True):
            assert_same_bits(w, e, f"step {step}")
    assert parts.iterations == whole.iterations and parts.last_global_norm == whole.last_global_norm
    for slot, arrays in slots_of(whole).items():
        for a, b in zip(arrays, slots_of(parts)[slot], strict=True):
            if a is not None:
                assert_same_bits(b, a, slot)


def test_norms_come_from_the_sums_given():
    rng = np.random.default_rng(1)
    weights, grads = setting(rng)
    expected = [w.copy() for w in weights]
    clipped = optimc.SGD(0.5, global_clipnorm=1.0)
    clipped.apply([2 * g for g in grads], expected)
    optimizer = optimc.SGD(1.0, global_clipnorm=1.0)
    with _core.Transaction() as steps:
        steps.match(optimizer, grads, weights, False)
        steps.survey(optimizer, False)
        sums = np.frombuffer(steps.sums(optimizer))
        counts = np.array([-(-w.size // _core.SUM_BLOCK) for w in weights])
        assert len(sums) == counts.sum()
        assert steps.refold(optimizer, False, 4 * sums, counts)
        steps.commit()
    assert optimizer.last_global_norm == clipped.last_global_norm
    for w, g, e in zip(weights, grads, expected, strict=True):
        assert np.allclose(w, e, atol=1e-4 * max(1, np.abs(g).max(initial=0)))


def test_the_look_can_refuse_and_parts_are_checked():
    weights, grads = setting(np.random.default_rng(2))
    optimizer = optimc.Adam(check_finite="raise")
    optimizer.build(weights)
    before = [w.copy() for w in weights]
    grads[4][0, 0, 0, 0] = np.nan
    with _core.Transaction() as steps:
        assert steps.match(optimizer, grads, None, False) == (True,) * len(weights)
        with pytest.raises(FloatingPointError, match=r"grads\[4\]"):
            steps.survey(optimizer, False)
        assert not steps.survey(optimizer, True)
        with pytest.raises(IndexError, match="from 0 to 211, got 0 to 212"):
            steps.advance(optimizer, True, 0, 212)
        for wrong in (np.zeros(2, np.int64), np.full(len(weights), 10), np.full(len(weights), -1)):
            with pytest.raises(ValueError, match="counts"):
                steps.refold(optimizer, False, np.zeros(7), wrong)
    assert optimizer.iterations == 0
    for w, b in zip(weights, before, strict=True):
        assert_same_bits(w, b)


@pytest.mark.parametrize("policy", ["propagate", "raise", "skip"])
def test_sums_that_overflow_are_judged_like_gradients(policy):
    weights, grads = setting(np.random.default_rng(3))
    optimizer = optimc.SGD(1.0, global_clipnorm=1.0, check_finite=policy)
    counts = np.array([-(-w.size // _core.SUM_BLOCK) for w in weights])
    sums = np.full(counts.sum(), 1e308)
    with _core.Transaction() as steps:
        steps.match(optimizer, grads, weights, False)
        assert steps.survey(optimizer, False)
        if policy == "raise":
            with pytest.raises(FloatingPointError, match="the norm of all gradients is not finite"):
                steps.refold(optimizer, False, sums, counts)
        else:
            assert steps.refold(optimizer, False, sums, counts) == (policy == "propagate")
            steps.commit()
    assert (optimizer.iterations, optimizer.skipped_steps) == (int(policy == "propagate"), int(policy == "skip"))


def test_a_range_of_a_gradient_is_pulled_in_the_order_of_memory():
    weights = [np.zeros((5, 7), np.float32, order=order) for order in "CF"]
    gradient = np.arange(35.0).reshape(5, 7)
    optimizer = optimc.SGD()
    steps = _core.Transaction()
    steps.match(optimizer, [gradient, gradient[::-1, ::-1]], weights, False)
    for i, expected in enumerate((gradient.ravel(), gradient[::-1, ::-1].ravel("F"))):
        for begin, n in ((0, 35), (3, 20), (35, 0)):
            to = np.empty(n, np.float32)
            assert optimizer._plan.pull(i, to, begin)
            assert_same_bits(to, expected[begin:begin + n].astype(np.float32))
        for to, begin in ((np.empty(30, np.float32), 6), (np.empty(3), 0), (np.empty((3, 1), np.float32), 0)):
            with pytest.raises(ValueError, match="to: expected"):
                optimizer._plan.pull(i, to, begin)


