"""Thinc's optimizers with the step in C, for Thinc and spaCy.

    from optimc.thinc import Adam                   # was: from thinc.api import Adam
    optimizer = Adam(0.001, L2=0.01)

Each class here is a subclass of Thinc's `Optimizer`, with the arguments and defaults of Thinc's function of that
name.  So spaCy takes it, in a config as `@optimizers = "optimc.Adam.v1"`.  Schedules, counts, `averages` and
`step_schedules` are Thinc's, and so are the dicts that hold the state: `mom1`, `mom2`, `averages`, `nr_update`.
A program may read, replace or pickle them.

Thinc hands over one weight at a time and may look at it before the next.  So each call is one step in C, for one
weight: clipping, the rule, decay and the average in one pass.  Results are Thinc's to rounding.

Weights and gradients are float32 arrays of NumPy.  Thinc itself steps all others, as on a GPU.  It also takes the
rare steps that optimc does otherwise: clipping by a negative number or by a norm that is not finite, and the first
step of a count that starts again beside an average.  A refused call changes nothing.
"""

# no annotations from __future__: Thinc reads those of constructors to check a config

from typing import TYPE_CHECKING

import numpy as np

from optimc import _core, registry
from optimc.base import lazy, memory

try:
    from thinc import optimizers as theirs
except ImportError as _error:
    lazy.needs("thinc", _error)

from thinc.config import registry as registered

if TYPE_CHECKING:
    from typing import Any

    from optimc._types import Array
    from optimc.base.optimizer import Optimizer as Inner

    Key = tuple[int, str]
    Rate = float | list[float] | Any
else:
    Rate = getattr(theirs, "ScheduleT", None) or theirs.FloatOrSeq      # Thinc 9, Thinc 8

__all__ = ["SGD", "Adam", "Lion", "Optimizer", "RAdam"]

#: optimc's slots of each rule -> Thinc's dicts of them
SLOTS: "dict[str, dict[str, str]]" = {
    "SGD": {}, "Adam": {"m": "mom1", "v": "mom2"}, "RAdam": {"m": "mom1", "v": "mom2"}, "Lion": {"m": "mom1"},
}
#: optimc's names of the values that a step reads
VALUES = ("learning_rate", "weight_decay", "beta_1", "beta_2", "epsilon", "clipnorm", "ema_momentum")
MOST_MOMENTUM = 0.9999      # of averages
DEFAULTS: "dict[str, Any]" = theirs.ADAM_DEFAULTS


class _Stepper:
    """An optimizer of optimc for the weights of one key, over the arrays of Thinc's dicts.

    Args:
        rule: a key of `SLOTS`.
        values: the dict from which C reads the values at each step.
        weights: what is stepped.
        arrays: the flat array of each slot.
        average: the average of the weights, or None.
    """

    __slots__ = ("address", "arrays", "average", "inner", "rule", "shape", "weights")

    def __init__(self, rule: str, values: "dict[str, float]", weights: "Array", arrays: "list[Array]",
                 average: "Array | None") -> None:
        self.rule, self.weights, self.arrays, self.average = rule, weights, arrays, average
        self.address, self.shape = _core.address(weights), weights.shape
        self.inner: Inner = registry.classes[rule](use_ema=average is not None)
        for name in VALUES:
            index = self.inner._index.get(name)
            if index is not None:
                self.inner._set_item(0, index, values, name, -1, name in ("weight_decay", "clipnorm"))
        self.inner.build([weights], slots={
            slot: [array.reshape(weights.shape)] for slot, array in zip(SLOTS[rule], arrays, strict=True)
        }, averages=None if average is None else [average])

    def count_from(self, before: int, policy: str) -> None:
        """Sets the number of steps so far, and the policy for numbers that are not finite, of the next step."""
        if self.inner.iterations != before:
            self.inner.iterations = before
        if self.inner.check_finite != policy:
            self.inner.check_finite = policy            # type: ignore[assignment]

    def is_for(self, rule: str, weights: "Array", arrays: "list[Array | None]", average: "Array | None") -> bool:
        """True if it steps this memory by this rule."""
        return (self.rule == rule and average is self.average
                and all(mine is array for mine, array in zip(self.arrays, arrays, strict=True))
                and (weights is self.weights
                     or (self.shape == weights.shape and self.address == _core.address(weights))))


class Optimizer(theirs.Optimizer):
    """Thinc's `Optimizer` with the step in C.

    Arguments, attributes and methods are Thinc's.  Each setting may be a number, a list, a generator, or a `Schedule`
    of Thinc 9.  The rule is RAdam with `use_radam`, else Adam if `beta1` and `beta2` are above 0, else SGD.

    Example:
        >>> import numpy as np
        >>> from optimc.thinc import Optimizer
        >>> optimizer = Optimizer(0.5, beta1=0.0, beta2=0.0, grad_clip=0.0)
        >>> w, g = np.ones(2, np.float32), np.ones(2, np.float32)
        >>> _ = optimizer((1, "W"), w, g)
        >>> w, g
        (array([0.5, 0.5], dtype=float32), array([0., 0.], dtype=float32))
    """

    __slots__ = ["_steppers", "_values"]
    _steppers: "dict[Key, _Stepper]"
    _values: "dict[str, float]"

    def __init__(self, learn_rate: Rate, *, L2: Rate = DEFAULTS["L2"], beta1: Rate = DEFAULTS["beta1"],
                 beta2: Rate = DEFAULTS["beta2"], eps: Rate = DEFAULTS["eps"],
                 grad_clip: Rate = DEFAULTS["grad_clip"], use_averages: bool = True, use_radam: bool = False,
                 L2_is_weight_decay: bool = True) -> None:
        super().__init__(learn_rate, L2=L2, beta1=beta1, beta2=beta2, eps=eps, grad_clip=grad_clip,
                         use_averages=use_averages, use_radam=use_radam, L2_is_weight_decay=L2_is_weight_decay)
        self._forget()

    def _forget(self) -> None:
        """Drops what is made anew at the next calls."""
        self._steppers, self._values = {}, dict.fromkeys(VALUES, 0.0)

    def __getstate__(self) -> "Any":
        state: Any = super().__getstate__()
        return state[0], {name: value for name, value in state[1].items() if name not in ("_steppers", "_values")}

    def __setstate__(self, state: "Any") -> None:
        for attributes in filter(None, state):
            for name, value in attributes.items():
                setattr(self, name, value)
        self._forget()

    def _rule(self, beta1: float, beta2: float) -> "str | None":
        """The rule that Thinc would choose, or None."""
        if self.use_radam:
            return "RAdam"
        return "Adam" if beta1 > 0 and beta2 > 0 else None if beta2 > 0 else "SGD"

    def _settings(self, key: "Key") -> "tuple[float, ...]":
        """Learning rate, L2, beta1, beta2, eps and grad_clip of the next step of a key."""
        settings: Any = (self.learn_rate, self.L2, self.b1, self.b2, self.eps, self.grad_clip)
        if not any(map(callable, settings)):                            # Thinc 8
            return settings                                             # type: ignore[no-any-return]
        step, last_score = self._step, self._last_score
        return tuple([setting(step, key=key, last_score=last_score) if callable(setting) else setting
                      for setting in settings])

    def __call__(self, key: "Key", weights: "Any", gradient: "Any", *, lr_scale: float = 1.0) -> "tuple[Any, Any]":
        """Steps the weights of a key in place and zeroes the gradient.  Returns both.

        Args:
            key: number of the layer and name of the weight.
            weights: the array.
            gradient: its gradient.
            lr_scale: a factor of the learning rate.
        """
        if not (_is_taken(weights) and _is_taken(gradient) and weights.shape == gradient.shape):
            return self._step_as_thinc(key, weights, gradient, lr_scale)
        if not gradient.flags.writeable:
            raise ValueError(f"{key}: expected a gradient that can be written, for a step zeroes it")
        rate, l2, beta1, beta2, eps, clip = self._settings(key)
        rule = self._rule(beta1, beta2)
        decay = lr_scale * rate * l2 if self.L2_is_weight_decay else 0.0
        # Thinc's RAdam counts from 2.  SGD corrects nothing.
        count = self.nr_update.get(key, 0)
        before = count if rule == "Adam" else count + 1
        if (rule is None or rate < 0 or lr_scale < 0 or not 0 <= decay < 1 or not clip >= 0
                or (before == 0 and key in (self.averages or ()))):     # optimc's first step overwrites averages
            return self._step_as_thinc(key, weights, gradient, lr_scale)
        # Thinc decays after the update, optimc before it: (w - u)(1 - decay) = w (1 - decay) - u (1 - decay)
        rate = (rate if rule == "RAdam" else rate * lr_scale) * (1 - decay)
        momentum = min((count + 2) / (count + 11), MOST_MOMENTUM)
        values = self._values
        values["learning_rate"], values["weight_decay"] = rate, decay / rate if decay else 0.0
        values["beta_1"], values["beta_2"], values["epsilon"] = beta1, beta2, eps
        values["clipnorm"], values["ema_momentum"] = clip, momentum
        stepper = self._stepper(key, rule, weights)
        # a norm that is not finite makes all numbers NaN; Thinc does not clip by it, and has no Lion
        stepper.count_from(before, "raise" if clip and rule != "Lion" else "propagate")
        pulled = gradient if self.L2_is_weight_decay or not l2 else l2 * weights + gradient
        try:
            stepper.inner.apply([pulled], [weights])
        except FloatingPointError:
            return self._step_as_thinc(key, weights, gradient, lr_scale)
        self._keep(key, stepper)
        if before == 0 and stepper.average is not None:
            stepper.average *= 1 - momentum             # Thinc's average starts from 0, optimc's from the weights
        self.nr_update[key] = count + 1
        gradient.fill(0)
        return weights, gradient

    def _step_as_thinc(self, key: "Key", weights: "Any", gradient: "Any", lr_scale: float) -> "tuple[Any, Any]":
        """The step of an array that optimc does not take."""
        stepped: tuple[Any, Any] = super().__call__(key, weights, gradient, lr_scale=lr_scale)
        return stepped

    def _stepper(self, key: "Key", rule: str, weights: "Array") -> _Stepper:
        """The stepper of a key, a new one if the key is new or its memory has changed."""
        stepper, averages = self._steppers.get(key), self.averages
        held = [getattr(self, name).get(key) for name in SLOTS[rule].values()]
        average: Any = None if averages is None else averages.get(key)
        if stepper is not None and (averages is None) == (stepper.average is None) and stepper.is_for(
                rule, weights, held, average):
            return stepper
        arrays = [memory.like([weights], k)[0].reshape(-1) if array is None else np.ascontiguousarray(array)
                  for k, array in enumerate(held)]
        if averages is not None:
            average = (memory.like([weights], _core.PART_AVERAGE)[0] if average is None
                       else np.ascontiguousarray(average))
        return _Stepper(rule, self._values, weights, arrays, average)

    def _keep(self, key: "Key", stepper: _Stepper) -> None:
        """Puts a stepper and its arrays in the dicts, once it has stepped."""
        if self._steppers.get(key) is stepper:
            return
        self._steppers[key] = stepper
        for name, array in zip(SLOTS[stepper.rule].values(), stepper.arrays, strict=True):
            getattr(self, name)[key] = array
        average: Any = stepper.average
        if self.averages is not None:
            self.averages[key] = average


class Adam(Optimizer):
    """Thinc's `Adam` with the step in C.  Arguments and defaults are Thinc's.

    Example:
        >>> import numpy as np
        >>> from optimc.thinc import Adam
        >>> w = np.ones(2, np.float32)
        >>> _ = Adam(0.1)((1, "W"), w, np.array([0.5, -0.5], np.float32))
        >>> w.round(3)
        array([0.9, 1.1], dtype=float32)
    """

    __slots__ = []

    def __init__(self, learn_rate: Rate = DEFAULTS["learn_rate"], *, L2: Rate = DEFAULTS["L2"],
                 beta1: Rate = DEFAULTS["beta1"], beta2: Rate = DEFAULTS["beta2"], eps: Rate = DEFAULTS["eps"],
                 grad_clip: Rate = DEFAULTS["grad_clip"],
                 L2_is_weight_decay: bool = bool(DEFAULTS["L2_is_weight_decay"]), use_averages: bool = True) -> None:
        super().__init__(learn_rate, L2=L2, beta1=beta1, beta2=beta2, eps=eps, grad_clip=grad_clip,
                         use_averages=use_averages, L2_is_weight_decay=L2_is_weight_decay)


class RAdam(Optimizer):
    """Thinc's `RAdam` with the step in C.  Arguments and defaults are Thinc's.

    Example:
        >>> import numpy as np
        >>> from optimc.thinc import RAdam
        >>> w = np.ones(2, np.float32)
        >>> _ = RAdam(0.1)((1, "W"), w, np.array([0.5, -0.5], np.float32))
        >>> w.round(3)
        array([0.974, 1.026], dtype=float32)
    """

    __slots__ = []

    def __init__(self, learn_rate: Rate = DEFAULTS["learn_rate"], *, beta1: Rate = DEFAULTS["beta1"],
                 beta2: Rate = DEFAULTS["beta2"], eps: Rate = DEFAULTS["eps"], L2: Rate = DEFAULTS["L2"],
                 L2_is_weight_decay: bool = bool(DEFAULTS["L2_is_weight_decay"]),
                 grad_clip: Rate = DEFAULTS["grad_clip"], use_averages: bool = True) -> None:
        super().__init__(learn_rate, beta1=beta1, beta2=beta2, eps=eps, grad_clip=grad_clip, L2=L2,
                         L2_is_weight_decay=L2_is_weight_decay, use_averages=use_averages, use_radam=True)


class SGD(Optimizer):
    """Thinc's `SGD` with the step in C.  Arguments and defaults are Thinc's.

    Example:
        >>> import numpy as np
        >>> from optimc.thinc import SGD
        >>> w = np.ones(2, np.float32)
        >>> _ = SGD(0.5)((1, "W"), w, np.array([0.5, -0.5], np.float32))
        >>> w
        array([0.75, 1.25], dtype=float32)
    """

    __slots__ = []

    def __init__(self, learn_rate: Rate, *, L2: Rate = DEFAULTS["L2"], grad_clip: Rate = DEFAULTS["grad_clip"],
                 L2_is_weight_decay: bool = bool(DEFAULTS["L2_is_weight_decay"]), use_averages: bool = True) -> None:
        super().__init__(learn_rate, L2=L2, grad_clip=grad_clip, L2_is_weight_decay=L2_is_weight_decay,
                         beta1=0.0, beta2=0.0, use_averages=use_averages)


class Lion(Optimizer):
    """`optimc.Lion` for Thinc, which has no Lion: clipping, decay, schedules and averages as in Thinc's `Adam`.

    It keeps one array a weight, `mom1`.  A good learning rate is a third to a tenth of Adam's.

    Example:
        >>> import numpy as np
        >>> from optimc.thinc import Lion
        >>> w = np.ones(2, np.float32)
        >>> _ = Lion(0.25)((1, "W"), w, np.array([0.5, -0.5], np.float32))
        >>> w
        array([0.75, 1.25], dtype=float32)
    """

    __slots__ = []

    def __init__(self, learn_rate: Rate = 0.0003, *, L2: Rate = DEFAULTS["L2"], beta1: Rate = 0.9,
                 beta2: Rate = 0.99, grad_clip: Rate = DEFAULTS["grad_clip"],
                 L2_is_weight_decay: bool = bool(DEFAULTS["L2_is_weight_decay"]), use_averages: bool = True) -> None:
        super().__init__(learn_rate, L2=L2, beta1=beta1, beta2=beta2, grad_clip=grad_clip,
                         L2_is_weight_decay=L2_is_weight_decay, use_averages=use_averages)

    def _rule(self, beta1: float, beta2: float) -> "str | None":
        return "Lion"

    def _step_as_thinc(self, key: "Key", weights: "Any", gradient: "Any", lr_scale: float) -> "tuple[Any, Any]":
        if not len(gradient):
            return weights, gradient
        raise ValueError(f"{key}: Lion steps float32 arrays of NumPy, with a learning rate and a "
                         "grad_clip >= 0 and 0 <= learning rate x L2 < 1")


def _is_taken(array: "Any") -> bool:
    """True if optimc steps an array, or steps with it."""
    return bool(isinstance(array, np.ndarray) and array.dtype == np.float32 and array.flags.c_contiguous
                and array.ndim and array.size)


for _class in (Adam, RAdam, SGD, Lion):
    registered.optimizers(f"optimc.{_class.__name__}.v1")(_class)
