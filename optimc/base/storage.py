"""How arrays lie in memory: the storage types of weights and slots, and the likeness of one array.

A new storage type is a row of TYPES, and one of `optimc_storage` in csrc/plan/plan.c.  Checkpoints, torch, Keras and
MPI take their tables of types from here.
"""

import math
from typing import Any, NamedTuple

import numpy as np


class StorageType(NamedTuple):
    """A type that weights and slots can have in memory.

    Args:
        dtype: of NumPy, whose name is that of the type in torch and Keras too.
        file: its name in a checkpoint.
        mpi: its name in MPI.
    """

    dtype: Any
    file: str
    mpi: str


TYPES = {stored.dtype.name: stored for stored in (
    StorageType(np.dtype(np.float32), "F32", "FLOAT"),
    StorageType(np.dtype(np.float64), "F64", "DOUBLE"),
)}
IN_WORDS = " or ".join(TYPES)               # for messages


class Like(NamedTuple):
    """What an array is like: its shape, its dtype, and whether its memory is in C or Fortran order.

    It is enough of an array to choose kernels and slots by.
    """

    shape: tuple[int, ...]
    dtype: Any
    order: str = "C"

    def __str__(self):
        return f"shape {self.shape}, dtype {self.dtype} and {self.order} order"

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.size * self.dtype.itemsize

    @property
    def c_contiguous(self):
        return self.order == "C"

    @property
    def flags(self):
        return self                         # of which kernels are chosen by c_contiguous alone

    def fits(self, other):
        """Whether an array like this has the shape and the dtype of another."""
        return self.shape == tuple(other.shape) and self.dtype == other.dtype


def like_of(array):
    return Like(tuple(array.shape), array.dtype, "C" if array.flags.c_contiguous else "F")


def likes_of(arrays):
    return tuple(map(like_of, arrays))
