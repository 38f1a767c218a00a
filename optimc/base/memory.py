"""Where slots lie in memory: their alignment decides a fifth of the speed of a step.

Arrays that share their offset within a page compete for the same lines of the cache, and a load just behind a
store to such an offset waits for it.  So array k of a weight is shifted by k + 1 times 9 lines, which keeps all six
(four slots, the average, the accumulator) 9 lines or more from each other and from the weight, and a large one by
whole multiples of 128 KiB too, against the same within huge pages.  Within a line a slot is aligned like its weight,
so that both reach the next line together.
"""

import numpy as np

from optimc._core import address
from optimc.base.storage import like_of

LINE = 64                   # a cache line, and the widest register
SHIFT = 9 * LINE            # from slot to slot within a page
PAGE = 4096
LARGE = 4 << 20             # bytes from which NumPy asks for huge pages
HUGE = 2 << 20              # one of them
LARGE_SHIFT = 128 << 10     # from slot to slot within huge pages


def like(weights, k, likes=None):
    """Zeroed arrays like the weights (or like others, one `Like` per weight), to be their slots number `k`.

    They lie in one block, in the order of their weights: what is small shares lines and pages, and what is large
    together comes to lie on huge pages, which NumPy asks for.  Such slots begin with the first huge page of their
    block, k times 128 KiB into it, for which the block is up to 2 MiB longer.
    """
    places, room = [], 0
    for weight, wanted in zip(weights, likes or map(like_of, weights), strict=True):
        size = wanted.nbytes
        unit = LINE if size < PAGE else PAGE
        shift = 0 if size < PAGE else (k + 1) * SHIFT
        places.append((wanted, unit, address(weight) + shift))
        room += size + unit
    first = HUGE + k * LARGE_SHIFT if room >= LARGE else 0
    memory = np.zeros(room + first, np.uint8)
    start, arrays = address(memory) + max(0, first - address(memory) % HUGE), []
    for wanted, unit, place in places:
        start += (place - start) % unit
        at = start - address(memory)
        arrays.append(memory[at:at + wanted.nbytes].view(wanted.dtype).reshape(wanted.shape, order=wanted.order))
        start += wanted.nbytes
    return arrays
