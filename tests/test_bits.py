"""The recorded hashes hold on every ISA, for any number of threads, offset and splitting."""

import numpy as np
import pytest
from cases import DTYPES, WHOLE_WEIGHTS, Guarded, exact_cases
from hashes import digest, recorded


def key(case, dtype):
    return f"{case!r} {dtype.__name__}"


def test_every_case_has_a_hash():
    assert set(recorded()) == {key(case, dtype) for case in exact_cases() for dtype in DTYPES}


@pytest.fixture(params=exact_cases(), ids=repr)
def case(request):
    return request.param


def test_hashes_hold(case, dtype, isa, threads):
    assert digest(case.make(), dtype) == recorded()[key(case, dtype)]


def test_hashes_hold_at_odd_offsets(case, dtype):
    place = iter(range(10 ** 9))
    assert digest(case.make(), dtype, lambda array: Guarded(array, next(place) % 13).array) \
        == recorded()[key(case, dtype)]


def test_hashes_hold_for_weights_split_into_views(case, dtype):
    if case.cls.rule in WHOLE_WEIGHTS:
        pytest.skip("works on whole weights")
    def split(arrays):
        return [part for array in arrays for part in np.array_split(array, 7) if array.size] + arrays[2:3]

    got = digest(case.make(), dtype, split=split)
    assert got == recorded()[key(case, dtype)]


def test_a_wrong_bit_would_be_noticed():
    case, dtype = exact_cases()[0], np.float32
    almost = case.make(learning_rate=np.nextafter(np.float32(0.01), np.float32(1)))
    assert digest(almost, dtype) != recorded()[key(case, dtype)]
