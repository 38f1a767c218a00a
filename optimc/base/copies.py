"""Copies of an optimizer: pickles, deep copies, state as plain values.

A copy holds arrays of its own and is bound to no weights.  What a pickle holds stays as it is: pickles of 0.1 load.
"""

import pickle

from optimc.base.selection import Selection
from optimc.base.state import State
from optimc.base.storage import Like


def picture(optimizer, duplicate):
    """Everything a copy needs, as plain values and arrays; taken between two steps, by way of `_locked`."""
    known = {*optimizer._arguments, "groups", "_rooms"}
    state = optimizer._chosen_by_position()
    kept = state.without(optimizer.scratch_slots).copied()
    return {
        "arguments": duplicate(optimizer._given()),
        "groups": [duplicate(group.given(selection.arrays))
                   for group, selection in zip(optimizer.groups, state.grouped, strict=True)],
        "excluded": (list(state.excluded.arrays), state.excluded.patterns),
        "attributes": duplicate({k: v for k, v in optimizer.__dict__.items() if k not in known}),
        "calls": optimizer._calls, "skipped": optimizer.skipped_steps, "running": optimizer._get_running(),
        "names": kept.names, "waiting": kept.waiting, "slots": kept.slots,
        "shapes": tuple((like.shape, like.dtype) for like in kept.likes),
        "averages": kept.averages, "accumulators": kept.accumulators,
    }


def state_of(picture):
    """The state in what `picture` gave; groups are not in it."""
    arrays, patterns = picture["excluded"]
    return State(
        names=picture["names"], likes=tuple(Like(*entry) for entry in picture["shapes"]), slots=picture["slots"],
        averages=picture["averages"], accumulators=picture["accumulators"], waiting=picture["waiting"],
        excluded=Selection("exclude_from_weight_decay", tuple(arrays), tuple(patterns)))


def check_picklable(picture):
    """Refuses values that cannot be found again by their name."""
    for arguments in (picture["arguments"], *picture["groups"]):
        for name, value in arguments.items():
            if callable(value) and "<" in getattr(value, "__qualname__", ""):
                raise pickle.PicklingError(
                    f"{name} is {value.__qualname__}, which cannot be pickled: use a schedule or a "
                    "function defined in a module")
