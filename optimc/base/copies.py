"""Copies of an optimizer: pickles and deep copies, and state as plain values, in dicts and checkpoints.

A copy has its own arrays and is bound to no weights.  The content of a pickle never changes: pickles of 0.1 load.

`picture` and `restore` are for copies of the whole optimizer.  `described` and `load` are for its state alone,
`exported` and `take_over` for the state and configuration in a checkpoint.  `load` and `take_over` check all of a
state before they change the optimizer.  Call these functions between two steps, by way of `_locked`.
"""

from __future__ import annotations

import pickle
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from optimc import schedules
from optimc.base import binding
from optimc.base.arguments import check_count
from optimc.base.running import plain_running, running_from
from optimc.base.selection import Selection
from optimc.base.state import State
from optimc.base.storage import Like
from optimc.checkpoint.saving import refuse_left, taking_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from optimc._types import Array, Config, Counts, Tensors
    from optimc.base.optimizer import Optimizer

    Picture = dict[str, Any]


class Moment:
    """Pictures of several optimizers between the same steps, for a copy of a wrapper, whose parts are copied in turn.

    As long as it lives, each of them is copied as it was then, once.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.kept: list[object] = [*optimizers]                       # so that no other object gets its `id`
        self.pictures: dict[int, Any] = {id(optimizer): picture(optimizer) for optimizer in optimizers}
        _moments.update(dict.fromkeys(self.pictures, self))

    def add(self, wrapper: object, reduced: object) -> None:
        """Adds a wrapped wrapper, and what its `__reduce_ex__` gives at this moment."""
        self.kept.append(wrapper)
        self.pictures[id(wrapper)] = reduced
        _moments[id(wrapper)] = self


class Alive(tuple[Any, ...]):
    """The arguments in the result of a `__reduce_ex__`.  They live until pickle or copy is done with the state."""

    moment: Moment

    def __new__(cls, args: Iterable[Any], moment: Moment) -> Self:
        self = super().__new__(cls, args)
        self.moment = moment
        return self


_moments: weakref.WeakValueDictionary[int, Moment] = weakref.WeakValueDictionary()


def taken(part: object) -> Any:
    """The picture of a part of a wrapper of the moment at which the wrapper is copied, or None."""
    moment = _moments.get(id(part))
    return moment and moment.pictures.pop(id(part), None)


def pictured(optimizer: Optimizer) -> Picture:
    """`picture`, of the moment at which a wrapper around the optimizer is copied, or of now."""
    return taken(optimizer) or optimizer._locked(picture, optimizer)


def duplicated(picture: Picture, duplicate: Callable[[Any], Any]) -> Picture:
    """The picture with copies of what it holds of the program's; its arrays are copies already."""
    return {**picture, **{name: duplicate(picture[name]) for name in ("arguments", "groups", "attributes", "members")
                         if name in picture}}


def picture(optimizer: Optimizer) -> Picture:
    """The content of a copy, as plain values and arrays.  Call it through `_locked`, between two steps."""
    known = {*optimizer._arguments, "groups", "_rooms"}
    members = _members_of(optimizer)
    state = optimizer._chosen_by_position()
    kept = state.without(optimizer._scratch_slots).copied()
    return {
        "arguments": optimizer._given(),
        "groups": [group.given(selection.arrays)
                   for group, selection in zip(optimizer.groups, state.grouped, strict=True)],
        "excluded": (list(state.excluded.arrays), state.excluded.patterns),
        "attributes": {k: v for k, v in optimizer.__dict__.items() if k not in known},
        **({"members": members} if members else {}),
        "calls": optimizer._calls, "skipped": optimizer.skipped_steps, "running": optimizer._get_running(),
        "names": kept.names, "waiting": kept.waiting, "slots": kept.slots,
        "shapes": tuple((like.shape, like.dtype) for like in kept.likes),
        "averages": kept.averages, "accumulators": kept.accumulators,
        **({"masters": kept.masters} if kept.masters else {}), **({"places": kept.places} if kept.places else {}),
        "orders": tuple(like.order for like in kept.likes), **({"convert": True} if kept.convert else {}),
    }


def restore(optimizer: Optimizer, picture: Picture) -> None:
    """Gives an optimizer, constructed with the arguments and groups of a picture, the rest of it."""
    optimizer.__dict__.update(picture["attributes"])
    for name, value in picture.get("members", {}).items():
        setattr(optimizer, name, value)
    optimizer._hold(_state_of(picture).but(grouped=optimizer._state.grouped),
                    (picture["calls"], picture["skipped"], running_from(optimizer._rule, picture["running"])))


def _members_of(optimizer: Optimizer) -> dict[str, Any]:
    """The attributes for which classes of a user have `__slots__`."""
    members = [name for cls in type(optimizer).__mro__ for name in _names_of_slots(cls)]
    return {name: getattr(optimizer, name) for name in members if hasattr(optimizer, name)}


def _names_of_slots(cls: type) -> list[str]:
    """The names in `__slots__` of a class, private ones as Python mangles them."""
    names, own = vars(cls).get("__slots__", ()), cls.__name__.lstrip("_")
    return [f"_{own}{name}" if own and name.startswith("__") else name
            for name in ((names,) if isinstance(names, str) else names) if not name.endswith("__")]


def _state_of(picture: Picture) -> State:
    """The state in the result of `picture`, without the groups."""
    arrays, patterns = picture["excluded"]
    orders = picture.get("orders") or "C" * len(picture["shapes"])
    return State(
        names=picture["names"], likes=tuple(
            Like(shape, dtype, order) for (shape, dtype), order in zip(picture["shapes"], orders, strict=True)),
        slots=picture["slots"], averages=picture["averages"], accumulators=picture["accumulators"],
        masters=picture.get("masters"), places=picture.get("places", ()), waiting=picture["waiting"],
        convert=picture.get("convert", False),
        excluded=Selection("exclude_from_weight_decay", tuple(arrays), tuple(patterns)))


def check_picklable(picture: Picture) -> None:
    """Refuses functions that pickle cannot find by name."""
    for arguments in (picture["arguments"], *picture["groups"]):
        for name, value in arguments.items():
            if callable(value) and "<" in getattr(value, "__qualname__", ""):
                raise pickle.PicklingError(
                    f"{name} is {value.__qualname__}, which cannot be pickled: use a schedule or a "
                    "function defined in a module")


def described(optimizer: Optimizer, taken: Callable[[Array], Array] = lambda array: array) -> tuple[Config, Tensors]:
    """The state as plain values, and its arrays, as `taken`, by name."""
    state = optimizer._state_now().without(optimizer._scratch_slots)
    return {"class_name": type(optimizer).__name__, "calls": optimizer._calls, "skipped": optimizer.skipped_steps,
            "running": plain_running(optimizer._get_running()), **state.description()}, \
        {name: taken(array) for name, array in state.tensors().items()}


def exported(optimizer: Optimizer) -> tuple[Config, Tensors]:
    """The configuration and state as plain values, and the live arrays by name; for a checkpoint."""
    for name, value in optimizer._given().items():
        if callable(value) and not schedules.is_schedule(value):
            raise ValueError(f"{name} comes from a function, which a checkpoint cannot hold: use a schedule")
    description, tensors = described(optimizer)
    excluded = optimizer._chosen_by_position().excluded
    return {**description, "config": optimizer.get_config(),
            "excluded": [excluded.positions(), list(excluded.patterns)]}, tensors


def load(optimizer: Optimizer, description: Config, convert: bool = False) -> None:
    """Takes over what `state_dict` gave; a built optimizer keeps its weights.  convert: as in `binding.carried`."""
    with taking_over("state"):
        tensors = {name: np.array(array) for name, array in description["tensors"].items()}
        loaded, counts = _imported(optimizer, description, tensors)
        refuse_left(tensors)
    own = optimizer._chosen_by_position()
    if not optimizer.built:
        optimizer._hold(loaded.but(excluded=own.excluded, grouped=own.grouped, convert=convert), counts)
        return
    names, weights = optimizer._names, optimizer._weights
    carried = binding.carried(optimizer, loaded, names, weights, places=own.places, convert=convert)
    carried = carried.but(excluded=own.excluded, grouped=own.grouped)
    optimizer._bind(binding.plan_of(optimizer, weights, carried), counts)


def take_over(optimizer: Optimizer, description: Config, tensors: Tensors) -> None:
    """Takes over what `exported` gave, emptying `tensors`; raises before it changes anything."""
    state, counts = _imported(optimizer, description, tensors)
    excluded = optimizer._state.excluded
    if "excluded" in description:
        positions, patterns = description["excluded"]
        excluded = Selection.of(excluded.label, [*positions, *patterns])
    optimizer._hold(state.but(excluded=excluded, grouped=optimizer._state.grouped), counts)


def _imported(optimizer: Optimizer, description: Config, tensors: Tensors) -> tuple[State, Counts]:
    """A state, and counts for it, from what `described` gave, whose arrays it takes out of `tensors`."""
    if description["class_name"] != type(optimizer).__name__:
        raise ValueError(f"state of {description['class_name']}, not of {type(optimizer).__name__}")
    calls, skipped = (_count_of(description, key) for key in ("calls", "skipped"))
    running = running_from(optimizer._rule, description["running"])
    optimizer._check_running(running)
    return State.from_description(description, tensors, optimizer._slot_like, optimizer.use_ema, bool(
        optimizer.gradient_accumulation_steps)), (calls, skipped, running)


def _count_of(description: Config, key: str) -> int:
    value = description[key]
    if type(value) is not int:
        raise ValueError(f"{key}: expected a count, got {value!r}")
    return int(check_count(key, value))
