"""The rules and kernels of csrc/optimizers.def for Python: the values that they read and the slots that they keep."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from optimc import _core

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optimc._types import Shape
    from optimc.base.optimizer import Optimizer

OPTIONS = _core.options             # the values of every rule, in their order; a rule's hyperparameters follow
CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
WHOLE = ("global_clipnorm", "ema_momentum", "loss_scale_factor")    # no group can have its own
POLICIES = _core.policies


def slots_of_rule(rule: str) -> tuple[str, ...]:
    """The names of all slots that kernels of a rule may keep, in the order of its row."""
    return _core.rules[rule][0]


def hyperparameters_of(rule: str) -> tuple[str, ...]:
    return _core.rules[rule][1]


def scalars_of(rule: str) -> tuple[str, ...]:
    """The names of the numbers that a rule keeps from update to update, in the order of its row."""
    return _core.rules[rule][3]


def factors_of(rule: str) -> dict[str, int]:
    """The slots of a rule that lack an axis of their weight: name -> the axis, counted from the last."""
    return _core.factors.get(rule, {})


#: all slots whose shape is not their weight's, and what they lack
FACTORS = {slot: axis for slots in _core.factors.values() for slot, axis in slots.items()}


def without_axis(shape: Shape, axis: int) -> Shape:
    """A shape without one axis, counted from the last; -1: without all axes but the first."""
    return shape[:1] if axis < 0 else shape[:-axis] + shape[len(shape) - axis + 1:]


def rule_of(kernel: str) -> str:
    return _core.kernels[kernel][1]


@functools.cache
def slots_of(kernel: str) -> dict[str, int]:
    """The slots that a kernel keeps: name -> number.  Do not change the dict: it is kept."""
    _, rule, mask = _core.kernels[kernel]
    return {name: k for k, name in enumerate(slots_of_rule(rule)) if mask >> k & 1}


def kept_slots(kernels: Iterable[str]) -> dict[str, list[int | None]]:
    """The slots that weights with these kernels keep, by number: name -> for each weight its number, or None."""
    of_each = [slots_of(kernel) for kernel in kernels]
    numbers = {name: k for slots in of_each for name, k in slots.items()}
    return {name: [slots.get(name) for slots in of_each] for name in sorted(numbers, key=lambda name: numbers[name])}


def used_slots(optimizer: Optimizer) -> dict[str, int]:
    """The slots that weights of an optimizer may have: name -> number."""
    return {slot: k for kernel in optimizer._possible_kernels() for slot, k in slots_of(kernel).items()}
