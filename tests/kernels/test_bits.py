"""The recorded hashes hold on every ISA, for any number of threads, offset and splitting."""

import itertools

import numpy as np
import pytest
from cases import DTYPES, WHOLE_WEIGHTS, Guarded, assert_same_bits, exact_cases, slots_of, values
from hashes import digest, key, recorded, stored_cases, stored_digest


def test_every_case_has_a_hash():
    assert set(recorded()) == {key(case, dtype) for case in exact_cases() for dtype in DTYPES} | {
        key(case, way) for case, way in stored_cases()}


@pytest.fixture(params=exact_cases(), ids=repr)
def case(request):
    return request.param


def test_hashes_hold(case, dtype, isa, threads):
    assert digest(case.make(), dtype) == recorded()[key(case, dtype)]


def test_hashes_of_fewer_bits_hold(case, isa, threads):
    for one, way in stored_cases():
        if one is case:
            assert stored_digest(case, way, isa) == recorded()[key(case, way)], way


def test_hashes_hold_at_odd_offsets(case, dtype):
    place = iter(range(10 ** 9))
    assert digest(case.make(), dtype, lambda array: Guarded(array, next(place) % 13).array) \
        == recorded()[key(case, dtype)]


def test_hashes_hold_for_weights_split_into_views(case, dtype):
    if case.cls._rule in WHOLE_WEIGHTS:
        pytest.skip("works on whole weights")
    def split(arrays):
        return [part for array in arrays for part in np.array_split(array, 7) if array.size] + arrays[2:3]

    got = digest(case.make(), dtype, split=split)
    assert got == recorded()[key(case, dtype)]


def test_pieces_that_are_cut_at_lines_meet(case, dtype, threads):
    rng = np.random.default_rng(5)
    start, grads = values(rng, 3 * 8192 + 7, dtype), [values(rng, 3 * 8192 + 7, dtype) for _ in range(2)]

    def steps(offset):
        weight, optimizer = Guarded(start, offset), case.make(use_ema=True)
        for k, grad in enumerate(grads):
            optimizer.apply([Guarded(grad, (3 * offset + k) % 16).array], [weight.array])
        weight.assert_intact()
        return [weight.array, *optimizer._averages, *itertools.chain(*slots_of(optimizer).values())]

    aligned = steps(0)
    for offset in (1, 4, 7, 12, 15):
        for one, other in zip(steps(offset), aligned, strict=True):
            assert_same_bits(one, other, offset)


def test_a_wrong_bit_would_be_noticed():
    case, dtype = exact_cases()[0], np.float32
    almost = case.make(learning_rate=np.nextafter(np.float32(0.01), np.float32(1)))
    assert digest(almost, dtype) != recorded()[key(case, dtype)]
