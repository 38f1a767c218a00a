"""Steps in compiled programs of tensorflow, as the operations of csrc/python/graph.c.

A program that is traced gets two operations: one that holds the large values of variables, and the step.  Both know
the optimizer by its number.  What a step leaves to Python comes back as a call of a `Traced`.
"""

from __future__ import annotations

import math
import platform
import sys
from typing import TYPE_CHECKING

from optimc import _core
from optimc.base import memory
from optimc.keras.traced import Traced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from optimc.keras.stepper import Given, Stepper

#: bytes from which a value is changed in place where that can be; smaller ones are copied in and out
LENT_FROM = 64 << 10
LIBRARY = "libtensorflow_framework.2.dylib" if sys.platform == "darwin" else "libtensorflow_framework.so.2"


def register(tensorflow: Any) -> str | None:
    """Registers the operations; the reason why there are none, or None."""
    if not hasattr(_core, "_register_tensorflow"):
        return f"optimc has no operations on {platform.system()}"
    return _core._register_tensorflow(f"{tensorflow.sysconfig.get_lib()}/{LIBRARY}", Traced.call)


def graphs(tensorflow: Any) -> Iterator[Any]:
    """The graph that is being built, and those that it is in."""
    graph = tensorflow.compat.v1.get_default_graph()
    while graph is not None:
        yield graph
        graph = getattr(graph, "outer_graph", None)


def is_for_xla(tensorflow: Any) -> bool:
    """True if XLA is to compile the program that is being traced."""
    contexts = [graph._get_control_flow_context() for graph in graphs(tensorflow)
                if hasattr(graph, "_get_control_flow_context")]
    return any(context is not None and context.IsXLAContext() for context in contexts)


class GraphStep:
    """The step of an optimizer as a node of the graph that is being built.

    Args:
        tensorflow: the module.
        stepper: of the optimizer.
        number: the number by which C knows the optimizer.
        given: the order of the values of the step.
    """

    tf: Any
    stepper: Stepper
    number: int
    given: Given
    process: int
    lent: list[int]
    small: list[int]

    def __init__(self, tensorflow: Any, stepper: Stepper, number: int, given: Given) -> None:
        self.tf, self.stepper, self.number, self.given = tensorflow, stepper, number, given
        layout = stepper.layout
        sizes = [dtype.itemsize * math.prod(shape) for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True)]
        if stepper.home is None:
            elsewhere = tensorflow.distribute.has_strategy() or any(
                "CPU" not in variable.handle.device for variable in layout.variables)
            lent_from = sys.maxsize if elsewhere else LENT_FROM
            shifts = tuple(memory.shift(i // len(layout.weights), size) for i, size in enumerate(sizes))
            stepper.home = (*_core._open_home(number, tuple(sizes), shifts, lent_from), lent_from)
        _, self.process, lent_from = stepper.home
        self.lent = [i for i, size in enumerate(sizes) if size >= lent_from]
        self.small = [i for i, size in enumerate(sizes) if size < lent_from]

    def add(self, variables: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        """Adds the nodes: the count, the scalars, the weights and their state after the step.

        Args:
            variables: of the results.
            values: theirs, then the others that the step is given.
        """
        tf, n = self.tf, len(variables)
        first = n - len(self.stepper.layout.variables)
        tensors = [tf.convert_to_tensor(value) for value in values]
        numbers, arrays, others = tensors[:first], tensors[first:n], tensors[n:]
        if self.given.rated and others[0].dtype not in (tf.float32, tf.float64):
            others[0] = tf.cast(others[0], tf.float32)
        others[self.given.rated:] = self._shaped(others[self.given.rated:])
        with tf.control_dependencies(others):                   # not long before the step: see lent.h
            tickets, assigned = self._hold(variables[first:], arrays)
        order = [*self.small, *self.lent]
        with tf.control_dependencies(assigned):
            results = self._node(
                "OptimcStep", [*numbers, *others[:self.given.rated], *tickets, *(arrays[i] for i in self.small),
                               *others[self.given.rated:]],
                [*numbers, *(arrays[i] for i in order)], {
                    "order": order, "callee": self._callee([*tensors[:n], *others], n), "scalars": first - 1,
                    "rated": self.given.rated, "lent": len(self.lent), "rows": self.given.by_rows})
        with tf.control_dependencies([results[0].op]):          # Keras counts a step when it is over: not if it fails
            tf.raw_ops.AssignVariableOp(resource=variables[0].handle, value=numbers[0])
        made = dict(zip(order, results[first:], strict=True))
        self._keep()
        return [*results[:first], *(made[i] for i in range(len(order)))]

    def _shaped(self, gradients: Sequence[Any]) -> list[Any]:
        """The gradients with the shapes that their weights give them, where the graph does not know theirs."""
        shapes: list[tuple[int | None, ...]] = []
        for k, by_rows in zip(self.given.chosen, self.given.by_rows, strict=True):
            shape = self.stepper.layout.shapes[k]
            shapes += [(None,), (None, *shape[1:])] if by_rows else [shape]
        return [gradient if gradient.shape.rank is not None
                and gradient.shape.as_list().count(None) <= shape.count(None)
                else self.tf.ensure_shape(gradient, shape) for gradient, shape in zip(gradients, shapes, strict=True)]

    def _hold(self, variables: Sequence[Any], arrays: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Lets variables of large values hold them in memory of optimc's: tickets, and the operations."""
        if not self.lent:
            return [], []
        held = [arrays[i] for i in self.lent]
        ticket, *tensors = self._node("OptimcHold", held, held, {"order": self.lent}, [self.tf.int64])
        return [ticket], [self.tf.raw_ops.AssignVariableOp(resource=variables[i].handle, value=tensor)
                          for i, tensor in zip(self.lent, tensors, strict=True)]

    def _node(self, name: str, inputs: list[Any], likes: list[Any], attributes: dict[str, Any],
              more: Sequence[Any] = ()) -> list[Any]:
        """Adds a node whose outputs have the types `more` and are then like the tensors `likes`."""
        tf = self.tf
        outputs = [*more, *(tensor.dtype for tensor in likes)]
        types = {"OptimcStep": {"I": [tensor.dtype for tensor in inputs], "O": outputs},
                 "OptimcHold": {"V": [tensor.dtype for tensor in inputs]}}[name]
        value = tf.compat.v1.AttrValue
        attrs = {key: value(list=value.ListValue(type=[dtype.as_datatype_enum for dtype in dtypes]))
                 for key, dtypes in types.items()}
        for key, number in {"process": self.process, "number": self.number, **attributes}.items():
            attrs[key] = value(i=int(number)) if not isinstance(number, (list, tuple)) else \
                value(list=value.ListValue(i=list(map(int, number))))
        node = tf.compat.v1.get_default_graph().create_op(name, inputs, outputs, attrs=attrs, name=name)
        for output, like in zip(node.outputs[len(more):], likes, strict=True):
            output.set_shape(like.shape)
        return list(node.outputs)

    def _callee(self, tensors: Sequence[Any], n: int) -> int:
        """The number of the function by which Python does a step."""
        stepper, given = self.stepper, self.given
        made, others = ([(tuple(tensor.shape), tensor.dtype.as_numpy_dtype) for tensor in part]
                        for part in (tensors[:n], tensors[n:]))
        traced = Traced(lambda others, changed: stepper.step_in_buffers(given, changed, others), others, made)
        stepper.kept.append(traced)
        return traced.number

    def _keep(self) -> None:
        """Lets the program keep the optimizer."""
        found = list(graphs(self.tf))
        for graph in [graph for graph in found if hasattr(graph, "outer_graph")] or found:
            graph._optimc_kept = [*getattr(graph, "_optimc_kept", ()), self.stepper]
