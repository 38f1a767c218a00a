"""The arguments that an optimizer class declares: each has a default, a range and a place where its value is kept."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

from optimc import _core, schedules
from optimc.base import documents, setting

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Never, Self

    from optimc._types import Array, Classes, Gradient, Pairs
    from optimc.schedules import Rate

LOW_OPEN, HIGH_OPEN = _core.LOW_OPEN, _core.HIGH_OPEN           # ends of a range that are not allowed

Read = TypeVar("Read")          # the type of an attribute when it is read


class Argument:
    """One argument of an optimizer's constructor, also an attribute of the optimizer.

    In the signature it comes before the arguments of every optimizer, after them (`last`), or is `keyword_only`.
    """

    name: str
    owner: type
    default: Any
    keyword_only: bool
    last: bool

    def __init__(self, default: Any, keyword_only: bool = False, last: bool = False) -> None:
        self.default, self.keyword_only, self.last = default, keyword_only, last

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.owner = name, owner


class Value(Argument, Generic[Read]):
    """A finite real number in [low, high] that the kernels read.  A schedule or callable may give it.

    It can be changed at any time.  None disables it; None is allowed if it is the default or with `optional`.
    `also` is a second value for the tests, for instance one that chooses another kernel.
    """

    low: float
    high: float
    open: int
    also: object
    optional: bool

    def __init__(self, default: Read, low: float = 0.0, high: float = math.inf, *, open: int = 0, also: object = None,
                 optional: bool = False, **place: bool) -> None:
        super().__init__(default, **place)
        self.low, self.high, self.open, self.also = low, high, open, also
        self.optional = optional or default is None

    @overload
    def __get__(self, optimizer: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, optimizer: object, owner: type | None = None) -> Read: ...

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else optimizer._ask_value(0, optimizer._index[self.name])

    def __set__(self, optimizer: Any, value: Rate | Read) -> None:
        setting.change(optimizer, 0, self.name, value)


def fraction(default: float, **keywords: Any) -> Value[float]:
    """A `Value` in [0, 1].  `open=HIGH_OPEN` makes it [0, 1), for formulas that divide by 1 minus the value."""
    return Value(default, 0.0, 1.0, **keywords)


def cautious() -> Option[bool]:
    """The `Option` `cautious` of rules with momentum; `Optimizer` documents it."""
    return Option(False, core="_cautious", fixed=False, keyword_only=True)


def kept(owner: object, name: str) -> Any:
    """The attribute that an optimizer or wrapper keeps in its dict; a RuntimeError if it was never constructed."""
    try:
        return owner.__dict__[name]
    except KeyError:
        raise RuntimeError(f"{type(owner).__name__}: __init__ was not called, or failed") from None


class Option(Argument, Generic[Read]):
    """An argument that is no `Value`: a flag, a name, a count.

    Args:
        check: a function of name and value that returns the value to keep, or raises; default: accepts a bool.
        core: the attribute of the C base class that gets `encode(value)`.
        fixed: the value cannot change once the optimizer is built.
        fits: a function of optimizer, name and value that refuses what does not fit the other arguments.  The
            constructor calls it by itself, once all are set.
    """

    check: Callable[[str, Any], Any]
    core: str | None
    encode: Callable[[Any], int]
    fixed: bool
    fits: Callable[[Any, str, Any], None] | None

    def __init__(self, default: Any, check: Callable[[str, Any], Any] | None = None, *, core: str | None = None,
                 encode: Callable[[Any], int] = int, fixed: bool = True,
                 fits: Callable[[Any, str, Any], None] | None = None, **place: bool) -> None:
        super().__init__(default, **place)
        self.check, self.core, self.encode, self.fixed, self.fits = check or check_bool, core, encode, fixed, fits

    @overload
    def __get__(self, optimizer: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, optimizer: object, owner: type | None = None) -> Read: ...

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else kept(optimizer, self.name)

    def __set__(self, optimizer: Any, value: Read) -> None:
        value = self.check(self.name, value)
        if self.fixed and optimizer.built and value != optimizer.__dict__[self.name]:
            raise ValueError(f"{self.name} cannot change once the optimizer is built")
        if self.fits and self.name in optimizer.__dict__:
            self.fits(optimizer, self.name, value)
        index = optimizer._index.get(self.name, -1)     # >= 0: coefficients depend on it
        number = self.encode(value) if self.core or index >= 0 else 0
        optimizer._set_option(self.name, value, self.core, number, index)


class _Documented:
    """The `__doc__` of a kind of argument: the class has its own text, an argument that of its owner's docstring."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def __get__(self, argument: Any, kind: type | None = None) -> str | None:
        if argument is None:
            return self.text
        return documents.document(argument.owner, argument.name, argument.default)


for _kind in (Value, Option):
    _kind.__doc__ = _Documented(_kind.__doc__)      # type: ignore[assignment]


class _Kept(Generic[Read]):
    """An attribute that is kept in the object's dict."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    name: str

    @overload
    def __get__(self, optimizer: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, optimizer: object, owner: type | None = None) -> Read: ...

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        return self if optimizer is None else kept(optimizer, self.name)


class Fixed(_Kept[Read]):
    """An attribute of an optimizer that only its constructor sets, in the object's dict."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set__(self, optimizer: Any, value: Never) -> None:
        raise AttributeError(f"{self.name} cannot be replaced: give them to the constructor of another optimizer",
                             obj=optimizer)


def is_switch(argument: object) -> bool:
    """True if an argument is a flag."""
    return isinstance(argument, Option) and isinstance(argument.default, bool)


def check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def check_name(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    return value


def at_least_zero(name: str, value: object) -> float:
    """The `check` of an `Option` that is a finite number >= 0."""
    return _core.check_number(name, value, 0.0, math.inf, 0)


def count(least: int, optional: bool = False) -> Callable[[str, Any], int | None]:
    """The `check` of an `Option` that is a whole number from `least` up to 2^31 - 1.

    With `optional`, None and 0 are allowed too and disable it.
    """
    def check(name: str, value: Any) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, (bool, np.ndarray)) or not hasattr(type(value), "__index__"):
            raise TypeError(f"{name} must be an int{' or None' * optional}, got {type(value).__name__}")
        number = int(value.__index__())
        if not (least <= number < 2 ** 31 or (optional and number == 0)):
            raise ValueError(f"{name} must be {'None or ' * optional}at least {least}"
                             f"{' and below 2**31' * (number > least)}, got {number}")
        return number
    return check


def check_count(name: str, value: Any) -> int:
    """A count of steps: a whole number that a file can hold."""
    if isinstance(value, (bool, np.ndarray)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    number = int(value.__index__())
    if not 0 <= number <= _core.MOST_STEPS:
        raise ValueError(f"{name} must be in [0, {_core.MOST_STEPS}], got {number}")
    return number


class Count(_Kept[int]):
    """An attribute that counts steps.  It is kept in the object's dict, where a transaction stores it."""

    def __set__(self, counter: Any, value: int) -> None:
        counter.__dict__[self.name] = check_count(self.name, value)


def real(name: str, value: object) -> float:
    """The `check` of an `Option` that is any finite number."""
    return _core.check_number(name, value, -math.inf, math.inf, 0)


def patterns(name: str, value: object) -> list[str] | None:
    """The `check` of an `Option` that is None or a list of regular expressions."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"{name} must be a list of str or None, got {value!r}")
    for entry in value:
        try:
            re.compile(entry)
        except re.error as error:
            raise ValueError(f"{name}: {entry!r} is not a regular expression: {error}") from None
    return list(value)


def one_of(*choices: str) -> Callable[[str, Any], str]:
    """The `check` of an `Option` that is one of a few words."""
    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return value
    vars(check)["choices"] = choices           # for stubs
    return check


def plain(value: object) -> Any:
    """An argument as a configuration stores it: a schedule becomes a dict."""
    return schedules.serialize(value) if schedules.is_schedule(value) else value


def from_plain(value: Any, custom_objects: Classes | None = None) -> Any:
    """An argument from the result of `plain`."""
    if isinstance(value, dict) and "class_name" in value:
        return schedules.deserialize(value, custom_objects)
    return value


def unzip(grads_and_vars: Pairs) -> tuple[tuple[Gradient, ...], tuple[Array, ...]]:
    """Splits pairs (gradient, weight) into gradients and weights."""
    pairs = list(grads_and_vars)
    if not pairs:
        raise ValueError("grads_and_vars is empty")
    try:
        grads, weights = zip(*pairs, strict=True)
    except (TypeError, ValueError):
        raise TypeError("grads_and_vars must be pairs (gradient, weight), as zip(grads, weights) gives them; lists "
                        "are for apply(grads, weights)") from None
    return grads, weights
