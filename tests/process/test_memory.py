"""Nothing is allocated per step, and nothing is leaked, on good paths and bad."""

import gc
import itertools
import mmap
import resource
import sys
import tracemalloc
import weakref

import numpy as np
import pytest
from cases import CASES

import optimc
from optimc import _core
from optimc.base import memory


@pytest.fixture(params=[case for case in CASES if not case.arguments], ids=repr)
def case(request):
    """One case per class: arguments make no difference here."""
    return request.param


def small_network():
    rng = np.random.default_rng(0)
    shapes = [(10, 64), (64,), (64, 1), (1,)]
    return ([rng.standard_normal(s).astype(np.float32) for s in shapes],
            [rng.standard_normal(s).astype(np.float32) for s in shapes])


def test_arrays_of_a_weight_keep_off_each_others_lines():
    weights = [np.zeros(n, np.float32) for n in (1, 5000, 2_000_000)] + [np.zeros((70, 90))]
    by_number = [memory.like(weights, k) for k in range(_core.PART_ACCUMULATOR + 1)]
    for i, weight in enumerate(weights):
        arrays = [arrays[i] for arrays in by_number]
        assert all(a.shape == weight.shape and a.dtype == weight.dtype and not a.any() for a in arrays)
        places = [_core.address(array) - _core.address(weight) for array in arrays]
        assert all(place % memory.LINE == 0 for place in places)
        if weight.nbytes >= memory.PAGE:
            lines = sorted([0, *(place % memory.PAGE // memory.LINE for place in places)])
            assert min(b - a for a, b in itertools.pairwise([*lines, memory.PAGE // memory.LINE])) >= 9


def test_slots_take_little_more_than_their_elements():
    weights = [np.zeros(n, np.float32) for n in (1, 100, 64, 10_000)] * 50
    block = memory.like(weights, 0)[0].base
    assert block.nbytes < sum(w.nbytes for w in weights) + 50 * (memory.PAGE + 3 * memory.LINE) + 1


@pytest.mark.parametrize("shapes", [[2_000_000], [10_000] * 120])
def test_large_slots_begin_with_their_huge_pages(shapes):
    weights = [np.zeros(shape, np.float32) for shape in shapes]
    for k in range(_core.PART_ACCUMULATOR + 1):
        arrays = memory.like(weights, k)
        block, low = arrays[0].base, _core.address(arrays[0])
        assert 0 <= low % memory.HUGE - k * memory.LARGE_SHIFT < memory.PAGE    # at a boundary, but for the shift
        assert _core.address(arrays[-1]) + arrays[-1].nbytes <= _core.address(block) + block.nbytes
        most = sum(w.nbytes + memory.PAGE for w in weights)
        assert block.nbytes == most + memory.HUGE + k * memory.LARGE_SHIFT


def test_slots_that_are_not_large_take_no_more_for_huge_pages():
    least = memory.LARGE - memory.PAGE                  # with what keeps it in its place within a page
    for n, room in ((least - 1, memory.LARGE - 1), (least, memory.LARGE + memory.HUGE)):
        assert memory.like([np.zeros(n, np.uint8)], 0)[0].base.nbytes == room


@pytest.mark.parametrize("steps", [100_000])
def test_memory_is_flat_over_many_steps(case, steps):
    weights, grads = small_network()
    optimizer = case.make()
    apply = optimizer.apply

    def grown(times):
        """Bytes by which traced memory has grown after some steps, and at most within them."""
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(times):
            apply(grads, weights)
        return np.subtract(tracemalloc.get_traced_memory(), before)

    resident = resource.getrusage(resource.RUSAGE_SELF)
    tracemalloc.start()
    try:
        grown(10)
        # the least of three: another thread of the test's process may allocate within one of them
        least = np.min([grown(steps // len(case.cls._arguments) // 3) for _ in range(3)], axis=0)
    finally:
        tracemalloc.stop()
    assert least[0] < 700 and least[1] < 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident.ru_maxrss < 1024


def bad_calls(optimizer, weights, grads):
    """Calls that are refused at different depths."""
    copies = [w.copy() for w in weights] if optimizer.built else weights[::-1]
    for g, w in ((grads[:2], weights), ([*grads[:3], np.ones(2)], weights), ([None] * 4, weights),
                 (grads, [*weights[:3], weights[0]]), (grads, 3), ([1, 2, 3, 4], weights),
                 ([weights[0], *grads[1:]], weights), (grads, copies)):
        try:
            optimizer.apply(g, w)
        except (TypeError, ValueError):
            continue
        raise AssertionError("accepted")


def test_no_reference_is_leaked(case):
    weights, grads = small_network()
    optimizer = case.make()
    optimizer.apply(grads, weights)
    watched = [*weights, *grads, optimizer, None, True, np.dtype(np.float32), type(optimizer), int, list]

    def work():
        optimizer.apply(grads, weights)
        optimizer.apply(dict(zip("abcd", grads, strict=True)), dict(zip("abcd", weights, strict=True)))
        bad_calls(optimizer, weights, grads)
        fresh = case.make()
        bad_calls(fresh, weights, grads)
        fresh.build(weights)
        fresh.build([w.copy() for w in weights])

    for _ in range(20):
        work()
    gc.collect()
    before = [sys.getrefcount(thing) for thing in watched]
    for _ in range(200):
        work()
    gc.collect()
    grown = [sys.getrefcount(thing) - count for thing, count in zip(watched, before, strict=True)]
    assert max(map(abs, grown)) < 100, grown        # a leak would be 200 or more


def test_memory_is_flat_over_builds_and_refusals(case):
    weights, grads = small_network()

    def grown(times):
        """Bytes by which traced memory grows over some rounds."""
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(times):
            optimizer = case.make()
            bad_calls(optimizer, weights, grads)
            optimizer.apply(grads, weights)
            bad_calls(optimizer, weights, grads)
            del optimizer
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        grown(100)                          # fills the interpreter's free lists
        # once of three times: a table of the interpreter's may be moved within one of them
        assert any(grown(50) < 15_000 for _ in range(3))
    finally:
        tracemalloc.stop()


def test_an_optimizer_in_a_cycle_is_collected():
    class Watched(optimc.SGD):
        def rate(self):
            return 0.1

    optimizer = Watched(0.1)
    optimizer.apply([np.ones(3, np.float32)], [np.ones(3, np.float32)])
    optimizer.learning_rate = optimizer.rate
    gone = weakref.ref(optimizer)
    optimizer.me = optimizer
    del optimizer
    gc.collect()
    assert gone() is None


def test_huge_arrays_are_indexed_beyond_32_bits():
    """More than 2**31 elements.  The gradient is never written but at its end, so only w takes memory."""
    n = 2 ** 31 + 12345
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("needs huge pages to be quick")
    with open("/proc/meminfo") as file:
        available = next(line for line in file if line.startswith("MemAvailable")).split()[1]
    if int(available) < 12 << 20:
        pytest.skip("needs 12 GiB")
    maps = [mmap.mmap(-1, n * 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
    for m in maps:
        m.madvise(mmap.MADV_HUGEPAGE)
    w, g = (np.frombuffer(m, np.float32) for m in maps)
    g[-1] = 1.0
    optimc.SGD(0.5).apply([g], [w])
    assert w[-1] == -0.5 and w[0] == 0 and w[n // 2] == 0
