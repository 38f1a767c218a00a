"""What runs along with the updates beside the slots, as Python's own values and as plain values of a file.

For each group there is a dict of two dicts: the "products" of the hyperparameters that vary, and the "scalars" that
the rule keeps, by name.  Next: csrc/python/running.c, which keeps the numbers.
"""

import math

from optimc.base import version_1


def plain_running(running):
    """What `_get_running` gave as plain values that JSON can hold; a number that is not finite becomes its text."""
    return [{kind: {name: number if math.isfinite(number) else repr(number) for name, number in numbers.items()}
             for kind, numbers in one.items()} for one in running]


def running_from(rule, entries):
    """What `_set_running` takes, from plain values, of this version or of version 1."""
    return tuple(version_1.running_by_name(rule, one) if isinstance(one, (list, tuple)) else
                 {kind: {name: float(number) for name, number in numbers.items()} for kind, numbers in one.items()}
                 for one in entries)
