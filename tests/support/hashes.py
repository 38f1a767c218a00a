"""Hashes a long run of every case.  Bits are part of the interface, so hashes.txt keeps what a run must give.

The inputs come from integer arithmetic, so they are the same on every machine.  `make record` writes hashes.txt,
after a change that is meant to change bits; test_bits.py compares.
"""

import hashlib

import numpy as np
from cases import DTYPES, exact_cases
from places import TESTS
from stored import Way, made, ways_of

FILE = TESTS / "kernels" / "hashes.txt"
SIZES = (769, 1, 0, 33, 5000)
STEPS = 300
#: ways to store of which a shorter run is hashed, too; together they reach every storage type in each of its uses
STORED, STORED_SIZES, STORED_STEPS = [
    Way("float32", "bfloat16"), Way("float64", "int8"), Way("bfloat16", "mixed"), Way("bfloat16 at random", "int8"),
    Way("float16", "as numbers")], (769, 1, 0, 33, 300), 60


def numbers(n, seed):
    """n numbers in [-0.5, 0.5) from a Weyl sequence mixed by multiplication: exact in double."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(seed * 1_000_003)) * np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(32)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0 ** -53 - 0.5


def digest(optimizer, dtype, place=lambda array: array, split=lambda arrays: arrays):
    """The hash of weights and slots after the run.  `place` and `split` move or cut the arrays."""
    weights = [place(numbers(n, 1 + i).astype(dtype)) for i, n in enumerate(SIZES)]
    for step in range(STEPS):
        grads = [place(numbers(n, 100 + step * len(SIZES) + i).astype(dtype)) * dtype(2.0 ** (step % 7 - 3))
                 for i, n in enumerate(SIZES)]
        optimizer.apply(split(grads), split(weights))
    sha = hashlib.sha256()
    for w in weights:
        sha.update(w.tobytes())
    for name, arrays in optimizer._slots.items():
        for array in arrays:
            if array is not None and name not in optimizer._scratch_slots:
                sha.update(array.tobytes())
    return sha.hexdigest()


def stored_digest(case, way, isa):
    """The hash of all that an optimizer holds after a run in fewer bits."""
    optimizer, weights = made(case, way, isa, [numbers(n, 1 + i).astype(way.dtype)
                                               for i, n in enumerate(STORED_SIZES)], seed=11)
    for step in range(STORED_STEPS):
        optimizer.apply([numbers(n, 100 + step * len(STORED_SIZES) + i).astype(np.float32) * np.float32(
            2.0 ** (step % 7 - 3)) for i, n in enumerate(STORED_SIZES)], weights)
    sha = hashlib.sha256()
    for array in [*weights, *optimizer.state_dict()["tensors"].values()]:
        sha.update(array.tobytes())
    return sha.hexdigest()


def stored_cases():
    """Each case that has the oracle's bits, in each of the ways that differ for it."""
    return [(case, way) for case in exact_cases() for way in ways_of(case) if way in STORED]


def key(case, stored):
    """The begin of a line: of a case in a dtype, or stored in a way."""
    if isinstance(stored, Way):
        return f"{case!r} {stored.weights.replace(' ', '_')} {stored.slots.replace(' ', '_')}"
    return f"{case!r} {stored.__name__}"


def text():
    """The lines of hashes.txt: each case that has the oracle's bits, in each dtype, and in ways to store."""
    return "".join([*(f"{key(case, dtype)} {digest(case.make(), dtype)}\n" for case in exact_cases()
                      for dtype in DTYPES),
                    *(f"{key(case, way)} {stored_digest(case, way, 'baseline')}\n" for case, way in stored_cases())])


def recorded():
    """The hashes in hashes.txt by case and dtype."""
    return dict(line.rsplit(" ", 1) for line in FILE.read_text().splitlines())
