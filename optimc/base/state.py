"""The state that an optimizer keeps for its weights, as one value.

A `State` is never changed.  Building, loading, copying, sharing and undoing make another one, which the optimizer
takes over in one assignment.  The arrays in it are the live ones that steps write to.

A state knows the shapes, dtypes and names of the weights, not their memory; binding.py binds it to weights.  It does
not hold hyperparameters, step counts or running values (running.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optimc import _core
from optimc.base import narrow
from optimc.base.narrow import Place
from optimc.base.selection import Places, Selection
from optimc.base.storage import Like, name_of
from optimc.checkpoint.descriptions import ACCUMULATOR, AVERAGE, MASTER, SCALES, likes_from

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from typing import Self

    from optimc._types import Array, Config, Names, Tensors

#: what `waiting` says of a weight of which only rows have accumulated gradients
BY_ROWS = 2

NOTHING_EXCLUDED = Selection("exclude_from_weight_decay")


class State(NamedTuple):
    """The state that an optimizer keeps for its weights.

    Args:
        names: of the weights, or None.
        likes: a `Like` per weight.
        slots: name -> one array per weight, None for a weight without this slot.
        averages: one array per weight, or None.
        accumulators: of gradients: one array per weight, or None.
        masters: of weights of 16 bits: one array per weight, None for one without, or None.
        places: a `Place` per weight, or nothing for whole weights that are numbered by position.
        waiting: per weight, the gradients accumulated since its last update: 0 none, 1 some, BY_ROWS.  The plan of a
            built optimizer has newer ones.
        excluded: the weights without weight decay.
        grouped: the weights of each group.
        convert: the slots may be stored otherwise than the optimizer stores them, and are rounded when it is built.
    """

    names: tuple[str, ...] | None = None
    likes: tuple[Like, ...] = ()
    slots: dict[str, Any] = {}
    averages: Any = None
    accumulators: Any = None
    masters: Any = None
    places: tuple[Place, ...] = ()
    waiting: tuple[int, ...] = ()
    excluded: Selection = NOTHING_EXCLUDED
    grouped: tuple[Selection, ...] = ()
    convert: bool = False

    def but(self, **changes: Any) -> Self:
        """The same state with other values of these fields."""
        return self._replace(**changes)

    def places_of(self, likes: Sequence[Array | Like]) -> tuple[Place, ...]:
        """The `Place` of each weight."""
        return self.places or tuple(Place(i, 0, like.size) for i, like in enumerate(likes))

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
        orders = "".join(like.order for like in self.likes)
        return {"names": self.names and list(self.names),
                "shapes": [[list(like.shape), name_of(like.dtype)] for like in self.likes],
                **({"orders": orders} if "F" in orders and self._is_coded() else {}),
                "waiting": [held if held == BY_ROWS else bool(held) for held in self.waiting],
                "slots": list(self.slots)}

    def _is_coded(self) -> bool:
        """True if a slot is stored in 8 bits: then the order of a weight's memory decides which share a scale."""
        return narrow.BYTES in {array.dtype for arrays in self.slots.values()
                                for array in arrays if array is not None}

    def tensors(self) -> Tensors:
        """The live arrays by their names in a file; those of 8 bits as their codes and their scales."""
        parts = {**self.slots, AVERAGE: self.averages or (), ACCUMULATOR: self.accumulators or (),
                 MASTER: self.masters or ()}
        tensors = {}
        for what, arrays in parts.items():
            for i, array in enumerate(arrays):
                if array is not None and array.dtype == narrow.BYTES:
                    tensors[f"{what}/{i}"], tensors[f"{what}{SCALES}/{i}"] = narrow.split(array, self.likes[i])
                elif array is not None:
                    tensors[f"{what}/{i}"] = array
        return tensors

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
        likes = likes_from(description)
        names, waiting = description["names"], tuple(map(int, description["waiting"]))
        if names is not None and (len(names) != len(likes) or not all(isinstance(name, str) for name in names)
                                  or len(set(names)) != len(names)):
            raise ValueError("names: expected a different one for each weight")
        if len(waiting) not in (0, len(likes)) or not {*waiting} <= {0, 1, BY_ROWS}:
            raise ValueError("waiting: expected one per weight, of false, true and 2")
        slots = description["slots"]
        expected = {**dict.fromkeys(slots, True), AVERAGE: averages, ACCUMULATOR: accumulators}
        parts = {}
        for what, wanted in expected.items():
            parts[what] = [_joined(tensors, what, i, like) for i, like in enumerate(likes)]
            for i, (array, like) in enumerate(zip(parts[what], likes, strict=True)):
                plain = slot_like(what, like) if what in slots else like.real
                _check_part(f"{what}/{i}", array, plain, wanted, what in slots)
        masters = [tensors.get(f"{MASTER}/{i}") for i in range(len(likes))]
        for i, (master, like) in enumerate(zip(masters, likes, strict=True)):
            _check_master(f"{MASTER}/{i}", master, like)
        for what, arrays in {**parts, MASTER: masters}.items():
            for i, array in enumerate(arrays):
                tensors.pop(f"{what}/{i}", None)
                if array is not None and array.dtype == narrow.BYTES:
                    tensors.pop(f"{what}{SCALES}/{i}")
        return cls(
            names=names and tuple(names), likes=likes, slots={slot: parts[slot] for slot in slots},
            averages=parts[AVERAGE] if averages and likes else None,
            accumulators=parts[ACCUMULATOR] if accumulators and likes else None,
            masters=masters if [master for master in masters if master is not None] else None, waiting=waiting)

    def without(self, slots: Container[str]) -> Self:
        """The same state without some slots."""
        return self.but(slots={slot: arrays for slot, arrays in self.slots.items() if slot not in slots})

    def views(self, decoded: Callable[[str, int, Array], Array]) -> dict[str, dict[int | str, np.ndarray]]:
        """Read-only views of the slots: slot -> name or position of each weight that has it -> array.

        decoded: a function of a slot, a weight's position and an array that gives its numbers.
        """
        keys: tuple[int | str, ...] = self.names or tuple(range(len(self.likes)))
        return {slot: {key: _read_only(decoded(slot, i, array))
                       for i, (key, array) in enumerate(zip(keys, arrays, strict=True)) if array is not None}
                for slot, arrays in self.slots.items()}

    def mapped(self, function: Callable[[Sequence[Array | None]], list[Array | None]]) -> Self:
        """The same state with other arrays: `function` maps each list of arrays, one per weight, to a new list."""
        return self.but(slots={slot: function(arrays) for slot, arrays in self.slots.items()},
                        averages=self.averages and function(self.averages),
                        accumulators=self.accumulators and function(self.accumulators),
                        masters=self.masters and function(self.masters))

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
    narrower = [narrow.coded_like(like, choice) for choice in narrow.CHOICES] if is_slot else []
    if not [one for one in (like, *narrower) if one.fits(array)]:
        raise ValueError(f"tensor '{name}': expected shape {like.shape} and dtype {like.dtype}, got {array.shape} "
                         f"and {array.dtype}")


def _joined(tensors: Tensors, what: str, i: int, like: Like) -> Array | None:
    """A slot of weight i from a file; one of 8 bits from its codes and scales, which must fit each other."""
    name, array = f"{what}/{i}", tensors.get(f"{what}/{i}")
    if array is None or array.dtype != narrow.BYTES:
        return array
    scales = tensors.get(f"{what}{SCALES}/{i}")
    if scales is None or array.shape != like.shape or scales.dtype != narrow.SCALE \
            or scales.shape != (-(-like.size // _core.CODE_BLOCK),):
        raise ValueError(f"tensor '{name}': expected codes of shape {like.shape} and their scales "
                         f"'{what}{SCALES}/{i}'")
    return narrow.joined(array, scales, like)


def _check_master(name: str, master: Array | None, like: Like) -> None:
    """Refuses a stored master that does not fit its weight."""
    dtype = narrow.MASTERS.get(name_of(like.dtype))
    if master is not None and (dtype is None or not like._replace(dtype=dtype).fits(master)):
        raise ValueError(f"tensor '{name}': expected a master of shape {like.shape} and "
                         f"{'no dtype, for its weight has none' if dtype is None else dtype}, got {master.shape} and "
                         f"{master.dtype}")
