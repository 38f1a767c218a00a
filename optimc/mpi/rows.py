"""Gradients by rows in a step: the rows of all ranks go to every rank, and the rows that it changes come back.

A rank's piece of a weight has rows too, if the weight is cut between rows; else they are equal parts of rows
(`Layout.shape_of`).  Nothing is decided here, as in exchange.py.  Next: sharded.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from optimc._core import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optimc._types import Array
    from optimc.mpi.exchange import Exchange
    from optimc.mpi.layout import Layout
    from optimc.mpi.team import Call, Team

    Given = dict[int, tuple[Array, Array]]      # by weight: indices, and values of a row for each

#: of the elements of a message, by their bytes
KINDS: dict[int, tuple[Any, Any]] = {
    2: (np.int16, MPI.INT16_T), 4: (np.int32, MPI.INT32_T), 8: (np.int64, MPI.INT64_T)}


def copied(layout: Layout, rows: Sequence[Rows | None]) -> Given:
    """Copies of a rank's gradients by rows, in the types in which they travel and are added up."""
    given: Given = {}
    for i, one in enumerate(rows):
        if one is not None:
            shape = len(one.indices), math.prod(layout.likes[i].shape[1:])
            with np.errstate(all="ignore"):         # C converts without warnings, too
                values = np.array(one.values, layout.likes[i].real.dtype, order="C").reshape(shape)
            given[i] = np.array(one.indices, np.int64), values
    return given


def of_all_ranks(call: Call, layout: Layout, given: Given, average: bool) -> Iterator[tuple[int, Rows]]:
    """Yields the rows of all ranks, in the order of the ranks, that lie in this rank's piece of each weight.

    The ranks have agreed what they give.  Errors are this rank's refusal, up to the next meeting.

    Args:
        average: whether the sum of the values of a row is divided by the number of ranks.
    """
    everywhere = _gathered(call, given)
    call.reopen("take the rows of all ranks")
    pieces = layout.pieces(call.team.rank)
    for i, (indices, values) in everywhere.items():
        low, high = pieces[i]
        _, *inner = layout.shape_of(i, low, high)
        indices, values = _within(indices, values, low, high, math.prod(inner))
        if average and call.team.size > 1:
            indices, values = _means(indices, values, call.team.size)
        yield i, Rows(indices, values.reshape(-1, *inner))


def _gathered(call: Call, given: Given) -> Given:
    """The rows of all ranks.  Ends with an agreement that there is memory for them."""
    counts = call.team.gather(np.array([len(indices) for indices, _ in given.values()], np.int64))
    call.reopen("make room for rows")
    rooms = {i: (np.empty(n, np.int64), np.empty((n, values.shape[1]), values.dtype))
             for n, (i, (_, values)) in zip(counts.sum(axis=0).tolist(), given.items(), strict=True)}
    call.agree()
    for n, (i, mine) in zip(counts.T, given.items(), strict=True):
        for part, room in zip(mine, rooms[i], strict=True):
            _gather(call.team, part, room, n * math.prod(part.shape[1:]))
    return rooms


def _within(indices: Array, values: Array, low: int, high: int, row: int) -> tuple[Array, Array]:
    """The rows, or their parts of `row` elements, that are elements low .. high - 1 of a weight, counted from low."""
    width = values.shape[1]
    if low == high:
        return indices[:0], np.empty((0, row), values.dtype)
    inside = ((indices + 1) * width > low) & (indices * width < high)
    indices, values = indices[inside], values[inside]
    if row < width:
        parts = width // row
        indices = (indices[:, None] * parts + np.arange(parts)).reshape(-1)
        inside = (indices >= low // row) & (indices < high // row)
        indices, values = indices[inside], values.reshape(-1, row)[inside]
    return indices - low // row, values


def _means(indices: Array, values: Array, ranks: int) -> tuple[Array, Array]:
    """Each row once: its values, added up in order of occurrence, then divided."""
    rows, first, place = np.unique(indices, return_index=True, return_inverse=True)
    sums, again = values[first], np.ones(len(indices), bool)
    again[first] = False
    with np.errstate(all="ignore"):                 # C adds without warnings, too
        np.add.at(sums, place[again], values[again])
        sums /= ranks
    return rows, sums


def spread(exchange: Exchange, changed: Mapping[int, Array]) -> None:
    """Sends rows of this rank's weights to all ranks, and receives theirs.

    Args:
        exchange: of all weights.
        changed: by weight, the numbers of the rows in this rank's piece.
    """
    team, layout = exchange.team, exchange.layout
    counts = team.gather(np.array([len(rows) for rows in changed.values()], np.int64))
    for n, (i, rows) in zip(counts.T, changed.items(), strict=True):
        views = [_in_rows(exchange, i, rank) for rank in range(team.size)]
        sizes = n * [view.shape[1] for view in views]
        numbers = np.empty(n.sum(), rows.dtype)
        elements = np.empty(sizes.sum(), layout.likes[i].dtype)
        _gather(team, rows, numbers, n)
        _gather(team, views[team.rank][rows], elements, sizes)
        ends = zip(np.cumsum(n), np.cumsum(sizes), n, sizes, strict=True)
        for rank, (last, end, count, size) in enumerate(ends):
            if rank != team.rank and size:
                views[rank][numbers[last - count:last]] = elements[end - size:end].reshape(count, -1)


def _in_rows(exchange: Exchange, i: int, rank: int) -> Array:
    """A rank's piece of weight i, in rows."""
    low, high = exchange.layout.pieces(rank)[i]
    row = math.prod(exchange.layout.shape_of(i, low, high)[1:])
    return exchange.weights[i][low:high].reshape(-1, row)


def _gather(team: Team, mine: Array, room: Array, counts: Array) -> None:
    """Fills a room with the arrays of all ranks; `counts` are their elements."""
    bits, kind = KINDS[room.itemsize]
    team.wait(team.comm.Iallgatherv([mine.view(bits), kind], [room.view(bits), counts.tolist(), kind]))
