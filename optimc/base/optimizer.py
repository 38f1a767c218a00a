"""The base of every optimizer: arguments, options, groups, slots, copies.

A class declares its arguments as class attributes, in the order of its signature::

    class Adagrad(Optimizer):
        rule = "adagrad"                            # its row in csrc/optimizers.def
        learning_rate = Value(0.001)
        initial_accumulator_value = Option(0.1, at_least_zero)
        epsilon = Value(1e-7)

The constructor, its signature, the checks, `get_config` and `repr` follow from these (optimc/base/arguments.py).
The step itself is not here: `apply` is a method of the C base class, see csrc/python/apply.c.

Next: signature.py makes the signature of a class, setting.py sets values, binding.py builds, copies.py writes the
state down and takes it over, keras_order.py lists it as Keras does.
"""

import copy
import math
import re

import numpy as np

from optimc import _core, checkpoint, registry
from optimc.base import averages, binding, copies, keras_order, signature
from optimc.base.arguments import (
    LOW_OPEN,
    Option,
    Value,
    check_name,
    count,
    fraction,
    from_plain,
    one_of,
    plain,
    unzip,
)
from optimc.base.rules import OPTIONS, POLICIES, factors_of, hyperparameters_of, scalars_of, without_axis
from optimc.base.selection import Group, Selection
from optimc.base.state import State
from optimc.base.storage import like_of


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
        cls._arguments = signature.arguments_of(cls, Optimizer)
        cls._signature = signature.signature_of(cls._arguments)
        if cls.__init__ is Optimizer.__init__:
            cls.__signature__ = cls._signature
        if cls.rule:
            cls._index = {name: k for k, name in enumerate((*OPTIONS, *hyperparameters_of(cls.rule)))}
            signature.name_common_arguments(cls)
        registry.optimizer(cls)

    def __init__(self, *args, **kwargs):
        if not self.rule:
            raise TypeError(f"{type(self).__name__} is a base class: use one of its subclasses")
        given = signature.given_to(self, args, kwargs)
        groups = given.pop("groups", None)
        for name in self._index:
            value = self._arguments.get(name)
            if isinstance(value, Value):
                self._declare(name, value.low, value.high, value.open, value.optional)
            else:
                self._declare(name, -math.inf, math.inf, 0, True)
        self._name_scalars(scalars_of(self.rule))
        self._hold(State())
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

    def _slot_like(self, slot, weight):
        """What a slot of a weight is like."""
        like, axis = like_of(weight), factors_of(self.rule).get(slot)
        return like._replace(shape=without_axis(like.shape, axis)) if axis else like

    def _decay_of(self, kernel):
        """The value that is the weight decay of weights with this kernel."""
        return "weight_decay"

    def _factor(self, weight):
        """What the coefficients of a weight depend on beside the values."""
        return 1.0

    # -------------------------------------------------------------------- what is kept for weights

    @property
    def _slots(self):
        return self._state.slots

    @property
    def _averages(self):
        return self._state.averages

    @property
    def _accumulators(self):
        return self._state.accumulators

    # ------------------------------------------------------------------------------- values

    def _in_use(self, name):
        """Whether a value is, or could become by its schedule, other than zero for any weight."""
        return any(self._get_value(group, self._index[name]) != 0 for group in range(len(self.groups) + 1))

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
        self._locked(self._move, params, may_add=True, adopted=slots, averages=averages, accumulators=accumulators)

    def _build(self, params, **given):
        """A plan of weights and the state carried to them.  A first step asks for it, and keeps it if it is done."""
        names, weights = _core.weights_of(params)
        state = binding.carried(self, self._chosen_by_position(), names, weights, **given)
        return binding.plan_of(self, weights, state)

    def _move(self, params, **given):
        """`build`, by way of `_locked`.  Gives what `_come_back` needs."""
        before = self._mark()
        self._bind(self._build(params, **given))
        return before

    def _mark(self):
        """What `_come_back` needs to put the optimizer back to where it is."""
        return self._plan, self._state

    def _come_back(self, mark):
        plan, state = mark
        if plan is None:
            self._hold(state)
        else:
            self._bind(plan)

    def _kernels(self, names, weights):
        """The kernel of each weight."""
        return [self._kernel_of(names and names[i], weight) for i, weight in enumerate(weights)]

    def _state_now(self):
        """The state, with what the plan knows better of it."""
        return self._state.but(waiting=self._waiting()) if self.built else self._state

    def _chosen_by_position(self):
        """The same, in which bound weights that are excluded or grouped are given by their positions."""
        state = self._state_now()
        return state.numbered(self._weights) if self.built else state

    def _rebind(self, state):
        """Takes over a state for the weights that are bound, if some are; by way of `_locked`."""
        if self.built:
            self._bind(binding.plan_of(self, self._weights, state))
        else:
            self._hold(state)

    def _fill_late_slots(self):
        """Starts the late slots from what the weights and the learning rate are now."""
        groups = self._state.group_of_each(self._names, self._weights)
        for slot in self.late_slots:
            for array, weight, group in zip(self._slots[slot], self._weights, groups, strict=True):
                array[...] = self._initial(slot, weight, group)

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
        excluded = Selection.of("exclude_from_weight_decay", [*(var_list or ()), *(
            [var_names] if isinstance(var_names, str) else var_names or ())])
        self._locked(lambda: self._rebind(self._state_now().but(excluded=excluded)))

    # ---------------------------------------------------------------------------- stepping

    def _between(self):
        """Prepares a step that a transaction has checked and not yet committed; an error gives the step up."""

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

    def finalize_variable_values(self, params=None):
        """Puts the averages into the weights, with `use_ema`; as Keras does at the end of `fit`."""
        averages.finalize(self, params)

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
        return averages.averaged(self, params)

    # ---------------------------------------------------------------------- state and copies

    @property
    def variables(self):
        """The state as a list of arrays, in Keras's order.

        `iterations` and the learning rate (unless a schedule or callable gives it), which are copies; then,
        live, the averages and the accumulators, if any, and the slots.
        """
        return keras_order.variables_of(self)

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
        description, tensors = self._locked(copies.described, self, np.array)
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
        self._locked(copies.load, self, state)

    def _export(self):
        """The configuration and state as plain values, and the live arrays by name; for a checkpoint."""
        return copies.exported(self)

    def _import(self, description, tensors):
        """Takes over what `_export` gave, emptying `tensors`; raises before it changes anything."""
        copies.take_over(self, description, tensors)

    def __setstate__(self, picture):
        Optimizer.__init__(self, **picture["arguments"], groups=picture["groups"])
        copies.restore(self, picture)

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

    def __reduce__(self):
        picture = self._locked(copies.picture, self, lambda values: values)
        copies.check_picklable(picture)
        return type(self).__new__, (type(self),), picture

    def __deepcopy__(self, memo):
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(self._locked(copies.picture, self, lambda values: copy.deepcopy(values, memo)))
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
