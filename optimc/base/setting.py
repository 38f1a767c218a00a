"""Setting a value of an optimizer, for all weights or for a group.

The C base class keeps the values and checks the range of each (csrc/python/settings.c).  `change` adds what needs the
whole optimizer: it refuses a value with which the optimizer could not go on, and puts the value before it back.
"""

from optimc import schedules
from optimc.base.rules import CLIPS, slots_of


def change(optimizer, group, name, value):
    """Sets a value of a group (0: of the weights in none).  Refuses a value that the optimizer cannot go on with."""
    index = optimizer._index[name]
    before, own = optimizer._get_value(group, index), optimizer._is_own(group, index)
    optimizer._set_value(group, index, value, schedules.is_schedule(value))
    try:
        _check(optimizer, group, name, value)
    except ValueError:
        if own:
            optimizer._set_value(group, index, before, schedules.is_schedule(before))
        else:
            optimizer._inherit(group, index)
        raise


def _check(optimizer, group, name, value):
    """Refuses two clips at a time, and a value that needs a slot that the optimizer does not keep."""
    for k in {group} if group else range(len(optimizer.groups) + 1):    # a group has the values it does not set
        given = [clip for clip in CLIPS if optimizer._get_value(k, optimizer._index[clip]) is not None]
        if len(given) > 1:
            raise ValueError(f"Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set, "
                             f"got {' and '.join(given)}")
    kernels = optimizer._kernels(optimizer._names, optimizer._weights) if optimizer.built else ()
    if any(slot not in optimizer._slots or optimizer._slots[slot][i] is None
           for i, kernel in enumerate(kernels) for slot in slots_of(kernel)):
        raise ValueError(f"{name}={value!r} needs a slot the optimizer was not built with")
