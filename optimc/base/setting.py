"""Setting a value of an optimizer, for all weights or for a group.

The C base class keeps the values and checks the range of each (csrc/python/sources.c).  `change` adds what needs the
whole optimizer: it refuses a value with which the optimizer could not go on, and puts the value before it back.
"""

from optimc import schedules
from optimc.base.rules import CLIPS, slots_of


def change(optimizer, group, name, value):
    """Sets a value of a group (0: of the weights in none).  Refuses a value that the optimizer cannot go on with."""
    index = optimizer._index[name]
    before, own = optimizer._get_value(group, index), optimizer._is_own(group, index)
    kernel = optimizer._kernel() if optimizer.built else None
    optimizer._set_value(group, index, value, schedules.is_schedule(value))
    try:
        if name in CLIPS:
            _check_clips(optimizer, group)
        if optimizer.built and optimizer._kernel() != kernel:
            _check_slots(optimizer, name, value)
    except ValueError:
        if own:
            optimizer._set_value(group, index, before, schedules.is_schedule(before))
        else:
            optimizer._inherit(group, index)
        raise


def _check_clips(optimizer, group):
    """Refuses two clips at a time."""
    groups = {group} if group else {k for clip in CLIPS for k in optimizer._owners(optimizer._index[clip])}
    for k in groups:                        # a group has the values it does not set
        given = [clip for clip in CLIPS if optimizer._get_value(k, optimizer._index[clip]) is not None]
        if len(given) > 1:
            raise ValueError(f"Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set, "
                             f"got {' and '.join(given)}")


def _check_slots(optimizer, name, value):
    """Refuses a value that needs a slot that the optimizer does not keep."""
    kernels = optimizer._kernels(optimizer._names, optimizer._weights)
    if any(slot not in optimizer._slots or optimizer._slots[slot][i] is None
           for i, kernel in enumerate(kernels) for slot in slots_of(kernel)):
        raise ValueError(f"{name}={value!r} needs a slot the optimizer was not built with")
