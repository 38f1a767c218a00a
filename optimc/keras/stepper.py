"""The step over arrays: what lies between Keras's variables and the inner optimizer of optimc.

Keras's variables are the truth.  Before each step `settle` brings the inner optimizer to the count, rate and scalars
that the variables hold, because a callback or a load may have changed them; and the plan is made anew when the arrays
lie elsewhere than at the last step.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np

from optimc import _core
from optimc._core import Rows
from optimc.base import memory, rows
from optimc.base.selection import Selection
from optimc.base.state import BY_ROWS
from optimc.keras import foreign
from optimc.keras.backends import backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from optimc._types import Array
    from optimc.base.optimizer import Optimizer
    from optimc.keras.layout import Layout


class Given(NamedTuple):
    """The order of the values that a step is given after the variables: learning rates, then gradients.

    Args:
        chosen: the positions of the weights that have gradients.
        by_rows: for each of them, whether its gradient is two values, indices and rows, in place of one.
        rated: the number of learning rates, 0 or 1.
    """

    chosen: Sequence[int]
    by_rows: Sequence[bool]
    rated: int

    def flat(self, grads: Iterable[Any]) -> list[Any]:
        """The values of gradients, in this order."""
        return [value for grad, by_rows in zip(grads, self.by_rows, strict=True)
                for value in ((grad.indices, grad.values) if by_rows else (grad,))]

    def grads(self, others: Iterable[Array]) -> list[Array | Rows]:
        """The gradients, from the arrays of all these values."""
        rest = itertools.islice(others, self.rated, None)
        return [Rows(next(rest), next(rest)) if by_rows else next(rest) for by_rows in self.by_rows]


class Stepper:
    """Steps arrays in the order of a layout.

    Args:
        inner: the optimizer of optimc.
        layout: the finished `Layout`.
        excluded: a function that gives the positions of the weights without weight decay.

    Attributes:
        mutex: held from a look at the plan to the end of the step.
        tensors: torch's tensors that the plan lies over, if C can step them by itself; else None.
        kept: objects that the framework's compiled steps call, as long as the optimizer lives.
        told: the learning rate that the inner optimizer was told last, or None.
        by_rows: the positions of the weights whose last gradient was of rows: if gradients of theirs wait for an
            update, they are of rows, too.
        number: that of the inner optimizer, if threads of the framework may step it without Python; else None.
        home: what C keeps for compiled programs of tensorflow, see graph_step.py; else None.
    """

    inner: Optimizer
    layout: Layout
    tensors: list[Any] | None
    kept: list[object]
    told: float | None
    by_rows: set[int]
    number: int | None
    home: tuple[object, int, int] | None

    def __init__(self, inner: Optimizer, layout: Layout, excluded: Callable[[], list[int]]) -> None:
        self.inner, self.layout, self._excluded = inner, layout, excluded
        self.mutex: AbstractContextManager[object] = threading.RLock()
        self.tensors, self.kept, self.told, self.by_rows, self.number = None, [], None, set(), None
        self.home = None
        self._places: list[int] | None = None
        self._copies: list[Array] | None = None

    def forget(self) -> None:
        """Drops the plan; the next step makes a new one.  If steps may come without Python, it is made now."""
        self._places = self.tensors = None
        if self.number is not None:
            self._open()

    def bind(self, arrays: Sequence[Array]) -> bool:
        """Makes the plan over arrays, if they lie elsewhere than at the last step; whether they did."""
        places = [_core.address(array) for array in arrays]
        if self._places == places and not self.inner._moved:
            return False
        inner, layout = self.inner, self.layout
        parts = layout.split(arrays)
        excluded = Selection.of("exclude_from_weight_decay", self._excluded())
        inner._hold(inner._chosen_by_position().but(excluded=excluded))
        inner.build(dict(zip(layout.names, parts.weights, strict=True)), slots=parts.slots,
                    averages=parts.averages if inner.use_ema else None,
                    accumulators=parts.accumulators if inner.gradient_accumulation_steps else None,
                    masters=parts.masters or None)
        self._prepare()
        self._places, self.tensors = places, None
        return True

    def _prepare(self) -> None:
        """Readies a new plan for steps over tensors, which look for the state where the variables hold it."""
        if backend.exchange is None:
            return
        self.inner._prepare_tensors((None,) * len(self.layout.weights), (), tuple(
            (i, part, vars(variable), "_value") for i, part, variable in self.layout.parts()), backend.plain_types)

    def open(self, given: Given, by_rows: bool = False) -> int | None:
        """The number by which C knows the optimizer, for a step with these values; None if it needs Python."""
        if foreign.why_not(self.inner, self.layout, given, by_rows) is None:
            self._open()
            return self.number
        return None

    def _open(self) -> None:
        """Readies the inner optimizer for steps without Python, over memory that none of them uses."""
        inner, layout = self.inner, self.layout
        with self.mutex:
            if self._places is None:
                self.bind([np.empty(shape, dtype) for shape, dtype in zip(layout.shapes, layout.dtypes, strict=True)])
            if callable(inner._get_value(0, 0)):            # each step brings its rate
                inner._set_value(0, 0, 0.0, False)
            if inner.loss_scale_factor is not None:         # Keras has divided by it
                inner.loss_scale_factor = None
            self.number = inner._open_foreign(layout.places(), bool(inner._late_slots))

    def settle(self, calls: int, rate: Any, scalars: Sequence[Any], loss_scale: float | None = None) -> None:
        """Brings the inner optimizer to where the variables are: after a load, by a callback, or as ever."""
        inner = self.inner
        if inner._calls != calls:
            inner._calls = calls
            steps = inner.gradient_accumulation_steps
            if steps:
                waiting = tuple(0 if calls % steps == 0 else BY_ROWS if i in self.by_rows else int(held.any())
                                for i, held in enumerate(inner._accumulators))
                inner._locked(lambda: inner._rebind(inner._state_now().but(waiting=waiting)))
                self._prepare()
        if rate is not None:
            rate = float(rate.value if isinstance(rate, keras.Variable) else rate)
            if rate != self.told:
                inner._set_value(0, 0, rate, False)
                self.told = rate
        if inner.loss_scale_factor != loss_scale:
            inner.loss_scale_factor = loss_scale
        if scalars and calls:
            inner._set_all_scalars(map(float, scalars))
        if not calls and inner._late_slots:
            inner._fill_late_slots()

    def scalars(self) -> list[float]:
        """The scalars of the rule, group by group."""
        return self.inner._all_scalars()

    # The next two are steps as functions, for frameworks that call back.

    def step_of_arrays(self, given: Given, count: Array, *arrays: Array) -> list[Array]:
        """From the count, scalars, weights, state, rate and gradients to the first four as they are afterwards."""
        layout = self.layout
        n, m = len(layout.scalars), len(layout.variables)
        count, arrays = np.asarray(count), tuple(map(np.asarray, arrays))   # waits, while no other waits for this
        scalars, values, others = arrays[:n], arrays[n:n + m], arrays[n + m:]
        with self.mutex:
            if self._copies is None:
                self._copies = [memory.like([np.empty(shape, dtype)], k)[0] for k, (shape, dtype) in
                                enumerate(zip(layout.shapes, layout.dtypes, strict=True))]
            for array, value in zip(self._copies, values, strict=True):
                np.copyto(array, value)
            numbers = self.inner._alone(self._step_over, self._copies, given, count, scalars, others)
            return [*numbers, *(array.copy() for array in self._copies)]

    def step_in_buffers(self, given: Given, changed: Sequence[Array], others: Sequence[Array]) -> None:
        """The same over memory that already holds the count, scalars, weights and state."""
        n = len(self.layout.scalars)
        count, scalars, arrays = changed[0], changed[1:1 + n], changed[1 + n:]
        with self.mutex:
            numbers = self.inner._alone(self._step_over, arrays, given, count, scalars, others)
            for array, number in zip([count, *scalars], numbers, strict=True):
                array[...] = number

    def _step_over(self, arrays: Sequence[Array], given: Given, count: Array, scalars: Sequence[Array],
                   others: Sequence[Array]) -> list[Array]:
        """Steps arrays of weights and state that may be others than at the last step; gives the numbers after it."""
        inner = self.inner
        self.bind(arrays)
        grads = self._taken(given, others)
        inner._calls = -1                                   # the accumulators may be others too
        self.told = None                                    # and a step without Python may have had another rate
        self.settle(int(count), others[0] if given.rated else None, scalars)
        weights = inner._weights or ()
        inner.apply(grads, [weights[k] for k in given.chosen])
        numbers = zip([inner._calls, *self.scalars()], [count, *scalars], strict=True)
        return [np.asarray(value, before.dtype) for value, before in numbers]

    def _taken(self, given: Given, others: Sequence[Array]) -> list[Array | Rows]:
        """The gradients, those by rows made dense whose weight takes none; notes `by_rows`."""
        plan: Any = self.inner._plan
        grads = given.grads(others)
        for i, k in enumerate(given.chosen):
            grad = grads[i]
            if isinstance(grad, Rows) and not plan.takes_rows(k):
                grads[i] = rows.dense_of(grad, self.layout.likes[k])
            (self.by_rows.add if isinstance(grads[i], Rows) else self.by_rows.discard)(k)
        return grads
