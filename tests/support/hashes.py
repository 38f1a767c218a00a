"""Bits are part of the interface: the hash of a long run of every case, kept in hashes.txt.

The inputs come from integer arithmetic, so they are the same on every machine.  After a change that is
meant to change bits:  python tests/support/hashes.py > tests/kernels/hashes.txt
"""

import hashlib

import numpy as np
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
            if array is not None and name not in optimizer.scratch_slots:
                sha.update(array.tobytes())
    return sha.hexdigest()


def recorded():
    return dict(line.rsplit(" ", 1) for line in FILE.read_text().splitlines())


if __name__ == "__main__":
    from cases import DTYPES, exact_cases
    for case in exact_cases():
        for dtype in DTYPES:
            print(f"{case!r} {dtype.__name__} {digest(case.make(), dtype)}")
