"""The types in annotations.  Only type checkers import this module; `import optimc` does without it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from optimc._core import Rows
from optimc.base.optimizer import Optimizer
from optimc.base.wrapper import Wrapper

#: a weight, a slot, an average
Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
#: the names of weights
Names: TypeAlias = tuple[str, ...] | None
#: arrays by name
Tensors: TypeAlias = dict[str, Array]
#: a configuration as a dict of plain values
Config: TypeAlias = dict[str, Any]
#: classes of the program's own, by name
Classes: TypeAlias = Mapping[str, type[Any]]
#: the name of a file
Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
#: the running values of each group: "products" and "scalars" by name
Running: TypeAlias = tuple[dict[str, dict[str, float]], ...]
#: the counts of a state: calls, skipped steps, running values
Counts: TypeAlias = tuple[int, int, Running]
#: an optimizer, or one made of optimizers
AnyOptimizer: TypeAlias = Optimizer | Wrapper


class OffersArray(Protocol):
    """An object that NumPy can take as an array, such as an array of jax."""

    def __array__(self) -> np.ndarray[Any, Any]: ...


class OffersRows(Protocol):
    """A gradient by rows, such as tensorflow's IndexedSlices: values[k] belongs to row indices[k]."""

    @property
    def indices(self) -> Any: ...
    @property
    def values(self) -> Any: ...


class OffersSparseRows(Protocol):
    """A sparse matrix or array of scipy."""

    def tocsr(self) -> Any: ...


#: the gradient of a weight, or of some of its rows; None if there is none
Gradient: TypeAlias = Array | Rows | OffersArray | OffersRows | OffersSparseRows | None
_Weights: TypeAlias = "Array | Sequence[_Weights] | Mapping[str, _Weights]"
_Gradients: TypeAlias = "Gradient | Sequence[_Gradients] | Mapping[str, _Gradients]"
#: weights, and their gradients, in lists and dicts that may be nested
Weights: TypeAlias = Sequence[_Weights] | Mapping[str, _Weights]
Gradients: TypeAlias = Sequence[_Gradients] | Mapping[str, _Gradients]
#: pairs, as `zip(grads, weights)` gives them
Pairs: TypeAlias = Iterable[tuple[Gradient, Array]]
#: a loss: a number, an array, a tensor
Loss = TypeVar("Loss")
CheckFinite: TypeAlias = Literal["propagate", "raise", "skip"]
#: storage of slots: of all, or by slot
StateDtype: TypeAlias = Literal["float32", "bfloat16", "int8"] | Mapping[str, str | None] | None
Style: TypeAlias = Literal["keras", "torch", "optax"]
