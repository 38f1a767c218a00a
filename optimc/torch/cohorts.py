"""Which parameters step together, and the plan of each such cohort.

torch counts steps by parameter, optimc by optimizer.  A *cohort* is a set of parameters that have done the same
number of steps, with the same flags: one inner optimizer of optimc steps it in one call.  Nearly always there is one.
A parameter without a gradient rests, as in torch: it falls behind, and leaves its cohort at its next step.

`Cohorts` plans anew when a program has looked at the state (states.py), when a parameter got its first gradient or
lost it, and when something that C watches has changed: a flag, a list of parameters, the state.  It does not step;
step.py does.
"""

from optimc.base.rules import used_slots
from optimc.torch import tensors
from optimc.torch.inner import make_inner
from optimc.torch.states import States, put_number, slot_views

#: torch's arguments that choose a kernel
FLAGS = ("amsgrad", "nesterov", "centered", "maximize", "decoupled_weight_decay", "momentum")


class Cohort:
    """Parameters that step together.

    Attributes:
        inner: the optimizer of optimc that steps them.
        members: (parameter, its group).
        groups: the groups, in the order of the inner optimizer's.
        params: the parameters.
        exchange: the table by which C looks at them, or None.
        unversioned: those of the parameters that can be stepped in inference mode only.
    """

    def __init__(self, inner, members, groups):
        self.inner, self.members, self.groups = inner, members, groups
        self.params = [param for param, _ in members]
        self.exchange = tensors.EXCHANGE
        self.unversioned = [param for param in self.params if not tensors.has_version(param)]
        self._pointers = [param.data_ptr() for param in self.params]
        self._forms = [tensors.form(param) for param in self.params]

    def is_as_planned(self):
        """Whether the plan still holds."""
        if len({param.grad is None for param in self.params}) > 1:
            return False
        # without the table the plan is over NumPy views, which stay where they were made
        moved = self.exchange is None and self._pointers != [param.data_ptr() for param in self.params]
        return not moved and self.inner._is_as_watched()

    def has_its_forms(self):
        """Whether each parameter is of the type, shape and layout it was planned with."""
        return self._forms == [tensors.form(param) for param in self.params]


class Cohorts:
    """All parameters of an optimizer, in cohorts.

    Attributes:
        all: the cohorts.
        only: the cohort if there is just one, the plan holds as far as is known, and C can look at tensors: the short
            way to a step.  Else None.
        states: the `States` that tells when it is looked at.
    """

    def __init__(self, optimizer, counterpart, sources):
        self._optimizer, self._counterpart, self._sources = optimizer, counterpart, sources
        self._flags = [source.key for source in sources if source.key in FLAGS]
        self._stale = True              # the state may be another than at the last step
        self.states = None
        self.forget()

    def forget(self):
        """Drops all plans; the next step makes new ones."""
        self.all, self.only, self._resting = [], None, []

    def expire(self):
        """Notes that the state may have changed: the next step plans anew."""
        self._stale, self.only = True, None

    # ------------------------------------------------------------------------------- state

    def watch_state(self):
        """Puts a `States` in the place of the state, if the program or torch has put another dict there."""
        if self.states is None or self._optimizer.state is not self.states:
            self._optimizer.state = self.states = States(self, dict(self._optimizer.state))
            self.expire()

    def state_is_looked_at(self, states):
        """What `States` calls before a program sees its content."""
        if states is self.states:
            self.write_steps()
            self.expire()

    def write_steps(self):
        """Writes the step counts into the state, unless it may have been changed since the last step."""
        self.watch_state()
        if self._stale or not self._counterpart.counts_steps:
            return
        for cohort in self.all:
            count = cohort.inner.iterations
            for k, group in enumerate(cohort.groups):
                scalars = cohort.inner._scalars(k) if count else [
                    self._counterpart.initial_value(key, group) for key in self._counterpart.scalars]
                for state in (self.states.of(param) for param, own in cohort.members if own is group):
                    put_number(state, "step", float(count))
                    for key, value in zip(self._counterpart.scalars, scalars, strict=True):
                        put_number(state, key, value)

    # ---------------------------------------------------------------------------- planning

    def refresh(self):
        """Plans anew if anything a plan depends on has changed."""
        if self._stale or not self.all or any(param.grad is not None for param in self._resting) \
                or not all(cohort.is_as_planned() for cohort in self.all):
            self._regroup()

    def _regroup(self):
        """Makes the cohorts, by what each parameter has done so far and whether it has a gradient now."""
        self.write_steps()
        parts = {}
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                state = dict.get(self.states, param) or {}
                key = (_count(state), param.grad is None, *(group[name] for name in self._flags),
                       *(self._scalars(state) or ()))
                parts.setdefault(key, []).append((param, group))
        cohorts, resting = [], []
        for (count, without_gradient, *_), members in parts.items():
            if without_gradient and not count:
                resting += [param for param, _ in members]      # never had one: there is nothing to plan yet
            else:
                cohorts.append(self._plan(members, count))
        self.all, self._resting, self._stale = cohorts, resting, False
        short = len(cohorts) == 1 and not resting and tensors.EXCHANGE is not None and not cohorts[0].unversioned
        self.only = cohorts[0] if short else None

    def _plan(self, members, count):
        """A cohort of these parameters, which have done `count` steps."""
        optimizer, counterpart = self._optimizer, self._counterpart
        tensors.check_parameters([param for param, _ in members])
        groups = list({id(group): group for _, group in members}.values())
        stepper = make_inner(counterpart, self._sources, groups, members)
        weights = [tensors.view(param, param) for param, _ in members]
        slots, used = {}, used_slots(stepper)
        for slot, k in used.items():
            key = counterpart.slots[slot]
            slots[slot] = slot_views(self.states, members, weights, key, k,
                                     lambda group, key=key: counterpart.initial_value(key, group))
        stepper.build(weights, slots=slots)
        stepper.iterations = count
        for k, group in enumerate(groups):
            param = next(param for param, own in members if own is group)
            scalars = self._scalars(dict.get(self.states, param, {}))
            if scalars and count:
                stepper._set_scalars(scalars, k)
        stepper._prepare_tensors(tuple(tensors.order(param) for param, _ in members), (
            (optimizer.__dict__, "state", self.states),
            (optimizer.__dict__, "param_groups", tuple(optimizer.param_groups)),
            *((group, "params", tuple(group["params"])) for group in optimizer.param_groups),
            *((group, name, group[name]) for group in groups for name in self._flags)),
            tuple((i, k, self.states.of(param), counterpart.slots[slot])
                  for i, (param, _) in enumerate(members) for slot, k in used.items() if self.states.is_known()),
            tensors.PLAIN)
        return Cohort(stepper, members, groups)

    def _scalars(self, state):
        """The scalars of the rule in a parameter's state, or None if they are not there."""
        keys = self._counterpart.scalars
        return [float(state[key]) for key in keys] if keys and keys[0] in state else None


def _count(state):
    """The steps done with a parameter's state."""
    if "step" in state:
        return int(state["step"])
    # torch's SGD keeps no count; only its first step is special, and before it there is no buffer
    return 1 if state.get("momentum_buffer") is not None else 0
