"""Where slots lie in memory: their alignment decides a fifth of the speed of a step.

Arrays that share their offset within a page compete for the same lines of the cache, and a load just behind a
store to such an offset waits for it.  So array k of a weight is shifted by k + 1 times 9 lines, which keeps all six
(four slots, the average, the accumulator) 9 lines or more from each other and from the weight, and a large one by
whole multiples of 128 KiB too, against the same within huge pages.  Within a line a slot is aligned like its weight,
so that both reach the next line together.
"""

import math

import numpy as np

from optimc._core import address

LINE = 64                   # a cache line, and the widest register
SHIFT = 9 * LINE            # from slot to slot within a page
PAGE = 4096
LARGE = 4 << 20             # bytes from which NumPy asks for huge pages
LARGE_SHIFT = 128 << 10     # from slot to slot within huge pages


def like(weight, k, shape=None):
    """A zeroed array of a weight's dtype, order and shape (or another), to be its slot number `k`."""
    shape = weight.shape if shape is None else shape
    size, at = math.prod(shape) * weight.itemsize, address(weight)
    small, large = size < PAGE, size >= LARGE
    unit = LINE if small else PAGE
    extra = k * LARGE_SHIFT if large else 0
    memory = np.zeros(size + unit + extra, np.uint8)
    shift = at if small else at + (k + 1) * SHIFT
    start = (shift - address(memory)) % unit + extra
    return memory[start:start + size].view(weight.dtype).reshape(
        shape, order="C" if weight.flags.c_contiguous else "F")
