"""Schedules: values that change with the step.  A schedule is called with the number of steps done so far.

Any real hyperparameter takes a schedule, not only the learning rate.  Formulas and arguments are those of Keras 3.
They are computed in double precision; Keras rounds every operation to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from optimc import _core
from optimc.base.names import Strict, is_ours, refuse_name, says_what_it_takes, schedule_named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self, TypeAlias, TypeGuard

    from optimc._types import Classes, Config


class LearningRateSchedule:
    """Base class of schedules.  A subclass defines `__call__(step)` and, if it is to be saved, `get_config()`.

    `step` is the number of steps done, 0 at the first step.  The result must be a number that the
    hyperparameter allows.  It is checked before anything is written.

    Example:
        >>> import optimc
        >>> class Halve(optimc.schedules.LearningRateSchedule):
        ...     def __call__(self, step: float) -> float:
        ...         return 0.1 * 0.5 ** step
        >>> optimc.SGD(learning_rate=Halve()).learning_rate
        0.1
    """

    def __call__(self, step: int) -> float:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(step)")

    def get_config(self) -> Config:
        """The constructor's arguments, as a dict of plain values."""
        raise NotImplementedError(f"{type(self).__name__} must define get_config() to be saved")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self is other or self._plain() == other._plain()

    def __hash__(self) -> int:
        return object.__hash__(self)

    def _plain(self) -> Config | int:
        try:
            return self.get_config()
        except NotImplementedError:
            return id(self)

    def __repr__(self) -> str:
        config = self._plain()
        if not isinstance(config, dict):
            return f"{type(self).__name__}()"
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in config.items())})"


#: the types of a number and of a hyperparameter, for annotations
Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
Rate: TypeAlias = Number | LearningRateSchedule | Callable[[], Number]


class _Schedule(Strict, LearningRateSchedule):
    """Base class of the schedules of this module.  Their arguments are attributes, checked once."""

    _names: tuple[str, ...] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls) and is_ours(cls):
            setattr(cls, "__init__", says_what_it_takes(vars(cls)["__init__"]))     # noqa: B010  # mypy refuses it else
    name: str

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self._names = tuple(values)

    def get_config(self) -> Config:
        return {name: getattr(self, name) for name in self._names}


def _number(name: str, value: object, low: float = -math.inf, high: float = math.inf, open: int = 0) -> float:
    return _core.check_number(name, value, low, high, open)


def _steps(name: str, value: object) -> float:
    return _number(name, value, 0.0, math.inf, 1)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


class ExponentialDecay(_Schedule):
    """initial_learning_rate decay_rate^(step / decay_steps).

    With `staircase` the quotient step / decay_steps is rounded down.

    Args:
        initial_learning_rate: the value at step 0.
        decay_steps: steps after which the value has been multiplied by decay_rate once; > 0.
        decay_rate: the factor per decay_steps; >= 0.
        staircase: change the value at once, every decay_steps, instead of at each step.
        name: display name.

    Example:
        >>> import optimc
        >>> optimc.schedules.ExponentialDecay(0.5, decay_steps=10, decay_rate=0.25)(5)
        0.25
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool

    def __init__(self, initial_learning_rate: Number, decay_steps: Number, decay_rate: Number,
                 staircase: bool = False, name: str = "ExponentialDecay") -> None:
        self._set(initial_learning_rate=_number("initial_learning_rate", initial_learning_rate),
                  decay_steps=_steps("decay_steps", decay_steps),
                  decay_rate=_number("decay_rate", decay_rate, 0.0), staircase=_flag("staircase", staircase),
                  name=name)

    def __call__(self, step: float) -> float:
        power = step / self.decay_steps
        return self.initial_learning_rate * self.decay_rate ** (math.floor(power) if self.staircase else power)


class InverseTimeDecay(_Schedule):
    """initial_learning_rate / (1 + decay_rate step / decay_steps).

    With `staircase` the quotient step / decay_steps is rounded down.

    Args:
        initial_learning_rate: the value at step 0.
        decay_steps: steps in one unit of time; > 0.
        decay_rate: growth of the divisor per unit of time.
        staircase: change the value at once, every decay_steps, instead of at each step.
        name: display name.

    Example:
        >>> import optimc
        >>> optimc.schedules.InverseTimeDecay(0.5, decay_steps=10, decay_rate=1.0)(10)
        0.25
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool

    def __init__(self, initial_learning_rate: Number, decay_steps: Number, decay_rate: Number,
                 staircase: bool = False, name: str = "InverseTimeDecay") -> None:
        self._set(initial_learning_rate=_number("initial_learning_rate", initial_learning_rate),
                  decay_steps=_steps("decay_steps", decay_steps),
                  decay_rate=_number("decay_rate", decay_rate), staircase=_flag("staircase", staircase), name=name)

    def __call__(self, step: float) -> float:
        periods = step / self.decay_steps
        return self.initial_learning_rate / (
            1 + self.decay_rate * (math.floor(periods) if self.staircase else periods))


class PolynomialDecay(_Schedule):
    """From initial_learning_rate to end_learning_rate in decay_steps, as (1 - step / decay_steps)^power.

    With `cycle`, once decay_steps have passed, the decay is stretched to the next multiple of decay_steps.

    Args:
        initial_learning_rate: the value at step 0.
        decay_steps: steps to the end; > 0.
        end_learning_rate: the value from then on.
        power: 1 is a straight line; >= 0.
        cycle: stretch the decay to the next multiple of decay_steps instead of ending.
        name: display name.

    Example:
        >>> import optimc
        >>> optimc.schedules.PolynomialDecay(1.0, decay_steps=10, end_learning_rate=0.5)(5)
        0.75
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float
    power: float
    cycle: bool

    def __init__(self, initial_learning_rate: Number, decay_steps: Number, end_learning_rate: Number = 0.0001,
                 power: Number = 1.0, cycle: bool = False, name: str = "PolynomialDecay") -> None:
        self._set(initial_learning_rate=_number("initial_learning_rate", initial_learning_rate),
                  decay_steps=_steps("decay_steps", decay_steps),
                  end_learning_rate=_number("end_learning_rate", end_learning_rate),
                  power=_number("power", power, 0.0), cycle=_flag("cycle", cycle), name=name)

    def __call__(self, step: float) -> float:
        steps = self.decay_steps
        if self.cycle:
            steps *= math.ceil(step / steps) if step else 1
        else:
            step = min(step, steps)
        remaining: float = (1 - step / steps) ** self.power
        return (self.initial_learning_rate - self.end_learning_rate) * remaining + self.end_learning_rate


class PiecewiseConstantDecay(_Schedule):
    """values[i] after step boundaries[i - 1], up to and including step boundaries[i].

    There is one value more than boundaries.

    Args:
        boundaries: list of steps that do not decrease.
        values: list of the values, one more than boundaries.
        name: display name.

    Example:
        >>> import optimc
        >>> schedule = optimc.schedules.PiecewiseConstantDecay([10, 20], [1.0, 0.5, 0.1])
        >>> schedule(10), schedule(11), schedule(21)
        (1.0, 0.5, 0.1)
    """

    boundaries: list[float]
    values: list[float]

    def __init__(self, boundaries: Sequence[Number], values: Sequence[Number],
                 name: str = "PiecewiseConstant") -> None:
        if not isinstance(boundaries, (list, tuple)) or not isinstance(values, (list, tuple)):
            raise TypeError("boundaries and values must be lists")
        if len(values) != len(boundaries) + 1:
            raise ValueError(f"values must have one entry more than boundaries, got {len(values)} and "
                             f"{len(boundaries)}")
        boundaries = [_number(f"boundaries[{i}]", value) for i, value in enumerate(boundaries)]
        if sorted(boundaries) != boundaries:
            raise ValueError(f"boundaries must not decrease, got {boundaries}")
        self._set(boundaries=boundaries,
                  values=[_number(f"values[{i}]", value) for i, value in enumerate(values)], name=name)

    def __call__(self, step: float) -> float:
        for boundary, value in zip(self.boundaries, self.values, strict=False):
            if step <= boundary:
                return value
        return self.values[-1]


class CosineDecay(_Schedule):
    """Half a cosine from initial_learning_rate down to alpha initial_learning_rate in decay_steps (arXiv 1608.03983).

    With `warmup_target` the rate first grows linearly to warmup_target over warmup_steps, then decays from there.

    Args:
        initial_learning_rate: the value at step 0.
        decay_steps: steps of the decay, after the warm-up; > 0.
        alpha: the value at the end, as a fraction of the value at the top.
        name: display name.
        warmup_target: the value at the top, at the end of a linear warm-up; None: no warm-up.
        warmup_steps: steps of the warm-up; >= 0.

    Example:
        >>> import optimc
        >>> optimc.schedules.CosineDecay(1.0, decay_steps=10)(10)
        0.0
    """

    initial_learning_rate: float
    decay_steps: float
    alpha: float
    warmup_target: float | None
    warmup_steps: float

    def __init__(self, initial_learning_rate: Number, decay_steps: Number, alpha: Number = 0.0,
                 name: str = "CosineDecay", warmup_target: Number | None = None, warmup_steps: Number = 0) -> None:
        self._set(initial_learning_rate=_number("initial_learning_rate", initial_learning_rate),
                  decay_steps=_steps("decay_steps", decay_steps), alpha=_number("alpha", alpha), name=name,
                  warmup_target=None if warmup_target is None else _number("warmup_target", warmup_target),
                  warmup_steps=_number("warmup_steps", warmup_steps, 0.0))

    def __call__(self, step: float) -> float:
        start = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return (self.warmup_target - start) * (step / self.warmup_steps) + start
            start, step = self.warmup_target, step - self.warmup_steps
        step = min(step, self.decay_steps)
        decayed = 0.5 * (1 + math.cos(math.pi * step / self.decay_steps))
        return start * ((1 - self.alpha) * decayed + self.alpha)


class CosineDecayRestarts(_Schedule):
    """Cosine decay with restarts (arXiv 1608.03983).

    Each period is t_mul times as long as the one before and starts m_mul times as high.

    Args:
        initial_learning_rate: the value at step 0.
        first_decay_steps: steps of the first period; > 0.
        t_mul: length of a period over that of the one before; >= 1.
        m_mul: height of a period over that of the one before; >= 0.
        alpha: the lowest value, as a fraction of initial_learning_rate.
        name: display name.

    Example:
        >>> import optimc
        >>> schedule = optimc.schedules.CosineDecayRestarts(1.0, first_decay_steps=10, m_mul=0.5)
        >>> schedule(0), schedule(10)
        (1.0, 0.5)
    """

    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float
    m_mul: float
    alpha: float

    def __init__(self, initial_learning_rate: Number, first_decay_steps: Number, t_mul: Number = 2.0,
                 m_mul: Number = 1.0, alpha: Number = 0.0, name: str = "SGDRDecay") -> None:
        self._set(initial_learning_rate=_number("initial_learning_rate", initial_learning_rate),
                  first_decay_steps=_steps("first_decay_steps", first_decay_steps),
                  t_mul=_number("t_mul", t_mul, 1.0), m_mul=_number("m_mul", m_mul, 0.0),
                  alpha=_number("alpha", alpha), name=name)

    def __call__(self, step: float) -> float:
        position, t_mul = step / self.first_decay_steps, self.t_mul
        if t_mul == 1:
            restart = math.floor(position)
            position -= restart
        else:
            restart = math.floor(math.log(1 - position * (1 - t_mul)) / math.log(t_mul))
            # exactly at a restart the logarithm may be one rounding error off
            while (1 - t_mul ** restart) / (1 - t_mul) > position:
                restart -= 1
            while (1 - t_mul ** (restart + 1)) / (1 - t_mul) <= position:
                restart += 1
            position = (position - (1 - t_mul ** restart) / (1 - t_mul)) / t_mul ** restart
        decayed = 0.5 * self.m_mul ** restart * (1 + math.cos(math.pi * position))
        return self.initial_learning_rate * ((1 - self.alpha) * decayed + self.alpha)


class OneCycle(_Schedule):
    """One cycle (Smith & Topin, 2017, arXiv 1708.07120): up by half a cosine, then down by another.

    The value goes from maximum / div_factor to maximum over the first pct_start of total_steps.  Then it goes down
    to maximum / div_factor / final_div_factor and stays there.  For a momentum, choose a low `maximum` and a
    div_factor below 1: it then goes down first.

    Args:
        maximum: the value at the top.
        total_steps: steps of the cycle; >= 2.
        pct_start: fraction of the steps on the way up; in [0, 1].
        div_factor: maximum over the value at step 0; > 0.
        final_div_factor: value at step 0 over the value at the end; > 0.
        name: display name.

    Example:
        >>> import optimc
        >>> schedule = optimc.schedules.OneCycle(1.0, total_steps=100, pct_start=0.25)
        >>> schedule(0), schedule(24)
        (0.04, 1.0)
    """

    maximum: float
    total_steps: float
    pct_start: float
    div_factor: float
    final_div_factor: float

    def __init__(self, maximum: Number, total_steps: Number, pct_start: Number = 0.3, div_factor: Number = 25.0,
                 final_div_factor: Number = 1e4, name: str = "OneCycle") -> None:
        self._set(maximum=_number("maximum", maximum), total_steps=_number("total_steps", total_steps, 2.0),
                  pct_start=_number("pct_start", pct_start, 0.0, 1.0),
                  div_factor=_number("div_factor", div_factor, 0.0, math.inf, 1),
                  final_div_factor=_number("final_div_factor", final_div_factor, 0.0, math.inf, 1), name=name)

    def __call__(self, step: float) -> float:
        start, last = self.maximum / self.div_factor, self.total_steps - 1
        top = self.pct_start * self.total_steps - 1
        if step < top:
            low, high, way = start, self.maximum, 1 - step / top
        else:
            low, high = start / self.final_div_factor, self.maximum
            way = (min(step, last) - top) / (last - top) if last > top else 1.0
        return low + (high - low) * 0.5 * (1 + math.cos(math.pi * way))


class Join(_Schedule):
    """Several schedules one after another.  See `join`.

    Args:
        schedules: list of schedules and numbers.
        boundaries: list of the steps at which each but the first begins.
        name: display name.
    """

    schedules: list[LearningRateSchedule | float]
    boundaries: list[float]

    def __init__(self, schedules: Sequence[LearningRateSchedule | Number | Config], boundaries: Sequence[Number],
                 name: str = "Join") -> None:
        if not isinstance(schedules, (list, tuple)) or not isinstance(boundaries, (list, tuple)):
            raise TypeError("schedules and boundaries must be lists")
        if not schedules or len(schedules) != len(boundaries) + 1:
            raise ValueError(f"schedules must have one entry more than boundaries, got {len(schedules)} and "
                             f"{len(boundaries)}")
        parts: list[LearningRateSchedule | float] = []
        for i, part in enumerate(schedules):
            if isinstance(part, dict):
                part = deserialize(part)
            parts.append(part if is_schedule(part) else _number(f"schedules[{i}]", part))
        boundaries = [_number(f"boundaries[{i}]", value, 0.0) for i, value in enumerate(boundaries)]
        if sorted(boundaries) != boundaries:
            raise ValueError(f"boundaries must not decrease, got {boundaries}")
        self._set(schedules=parts, boundaries=boundaries, name=name)

    def __call__(self, step: int) -> float:
        start = 0.0
        for part, end in zip(self.schedules, [*self.boundaries, math.inf], strict=True):
            if step < end:
                return part if isinstance(part, float) else part(step - math.ceil(start))
            start = end
        raise AssertionError("the last part has no end")

    def get_config(self) -> Config:
        parts = [serialize(part) if is_schedule(part) else part for part in self.schedules]
        return {**super().get_config(), "schedules": parts}


def join(schedules: Sequence[LearningRateSchedule | Number], boundaries: Sequence[Number]) -> Join:
    """Schedules (or constants) one after another: schedule i is used before step boundaries[i].

    Each schedule counts its steps from its own start.

    Args:
        schedules: list of schedules and numbers.
        boundaries: list of the steps at which each but the first begins; they do not decrease.

    Example:
        >>> import optimc
        >>> from optimc import schedules
        >>> schedule = schedules.join([0.1, schedules.ExponentialDecay(0.5, 10, 0.25)], [100])
        >>> schedule(99), schedule(100), schedule(105)
        (0.1, 0.5, 0.25)
    """
    return Join(schedules, boundaries)


def is_schedule(value: object) -> TypeGuard[LearningRateSchedule]:
    """True if a value is a schedule, of optimc or of Keras, which is called with the step."""
    return any(base.__name__ == "LearningRateSchedule" for base in type(value).__mro__)


def classes() -> dict[str, type[LearningRateSchedule]]:
    """The schedules of this module by name, with their base class."""
    return {name: value for name, value in globals().items() if isinstance(value, type)
            and issubclass(value, LearningRateSchedule) and not name.startswith("_")}


def public() -> list[str]:
    """The names of schedules for people: the classes and `join`."""
    return [name for name in (*classes(), "join") if name not in ("LearningRateSchedule", "Join")]


def serialize(schedule: LearningRateSchedule) -> Config:
    """The class and configuration of a schedule as a dict of plain values, for `deserialize`."""
    return {"class_name": type(schedule).__name__, "config": schedule.get_config()}


def deserialize(config: Mapping[str, Any], custom_objects: Classes | None = None) -> LearningRateSchedule:
    """A schedule from the result of `serialize`; `custom_objects` names further classes."""
    known = {**classes(), **(custom_objects or {})}
    if config["class_name"] not in known:
        raise ValueError(f"Could not interpret schedule {config['class_name']!r}: pass its class in "
                         "custom_objects")
    arguments = dict(config["config"])
    if known[config["class_name"]] is Join:
        arguments["schedules"] = [deserialize(part, custom_objects) if isinstance(part, dict) else part
                                  for part in arguments["schedules"]]
    schedule: LearningRateSchedule = known[config["class_name"]].from_config(arguments)
    return schedule


if not TYPE_CHECKING:               # a checker would take it to mean that every name is there
    def __getattr__(name):
        found = schedule_named(name, public())
        refuse_name(__name__, name, f": did you mean {found}?" if found else "")
