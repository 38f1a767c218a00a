"""The base of every optimizer: arguments, options, groups, slots, copies.

A class declares its arguments as class attributes, in the order of its signature::

    class Adagrad(Optimizer):
        _rule = "adagrad"                           # its row in csrc/optimizers.def
        learning_rate = Value(0.001)
        initial_accumulator_value = Option(0.1, at_least_zero)
        epsilon = Value(1e-7)

The constructor, its signature, the checks, `get_config` and `repr` follow from these (optimc/base/arguments.py).
The step itself is not here: `apply` is a method of the C base class, see csrc/python/apply.c.

Next: signature.py makes the signature of a class, setting.py sets values, binding.py builds, copies.py writes the
state down and takes it over, keras_order.py lists it as Keras does.
"""

from __future__ import annotations

import copy
import math
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from optimc import _core, checkpoint, registry
from optimc.base import averages, binding, copies, documents, keras_order, narrow, signature
from optimc.base.arguments import (
    LOW_OPEN,
    Fixed,
    Option,
    Value,
    check_count,
    check_name,
    count,
    fraction,
    from_plain,
    one_of,
    plain,
    unzip,
)
from optimc.base.names import Elsewhere, check_attribute
from optimc.base.rules import OPTIONS, POLICIES, factors_of, hyperparameters_of, scalars_of, without_axis
from optimc.base.running import Scalars
from optimc.base.selection import Group, Selection, entries_of
from optimc.base.spellings import older_spellings, pairs_alone
from optimc.base.state import State
from optimc.base.storage import like_of

if TYPE_CHECKING:
    import inspect
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import ClassVar, Self

    from optimc._types import (
        Array,
        CheckFinite,
        Classes,
        Config,
        Loss,
        Pairs,
        Path,
        StateDtype,
        Style,
        Tensors,
        Weights,
    )
    from optimc.base.arguments import Argument
    from optimc.base.storage import Like


@registry.base
class Optimizer(Scalars, _core.Optimizer, Elsewhere):
    """Base class of all optimizers; use one of its subclasses.  Each takes these arguments after its own.

    Args:
        weight_decay: decoupled weight decay: before each update, w <- w - w weight_decay learning_rate.
        clipnorm: scale each gradient down to this norm if its own norm is larger; 0 or less is off.
        clipvalue: clip each element of a gradient to [-clipvalue, clipvalue]; 0 or less is off.
        global_clipnorm: scale all gradients by one factor, so that their common norm is at most this; 0 or less
            is off.
        use_ema: keep an exponential moving average of the weights; see `averaged`.
        ema_momentum: momentum of the average, in [0, 1].
        ema_overwrite_frequency: copy the averages into the weights every N updates.
        loss_scale_factor: divide the gradients by this factor; multiply the loss by it (`scale_loss`).
        gradient_accumulation_steps: apply one update per N calls, with the mean of their gradients.
        name: display name; default: the name of the class in snake case.
        check_finite: reaction to a gradient that is not finite, or is clipped by a norm that is not finite.
            "propagate" steps all the same.  "raise" raises a FloatingPointError.  "skip" skips the step and counts it
            in `skipped_steps`.  "raise" and "skip" act before anything is written.
        groups: weights with their own values: a list of dicts.  Each dict has "weights" and any of the
            optimizer's values.  "weights" is a regular expression for the names of weights, a list of such
            expressions, a list of weights, or a list of their positions.  "params" means the same.  A weight may
            be in one group only.
        coupled_weight_decay: add weight decay to the gradient instead: g <- g + weight_decay w, after the
            clipping (L2 regularisation, as in torch except AdamW).
        decay_as_factor: multiply by the factor 1 - weight_decay learning_rate, rounded once, as torch does, instead
            of subtracting the decay.
        cautious (rules with momentum only): move an element only where the step and the gradient agree in
            sign.  The remaining step is multiplied by the number of elements over 1 plus the number of
            elements that move (Liang et al., 2024, arXiv 2411.16085, algorithm 2).  Counting them reads the
            gradient and the slots once more.
        maximize: maximize instead of minimizing: gradients are negated.
        state_dtype: storage of the slots: None is the type of the weight, and float32 for one of 16 bits.
            "bfloat16" halves their bytes.  "int8" takes a quarter, for weights of at least 4,096 elements.  A dict
            of slots to these words holds for weights of every size.  Averages of squares are rounded at random.
            Groups may have their own; there "float32" means none in fewer bits.
        master_weights: keep what bfloat16 and float16 weights lack of a float32, so that steps lose nothing.
            Without it, bfloat16 weights are rounded at random.
        seed: of random rounding, a whole number >= 0.
        style: "keras", "torch" or "optax": use the defaults and conventions of that library for arguments that
            are not given (`styles` of the class lists them).

    An optimizer has only the attributes that it declares: `opt.lr = 0.1` is an AttributeError that names
    `learning_rate`.  The same holds for wrappers, schedules and groups.  Two things are always allowed: any attribute
    on an object of a class that a program defines, and names that begin with an underscore.

    A schedule is called with the step.  Any other callable is called without arguments.  At most one of the
    three clips can be set.  A clip of 0 or less is disabled.
    """

    _rule: str = ""              #: the row of csrc/optimizers.def with its coefficients
    #: for each group of slots that Keras creates together: {name in optimc: name in Keras}
    _keras_slots: tuple[dict[str, str], ...] = ()
    #: the arguments by which other libraries' conventions differ from the defaults, by library
    styles: dict[str, dict[str, object]] = {}
    #: slots that are scratch memory, not state
    _scratch_slots: tuple[str, ...] = ()
    #: for adapters: the types of weights that have no masters, and whose 16 bits and slots' are rounded to nearest
    _to_nearest: Collection[str] = ()
    #: slots that start from a weight or the learning rate at the first step
    _late_slots: tuple[str, ...] = ()
    #: True if each element can be stepped without the rest of its weight
    _elementwise: bool = True
    learning_rate: Value[float]             # of each optimizer, which declares its default
    _arguments: ClassVar[dict[str, Argument]]
    _made: ClassVar[inspect.Signature]      # once one of the next two was asked for
    _signature: ClassVar[signature.Late] = signature.Late(shown=False)
    __signature__: ClassVar[signature.Late] = signature.Late(shown=True)
    _index: ClassVar[dict[str, int]]        # of each value in C

    weight_decay: Value[float | None] = Value(None)
    clipnorm: Value[float | None] = Value(None, -math.inf)
    clipvalue: Value[float | None] = Value(None, -math.inf)
    global_clipnorm: Value[float | None] = Value(None, -math.inf)
    use_ema: Option[bool] = Option(False, core="_use_ema")
    ema_momentum: Value[float] = fraction(0.99)
    ema_overwrite_frequency: Option[int | None] = Option(None, count(1, optional=True), core="_overwrite",
                                                         encode=lambda n: n or 0, fixed=False)
    loss_scale_factor: Value[float | None] = Value(None, open=LOW_OPEN)
    gradient_accumulation_steps: Option[int | None] = Option(None, count(2, optional=True), core="_steps",
                                                             encode=lambda n: n or 1)
    name: Option[str] = Option(None, check_name, fixed=False)
    check_finite: Option[CheckFinite] = Option("propagate", one_of(*POLICIES), core="_check_finite",
                                               encode=POLICIES.index, fixed=False, keyword_only=True)
    coupled_weight_decay: Option[bool] = Option(False, core="_coupled", fixed=False, keyword_only=True)
    decay_as_factor: Option[bool] = Option(False, core="_decay_as_factor", fixed=False, keyword_only=True)
    maximize: Option[bool] = Option(False, core="_maximize", fixed=False, keyword_only=True)
    state_dtype: Option[StateDtype] = Option(None, narrow.check_state_dtype, fits=narrow.check_slots,
                                             keyword_only=True)
    master_weights: Option[bool] = Option(True, keyword_only=True)
    seed: Option[int] = Option(0, check_count, core="_seed", keyword_only=True)
    style: Option[Style] = Option("keras", one_of("keras", "torch", "optax"), keyword_only=True)

    groups: Fixed[tuple[Group, ...]] = Fixed("Weights with values of their own: `opt.groups[0]['learning_rate']`.")

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls._arguments = signature.arguments_of(cls, Optimizer)
        if cls._rule:
            cls._index = {name: k for k, name in enumerate((*OPTIONS, *hyperparameters_of(cls._rule)))}
            signature.check_values(cls)
            signature.name_common_arguments(cls)
        registry.optimizer(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments in the signature of the class."""
        if not self._rule:
            raise TypeError(f"{type(self).__name__} is a base class: use one of its subclasses")
        if self._declared:
            raise RuntimeError(f"{type(self).__name__}: __init__ was called before: make another optimizer")
        given = signature.given_to(self, args, kwargs)
        try:
            self._initialize(**given)
            self._advise(given)
        except BaseException:
            for name in (*self._arguments, "groups"):
                self.__dict__.pop(name, None)
            self._forget()
            raise

    def _initialize(self, groups: Any = None, **given: Any) -> None:
        """Sets what `__init__` was given."""
        signature.declare_values(self)
        self._name_scalars(scalars_of(self._rule))
        self._hold(State())
        self.__dict__["groups"] = ()
        self.style = given.get("style", "keras")
        if self.style != "keras" and self.style not in self.styles:
            raise ValueError(f"{type(self).__name__} has no style {self.style!r}, only "
                             f"{', '.join(map(repr, ('keras', *self.styles)))}")
        preset = self.styles.get(self.style, {})
        for name, argument in self._arguments.items():
            setattr(self, name, given.get(name, preset.get(name, argument.default)))
        narrow.check_slots(self, "state_dtype", self.state_dtype)
        if self.name is None:
            self.name = signature.snake_case(type(self).__name__)
        chosen: list[Selection] = []
        given_groups = entries_of("groups", groups, "a list of dicts")
        self.__dict__["groups"] = tuple([Group(self, f"groups[{k}]", overrides, chosen)
                                         for k, overrides in enumerate(given_groups)])
        self._hold(State(grouped=tuple(chosen)))

    _check_attribute = check_attribute          # C calls it for a name that the class does not declare

    # ---------------------------------------------------------- methods that subclasses override

    def _advise(self, given: dict[str, Any]) -> None:
        """Warns of arguments, as given to the constructor, that have no effect together."""

    def _kernel(self) -> str:
        """The kernel of the rule (a KERNEL_ROW) that these arguments ask for."""
        return self._rule

    def _initial(self, slot: str, weight: Array | Like, group: int) -> Any:
        """The initial value of a slot of a weight in a group (0: in none)."""
        return 0

    def _kernel_of(self, name: str | None, weight: Array | Like) -> str:
        """The kernel for one weight, if weights have different kernels; `name` may be None.

        Values and groups make a difference only by way of `_kernel`.
        """
        return self._kernel()

    def _possible_kernels(self) -> tuple[str, ...]:
        """The kernels that weights may have with these arguments."""
        return (self._kernel(),)

    def _slot_like(self, slot: str, weight: Array | Like) -> Like:
        """The `Like` of a slot of a weight, as plain numbers."""
        like, axis = like_of(weight).real, factors_of(self._rule).get(slot)
        return like._replace(shape=without_axis(like.shape, axis)) if axis else like

    def _decay_of(self, kernel: str) -> str:
        """The name of the value that is the weight decay of weights with this kernel."""
        return "weight_decay"

    def _factor(self, weight: Array) -> float:
        """A factor of this weight's own that its coefficients depend on."""
        return 1.0

    # ---------------------------------------------------------------------- state of the weights

    _slots = property(attrgetter("_state.slots"))
    _averages = property(attrgetter("_state.averages"))
    _accumulators = property(attrgetter("_state.accumulators"))
    _masters = property(attrgetter("_state.masters"))

    def _state_dtype_of(self, group: int) -> StateDtype:
        """The `state_dtype` of the weights in a group (0: in none)."""
        own = self.groups[group - 1].state_dtype if group else None
        return self.state_dtype if own is None else own

    # ------------------------------------------------------------------------------- values

    def _in_use(self, name: str) -> bool:
        """True if a value is not zero for some weight, or comes from a schedule."""
        index = self._index[name]
        return any(self._get_value(group, index) != 0 for group in self._owners(index))

    # ---------------------------------------------------------------------------- building

    @older_spellings
    def build(self, weights: Weights, *, slots: Mapping[str, Sequence[Array | None]] | None = None,
              averages: Sequence[Array] | None = None, accumulators: Sequence[Array] | None = None,
              masters: Sequence[Array | None] | None = None) -> None:
        """Binds the optimizer to its weights and makes their slots.

        The first call of `apply` builds the optimizer if it is not built.  Build it again to move it to new
        memory or to add weights.  Former weights keep their slots.  They are found by name if the weights have
        names, otherwise by order.  A list for weights with names is in the order of the names in `build`, not sorted
        as `jax.tree.leaves` sorts keys.

        Args:
            weights: list, tuple or dict of writable arrays of float32, float64, bfloat16 (of ml_dtypes) or float16,
                or nested ones.  A weight within others has a name of keys and positions: "layers/0/kernel".
            slots: arrays that hold the state, instead of new ones: a dict of slot names to lists of arrays, one
                per weight.  Each array is like its weight, or None if the weight has no such slot.  The
                optimizer starts from their values.  Scratch slots may be left out.
            averages, accumulators: lists of arrays for the averages of `use_ema` and for the accumulated
                gradients, one per weight.  They are float32 for weights of 16 bits.
            masters: a list of arrays for the masters of weights of 16 bits, None for other weights: int16 beside
                bfloat16, float32 beside float16.

        Example:
            >>> import numpy as np, optimc
            >>> opt = optimc.Adam()
            >>> opt.build({"kernel": np.ones((3, 2), np.float32)})
            >>> opt.built
            True
        """
        self._locked(self._move, weights, may_add=True, adopted=slots, averages=averages, accumulators=accumulators,
                     masters=masters)

    def _build(self, weights: Weights, **given: Any) -> _core.Plan:
        """A plan of weights and their state.  The first step asks for it, and keeps it unless the step is refused."""
        names, weights = _core.weights_of(weights)
        state = binding.carried(self, self._chosen_by_position(), names, weights, **given)
        return binding.plan_of(self, weights, state)

    def _move(self, weights: Weights, **given: Any) -> tuple[_core.Plan | None, State]:
        """`build`, called through `_locked`.  Returns the mark for `_come_back`."""
        before = self._mark()
        self._bind(self._build(weights, **given))
        return before

    def _mark(self) -> tuple[_core.Plan | None, State]:
        """The present plan and state, to which `_come_back` returns."""
        return self._plan, self._state

    def _come_back(self, mark: tuple[_core.Plan | None, State]) -> None:
        plan, state = mark
        if plan is None:
            self._hold(state)
        else:
            self._bind(plan)

    def _kernels(self, names: Sequence[str] | None, weights: Sequence[Array | Like]) -> list[str]:
        """The kernel of each weight."""
        if type(self)._kernel_of is Optimizer._kernel_of:
            return [self._kernel()] * len(weights)
        return [self._kernel_of(names[i] if names else None, weight) for i, weight in enumerate(weights)]

    def _state_now(self) -> State:
        """The state, with the plan's newer `waiting`."""
        return self._state.but(waiting=self._waiting()) if self.built else self._state

    def _chosen_by_position(self) -> State:
        """`_state_now`, in which excluded and grouped weights are given by their positions."""
        state = self._state_now()
        return state.numbered(self._weights) if self.built else state

    def _rebind(self, state: State) -> None:
        """Takes over a state, and binds it to the weights if the optimizer has any.  Called through `_locked`."""
        if self.built:
            self._bind(binding.plan_of(self, self._weights, state))
        else:
            self._hold(state)

    def _fill_late_slots(self) -> None:
        """Starts the late slots from the present weights and learning rate."""
        groups = self._state.group_of_each(self._names, self._weights)
        for slot in self._late_slots:
            for array, weight, group in zip(self._slots[slot], self._weights, groups, strict=True):
                array[...] = self._initial(slot, weight, group)

    # ------------------------------------------------------------------- choosing weights

    def exclude_from_weight_decay(self, var_list: Iterable[Array] | None = None,
                                  var_names: str | Iterable[str] | None = None) -> None:
        """Exempts weights from weight decay.  Each call replaces the weights of the call before.

        Args:
            var_list: a list of the weights themselves.
            var_names: a list of regular expressions, or one, searched for in the names of the weights.

        Example:
            >>> import numpy as np, optimc
            >>> opt = optimc.AdamW()
            >>> opt.exclude_from_weight_decay(var_names=["bias"])
            >>> opt.build({"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)})
        """
        names = [var_names] if isinstance(var_names, str) else entries_of("var_names", var_names)
        excluded = Selection.of("exclude_from_weight_decay", [*entries_of("var_list", var_list), *names])
        self._locked(lambda: self._rebind(self._state_now().but(excluded=excluded)))

    # ---------------------------------------------------------------------------- stepping

    def _between(self) -> None:
        """Prepares a step that a transaction has checked and not yet committed.  An error cancels the step."""

    @pairs_alone
    def apply_gradients(self, grads_and_vars: Pairs) -> int:
        """`apply` for pairs, as `zip(grads, weights)` gives them.  Returns `iterations`.

        Example:
            >>> import numpy as np, optimc
            >>> w = np.ones(2, np.float32)
            >>> optimc.SGD(learning_rate=0.5).apply_gradients(zip([np.ones(2, np.float32)], [w]))
            1
        """
        self.apply(*unzip(grads_and_vars))
        return self.iterations

    def scale_loss(self, loss: Loss) -> Loss:
        """Multiplies a loss by `loss_scale_factor`.  Returns the loss itself if that is None."""
        factor, scaled = self.loss_scale_factor, cast("Any", loss)
        return loss if factor is None else cast("Loss", scaled * factor)

    # ----------------------------------------------------------------- averages of weights

    @property
    def keeps_averages(self) -> bool:
        """True if the optimizer keeps averages that `averaged` can use."""
        return self.use_ema or type(self)._evaluation_weights is not Optimizer._evaluation_weights

    def _evaluation_weights(self, weights: tuple[Array, ...]) -> Any:
        """The arrays that `averaged` copies into the weights, one per weight."""
        if not self.use_ema:
            raise ValueError(f"{self.name} keeps no averages: construct it with use_ema=True")
        return self._averages

    @older_spellings
    def finalize_variable_values(self, weights: Weights | None = None) -> None:
        """Copies the averages of `use_ema` into the weights, as Keras does at the end of `fit`."""
        averages.finalize([self], lambda optimizer: weights)

    @older_spellings
    def averaged(self, weights: Weights | None = None) -> _core.Averaged:
        """A context manager for evaluation: puts the averages into the weights, and restores the weights at its end.

        If several threads enter it, the last to leave restores the weights, in whatever order they leave.  Steps,
        `build` for other weights and `finalize_variable_values` are refused within it.  A save or a copy within it
        is the same as outside, because it does not hold the weights.

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
        return averages.averaged([self], lambda optimizer: weights)

    def reset_master(self) -> None:
        """Makes the masters of weights of 16 bits what the weights themselves say.

        Call it after other numbers were written into bfloat16 weights, as to load a model.  Without it the next step
        adds what the old numbers lacked, less than half a last place of bfloat16.  float16 weights need no call:
        where a weight is not its rounded master, it counts.

        Example:
            >>> import numpy as np, optimc
            >>> w = np.ones(2, np.float16)
            >>> opt = optimc.SGD(0.5)
            >>> opt.build([w])
            >>> w[...] = 3
            >>> opt.reset_master()
            >>> opt.apply([np.ones(2, np.float32)])
            >>> w
            array([2.5, 2.5], dtype=float16)
        """
        self._locked(narrow.reset_masters, self)

    # ---------------------------------------------------------------------- state and copies

    @property
    def variables(self) -> list[Array]:
        """The state as a list of arrays, in Keras's order.

        The first two are copies: `iterations`, and the learning rate unless it is a schedule or callable.  The
        others are the live arrays: averages, accumulators and slots.
        """
        return keras_order.variables_of(self)

    @property
    def slots(self) -> dict[str, dict[int | str, Array]]:
        """The arrays that the rule keeps: read-only views by slot, and by name or position of the weight.

        Each read makes a new dict of views of the live arrays, which show later steps too.  The dict is empty before
        the optimizer is built.  The docstring of the class says which slots it has.  Of a slot in fewer bits
        (`state_dtype`) it has the numbers, as a float32 copy.

        Example:
            >>> import numpy as np, optimc
            >>> weights = {"kernel": np.ones(2, np.float32), "bias": np.zeros(1, np.float32)}
            >>> opt = optimc.Adam(beta_1=0.5, beta_2=0.75)
            >>> opt.apply({"kernel": np.array([2.0, -4.0]), "bias": np.array([1.0])}, weights)
            >>> opt.slots["m"]
            {'kernel': array([ 1., -2.], dtype=float32), 'bias': array([0.5], dtype=float32)}
            >>> opt.slots["v"]["kernel"]
            array([1., 4.], dtype=float32)
        """
        return narrow.slots_shown(self)

    def _given(self) -> dict[str, Any]:
        """The arguments as they were given or later set."""
        return {name: self._get_value(0, self._index[name]) if isinstance(argument, Value)
                else getattr(self, name) for name, argument in self._arguments.items()}

    def get_config(self) -> Config:
        """The constructor's arguments as a dict of plain values.  Schedules become dicts.

        A callable that is no schedule stays as it is.  Such a configuration can be used, but not stored.
        """
        config = {name: plain(value) for name, value in self._given().items()}
        if self.groups:
            config["groups"] = [group.get_config(selection) for group, selection in zip(
                self.groups, self._chosen_by_position().grouped, strict=True)]
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Classes | None = None) -> Self:
        """A new optimizer from the result of `get_config`; `custom_objects` names further schedules."""
        arguments = {name: from_plain(value, custom_objects) for name, value in config.items()}
        if arguments.get("groups"):
            arguments["groups"] = [{name: from_plain(value, custom_objects) for name, value in group.items()}
                                   for group in arguments["groups"]]
        return cls(**arguments)

    def save(self, path: Path) -> None:
        """Writes a checkpoint from which `optimc.load` continues bit for bit; see optimc.checkpoint.

        The file is replaced atomically: after a crash the old file or the new one is there, never a part.

        Raises:
            ValueError: a value comes from a function.  A checkpoint can hold only numbers and schedules.
            OSError: the system cannot write the file.  An old file is unchanged.
        """
        self._locked(checkpoint.save, path, self)

    def state_dict(self) -> Config:
        """A copy of the state as a dict, for `load_state_dict`.  It does not include the configuration."""
        description, tensors = self._locked(copies.described, self, np.array)
        return {**description, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any], convert: bool = False) -> None:
        """Takes over a copy of a state that `state_dict` of an optimizer of this class returned.

        Everything is checked before anything changes.  A built optimizer keeps its weights; their shapes and
        dtypes must match the state.  Otherwise the weights of the next step must match.  Hyperparameters do
        not change.

        convert: take over slots that are stored in another type than `state_dtype` asks for, rounded to it, and drop
            masters that `master_weights` does not ask for.

        Raises:
            CheckpointError: an entry is missing or damaged, or the state is of another class; a ValueError.
            ValueError: the weights are not those of the state.
        """
        if not isinstance(state, dict) or "tensors" not in state:
            raise TypeError("state: expected what state_dict() returned; for a file, call optimc.load(path)")
        self._locked(copies.load, self, state, convert)

    def _export(self) -> tuple[Config, Tensors]:
        """The configuration and state as plain values, and a dict of the live arrays; for a checkpoint."""
        return copies.exported(self)

    def _import(self, description: Config, tensors: Tensors) -> None:
        """Takes over the result of `_export` and empties `tensors`.  Raises before it changes anything."""
        copies.take_over(self, description, tensors)

    def __setstate__(self, picture: dict[str, Any]) -> None:
        Optimizer.__init__(self, **picture["arguments"], groups=picture["groups"])
        copies.restore(self, picture)

    def __reduce__(self) -> tuple[Any, ...]:
        picture = copies.pictured(self)
        copies.check_picklable(picture)
        return type(self).__new__, (type(self),), picture

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        other.__setstate__(copies.duplicated(copies.pictured(self), lambda values: copy.deepcopy(values, memo)))
        return other

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        return documents.text_of(self)


Optimizer._arguments = signature.arguments_of(Optimizer, Optimizer)


for _method in (Optimizer.build, Optimizer.exclude_from_weight_decay):
    signature.wrap_signature(_method)
