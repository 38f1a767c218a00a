"""Which elements of the weights are whose, and in which buckets they travel.

Pure geometry: nothing here needs MPI, memory of weights, or an optimizer.  benchmarks/mpi_reckoning.py simulates
steps with it.  Next: exchange.py, which sends the buckets.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optimc import _core
from optimc.base.storage import Like, type_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from typing import Any

    from optimc._types import Array, Shape

# bytes of a bucket, and of each rank's part in it, at least (docs/explain/scaling.md)
BUCKET, PART = 4 << 20, 64 << 10
#: where weights may be cut, each allowing less, and how many elements apart the places in a weight are
GRAINS = {"elements": 1, "codes": _core.CODE_BLOCK, "blocks": _core.SUM_BLOCK}
CUTS = (*GRAINS, "tensors")
#: cuts move to the ends of rows if a share has so many rows, or multiples of rows that are multiples of the grain
ROWS = 256


class Segment(NamedTuple):
    """Elements low .. high - 1 of weight i, in the order of its memory; they begin at `at` in a message or vector."""

    i: int
    low: int
    high: int
    at: int


class Layout:
    """Which elements of the weights are whose.

    The weights of one dtype, each in the order of its memory, are one vector, a space.  A space is cut once per rank,
    where all shares would be equal or as near to it as a cut may be.  A weight of many rows is cut between two rows,
    for gradients by rows.

    Args:
        likes: a `Like` per weight.
        ranks: how many.
        cut: where cuts may be.  "elements": between any two.  "codes": between the blocks that share a scale, and
            whose random numbers are made at once.  "blocks": between the blocks whose squares are summed as one, so
            that norms have the bits that they have in one process.  "tensors": between weights only.
    """

    likes: tuple[Like, ...]
    ranks: int
    cut: str

    def __init__(self, likes: Iterable[Like], ranks: int, cut: str) -> None:
        self.likes, self.ranks, self.cut = tuple(likes), ranks, cut
        #: dtype -> (weights, where each begins, where each rank begins)
        self.spaces: dict[np.dtype[Any], tuple[list[int], Array, list[int]]] = {}
        for dtype in sorted({like.dtype for like in self.likes}, key=lambda dtype: type_of(dtype).core):
            weights = [i for i, like in enumerate(self.likes) if like.dtype == dtype]
            starts = np.cumsum([0, *(self.likes[i].size for i in weights)])
            bounds = [self._place(weights, starts, int(starts[-1]) * rank // ranks) for rank in range(ranks + 1)]
            self.spaces[dtype] = weights, starts, bounds
        #: that whose shares an optimizer steps: of all weights
        self.whole = self

    def _place(self, weights: Sequence[int], starts: Array, ideal: int) -> int:
        """The place nearest to the ideal one where a cut may be."""
        if ideal == starts[-1]:
            return ideal
        grain = GRAINS.get(self.cut, int(starts[-1]))
        rows = math.lcm(grain, self.width(weights[int(np.searchsorted(starts, ideal, "right")) - 1]) or 1)
        low, high = _around(starts, ideal, rows if rows * ROWS * self.ranks <= starts[-1] else grain)
        return low if ideal - low <= high - ideal else high

    def width(self, i: int) -> int:
        """The elements of a row of weight i; of a weight that has none, 1."""
        like = self.likes[i]
        return math.prod(like.shape[1:]) if like.order == "C" else 1

    def without(self, some: Collection[int]) -> Layout:
        """The layout of the other weights, each with the pieces that it has here."""
        others = copy.copy(self)
        others.spaces = {}
        for dtype, (weights, starts, bounds) in self.spaces.items():
            kept = [(i, int(start)) for i, start in zip(weights, starts, strict=False) if i not in some]
            others.spaces[dtype] = (
                [i for i, _ in kept], np.cumsum([0, *(self.likes[i].size for i, _ in kept)]),
                [sum(min(max(bound - start, 0), self.likes[i].size) for i, start in kept) for bound in bounds])
        return others

    def share(self, dtype: np.dtype[Any], rank: int) -> int:
        """How many elements of a space are a rank's."""
        bounds = self.spaces[dtype][2]
        return bounds[rank + 1] - bounds[rank]

    def parts(self, dtype: np.dtype[Any], rank: int, most: int) -> list[int]:
        """Where the parts of a rank's share of a space begin, and the share's end.

        A part has at most so many elements, or a block.  Blocks that a step must not divide are whole.
        """
        _, starts, bounds = self.spaces[dtype]
        grain = 1 if self.cut == "elements" else _core.CODE_BLOCK
        begin, last = bounds[rank:rank + 2]
        places = [begin]
        while last - begin > most:
            end, _ = _around(starts, begin + most, grain)
            begin = end if end > begin else _around(starts, begin, grain)[1]
            places.append(begin)
        return [place - bounds[rank] for place in (*places, *[last] * (last > begin))]

    def segments(self, dtype: np.dtype[Any], rank: int, begin: int = 0, end: int | None = None) -> list[Segment]:
        """Elements begin .. end - 1 of a rank's share of a space, weight by weight; `at` counts from begin."""
        weights, starts, bounds = self.spaces[dtype]
        first = bounds[rank] + begin
        last = bounds[rank + 1] if end is None else min(bounds[rank] + end, bounds[rank + 1])
        k = int(np.searchsorted(starts, first, "right")) - 1
        found = []
        while k < len(weights) and starts[k] < last:
            low, high = max(first, int(starts[k])), min(last, int(starts[k + 1]))
            if low < high:
                found.append(Segment(weights[k], low - int(starts[k]), high - int(starts[k]), low - first))
            k += 1
        return found

    def pieces(self, rank: int) -> list[tuple[int, int]]:
        """A rank's piece of each weight: a (low, high) per weight, (0, 0) where it has none."""
        pieces = [(0, 0)] * len(self.likes)
        for dtype in self.spaces:
            for i, low, high, _ in self.segments(dtype, rank):
                pieces[i] = low, high
        return pieces

    def runs(self, dtype: np.dtype[Any], rank: int, segments: Iterable[Segment]) -> list[tuple[int, int]]:
        """The runs begin .. end - 1 of segments of a rank in its share of the whole layout."""
        places = {i: at - low for i, low, _, at in self.whole.segments(dtype, rank)}
        runs: list[tuple[int, int]] = []
        for i, low, high, _ in segments:
            begin = runs.pop()[0] if runs and runs[-1][1] == places[i] + low else places[i] + low
            runs.append((begin, places[i] + high))
        return runs

    def likes_of(self, rank: int) -> tuple[Like, ...]:
        """What a rank's piece of each weight is like, as its optimizer knows it."""
        return tuple(like if self.cut == "tensors" and high > low else Like(self.shape_of(i, low, high), like.dtype)
                     for i, (like, (low, high)) in enumerate(zip(self.likes, self.pieces(rank), strict=True)))

    def shape_of(self, i: int, low: int, high: int) -> Shape:
        """The shape of a piece of weight i as its optimizer knows it: rows, or parts of rows if it is cut within one;
        a vector if they would have one element."""
        if self.cut == "tensors" and high > low:
            return self.likes[i].shape
        row = math.gcd(self.width(i), low, high) if high > low else 1
        return (high - low,) if row == 1 else ((high - low) // row, row)

    def blocks(self) -> Array:
        """How many blocks of each weight, whose squares are summed as one, each rank has: a row per rank."""
        sizes = [[high - low for low, high in self.pieces(rank)] for rank in range(self.ranks)]
        return -(-np.array(sizes, np.int64) // _core.SUM_BLOCK)

    def owned(self, rank: int) -> list[list[int]]:
        """A rank's segments as a checkpoint lists them."""
        return [[i, low, high] for i, (low, high) in enumerate(self.pieces(rank)) if low < high]

    def piece(self, i: int, low: int, high: int, vector: Array) -> Array:
        """A rank's piece of weight i, or of an array like it, from all its elements in the order of memory."""
        return self.in_shape(i, low, vector[low:high])

    def in_shape(self, i: int, low: int, part: Array) -> Array:
        """A rank's piece of weight i, a vector of its elements from `low` on, as its optimizer knows it."""
        order = self.likes[i].order if self.cut == "tensors" else "C"
        return part.reshape(self.shape_of(i, low, low + part.size), order=order)

    def piece_of(self, i: int, low: int, high: int, array: Array | None) -> Array | None:
        """A rank's piece of an array that belongs to weight i: a slot, or a factor of Adafactor's; of None, None."""
        like = self.likes[i]
        if array is None or array.shape != like.shape:
            return array if high > low else None
        return self.piece(i, low, high, np.reshape(array, -1, order=like.order))


def _around(starts: Array, place: int, grain: int) -> tuple[int, int]:
    """The place where a block of the weight at this place begins, and where it ends."""
    k = int(np.searchsorted(starts, place, "right")) - 1
    low = int(starts[k])
    low += (place - low) // grain * grain
    return low, min(low + grain, int(starts[k + 1]))


def flat(array: Array) -> Array:
    """The elements of an array as a vector, in the order of its memory."""
    return array.reshape(-1, order="A")


def block_order(blocks: Array) -> Array:
    """Sorts the sums of blocks, which come rank by rank, by weight: the order in which one process adds them up.

    Args:
        blocks: how many blocks of each weight each rank has: a row per rank.

    Returns:
        The position of each sum among those that come: first those of weight 0, from rank 0 on, then of weight 1.

    Example, two ranks and three weights: rank 0 sends sums 0 and 1 of weight 0, 2 of weight 1 and 3 of weight 2;
    rank 1 sends sum 4 of weight 0, and 5 and 6 of weight 2.
        >>> block_order(np.array([[2, 1, 1], [1, 0, 2]])).tolist()
        [0, 1, 4, 2, 3, 5, 6]
    """
    ends = np.cumsum(blocks).reshape(blocks.shape)
    order: list[int] = []
    for weight in range(blocks.shape[1]):
        for end, n in zip(ends[:, weight].tolist(), blocks[:, weight].tolist(), strict=True):
            order += range(end - n, end)
    return np.array(order, np.int64)


class Bucket(NamedTuple):
    """A part of every rank's share that travels as one message."""

    dtype: np.dtype[Any]
    counts: list[int]               # elements, by rank
    starts: list[int]               # of each rank's part, in the message
    begin: int                      # of this rank's part, in its share
    end: int
    segments: list[list[Segment]]   # of each rank's part
    runs: list[tuple[int, int]]     # of this rank's part, in its share of all weights

    @property
    def real(self) -> np.dtype[Any]:
        """The type in which gradients are added up."""
        return type_of(self.dtype).real

    @property
    def size(self) -> int:
        """Elements of the message."""
        return sum(self.counts)

    @property
    def own(self) -> int:
        """Elements of this rank's part."""
        return self.end - self.begin


def default_bucket(ranks: int) -> int:
    """Bytes of a bucket."""
    return max(BUCKET, PART * ranks)


def buckets(layout: Layout, rank: int, most: int) -> list[Bucket]:
    """Cuts all shares into buckets of at most so many bytes, or an element or block of each rank."""
    found = []
    for dtype in layout.spaces:
        width = max(1, most // type_of(dtype).real.itemsize // layout.ranks)
        parts = [layout.parts(dtype, r, width) for r in range(layout.ranks)]
        most_parts = max(map(len, parts))
        parts = [places + places[-1:] * (most_parts - len(places)) for places in parts]
        for spans in zip(*map(itertools.pairwise, parts), strict=True):
            counts, (begin, end) = [high - low for low, high in spans], spans[rank]
            segments = [layout.segments(dtype, r, *span) for r, span in enumerate(spans)]
            found.append(Bucket(dtype, counts, [0, *itertools.accumulate(counts)][:-1], begin, end, segments,
                                layout.runs(dtype, rank, segments[rank])))
    return found
