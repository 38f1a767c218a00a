"""The rules and kernels of csrc/optimizers.def for Python: the values that they read and the slots that they keep."""

import functools

from optimc import _core

OPTIONS = _core.options             # the values of every rule, in their order; a rule's hyperparameters follow
CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
WHOLE = ("global_clipnorm", "ema_momentum", "loss_scale_factor")    # no group can have its own
POLICIES = _core.policies


def slots_of_rule(rule):
    """The names of all slots that kernels of a rule may keep, in the order of its row."""
    return _core.rules[rule][0]


def hyperparameters_of(rule):
    return _core.rules[rule][1]


def scalars_of(rule):
    """The names of the numbers that a rule keeps from update to update, in the order of its row."""
    return _core.rules[rule][3]


def factors_of(rule):
    """The slots of a rule that lack an axis of their weight: name -> the axis, counted from the last."""
    return _core.factors.get(rule, {})


#: all slots whose shape is not their weight's
FACTORS = {slot for slots in _core.factors.values() for slot in slots}


def without_axis(shape, axis):
    """A shape without one axis, counted from the last."""
    return shape[:-axis] + shape[len(shape) - axis + 1:]


def rule_of(kernel):
    return _core.kernels[kernel][1]


@functools.cache
def slots_of(kernel):
    """The slots that a kernel keeps: name -> number.  Do not change the dict: it is kept."""
    _, rule, mask = _core.kernels[kernel]
    return {name: k for k, name in enumerate(slots_of_rule(rule)) if mask >> k & 1}


def kept_slots(kernels):
    """The slots that weights with these kernels keep, by number: name -> for each weight its number, or None."""
    of_each = [slots_of(kernel) for kernel in kernels]
    numbers = {name: k for slots in of_each for name, k in slots.items()}
    return {name: [slots.get(name) for slots in of_each] for name in sorted(numbers, key=numbers.get)}


def used_slots(optimizer):
    """The slots of an optimizer whose kernel does not depend on the weight: name -> number."""
    return slots_of(optimizer._kernel())
