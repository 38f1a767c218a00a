"""The arguments that an optimizer class declares: each has a default, a range and a place where its value is kept."""

import math
import re

import numpy as np

from optimc import _core, schedules
from optimc.base import documents, setting

LOW_OPEN, HIGH_OPEN = _core.LOW_OPEN, _core.HIGH_OPEN           # ends of a range that are not allowed


class Argument:
    """One argument of an optimizer's constructor, also an attribute of the optimizer.

    In the signature it comes before the arguments of every optimizer, after them (`last`), or is `keyword_only`.
    """

    def __init__(self, default, keyword_only=False, last=False):
        self.default, self.keyword_only, self.last = default, keyword_only, last

    def __set_name__(self, owner, name):
        self.name, self.owner = name, owner


class Value(Argument):
    """A finite real number in [low, high] that the kernels read.  A schedule or callable may give it.

    It can be changed at any time.  None disables it; None is allowed if it is the default or with `optional`.
    `also` is a second value for the tests, for instance one that chooses another kernel.
    """

    def __init__(self, default, low=0.0, high=math.inf, *, open=0, also=None, optional=False, **place):
        super().__init__(default, **place)
        self.low, self.high, self.open, self.also = low, high, open, also
        self.optional = optional or default is None

    def __get__(self, optimizer, owner=None):
        return self if optimizer is None else optimizer._ask_value(0, optimizer._index[self.name])

    def __set__(self, optimizer, value):
        setting.change(optimizer, 0, self.name, value)


def fraction(default, **keywords):
    """A `Value` in [0, 1].  `open=HIGH_OPEN` makes it [0, 1), for formulas that divide by 1 minus the value."""
    return Value(default, 0.0, 1.0, **keywords)


def cautious():
    """The `Option` `cautious` of rules with momentum; `Optimizer` documents it."""
    return Option(False, core="_cautious", fixed=False, keyword_only=True)


def kept(owner, name):
    """The attribute that an optimizer or wrapper keeps in its dict; a RuntimeError if it was never constructed."""
    try:
        return owner.__dict__[name]
    except KeyError:
        raise RuntimeError(f"{type(owner).__name__}: __init__ was not called, or failed") from None


class Option(Argument):
    """An argument that is no `Value`: a flag, a name, a count.

    Args:
        check: a function of name and value that returns the value to keep, or raises; default: accepts a bool.
        core: the attribute of the C base class that gets `encode(value)`.
        fixed: the value cannot change once the optimizer is built.
    """

    def __init__(self, default, check=None, *, core=None, encode=int, fixed=True, **place):
        super().__init__(default, **place)
        self.check, self.core, self.encode, self.fixed = check or check_bool, core, encode, fixed

    def __get__(self, optimizer, owner=None):
        return self if optimizer is None else kept(optimizer, self.name)

    def __set__(self, optimizer, value):
        value = self.check(self.name, value)
        if self.fixed and optimizer.built and value != optimizer.__dict__[self.name]:
            raise ValueError(f"{self.name} cannot change once the optimizer is built")
        index = optimizer._index.get(self.name, -1)     # >= 0: coefficients depend on it
        number = self.encode(value) if self.core or index >= 0 else 0
        optimizer._set_option(self.name, value, self.core, number, index)


class _Documented:
    """The `__doc__` of a kind of argument: the class has its own text, an argument that of its owner's docstring."""

    def __init__(self, text):
        self.text = text

    def __get__(self, argument, kind=None):
        if argument is None:
            return self.text
        return documents.document(argument.owner, argument.name, argument.default)


for _kind in (Value, Option):
    _kind.__doc__ = _Documented(_kind.__doc__)      # type: ignore[assignment]


class Fixed:
    """An attribute of an optimizer that only its constructor sets, in the object's dict."""

    def __init__(self, doc):
        self.__doc__ = doc

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, optimizer, owner=None):
        return self if optimizer is None else kept(optimizer, self.name)

    def __set__(self, optimizer, value):
        raise AttributeError(f"{self.name} cannot be replaced: give them to the constructor of another optimizer",
                             obj=optimizer)


def is_switch(argument):
    """True if an argument is a flag."""
    return isinstance(argument, Option) and isinstance(argument.default, bool)


def check_bool(name, value):
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return value


def check_name(name, value):
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}")
    return value


def at_least_zero(name, value):
    """The `check` of an `Option` that is a finite number >= 0."""
    return _core.check_number(name, value, 0.0, math.inf, 0)


def count(least, optional=False):
    """The `check` of an `Option` that is a whole number from `least` up to 2^31 - 1.

    With `optional`, None and 0 are allowed too and disable it.
    """
    def check(name, value):
        if value is None and optional:
            return None
        if isinstance(value, (bool, np.ndarray)) or not hasattr(type(value), "__index__"):
            raise TypeError(f"{name} must be an int{' or None' * optional}, got {type(value).__name__}")
        value = value.__index__()
        if not (least <= value < 2 ** 31 or (optional and value == 0)):
            raise ValueError(f"{name} must be {'None or ' * optional}at least {least}"
                             f"{' and below 2**31' * (value > least)}, got {value}")
        return value
    return check


def check_count(name, value):
    """A count of steps: a whole number that a file can hold."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    value = value.__index__()
    if not 0 <= value <= _core.MOST_STEPS:
        raise ValueError(f"{name} must be in [0, {_core.MOST_STEPS}], got {value}")
    return value


class Count:
    """An attribute that counts steps.  It is kept in the object's dict, where a transaction stores it."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, counter, owner=None):
        return self if counter is None else kept(counter, self.name)

    def __set__(self, counter, value):
        counter.__dict__[self.name] = check_count(self.name, value)


def real(name, value):
    """The `check` of an `Option` that is any finite number."""
    return _core.check_number(name, value, -math.inf, math.inf, 0)


def patterns(name, value):
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


def one_of(*choices):
    """The `check` of an `Option` that is one of a few words."""
    def check(name, value):
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return value
    check.choices = choices                 # type: ignore[attr-defined]    # for stubs
    return check


def plain(value):
    """An argument as a configuration stores it: a schedule becomes a dict."""
    return schedules.serialize(value) if schedules.is_schedule(value) else value


def from_plain(value, custom_objects=None):
    """An argument from the result of `plain`."""
    if isinstance(value, dict) and "class_name" in value:
        return schedules.deserialize(value, custom_objects)
    return value


def unzip(grads_and_vars):
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
