"""The variables of a step and their order: those Keras's optimizer makes in `build`, for the inner optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np

from optimc import _core
from optimc.base import narrow
from optimc.base.rules import slots_of
from optimc.base.storage import Like
from optimc.keras.backends import backend

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from optimc._types import Array, Shape
    from optimc.base.optimizer import Optimizer


class Parts(NamedTuple):
    """The arrays of a step: lists with an entry for each weight, None where it has no such part."""

    weights: list[Any]
    averages: list[Any]
    accumulators: list[Any]
    masters: list[Any]
    slots: dict[str, list[Any]]


class Layout:
    """The weights that are stepped, the state of each, and the scalars of the rule.

    Args:
        inner: the optimizer of optimc.
        variables: all variables that Keras's optimizer was built with.
        stepped: the positions of those that are stepped; the others are overwritten with their gradients.

    Attributes:
        weights: the variables that are stepped, with their `names` and `likes` (shapes and types).
        position: from the position among all variables to that among the weights.
        kernels, groups: for each weight its kernel, and the number of its group.
        masters: for each weight a variable or None, or empty.
        averages, accumulators: for each weight a variable, or empty.
        slots: by name, for each weight a variable or None.
        scalars: a variable for each scalar of the rule, group by group.
        held: the variables of the state, once `finish` has been called.
        variables: weights and state in the order of a step's arrays, with their `shapes` and `dtypes`; likewise.
    """

    weights: list[Any]
    position: dict[int, int]
    likes: list[Like]
    names: list[str]
    kernels: list[str]
    groups: Sequence[int]
    slots: dict[str, list[Any]]
    masters: list[Any]
    averages: list[Any]
    accumulators: list[Any]
    scalars: list[Any]
    held: list[Any]
    variables: list[Any]
    shapes: list[Shape]
    dtypes: list[np.dtype[Any]]

    def __init__(self, inner: Optimizer, variables: Sequence[Any], stepped: Sequence[int]) -> None:
        self.weights = [variables[i] for i in stepped]
        self.position = {i: k for k, i in enumerate(stepped)}
        self.likes = [Like(tuple(v.shape), dtype_of(v)) for v in self.weights]
        names: dict[str, None] = {}                          # as keys: in order, and quick to look up
        for variable in self.weights:
            name = name_of(variable)
            names[name if name not in names else f"{name}#{len(names)}"] = None
        self.names = list(names)
        self.kernels = inner._kernels(self.names, self.likes)
        self.groups = self._groups(inner)
        self.slots = {}
        self.masters, self.averages, self.accumulators, self.scalars = [], [], [], []

    def _groups(self, inner: Optimizer) -> Sequence[int]:
        """The number of the group of each weight."""
        if not inner.groups:
            return (0,) * len(self.weights)
        arrays = [backend.array(variable._value) if backend.in_place else np.empty(0) for variable in self.weights]
        return inner._state.group_of_each(tuple(self.names), arrays)

    def place(self, i: int) -> narrow.Place:
        """The `Place` of weight i: of a whole weight, numbered by its position."""
        return narrow.Place(i, 0, self.likes[i].size)

    def finish(self) -> None:
        """Fixes the order, once all variables are there."""
        self.held = [*self.averages, *self.accumulators, *(v for v in self.masters if v is not None),
                     *(v for variables in self.slots.values() for v in variables if v is not None)]
        self.variables = [*self.weights, *self.held]
        self.shapes = [tuple(variable.shape) for variable in self.variables]
        self.dtypes = [dtype_of(variable) for variable in self.variables]

    def split(self, arrays: Iterable[Array]) -> Parts:
        """Arrays in the order of `variables`, as lists with an entry for each weight."""
        rest = iter(arrays)

        def taken(part: Sequence[Any]) -> list[Any]:
            return [None if variable is None else next(rest) for variable in part]

        return Parts(taken(self.weights), taken(self.averages), taken(self.accumulators), taken(self.masters),
                     {slot: taken(variables) for slot, variables in self.slots.items()})

    def rests(self, chosen: Iterable[int]) -> list[tuple[Any, Any]]:
        """The weights chosen by position that have a master of int16, each with this master."""
        return [(self.weights[i], self.masters[i]) for i in chosen if self.masters
                and self.masters[i] is not None and dtype_of(self.masters[i]) == narrow.RESTS]

    def parts(self) -> list[tuple[int, int, Any]]:
        """The position of the weight, the number (a slot's, or PART_*) and the variable of each part of the state."""
        beside = {_core.PART_AVERAGE: self.averages, _core.PART_ACCUMULATOR: self.accumulators,
                  _core.PART_MASTER: self.masters}
        found = [(i, slots_of(self.kernels[i])[slot], variable) for slot, variables in self.slots.items()
                 for i, variable in enumerate(variables) if variable is not None]
        return found + [(i, part, variable) for part, variables in beside.items()
                        for i, variable in enumerate(variables) if variable is not None]

    def places(self) -> tuple[tuple[int, int], ...]:
        """The position of the weight and the number of the part of each variable, in the order of `variables`."""
        found = {id(variable): (i, part) for i, part, variable in self.parts()}
        return (*((i, _core.PART_WEIGHT) for i in range(len(self.weights))), *(found[id(v)] for v in self.held))


def dtype_of(variable: Any) -> np.dtype[Any]:
    """NumPy's dtype of a variable."""
    dtype: np.dtype[Any] = np.dtype(keras.backend.standardize_dtype(variable.dtype))
    return dtype


def name_of(variable: Any) -> str:
    """The path of a variable; Keras's own variables have one, tensorflow's a name only."""
    return str(getattr(variable, "path", variable.name))
