"""Steps in fewer bits equal encode(rule(decode(state))) bit for bit: cases, ways to store, options, ISAs, threads."""

import itertools
import warnings

import codec_twin as twin
import ml_dtypes
import numpy as np
import pytest
from cases import BOUNDS, CASES, assert_same_bits, slots_of, values
from stored import (
    FEW,
    SLOTS,
    STEP_OPTIONS,
    TO_NEAREST,
    Stored,
    Way,
    assert_same,
    chosen,
    gradients,
    has,
    made,
    start,
    unrolled,
    ways_of,
)

import optimc
from optimc import _core
from optimc.base.narrow import Place

SHAPES = [(1,), (255,), (256,), (257,), (25, 12), (40, 25), (5000,)]
SEED = 7
EVERY = [(isa, threads) for threads in (1, 2) for isa in _core.isas]
#: each ISA with one number of threads
PAIRED = [[(isa, 1 + (i + k) % 2) for i, isa in enumerate(_core.isas)] for k in range(2)]


def compare(case, way, shapes, steps, routes=EVERY, missing=False, special=False, excluded=(), **options):
    """Steps an optimizer on some ISAs with some threads beside the oracle, and compares all they hold."""
    rng, weights = np.random.default_rng(1), start(case, shapes, way.dtype)
    runs = [(*made(case, way, isa, weights, seed=SEED, **options), threads) for isa, threads in routes]
    oracle, forced = Stored(case, runs[0][0], weights), 0
    for optimizer, copies, _ in runs:
        oracle.assert_like(optimizer, copies, "at the beginning")
        optimizer.exclude_from_weight_decay([copies[i] for i in excluded])
    for step in range(steps):
        grads = gradients(rng, weights, step, missing, special)
        oracle.step(grads, excluded)
        for optimizer, copies, threads in runs:
            if threads != forced:
                _core._force_threads(forced := threads)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Gradients do not exist", UserWarning)
                optimizer.apply(grads, copies)
            oracle.assert_like(optimizer, copies, f"{way}, {options}, {threads} threads: step {step}")


@pytest.fixture(autouse=True)
def no_forced_threads():
    yield
    _core._force_threads(0)


@pytest.mark.parametrize("slots", SLOTS)
def test_every_way_to_store_equals_its_definition(case, slots):
    for way in ways_of(case):
        if way.slots == slots:
            compare(case, way, SHAPES, 2)


def test_rounding_to_nearest_equals_its_definition(case):
    for k, way in enumerate(TO_NEAREST):
        compare(case, way, SHAPES, 2, PAIRED[k % 2], special=k == 2)


def test_options_equal_the_definition(case):
    for k, options in enumerate(STEP_OPTIONS.values()):
        if has(case, options):
            compare(case, chosen(case, k), FEW, 4, PAIRED[k % 2], k % 3 == 0, excluded=(1,) * (k % 4 == 0), **options)


def test_special_values_equal_the_definition(case):
    for k, way in enumerate(ways_of(case)):
        if k % 2 == len(repr(case)) % 2:
            compare(case, way, FEW, 2, PAIRED[k // 2 % 2], special=True)


@pytest.mark.parametrize("weights", ["bfloat16", "float16"])
def test_weights_with_masters_are_those_of_float32_rounded(case, weights):
    """Whatever the options, a step loses nothing: 16 bits are seen, and 32 are trained."""
    ways = [way for way in ways_of(case) if way.weights == weights]
    for k, options in enumerate(STEP_OPTIONS.values()):
        if not has(case, options) or (weights == "float16" and k % 3):
            continue
        rng, way = np.random.default_rng(2), ways[k % len(ways)]
        short = start(case, FEW, way.dtype)
        narrow, few = made(case, way, "baseline", short, seed=SEED, **options)
        wide, full = made(case, Way("float32", way.slots), "baseline", [w.astype(np.float32) for w in short],
                          seed=SEED, **options)
        for step in range(4):
            grads = gradients(rng, short, step)
            for optimizer, arrays in ((narrow, few), (wide, full)):
                optimizer.apply(grads, arrays)
            for w, master, exact in zip(few, narrow._masters, full, strict=True):
                codes, rest = twin.WEIGHTS[weights, True][0](unrolled(exact).ravel(), None)
                assert_same(w, codes, f"{way}, {options}, step {step}")
                assert_same(master, rest, f"{way}, {options}, step {step}")
            for a, b in zip(slots_of(narrow).values(), slots_of(wide).values(), strict=True):
                for x, y in zip(a, b, strict=True):
                    assert (x is y is None) or x.tobytes() == y.tobytes()


# ------------------------------------------------------------------------------------------- random numbers

ROUNDED = Way("bfloat16 at random", "mixed")


def stepped(case, way, isa, weights, grads, places=None, threads=1, **options):
    """An optimizer that stores in a way, and its weights, after steps from some gradients."""
    optimizer, weights = made(case, way, isa, weights, places, seed=SEED, **options)
    _core._force_threads(threads if threads > 1 else 0)
    for g in grads:
        optimizer.apply(g, weights)
    return optimizer, weights


def one_per_class():
    return [case for case in CASES if not case.arguments and case.kernel not in BOUNDS]


@pytest.mark.parametrize("case", [case for case in one_per_class() if case.cls._elementwise], ids=repr)
def test_parts_of_a_weight_are_rounded_as_the_whole(case):
    """Each part begins with a block of 256 and knows its place, so that a job may cut weights as it likes."""
    rng = np.random.default_rng(3)
    whole, = start(case, [(5000,)], ROUNDED.dtype)
    grads = [values(rng, 5000, np.float32) for _ in range(3)]
    cuts = (0, 256, 1792, 4864, 5000)
    together, (expected,) = stepped(case, ROUNDED, "baseline", [whole], [[g] for g in grads], [Place(3, 0, 5000)])
    for isa, threads in EVERY:
        apart, parts = stepped(
            case, ROUNDED, isa, [whole[a:b] for a, b in itertools.pairwise(cuts)],
            [[g[a:b] for a, b in itertools.pairwise(cuts)] for g in grads],
            [Place(3, a, 5000) for a in cuts[:-1]], threads)
        assert np.concatenate(parts).tobytes() == expected.tobytes()
        for slot in case.slots:
            whole_slot = together.slots[slot][0]
            assert_same_bits(np.concatenate([*apart.slots[slot].values()]), whole_slot, slot)


@pytest.mark.parametrize("begin", [2 ** 32 - 512, 2 ** 33 - 256, 2 ** 40])
def test_a_part_far_inside_a_weight_equals_the_definition(begin):
    for case in one_per_class():
        if not case.cls._elementwise:
            continue
        for way in (Way("bfloat16 at random", "bfloat16"), Way("bfloat16 at random", "int8")):
            weights = start(case, [(1000,)], way.dtype)
            grads = [[values(np.random.default_rng(k), 1000, np.float32)] for k in range(2)]
            oracle = Stored(case, made(case, way, "baseline", weights, seed=SEED)[0], weights, 9, begin)
            for g in grads:
                oracle.step(g)
            for isa in _core.isas:
                optimizer, moved = stepped(case, way, isa, weights, grads, [Place(9, begin, 2 ** 41)])
                oracle.assert_like(optimizer, moved, f"{case}, {way}")


def test_what_lies_beside_a_weight_changes_none_of_its_bits(case):
    """Other weights make other pieces, and other threads take them."""
    rng = np.random.default_rng(4)
    first, other = start(case, [(3000,), (120_000,)], ROUNDED.dtype)
    grads = [[values(rng, 3000, np.float32), values(rng, 120_000, np.float32)] for _ in range(2)]
    alone = stepped(case, ROUNDED, "baseline", [first], [g[:1] for g in grads])
    for isa, threads in PAIRED[1]:
        beside = stepped(case, ROUNDED, isa, [first, other], grads, threads=threads)
        assert beside[1][0].tobytes() == alone[1][0].tobytes()
        for slot in case.slots:
            assert beside[0]._slots[slot][0].tobytes() == alone[0]._slots[slot][0].tobytes()


def test_random_numbers_depend_on_seed_weight_and_step():
    def after(seed=0, number=0, iterations=0):
        weights = [np.ones(4096, ml_dtypes.bfloat16) for _ in range(number + 1)]
        optimizer = optimc.SGD(2.0 ** -10, master_weights=False, seed=seed)
        optimizer.iterations = iterations
        optimizer.apply([np.ones(4096, np.float32) for _ in weights], weights)
        return weights[number].astype(np.float32)

    first = after()
    assert 0.15 < (first < 1).mean() < 0.35                         # by a quarter of the last place
    assert (after() == first).all()
    for other in (after(seed=1), after(seed=2 ** 61), after(number=1), after(iterations=1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / 64


def test_weights_rounded_at_random_walk_without_bias():
    """A walk of many small steps has the mean of the exact one, and the spread of independent ones."""
    n, steps, share = 1 << 15, 200, 0.1
    w = np.full(n, 0.9921875, ml_dtypes.bfloat16)                   # of [0.5, 1): a last place is 2^-8
    optimizer = optimc.SGD(share * 2.0 ** -8, master_weights=False)
    for _ in range(steps):
        optimizer.apply([np.ones(n, np.float32)], [w])
    moved = (0.9921875 - w.astype(np.float64)) * 2 ** 8
    variance = steps * share * (1 - share)
    assert abs(moved.mean() - steps * share) < 4 * np.sqrt(variance / n)
    assert abs(moved.var() / variance - 1) < 4 * np.sqrt(2 / n)
    assert abs(np.corrcoef(moved[:-1], moved[1:])[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_averages_of_squares_have_no_bias(dtype):
    """Each moves by a thousandth, far less than a last place: to the nearest, they would not move."""
    n, steps = 1 << 14, 600
    g = (10 ** np.random.default_rng(0).uniform(-0.5, 0.5, n)).astype(np.float32)
    optimizer, w = optimc.Adam(0.0, state_dtype=dtype), np.zeros(n, np.float32)
    for _ in range(steps):
        optimizer.apply([g], [w])
    error = optimizer.slots["v"][0] / (g.astype(float) ** 2 * (1 - 0.999 ** steps)) - 1
    assert error.std() < 0.1 and abs(error.mean()) < 4 * error.std() / np.sqrt(n)
