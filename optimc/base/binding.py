"""Building: makes the state of an optimizer for its weights, and a plan that binds both.

`carried` makes the state: initial arrays for new weights, and the present values for weights that the optimizer has.
`plan_of` makes the plan of weights and their state, which the optimizer takes over in one assignment.
Neither changes the optimizer.  Call both through `_locked`, between two steps, or from the step itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from optimc import _core
from optimc.base import memory, narrow
from optimc.base.rules import rule_of, slots_of, slots_of_rule
from optimc.base.selection import Places
from optimc.base.storage import FLOAT32, like_of, likes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from optimc._types import Array, Names
    from optimc.base.narrow import Place
    from optimc.base.optimizer import Optimizer
    from optimc.base.state import State
    from optimc.base.storage import Like

    Given = Sequence[Array] | None


def carried(optimizer: Optimizer, before: State, names: Names, weights: Sequence[Array], may_add: bool = False,
            adopted: dict[str, Any] | None = None, averages: Given = None, accumulators: Given = None,
            masters: Sequence[Array | None] | None = None, places: Sequence[Place] | None = None,
            convert: bool = False) -> State:
    """The state of an optimizer for weights, made from its state `before`.

    `Optimizer.build` documents the arrays that may be given.

    Args:
        may_add: weights may be added to a state that has some.
        places: the `Place` of each weight, if they are not whole or are numbered otherwise than by position.
        convert: slots may be stored otherwise in the state than the optimizer stores them.
    """
    kernels = optimizer._kernels(names, weights)
    old = _match(before, names, weights, kernels, optimizer._scratch_slots, may_add)
    before = before.renumbered(old).but(places=tuple(places or ()) or before.places)
    groups = before.group_of_each(names, weights)
    slots = {} if adopted is None else _checked(adopted, kernels, optimizer._scratch_slots)
    numbers = {slot: k for kernel in kernels for slot, k in slots_of(kernel).items()}
    making = Making(optimizer, before, names, weights, kernels, groups, before.places_of(weights), old,
                    convert or before.convert)
    for slot, k in sorted(numbers.items(), key=lambda item: item[1]):
        if slot not in slots:
            slots[slot] = making.slot(slot, k)
    averages = _beside("averages", averages, bool(optimizer.use_ema), weights, old, before.averages,
                       _core.PART_AVERAGE, lambda i: weights[i] if optimizer.iterations else 0)
    accumulators = _beside("accumulators", accumulators, bool(optimizer.gradient_accumulation_steps), weights, old,
                           before.accumulators, _core.PART_ACCUMULATOR, lambda i: 0)
    waiting = before.waiting
    return before.but(
        names=names, likes=likes_of(weights), slots=slots,
        averages=averages, accumulators=accumulators, masters=making.masters(masters), convert=False,
        waiting=tuple(k is not None and k < len(waiting) and waiting[k] for k in old))


def plan_of(optimizer: Optimizer, weights: Sequence[Array], state: State) -> _core.Plan:
    """The sealed plan of weights and their state.  The optimizer does not change."""
    names = state.names
    excluded, groups = state.excluded.find(Places(weights, names)), state.group_of_each(names, weights)
    plan, places = _core.Plan(len(weights), state), state.places_of(weights)
    for i, (weight, kernel) in enumerate(zip(weights, optimizer._kernels(names, weights), strict=True)):
        kept, slot_names = slots_of(kernel), slots_of_rule(rule_of(kernel))
        plan.add(
            weight, name=names[i] if names else None, kernel=_core.kernels[kernel][0], slot_names=slot_names,
            slots=tuple(state.slots[slot][i] if slot in kept else None for slot in slot_names),
            average=state.averages and state.averages[i], accumulator=state.accumulators and state.accumulators[i],
            master=state.masters and state.masters[i], number=places[i].number, begin=places[i].begin,
            decay=-1 if i in excluded else optimizer._index[optimizer._decay_of(kernel)],
            factor=optimizer._factor(weight), group=groups[i], waiting=state.waiting[i],
            to_nearest=narrow.is_to_nearest(optimizer, weight))
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
    return {name: [_stored(array) for array in arrays] for name, arrays in slots.items()}


def _stored(array: Array | None) -> Array | None:
    """A given slot as steps see it: bfloat16 of ml_dtypes as the uint16 that it is."""
    return array.view(narrow.HALVES) if array is not None and array.dtype.name == "bfloat16" else array


class Making(NamedTuple):
    """The making of a state for weights, of which weight i was weight old[i] of the state before, or is new."""

    optimizer: Optimizer
    before: State
    names: Names
    weights: Sequence[Array]
    kernels: Sequence[str]
    groups: Sequence[int]
    places: Sequence[Place]
    old: Sequence[int | None]
    convert: bool

    def slot(self, slot: str, k: int) -> list[Array | None]:
        """New arrays for a slot, None for a weight without it.  They hold what the state holds, or initial values."""
        arrays_before = self.before.slots.get(slot)
        held = [None if position is None or arrays_before is None else arrays_before[position]
                for position in self.old]
        kept = [slot in slots_of(kernel) for kernel in self.kernels]
        if slot in self.optimizer._scratch_slots and [None if array is None else array.strides for array in held] == [
                _strides(weight) if keep else None
                for weight, keep in zip(self.weights, kept, strict=True)]:
            return held
        some = [i for i, keep in enumerate(kept) if keep]
        likes = [narrow.slot_like(self.optimizer, self.kernels[i], slot, self.weights[i], self.places[i],
                                  self.groups[i]) for i in some]
        arrays: list[Array | None] = [None] * len(kept)
        for i, array in zip(some, memory.like([self.weights[i] for i in some], k, likes), strict=True):
            arrays[i] = array
            self._fill(array, slot, k, i, held[i])
        return arrays

    def _fill(self, array: Array, slot: str, k: int, i: int, held: Array | None) -> None:
        """Puts into a new array what the state holds for a slot, or its initial value."""
        if not array.size:
            return
        plain = self.optimizer._slot_like(slot, self.weights[i])
        codec = narrow.codec_of(self.kernels[i], k, array)
        position = self.old[i]
        if held is not None and position is not None:
            order = self.before.likes[position].order
            old_plain = plain._replace(order=order)
            old_codec = narrow.codec_of(self.kernels[i], k, held)
            if old_codec == codec and (held.dtype != narrow.BYTES or order == plain.order):
                array[...] = held
                return
            if old_codec != codec and not self.convert:
                raise ValueError(
                    f"{self._label(i)}: the slot {slot!r} is stored as {narrow.name_of_storage(held)}, and "
                    f"state_dtype asks for {narrow.name_of_storage(array)}: pass convert=True to round it")
            value = held if old_codec is None else narrow.decoded(old_codec, held, old_plain)
        else:
            value = self.optimizer._initial(slot, self.weights[i], self.groups[i])
        narrow.fill(self.optimizer, self.kernels[i], slot, value, self.weights[i], array, self.places[i])

    def _label(self, i: int) -> str:
        return f"weights[{self.names[i] if self.names else i!r}]"

    def masters(self, given: Sequence[Array | None] | None) -> list[Array | None] | None:
        """The masters of the weights of 16 bits: those given, or new ones that hold what the state holds."""
        likes = [narrow.master_like(self.optimizer, weight, self._label(i)) for i, weight in enumerate(self.weights)]
        if given is not None:
            return self._checked_masters(given, likes)
        held = [None if position is None or self.before.masters is None else self.before.masters[position]
                for position in self.old]
        lost = next((i for i, like in enumerate(likes) if held[i] is not None and not like), None)
        if lost is not None and not self.convert:
            raise ValueError(f"{self._label(lost)}: the state has its master, and master_weights=False keeps none: "
                             "pass convert=True to drop it")
        some = {i: like for i, like in enumerate(likes) if like}
        if not some:
            return None
        arrays: list[Array | None] = [None] * len(likes)
        made = memory.like([self.weights[i] for i in some], _core.PART_MASTER, [*some.values()])
        for i, array in zip(some, made, strict=True):
            arrays[i] = array
            if held[i] is not None:
                array[...] = held[i]
            elif array.dtype == FLOAT32:
                array[...] = self.weights[i]
        return arrays

    def _checked_masters(self, given: Sequence[Array | None], likes: Sequence[Like | None]) -> list[Array | None]:
        """The masters that the caller gave, if they are those of weights that have one."""
        if len(given) != len(likes):
            raise ValueError(f"masters: expected {len(likes)} entries, one per weight, got {len(given)}")
        for i, (array, like) in enumerate(zip(given, likes, strict=True)):
            if (array is None) != (like is None):
                raise ValueError(f"masters[{i}]: expected {like or 'None, because this weight has no master'}, got "
                                 f"{'None' if array is None else 'an array'}")
        return list(given)


def _strides(weight: Array) -> tuple[int, ...]:
    """The strides of a plain slot of a weight."""
    like = like_of(weight).real
    return tuple(stride * like.dtype.itemsize // weight.dtype.itemsize for stride in weight.strides)


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
    arrays = memory.like(weights, k, [like_of(weight).real for weight in weights])
    for i, (array, position) in enumerate(zip(arrays, old, strict=True)):
        array[...] = initial(i) if position is None or held is None else held[position]
    return arrays
