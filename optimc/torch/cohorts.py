"""Which parameters step together, and the plan of each such cohort.

A *cohort* is a set of parameters with the same flags: one inner optimizer of optimc steps it in one call.  Nearly
always there is one.  A parameter without a gradient rests, as in torch.  torch counts steps by parameter, optimc by
optimizer: once some of a cohort rest, each of its parameters counts in C.

The inner optimizers hold the counts and the scalars of the rule.  `optimizer.state` gets them when somebody looks for
the first time, and from then on at every step, in C if they lie in tensors.  What it says counts only where its owner
has changed an entry (`Member.keeps`).

`Cohorts` plans anew what a program has changed: a flag, a list of parameters, the state.  It does not step; step.py
does.  All of it runs in one turn, so that threads step, plan and look one after the other.
"""

from __future__ import annotations

import re
import weakref
from functools import partial
from typing import TYPE_CHECKING

import torch

from optimc import _core
from optimc._core import CHECKED, LAST_WHOLE, NO_GRADIENTS, NOT_AS_PLANNED
from optimc.torch import handed, tensors
from optimc.torch.bare import PLAIN, bare, is_real
from optimc.torch.inner import make_inner
from optimc.torch.member import Member
from optimc.torch.slots import Slots
from optimc.torch.states import States, count_of, number
from optimc.torch_names import MASTER, STORAGE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from torch import Tensor

    from optimc._types import Config
    from optimc.base.optimizer import Optimizer
    from optimc.torch.member import Numbers
    from optimc.torch_names import Counterpart, Source

    Entry = tuple[Config | weakref.ref[Any], str, object]

#: torch's arguments that choose a kernel
FLAGS = ("amsgrad", "nesterov", "centered", "maximize", "decoupled_weight_decay", "momentum")

#: tells autograd that the tensors of a list have changed; torch's public function takes a third longer
_changed = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)


class Cohort:
    """Parameters that step together.

    Args:
        inner: the optimizer of optimc that steps them.
        members: the `Member` of each.
        groups: the groups, in the order of the inner optimizer's.
        parts: torch's keys of the slots and the master -> their numbers.
        new: (`Member`, key, value) of entries that enter the state with the first step, or leave it without value.

    Attributes:
        counts: whether each parameter counts its own steps, so that some can rest.
        watched: whether C compares the counts and scalars in the state before a step, and writes them after it.
        params: the parameters.
        exchange: the table by which C looks at them, or None.
        unversioned: those of the parameters that can be stepped in inference mode only.
        waiting: entries like `new`, after the first step: those of parameters that it did not step.
    """

    inner: Optimizer
    members: list[Member]
    groups: list[Config]
    new: list[tuple[Member, str, Any]]
    counts: bool
    watched: bool
    params: list[Tensor]
    exchange: Any
    unversioned: list[Tensor]
    waiting: list[tuple[Member, str, Any]]

    def __init__(self, inner: Optimizer, members: list[Member], groups: list[Config], parts: dict[str, int],
                 new: list[tuple[Member, str, Any]]) -> None:
        self.inner, self.members, self.groups, self.new = inner, members, groups, new
        self.waiting = []
        self.counts = self.watched = False
        self.params = [member.param for member in members]
        self.exchange = tensors.EXCHANGE
        self.unversioned = [param for param in self.params if not tensors.has_version(param)]
        self._planned, self._written = inner.iterations, -1
        self._orders = tuple(tensors.order(member.plan()) for member in members)
        self._odd = [member for member in members if not member.is_plain()]
        self._parts = tuple((i, parts[key], member.state, key) for i, member in enumerate(members)
                            for key in member.slots if member.is_plain())
        self._entries: tuple[Entry, ...] = ()
        self._watched_slots = False
        self._addresses = self._addresses_now()
        self._forms = [tensors.form(param) for param in self.params]

    def watch(self, entries: tuple[Entry, ...]) -> None:
        """Lets C watch entries of dicts: (dict, key, value)."""
        self._entries, self._watched_slots, self.watched = entries, False, False
        self.inner._prepare_tensors(self._orders, entries, (), PLAIN, tensors.rows)

    def watch_state(self, keys: Sequence[str], counterpart: Counterpart) -> None:
        """Lets C look at the state, which a program may hold: at the slots, and at the numbers if it can."""
        if self.watched or self.new or self.waiting:
            return
        entries = []
        self.watched = self.exchange is not None and not self._odd
        for i, (member, numbers) in enumerate(zip(self.members, self.numbers(), strict=True)):
            for which, (key, value) in enumerate(counterpart.kept(keys, numbers).items()):
                entry, left = member.numbers[key]
                entries.append((i, which, member.state, key, entry))
                self.watched &= left == value and tensors.is_number(entry, which == 0)
        if self.watched or not self._watched_slots:
            self.inner._prepare_tensors(self._orders, self._entries, self._parts, PLAIN, tensors.rows,
                                        tuple(entries) if self.watched else ())
            self._watched_slots = True

    def recall(self, keys: Sequence[str], counterpart: Counterpart) -> None:
        """Notes what C has written into the state."""
        for member, numbers in zip(self.members, self.numbers(), strict=True) if self.watched else ():
            for key, value in counterpart.kept(keys, numbers).items():
                member.numbers[key] = member.numbers[key][0], value

    def unwatch_large(self, keys: Sequence[str], counterpart: Counterpart) -> None:
        """Lets Python write counts that float32 may not have."""
        if self.watched and self.inner.iterations >= LAST_WHOLE:
            self.recall(keys, counterpart)
            self.watch(self._entries)

    def _addresses_now(self) -> list[int]:
        """The addresses of tensors that C does not ask for theirs.

        Without the table that is all of them: the plan is over NumPy views, which stay where they were made.
        """
        found = [bare(tensor).data_ptr() for member in self._odd for tensor in member.slots.values()]
        return found if self.exchange is not None else found + [
            bare(tensor).data_ptr() for member in self.members for tensor in (member.param, *member.slots.values())]

    def is_simple(self) -> bool:
        """True if nothing is to be done around a step but to ask C for it."""
        return self.exchange is not None and not self.unversioned and not self._odd

    def is_as_planned(self, states: States, seen: bool) -> bool:
        """Whether the plan holds: new slots have entered the state, no memory has moved, no state has changed."""
        return (not self.new and self._addresses == self._addresses_now()
                and (not seen or all(member.is_as_left(states) for member in self.members)))

    def has_its_forms(self) -> bool:
        """Whether each parameter is of the type, shape and layout it was planned with."""
        return self._forms == [tensors.form(param) for param in self.params]

    def check(self, steps: _core.Transaction, scale: float | None) -> int:
        """Checks a step: CHECKED, NO_GRADIENTS or NOT_AS_PLANNED."""
        if self.unversioned:
            tensors.check_versions([param for param in self.unversioned if param.grad is not None])
        try:
            return self._check(steps, scale)
        except (TypeError, ValueError) as error:        # C numbers the parameters of the cohort
            said = self._in_torchs_words(str(error))
            if said == str(error):
                raise
            raise type(error)(said) from None

    def _in_torchs_words(self, said: str) -> str:
        """An error of C: its weights are `params`, numbered as in the optimizer, and its gradients are tensors."""
        members = self.members if self.exchange is not None else self._stepped()
        first = re.match(r"grads\[(\d+)\]", said)
        param = members[int(first[1])].param if first and int(first[1]) < len(members) else None
        if param is not None and param.grad is not None:
            said = said.replace("expected the shape of its parameter", f"expected shape {tuple(param.shape)}, "
                                f"like its parameter, got {tuple(param.grad.shape)}")
            said = re.sub("expected a floating-point gradient$", rf"\g<0>, got {param.grad.dtype}", said)
            said = said.replace("pass an array, or", "make it dense, as by sparse=False of an embedding, or")

        def renamed(found: re.Match[str]) -> str:
            i = int(found[2])
            return f"{found[1].replace('weights', 'params')}[{members[i].index if i < len(members) else i}]"

        return re.sub(r"\b(weights|grads)\[(\d+)\]", renamed, said)

    def _check(self, steps: _core.Transaction, scale: float | None) -> int:
        if self.exchange is not None:
            return steps.check_tensors(self.inner, self._standing(self.members), self.exchange, loss_scale=scale)
        params = self._standing(self._stepped())
        if not params:
            return NO_GRADIENTS
        if len(params) < len(self.params) and not self.counts:
            return NOT_AS_PLANNED
        grads: list[Any] = [param.grad for param in params]
        good = steps.check(self.inner, [tensors.gradient(grad, param, i)
                                        for i, (grad, param) in enumerate(zip(grads, params, strict=True))],
                           [tensors.view(param, param) for param in params], loss_scale=scale)
        return CHECKED if good else NO_GRADIENTS

    def _stepped(self) -> list[Member]:
        return [member for member in self.members if member.param.grad is not None]

    def count(self, numbers: Sequence[Numbers] | None = None) -> None:
        """Lets each parameter count its own steps, from the count and scalars that it has or these."""
        if not self.counts:
            self.inner._set_progress(tuple(numbers or self.numbers()))
            self.counts = True

    def rests(self) -> bool:
        """True if some of the parameters have no gradient."""
        return any(param.grad is None for param in self.params)

    def stepped(self) -> list[Tensor]:
        """The parameters that a step changes."""
        return [member.param for member in self._stepped()] if self.counts else self.params

    def _standing(self, members: list[Member]) -> list[Tensor]:
        """The tensors that stand for the parameters of these members in a step."""
        if self._odd:
            with torch.no_grad():
                return [member.stand() for member in members]
        return self.params if members is self.members else [member.param for member in members]

    def write_back(self) -> None:
        """Writes stepped copies into the parameters."""
        for member in self._odd:
            if member.param.grad is not None:
                member.write_back()

    def enter(self, states: States | None) -> None:
        """Puts new slots into the state, once the step they were made for has run.

        A parameter that was never stepped has no state, as in torch: its slots wait for its first step.
        """
        if self.new and self.inner.iterations != self._planned:
            self.new, self.waiting = [], self.new
        if not self.waiting:
            return
        counts = {id(member): numbers[0] for member, numbers in zip(self.members, self.numbers(), strict=True)}
        waiting = []
        for member, key, value in self.waiting:
            if not counts[id(member)]:
                waiting.append((member, key, value))
                continue
            if value is None:
                member.state.pop(key, None)
            else:
                member.state[key] = value
            _enter(states, member)
        self.waiting = waiting

    def numbers(self) -> list[Numbers]:
        """For each member the count and the scalars that it has now."""
        if self.counts:
            return list(self.inner._get_progress() or ())
        count = self.inner.iterations
        of_group = {id(group): (count, *self.inner._scalars(k)) for k, group in enumerate(self.groups)}
        return [of_group[id(member.group)] for member in self.members]

    def write(self, keys: Sequence[str], states: States | None, counterpart: Counterpart) -> None:
        """Writes the counts and scalars into the state, but for those that its owner has changed."""
        count = self.inner.iterations
        if keys and count and count != self._written and not self.new and not self.watched:
            for member, numbers in zip(self.members, self.numbers(), strict=True):
                if numbers[0]:
                    member.write(counterpart.kept(keys, numbers))
                    _enter(states, member)
            self._written = count


def _enter(states: States | None, member: Member) -> None:
    """Puts the state of a member into the states, if there is none for its parameter."""
    if states is not None and dict.get(states, member.param) is None:
        dict.__setitem__(states, member.param, member.state)


class Cohorts:
    """All parameters of an optimizer, in cohorts.

    Attributes:
        turn: the turn within which all methods are called.  Its `step` is the short way: of the only cohort, while
            nothing is to be looked after before a step and C can look at tensors.  Else it is None.
        stepping: (process, thread) of a step that goes the long way, or None.
        all: the cohorts.
        handed: (parameter, its group) of those that torch's own implementation steps.
        states: the `States` that tells when it is looked at, or None.
        plans_all: whether parameters are planned before they have a gradient, unless a program looks at the state.

    Nothing here keeps the optimizer or its state alive: both go as soon as the program lets go of the optimizer.
    """

    turn: _core.Turn
    stepping: tuple[int, int] | None
    all: list[Cohort]
    handed: list[tuple[Tensor, Config]]
    plans_all: bool

    def __init__(self, optimizer: Any, counterpart: Counterpart, sources: Sequence[Source]) -> None:
        self.turn = _core.Turn()
        self._owner, self._counterpart, self._sources = weakref.ref(optimizer), counterpart, sources
        self._states: Any = lambda: None
        self._flags = [source.key for source in sources if source.key in (*FLAGS, *counterpart.flags)]
        self._keys = self._keys_now()
        self.stepping = None
        self._warned = self.plans_all = self._was_late = False
        self.forget()

    @property
    def _optimizer(self) -> Any:
        return self._owner()

    @property
    def states(self) -> Any:
        return self._states()

    def forget(self) -> None:
        """Drops all plans; the next step makes new ones, from what the state says."""
        self.expire()
        self.all: list[Cohort] = []
        self._resting: list[Member] = []
        self.handed = []

    def expire(self) -> None:
        """Lets the next step plan all anew."""
        self._stale, self.turn.step = True, None
        self._seen = True               # a program may have changed the state since the last step

    # ------------------------------------------------------------------------------- state

    def watch_state(self) -> None:
        """Puts a `States` in the place of the state, if the program or torch has put another dict there."""
        if self.states is None or self._optimizer.state is not self.states:
            self.write()
            self.expire()
            self._optimizer.state = states = States(self, dict(self._optimizer.state))
            self._states = weakref.ref(states)

    def restore(self, states: States) -> None:
        """Drops all plans, after the optimizer has been given this state again."""
        self._states = weakref.ref(states)
        self.forget()

    def look(self, states: States) -> None:
        """Writes the counts into the state; `States` calls it before a program looks for the first time."""
        states.known = True
        if states is self.states:
            self.note_change(states)
            self.write()

    def note_change(self, states: States) -> None:
        """Notes that the state is another than before; `States` calls it."""
        if states is self.states:
            self._seen, self.turn.step = True, None

    def write(self) -> None:
        """Writes the counts and scalars into the state, but for those that its owner has changed."""
        for cohort in self.all:
            cohort.enter(self.states)
            cohort.write(self._keys, self.states, self._counterpart)
        for member in self._resting:
            if member.count:
                member.write(self._counterpart.kept(self._keys, (member.count, *member.scalars)))

    def settle(self) -> None:
        """Brings plans and state together after a step or a look."""
        for cohort in self.all:
            cohort.enter(self.states)
            if self.states.known:
                cohort.watch_state(self._keys, self._counterpart)

    def finish(self) -> None:
        """Ends a step, so that the next one can go the short way if it may."""
        if self.states.known:
            self.write()
        self.settle()
        self._seen = self.states.known and not all(cohort.watched for cohort in self.all)
        if self._seen:
            return
        if len(self.all) == 1 and not self.handed:
            cohort, = self.all
            if cohort.is_simple() and not cohort.new:
                self.turn.step = (cohort.inner, cohort.params, cohort.exchange,
                                  tuple(member.param for member in self._resting), _changed)

    # ---------------------------------------------------------------------------- planning

    def _keys_now(self) -> tuple[str, ...]:
        """torch's keys of the count and the scalars.

        torch's SGD keeps no count.  The random numbers by which parameters are rounded depend on one.
        """
        groups = self._optimizer.__dict__.get("param_groups", ())
        rounds = any(group.get("stochastic_round", False) for group in groups)
        return ("step", *self._counterpart.scalars) if self._counterpart.counts_steps or rounds else ()

    def refresh(self) -> None:
        """Plans anew what is no longer as it was planned."""
        self.watch_state()
        for cohort in self.all:
            cohort.unwatch_large(self._keys, self._counterpart)
            cohort.enter(self.states)
            if self._seen:
                cohort.recall(self._keys, self._counterpart)
        late = any(member.param.grad is not None for member in self._resting)
        if (self._stale or late or not self.all or not self.all[0].inner._is_as_watched()
                or any(param.device.type == "cpu" and not handed.is_group_handed(group)
                       for param, group in self.handed)
                or not all(cohort.is_as_planned(self.states, self._seen) for cohort in self.all)):
            self.plans_all |= late and self._was_late       # a third one may come at any step
            self._was_late |= late
            self._replan()

    def adapt(self, cohorts: list[Cohort]) -> None:
        """Lets these cohorts be stepped, whose state has changed, or of which some parameters rest.

        One that rests may be what no plan takes.
        """
        uncounted = [cohort for cohort in cohorts if not cohort.counts and cohort.rests()]
        for cohort in uncounted:
            cohort.count()
        if not uncounted and self._seen:
            self._replan(rested=False)
        self._seen |= not uncounted

    def _replan(self, rested: bool = True) -> None:
        """Makes all cohorts anew.

        rested: parameters that have no gradient in this step may be in them.

        Raises:
            ValueError: a group asks for storage that torch's own implementation, which is to step it, does not have.
        """
        for group in self._optimizer.param_groups:
            handed.check_storage(group)
        known: dict[int, tuple[Member, Numbers]] = {
            id(member.param): (member, (member.count, *member.scalars)) for member in self._resting}
        planned: set[int] = set()
        for cohort in self.all:
            cohort.recall(self._keys, self._counterpart)
            for member, numbers in zip(cohort.members, cohort.numbers(), strict=True):
                known[id(member.param)] = member, numbers
                planned.add(id(member.param))
            planned -= {id(member.param) for member, _, _ in cohort.waiting}
        keys_before, self._keys = self._keys, self._keys_now()
        parts: dict[tuple[Any, ...], list[Member]] = {}
        resting = []
        plans_all = self.plans_all and not self.states.known
        self.handed = []
        for index, param, group, is_handed in handed.split(self._optimizer.param_groups):
            if is_handed:
                self.handed.append((param, group))
                continue
            before, numbers = known.pop(id(param), (None, ()))
            member = self._member(param, group, index, before, numbers)
            wanted = member.count or id(param) in planned or (plans_all and param.requires_grad)
            if param.grad is not None or (rested and wanted and tensors.is_stepped(param)):
                parts.setdefault(self._kind(group), []).append(member)
            else:                                       # there is nothing to plan yet
                resting.append(member)
        for member, numbers in known.values():          # the program has taken them out
            if numbers[0]:
                member.write(self._counterpart.kept(keys_before, numbers))
        if not self._warned:
            self._warned = handed.warn(self._optimizer, self.handed)
        self._adopt([self._plan(members) for members in parts.values()], resting)

    def _kind(self, group: Config) -> tuple[Any, ...]:
        """The facts that parameters of one cohort have in common."""
        return (*(group[name] for name in self._flags),
                *(group.get(name, STORAGE[name]) for name in ("master_weights", "stochastic_round", "seed")))

    def _adopt(self, made: list[Cohort], resting: list[Member]) -> None:
        """Takes over cohorts.  The first one's inner optimizer watches what all plans depend on."""
        self._seen, self.turn.step = True, None              # somebody may hold the state of a new member
        optimizer = self._optimizer
        for cohort in made:
            cohort.watch(())
        if made:
            made[0].watch((
                (self._owner, "state", self._states),
                (self._owner, "param_groups", tuple(optimizer.param_groups)),
                *((group, "params", tuple(group["params"])) for group in optimizer.param_groups),
                *((group, name, group.get(name)) for group in optimizer.param_groups
                  for name in (*self._flags, *STORAGE, *handed.KEYS))))
        self.all, self._resting, self._stale = made, resting, False
        self.settle()

    def _member(self, param: Tensor, group: Config, index: int, before: Member | None,
                numbers: Numbers | None) -> Member:
        """The `Member` for a parameter: with what it had `before`, where its state is as it was left."""
        state = dict.get(self.states, param)
        state = {} if state is None else state
        member = Member(param, group, index, state, {**dict.fromkeys(self._keys, (None, None)),
                                                     **(before.numbers if before else {})},
                        self._counterpart.needs_order())
        values = dict(zip(self._keys, numbers or (), strict=False)) if before else {}
        for key in self._keys:
            if key not in values or not member.keeps(key):
                entry = state.get(key)
                values[key] = count_of(state, index) if key == "step" else (
                    self._counterpart.initial_value(key, group) if entry is None else number(entry))
                member.numbers[key] = (None, None) if entry is None else (entry, number(entry))
        member.count = values.get("step", count_of(state, index))
        member.scalars = tuple(values[key] for key in self._counterpart.scalars)
        return member

    def _plan(self, members: list[Member]) -> Cohort:
        """A cohort of these members."""
        counterpart = self._counterpart
        for member in members:
            tensors.check_parameter(member.param, member.index)
        groups = list({id(member.group): member.group for member in members}.values())
        inner = make_inner(counterpart, self._sources, groups, [(member.param, member.group) for member in members])
        for member in members if not inner._elementwise else ():
            if member.param.is_complex():
                raise RuntimeError(f"params[{member.index}]: {counterpart.name} does not support complex parameters")
            if not is_real(member.param):
                raise TypeError(f"params[{member.index}]: {counterpart.name} needs whole tensors, got a DTensor")
        slots = Slots(inner, counterpart, members, groups)
        inner._locked(inner._move, slots.weights, places=slots.places, masters=slots.masters(), adopted={
            slot: slots.slot(key, partial(counterpart.initial_value, key)) for key, (slot, _) in slots.keys.items()
            if slots.is_kept(slot)})
        numbers = [(member.count, *member.scalars) for member in members]
        of_group = {id(member.group): entry for member, entry in zip(members, numbers, strict=True)}
        inner.iterations = max(member.count for member in members)
        for k, group in enumerate(groups):
            if inner.iterations and counterpart.scalars:
                inner._set_scalars(of_group[id(group)][1:], k)
        parts = {MASTER: _core.PART_MASTER, **{key: k for key, (_, k) in slots.keys.items()}}
        cohort = Cohort(inner, members, groups, parts, slots.new)
        if any(member.param.grad is None or member.count != inner.iterations or entry != of_group[id(member.group)]
               for member, entry in zip(members, numbers, strict=True)):
            cohort.count(numbers)
        return cohort
