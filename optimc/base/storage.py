"""The storage types of weights and slots, and `Like`, the shape, dtype and order of one array.

A new storage type is a row of TYPES, and one of `optimc_storage` in csrc/plan/plan.c.  Checkpoints, torch, Keras and
MPI take their tables of types from here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optimc._types import Array


class StorageType(NamedTuple):
    """A type that weights and slots can have in memory.

    Args:
        dtype: of NumPy, whose name is that of the type in torch and Keras too.
        file: its name in a checkpoint.
        mpi: its name in MPI.
    """

    dtype: np.dtype[Any]
    file: str
    mpi: str


TYPES = {stored.dtype.name: stored for stored in (
    StorageType(np.dtype(np.float32), "F32", "FLOAT"),
    StorageType(np.dtype(np.float64), "F64", "DOUBLE"),
)}
NAMES = {stored.dtype: name for name, stored in TYPES.items()}      # NumPy imports to name a dtype: too late at exit
IN_WORDS = " or ".join(TYPES)               # for messages


class Like(NamedTuple):
    """The shape and dtype of an array, and the order of its memory: C or Fortran.

    Kernels and slots are chosen by it, without the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"] = "C"

    def __str__(self) -> str:
        return f"shape {self.shape}, dtype {self.dtype} and {self.order} order"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def c_contiguous(self) -> bool:
        return self.order == "C"

    @property
    def flags(self) -> Like:
        return self                         # like an array's: kernels are chosen by flags.c_contiguous

    def fits(self, other: Array | Like) -> bool:
        """True if an array has this shape and dtype."""
        return self.shape == tuple(other.shape) and self.dtype == other.dtype


def like_of(array: Array | Like) -> Like:
    return Like(tuple(array.shape), array.dtype, "C" if array.flags.c_contiguous else "F")


def likes_of(arrays: Iterable[Array | Like]) -> tuple[Like, ...]:
    return tuple(map(like_of, arrays))
