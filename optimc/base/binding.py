"""Building: makes the state of an optimizer for its weights, and a plan that binds both.

`carried` makes the state: initial arrays for new weights, and the present values for weights that the optimizer has.
`plan_of` makes the plan of weights and their state, which the optimizer takes over in one assignment.
Neither changes the optimizer.  Call both through `_locked`, between two steps, or from the step itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc import _core
from optimc.base import memory
from optimc.base.rules import rule_of, slots_of, slots_of_rule
from optimc.base.selection import Places
from optimc.base.storage import likes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from optimc._types import Array, Names
    from optimc.base.optimizer import Optimizer
    from optimc.base.state import State

    Given = Sequence[Array] | None


def carried(optimizer: Optimizer, before: State, names: Names, weights: Sequence[Array], may_add: bool = False,
            adopted: dict[str, Any] | None = None, averages: Given = None, accumulators: Given = None) -> State:
    """The state of an optimizer for weights, made from its state `before`.

    `Optimizer.build` documents the arrays that may be given.  may_add: weights may be added to a state that has some.
    """
    kernels = optimizer._kernels(names, weights)
    old = _match(before, names, weights, kernels, optimizer._scratch_slots, may_add)
    before = before.renumbered(old)
    groups = before.group_of_each(names, weights)
    slots = {} if adopted is None else _checked(adopted, kernels, optimizer._scratch_slots)
    numbers = {slot: k for kernel in kernels for slot, k in slots_of(kernel).items()}
    for slot, k in sorted(numbers.items(), key=lambda item: item[1]):
        if slot not in slots:
            kept = [slot in slots_of(kernel) for kernel in kernels]
            slots[slot] = _slot(optimizer, before, slot, k, weights, kept, groups, old)
    averages = _beside("averages", averages, bool(optimizer.use_ema), weights, old, before.averages,
                       _core.PART_AVERAGE, lambda i: weights[i] if optimizer.iterations else 0)
    accumulators = _beside("accumulators", accumulators, bool(optimizer.gradient_accumulation_steps), weights, old,
                           before.accumulators, _core.PART_ACCUMULATOR, lambda i: 0)
    waiting = before.waiting
    return before.but(
        names=names, likes=likes_of(weights), slots=slots,
        averages=averages, accumulators=accumulators,
        waiting=tuple(k is not None and k < len(waiting) and waiting[k] for k in old))


def plan_of(optimizer: Optimizer, weights: Sequence[Array], state: State) -> _core.Plan:
    """The sealed plan of weights and their state.  The optimizer does not change."""
    names = state.names
    excluded, groups = state.excluded.find(Places(weights, names)), state.group_of_each(names, weights)
    plan = _core.Plan(len(weights), state)
    for i, (weight, kernel) in enumerate(zip(weights, optimizer._kernels(names, weights), strict=True)):
        kept, slot_names = slots_of(kernel), slots_of_rule(rule_of(kernel))
        plan.add(
            weight, name=names[i] if names else None, kernel=_core.kernels[kernel][0], slot_names=slot_names,
            slots=tuple(state.slots[slot][i] if slot in kept else None for slot in slot_names),
            average=state.averages and state.averages[i], accumulator=state.accumulators and state.accumulators[i],
            decay=-1 if i in excluded else optimizer._index[optimizer._decay_of(kernel)],
            factor=optimizer._factor(weight), group=groups[i], waiting=state.waiting[i])
    plan.seal()
    return plan


def _match(state: State, names: Names, weights: Sequence[Array], kernels: Sequence[str], scratch: Sequence[str],
           may_add: bool) -> list[int | None]:
    """For each weight its position in a state, or None for a weight that is new."""
    held = state.likes
    if not held:
        return [None] * len(weights)
    if names and state.names:
        given = set(names)
        lost = next((name for name in state.names if name not in given), None)
        if lost is not None:
            raise ValueError(f"weights has no entry {lost!r}, whose slots the optimizer holds")
        where = {name: i for i, name in enumerate(state.names)}
        old = [where.get(name) for name in names]
    else:
        if len(weights) < len(held):
            raise ValueError(f"weights: expected the {len(held)} that the optimizer holds slots for, got "
                             f"{len(weights)}")
        old = [i if i < len(held) else None for i in range(len(weights))]
    if not may_add and None in old:
        raise ValueError(f"weights: expected the {len(held)} that the optimizer holds slots for, got "
                         f"{len(weights)}: call build(weights) to add weights")
    for i, k in enumerate(old):
        if k is None:
            continue
        label = f"weights[{names[i] if names else i!r}]"
        if not held[k].fits(weights[i]):
            raise ValueError(f"{label}: expected shape {held[k].shape} and dtype {held[k].dtype}, like the slots "
                             f"the optimizer holds, got {weights[i].shape} and {weights[i].dtype}")
        lacking = [slot for slot in slots_of(kernels[i]) if slot not in scratch
                   and (slot not in state.slots or state.slots[slot][k] is None)]
        if lacking:
            raise ValueError(f"{label}: the optimizer holds no slot {lacking[0]!r} for it, "
                             "which its arguments need")
    return old


def _checked(slots: dict[str, Any], kernels: Sequence[str], scratch: Sequence[str]) -> dict[str, list[Array | None]]:
    """Checks the slots that the caller gave.  Only scratch slots may be missing."""
    used = {slot for kernel in kernels for slot in slots_of(kernel)}
    needed = used.difference(scratch)
    if not needed <= set(slots) <= used:
        raise ValueError(f"slots: expected {sorted(needed)}, got {sorted(slots)}")
    for name, arrays in slots.items():
        if len(arrays) != len(kernels):
            raise ValueError(f"slots[{name!r}]: expected {len(kernels)} arrays, one per weight, "
                             f"got {len(arrays)}")
        for i, (array, kernel) in enumerate(zip(arrays, kernels, strict=True)):
            if array is None and name in slots_of(kernel):
                raise ValueError(f"slots[{name!r}][{i}]: expected an array, got None")
    return {name: list(arrays) for name, arrays in slots.items()}


def _slot(optimizer: Optimizer, before: State, slot: str, k: int, weights: Sequence[Array], kept: Sequence[bool],
          groups: Sequence[int], old: Sequence[int | None]) -> list[Array | None]:
    """New arrays for a slot, None for a weight without it.  They hold the values of the state, or initial ones."""
    arrays_before = before.slots.get(slot)
    held = [None if position is None or arrays_before is None else arrays_before[position] for position in old]
    if slot in optimizer._scratch_slots and [None if array is None else array.strides for array in held] == [
            weight.strides if keep else None for weight, keep in zip(weights, kept, strict=True)]:
        return held
    some = [weight for weight, keep in zip(weights, kept, strict=True) if keep]
    new = iter(memory.like(some, k, [optimizer._slot_like(slot, weight) for weight in some]))
    arrays = [next(new) if keep else None for keep in kept]
    for array, weight, group, value in zip(arrays, weights, groups, held, strict=True):
        if array is not None:
            array[...] = optimizer._initial(slot, weight, group) if value is None else value
    return arrays


def _beside(what: str, given: Given, wanted: bool, weights: Sequence[Array], old: Sequence[int | None], held: Given,
            k: int, initial: Callable[[int], Array | int]) -> list[Array] | None:
    """Averages or accumulators: those given, or new arrays (number `k` of each weight), or None if not wanted.

    A new array holds the value in the state, or `initial` of the weight's position.
    """
    if given is not None and (not wanted or len(given) != len(weights)):
        raise ValueError(f"{what}: expected {len(weights) if wanted else 'no'} arrays, got {len(given)}")
    if not wanted:
        return None
    if given is not None:
        return list(given)
    arrays = memory.like(weights, k)
    for i, (array, position) in enumerate(zip(arrays, old, strict=True)):
        array[...] = initial(i) if position is None or held is None else held[position]
    return arrays
