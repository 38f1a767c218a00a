"""Hashes a long run of every case.  Bits are part of the interface, so hashes.txt keeps what a run must give.

The inputs come from integer arithmetic, so they are the same on every machine.  `make record` writes hashes.txt,
after a change that is meant to change bits; test_bits.py compares.
"""

import hashlib

import numpy as np
from cases import DTYPES, exact_cases
from places import TESTS

FILE = TESTS / "kernels" / "hashes.txt"
SIZES = (769, 1, 0, 33, 5000)
STEPS = 300


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


def key(case, dtype):
    return f"{case!r} {dtype.__name__}"


def text():
    """The lines of hashes.txt: each case that has the oracle's bits, in each dtype."""
    return "".join(f"{key(case, dtype)} {digest(case.make(), dtype)}\n" for case in exact_cases() for dtype in DTYPES)


def recorded():
    """The hashes in hashes.txt by case and dtype."""
    return dict(line.rsplit(" ", 1) for line in FILE.read_text().splitlines())
