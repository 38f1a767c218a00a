"""Gradients by rows that other libraries make: what they stand for, as `Rows`.

The step takes `Rows` alone; csrc/python/match.c comes here for what is neither an array nor that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimc._core import Rows

if TYPE_CHECKING:
    from optimc._types import Array
    from optimc.base.storage import Like


def rows_of(gradient: Any, weight: Array, label: str) -> Rows | None:
    """The rows that an object stands for, None if for none.

    Args:
        gradient: has `indices` and `values`, as tensorflow's IndexedSlices, or is a sparse matrix or array of scipy.
        weight: that it belongs to.
        label: that errors begin with.

    Raises:
        TypeError, ValueError: its arrays are no rows, or its shape is not the weight's.
    """
    indices, values, shape = _of_scipy(gradient) if hasattr(gradient, "tocsr") else [
        getattr(gradient, name, None) for name in ("indices", "values", "dense_shape")]
    if indices is None or values is None or callable(indices) or callable(values):
        return None
    if shape is not None:
        _check_shape(np.asarray(shape), weight, label)
    try:
        return Rows(np.asarray(indices), np.asarray(values))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}.{error}") from None


def _of_scipy(matrix: Any) -> list[Any]:
    """The rows of a sparse matrix that have entries, what they hold, and its shape."""
    rows = matrix.tocsr()
    present = np.flatnonzero(np.diff(rows.indptr))
    return [present, rows[present].toarray(), matrix.shape]


def dense_of(rows: Rows, like: Like) -> Array:
    """The gradient that rows stand for, as an array, for a weight like this that takes no rows.

    Raises:
        ValueError: an index is no row of the weight.
    """
    indices, length = rows.indices.astype(np.int64), like.shape[0]
    for k in np.flatnonzero((indices < 0) | (indices >= length))[:1]:
        raise ValueError(f"indices[{k}]: expected a row from 0 to {length - 1}, got {rows.indices[k]}")
    total = np.zeros(like.shape, like.real.dtype)
    width = total.size // max(length, 1)
    elements = indices[:, None] * width + np.arange(width)
    np.add.at(total.reshape(-1), elements.reshape(-1), rows.values.astype(total.dtype).reshape(-1))
    return total


def _check_shape(shape: Any, weight: Array, label: str) -> None:
    if tuple(map(int, shape)) != np.shape(weight):
        raise ValueError(f"{label}: expected a sparse gradient of shape {np.shape(weight)}, like its weight, got "
                         f"{tuple(map(int, shape))}")
