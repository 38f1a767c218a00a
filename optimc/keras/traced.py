"""Functions that compiled programs call back, by number: csrc/python/callee.c."""

from __future__ import annotations

import itertools
import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from optimc._core import FOREIGN_GONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from optimc._types import Array


class Traced:
    """A step as a compiled program calls it: by number, with the memory of the arrays given and of those to fill.

    Args:
        function: of two lists of arrays.
        given, made: their shapes and dtypes.  The first axis may be None: as long as the memory says.
    """

    function: Callable[..., Any]
    given: Sequence[Any]
    made: Sequence[Any]
    #: by number; each lives as long as its optimizer
    known: Any = weakref.WeakValueDictionary()
    numbers: Iterator[int] = itertools.count()

    def __init__(self, function: Callable[..., Any], given: Sequence[Any], made: Sequence[Any]) -> None:
        self.function, self.given, self.made = function, given, made
        self.number: int = next(self.numbers)
        self.known[self.number] = self

    @classmethod
    def call(cls, number: int, given: tuple[memoryview, ...], made: tuple[memoryview, ...]) -> None:
        traced = cls.known.get(number)
        if traced is None:
            raise RuntimeError(FOREIGN_GONE)
        traced.function(*([_array(memory, *like) for memory, like in zip(memories, likes, strict=True)]
                          for memories, likes in ((given, traced.given), (made, traced.made))))


def _array(memory: memoryview, shape: tuple[int | None, ...], dtype: Any) -> Array:
    if None in shape[:1]:
        row = np.dtype(dtype).itemsize * math.prod(length or 0 for length in shape[1:])
        shape = (memory.nbytes // max(1, row), *shape[1:])
    return np.ndarray(shape, dtype, memory)  # type: ignore[arg-type]
