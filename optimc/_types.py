"""The types in annotations.  Only type checkers import this module; `import optimc` does without it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: a weight, a slot, an average
Array: TypeAlias = NDArray[Any]
#: a configuration as a dict of plain values
Config: TypeAlias = dict[str, Any]
#: classes of the program's own, by name
Classes: TypeAlias = Mapping[str, type[Any]]
#: the name of a file
Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class OffersArray(Protocol):
    """What NumPy can take as an array, such as an array of jax."""

    def __array__(self) -> np.ndarray[Any, Any]: ...


#: the gradient of a weight; None if there is none
Gradient: TypeAlias = Array | OffersArray | None
#: weights, and their gradients
Weights: TypeAlias = Sequence[Array] | Mapping[str, Array]
Gradients: TypeAlias = Sequence[Gradient] | Mapping[str, Gradient]
