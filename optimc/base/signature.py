"""The signature of an optimizer's constructor, made from the arguments that its classes declare.

A class takes its own arguments first, in the order of their declaration, then those that every optimizer has, then
its `last` ones.  Those that are `keyword_only` can only be named, and so can `groups`.

This module makes the signature, binds a call to it and declares the values to C.  It checks no value: arguments.py
does, as the values are set.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from typing import TYPE_CHECKING

from optimc import registry
from optimc.base import names, setting
from optimc.base.arguments import Argument, Value

if TYPE_CHECKING:
    from typing import Any

    from optimc.base.optimizer import Optimizer


def arguments_of(cls: type, base: type) -> dict[str, Argument]:
    """The arguments of a class by name, in the order of its signature; those of `base` are every optimizer's."""
    own: dict[str, Argument] = {}
    common: dict[str, Argument] = {}
    last: dict[str, Argument] = {}
    named: dict[str, Argument] = {}
    for owner in cls.__mro__:
        for name, argument in vars(owner).items():
            if isinstance(argument, Argument) and name not in own and name not in last and name not in named:
                kind = (named if argument.keyword_only else last if argument.last
                        else common if owner is base else own)
                kind[name] = argument
    return {**own, **{k: v for k, v in common.items() if k not in own}, **last, **named}


class _Signature(inspect.Signature):
    """A signature that is written over several lines, as it has about twenty arguments."""

    def __str__(self) -> str:
        import textwrap  # only for `help`
        return textwrap.fill(super().__str__(), 90, subsequent_indent=" " * 4, break_long_words=False,
                             break_on_hyphens=False)


def wrap_signature(method: Any) -> None:
    """Writes the signature of a method over several lines in `help`, as Python does from 3.13 on."""
    signature = inspect.signature(method)
    method.__signature__ = _Signature(list(signature.parameters.values()),
                                      return_annotation=signature.return_annotation)


def signature_of(arguments: dict[str, Argument]) -> inspect.Signature:
    """The signature with these arguments, and `groups`."""
    return _Signature([
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY if argument.keyword_only
                          else inspect.Parameter.POSITIONAL_OR_KEYWORD, default=argument.default)
        for name, argument in arguments.items()] + [
        inspect.Parameter("groups", inspect.Parameter.KEYWORD_ONLY, default=None)])


class Late:
    """The signature of a class of optimizers, made when something asks for it.

    Args:
        shown: what `help` shows, None for a class with a constructor of its own.
    """

    shown: bool
    base: type[Optimizer]

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def __set_name__(self, base: type[Optimizer], name: str) -> None:
        self.base = base

    def __get__(self, instance: object, cls: type[Optimizer]) -> Any:
        if self.shown and cls.__init__ is not self.base.__init__:
            return None
        made = vars(cls).get("_made")
        if made is None:
            cls._made = made = signature_of(cls._arguments)
        return made


def check_values(cls: type[Optimizer]) -> None:
    """Refuses a class with a `Value` that its rule does not read."""
    strange = [name for name, argument in cls._arguments.items()
               if isinstance(argument, Value) and name not in cls._index]
    if strange:
        raise TypeError(f"{cls.__name__}: its rule {cls._rule!r} has no {', '.join(strange)}: derive a class from "
                        "one optimizer, and declare other arguments as Option")


def declare_values(optimizer: Optimizer) -> None:
    """Tells C the values of an optimizer and their ranges."""
    for name in optimizer._index:
        value = optimizer._arguments.get(name)
        if isinstance(value, Value):
            optimizer._declare(name, value.low, value.high, value.open, value.optional)
        else:
            optimizer._declare(name, -math.inf, math.inf, 0, True)


def snake_case(name: str) -> str:
    """The name of a class as the display name of an optimizer."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def name_common_arguments(cls: type) -> None:
    """Adds to the docstring of a class, before its example, where the arguments of every optimizer are explained."""
    if cls.__doc__ and "Example:" in cls.__doc__:
        cls.__doc__ = cls.__doc__.replace(
            "    Example:", "    Options of every optimizer (weight_decay, clipnorm, use_ema, groups, ...): "
            "help(optimc.Optimizer).\n\n    Example:", 1)


def given_to(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments given to the constructor of an optimizer, by name; unknown ones are refused."""
    first = args[:1] if next(iter(optimizer._signature.parameters)) == "learning_rate" else ()
    for value in (*first, kwargs.get("learning_rate")):
        setting.refuse_weights(value)
    if kwargs.pop("decay", None) is not None:
        warnings.warn("Argument `decay` is no longer supported and will be ignored.", stacklevel=3)
    known = optimizer._signature.parameters
    if not kwargs.keys() <= known.keys():
        names.refuse_unknown(type(optimizer), kwargs, known,
                             {name: cls._arguments for name, cls in registry.classes.items()})
    bound: inspect.BoundArguments = optimizer._signature.bind(*args, **kwargs)
    return bound.arguments
