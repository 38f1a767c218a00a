"""The storage types of weights and slots, and `Like`, the shape, dtype and order of one array.

A new storage type of weights is a row of TYPES, and one of `optimc_storage` in csrc/plan/plan.c.  Checkpoints, torch,
Keras and MPI take their tables of types from here.  Next: narrow.py, storage in fewer bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from optimc import _core

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optimc._types import Array


class StorageType(NamedTuple):
    """A type that weights can have in memory.

    Args:
        name: of the dtype in NumPy, torch and Keras.
        file: its name in a checkpoint.
        real: the dtype that a step computes in.
        core: its number in C.
    """

    name: str
    file: str
    real: np.dtype[Any]
    core: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype.  That of bfloat16 is of the package ml_dtypes.

        Raises:
            ImportError: it is not installed.
        """
        if self.name in _dtypes:
            return _dtypes[self.name]
        try:
            import ml_dtypes  # an extra: NumPy has no bfloat16
        except ImportError:
            raise ImportError("bfloat16 weights need ml_dtypes: pip install ml_dtypes") from None
        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype


FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
TYPES = {stored.name: stored for stored in (
    StorageType("float32", "F32", FLOAT32, _core.TYPE_F32),
    StorageType("float64", "F64", FLOAT64, _core.TYPE_F64),
    StorageType("bfloat16", "BF16", FLOAT32, _core.TYPE_BF16),
    StorageType("float16", "F16", FLOAT32, _core.TYPE_F16),
)}
#: to name a dtype NumPy imports, which is too late at exit: those seen, by name, and their names
_dtypes = {name: np.dtype(name) for name in TYPES if name != "bfloat16"}
_names = {dtype: name for name, dtype in _dtypes.items()}
IN_WORDS = f"{', '.join([*TYPES][:-1])} or {[*TYPES][-1]}"      # for messages


def name_of(dtype: np.dtype[Any]) -> str:
    """The name of the dtype of a weight, a key of TYPES."""
    if dtype not in _names:
        name = dtype.name
        if name not in TYPES or not dtype.isnative:
            return name
        _names[dtype], _dtypes[name] = name, dtype
    return _names[dtype]


def type_of(dtype: np.dtype[Any]) -> StorageType:
    """The storage type of a weight of this dtype."""
    return TYPES[name_of(dtype)]


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

    @property
    def real(self) -> Like:
        """The same in the type that a step computes in."""
        return self._replace(dtype=type_of(self.dtype).real)

    def fits(self, other: Array | Like) -> bool:
        """True if an array has this shape and dtype."""
        return self.shape == tuple(other.shape) and self.dtype == other.dtype


def like_of(array: Array | Like) -> Like:
    return Like(tuple(array.shape), array.dtype, "C" if array.flags.c_contiguous else "F")


def likes_of(arrays: Iterable[Array | Like]) -> tuple[Like, ...]:
    return tuple(map(like_of, arrays))
