"""The base of every optimizer: hyperparameters, options, slots, copies.

A class declares what users set as class attributes, in the order of its signature::

    class Adagrad(Optimizer):
        rule = "adagrad"                            # its row in csrc/optimizers.def
        learning_rate = Value(0.001)
        initial_accumulator_value = Option(0.1)
        epsilon = Value(1e-7)

A `Value` is a real number that the kernels read: a hyperparameter of the rule's row, or one of the
options every optimizer has.  It can be changed at any time and may come from a schedule.  An `Option` is
anything else.  The constructor, its signature, the checks, `get_config` and `repr` follow from these.

The step itself is not here: `apply` is a method of the C base class, see csrc/module.c.
"""

import copy
import inspect
import math
import pickle
import re
import warnings

import numpy as np

from optimc import _core, schedules

# The options of `struct options` in csrc/kernels.h, in its order.
OPTIONS = ("learning_rate", "weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "ema_momentum",
           "loss_scale_factor")


class Parameter:
    """One argument of an optimizer: its default, and where it is kept."""

    keyword_only = False

    def __init__(self, default, *, keyword_only=False):
        self.default, self.keyword_only = default, keyword_only

    def __set_name__(self, owner, name):
        self.name = name


class Value(Parameter):
    """A real number for the kernels, in [low, high] (`high` itself only if `closed`); finite."""

    def __init__(self, default, low=0.0, high=math.inf, *, closed=True, keyword_only=False):
        super().__init__(default, keyword_only=keyword_only)
        self.low, self.high, self.closed = low, high, closed

    def __get__(self, optimizer, owner=None):
        return self if optimizer is None else optimizer._ask_value(optimizer._index[self.name])

    def __set__(self, optimizer, value):
        index = optimizer._index[self.name]
        before = optimizer._get_value(index) if optimizer.built else None
        optimizer._set_value(index, value, schedules.is_schedule(value))
        if optimizer.built and not optimizer._slots_suffice():
            optimizer._set_value(index, before, schedules.is_schedule(before))
            raise ValueError(f"{self.name}={value!r} needs a slot the optimizer was not built with")


def fraction(default, *, closed=True, **keywords):
    """A `Value` in [0, 1], or [0, 1) where the formula divides by 1 minus it."""
    return Value(default, 0.0, 1.0, closed=closed, **keywords)


class Option(Parameter):
    """An argument that chooses rather than measures, fixed once the optimizer is built.

    `check(name, value)` returns the value to keep or raises; without it a bool is expected.
    """

    def __init__(self, default, check=None, *, keyword_only=False):
        super().__init__(default, keyword_only=keyword_only)
        self.check = check or _check_bool

    def __get__(self, optimizer, owner=None):
        return self if optimizer is None else optimizer.__dict__[self.name]

    def __set__(self, optimizer, value):
        value = self.check(self.name, value)
        if optimizer.built and value != optimizer.__dict__[self.name]:
            raise ValueError(f"{self.name} cannot change once the optimizer is built")
        optimizer.__dict__[self.name] = value
        if self.name in optimizer._index:               # a flag that the coefficients depend on
            optimizer._set_value(optimizer._index[self.name], int(value), False)


def _check_bool(name, value):
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def _check_name(name, value):
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    return value


def at_least_zero(name, value):
    """The `check` of an `Option` that is a finite number >= 0."""
    return _core.check_number(name, value, 0.0, math.inf, True)


class Optimizer(_core.Optimizer):
    """Base class of all optimizers; use one of its subclasses.

    Args (every optimizer has them, after its own):
        weight_decay: decoupled weight decay: before each update, w <- w - w * weight_decay * learning_rate.
            None: none.
        name: a name for people; default: the class's, in snake case.
    """

    rule = None             #: the row of csrc/optimizers.def it computes its coefficients with

    weight_decay = Value(None)
    name = Option(None, _check_name)

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        own, common, late = {}, {}, {}
        for owner in cls.__mro__:
            for name, parameter in vars(owner).items():
                if isinstance(parameter, Parameter) and name not in own and name not in late:
                    group = late if parameter.keyword_only else common if owner is Optimizer else own
                    group[name] = parameter
        cls._parameters = {**own, **{k: v for k, v in common.items() if k not in own}, **late}
        cls._signature = inspect.Signature([
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY if parameter.keyword_only
                              else inspect.Parameter.POSITIONAL_OR_KEYWORD, default=parameter.default)
            for name, parameter in cls._parameters.items()])
        if cls.__init__ is Optimizer.__init__:
            cls.__signature__ = cls._signature
        if cls.rule:
            slots, hyperparameters, _ = (_split(names) for names in _core.rules[cls.rule])
            cls._slot_names = slots
            cls._index = {name: k for k, name in enumerate((*OPTIONS, *hyperparameters))}

    def __init__(self, *args, **kwargs):
        if not self.rule:
            raise TypeError(f"{type(self).__name__} is a base class: use one of its subclasses")
        if kwargs.pop("decay", None) is not None:
            warnings.warn("Argument `decay` is no longer supported and will be ignored.", stacklevel=2)
        unknown = {name: value for name, value in kwargs.items() if name not in self._parameters}
        if unknown:
            raise ValueError(f"Argument(s) not recognized: {unknown}")
        arguments = self._signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        for name in self._index:
            parameter = self._parameters.get(name)
            if isinstance(parameter, Value):
                self._declare(name, parameter.low, parameter.high, parameter.closed,
                              parameter.default is None)
            else:
                self._declare(name, -math.inf, math.inf, True, True)
        self._slots = {}                    # name -> one array per weight, in order
        self._slot_weights = None           # names of these weights, or None
        for name, value in arguments.arguments.items():
            setattr(self, name, value)
        if self.name is None:
            self.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_",
                               type(self).__name__).lower()

    # ---------------------------------------------------------------- what a subclass may say

    def _kernel(self):
        """The kernel of the rule (a KERNEL_ROW) that these options ask for."""
        return self.rule

    def _in_use(self, name):
        """Whether a value is, or comes from a schedule and could be, other than zero."""
        return self._get_value(self._index[name]) != 0

    def _initial(self, slot, weight):
        """What a slot is filled with at first."""
        return 0

    # ---------------------------------------------------------------------------- building

    def build(self, params, *, slots=None):
        """Binds the optimizer to its weights and makes their slots.

        `apply` does this by itself at its first call.  Built again, the optimizer moves to new memory, or
        takes on more weights, and keeps the slots of those it had, by name if the weights have names, else
        by order.

        Args:
            params: list, tuple or dict of writable float32 or float64 arrays.
            slots: arrays to keep the state in, instead of new ones: a dict that gives for each slot name a
                list of arrays, one per weight, like the weights.  They are used as they are.

        Example:
            >>> import numpy as np, optimc
            >>> opt = optimc.Adam()
            >>> opt.build({"kernel": np.ones((3, 2), np.float32)})
            >>> opt.built
            True
        """
        self._lock()
        try:
            self._build(params, may_add=True, adopt=slots)
        finally:
            self._unlock()

    def _build(self, params, may_add=False, adopt=None):
        """Builds and returns what `_undo_build` needs to undo it; on an error nothing has changed."""
        names, weights = _core.weights_of(params)
        before = self._slots, self._slot_weights
        index, _, mask = _core.kernels[self._kernel()]
        used = self._used_slots(mask)
        if adopt is not None:
            arrays = _adopted(used, adopt, len(weights))
        else:
            old = self._match(names, weights, used, may_add)
            arrays = {slot: [_make_slot(weight, k) for weight in weights] for k, slot in enumerate(used)}
            for slot, made in arrays.items():
                for i, weight in enumerate(weights):
                    made[i][...] = self._initial(slot, weight) if old[i] is None \
                        else before[0][slot][old[i]]
        self._bind(weights, names, index, self._slot_names,
                   tuple(tuple(arrays[slot][i] if slot in arrays else None for slot in self._slot_names)
                         for i in range(len(weights))),
                   None, (False,) * len(weights))
        self._slots, self._slot_weights = arrays, names
        return before

    def _used_slots(self, mask):
        return [name for k, name in enumerate(self._slot_names) if mask >> k & 1]

    def _slots_suffice(self):
        return set(self._used_slots(_core.kernels[self._kernel()][2])) <= set(self._slots)

    def _undo_build(self, before):
        self._slots, self._slot_weights = before

    def _match(self, names, weights, used, may_add):
        """For each weight the index of the one whose slots it takes over, or None."""
        if not self._slots:
            return [None] * len(weights)
        if not set(used) <= set(self._slots):
            raise ValueError(f"the optimizer holds slots {sorted(self._slots)}, its options need {used}")
        held = next(iter(self._slots.values()))
        if names and self._slot_weights:
            lost = [name for name in self._slot_weights if name not in names]
            if lost:
                raise ValueError(f"params has no entry {lost[0]!r}, whose slots the optimizer holds")
            where = {name: i for i, name in enumerate(self._slot_weights)}
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
            if k is not None and (held[k].shape, held[k].dtype) != (weights[i].shape, weights[i].dtype):
                raise ValueError(
                    f"params[{names[i] if names else i!r}]: expected shape {held[k].shape} and dtype "
                    f"{held[k].dtype}, like the slots the optimizer holds, got {weights[i].shape} and "
                    f"{weights[i].dtype}")
        return old

    # ---------------------------------------------------------------------------- stepping

    def apply_gradients(self, grads_and_vars):
        """`apply` for pairs, as `zip(grads, weights)` gives them.  Returns `iterations`.

        Example:
            >>> import numpy as np, optimc
            >>> w = np.ones(2, np.float32)
            >>> optimc.SGD(learning_rate=0.5).apply_gradients(zip([np.ones(2, np.float32)], [w]))
            1
        """
        pairs = list(grads_and_vars)
        if not pairs:
            raise ValueError("grads_and_vars is empty")
        try:
            grads, weights = zip(*pairs, strict=True)
        except (TypeError, ValueError):
            raise TypeError("grads_and_vars must be pairs (gradient, weight)") from None
        self.apply(grads, weights)
        return self.iterations

    # ---------------------------------------------------------------------- state and copies

    @property
    def variables(self):
        """The state as a list of arrays: iterations, learning rate (copies), then the slots (live)."""
        slots = [array for arrays in zip(*self._slots.values(), strict=True) for array in arrays]
        return [np.array(self.iterations), np.array(self.learning_rate), *slots]

    def get_config(self):
        """The constructor's arguments as a dict of plain values; schedules as dicts.

        A plain callable stays as it is: such a configuration can be used, but not stored.
        """
        return {name: schedules.serialize(value) if schedules.is_schedule(value) else value
                for name, value in self._arguments().items()}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """A new optimizer from what `get_config` gave; `custom_objects` names further schedules."""
        return cls(**{name: schedules.deserialize(value, custom_objects)
                      if isinstance(value, dict) and "class_name" in value else value
                      for name, value in config.items()})

    def _arguments(self):
        return {name: self._get_value(self._index[name]) if isinstance(parameter, Value)
                else getattr(self, name) for name, parameter in self._parameters.items()}

    def _state(self, duplicate):
        """Everything a copy needs, taken between two steps."""
        self._lock()
        try:
            own = {name: value for name, value in self.__dict__.items()
                   if name not in self._parameters and not name.startswith("_slot")}
            return {"arguments": duplicate(self._arguments()), "attributes": duplicate(own),
                    "iterations": self.iterations, "names": self._names or self._slot_weights,
                    "slots": {slot: [np.array(array) for array in arrays]
                              for slot, arrays in self._slots.items()}}
        finally:
            self._unlock()

    def __setstate__(self, state):
        Optimizer.__init__(self, **state["arguments"])
        self.__dict__.update(state["attributes"])
        self.iterations = state["iterations"]
        self._slots, self._slot_weights = state["slots"], state["names"]

    def __reduce__(self):
        state = self._state(lambda values: values)
        for name, value in state["arguments"].items():
            if callable(value) and "<" in getattr(value, "__qualname__", ""):
                raise pickle.PicklingError(
                    f"{name} is {value.__qualname__}, which cannot be pickled: use a schedule or a "
                    "function defined in a module")
        return type(self).__new__, (type(self),), state

    def __deepcopy__(self, memo):
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(self._state(lambda values: copy.deepcopy(values, memo)))
        return other

    def __copy__(self):
        return copy.deepcopy(self)

    def __repr__(self):
        values = self._arguments()
        shown = [f"{name}={value!r}" for name, value in values.items()
                 if name == "learning_rate" or (name != "name" and value != self._parameters[name].default)]
        weights = self._weights
        bound = "not built" if weights is None else \
            f"{len(weights)} weights of {sum(weight.size for weight in weights)} elements"
        return f"<{type(self).__name__}({', '.join(shown)}): {self.iterations} steps, {bound}>"


def _split(names):
    return tuple(names.split(", "))


def _adopted(used, slots, n):
    if set(slots) != set(used):
        raise ValueError(f"slots: expected {used}, got {sorted(slots)}")
    for name, arrays in slots.items():
        if len(arrays) != n:
            raise ValueError(f"slots[{name!r}]: expected {n} arrays, one per weight, got {len(arrays)}")
    return {name: list(slots[name]) for name in used}


# Where slots lie.  64: a cache line and the widest register.  Slots that share their offset within a
# page compete for the same lines of the cache, so slot k is shifted by k + 1 times an odd number of
# lines; large ones also by whole multiples of 128 KiB, against the same within huge pages.
LINE, SHIFT, PAGE, LARGE, LARGE_SHIFT = 64, 13 * 64, 4096, 4 << 20, 128 << 10


def _make_slot(weight, k):
    """A zeroed array like `weight`, aligned like it within a cache line and shifted by `k`."""
    size, at = weight.nbytes, weight.ctypes.data
    spare, shift = LINE, at % LINE
    if size >= PAGE:
        spare, shift = PAGE, (at + (k + 1) * SHIFT) % PAGE
    if size >= LARGE:
        spare += k * LARGE_SHIFT
    memory = np.zeros(size + spare, np.uint8)       # NumPy asks for huge pages for large ones
    start = (shift - memory.ctypes.data) % (PAGE if size >= PAGE else LINE)
    start += k * LARGE_SHIFT if size >= LARGE else 0
    order = "C" if weight.flags.c_contiguous else "F"
    return np.ndarray(weight.shape, weight.dtype, memory, start, order=order)
