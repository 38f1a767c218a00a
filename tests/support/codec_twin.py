"""The oracle of narrow storage: every codec and its random numbers in NumPy, one rounding per written operation.

A codec turns a flat float32 array, in the weight's order of memory, into what is stored, and back.  A float64 array
is rounded to float32 first.  Each operation is one IEEE float32 operation, or one of unsigned integers modulo 2^32 or
2^64.  The C codecs must equal this bit for bit.  Nothing here is fast, and nothing here may use optimc.
"""

import numpy as np

BLOCK = 256                     # elements of an int8 scale
WEIGHT = 4                      # the part of a weight itself; the parts of its slots are 0 to 3
NAN = 0x7fc00000
INFINITY = 0x7f800000
TINY = 0x10000000               # bits of 2^-95: a block whose largest element is smaller is stored as zeros
SIGNED_TOP, UNSIGNED_TOP = 61439, 4026531840        # the values of the largest int8 codes, unscaled


def bits_of(x):
    """The bits of float32 values, as uint32."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(x, np.float32).view(np.uint32)


def value_of(bits):
    """The float32 values of uint32 bits."""
    return np.ascontiguousarray(bits, np.uint32).view(np.float32)


def magnitude_of(x):
    """The bits of float32 values without the sign, and the sign as 0 or 1."""
    bits = bits_of(x)
    return bits & 0x7fffffff, bits >> 31


# ------------------------------------------------------------------------------------------- random numbers

def scramble(x):
    """The function of splitmix64, of an int or of a uint64 array."""
    x = (x + 0x9e3779b97f4a7c15) & 0xffffffffffffffff
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 & 0xffffffffffffffff
    x = (x ^ x >> 27) * 0x94d049bb133111eb & 0xffffffffffffffff
    return x ^ x >> 31


def random_numbers(seed, number, t, part, n, first=0):
    """The uint16 numbers of the elements first to first + n - 1 of a weight, at update t: halves of a pair's hash."""
    i = np.arange(first, first + n, dtype=np.uint64)
    pair = i >> 1
    high = pair >> 32
    key = np.full(n, scramble(scramble(scramble(scramble(seed) ^ number) ^ t) ^ part), np.uint64)
    far = high > 0
    key[far] = scramble(key[far] ^ high[far])
    x = pair.astype(np.uint32) * 0x9e3779b9 + key.astype(np.uint32)
    x ^= x >> 16
    x += (key >> 32).astype(np.uint32)
    x *= 0x7feb352d
    x ^= x >> 15
    x *= 0x846ca68b
    x ^= x >> 16
    return np.where(i & 1, x >> 16, x).astype(np.uint16)


# ------------------------------------------------------------------------------------------- 16 bits

def bfloat16_nearest(x):
    """The uint16 codes of the nearest bfloat16 values; ties go to even.  A quiet NaN stays a NaN."""
    a, sign = magnitude_of(x)
    a = np.minimum(a, 0x7fff0000)
    return ((a + 0x7fff + (a >> 16 & 1)) >> 16 | sign << 15).astype(np.uint16)


def bfloat16_random(x, numbers):
    """The uint16 codes of bfloat16 values, rounded up in magnitude as often as the lower bits say."""
    a, sign = magnitude_of(x)
    a = np.minimum(a, 0x7fff0000)
    return ((a + numbers.astype(np.uint32)) >> 16 | sign << 15).astype(np.uint16)


def bfloat16_decode(codes):
    return value_of(codes.astype(np.uint32) << 16)


def float16_nearest(x):
    """The uint16 codes of the nearest IEEE halves; ties go to even.  A NaN keeps the upper bits of its payload."""
    a, sign = magnitude_of(x)
    with np.errstate(all="ignore"):
        codes = value_of(a).astype(np.float16).view(np.uint16)
    return (np.where(a > INFINITY, 0x7e00 | a >> 13 & 0x1ff, codes) | sign << 15).astype(np.uint16)


def float16_value(codes):
    """The float32 values of halves, exactly, signalling NaNs included."""
    a, sign = codes.astype(np.uint32) & 0x7fff, codes.astype(np.uint32) >> 15
    with np.errstate(all="ignore"):
        bits = bits_of(a.astype(np.uint16).view(np.float16))
    return value_of(np.where(a > 0x7c00, INFINITY | (a & 0x3ff) << 13, bits) | sign << 31)


def float16_encode(x):
    """The codes of a float16 weight, and its float32 master."""
    return float16_nearest(x), value_of(bits_of(x))


def float16_decode(codes, master):
    """The master, or the value of the code where someone has written the weight."""
    return value_of(np.where(float16_nearest(master) == codes, bits_of(master), bits_of(float16_value(codes))))


def split_encode(x):
    """The codes of a bfloat16 weight, nearest with ties away from zero, and the int16 rest that makes it exact."""
    a, _ = magnitude_of(x)
    bits = np.where(a > INFINITY, np.uint32(NAN), bits_of(x))
    return ((bits + 0x8000) >> 16).astype(np.uint16), bits.astype(np.uint16).view(np.int16)


def split_decode(codes, rest):
    """A rest below 0 beside a zero, which no encoding gives, counts as 0."""
    rest = np.where((codes & 0x7fff == 0) & (rest < 0), 0, rest).astype(np.int32)
    return value_of((codes.astype(np.uint32) << 16) + rest.view(np.uint32))


# ------------------------------------------------------------------------------------------- int8

def blocks_of(n):
    return -(-n // BLOCK)


def coded_size(n):
    """The bytes of n elements: the codes, zeros up to a multiple of 4, and a float32 scale per block."""
    return (n + 3) // 4 * 4 + 4 * blocks_of(n)


def pack(codes, scales):
    """The flat uint8 array of codes and scales."""
    stored = np.zeros(coded_size(codes.size), np.uint8)
    stored[:codes.size] = codes
    stored[stored.size - 4 * scales.size:] = np.ascontiguousarray(scales, np.float32).view(np.uint8)
    return stored


def unpack(stored, n):
    """The n codes and the scales of a flat uint8 array."""
    assert stored.shape == (coded_size(n),)
    return stored[:n].copy(), stored[stored.size - 4 * blocks_of(n):].copy().view(np.float32)


def in_blocks(x):
    """The elements of a flat array as rows of 256; zeros fill the last one up."""
    rows = np.zeros((blocks_of(x.size), BLOCK), x.dtype)
    rows.reshape(-1)[:x.size] = x
    return rows


def scaled(x, top):
    """The companded bits of |x| in rows, bits(|x| / scale + 1), and the scale of each row."""
    a = in_blocks(magnitude_of(x)[0])
    largest = a.max(axis=1)
    tiny, wild = largest < TINY, largest >= INFINITY
    with np.errstate(all="ignore"):
        scales = np.where(tiny, np.float32(0), value_of(largest) / np.float32(top))
        inverse = np.where(tiny, np.float32(0), np.float32(top) / value_of(largest))
        companded = value_of(a) * inverse[:, None] + np.float32(1)
    scales[wild] = value_of([NAN])
    return bits_of(companded), scales


def coded(rows, scales, n):
    """The flat array of codes in rows; the codes of a block whose scale is NaN are 0."""
    return pack(np.where(np.isnan(scales)[:, None], 0, rows).reshape(-1)[:n].astype(np.uint8), scales)


def int8_nearest(x):
    """The flat array of a signed slot: a sign and 7 bits, rounded to nearest."""
    companded, scales = scaled(x, SIGNED_TOP)
    c = ((companded + 0x80000) >> 20) - 0x3f8
    return coded(in_blocks(magnitude_of(x)[1]) << 7 | c, scales, x.size)


def int8_random(x, numbers):
    """The flat array of an unsigned slot: 8 bits, at least 1, rounded at random."""
    companded, scales = scaled(x, UNSIGNED_TOP)
    c = ((companded + (in_blocks(numbers).astype(np.uint32) << 4)) >> 20) - 0x3f8
    return coded(np.maximum(c, 1), scales, x.size)


def expanded(c, scales):
    """The values of codes without a sign."""
    with np.errstate(all="ignore"):
        return (value_of((c.astype(np.uint32) << 20) + 0x3f800000) - np.float32(1)) * scales.repeat(BLOCK)[:c.size]


def int8_signed_decode(stored, n):
    codes, scales = unpack(stored, n)
    return value_of(bits_of(expanded(codes & 0x7f, scales)) ^ codes.astype(np.uint32) >> 7 << 31)


def int8_unsigned_decode(stored, n):
    return expanded(*unpack(stored, n))


# ------------------------------------------------------------------------------------------- tables

#: (storage, rounding of the slot) -> encode(x, numbers) and decode(stored, n)
SLOTS = {
    ("bfloat16", "NEAREST"): (lambda x, numbers: bfloat16_nearest(x), lambda stored, n: bfloat16_decode(stored)),
    ("bfloat16", "RANDOM"): (bfloat16_random, lambda stored, n: bfloat16_decode(stored)),
    ("float16", "NEAREST"): (lambda x, numbers: float16_nearest(x), lambda stored, n: float16_value(stored)),
    ("int8", "NEAREST"): (lambda x, numbers: int8_nearest(x), int8_signed_decode),
    ("int8", "RANDOM"): (int8_random, int8_unsigned_decode),
}

#: (dtype, whether a master is kept, or "to nearest") -> encode(x, numbers), which returns codes and master or None;
#: and decode(codes, master)
WEIGHTS = {
    ("bfloat16", True): (lambda x, numbers: split_encode(x), split_decode),
    ("bfloat16", False): (lambda x, numbers: (bfloat16_random(x, numbers), None),
                          lambda codes, master: bfloat16_decode(codes)),
    ("bfloat16", "to nearest"): (lambda x, numbers: (bfloat16_nearest(x), None),
                                 lambda codes, master: bfloat16_decode(codes)),
    ("float16", True): (lambda x, numbers: float16_encode(x), float16_decode),
    ("float16", "to nearest"): (lambda x, numbers: (float16_nearest(x), None),
                                lambda codes, master: float16_value(codes)),
}


def fresh(storage, n):
    """A slot before the first update; it decodes to zeros."""
    return np.zeros(coded_size(n), np.uint8) if storage == "int8" else np.zeros(n, np.uint16)
