"""The state that an optimizer keeps for its weights, as one value.

A `State` is never changed.  Building, loading, copying, sharing and undoing make another one, which the optimizer
takes over in one assignment.  The arrays in it are the live ones that steps write to.

A state knows the shapes, dtypes and names of the weights, not their memory; binding.py binds it to weights.  It does
not hold hyperparameters, step counts or running values (running.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optimc.base.selection import Places, Selection
from optimc.base.storage import NAMES, Like
from optimc.checkpoint.descriptions import ACCUMULATOR, AVERAGE, like_from

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from typing import Self

    from optimc._types import Array, Config, Names, Tensors

NOTHING_EXCLUDED = Selection("exclude_from_weight_decay")


class State(NamedTuple):
    """The state that an optimizer keeps for its weights.

    Args:
        names: of the weights, or None.
        likes: a `Like` per weight.
        slots: name -> one array per weight, None for a weight without this slot.
        averages: one array per weight, or None.
        accumulators: of gradients: one array per weight, or None.
        waiting: a bool per weight: True if gradients were accumulated since its last update.  The plan of a built
            optimizer has newer ones.
        excluded: the weights without weight decay.
        grouped: the weights of each group.
    """

    names: tuple[str, ...] | None = None
    likes: tuple[Like, ...] = ()
    slots: dict[str, Any] = {}
    averages: Any = None
    accumulators: Any = None
    waiting: tuple[bool, ...] = ()
    excluded: Selection = NOTHING_EXCLUDED
    grouped: tuple[Selection, ...] = ()

    def but(self, **changes: Any) -> Self:
        """The same state with other values of these fields."""
        return self._replace(**changes)

    # ------------------------------------------------------------------------- selected weights

    def group_of_each(self, names: Names, weights: Sequence[Array]) -> tuple[int, ...]:
        """For each weight the number of its group; 0 if it is in no group."""
        groups, places = [0] * len(weights), Places(weights if self.grouped else (), names)
        for k, selection in enumerate(self.grouped, 1):
            for i in selection.find(places):
                if groups[i]:
                    raise ValueError(f"weights[{names[i] if names else i!r}] is in "
                                     f"{self.grouped[groups[i] - 1].label} and {selection.label}")
                groups[i] = k
        return tuple(groups)

    def numbered(self, weights: Sequence[Array]) -> Self:
        """The same state, in which weights are selected by position instead of by array."""
        places = Places(weights)
        return self.but(excluded=self.excluded.numbered(places),
                        grouped=tuple(selection.numbered(places) for selection in self.grouped))

    def renumbered(self, old: Sequence[int | None]) -> Self:
        """The same state for other weights: weight i was weight old[i] before; None for a new one."""
        now = {k: i for i, k in enumerate(old) if k is not None}
        return self.but(excluded=self.excluded.renumbered(now),
                        grouped=tuple(selection.renumbered(now) for selection in self.grouped))

    # --------------------------------------------------------------------------- plain values, copies

    def description(self) -> Config:
        """The description of this state in a file, without its tensors."""
        return {"names": self.names and list(self.names),
                "shapes": [[list(like.shape), NAMES[like.dtype]] for like in self.likes],
                "waiting": list(self.waiting), "slots": list(self.slots)}

    def tensors(self) -> Tensors:
        """The live arrays by their names in a file."""
        parts = {**self.slots, AVERAGE: self.averages or (), ACCUMULATOR: self.accumulators or ()}
        return {f"{what}/{i}": array for what, arrays in parts.items()
                for i, array in enumerate(arrays) if array is not None}

    @classmethod
    def from_description(cls, description: Config, tensors: Tensors, slot_like: Callable[[str, Like], Like],
                         averages: bool, accumulators: bool) -> Self:
        """A state from the results of `description` and `tensors`.  Takes its arrays out of `tensors`.

        Args:
            slot_like: the function of a slot's name and a weight's `Like` that gives the slot's.
            averages, accumulators: True if the state must have them, False if it must not.

        Raises:
            ValueError, KeyError, TypeError: something is missing or does not fit.  `tensors` is then unchanged.
        """
        likes = tuple(like_from(*entry) for entry in description["shapes"])
        names, waiting = description["names"], tuple(map(bool, description["waiting"]))
        if names is not None and (len(names) != len(likes) or not all(isinstance(name, str) for name in names)
                                  or len(set(names)) != len(names)):
            raise ValueError("names: expected a different one for each weight")
        if len(waiting) not in (0, len(likes)):
            raise ValueError("waiting: expected one per weight")
        slots = description["slots"]
        expected = {**dict.fromkeys(slots, True), AVERAGE: averages, ACCUMULATOR: accumulators}
        parts = {}
        for what, wanted in expected.items():
            parts[what] = [tensors.get(f"{what}/{i}") for i in range(len(likes))]
            for i, (array, like) in enumerate(zip(parts[what], likes, strict=True)):
                _check_part(f"{what}/{i}", array, slot_like(what, like), wanted, what in slots)
        for what, arrays in parts.items():
            for i in range(len(arrays)):
                tensors.pop(f"{what}/{i}", None)
        return cls(names=names and tuple(names), likes=likes, slots={slot: parts[slot] for slot in slots},
                   averages=parts[AVERAGE] if averages and likes else None,
                   accumulators=parts[ACCUMULATOR] if accumulators and likes else None, waiting=waiting)

    def without(self, slots: Container[str]) -> Self:
        """The same state without some slots."""
        return self.but(slots={slot: arrays for slot, arrays in self.slots.items() if slot not in slots})

    def views(self) -> dict[str, dict[int | str, np.ndarray]]:
        """Read-only views of the slots: slot -> name or position of each weight that has it -> array."""
        keys: tuple[int | str, ...] = self.names or tuple(range(len(self.likes)))
        return {slot: {key: _read_only(array) for key, array in zip(keys, arrays, strict=True) if array is not None}
                for slot, arrays in self.slots.items()}

    def mapped(self, function: Callable[[Sequence[Array | None]], list[Array | None]]) -> Self:
        """The same state with other arrays: `function` maps each list of arrays, one per weight, to a new list."""
        return self.but(slots={slot: function(arrays) for slot, arrays in self.slots.items()},
                        averages=self.averages and function(self.averages),
                        accumulators=self.accumulators and function(self.accumulators))

    def copied(self) -> Self:
        """The same state with arrays of its own."""
        return self.mapped(lambda arrays: [None if array is None else np.array(array) for array in arrays])


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _check_part(name: str, array: Array | None, like: Like, expected: bool, is_slot: bool) -> None:
    """Refuses a stored slot, average or accumulator that is missing, unexpected, or of the wrong shape or dtype."""
    if array is None:
        if expected and not is_slot:
            raise ValueError(f"tensor '{name}' is missing")
        return
    if not expected:
        raise ValueError(f"unexpected tensor '{name}'")
    if not like.fits(array):
        raise ValueError(f"tensor '{name}': expected shape {like.shape} and dtype {like.dtype}, got {array.shape} "
                         f"and {array.dtype}")
