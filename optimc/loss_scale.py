"""A loss scale that adapts, around any optimizer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from optimc import _core, registry
from optimc.base.arguments import LOW_OPEN, Count
from optimc.base.names import refuse_unknown
from optimc.base.optimizer import Optimizer
from optimc.base.spellings import older_spellings
from optimc.base.wrapper import WrapperOfOne
from optimc.routing import MultiOptimizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

    from optimc._types import Array, Classes, Config, Gradients, Weights
    from optimc.schedules import Number


@registry.wrapper
class LossScaleOptimizer(WrapperOfOne):
    """Wraps an optimizer with a loss scale that halves when a gradient is not finite, and doubles after good steps.

    A step whose gradients are not all finite is skipped: it changes only `dynamic_scale` and `step_counter`.
    Multiply the loss by the scale (`scale_loss`) before you compute gradients.

    Args:
        inner_optimizer: the optimizer or `MultiOptimizer` that steps with the unscaled gradients.  Its
            loss_scale_factor becomes the scale.  A step of a `MultiOptimizer` is skipped as a whole.
        initial_scale: > 0.  Division by a power of two costs nothing.
        dynamic_growth_steps: number of good steps after which the scale doubles.
        name: display name.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.ones(1, np.float32)
        >>> opt = optimc.LossScaleOptimizer(optimc.SGD(0.5), initial_scale=4)
        >>> opt.apply([np.array([np.inf], np.float32)], [w])
        >>> opt.dynamic_scale, opt.iterations
        (2.0, 0)
        >>> opt.apply([np.array([2.0], np.float32)], [w])
        >>> w
        array([0.5], dtype=float32)
    """

    step_counter: Count = Count()              #: good steps since the scale last changed

    inner_optimizer: Optimizer | MultiOptimizer     #: the optimizer that steps
    initial_scale: float
    dynamic_growth_steps: int
    name: str

    def __init__(self, inner_optimizer: Optimizer | MultiOptimizer, initial_scale: Number = 2.0 ** 15,
                 dynamic_growth_steps: int = 2000, name: str | None = None, **kwargs: Any) -> None:
        if not kwargs.pop("dynamic", True):
            raise ValueError("LossScaleOptimizer is always dynamic: use loss_scale_factor for a fixed scale")
        for key, value in list(kwargs.items()):
            argument = vars(Optimizer).get(key)
            if argument is not None and value == argument.default:
                del kwargs[key]
            elif argument is not None:
                raise ValueError(f"set {key} on the inner_optimizer, not on LossScaleOptimizer")
        refuse_unknown(LossScaleOptimizer, kwargs, ("inner_optimizer", "initial_scale", "dynamic_growth_steps",
                                                    "name"))
        if not isinstance(inner_optimizer, (Optimizer, MultiOptimizer)):
            raise TypeError(f"inner_optimizer must be an optimizer or a MultiOptimizer, got "
                            f"{type(inner_optimizer).__name__}")
        if isinstance(dynamic_growth_steps, bool) or not isinstance(dynamic_growth_steps, int):
            raise TypeError(f"dynamic_growth_steps must be an int, got {type(dynamic_growth_steps).__name__}")
        if dynamic_growth_steps < 1:
            raise ValueError(f"dynamic_growth_steps must be at least 1, got {dynamic_growth_steps}")
        if initial_scale is None or callable(initial_scale):
            raise TypeError(f"initial_scale must be a number, got {initial_scale}")
        self.inner_optimizer = inner_optimizer
        self.initial_scale = _core.check_number("loss_scale_factor", initial_scale, 0.0, math.inf, LOW_OPEN)
        self.dynamic_growth_steps = dynamic_growth_steps
        self.name = name or "loss_scale_optimizer"
        self.step_counter = 0
        if isinstance(inner_optimizer, MultiOptimizer):         # at last: an interrupted call leaves it as it was
            inner_optimizer.__dict__.update(_scale_moves=True, loss_scale_factor=self.initial_scale)
        else:
            inner_optimizer.loss_scale_factor = self.initial_scale

    def _inner(self) -> list[Any]:
        return [self.inner_optimizer]

    def _numbers(self) -> tuple[str, ...]:
        return ("step_counter",)

    @property
    def dynamic_scale(self) -> float:
        """The scale that the next gradients are divided by."""
        scale: float = self._leading.loss_scale_factor
        return scale

    @older_spellings
    def build(self, weights: Weights) -> None:
        """Builds the inner optimizer."""
        self._leading.build(weights)

    @older_spellings
    def apply(self, grads: Gradients, weights: Weights | None = None) -> None:
        """Steps, unless a gradient is not finite.  Arguments and errors are those of `Optimizer.apply`."""
        inner = self.inner_optimizer
        if isinstance(inner, MultiOptimizer):
            self._apply_routed(grads, weights)
            return
        with _core.Transaction() as steps:
            finite = steps.check(inner, grads, weights, finite=True)
            if finite:
                inner._between()
            self._adapt(steps, finite)
            steps.commit()

    def _apply_routed(self, grads: Any, weights: Any) -> None:
        """`apply` for a `MultiOptimizer`: the step of every mapped optimizer, or of none."""
        inner: Any = self.inner_optimizer
        with _core.Transaction() as steps:
            if inner._check_all(steps, grads, weights, finite=True):
                steps.count(inner.__dict__, "iterations")
                self._adapt(steps, True)
                steps.commit()
            else:
                with _core.Transaction() as scale:          # `steps` runs none; it locks them until the scale moved
                    self._adapt(scale, False)
                    scale.commit()

    def _adapt(self, steps: _core.Transaction, finite: bool) -> None:
        """Tells a transaction how the scale moves after its step, whose gradients are, or are not, all finite."""
        inner: Any = self.inner_optimizer
        counter = min(self.step_counter + 1, _core.MOST_STEPS) if finite else 0
        scale = inner.loss_scale_factor
        if not finite:
            scale = max(scale / 2, 2.0 ** -126)
        elif counter >= self.dynamic_growth_steps:
            counter, scale = 0, min(scale * 2, 2.0 ** 127)
        steps.store(self.__dict__, "step_counter", counter)
        if isinstance(inner, MultiOptimizer):
            steps.store(inner.__dict__, "loss_scale_factor", scale)
        else:
            steps.set_value(inner, 0, inner._index["loss_scale_factor"], scale)

    @older_spellings
    def finalize_variable_values(self, weights: Weights | None = None) -> None:
        """The inner optimizer's."""
        self._leading.finalize_variable_values(weights)

    @older_spellings
    def averaged(self, weights: Weights | None = None) -> _core.Averaged:
        """The inner optimizer's."""
        context: _core.Averaged = self._leading.averaged(weights)
        return context

    def _own_variables(self) -> list[Array]:
        return [np.array(self.step_counter), np.array(self.dynamic_scale)]

    def get_config(self) -> Config:
        """The constructor's arguments as a dict of plain values."""
        inner = registry.serialize(self.inner_optimizer)
        inner["config"]["loss_scale_factor"] = None
        return {"name": self.name, "inner_optimizer": inner, "initial_scale": self.initial_scale,
                "dynamic_growth_steps": self.dynamic_growth_steps}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Classes | None = None) -> Self:
        """A new wrapper from what `get_config` gave."""
        inner = registry.deserialize(config["inner_optimizer"], custom_objects)
        return cls(**{**config, "inner_optimizer": inner})

    def __repr__(self) -> str:
        return f"<LossScaleOptimizer({self.inner_optimizer!r}): scale {self.dynamic_scale:g}>"
