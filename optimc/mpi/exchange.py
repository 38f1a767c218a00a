"""What travels in a step, bucket by bucket: gradients to the ranks whose share they are, new weights to all.

While one bucket is on its way the next one is packed, stepped or unpacked, so each direction has two rooms in turn.
Nothing is decided here, and nothing is checked: the ranks have agreed before, within a call (team.py), and layout.py
says what is in a bucket.  Next: sharded.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from optimc.base.storage import FLOAT32, FLOAT64, type_of
from optimc.mpi.layout import block_order, buckets, flat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from optimc._types import Array
    from optimc.mpi.layout import Bucket, Layout
    from optimc.mpi.team import Team

    Read = Callable[[int, Array, int], object]

#: of gradients; weights travel as their bytes
KINDS: dict[np.dtype[Any], MPI.Datatype] = {FLOAT32: MPI.FLOAT, FLOAT64: MPI.DOUBLE}


class Exchange:
    """Sends and receives the buckets of a step.

    Args:
        team: the ranks.
        layout: says whose elements are whose.
        weights: all weights, whole; what other ranks send is written into them.
        bucket_bytes: a message has at most so many bytes, or one element or block of each rank.
        deterministic: whether gradients are added up here, in the order of the ranks, and not by the MPI library.

    Attributes:
        buckets: what travels as one message, in order.
        layout, weights: as given; the weights as vectors, in the order of their memory.
        blocks: how many sums of squares each rank has of each weight: a row per rank.
        grads: this rank's piece of the sum of each gradient, in the shape in which its optimizer knows the weight.
    """

    team: Team
    deterministic: bool
    layout: Layout
    buckets: list[Bucket]
    weights: list[Array]
    blocks: Array
    grads: list[Array]

    def __init__(self, team: Team, layout: Layout, weights: Sequence[Array], bucket_bytes: int,
                 deterministic: bool) -> None:
        self.team, self.layout, self.deterministic = team, layout, deterministic
        self._bucket_bytes = bucket_bytes
        self._others: tuple[frozenset[int], Exchange] | None = None
        self.buckets = buckets(layout, team.rank, bucket_bytes)
        self.weights = [flat(weight) for weight in weights]
        self.blocks = layout.blocks()
        self._block_order = block_order(self.blocks)
        self._sums = {dtype: np.zeros(layout.share(dtype, team.rank), type_of(dtype).real)
                      for dtype in layout.spaces}
        self.grads = [np.empty(0, like.real.dtype) for like in layout.likes]
        for dtype, sums in self._sums.items():
            for i, low, high, at in layout.segments(dtype, team.rank):
                self.grads[i] = layout.in_shape(i, low, sums[at:at + high - low])
        rows = [team.size * bucket.own * bucket.real.itemsize for bucket in self.buckets] if deterministic else []
        self._leaving = _rooms([bucket.size * bucket.real.itemsize for bucket in self.buckets])     # gradients
        self._rows = _rooms(rows)                                               # gradients that come, a row per rank
        self._returning = _rooms([bucket.size * bucket.dtype.itemsize for bucket in self.buckets])  # weights

    def without(self, some: frozenset[int]) -> Exchange:
        """The exchange of the other weights alone: this one if there are none, else one that is kept."""
        if not some:
            return self
        if not self._others or self._others[0] != some:
            self._others = some, Exchange(self.team, self.layout.without(some), self.weights, self._bucket_bytes,
                                          self.deterministic)
        return self._others[1]

    # ------------------------------------------------------------------------------- gradients

    def reduced(self, read: Read, taken: Sequence[bool], average: bool) -> Iterator[Bucket]:
        """Yields the buckets in order, each when its gradients are there; the next one is on its way by then.

        Args:
            read: called with a weight's number, a vector and an element; fills the vector with the gradient's
                elements from there on.
            taken: which weights have a gradient.
            average: whether the sums are divided by the number of ranks.
        """
        before = None
        for k, bucket in enumerate(self.buckets):
            coming = bucket, *self._send_gradients(bucket, k % 2, read, taken)
            if before:
                yield self._receive_gradients(*before, average)
            before = coming
        if before:
            yield self._receive_gradients(*before, average)

    def _send_gradients(self, bucket: Bucket, k: int, read: Read,
                        taken: Sequence[bool]) -> tuple[MPI.Request, Array | None]:
        """Sends every rank its part of a bucket's gradients; returns the request, and where rows come in."""
        message, kind = _view(self._leaving[k], bucket.real, bucket.size), KINDS[bucket.real]
        for start, segments in zip(bucket.starts, bucket.segments, strict=True):
            for i, low, high, at in segments:
                to = message[start + at:start + at + high - low]
                if taken[i]:
                    read(i, to, low)
                else:
                    to.fill(0)
        n, size, comm = bucket.own, self.team.size, self.team.comm
        if not self.deterministic:
            own = self._sums[bucket.dtype][bucket.begin:bucket.end]
            return comm.Ireduce_scatter([message, kind], [own, kind], bucket.counts, MPI.SUM), None
        rows = _view(self._rows[k], bucket.real, n * size)
        return comm.Ialltoallv([message, bucket.counts, bucket.starts, kind],
                               [rows, [n] * size, [n * rank for rank in range(size)], kind]), rows

    def _receive_gradients(self, bucket: Bucket, request: MPI.Request, rows: Array | None, average: bool) -> Bucket:
        """Waits for a bucket's gradients and adds them up, if the MPI library has not."""
        self.team.wait(request)
        own = self._sums[bucket.dtype][bucket.begin:bucket.end]
        with np.errstate(all="ignore"):             # C adds without warnings, too
            if rows is not None:
                first, *others = rows.reshape(self.team.size, -1)
                np.copyto(own, first)
                for row in others:
                    own += row
            if average and self.team.size > 1:
                own /= self.team.size
        return bucket

    def sums_of_all(self, own: Array) -> Array:
        """The sums of squares of all ranks, weight by weight, from those of this rank."""
        counts = self.blocks.sum(axis=1).tolist()
        sums = np.empty(sum(counts))
        self.team.wait(self.team.comm.Iallgatherv([own, MPI.DOUBLE], [sums, counts, MPI.DOUBLE]))
        return sums[self._block_order]

    # ------------------------------------------------------------------------------- weights

    def spread(self, some: Iterable[Bucket], step: Callable[[Bucket], object] | None = None) -> None:
        """Sends this rank's weights to all ranks, and receives theirs.

        Args:
            some: buckets, in order.
            step: called with each bucket before its weights are sent, while those of the one before travel.
        """
        before = None
        for k, bucket in enumerate(some):
            if step:
                step(bucket)
            coming = bucket, *self._send_weights(bucket, k % 2)
            if before:
                self._receive_weights(*before)
            before = coming
        if before:
            self._receive_weights(*before)

    def _send_weights(self, bucket: Bucket, k: int) -> tuple[MPI.Request, Array]:
        rank, width = self.team.rank, bucket.dtype.itemsize
        message = _view(self._returning[k], bucket.dtype, bucket.size)
        for i, low, high, at in bucket.segments[rank]:
            start = bucket.starts[rank] + at
            message[start:start + high - low] = self.weights[i][low:high]
        counts, starts = ([n * width for n in numbers] for numbers in (bucket.counts, bucket.starts))
        return self.team.comm.Iallgatherv(MPI.IN_PLACE, [message.view(np.uint8), counts, starts, MPI.BYTE]), message

    def _receive_weights(self, bucket: Bucket, request: MPI.Request, message: Array) -> None:
        self.team.wait(request)
        for rank, segments in enumerate(bucket.segments):
            for i, low, high, at in segments if rank != self.team.rank else ():
                start = bucket.starts[rank] + at
                self.weights[i][low:high] = message[start:start + high - low]


def _rooms(sizes: Sequence[int]) -> list[Array]:
    """Two rooms, each for the largest of some messages, in bytes."""
    return [np.empty(max(sizes, default=0), np.uint8) for _ in range(2)]


def _view(room: Array, dtype: np.dtype[Any], size: int) -> Array:
    return room[:size * dtype.itemsize].view(dtype)
