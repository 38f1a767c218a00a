"""Setting a value of an optimizer, for all weights or for a group.

The C base class keeps the values and checks the range of each (csrc/python/sources.c).  `change` adds what needs the
whole optimizer: it refuses a value with which the optimizer could not go on.  All checks come before the value is
set, in one turn: no step and no other thread ever sees a value that is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc import schedules
from optimc.base.names import Elsewhere, schedule_meant
from optimc.base.rules import CLIPS, OPTIONS, slots_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from optimc.base.optimizer import Optimizer


def change(optimizer: Optimizer, group: int, name: str, value: object) -> None:
    """Sets a value of a group (0: of the weights in none).  Refuses a value that the optimizer cannot go on with."""
    optimizer._in_turn(_change, optimizer, group, name, value)


def _change(optimizer: Optimizer, group: int, name: str, value: object) -> None:
    index = optimizer._index[name]
    try:
        value = optimizer._read_value(index, value)
    except TypeError as error:
        if name == "learning_rate":
            refuse_weights(value)
        raise TypeError(f"{error}{_advice(name, value)}") from None
    if type(value) is not float and isinstance(value, Elsewhere):       # it is callable only to refuse calls
        raise TypeError(f"{name} must be a number, a schedule or a callable, got {type(value).__name__}")
    if name in CLIPS:
        if value is not None:
            _check_clips(optimizer, group, name)
    elif index >= len(OPTIONS) and optimizer.built:
        considered = _considering(optimizer, group, index, value)
        if considered._kernel() != optimizer._kernel():
            _check_slots(optimizer, considered, name, value)
    optimizer._set_value(group, index, value, schedules.is_schedule(value))


def _advice(name: str, value: object) -> str:
    """The end of an error about something that is no value; nothing if it is like nothing known."""
    if isinstance(value, str):
        try:
            return f": pass the number {float(value)!r}, not the text {value!r}"
        except ValueError:
            meant = schedule_meant(value, schedules.public())
            return f" {value!r}" + (f": did you mean optimc.schedules.{meant}(...)?" if meant else
                                    ": see optimc.schedules")
    return ""


def refuse_weights(value: object) -> None:
    """Refuses a container or an array in place of the learning rate: it may be weights, which torch takes there."""
    if isinstance(value, (list, tuple, dict)) or hasattr(value, "__next__") or getattr(value, "ndim", False):
        raise TypeError(f"learning_rate must be a number, a schedule or a callable, got {type(value).__name__}: "
                        "weights are given to apply(grads, weights), not here; optimc.torch takes "
                        "parameters") from None


def _check_clips(optimizer: Optimizer, group: int, name: str) -> None:
    """Refuses a clip of a group beside another that holds for a weight."""
    index = optimizer._index[name]
    changed = {group} if group else {k for clip in CLIPS for k in optimizer._owners(optimizer._index[clip])
                                     if not k or not optimizer._is_own(k, index)}
    for k in changed:                       # a group has the values it does not set
        given = [clip for clip in CLIPS if clip == name
                 or optimizer._get_value(k, optimizer._index[clip]) is not None]
        if len(given) > 1:
            raise ValueError(f"Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set, "
                             f"got {' and '.join(given)}")


def _considering(optimizer: Optimizer, group: int, index: int, value: object) -> Optimizer:
    """An optimizer that says which kernels this one would need if a value were another."""
    def get(k: int, i: int) -> object:
        new = i == index and (k == group or (not group and not optimizer._is_own(k, i)))
        return value if new else optimizer._get_value(k, i)

    def owners(i: int) -> Collection[int]:
        return {group, *optimizer._owners(i)} if i == index else optimizer._owners(i)

    other = type(optimizer).__new__(type(optimizer))
    other.__dict__.update(optimizer.__dict__, _get_value=get, _ask_value=get, _owners=owners)
    return other


def _check_slots(optimizer: Optimizer, considered: Optimizer, name: str, value: object) -> None:
    """Refuses a value that needs a slot that the optimizer does not keep."""
    kernels = considered._kernels(optimizer._names, optimizer._weights)
    if any(slot not in optimizer._slots or optimizer._slots[slot][i] is None
           for i, kernel in enumerate(kernels) for slot in slots_of(kernel)):
        raise ValueError(f"{name}={value!r} needs a slot the optimizer was not built with")
