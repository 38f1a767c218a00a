"""The variables of a step and their order: those Keras's optimizer makes in `build`, for the inner optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np

from optimc.base.storage import Like

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from optimc._types import Array, Shape
    from optimc.base.optimizer import Optimizer


class Layout:
    """The weights that are stepped, the state of each, and the scalars of the rule.

    Args:
        inner: the optimizer of optimc.
        variables: all variables that Keras's optimizer was built with.
        stepped: the positions of those that are stepped; the others are overwritten with their gradients.

    Attributes:
        weights: the variables that are stepped, with their `names` and `likes` (shapes and types).
        position: from the position among all variables to that among the weights.
        kernels: for each weight its kernel.
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
    slots: dict[str, list[Any]]
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
        self.likes = [Like(tuple(v.shape), np.dtype(keras.backend.standardize_dtype(v.dtype))) for v in self.weights]
        names: dict[str, None] = {}                          # as keys: in order, and quick to look up
        for variable in self.weights:
            name = name_of(variable)
            names[name if name not in names else f"{name}#{len(names)}"] = None
        self.names = list(names)
        self.kernels = inner._kernels(self.names, self.likes)
        self.slots = {}
        self.averages, self.accumulators, self.scalars = [], [], []

    def finish(self) -> None:
        """Fixes the order, once all variables are there."""
        self.held = [*self.averages, *self.accumulators,
                     *(v for variables in self.slots.values() for v in variables if v is not None)]
        self.variables = [*self.weights, *self.held]
        self.shapes = [tuple(variable.shape) for variable in self.variables]
        self.dtypes = [np.dtype(keras.backend.standardize_dtype(variable.dtype)) for variable in self.variables]

    def split(self,
              arrays: Iterable[Array]) -> tuple[list[Array], list[Array], list[Array], dict[str, list[Array | None]]]:
        """Arrays in the order of `variables`, as the lists of weights, averages and accumulators, and the slots."""
        rest = iter(arrays)
        weights, averages, accumulators = (
            [next(rest) for _ in part] for part in (self.weights, self.averages, self.accumulators))
        return weights, averages, accumulators, {
            slot: [None if variable is None else next(rest) for variable in variables]
            for slot, variables in self.slots.items()}


def name_of(variable: Any) -> str:
    """The path of a variable; Keras's own variables have one, tensorflow's a name only."""
    return str(getattr(variable, "path", variable.name))
