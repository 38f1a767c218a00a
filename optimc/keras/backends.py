"""What a step needs of each backend of Keras, one class per backend.

The rest of the package asks `backend`, made once for the backend that Keras runs on, and names no framework.  A class
imports its framework when it is made, so that one installed framework is enough.  Next: optimizer.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import in_stateless_scope

from optimc import _core
from optimc.keras import graph_step
from optimc.keras.traced import Traced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from optimc._types import Array, Shape
    from optimc.keras.stepper import Given, Stepper

    Types = Sequence[np.dtype[Any]]

BFLOAT16 = np.dtype("bfloat16")                 # of ml_dtypes, which Keras has imported


class Slices:
    """A gradient of rows of a variable, as values of the framework: values[k] belongs to row indices[k]."""

    indices: Any
    values: Any

    def __init__(self, indices: Any, values: Any) -> None:
        self.indices, self.values = indices, values

    def __truediv__(self, scale: Any) -> Slices:
        """Keras divides gradients by a loss scale."""
        return Slices(self.indices, self.values / scale)


class Backend:
    """A backend without memory that may be written, and the defaults of the others.

    Attributes:
        in_place: whether the values of variables are memory that a step may write.
        exchange: the table by which C looks at tensors; None where steps go through NumPy views.
        tensor_type: the type of these tensors.
        plain_types: those of them whose methods run no Python code.
    """

    in_place = False
    exchange: Any = None
    tensor_type: type = object
    plain_types: tuple[type, ...] = ()

    def way(self) -> str:
        """The way that a step takes, and why no other, in one line."""
        raise NotImplementedError

    def array(self, value: Any) -> Array:
        """A NumPy array over the memory of a value; of backends with `in_place`."""
        raise NotImplementedError

    def call(self, function: Callable[..., Any], values: Sequence[Any], shapes: Sequence[Shape],
             dtypes: Types) -> Any:
        """Calls a function of arrays with values; gives what it returns as values of these shapes and dtypes."""
        return function(*values)

    def call_in_buffers(self, function: Callable[..., Any], values: Sequence[Any], shapes: Sequence[Shape],
                        dtypes: Types, number_of: Callable[[], int | None]) -> tuple[Any, object] | None:
        """Calls a function over the framework's own memory, if that can be.

        Args:
            function: of two lists of arrays: those of the first values, which it changes in place, and the others.
            values: as many to be changed as there are shapes, then the others.
            shapes, dtypes: of the values to be changed.
            number_of: gives the number by which C knows the optimizer, if it can do without the function; else None.

        Returns:
            The values to be changed as they are after the call, and an object that must live as long as the
            framework may call.  None where it cannot be.
        """
        return None

    def step_in_graph(self, stepper: Stepper, given: Given, variables: Sequence[Any],
                      values: Sequence[Any]) -> Sequence[Any] | None:
        """Adds a step to the graph that is being built, if there is one and the step needs no Python.

        Args:
            variables: the count, the scalars, the weights and their state.
            values: theirs, then the others that the step is given.

        Returns:
            The values of the variables after the step, or None where it cannot be.
        """
        return None

    def gradient(self, grad: Any) -> Any:
        """A gradient as steps take it: `Slices` if this backend has gradients by rows; other sparse ones, dense."""
        return grad

    def check_variable(self, name: str, variable: Any) -> None:
        """Raises a TypeError for a variable that cannot be stepped."""

    def check_optimizer(self, optimizer: Any) -> None:
        """Raises a ValueError for an optimizer of Keras in a place where it cannot step."""

    def state_is_made(self, variables: Iterable[Any]) -> None:
        """Called once with the variables that Keras has made for the state."""

    def averages_are_put_in(self, variables: Iterable[Any]) -> None:
        """Called with the weights after Keras has put their averages into them."""

    def has_stepped(self, values: Sequence[Any]) -> None:
        """Called with the values of the weights that a step has changed in place."""

    def known_to_keras(self, variable: Any) -> Any:
        """The object by which Keras's optimizer knows a variable."""
        return variable

    def is_compiling(self) -> bool:
        """Whether a compiler traces the call, which it is to leave out."""
        return False

    def uncompiled(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that no compiler is to trace."""
        return function(*args)


class Numpy(Backend):
    in_place = True

    def way(self) -> str:
        return "steps: in place, over the arrays of the variables"

    def array(self, value: Any) -> Array:
        return np.asarray(value)

    def state_is_made(self, variables: Iterable[Any]) -> None:
        for variable in variables:                  # Keras makes float64 variables with values of float32
            variable.assign(variable.value)


class Torch(Backend):
    in_place = True
    tensor_type: type
    exchange: Any
    plain_types: tuple[type, ...]
    torch: Any

    def __init__(self) -> None:
        import torch

        from optimc.torch import bare, tensors
        self.torch, self._tensors = torch, tensors
        self.tensor_type, self.exchange, self.plain_types = torch.Tensor, tensors.EXCHANGE, bare.PLAIN
        self._uncompiled = torch.compiler.disable(lambda function, args: function(*args))

    def way(self) -> str:
        return "steps: in place, over the tensors of the variables"

    def array(self, value: Any) -> Array:
        if not isinstance(value, self.torch.Tensor):
            return np.asarray(value)
        if value.dtype is not self.torch.bfloat16:          # NumPy knows no bfloat16 of torch's
            return self._tensors.array(value)
        return self._tensors.array(value.detach().view(self.torch.int16)).view(BFLOAT16)

    def _tensor(self, array: Array) -> Any:
        """The inverse of `array`."""
        if array.dtype != BFLOAT16:
            return self.torch.from_numpy(array)
        return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)

    def call(self, function: Callable[..., Any], values: Sequence[Any], shapes: Sequence[Shape],
             dtypes: Types) -> Any:
        return map(self._tensor, function(*map(self.array, values)))

    def gradient(self, grad: Any) -> Any:
        dense = self.torch.strided
        if not isinstance(grad, self.torch.Tensor):
            return grad
        return (grad if grad.layout is dense else grad.to_dense()).resolve_neg()

    def check_variable(self, name: str, variable: Any) -> None:
        if variable.value.device.type != "cpu":
            raise TypeError(f"{name}: expected a variable on the CPU, got one on {variable.value.device}")

    def has_stepped(self, values: Sequence[Any]) -> None:
        self.torch.autograd.graph.increment_version(values)

    def is_compiling(self) -> bool:
        return bool(self.torch.compiler.is_compiling())

    def uncompiled(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._uncompiled(function, args)


class Tensorflow(Backend):
    tensorflow: Any
    _registered: bool
    _why_not: str | None

    def __init__(self) -> None:
        import tensorflow
        self.tensorflow = tensorflow
        self._registered = False

    @property
    def why_no_operations(self) -> str | None:
        """The reason for which compiled steps call Python, or None."""
        if not self._registered:
            self._why_not, self._registered = graph_step.register(self.tensorflow), True
        return self._why_not

    def call(self, function: Callable[..., Any], values: Sequence[Any], shapes: Sequence[Shape],
             dtypes: Types) -> Any:
        tf = self.tensorflow
        if tf.executing_eagerly():
            return function(*(np.asarray(tf.convert_to_tensor(value).numpy()) for value in values))
        results = tf.numpy_function(function, values, [tf.as_dtype(dtype) for dtype in dtypes])
        for result, shape in zip(results, shapes, strict=True):
            result.set_shape(shape)
        return results

    def way(self) -> str:
        if self.why_no_operations is None:
            return "compiled steps: operations in C"
        return f"compiled steps: a callback (tf.numpy_function), because {self.why_no_operations}"

    def step_in_graph(self, stepper: Stepper, given: Given, variables: Sequence[Any],
                      values: Sequence[Any]) -> Sequence[Any] | None:
        if self.tensorflow.executing_eagerly():
            return None
        if graph_step.is_for_xla(self.tensorflow):
            raise ValueError("XLA cannot compile a step of optimc: pass jit_compile=False to model.compile, or to "
                             "tf.function")
        if self.why_no_operations is not None or in_stateless_scope():
            return None
        number = stepper.open(given, by_rows=True)
        if number is None:
            return None
        return graph_step.GraphStep(self.tensorflow, stepper, number, given).add(variables, values)

    def gradient(self, grad: Any) -> Any:
        if isinstance(grad, self.tensorflow.IndexedSlices):
            return Slices(grad.indices, grad.values)
        return grad if isinstance(grad, Slices) else self.tensorflow.convert_to_tensor(grad)

    def check_optimizer(self, optimizer: Any) -> None:
        replicas = optimizer._distribution_strategy.num_replicas_in_sync
        if replicas > 1:
            raise ValueError(f"expected one replica, got {replicas}")

    def known_to_keras(self, variable: Any) -> Any:
        # tensorflow's own variable, as Keras passes it on: its name is longer
        return variable.value if isinstance(variable, keras.Variable) else variable


class Jax(Backend):
    """jax.

    Attributes:
        in_buffers: whether XLA calls over the memory of its own buffers; elsewhere it copies them to a Python
            callback and back.
    """

    def __init__(self) -> None:
        import jax
        self.jax = jax
        self.in_buffers: bool = hasattr(jax, "ffi") and jax.default_backend() == "cpu"
        if self.in_buffers:
            for name, target in zip(("optimc_call", "optimc_step"), _core._xla_targets(Traced.call), strict=True):
                jax.ffi.register_ffi_target(name, target, platform="cpu")

    def way(self) -> str:
        if self.in_buffers:
            return "compiled steps: a handler in C over XLA's own buffers"
        return "compiled steps: a callback (jax.pure_callback), as jax has no jax.ffi or does not run on the CPU"

    def _is_traced(self, values: Iterable[Any]) -> bool:
        return any(isinstance(value, self.jax.core.Tracer) for value in values)

    def call(self, function: Callable[..., Any], values: Sequence[Any], shapes: Sequence[Shape],
             dtypes: Types) -> Any:
        def call(*arrays: Any) -> Any:
            return function(*map(np.asarray, arrays))

        if not self._is_traced(values):
            return call(*values)
        results = [self.jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        return self.jax.pure_callback(call, results, *values)

    def call_in_buffers(self, function: Callable[..., Any], values: Sequence[Any], shapes: Sequence[Shape],
                        dtypes: Types, number_of: Callable[[], int | None]) -> tuple[Any, object] | None:
        if not self.in_buffers or not self._is_traced(values):
            return None
        jax = self.jax
        values = [jax.numpy.asarray(value) for value in values]
        made = list(zip(shapes, dtypes, strict=True))
        given = [(value.shape, np.dtype(value.dtype)) for value in values]
        if given[:len(made)] != made:
            return None
        traced = Traced(lambda given, made: function(made, given[len(made):]), given, made)
        number = number_of()
        call = jax.ffi.ffi_call("optimc_call" if number is None else "optimc_step",
                                [jax.ShapeDtypeStruct(*like) for like in made],
                                input_output_aliases={i: i for i in range(len(made))})
        numbers = {"number": traced.number} if number is None else {"number": traced.number, "foreign": number}
        return call(*values, **{name: np.int64(value) for name, value in numbers.items()}), traced

    def gradient(self, grad: Any) -> Any:
        return grad.todense() if hasattr(grad, "todense") else grad

    def averages_are_put_in(self, variables: Iterable[Any]) -> None:
        for variable in variables:          # Keras lets weight and average share memory; a step needs two arrays
            variable.assign(self.jax.numpy.array(variable.value))


BACKENDS: dict[str, type[Backend]] = {"torch": Torch, "tensorflow": Tensorflow, "jax": Jax, "numpy": Numpy}


def make_backend(name: str) -> Backend:
    """The backend of that name, as Keras calls it.

    Raises:
        ImportError: there is none.
    """
    if name not in BACKENDS:
        raise ImportError(f"optimc.keras does not support Keras's backend {name!r}: set KERAS_BACKEND to torch, "
                          "tensorflow, jax or numpy")
    return BACKENDS[name]()


#: that of this process
backend: Backend = make_backend(keras.backend.backend())
