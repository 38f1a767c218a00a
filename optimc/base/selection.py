"""Selections of weights, for groups with values of their own and for arguments that list weights.

Weights are listed as arrays, as positions, or as regular expressions for their names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from optimc import _core
from optimc.base import narrow, setting
from optimc.base.arguments import Value, plain
from optimc.base.names import hint, meant
from optimc.base.rules import WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optimc._types import Array, Config, Names, StateDtype
    from optimc.base.optimizer import Optimizer
    from optimc.schedules import Rate


def entries_of(argument: str, given: Any, expected: str = "a list or None") -> list[Any]:
    """The entries of an argument that is a list, any other iterable that is no array, or None."""
    if given is None:
        return []
    if isinstance(given, (str, bytes, dict, np.ndarray)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{argument} must be {expected}, got {type(given).__name__}")
    return list(given)


class Places:
    """The positions of weights by their memory; made once for all selections of these weights.

    Args:
        weights: arrays.
        names: their names, or None.
    """

    names: Names

    def __init__(self, weights: Sequence[Array], names: Names = None) -> None:
        self.names, self._length = names, len(weights)
        self._by_address = {_core.address(weight): i for i, weight in enumerate(weights) if weight.size}
        self._empty = {id(weight): i for i, weight in enumerate(weights) if not weight.size}

    def of(self, entry: Array | int) -> int | None:
        """The position of an array, or a position itself; None if no weight is there."""
        if not isinstance(entry, np.ndarray):
            return entry if 0 <= entry < self._length else None
        if entry.size:
            return self._by_address.get(_core.address(entry))
        return self._empty.get(id(entry))               # it may share its address with others

    def __len__(self) -> int:
        return self._length


class Selection(NamedTuple):
    """Some weights: those listed as arrays or positions, and those whose names match a pattern.

    `label` names the selection in errors.
    """

    label: str
    arrays: tuple[Any, ...] = ()
    patterns: tuple[str, ...] = ()

    @classmethod
    def of(cls, label: str, entries: Any) -> Selection:
        """A selection from a list of weights, positions and regular expressions."""
        arrays, patterns = [], []
        if not isinstance(entries, (list, tuple)):
            raise TypeError(f"{label}: expected a list, got {type(entries).__name__}")
        for entry in entries:
            if isinstance(entry, str):
                try:
                    re.compile(entry)
                except re.error as error:
                    raise ValueError(f"{label}: {entry!r} is not a regular expression: {error}") from None
                patterns.append(entry)
            elif isinstance(entry, np.ndarray) or (isinstance(entry, int) and not isinstance(entry, bool)):
                arrays.append(entry)
            else:
                raise TypeError(f"{label}: expected names or weights, got {type(entry).__name__}")
        return cls(label, tuple(arrays), tuple(patterns))

    def find(self, places: Places) -> set[int]:
        """The positions of the selected weights.  Raises if an entry selects none."""
        names = places.names or ()
        if self.patterns and places.names is None:
            raise ValueError(f"{self.label}: {self.patterns[0]!r} is matched against names, but the weights have "
                             "none: pass a dict")
        chosen = self._listed(places)
        for pattern in self.patterns:
            search = re.compile(pattern).search
            matches = [i for i, name in enumerate(names) if search(name)]
            if not matches:
                raise ValueError(f"{self.label}: {pattern!r} matches none of the weights {', '.join(names)}")
            chosen.update(matches)
        return chosen

    def _listed(self, places: Places) -> set[int]:
        """The positions of the weights that are listed."""
        chosen = set()
        for k, entry in enumerate(self.arrays):
            position = places.of(entry)
            if position is None:
                said = f"entry {k}" if isinstance(entry, np.ndarray) else f"entry {k}, {entry},"
                raise ValueError(f"{self.label}: {said} is not one of the {len(places)} weights")
            chosen.add(position)
        return chosen

    def numbered(self, places: Places) -> Selection:
        """The same selection with positions for arrays."""
        return self._replace(arrays=tuple(sorted(self._listed(places)))) if self.arrays else self

    def positions(self) -> list[int]:
        """The positions of the weights that are not chosen by a pattern.  Arrays have none yet: a ValueError."""
        if any(isinstance(entry, np.ndarray) for entry in self.arrays):
            raise ValueError(f"{self.label}: a list of weights can be stored only once the optimizer is built")
        return list(self.arrays)

    def without_memory(self) -> tuple[str, list[Any], tuple[str, ...]]:
        """The selection as plain values that are the same in another process, which has other arrays alike."""
        return self.label, [entry if isinstance(entry, int) else (entry.shape, entry.dtype.str)
                            for entry in self.arrays], self.patterns

    def renumbered(self, now: Mapping[int, int]) -> Selection:
        """The same selection after weights have moved from position k to now[k]; others stay."""
        return self._replace(arrays=tuple(now.get(entry, entry) if isinstance(entry, int) else entry
                                                      for entry in self.arrays))


class Group:
    """Weights with values of their own: a mapping from the names of values to the values of this group.

    Example:
        >>> import optimc
        >>> opt = optimc.AdamW(groups=[{"weights": "bias", "weight_decay": 0.0}])
        >>> opt.groups[0]["weight_decay"], opt.groups[0]["learning_rate"]
        (0.0, 0.001)
        >>> opt.groups[0]["learning_rate"] = 0.01
    """

    label: str

    def __init__(self, optimizer: Optimizer, label: str, overrides: Mapping[str, Any],
                 chosen: list[Selection]) -> None:
        """`chosen` is the list of the groups' selections, to which that of this group is added."""
        named = [name for name in ("weights", "params") if isinstance(overrides, dict) and name in overrides]
        if len(named) != 1:
            raise TypeError(f"{label}: expected a dict with an entry 'weights', got {overrides!r}")
        values = {name: value for name, value in overrides.items() if name not in named}
        weights = overrides[named[0]]
        self._optimizer = optimizer
        self.label = label
        self._own: list[str] = []
        own = f"{label}['state_dtype']"
        self._state_dtype: StateDtype = narrow.check_state_dtype(own, values.pop("state_dtype", None))
        narrow.check_slots(optimizer, own, self._state_dtype)
        selection = Selection.of(label, [weights] if isinstance(weights, str) else weights)
        for name in values:
            self._check(name)
        self._k = optimizer._add_group()
        for name, value in values.items():
            self._set(name, value)
        chosen.append(selection)

    @property
    def selection(self) -> Selection:
        """The weights of the group."""
        chosen: Selection = self._optimizer._state.grouped[self._k - 1]
        return chosen

    @property
    def state_dtype(self) -> StateDtype:
        """The `state_dtype` of its weights; None if it is that of the optimizer."""
        return self._state_dtype

    def _check(self, name: str) -> None:
        if name in WHOLE:
            raise ValueError(f"{self.label}: {name} is one value for all weights: set it on the optimizer")
        if not isinstance(self._optimizer._arguments.get(name), Value):
            raise ValueError(f"{self.label}: {name!r} is not a value that weights can have of their own"
                             f"{hint(name, self._optimizer._index)}")

    def _set(self, name: str, value: object) -> None:
        setting.change(self._optimizer, self._k, name, value)
        if name not in self._own:
            self._own.append(name)

    @overload
    def __getitem__(self, name: Literal["state_dtype"]) -> Any: ...
    @overload
    def __getitem__(self, name: str) -> float | None: ...

    def __getitem__(self, name: str) -> Any:
        if name == "state_dtype":
            return self._optimizer.state_dtype if self._state_dtype is None else self._state_dtype
        self._check(name)
        value: float | None = self._optimizer._ask_value(self._k, self._optimizer._index[name])
        return value

    def __setitem__(self, name: str, value: Rate | None) -> None:
        if name == "state_dtype":
            raise ValueError(f"{self.label}: state_dtype cannot change once the group is made")
        self._check(name)
        self._set(name, value)

    if not TYPE_CHECKING:               # a checker would allow every name
        def __getattr__(self, name):
            raise self._unknown(name)

        def __setattr__(self, name, value):
            if name[:1] != "_" and name != "label":
                raise self._unknown(name)
            super().__setattr__(name, value)

    def _unknown(self, name: str) -> AttributeError:
        """The error for an attribute that a group does not have: its values are entries."""
        if name[:1] == "_":
            return AttributeError(f"a group has no attribute {name!r}", obj=self)
        values = self._optimizer._index
        value = name if name in values else meant(name, values)
        advice = f": its values are entries, {self.label}[{value!r}]" if value else ""
        return AttributeError(f"{self.label} has no attribute {name!r}{advice}", obj=self)

    def given(self, arrays: Iterable[Any]) -> Config:
        """The group as the constructor takes it."""
        return {"weights": [*arrays, *self.selection.patterns],
                **({} if self._state_dtype is None else {"state_dtype": self._state_dtype}),
                **{name: self._optimizer._get_value(self._k, self._optimizer._index[name])
                   for name in self._own}}

    def get_config(self, selection: Selection | None = None) -> Config:
        """The group as plain values.  Weights become their positions; this needs a built optimizer.

        Args:
            selection: of the group, in which weights are given by their positions; default: found now.
        """
        selection = selection or self._optimizer._chosen_by_position().grouped[self._k - 1]
        return {name: plain(value) for name, value in self.given(selection.positions()).items()}

    def __repr__(self) -> str:
        own = [*(["state_dtype"] if self._state_dtype is not None else []), *self._own]
        values = ", ".join(f"{name}={self[name]!r}" for name in own)
        return f"<group of {len(self.selection.arrays)} weights and {list(self.selection.patterns)}: {values}>"
