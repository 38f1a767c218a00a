"""Keras optimizers with the step in C: change the name, keep the program.

    import optimc.keras
    model.compile(optimizer=optimc.keras.Adam(1e-3), loss="mse")

For each optimizer of optimc there is a class here, a `keras.optimizers.Optimizer` with Keras's arguments, for the
torch, tensorflow, jax and numpy backends.  Clipping, decay, the update, EMA and accumulation are one pass in C.
What Keras owns stays Keras's: the iterations, the learning rate and every slot are variables of the optimizer, so
callbacks, schedules, `model.save` and `load_model` find them where they look.

A step takes one of two routes.  *In place*, on torch and numpy: the plan lies over the memory of the variables.  *By
values*, on tensorflow and jax, and in `stateless_apply` anywhere: the framework calls back with the values of all
variables and gets new ones; nothing is remembered from step to step.  docs/keras.md says what each costs.
"""

import functools
import itertools
import operator
import threading
import weakref
from typing import Any

import numpy as np

try:
    import keras
except ImportError as error:
    raise ImportError("optimc.keras needs keras: pip install 'optimc[keras]'") from error

from keras.src.backend.common.stateless_scope import in_stateless_scope

from optimc import _core, registry, schedules
from optimc.base import memory
from optimc.base.arguments import Value
from optimc.base.optimizer import Optimizer
from optimc.base.rules import slots_of
from optimc.migrate import Like

BACKEND = keras.backend.backend()
#: what Keras's base class takes beside the learning rate and the name
COMMON = ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum",
          "ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps")
#: torch's table for looking at tensors; where there is none, steps go through NumPy views
EXCHANGE: Any = None

# Per backend: `_array`, a view of a value's memory; `_call`, which calls a function of arrays with values and gives
# what it returns as values; `_dense`, a gradient that is not sparse.

if BACKEND == "torch":
    import torch

    from optimc.torch.tensors import EXCHANGE

    def _array(value):
        return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

    def _call(function, values, shapes, dtypes):
        return map(torch.from_numpy, function(*map(_array, values)))

    def _dense(grad):
        return grad if getattr(grad, "layout", torch.strided) is torch.strided else grad.to_dense()

elif BACKEND == "tensorflow":
    import tensorflow

    def _call(function, values, shapes, dtypes):
        if tensorflow.executing_eagerly():
            return function(*(np.asarray(tensorflow.convert_to_tensor(value)) for value in values))
        results = tensorflow.numpy_function(function, values, [tensorflow.as_dtype(dtype) for dtype in dtypes])
        for result, shape in zip(results, shapes, strict=True):
            result.set_shape(shape)
        return results

    def _dense(grad):
        return tensorflow.convert_to_tensor(grad)

elif BACKEND == "jax":
    import jax

    class _Traced:
        """A step as XLA calls it: a function of the arrays given and the arrays to fill."""

        #: by number; each lives as long as its optimizer
        known: Any = weakref.WeakValueDictionary()
        numbers = itertools.count()

        def __init__(self, function, given, made):
            self.function, self.given, self.made = function, given, made
            self.number = next(self.numbers)
            self.known[self.number] = self

        @classmethod
        def call(cls, number, given, made):
            traced = cls.known.get(number)
            if traced is None:
                raise RuntimeError("the optimizer of this compiled step is gone")
            traced.function(*([np.ndarray(shape, dtype, memory) for memory, (shape, dtype) in
                               zip(memories, likes, strict=True)]
                              for memories, likes in ((given, traced.given), (made, traced.made))))

    #: whether XLA calls over the memory of its own buffers; elsewhere it copies them to a Python callback and back
    IN_BUFFERS = hasattr(jax, "ffi") and jax.default_backend() == "cpu"
    if IN_BUFFERS:
        jax.ffi.register_ffi_target("optimc_step", _core._xla_target(_Traced.call), platform="cpu")

    def _call(function, values, shapes, dtypes):
        def call(*arrays):
            return function(*map(np.asarray, arrays))

        if not any(isinstance(value, jax.core.Tracer) for value in values):
            return call(*values)
        results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        return jax.pure_callback(call, results, *values)

    def _call_in_buffers(optimizer, function, values, shapes, dtypes):
        """Calls a function of the first arrays, to be changed in place, and the others; gives the former's values.

        None where that cannot be: outside a compiled step, or where XLA does not run on the CPU.
        """
        if not IN_BUFFERS or not any(isinstance(value, jax.core.Tracer) for value in values):
            return None
        values = [jax.numpy.asarray(value) for value in values]
        made = list(zip(shapes, dtypes, strict=True))
        given = [(value.shape, np.dtype(value.dtype)) for value in values]
        if given[:len(made)] != made:
            return None
        traced = _Traced(lambda given, made: function(made, given[len(made):]), given, made)
        optimizer.__dict__["_traced"].append(traced)
        return jax.ffi.ffi_call("optimc_step", [jax.ShapeDtypeStruct(*like) for like in made],
                                input_output_aliases={i: i for i in range(len(made))})(
            *values, number=np.int64(traced.number))

    def _dense(grad):
        return grad.todense() if hasattr(grad, "todense") else grad

elif BACKEND == "numpy":
    def _array(value):
        return np.asarray(value)

    def _call(function, values, shapes, dtypes):
        return function(*values)

    def _dense(grad):
        return grad

else:
    raise ImportError(f"optimc.keras knows no step on Keras's backend {BACKEND!r}: set KERAS_BACKEND to torch, "
                      "tensorflow, jax or numpy")

#: whether the values of variables are memory that may be written
IN_PLACE = BACKEND in ("torch", "numpy")


@keras.saving.register_keras_serializable("optimc")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of `optimc.schedules` as one of Keras's; a learning rate given as the former becomes one.

    Example:
        >>> import optimc.keras
        >>> opt = optimc.keras.SGD(optimc.schedules.OneCycle(1.0, total_steps=100))
        >>> round(float(opt.learning_rate), 6)
        0.04
    """

    def __init__(self, schedule):
        if isinstance(schedule, dict):
            schedule = schedules.deserialize(schedule, keras.saving.get_custom_objects())
        self.schedule = schedule

    def __call__(self, step):
        return keras.ops.convert_to_tensor(self.schedule(int(step)), keras.config.floatx())

    def get_config(self):
        return {"schedule": schedules.serialize(self.schedule)}


class _Layout:
    """The variables of a step: the weights that are stepped, the state of each, the scalars of the rule."""

    def __init__(self, core, variables, stepped):
        self.weights = [variables[i] for i in stepped]
        self.position = {i: k for k, i in enumerate(stepped)}     # among all variables -> among the weights
        self.likes = [Like(tuple(v.shape), keras.backend.standardize_dtype(v.dtype)) for v in self.weights]
        self.names = []
        for variable in self.weights:
            name = getattr(variable, "path", variable.name)
            self.names.append(name if name not in self.names else f"{name}#{len(self.names)}")
        self.kernels = core._kernels(self.names, self.likes)
        self.slots, self.averages, self.accumulators = {}, [], []
        self.scalars, self.room = [], None

    def finish(self):
        """Once all is there: what the steps go over, in one order."""
        self.held = [*self.averages, *self.accumulators,
                     *(v for variables in self.slots.values() for v in variables if v is not None)]
        self.variables = [*self.weights, *self.held]
        self.shapes = [tuple(variable.shape) for variable in self.variables]
        self.dtypes = [np.dtype(keras.backend.standardize_dtype(variable.dtype)) for variable in self.variables]


class _Step(keras.optimizers.Optimizer):
    """What the classes here add to Keras's base class: the step, and the variables it needs."""

    _ours = ""

    def __init__(self, *args, **kwargs):
        core = registry.classes[self._ours](*args, **kwargs)
        kwargs.pop("decay", None)
        name = core._signature.bind_partial(*args, **kwargs).arguments.get("name")
        rate = core._get_value(0, 0)
        if isinstance(rate, Schedule):
            rate = rate.schedule
        for argument, value in core._given().items():
            _check_number(core, argument, value)
        # past __setattr__, which refuses to work before Keras's constructor, and tracks what it is given
        self.__dict__.update(_core=core, _layout=None, _places=None, _tensors=None, _told=None, _counted=None,
                             _traced=[], _mutex=threading.RLock())
        super().__init__(0.0 if isinstance(rate, schedules.LearningRateSchedule) else
                         rate if callable(rate) else float(rate),
                         **{name: getattr(core, name) for name in COMMON}, name=name)
        core.name = self.name
        if isinstance(rate, schedules.LearningRateSchedule):
            self.learning_rate = rate

    # ----------------------------------------------------------------------------- arguments

    @property
    def learning_rate(self):
        """Keras's: a variable, or what the schedule or callable gives now.  Settable."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, rate):
        if isinstance(rate, schedules.LearningRateSchedule):
            rate = Schedule(rate)
        keras.optimizers.Optimizer.learning_rate.fset(self, rate)
        if isinstance(rate, Schedule):
            self._core.learning_rate = rate.schedule
        self.__dict__["_told"] = None

    def _rate(self):
        """The learning rate of the step, or None if the core asks the schedule itself."""
        return None if isinstance(self._learning_rate, Schedule) else self._get_current_learning_rate()

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Exempts variables from weight decay, by identity or by regular expressions for their names; see Keras."""
        super().exclude_from_weight_decay(var_list, var_names)
        self.__dict__["_places"] = self.__dict__["_tensors"] = None

    def get_config(self):
        """Keras's configuration of this optimizer, and whatever else was given."""
        own = {}
        for name, value in self._core.get_config().items():
            argument = self._core._arguments.get(name)          # groups are none
            if argument is None or (name not in (*COMMON, "learning_rate", "name")
                                    and not (argument.keyword_only and value == argument.default)):
                own[name] = value
        return {**super().get_config(), **own}

    # ------------------------------------------------------------------------------ building

    @keras.src.utils.tracking.no_automatic_dependency_tracking
    def build(self, variables):
        """Makes the variables of the state, for the model's; once.

        Raises:
            TypeError: a variable is neither float32 nor float64, or, on torch, not on the CPU.
            ValueError: a strategy of tf.distribute has several replicas.
        """
        if self.built:
            return
        core, variables = self._core, list(variables)
        for variable in variables:
            name = getattr(variable, "path", variable.name)
            if keras.backend.standardize_dtype(variable.dtype) not in ("float32", "float64"):
                raise TypeError(f"{name}: expected a variable of float32 or float64, got {variable.dtype}")
            if BACKEND == "torch" and variable.value.device.type != "cpu":
                raise TypeError(f"{name}: expected a variable on the CPU, got one on {variable.value.device}")
        if BACKEND == "tensorflow" and self._distribution_strategy.num_replicas_in_sync > 1:
            raise ValueError(f"expected one replica, got {self._distribution_strategy.num_replicas_in_sync}")
        super().build(variables)
        stepped = [i for i, v in enumerate(variables) if not self._overwrite_variable_with_gradient(v)]
        layout = _Layout(core, variables, stepped)
        if self.use_ema:
            layout.averages = [self._model_variables_moving_average[i] for i in stepped]
        if self.gradient_accumulation_steps:
            layout.accumulators = [self._accumulated_gradients[i] for i in stepped]
        numbers = {slot: k for kernel in layout.kernels for slot, k in slots_of(kernel).items()}
        for block in core.keras_slots or ({slot: slot for slot in sorted(numbers, key=numbers.get)},):
            for i, kernel in enumerate(layout.kernels):
                for slot, name in block.items():
                    if slot in slots_of(kernel):
                        variables = layout.slots.setdefault(slot, [None] * len(stepped))
                        variables[i] = self._add_slot(layout, slot, name, i)
        for k in range(len(core.groups) + 1):
            for name in core._scalar_names():
                dtype = layout.likes[0].dtype.name if layout.likes else None
                layout.scalars.append(self.add_variable((), "ones", dtype, name=f"{name}_{k}" if k else name))
        layout.finish()
        if BACKEND == "numpy":                                  # where Keras begins float64 variables in float32
            for variable in layout.held:
                variable.assign(variable.value)
        self.__dict__["_layout"] = layout

    def _add_slot(self, layout, slot, name, i):
        weight, like, core = layout.weights[i], layout.likes[i], self._core
        shape = core._slot_shape(slot, like)
        initial = "zeros" if slot in core.late_slots else keras.initializers.Constant(core._initial(slot, like, 0))
        if shape == like.shape:
            return self.add_variable_from_reference(weight, name, initial)
        path = layout.names[i].replace("/", "_").replace(":", "_")
        return self.add_variable(shape, initial, like.dtype.name, name=f"{path}_{name}")

    def _bind(self, arrays):
        """Makes the plan over arrays for the layout's variables."""
        core, layout, arrays = self._core, self._layout, iter(arrays)
        weights, averages, accumulators = (
            [next(arrays) for _ in part] for part in (layout.weights, layout.averages, layout.accumulators))
        slots = {slot: [None if variable is None else next(arrays) for variable in variables]
                 for slot, variables in layout.slots.items()}
        # tensorflow's own variable, as Keras passes it on: its name is longer
        core._excluded = (tuple(i for i, v in enumerate(layout.weights) if not self._use_weight_decay(
            v.value if BACKEND == "tensorflow" and isinstance(v, keras.Variable) else v)), ())
        core.build(dict(zip(layout.names, weights, strict=True)), slots=slots,
                   averages=averages if self.use_ema else None,
                   accumulators=accumulators if self.gradient_accumulation_steps else None)
        self._prepare()

    def _prepare(self):
        """Readies a new plan for steps over tensors."""
        if EXCHANGE is not None:
            self._core._prepare_tensors((None,) * len(self._layout.weights), ())

    # ------------------------------------------------------------------------------ the step

    def apply(self, grads, trainable_variables=None):
        """One step; arguments, warnings and errors are Keras's.

        Raises:
            TypeError, ValueError: beside Keras's, those of `optimc.Optimizer.apply`; nothing has changed.
        """
        if EXCHANGE is not None and torch.compiler.is_compiling():
            _uncompiled(self, grads, trainable_variables)
        elif not self._apply_tensors(grads, trainable_variables):
            super().apply(grads, trainable_variables)
            if self._core.check_finite == "skip":               # Keras has counted the step
                self._iterations.assign(self._counted)

    def _apply_tensors(self, grads, variables):
        """The whole step on torch, if it is like the one before; else False, and nothing has happened."""
        layout, before = self._layout, self._tensors
        if before is None or in_stateless_scope():
            return False
        tensors = [variable._value for variable in layout.variables]
        if len(grads) != len(layout.weights) or not _same(tensors, before) \
                or (variables is not None and not _same(variables, layout.weights)) \
                or not all(isinstance(grad, torch.Tensor) for grad in grads):
            return False
        count = self._iterations._value
        self._settle(count.item(), self._rate(), [variable._value.item() for variable in layout.scalars],
                     self.loss_scale_factor)
        weights = tensors[:len(layout.weights)]
        if self._core._apply_tensors(weights, EXCHANGE, list(grads)):
            self._stepped_in_place(weights)
            count.fill_(self._core._calls)
        return True

    def _backend_apply_gradients(self, grads, trainable_variables):
        """What Keras leaves to a backend: all but checking, unscaling, constraints and counting."""
        if len(grads) != len(trainable_variables):
            raise ValueError(f"grads has {len(grads)} entries, trainable_variables {len(trainable_variables)}")
        chosen = [self._layout.position[self._get_variable_index(v)] for v in trainable_variables]
        grads = [_dense(grad) for grad in grads]
        if IN_PLACE and not in_stateless_scope():
            self._step_in_place(chosen, grads)
        else:
            self._step_by_values(chosen, grads)

    def _step_in_place(self, chosen, grads):
        core, layout = self._core, self._layout
        values = [variable._value for variable in layout.variables]
        arrays = [_array(value) for value in values]
        places = [memory.address(array) for array in arrays]
        with self._mutex:
            if self._places != places:
                self._bind(arrays)
                self.__dict__.update(_places=places,
                                     _tensors=values if EXCHANGE is not None and self._is_plain() else None)
            self._settle(int(_array(self._iterations.value)), self._rate(),
                         [_array(variable.value) for variable in layout.scalars])
            core.apply([_array(grad) for grad in grads], [core._weights[k] for k in chosen])
            self._stepped_in_place(values[:len(layout.weights)])
            self.__dict__["_counted"] = core._calls

    def _is_plain(self):
        """Whether a step is one call into C: nothing for Keras to do, or for Muon between its halves."""
        return type(self._core)._between is Optimizer._between \
            and len(self._layout.weights) == len(self._trainable_variables) \
            and all(variable.constraint is None for variable in self._trainable_variables)

    def _stepped_in_place(self, weights):
        for variable, value in zip(self._layout.scalars, self._scalars_now(), strict=True):
            variable.assign(value)
        if BACKEND == "torch":
            torch.autograd.graph.increment_version(weights)

    def _step_by_values(self, chosen, grads):
        layout, rate = self._layout, self._rate()
        variables = [self._iterations, *layout.scalars, *layout.variables]
        values = [variable.value if isinstance(variable, keras.Variable) else variable for variable in variables]
        rates = [] if rate is None else [keras.ops.convert_to_tensor(rate)]
        values = [*values, *rates, *grads]
        shapes = [tuple(variable.shape) for variable in variables]
        dtypes = [np.dtype(keras.backend.standardize_dtype(variable.dtype)) for variable in variables]
        results = None
        if BACKEND == "jax":
            results = _call_in_buffers(self, functools.partial(self._step_in_buffers, chosen, len(rates)),
                                       values, shapes, dtypes)
        if results is None:
            results = _call(functools.partial(self._step_of_arrays, chosen, len(rates)), values, shapes, dtypes)
        count, *results = results
        for variable, result in zip(variables[1:], results, strict=True):
            self.assign(variable, result)
        self.__dict__["_counted"] = count

    def _step_of_arrays(self, chosen, rated, count, *arrays):
        """A step as a function: from the count, scalars, weights, state, rate and gradients to what they become."""
        layout = self._layout
        n, m = len(layout.scalars), len(layout.variables)
        scalars, values, others = arrays[:n], arrays[n:n + m], arrays[n + m:]
        with self._mutex:
            if layout.room is None:
                layout.room = [memory.like([np.empty(shape, dtype)], k)[0] for k, (shape, dtype) in
                               enumerate(zip(layout.shapes, layout.dtypes, strict=True))]
            for array, value in zip(layout.room, values, strict=True):
                np.copyto(array, value)
            numbers = self._step_over(layout.room, chosen, rated, count, scalars, others)
            return [*numbers, *(array.copy() for array in layout.room)]

    def _step_in_buffers(self, chosen, rated, changed, others):
        """The same over memory that already holds the count, scalars, weights and state."""
        n = len(self._layout.scalars)
        count, scalars, arrays = changed[0], changed[1:1 + n], changed[1 + n:]
        with self._mutex:
            numbers = self._step_over(arrays, chosen, rated, count, scalars, others)
            for array, number in zip([count, *scalars], numbers, strict=True):
                array[...] = number

    def _step_over(self, arrays, chosen, rated, count, scalars, others):
        """Steps arrays of weights and state that may be others than at the last step; gives the numbers after it."""
        core = self._core
        places = [memory.address(array) for array in arrays]
        if self._places != places:
            self._bind(arrays)
            self.__dict__.update(_places=places, _tensors=None)
        core._calls = -1                                        # whatever was before, these accumulators are new
        self._settle(int(count), others[0] if rated else None, scalars)
        core.apply(list(others[rated:]), [core._weights[k] for k in chosen])
        numbers = zip([core._calls, *self._scalars_now()], [count, *scalars], strict=True)
        return [np.asarray(value, before.dtype) for value, before in numbers]

    def _settle(self, calls, rate, scalars, loss_scale=None):
        """Brings the core to where the variables are: after a load, by a callback, or as ever."""
        core = self._core
        if core._calls != calls:
            core._calls = calls
            steps = core.gradient_accumulation_steps
            if steps:
                core._rebind(tuple(calls % steps != 0 and bool(held.any()) for held in core._accumulators))
                self._prepare()
        if rate is not None:
            rate = float(rate.value if isinstance(rate, keras.Variable) else rate)
            if rate != self._told:
                core._set_value(0, 0, rate, False)
                self.__dict__["_told"] = rate
        if core.loss_scale_factor != loss_scale:
            core.loss_scale_factor = loss_scale
        for k in range(len(core.groups) + 1 if scalars and calls else 0):
            each = len(scalars) // (len(core.groups) + 1)
            core._set_scalars([float(value) for value in scalars[k * each:(k + 1) * each]], k)
        if not calls and core.late_slots:
            core._fill_late_slots()

    def finalize_variable_values(self, var_list):
        """With `use_ema`, puts the averages into the variables, as `fit` does at its end."""
        super().finalize_variable_values(var_list)
        if BACKEND == "jax" and self.use_ema:
            for variable in var_list:       # Keras has both share memory, which a step cannot be given twice
                variable.assign(jax.numpy.array(variable.value))

    def _scalars_now(self):
        return [value for k in range(len(self._core.groups) + 1) for value in self._core._scalars(k)]


def _same(these, those):
    """Whether two lists hold the same objects."""
    return len(these) == len(those) and all(map(operator.is_, these, those))


if BACKEND == "torch":
    @torch.compiler.disable
    def _uncompiled(optimizer, grads, variables):
        optimizer.apply(grads, variables)


def _check_number(core, name, value):
    if isinstance(core._arguments[name], Value) and name != "learning_rate" and callable(value):
        raise TypeError(f"{name}: expected a number, got {value!r}; only the learning rate can follow a schedule")


def _passed_on(name):
    """The property by which an argument is the core's."""
    def get(self):
        return getattr(self._core, name)

    def put(self, value):
        _check_number(self._core, name, value)
        setattr(self._core, name, value)

    return property(get, put)


def _make(name):
    """The class for optimc's of that name."""
    ours = registry.classes[name]
    cls = type(name, (_Step,), {
        "__doc__": f"""optimc.{name} as an optimizer of Keras; what it does and its arguments are there.

        The learning rate may be a number, a schedule of Keras's or optimc's, or a callable; all else is numbers.
        Weights must be float32 or float64 and lie on the CPU.

        Example:
            >>> import keras, numpy as np, optimc.keras
            >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            >>> opt = optimc.keras.{name}()
            >>> opt.build(model.trainable_variables)
            >>> opt.apply([np.ones((2, 1), np.float32), np.ones(1, np.float32)])
            >>> int(opt.iterations)
            1
        """,
        "__module__": __name__, "__signature__": ours.__signature__, "_ours": name,
        **{argument: _passed_on(argument) for argument in ours._arguments
           if argument not in ("learning_rate", "name", "loss_scale_factor")},
    })
    return keras.saving.register_keras_serializable("optimc")(cls)


globals().update({name: _make(name) for name in registry.classes})

__all__ = [*registry.classes, "Schedule"]
