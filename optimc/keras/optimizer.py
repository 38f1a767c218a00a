"""The class behind every optimizer of optimc.keras: Keras's interface and variables, with the step in C.

Keras counts, schedules, checks, applies constraints and EMA overwrites; everything between is the inner optimizer's,
by way of the `Stepper`.  Next: stepper.py.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import in_stateless_scope

from optimc import registry, schedules
from optimc._core import CHECKED, NOT_AS_PLANNED
from optimc.base import documents, keras_order, narrow, storage
from optimc.base.arguments import Value
from optimc.base.names import counted
from optimc.base.optimizer import Optimizer
from optimc.base.rules import kept_slots
from optimc.base.storage import Like, like_of
from optimc.keras import masters
from optimc.keras.backends import BFLOAT16, Slices, backend
from optimc.keras.layout import Layout, name_of
from optimc.keras.schedule import Schedule
from optimc.keras.stepper import Given, Stepper

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from optimc._types import Config

#: what Keras's base class takes beside the learning rate and the name
COMMON = ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum",
          "ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps")


class KerasOptimizer(keras.optimizers.Optimizer):
    """Keras's base class with the step in C, and the variables the step needs."""

    _ours = ""                      # the class of the inner optimizer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        inner = registry.classes[self._ours](*args, **kwargs)
        kwargs.pop("decay", None)
        name = inner._signature.bind_partial(*args, **kwargs).arguments.get("name")
        rate = inner._get_value(0, 0)
        if isinstance(rate, Schedule):
            rate = rate.schedule
        for argument, value in inner._given().items():
            _check_number(inner, argument, value)
        # past __setattr__, which refuses to work before Keras's constructor, and tracks what it is given
        self.__dict__.update(_inner=inner, _stepper=None, _counted=None)
        super().__init__(0.0 if isinstance(rate, schedules.LearningRateSchedule) else
                         rate if callable(rate) else float(rate),
                         **{name: getattr(inner, name) for name in COMMON}, name=name)
        inner.name = self.name
        if isinstance(rate, schedules.LearningRateSchedule):
            self.learning_rate = rate

    # ----------------------------------------------------------------------------- arguments

    @property
    def learning_rate(self) -> Any:
        """Keras's: a variable, or what the schedule or callable gives now.  Settable."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, rate: Any) -> None:
        if isinstance(rate, schedules.LearningRateSchedule):
            rate = Schedule(rate)
        keras.optimizers.Optimizer.learning_rate.fset(self, rate)
        if isinstance(rate, Schedule):
            self._inner.learning_rate = rate.schedule
        if self._stepper is not None:
            self._stepper.told = None

    def _rate(self) -> Any:
        """The learning rate of the step, or None if the inner optimizer asks the schedule itself."""
        return None if isinstance(self._learning_rate, Schedule) else self._get_current_learning_rate()

    def exclude_from_weight_decay(self, var_list: Iterable[Any] | None = None,
                                  var_names: Iterable[str] | None = None) -> None:
        """Exempts variables from weight decay, as Keras does: the variables given, or those whose names match."""
        super().exclude_from_weight_decay(var_list, var_names)
        if self._stepper is not None:
            self._stepper.forget()

    def _excluded(self) -> list[int]:
        """The positions of the weights without weight decay."""
        return [i for i, variable in enumerate(self._stepper.layout.weights)
                if not self._use_weight_decay(backend.known_to_keras(variable))]

    def __repr__(self) -> str:
        inner = self._inner
        shown = [f"learning_rate={self._learning_rate.schedule!r}" if isinstance(self._learning_rate, Schedule)
                 else f"learning_rate={float(self.learning_rate):g}", *documents.shown_arguments(inner)]
        bound = counted(len(self._trainable_variables), "variable") if self.built else "not built"
        return f"<optimc.keras.{type(self).__name__}({', '.join(shown)}): " \
               f"{counted(int(self.iterations), 'step')}, {bound}>"

    def get_config(self) -> Config:
        """Keras's configuration of this optimizer, and optimc's arguments that were given."""
        own = {}
        for name, value in self._inner.get_config().items():
            argument = self._inner._arguments.get(name)         # groups are none
            if argument is None or (name not in (*COMMON, "learning_rate", "name")
                                    and not (argument.keyword_only and value == argument.default)):
                own[name] = value
        return {**super().get_config(), **own}

    # ------------------------------------------------------------------------------ building

    @keras.src.utils.tracking.no_automatic_dependency_tracking
    def build(self, variables: Iterable[Any]) -> None:
        """Makes the variables of the state for the variables of a model.  A second call has no effect.

        Raises:
            TypeError: a variable is of no type that can be stepped, or, on torch, not on the CPU.
            ValueError: a strategy of tf.distribute has several replicas; or a float16 variable is to have no master.
        """
        if self.built:
            return
        variables = list(variables)
        for variable in variables:
            if keras.backend.standardize_dtype(variable.dtype) not in storage.TYPES:
                raise TypeError(f"{name_of(variable)}: expected a variable of {storage.IN_WORDS}, got "
                                f"{variable.dtype}")
            backend.check_variable(name_of(variable), variable)
        backend.check_optimizer(self)
        super().build(variables)
        stepped = [i for i, v in enumerate(variables) if not self._overwrite_variable_with_gradient(v)]
        layout = Layout(self._inner, variables, stepped)
        if self.use_ema:
            layout.averages = [self._model_variables_moving_average[i] for i in stepped]
        if self.gradient_accumulation_steps:
            layout.accumulators = [self._accumulated_gradients[i] for i in stepped]
        self._add_masters(layout)
        self._add_slots(layout)
        for k in range(len(self._inner.groups) + 1):
            for name in self._inner._scalar_names():
                dtype = layout.likes[0].real.dtype.name if layout.likes else None
                layout.scalars.append(self.add_variable((), "ones", dtype, name=f"{name}_{k}" if k else name))
        layout.finish()
        backend.state_is_made(layout.held)
        self.__dict__["_stepper"] = Stepper(self._inner, layout, self._excluded)

    def add_variable_from_reference(self, reference_variable: Any, name: str | None = None,
                                    initializer: Any = "zeros") -> Any:
        """Keras's; beside a variable of 16 bits in float32, in which steps compute."""
        stored = storage.TYPES.get(keras.backend.standardize_dtype(reference_variable.dtype))
        if stored is None or stored.real == stored.dtype:
            return super().add_variable_from_reference(reference_variable, name, initializer)
        return self._add_beside(name_of(reference_variable), name or "var", Like(
            tuple(reference_variable.shape), stored.real), initializer)

    def _add_beside(self, path: str, name: str, like: Like, initializer: Any) -> Any:
        """A variable beside the variable with a path, as Keras names it."""
        path = path.replace("/", "_").replace(":", "_")
        return self.add_variable(like.shape, initializer, like.dtype.name, name=f"{path}_{name}")

    def _add_masters(self, layout: Layout) -> None:
        """Makes the variables of the masters, if a weight has one.  Zeros say no more than the weight itself."""
        likes = [narrow.master_like(self._inner, like, name)
                 for like, name in zip(layout.likes, layout.names, strict=True)]
        if any(likes):
            layout.masters = [like and self._add_beside(name, "master", like, "zeros")
                              for like, name in zip(likes, layout.names, strict=True)]

    def _add_slots(self, layout: Layout) -> None:
        """Makes the variables of the slots, in Keras's order."""
        for slot, name, i in keras_order.slots_in_order(self._inner._keras_slots, kept_slots(layout.kernels)):
            variables = layout.slots.setdefault(slot, [None] * len(layout.weights))
            variables[i] = self._add_slot(layout, slot, name, i)

    def _add_slot(self, layout: Layout, slot: str, name: str, i: int) -> Any:
        weight, like, inner = layout.weights[i], layout.likes[i], self._inner
        kernel, group, place = layout.kernels[i], layout.groups[i], layout.place(i)
        plain, initial = inner._slot_like(slot, like), 0 if slot in inner._late_slots else inner._initial(
            slot, like, group)
        stored = narrow.slot_like(inner, kernel, slot, like, place, group)
        if stored == like:
            return self.add_variable_from_reference(weight, name, keras.initializers.Constant(initial))
        if stored == plain:
            return self._add_beside(layout.names[i], name, plain, keras.initializers.Constant(initial))
        codes = np.zeros(stored.shape, stored.dtype)
        narrow.fill(inner, kernel, slot, initial, like, codes, place)
        codes = codes.view(BFLOAT16) if stored.dtype == narrow.HALVES else codes
        return self._add_beside(layout.names[i], name, like_of(codes),
                                lambda shape, dtype: keras.ops.convert_to_tensor(codes, dtype))

    def reset_master(self) -> None:
        """Makes the masters of variables of 16 bits what the variables themselves say.

        Call it after you have written into bfloat16 variables of a built optimizer, as `load_weights` does; see
        `optimc.Optimizer.reset_master`.
        """
        layout = self._stepper and self._stepper.layout
        for variable, master in zip(layout.weights, layout.masters, strict=False) if layout else ():
            if master is not None:
                masters.reset(variable, master)

    # ------------------------------------------------------------------------------ the step

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """One step; arguments, warnings and errors are Keras's.

        Raises:
            TypeError, ValueError: as Keras, and as `optimc.Optimizer.apply`.  Nothing has changed.
        """
        if backend.is_compiling():
            backend.uncompiled(self.apply, grads, trainable_variables)
        elif not self._apply_tensors(grads, trainable_variables):
            if self.loss_scale_factor is not None:              # Keras divides by it
                grads = [None if grad is None else backend.gradient(grad) for grad in grads]
            super().apply(grads, trainable_variables)
            if self._inner.check_finite == "skip":              # Keras has counted the step
                self._iterations.assign(self._counted)

    def _apply_tensors(self, grads: Sequence[Any], variables: Sequence[Any] | None) -> bool:
        """The whole step on torch, if it is like the one before; else False, and nothing has happened."""
        stepper = self._stepper
        if stepper is None or stepper.tensors is None or in_stateless_scope() or self._inner._moved:
            return False
        layout = stepper.layout
        tensors = [variable._value for variable in layout.variables]
        if len(grads) != len(layout.weights) or not _same(tensors, stepper.tensors) \
                or (variables is not None and not _same(variables, layout.weights)) \
                or not all(isinstance(grad, backend.tensor_type) for grad in grads):
            return False
        count = self._iterations._value
        stepper.settle(count.item(), self._rate(), [variable._value.item() for variable in layout.scalars],
                       self.loss_scale_factor)
        weights = tensors[:len(layout.weights)]
        done = self._inner._apply_tensors(weights, backend.exchange, list(grads))
        if done == NOT_AS_PLANNED:                              # the state has other shapes or types
            stepper.forget()
            return False
        if done == CHECKED:
            self._stepped_in_place(weights)
            count.fill_(self._inner._calls)
        return True

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        """What Keras leaves to a backend: all but checking, unscaling, constraints and counting."""
        if len(grads) != len(trainable_variables):
            raise ValueError(f"grads has {len(grads)} entries, trainable_variables {len(trainable_variables)}")
        position = self._stepper.layout.position
        chosen = [position[self._get_variable_index(v)] for v in trainable_variables]
        grads = [backend.gradient(grad) for grad in grads]
        if backend.in_place and not in_stateless_scope():
            self._step_in_place(chosen, grads)
        else:
            self._step_by_values(chosen, grads)
        for variable, rest in self._stepper.layout.rests(chosen):
            if getattr(variable, "constraint", None) is not None:
                masters.follow_constraint(self.assign, variable, rest)

    def _step_in_place(self, chosen: list[int], grads: list[Any]) -> None:
        inner, stepper, layout = self._inner, self._stepper, self._stepper.layout
        values = [variable._value for variable in layout.variables]
        with stepper.mutex:
            if stepper.bind([backend.array(value) for value in values]) and backend.exchange is not None \
                    and self._is_plain():
                stepper.tensors = values
            stepper.settle(int(backend.array(self._iterations.value)), self._rate(),
                           [backend.array(variable.value) for variable in layout.scalars])
            inner.apply([backend.array(grad) for grad in grads], [inner._weights[k] for k in chosen])
            self._stepped_in_place(values[:len(layout.weights)])
            self.__dict__["_counted"] = inner._calls

    def _is_plain(self) -> bool:
        """Whether a step is one call into C: nothing for Keras to do, or for Muon between its halves."""
        return type(self._inner)._between is Optimizer._between \
            and len(self._stepper.layout.weights) == len(self._trainable_variables) \
            and all(variable.constraint is None for variable in self._trainable_variables)

    def _stepped_in_place(self, weights: list[Any]) -> None:
        for variable, value in zip(self._stepper.layout.scalars, self._stepper.scalars(), strict=True):
            variable.assign(value)
        backend.has_stepped(weights)

    def _step_by_values(self, chosen: list[int], grads: list[Any]) -> None:
        stepper, layout, rate = self._stepper, self._stepper.layout, self._rate()
        variables = [self._iterations, *layout.scalars, *layout.variables]
        values = [variable.value if isinstance(variable, keras.Variable) else variable for variable in variables]
        rates = [] if rate is None else [keras.ops.convert_to_tensor(rate)]
        rates = [rate if keras.backend.is_float_dtype(keras.backend.standardize_dtype(rate.dtype))
                 else keras.ops.cast(rate, "float32") for rate in rates]    # a schedule may give whole numbers
        given = Given(chosen, [isinstance(grad, Slices) for grad in grads], len(rates))
        values = [*values, *rates, *given.flat(grads)]
        shapes = [tuple(variable.shape) for variable in variables]
        dtypes = [np.dtype(keras.backend.standardize_dtype(variable.dtype)) for variable in variables]
        results = backend.step_in_graph(stepper, given, variables, values)
        called = None if results is not None else backend.call_in_buffers(
            functools.partial(stepper.step_in_buffers, given), values, shapes, dtypes,
            functools.partial(stepper.open, given))
        if called is not None:
            results, kept = called
            stepper.kept.append(kept)
        elif results is None:
            results = backend.call(functools.partial(stepper.step_of_arrays, given), values, shapes, dtypes)
        count, *results = results
        for variable, result in zip(variables[1:], results, strict=True):
            self.assign(variable, result)
        self.__dict__["_counted"] = count

    def _overwrite_model_variables_with_average_value(self, trainable_variables: Iterable[Any]) -> None:
        """Keras's, with which weights of 16 bits are rounded as steps round them."""
        layout = self._stepper.layout
        if all(like == like.real for like in layout.likes):
            super()._overwrite_model_variables_with_average_value(trainable_variables)
            return
        for i, (variable, average) in enumerate(zip(layout.weights, layout.averages, strict=True)):
            masters.put_in(average, variable, layout.masters[i] if layout.masters else None, layout.likes[i])

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """With `use_ema`, copies the averages into the variables, as `fit` does at its end."""
        super().finalize_variable_values(var_list)
        if self.use_ema:
            backend.averages_are_put_in(var_list)


def _same(these: Sequence[object], those: Sequence[object]) -> bool:
    """Whether two lists hold the same objects."""
    return len(these) == len(those) and all(map(operator.is_, these, those))


def _check_number(inner: Optimizer, name: str, value: object) -> None:
    if isinstance(inner._arguments[name], Value) and name != "learning_rate" and callable(value):
        raise TypeError(f"{name}: expected a number, got {value!r}; only the learning rate can follow a schedule")


def _passed_on(name: str) -> property:
    """The property by which an argument is the inner optimizer's."""
    def get(self: KerasOptimizer) -> Any:
        return getattr(self._inner, name)

    def put(self: KerasOptimizer, value: Any) -> None:
        _check_number(self._inner, name, value)
        setattr(self._inner, name, value)

    return property(get, put)


def make_class(name: str) -> Any:
    """The class for optimc's of that name."""
    ours = registry.classes[name]
    cls = type(name, (KerasOptimizer,), {
        "__doc__": f"""A Keras optimizer that runs `optimc.{name}`, which explains the algorithm and the arguments.

        The learning rate may be a number, a schedule of Keras or optimc, or a callable.  All other values are
        numbers.  Weights must be {storage.IN_WORDS}.  On the torch backend they must lie on the CPU.

        Example:
            >>> import keras, numpy as np, optimc.keras
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> opt = optimc.keras.{name}()
            >>> opt.build(model.trainable_variables)
            >>> opt.apply([np.ones((2, 1), np.float32), np.ones(1, np.float32)])
            >>> int(opt.iterations)
            1
        """,
        "__module__": "optimc.keras", "__signature__": ours.__signature__, "_ours": name,
        **{argument: _passed_on(argument) for argument in ours._arguments
           if argument not in ("learning_rate", "name", "loss_scale_factor")},
    })
    return keras.saving.register_keras_serializable("optimc")(cls)
