"""Memory for slots: their alignment decides a fifth of the speed of a step.

Arrays with the same offset within a page compete for the same cache lines, and a load just after a store to such an
offset waits for the store.  Array k of a weight is therefore shifted by k + 1 times 9 lines.  All six arrays (four
slots, the average, the accumulator) are then at least 9 lines from each other and from the weight.  A large array is
also shifted by a multiple of 128 KiB, because the same happens within huge pages.  Within a line a slot is aligned
like its weight, so that both reach the next line together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optimc._core import address
from optimc.base.storage import like_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optimc._types import Array
    from optimc.base.storage import Like

LINE = 64                   # a cache line, and the widest register
SHIFT = 9 * LINE            # from slot to slot within a page
PAGE = 4096
SCALE = 4                   # bytes of a scale of codes of 8 bits, which lies behind them
LARGE = 4 << 20             # bytes from which NumPy asks for huge pages
HUGE = 2 << 20              # one of them
LARGE_SHIFT = 128 << 10     # from slot to slot within huge pages


def shift(k: int, size: int) -> int:
    """The bytes by which array number `k` of a weight is shifted within a page, and if it is large a huge page."""
    in_page = (k + 1) * SHIFT if size >= PAGE else 0
    return in_page % PAGE + (k * LARGE_SHIFT if size >= LARGE else 0)


def like(weights: Sequence[Array], k: int, likes: Sequence[Like] | None = None) -> list[Array]:
    """Zeroed arrays like the weights (or like `likes`, one `Like` per weight), to be their slots number `k`.

    All arrays are in one block, in the order of their weights.  Small arrays share lines and pages.  A large block
    gets huge pages, which NumPy asks for.  Its first slot begins k times 128 KiB into the first huge page, so the
    block is up to 2 MiB longer than the arrays.
    """
    places, room = [], 0
    for weight, wanted in zip(weights, likes or map(like_of, weights), strict=True):
        size = wanted.nbytes
        unit = LINE if size < PAGE else PAGE
        place = address(weight)
        places.append((wanted, unit, place - place % max(wanted.dtype.itemsize, SCALE) + shift(k, size)))
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
