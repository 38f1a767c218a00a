"""The base of every optimizer: arguments, options, groups, slots, copies.

A class declares its arguments as class attributes, in the order of its signature::

    class Adagrad(Optimizer):
        rule = "adagrad"                            # its row in csrc/optimizers.def
        learning_rate = Value(0.001)
        initial_accumulator_value = Option(0.1, at_least_zero)
        epsilon = Value(1e-7)

The constructor, its signature, the checks, `get_config` and `repr` follow from these (optimc/base/arguments.py).
The step itself is not here: `apply` is a method of the C base class, see csrc/python/apply.c.
"""

import contextlib
import copy
import inspect
import math
import pickle
import re
import warnings

import numpy as np

from optimc import _core, checkpoint, registry, schedules
from optimc.base import memory
from optimc.base.arguments import (
    LOW_OPEN,
    Argument,
    Option,
    Value,
    check_name,
    count,
    fraction,
    from_plain,
    likely,
    one_of,
    plain,
    unzip,
)
from optimc.base.rules import (
    CLIPS,
    OPTIONS,
    POLICIES,
    hyperparameters_of,
    rule_of,
    scalars_of,
    slots_of,
    slots_of_rule,
)
from optimc.base.running import plain_running, running_from
from optimc.base.selection import Group, group_of_each, select, weights_or_patterns
from optimc.checkpoint.descriptions import ACCUMULATOR, AVERAGE, shape_of
from optimc.checkpoint.saving import import_all, taking_over

#: what an optimizer holds for its weights
HELD = ("_slots", "_averages", "_accumulators", "_held_names", "_held_shapes", "_held_waiting")


@registry.base
class Optimizer(_core.Optimizer):
    """Base class of all optimizers; use one of its subclasses.

    Args (every optimizer has them, after its own):
        weight_decay: decoupled weight decay: before each update, w <- w - w weight_decay learning_rate.
        clipnorm: each gradient is scaled down to this norm, if its own is larger.
        clipvalue: each element of a gradient is clipped to [-clipvalue, clipvalue].
        global_clipnorm: all gradients are scaled by one factor, down to this norm of all of them together.
        use_ema: keep an exponential moving average of the weights; see `averaged`.
        ema_momentum: its momentum, in [0, 1].
        ema_overwrite_frequency: every so many updates the averages become the weights.
        loss_scale_factor: gradients are of a loss multiplied by this (`scale_loss`) and are divided by it.
        gradient_accumulation_steps: update once in so many calls, with the mean of their gradients.
        name: a name for people; default: the class's, in snake case.
        check_finite: what to do about a gradient that is not finite, or is clipped by a norm that is not:
            "propagate" it, "raise" a FloatingPointError, or "skip" the step and count it in `skipped_steps`;
            the latter two before anything is written.
        groups: weights with values of their own: a list of dicts, each with "params" (a regular expression
            or a list of them, for the names of weights; or a list of the weights, or of their positions) and
            any of the optimizer's values.  A weight may be in one group only.
        coupled_weight_decay: weight_decay is added to the gradient instead: g <- g + weight_decay w, after the
            clipping (L2 regularisation, torch's meaning outside AdamW).
        cautious (rules with momentum only): move a weight's elements only where the step agrees with the
            gradient in sign, and those further: the step is masked, and multiplied by the number of elements
            over 1 plus the number that move (Liang et al., 2024, arXiv 2411.16085, algorithm 2).  The
            gradient and the slots are read once more, to count.
        maximize: climb instead of descending: gradients are negated.
        style: "keras", "torch" or "optax": a preset of the arguments not given, to that library's defaults and
            conventions (`styles` of the class lists them).

    At most one of the three clips can be set; one of 0 or less is off.
    """

    rule: str | None = None     #: the row of csrc/optimizers.def it computes its coefficients with
    #: for each group of slots that Keras creates together: {our name: Keras's}
    keras_slots: tuple[dict[str, str], ...] = ()
    #: the arguments by which other libraries' conventions differ from the defaults, by library
    styles: dict[str, dict[str, object]] = {}
    #: slots that are room to work in, not state
    scratch_slots: tuple[str, ...] = ()
    #: slots that start from what a weight or the learning rate is at the first step
    late_slots: tuple[str, ...] = ()
    #: whether a part of a weight steps as it would within the whole
    elementwise = True

    weight_decay = Value(None)
    clipnorm = Value(None, -math.inf)
    clipvalue = Value(None, -math.inf)
    global_clipnorm = Value(None, -math.inf)
    use_ema = Option(False, core="_use_ema")
    ema_momentum = fraction(0.99)
    ema_overwrite_frequency = Option(None, count(1), core="_overwrite", encode=lambda n: n or 0, fixed=False)
    loss_scale_factor = Value(None, open=LOW_OPEN)
    gradient_accumulation_steps = Option(None, count(2), core="_steps", encode=lambda n: n or 1)
    name = Option(None, check_name, fixed=False)
    check_finite = Option("propagate", one_of(*POLICIES), core="_check_finite", encode=POLICIES.index,
                          fixed=False, keyword_only=True)
    coupled_weight_decay = Option(False, core="_coupled", fixed=False, keyword_only=True)
    maximize = Option(False, core="_maximize", fixed=False, keyword_only=True)
    style = Option("keras", one_of("keras", "torch", "optax"), keyword_only=True)

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        own, common, last, named = {}, {}, {}, {}
        for owner in cls.__mro__:
            for name, argument in vars(owner).items():
                if isinstance(argument, Argument) and not any(name in seen for seen in (own, last, named)):
                    kind = (named if argument.keyword_only else last if argument.last
                            else common if owner is Optimizer else own)
                    kind[name] = argument
        cls._arguments = {**own, **{k: v for k, v in common.items() if k not in own}, **last, **named}
        cls._signature = inspect.Signature([
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY if argument.keyword_only
                              else inspect.Parameter.POSITIONAL_OR_KEYWORD, default=argument.default)
            for name, argument in cls._arguments.items()] + [
            inspect.Parameter("groups", inspect.Parameter.KEYWORD_ONLY, default=None)])
        if cls.__init__ is Optimizer.__init__:
            cls.__signature__ = cls._signature
        if cls.rule:
            cls._index = {name: k for k, name in enumerate((*OPTIONS, *hyperparameters_of(cls.rule)))}
            if "Example:" in (cls.__doc__ or ""):
                cls.__doc__ = cls.__doc__.replace(
                    "    Example:", "    What all take beside these (weight_decay, clipnorm, use_ema, groups, ...): "
                    "help(optimc.Optimizer).\n\n    Example:", 1)
        registry.optimizer(cls)

    def __init__(self, *args, **kwargs):
        if not self.rule:
            raise TypeError(f"{type(self).__name__} is a base class: use one of its subclasses")
        if kwargs.pop("decay", None) is not None:
            warnings.warn("Argument `decay` is no longer supported and will be ignored.", stacklevel=2)
        unknown = {name: value for name, value in kwargs.items() if name not in self._signature.parameters}
        if unknown:
            raise ValueError(f"Argument(s) not recognized: {unknown}{likely(unknown, self._signature.parameters)}")
        given = self._signature.bind(*args, **kwargs).arguments
        groups = given.pop("groups", None)
        for name in self._index:
            value = self._arguments.get(name)
            if isinstance(value, Value):
                self._declare(name, value.low, value.high, value.open, value.optional)
            else:
                self._declare(name, -math.inf, math.inf, 0, True)
        self._name_scalars(scalars_of(self.rule))
        self._slots = {}                    # name -> one array per weight, in order
        self._averages = None               # of the weights, likewise
        self._accumulators = None           # of gradients, likewise
        self._held_names = None             # of the weights these belong to
        self._held_shapes = ()              # and dtypes
        self._held_waiting = ()
        self._excluded = ((), ())           # from weight decay: weights, patterns
        self.groups = ()                    #: the groups of weights with values of their own
        self.style = given.get("style", "keras")
        if self.style != "keras" and self.style not in self.styles:
            raise ValueError(f"{type(self).__name__} has no style {self.style!r}, only "
                             f"{', '.join(map(repr, ('keras', *self.styles)))}")
        preset = self.styles.get(self.style, {})
        for name, argument in self._arguments.items():
            setattr(self, name, given.get(name, preset.get(name, argument.default)))
        if self.name is None:
            self.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_",
                               type(self).__name__).lower()
        if isinstance(groups, (dict, str)):
            raise TypeError(f"groups: expected a list of dicts, got {groups!r}")
        for overrides in groups or ():
            self.groups += (Group(self, f"groups[{len(self.groups)}]", overrides),)

    # ---------------------------------------------------------------- what a subclass may say

    def _kernel(self):
        """The kernel of the rule (a KERNEL_ROW) that these arguments ask for."""
        return self.rule

    def _initial(self, slot, weight, group):
        """What a slot of a weight in a group (0: in none) is filled with at first."""
        return 0

    def _kernel_of(self, name, weight):
        """The kernel for one weight, where they differ; `name` may be None."""
        return self._kernel()

    def _slot_shape(self, slot, weight):
        return weight.shape

    def _decay_of(self, kernel):
        """The value that is the weight decay of weights with this kernel."""
        return "weight_decay"

    def _factor(self, weight):
        """What the coefficients of a weight depend on beside the values."""
        return 1.0

    # ------------------------------------------------------------------------------- values

    def _in_use(self, name):
        """Whether a value is, or could become by its schedule, other than zero for any weight."""
        return any(self._get_value(group, self._index[name]) != 0 for group in range(len(self.groups) + 1))

    def _change(self, group, name, value):
        """Sets a value of a group, unless the optimizer could not go on with it."""
        index = self._index[name]
        before, own = self._get_value(group, index), self._is_own(group, index)
        self._set_value(group, index, value, schedules.is_schedule(value))
        try:
            self._check_values(group, name, value)
        except ValueError:
            if own:
                self._set_value(group, index, before, schedules.is_schedule(before))
            else:
                self._inherit(group, index)
            raise

    def _check_values(self, group, name, value):
        for k in {group} if group else range(len(self.groups) + 1):     # a group has the values it does not set
            given = [clip for clip in CLIPS if self._get_value(k, self._index[clip]) is not None]
            if len(given) > 1:
                break
        if len(given) > 1:
            raise ValueError(f"Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set, "
                             f"got {' and '.join(given)}")
        kernels = self._kernels(self._names, self._weights) if self.built else ()
        if any(slot not in self._slots or self._slots[slot][i] is None
               for i, kernel in enumerate(kernels) for slot in slots_of(kernel)):
            raise ValueError(f"{name}={value!r} needs a slot the optimizer was not built with")

    # ---------------------------------------------------------------------------- building

    def build(self, params, *, slots=None, averages=None, accumulators=None):
        """Binds the optimizer to its weights and makes their slots.

        `apply` does this by itself at its first call.  Built again, the optimizer moves to new memory, or
        takes on more weights, and keeps the slots of those it had, by name if the weights have names, else
        by order.

        Args:
            params: list, tuple or dict of writable float32 or float64 arrays.
            slots: arrays to keep the state in, instead of new ones: a dict that gives for each slot name a
                list of arrays, one per weight, like the weights (None where the weight has no such slot).
                They are used as they are.  Scratch slots need not be given.
            averages, accumulators: likewise for the averages of `use_ema` and the accumulated gradients, a list
                of arrays each.

        Example:
            >>> import numpy as np, optimc
            >>> opt = optimc.Adam()
            >>> opt.build({"kernel": np.ones((3, 2), np.float32)})
            >>> opt.built
            True
        """
        self._locked(self._build, params, may_add=True, adopt=slots, averages=averages, accumulators=accumulators)

    def _build(self, params, may_add=False, adopt=None, averages=None, accumulators=None):
        """Builds and returns what `_undo_build` needs to undo it; on an error nothing has changed."""
        names, weights = _core.weights_of(params)
        before = self._before_build()
        kernels = self._kernels(names, weights)
        old = self._match(names, weights, kernels, may_add)
        try:
            self._choose_anew(old)
            self._make(names, weights, kernels, old, adopt, averages, accumulators)
        except BaseException:
            if self._slots is before["_slots"]:     # else it was done, and a signal came after
                self._undo_build(before)
            raise
        return before

    def _choose_anew(self, old):
        """Excluded and grouped weights that were bound, or held for, become positions among the new ones."""
        now = {k: i for i, k in enumerate(old) if k is not None}

        def moved(arrays):
            return tuple(now.get(entry, entry) if isinstance(entry, int) else entry
                         for entry in self._positions(arrays))

        self._excluded = (moved(self._excluded[0]), self._excluded[1])
        for group in self.groups:
            group.arrays = moved(group.arrays)

    def _make(self, names, weights, kernels, old, adopt, averages, accumulators):
        """The part of `_build` that makes what is held, and binds."""
        groups = group_of_each(self.groups, names, weights)
        numbers = {slot: k for kernel in kernels for slot, k in slots_of(kernel).items()}
        slots = {} if adopt is None else self._adopted(kernels, adopt)
        for slot, k in sorted(numbers.items(), key=lambda item: item[1]):
            if slot not in slots:
                kept = [slot in slots_of(kernel) for kernel in kernels]
                slots[slot] = self._slot(slot, k, weights, kept, groups, old)
        for what, arrays, wanted in (("averages", averages, self.use_ema),
                                     ("accumulators", accumulators, self.gradient_accumulation_steps)):
            if arrays is not None and (not wanted or len(arrays) != len(weights)):
                raise ValueError(f"{what}: expected {len(weights) if wanted else 'no'} arrays, got {len(arrays)}")
        waiting = self._waiting_now()
        new = {
            "_slots": slots,
            "_averages": None if not self.use_ema else list(averages) if averages is not None else self._carry(
                weights, old, self._averages, _core.MAX_SLOTS, lambda i: weights[i] if self.iterations else 0),
            "_accumulators": None if not self.gradient_accumulation_steps
                else list(accumulators) if accumulators is not None else self._carry(
                    weights, old, self._accumulators, _core.MAX_SLOTS + 1, lambda i: 0),
            "_held_names": names,
            "_held_shapes": tuple((weight.shape, weight.dtype) for weight in weights),
            "_held_waiting": tuple(k is not None and k < len(waiting) and waiting[k] for k in old),
        }
        self._bind_arrays(weights, new)

    def _before_build(self):
        """What `_undo_build` needs."""
        return {**{name: self.__dict__[name] for name in (*HELD, "_excluded")},
                "groups": [group.arrays for group in self.groups]}

    def _undo_build(self, before):
        for group, arrays in zip(self.groups, before.pop("groups"), strict=True):
            group.arrays = arrays
        self.__dict__.update(before)

    def _kernels(self, names, weights):
        return [self._kernel_of(names and names[i], weight) for i, weight in enumerate(weights)]

    def _bind_arrays(self, weights, held, counts=None):
        """Makes the plan for weights and what is held for them, which it takes over in the same call."""
        names, slots = held["_held_names"], held["_slots"]
        excluded = select("exclude_from_weight_decay", *self._excluded, names, weights)
        kernels = self._kernels(names, weights)
        rules = [slots_of_rule(rule_of(kernel)) for kernel in kernels]
        self._bind(
            weights, names, tuple(_core.kernels[kernel][0] for kernel in kernels),
            tuple(tuple(rule) for rule in rules),
            tuple(tuple(slots[slot][i] if slot in slots_of(kernels[i]) else None for slot in rule)
                  for i, rule in enumerate(rules)),
            held["_averages"] and tuple(held["_averages"]),
            held["_accumulators"] and tuple(held["_accumulators"]),
            tuple(-1 if i in excluded else self._index[self._decay_of(kernel)]
                  for i, kernel in enumerate(kernels)),
            tuple(float(self._factor(weight)) for weight in weights),
            group_of_each(self.groups, names, weights), held["_held_waiting"], held, counts)

    def _rebind(self, waiting=None):
        """Makes the plan anew after a change of which accumulators hold something."""
        self._locked(self._rebind_now, waiting)

    def _rebind_now(self, waiting=None):
        """Likewise, or after a change of what the plan depends on; by way of `_locked`."""
        if self.built:
            held = {name: self.__dict__[name] for name in HELD}
            self._bind_arrays(self._weights, held | {
                "_held_waiting": self._waiting_now() if waiting is None else waiting})

    def _fill_late_slots(self):
        """Starts the late slots from what the weights and the learning rate are now."""
        groups = group_of_each(self.groups, self._names, self._weights)
        for slot in self.late_slots:
            for array, weight, group in zip(self._slots[slot], self._weights, groups, strict=True):
                array[...] = self._initial(slot, weight, group)

    def _waiting_now(self):
        return self._waiting() if self.built else self._held_waiting

    def _slot(self, slot, k, weights, kept, groups, old):
        """New arrays for a slot, None where it is not kept: with what is held for it from before, or initial."""
        held = [None if before is None else self._slots.get(slot, {before: None})[before] for before in old]
        if slot in self.scratch_slots and [None if array is None else array.strides for array in held] == [
                weight.strides if keep else None for weight, keep in zip(weights, kept, strict=True)]:
            return held
        some = [weight for weight, keep in zip(weights, kept, strict=True) if keep]
        new = iter(memory.like(some, k, [self._slot_shape(slot, weight) for weight in some]))
        arrays = [next(new) if keep else None for keep in kept]
        for array, weight, group, before in zip(arrays, weights, groups, held, strict=True):
            if array is not None:
                array[...] = self._initial(slot, weight, group) if before is None else before
        return arrays

    def _adopted(self, kernels, slots):
        """Given slots, checked: all but those that are scratch must be there."""
        used = {slot for kernel in kernels for slot in slots_of(kernel)}
        needed = used.difference(self.scratch_slots)
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

    @staticmethod
    def _carry(weights, old, held, k, initial):
        """New arrays, number `k` of each weight: with what is held for it from before, or initial(i)."""
        arrays = memory.like(weights, k)
        for i, (array, before) in enumerate(zip(arrays, old, strict=True)):
            array[...] = initial(i) if before is None or held is None else held[before]
        return arrays

    def _match(self, names, weights, kernels, may_add):
        """For each weight the index of the one whose slots it takes over, or None."""
        held = self._held_shapes
        if not held:
            return [None] * len(weights)
        if names and self._held_names:
            lost = [name for name in self._held_names if name not in names]
            if lost:
                raise ValueError(f"params has no entry {lost[0]!r}, whose slots the optimizer holds")
            where = {name: i for i, name in enumerate(self._held_names)}
            old = [where.get(name) for name in names]
        else:
            if len(weights) < len(held):
                raise ValueError(f"the optimizer holds slots for {len(held)} weights, "
                                 f"params has {len(weights)}")
            old = [i if i < len(held) else None for i in range(len(weights))]
        if not may_add and None in old:
            raise ValueError(f"the optimizer holds slots for {len(held)} weights, params has "
                             f"{len(weights)}: call build(params) to add weights")
        for i, k in enumerate(old):
            label = f"params[{names[i] if names else i!r}]"
            if k is None:
                continue
            if held[k] != (weights[i].shape, weights[i].dtype):
                raise ValueError(f"{label}: expected shape {held[k][0]} and dtype {held[k][1]}, like the slots "
                                 f"the optimizer holds, got {weights[i].shape} and {weights[i].dtype}")
            lacking = [slot for slot in slots_of(kernels[i]) if slot not in self.scratch_slots
                       and (slot not in self._slots or self._slots[slot][k] is None)]
            if lacking:
                raise ValueError(f"{label}: the optimizer holds no slot {lacking[0]!r} for it, "
                                 "which its arguments need")
        return old

    # ------------------------------------------------------------------- choosing weights

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Exempts weights from weight decay; each call replaces the one before.

        Args:
            var_list: the weights themselves.
            var_names: regular expressions, searched for in the names of the weights.

        Example:
            >>> import numpy as np, optimc
            >>> opt = optimc.AdamW()
            >>> opt.exclude_from_weight_decay(var_names=["bias"])
            >>> opt.build({"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)})
        """
        self._locked(self._exclude, weights_or_patterns("exclude_from_weight_decay", [*(var_list or ()), *(
            [var_names] if isinstance(var_names, str) else var_names or ())]))

    def _exclude(self, excluded):
        before, self._excluded = self._excluded, excluded
        try:
            self._rebind_now()
        except BaseException:
            self._excluded = before
            raise

    # ---------------------------------------------------------------------------- stepping

    def _between(self):
        """What is done between `_check` and `_finish`, by whoever calls these; an error gives the step up."""

    def apply_gradients(self, grads_and_vars):
        """`apply` for pairs, as `zip(grads, weights)` gives them.  Returns `iterations`.

        Example:
            >>> import numpy as np, optimc
            >>> w = np.ones(2, np.float32)
            >>> optimc.SGD(learning_rate=0.5).apply_gradients(zip([np.ones(2, np.float32)], [w]))
            1
        """
        self.apply(*unzip(grads_and_vars))
        return self.iterations

    def scale_loss(self, loss):
        """The loss multiplied by `loss_scale_factor`, if there is one."""
        factor = self.loss_scale_factor
        return loss if factor is None else loss * factor

    # ----------------------------------------------------------------- averages of weights

    @property
    def keeps_averages(self):
        """Whether there is something for `averaged` to put in."""
        return self.use_ema or type(self)._evaluation_weights is not Optimizer._evaluation_weights

    def _evaluation_weights(self, weights):
        """What `averaged` puts into the weights: one array each."""
        if not self.use_ema:
            raise ValueError(f"{self.name} keeps no averages: construct it with use_ema=True")
        return self._averages

    def _bound(self, params):
        """The bound weights, after a check that `params`, if given, are the same."""
        if not self.built:
            raise ValueError("the optimizer is not built: it has no weights yet")
        if params is None:
            return self._weights
        names, weights = _core.weights_of(params)
        if len(weights) != len(self._weights):
            raise ValueError(f"params has {len(weights)} entries, the optimizer {len(self._weights)}")
        for i, (weight, bound) in enumerate(zip(weights, self._weights, strict=True)):
            if weight.size and _core.address(weight) != _core.address(bound):
                raise ValueError(f"params[{names[i] if names else i!r}] is not the weight the optimizer "
                                 "was built with")
        return self._weights

    def finalize_variable_values(self, params=None):
        """Puts the averages into the weights, with `use_ema`; as Keras does at the end of `fit`."""
        weights = self._bound(params)

        def put():
            for weight, average in zip(weights, self._averages, strict=True):
                weight[...] = average

        if self.use_ema:
            self._locked(put)

    @contextlib.contextmanager
    def averaged(self, params=None):
        """Within it the weights hold their averages, for evaluation; afterwards what they held before.

        A step within it is refused.

        Example:
            >>> import numpy as np, optimc
            >>> w = np.ones(1, np.float32)
            >>> opt = optimc.SGD(0.5, use_ema=True, ema_momentum=0.5)
            >>> for _ in range(2):
            ...     opt.apply([np.ones(1, np.float32)], [w])
            >>> with opt.averaged([w]):
            ...     print(w)
            [0.25]
            >>> w
            array([0.], dtype=float32)
        """
        weights = self._bound(params)

        def put(values):
            for weight, value in zip(weights, values, strict=True):
                weight[...] = value

        def enter():
            averages, kept = self._evaluation_weights(weights), [weight.copy() for weight in weights]
            self._evaluating += 1
            try:
                put(averages)
            except BaseException:
                leave(kept)
                raise
            return kept

        def leave(kept):
            self._evaluating -= 1
            put(kept)

        kept = self._locked(enter)
        try:
            yield
        finally:
            self._locked(leave, kept)

    # ---------------------------------------------------------------------- state and copies

    @property
    def variables(self):
        """The state as a list of arrays, in Keras's order.

        `iterations` and the learning rate (unless a schedule or callable gives it), which are copies; then,
        live, the averages and the accumulators, if any, and the slots.
        """
        rate = [] if callable(self._get_value(0, 0)) else [np.array(self.learning_rate)]
        blocks = self.keras_slots or (self._slots,)
        slots = [array for block in blocks
                 for arrays in zip(*(self._slots[slot] for slot in block if slot in self._slots), strict=True)
                 for array in arrays if array is not None]
        return [np.array(self.iterations), *rate, *(self._averages or ()), *(self._accumulators or ()), *slots]

    def _given(self):
        """The arguments as they were given, or set since."""
        return {name: self._get_value(0, self._index[name]) if isinstance(argument, Value)
                else getattr(self, name) for name, argument in self._arguments.items()}

    def get_config(self):
        """The constructor's arguments as a dict of plain values; schedules as dicts.

        A plain callable stays as it is: such a configuration can be used, but not stored.
        """
        config = {name: plain(value) for name, value in self._given().items()}
        if self.groups:
            config["groups"] = [group.get_config() for group in self.groups]
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """A new optimizer from what `get_config` gave; `custom_objects` names further schedules."""
        arguments = {name: from_plain(value, custom_objects) for name, value in config.items()}
        if arguments.get("groups"):
            arguments["groups"] = [{name: from_plain(value, custom_objects) for name, value in group.items()}
                                   for group in arguments["groups"]]
        return cls(**arguments)

    def _positions(self, arrays):
        """Arrays as positions of the bound weights, which a copy can keep."""
        if not self.built:
            return list(arrays)
        return sorted(select("", arrays, (), self._names, self._weights))

    def save(self, path):
        """Writes a checkpoint that `optimc.load` continues from, bit for bit; see optimc.checkpoint.

        The file is replaced atomically: whatever happens, a whole one is there.

        Raises:
            ValueError: a function gives a value: a checkpoint can hold numbers and schedules only.
            OSError: of the system, unchanged; an old file is still whole.
        """
        self._locked(checkpoint.save, path, self)

    def state_dict(self):
        """A copy of the state as a dict: what `load_state_dict` takes.  Configuration is not part of it."""
        description, tensors = self._locked(self._describe, np.array)
        return {**description, "tensors": tensors}

    def load_state_dict(self, state):
        """Takes over a copy of the state that `state_dict` of an optimizer of this class gave.

        Everything is checked before anything changes.  A built optimizer keeps its weights, whose shapes and
        dtypes must match; one that is not binds to those of its next step.  Hyperparameters stay as they are.

        Raises:
            CheckpointError: an entry is missing or damaged, or the state is of another class; a ValueError.
            ValueError: the weights are not those of the state.
        """
        if not isinstance(state, dict) or "tensors" not in state:
            raise TypeError("state: expected what state_dict gave")
        twin = type(self).__new__(type(self))
        twin.__setstate__({**self._locked(self._state, lambda values: values), "slots": {}, "shapes": ()})
        with taking_over("state"):
            import_all(twin, state, {name: np.array(array) for name, array in state["tensors"].items()})
        self._locked(self._swap_state, twin)

    def _swap_state(self, twin):
        """Takes over the state of a twin that is not built, moved to this optimizer's weights, if it has some."""
        weights, names = self._weights, self._names
        if weights is not None:
            params = weights if names is None else dict(zip(names, weights, strict=True))
            twin._build(params)
        held = {name: twin.__dict__[name] for name in HELD}
        counts = twin._calls, twin._skipped, twin._get_running()
        if weights is None:
            self._take(held, counts)
        else:
            self._bind_arrays(weights, held, counts)

    def _describe(self, taken=lambda array: array):
        """The state as plain values, and its arrays, as `taken`, by name."""
        tensors = {f"{what}/{i}": taken(array) for what, arrays in
                   ({slot: arrays for slot, arrays in self._slots.items() if slot not in self.scratch_slots}
                    | {AVERAGE: self._averages or (),
                       ACCUMULATOR: self._accumulators or ()}).items()
                   for i, array in enumerate(arrays) if array is not None}
        return {
            "class_name": type(self).__name__,
            "calls": self._calls, "skipped": self.skipped_steps,
            "running": plain_running(self._get_running()),
            "names": self._held_names and list(self._held_names),
            "shapes": [[list(shape), np.dtype(dtype).name] for shape, dtype in self._held_shapes],
            "waiting": list(self._waiting_now()),
            "slots": [slot for slot in self._slots if slot not in self.scratch_slots],
        }, tensors

    def _export(self):
        """The configuration and state as plain values, and the live arrays by name; for a checkpoint."""
        for name, value in self._given().items():
            if callable(value) and not schedules.is_schedule(value):
                raise ValueError(f"{name} comes from a function, which a checkpoint cannot hold: use a schedule")
        description, tensors = self._describe()
        excluded = [self._positions(self._excluded[0]), list(self._excluded[1])]
        return {**description, "config": self.get_config(), "excluded": excluded}, tensors

    def _import(self, description, tensors):
        """Takes over what `_export` gave, emptying `tensors`; raises before it changes anything."""
        if description["class_name"] != type(self).__name__:
            raise ValueError(f"state of {description['class_name']}, not of {type(self).__name__}")
        calls, skipped = (_count_of(description, key) for key in ("calls", "skipped"))
        shapes = tuple(shape_of(*entry) for entry in description["shapes"])
        n, names = len(shapes), description["names"]
        if names is not None and (len(names) != n or not all(isinstance(name, str) for name in names)):
            raise ValueError("names: expected one per weight")
        waiting = tuple(map(bool, description["waiting"]))
        if len(waiting) not in (0, n):
            raise ValueError("waiting: expected one per weight")
        kept = [(AVERAGE, self.use_ema), (ACCUMULATOR, bool(self.gradient_accumulation_steps))]
        wanted = [*((slot, True) for slot in description["slots"]), *kept]
        held = {}
        for what, expected in wanted:
            held[what] = [tensors.get(f"{what}/{i}") for i in range(n)]
            for i, array in enumerate(held[what]):
                like = np.broadcast_to(np.empty((), shapes[i][1]), shapes[i][0])        # takes no memory
                _check_part(what, i, array, self._slot_shape(what, like), like.dtype, expected,
                            what in description["slots"])
        self._set_running(running_from(self.rule, description["running"]))
        for what, _ in wanted:
            for i in range(n):
                tensors.pop(f"{what}/{i}", None)
        if "excluded" in description:
            positions, patterns = description["excluded"]
            self._excluded = weights_or_patterns("excluded", [*positions, *patterns])
        self._slots = {slot: held[slot] for slot in description["slots"]}
        self._averages = held[AVERAGE] if self.use_ema and n else None
        self._accumulators = held[ACCUMULATOR] if self.gradient_accumulation_steps and n else None
        self._held_names, self._held_shapes = names and tuple(names), shapes
        self._held_waiting, self._calls, self._skipped = waiting, calls, skipped

    def _state(self, duplicate):
        """Everything a copy needs; taken between two steps, by way of `_locked`."""
        known = {*self._arguments, *HELD, "groups", "_rooms", "_excluded"}
        return {
            "arguments": duplicate(self._given()),
            "groups": [duplicate(group.given(self._positions(group.arrays))) for group in self.groups],
            "excluded": (self._positions(self._excluded[0]), self._excluded[1]),
            "attributes": duplicate({k: v for k, v in self.__dict__.items() if k not in known}),
            "calls": self._calls, "skipped": self.skipped_steps, "running": self._get_running(),
            "names": self._names or self._held_names, "waiting": self._waiting_now(),
            "shapes": self._held_shapes,
            "slots": {slot: [None if array is None else np.array(array) for array in arrays]
                      for slot, arrays in self._slots.items() if slot not in self.scratch_slots},
            "averages": self._averages and [np.array(array) for array in self._averages],
            "accumulators": self._accumulators and [np.array(array) for array in self._accumulators],
        }

    def __setstate__(self, state):
        Optimizer.__init__(self, **state["arguments"], groups=state["groups"])
        self.__dict__.update(state["attributes"])
        self._calls, self._skipped = state["calls"], state["skipped"]
        self._set_running(running_from(self.rule, state["running"]))
        self._excluded = state["excluded"]
        self._slots, self._averages, self._accumulators = (
            state["slots"], state["averages"], state["accumulators"])
        self._held_names, self._held_shapes, self._held_waiting = (
            state["names"], state["shapes"], state["waiting"])

    def _scalar_names(self):
        """Names of the rule's scalars, in the order of its row."""
        return scalars_of(self.rule)

    def _scalars(self, group=0):
        """The rule's scalars, in the order of its row."""
        return tuple(self._get_running()[group]["scalars"].values())

    def _set_scalars(self, values, group=None):
        """Sets what `_scalars` gave, in one group or in all."""
        scalars = dict(zip(self._scalar_names(), values, strict=True))
        self._set_running(tuple({**one, "scalars": scalars} if group in (None, k) else one
                                for k, one in enumerate(self._get_running())))

    def _hold(self, names, weights, slots, averages, accumulators, waiting, calls):
        """Takes over state made elsewhere; the optimizer binds to the weights of its next step."""
        self._slots, self._averages, self._accumulators = slots, averages, accumulators
        self._held_names = names and tuple(names)
        self._held_shapes = tuple((weight.shape, weight.dtype) for weight in weights)
        self._held_waiting, self._calls = (waiting,) * len(weights), calls

    def __reduce__(self):
        state = self._locked(self._state, lambda values: values)
        for arguments in (state["arguments"], *state["groups"]):
            for name, value in arguments.items():
                if callable(value) and "<" in getattr(value, "__qualname__", ""):
                    raise pickle.PicklingError(
                        f"{name} is {value.__qualname__}, which cannot be pickled: use a schedule or a "
                        "function defined in a module")
        return type(self).__new__, (type(self),), state

    def __deepcopy__(self, memo):
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(self._locked(self._state, lambda values: copy.deepcopy(values, memo)))
        return other

    def __copy__(self):
        return copy.deepcopy(self)

    def __repr__(self):
        shown = [f"{name}={value!r}" for name, value in self._given().items()
                 if name == "learning_rate" or (name != "name" and value != self._arguments[name].default)]
        shown += [f"{len(self.groups)} group{'s' * (len(self.groups) > 1)}"] if self.groups else []
        weights = self._weights
        bound = "not built" if weights is None else \
            f"{len(weights)} weights of {sum(weight.size for weight in weights)} elements"
        return f"<{type(self).__name__}({', '.join(shown)}): {self.iterations} steps, {bound}>"


def _count_of(description, key):
    value = description[key]
    if type(value) is not int or not 0 <= value < 2 ** 62:
        raise ValueError(f"{key}: expected a count, got {value!r}")
    return value


def _check_part(what, i, array, shape, dtype, expected, is_slot):
    """Whether a stored array is what a weight can have, in this shape, for a slot, average or accumulator."""
    if array is None:
        if expected and not is_slot:
            raise ValueError(f"tensor '{what}/{i}' is missing")
        return
    if not expected:
        raise ValueError(f"tensor '{what}/{i}' belongs to nothing")
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"tensor '{what}/{i}': expected shape {shape} and dtype {dtype}, got {array.shape} and "
                         f"{array.dtype}")
