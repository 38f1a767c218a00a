"""The oracle of narrow storage keeps what the definitions of the codecs promise: exactness, errors and randomness."""

import codec_twin as twin
import ml_dtypes
import numpy as np
import pytest

MANY, STEPS = 1 << 22, 4096
SIZES = [0, 1, 3, 255, 256, 257, 1000]


def spectrum(n, seed=0, decades=8, sign=True):
    """Values of both signs whose logarithm is uniform; every seventeenth is zero."""
    rng = np.random.default_rng(seed)
    x = 10 ** rng.uniform(-decades, 0, n) * (rng.choice([-1, 1], n) if sign else 1)
    x[::17] = 0
    return x.astype(np.float32)


def every_value(lower):
    """The float32 value of every upper half with the given lower halves."""
    return twin.value_of((np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | np.array(lower, np.uint32)).ravel())


def assert_bits(a, b):
    np.testing.assert_array_equal(twin.bits_of(a), twin.bits_of(b))


# ------------------------------------------------------------------------------------------- random numbers

def number_of(i, seed, number, t, part):
    """The random number of one element, in Python's own integers."""
    key = twin.scramble(twin.scramble(twin.scramble(twin.scramble(seed) ^ number) ^ t) ^ part)
    high, n = divmod(i // 2, 1 << 32)
    if high:
        key = twin.scramble(key ^ high)
    x = (n * 0x9e3779b9 + key % (1 << 32)) % (1 << 32)
    x = ((x ^ x >> 16) + (key >> 32)) * 0x7feb352d % (1 << 32)
    x = (x ^ x >> 15) * 0x846ca68b % (1 << 32)
    return (x ^ x >> 16) >> 16 * (i % 2) & 0xffff


def test_the_key_is_of_splitmix64():
    assert twin.scramble(0) == 0xe220a8397b1dcdaf and twin.scramble(0x9e3779b97f4a7c15) == 0x6e789e6aa1b965f4
    ints = [0, 1, 1 << 63, (1 << 64) - 1]
    assert twin.scramble(np.array(ints, np.uint64)).tolist() == [twin.scramble(x) for x in ints]


@pytest.mark.parametrize("first", [0, 100, (1 << 33) - 300, (1 << 34) - 301, (1 << 40) + 5])
def test_numbers_are_a_function_of_the_element(first):
    of = (2 ** 64 - 1, 3, 10 ** 9, twin.WEIGHT)
    numbers = twin.random_numbers(*of, 700, first)
    assert numbers.dtype == np.uint16
    assert numbers.tolist() == [number_of(first + i, *of) for i in range(700)]
    assert np.array_equal(twin.random_numbers(*of, 500, first + 200), numbers[200:])


def centred(numbers):
    """Numbers with mean 0 and variance 1, if they are uniform."""
    return (numbers - 32767.5) / np.sqrt((65536.0 ** 2 - 1) / 12)


def sigmas(a, b=None):
    """The distance of a mean, or of a correlation, from 0."""
    return abs((a if b is None else a * b).sum()) / np.sqrt(a.size)


def chi_square(counts):
    """The distance of the statistic from its mean, in standard deviations."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return abs(((counts - expected) ** 2).sum() / expected - freedom) / np.sqrt(2 * freedom)


def test_numbers_are_uniform():
    numbers = twin.random_numbers(0, 0, 1, 0, MANY)
    for half in (numbers, numbers[::2], numbers[1::2]):
        assert sigmas(centred(half)) < 4
        for byte in (half & 255, half >> 8):
            assert chi_square(np.bincount(byte, minlength=256)) < 4
        assert chi_square(np.bincount(half, minlength=65536)) < 4


def test_numbers_of_a_pair_are_independent():
    first, second = twin.random_numbers(0, 0, 1, 0, MANY).reshape(-1, 2).T.astype(np.int64)
    for a in (first & 255, first >> 8):
        for b in (second & 255, second >> 8):
            assert chi_square(np.bincount(a << 8 | b, minlength=65536)) < 4
    bits = [2 * (half >> k & 1) - 1 for half in (first, second) for k in range(16)]
    for k, one in enumerate(bits):
        assert all(sigmas(one, other) < 5 for other in bits[:k]), k


def test_numbers_of_different_elements_are_independent():
    x = centred(twin.random_numbers(0, 0, 1, 0, MANY))
    for lag in (1, 2, 127, 128, 129, 256, 1024):
        assert sigmas(x[lag:], x[:-lag]) < 4, lag


@pytest.mark.parametrize("other", [
    {"t": 2}, {"t": 3}, {"t": 1001}, {"seed": 1}, {"seed": 2}, {"seed": 1 << 32}, {"number": 1}, {"number": 2},
    {"part": 1}, {"part": 2}, {"part": 3}, {"part": 4}], ids=str)
def test_numbers_of_different_streams_are_independent(other):
    base = {"seed": 0, "number": 0, "t": 1, "part": 0}
    one, two = (twin.random_numbers(**of, n=MANY) for of in (base, base | other))
    assert sigmas(centred(one), centred(two)) < 4


def test_dependent_numbers_would_be_noticed():
    numbers = twin.random_numbers(0, 0, 1, 0, MANY)
    assert sigmas(centred(numbers), centred(numbers ^ 0xff)) > 100
    assert chi_square(np.bincount(numbers & 254, minlength=256)) > 100


@pytest.fixture(scope="module")
def steps():
    """The numbers of 256 elements, a row for each of many updates."""
    return np.stack([twin.random_numbers(7, 1, t, 1, 256) for t in range(1, STEPS + 1)])


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_rounding_at_random_is_unbiased(steps, storage):
    encode, decode = twin.SLOTS[storage, "RANDOM"]
    x = spectrum(256, sign=storage == "bfloat16")
    low, high = (decode(encode(x, np.full(256, r, np.uint16)), 256).astype(float) for r in (0, 65535))
    got = decode(encode(np.tile(x, STEPS), steps.ravel()), steps.size).reshape(steps.shape)
    gap = high - low                            # 0 for what is exact, and below the floor of int8
    up = (x - low) / np.where(gap == 0, 1, gap)
    variance = up * (1 - up) / STEPS
    inside = variance > 1 / STEPS ** 2
    assert inside.sum() > 200
    z = (got.astype(float).mean(0) - x)[inside] / gap[inside] / np.sqrt(variance[inside])
    assert sigmas(z) < 4
    assert abs((z ** 2).sum() - z.size) < 4 * np.sqrt(2 * z.size)
    assert set(np.unique(got[:, inside] == low[inside])) == {False, True}


# ------------------------------------------------------------------------------------------- 16 bits

def test_bfloat16_nearest_is_the_cast():
    x = every_value([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, *np.random.default_rng(0).integers(0, 1 << 16, 8)])
    x = x[~(np.isnan(x) & (twin.bits_of(x) << 9 >> 25 == 0))]       # signalling, as no operation returns them
    with np.errstate(all="ignore"):
        cast = x.astype(ml_dtypes.bfloat16)
    codes, nan = twin.bfloat16_nearest(x), np.isnan(x)
    np.testing.assert_array_equal(codes[~nan], cast.view(np.uint16)[~nan])
    assert np.isnan(twin.bfloat16_decode(codes[nan])).all() and nan.sum() > 1000


def test_bfloat16_codes_stay_whatever_the_rounding():
    x = every_value([0])
    for r in (0, 1, 0x8000, 0xffff):
        np.testing.assert_array_equal(twin.bfloat16_random(x, np.full(x.size, r, np.uint16)), np.arange(1 << 16))
    np.testing.assert_array_equal(twin.bfloat16_nearest(x), np.arange(1 << 16))
    assert_bits(twin.bfloat16_decode(np.arange(1 << 16, dtype=np.uint16)), x)


def test_bfloat16_is_rounded_up_as_often_as_the_lower_bits_say():
    numbers = np.arange(1 << 16, dtype=np.uint16)
    for x in np.array([1.1, -2.7, 1e-45, 1e-40, 3e38, 3.4028235e38], np.float32):
        same = np.full(1 << 16, x)
        assert twin.bfloat16_random(same, numbers).sum(dtype=np.uint64) == twin.bits_of(same)[0], x


def test_float16_is_nearest_with_ties_to_even():
    codes = np.arange(0x7c00, dtype=np.uint16)                      # the finite ones and, next, 2^16 for Inf
    value = codes.view(np.float16).astype(np.float32)
    after = np.append(value[1:], np.float32(65536))
    middle = (value + after) / 2
    for sign in (1, -1):
        def nearest(x, sign=sign):
            return twin.float16_nearest(sign * x) - (0x8000 if sign < 0 else 0)
        np.testing.assert_array_equal(nearest(value), codes)
        np.testing.assert_array_equal(nearest(np.nextafter(middle, np.float32(0))), codes)
        np.testing.assert_array_equal(nearest(middle), codes + (codes & 1))
        np.testing.assert_array_equal(nearest(np.nextafter(middle, np.float32(np.inf))), codes + 1)


def test_float16_is_the_cast():
    x = every_value([0, 1, 0x0fff, 0x1000, 0x1001, 0x3000, 0xffff])
    with np.errstate(all="ignore"):
        cast = x.astype(np.float16)
    codes, nan = twin.float16_nearest(x), np.isnan(x)
    np.testing.assert_array_equal(codes[~nan], cast.view(np.uint16)[~nan])
    bits = twin.bits_of(x)[nan]
    np.testing.assert_array_equal(codes[nan], bits >> 16 & 0x8000 | 0x7e00 | bits >> 13 & 0x1ff)


def test_a_float16_weight_that_was_written_counts():
    x = every_value([0, 1, 0x8000, 0xffff])
    codes, master = twin.float16_encode(x)
    assert_bits(twin.float16_decode(codes, master), x)
    every = np.arange(1 << 16, dtype=np.uint16)
    other = np.full(every.size, 3.0001, np.float32)
    got, kept = twin.float16_decode(every, other), every == np.float16(3).view(np.uint16)
    assert kept.sum() == 1
    with np.errstate(all="ignore"):
        expected = np.where(kept, other, every.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(got, expected)                    # NaN as NaN
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


def test_a_zero_that_somebody_wrote_is_no_nan():
    codes, rest = np.array([0, 0x8000, 0, 0x3f80], np.uint16), np.array([-5, -0x8000, 7, -5], np.int16)
    assert np.array_equal(twin.split_decode(codes, rest) == 0, [True, True, False, False])
    assert np.isfinite(twin.split_decode(codes, rest)).all()


def test_the_split_is_exact():
    rng = np.random.default_rng(0)
    x = np.concatenate([every_value([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff]),
                        twin.value_of(rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint32))])
    codes, rest = twin.split_encode(x)
    assert (codes.dtype, rest.dtype) == (np.uint16, np.int16)
    nan = np.isnan(x)
    assert_bits(twin.split_decode(codes, rest)[~nan], x[~nan])
    assert_bits(twin.split_decode(codes, rest)[nan], twin.value_of(np.full(nan.sum(), twin.NAN, np.uint32)))
    differ = codes != twin.bfloat16_nearest(x)
    ties = (rest == -0x8000) & (codes & 1 == 1)
    np.testing.assert_array_equal(differ[~nan], ties[~nan])


# ------------------------------------------------------------------------------------------- int8

def signed(x):
    return twin.int8_signed_decode(twin.int8_nearest(x), x.size)


def unsigned(x, numbers=None):
    numbers = twin.random_numbers(0, 0, 1, 1, x.size) if numbers is None else numbers
    return twin.int8_unsigned_decode(twin.int8_random(x, numbers), x.size)


@pytest.mark.parametrize("n", SIZES)
def test_int8_lies_as_defined(n):
    x = spectrum(n) + np.float32(0.5)
    for stored in (twin.int8_nearest(x), twin.int8_random(abs(x), twin.random_numbers(0, 0, 1, 0, n))):
        assert (stored.dtype, stored.shape) == (np.uint8, (twin.coded_size(n),))
        assert stored.size == (n + -n % 4) + 4 * len(range(0, n, 256))
        codes, scales = twin.unpack(stored, n)
        assert not stored[n:stored.size - 4 * scales.size].any()
        np.testing.assert_array_equal(twin.pack(codes, scales), stored)
    for start in range(0, n, 256):
        assert_bits(signed(x)[start:start + 256], signed(x[start:start + 256]))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("storage", "rounding"), twin.SLOTS)
def test_fresh_slots_and_zeros_decode_to_zeros(storage, rounding, n):
    encode, decode = twin.SLOTS[storage, rounding]
    zeros = np.zeros(n, np.float32)
    assert_bits(decode(twin.fresh(storage, n), n), zeros)
    assert_bits(decode(encode(zeros, twin.random_numbers(0, 0, 1, 0, n)), n), zeros)


def test_int8_signed_is_symmetric_and_keeps_zeros():
    x = spectrum(5000)
    assert_bits(signed(-x), -signed(x))
    np.testing.assert_array_equal(twin.int8_nearest(-x)[:5000], twin.int8_nearest(x)[:5000] ^ 0x80)
    assert_bits(signed(x)[::17], x[::17])


def test_int8_errors_are_bounded():
    x = spectrum(256 * 1000, decades=12)
    largest = abs(x).reshape(-1, 256).max(1).repeat(256).astype(float)
    error = abs(signed(x).astype(float) - x)
    assert (error <= (abs(x) + largest / twin.SIGNED_TOP) / 16 * 1.001).all()
    scale = largest / twin.UNSIGNED_TOP
    error = abs(unsigned(abs(x)).astype(float) - abs(x))
    assert (error <= (abs(x) + scale) / 8 * 1.001).all()


def test_int8_keeps_the_largest_element():
    largest = twin.value_of(np.random.default_rng(0).integers(twin.TINY, 0x7f7fffff, 4096, dtype=np.uint32))
    largest[:2] = twin.value_of([twin.TINY, 0x7f7ffffe])
    x = np.zeros((4096, 256), np.float32)
    x[np.arange(4096), np.arange(4096) % 256] = largest
    for decoded, code in ((signed(x.ravel()), 0x7f), (unsigned(x.ravel(), np.full(x.size, 0x8000, np.uint16)), 0xff)):
        got = decoded.reshape(x.shape)[np.arange(4096), np.arange(4096) % 256]
        assert abs(twin.bits_of(got).astype(np.int64) - twin.bits_of(largest)).max() <= 1, code
    assert twin.int8_nearest(x.ravel())[0] == 0x7f


def test_int8_blocks_of_tiny_elements_are_zeros():
    below = twin.value_of([twin.TINY - 1, 1, 0, 0x80000001])
    assert_bits(signed(below), twin.value_of([0, 0, 0, 0x80000000]))
    assert_bits(unsigned(abs(below)), np.zeros(4, np.float32))
    at = twin.value_of([twin.TINY, 0])
    assert signed(at)[0] > 0 and unsigned(at)[0] > 0


def test_int8_unsigned_is_above_its_floor():
    x = spectrum(5000, decades=30, sign=False)
    codes, scales = twin.unpack(twin.int8_random(x, twin.random_numbers(0, 0, 1, 1, x.size)), x.size)
    assert codes.min() == 1 and codes.max() == 0xff
    small = x < scales.repeat(256)[:x.size] / 8
    assert small.sum() > 1000 and (codes[small] == 1).all()
    assert_bits(unsigned(x)[small], (scales / 8).repeat(256)[:x.size][small])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1000, 1024])
def test_int8_is_poisoned_by_the_block(bad, size):
    x = spectrum(size)
    for place in (300, size - 1):
        broken = x.copy()
        broken[place] = bad
        block = np.arange(size) // 256 == place // 256
        for decode, stored in ((signed, twin.int8_nearest(broken)), (unsigned, None)):
            got, whole = decode(broken), decode(x)
            assert_bits(got[block], twin.value_of(np.full(block.sum(), twin.NAN, np.uint32)))
            assert_bits(got[~block], whole[~block])
            assert stored is None or not stored[:size][block].any()


def test_float64_is_rounded_first():
    x = spectrum(1000).astype(float) * (1 + 1e-9)
    for encode, _ in twin.SLOTS.values():
        numbers = twin.random_numbers(0, 0, 1, 0, x.size)
        np.testing.assert_array_equal(encode(x, numbers), encode(x.astype(np.float32), numbers))
