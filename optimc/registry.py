"""Optimizers by name: what `optimc.get("adam")` finds, and configurations that can be stored.

This module imports nothing of optimc but its table of names.  Classes register themselves when they are defined: an
optimizer of optimc by its base class, the base class and the wrappers by the decorators `base` and `wrapper`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from optimc.base import names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optimc._types import AnyOptimizer, Classes, Config
    from optimc.base.optimizer import Optimizer

Class = TypeVar("Class", bound=type)
One = TypeVar("One", bound="AnyOptimizer")

#: every optimizer class of optimc, by its name
classes: dict[str, type[Optimizer]] = {}
#: the wrappers, likewise
_wrappers: dict[str, type[Any]] = {}
#: the classes that every optimizer and wrapper is an instance of
_bases: list[type] = []


def optimizer(cls: Any) -> None:
    """Registers an optimizer class, if it is one of optimc: a user's own is named by `custom_objects`."""
    if cls._rule and names.is_ours(cls):
        classes[cls.__name__] = cls


def base(cls: Class) -> Class:
    """Registers the class that all optimizers are derived from."""
    _bases.append(cls)
    return cls


def wrapper(cls: Class) -> Class:
    """Registers a wrapper."""
    _wrappers[cls.__name__] = cls
    return base(cls)


def serialize(optimizer: AnyOptimizer) -> Config:
    """The class and configuration of an optimizer as a dict of plain values, for `deserialize`.

    Example:
        >>> import optimc
        >>> optimc.serialize(optimc.SGD(0.5))["class_name"]
        'SGD'
    """
    if not isinstance(optimizer, tuple(_bases)):
        raise TypeError(f"expected an optimizer, got {type(optimizer).__name__}")
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def _find(name: str, custom_objects: Classes | None = None) -> type[Any]:
    """The optimizer or wrapper class of a name, without regard to case, underscores, hyphens and spaces."""
    known: dict[str, type[Any]] = {**classes, **_wrappers, **(custom_objects or {})}
    cls = {names.plain(one): cls for one, cls in known.items()}.get(names.plain(name))
    if cls is not None:
        return cls
    raise ValueError(f"Could not interpret optimizer identifier: {name!r}"
                     + (names.optimizer_hint(name, known) or f"; there are {', '.join(sorted(classes))}"))


def deserialize(config: Mapping[str, Any], custom_objects: Classes | None = None) -> AnyOptimizer:
    """A new optimizer from what `serialize` gave.

    Args:
        config: a dict with "class_name" (case does not matter) and "config".
        custom_objects: dict of further optimizer and schedule classes by name.
    """
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ValueError(f"Could not interpret optimizer identifier: {config!r}; expected the name of an optimizer, "
                         "its class, what `serialize` gave, or an optimizer")
    cls = _find(config["class_name"], custom_objects)
    arguments = config.get("config", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"config of {config['class_name']}: expected a dict, got {arguments!r}")
    made: AnyOptimizer = cls.from_config(arguments, custom_objects)
    return made


@overload
def get(identifier: None) -> None: ...
@overload
def get(identifier: str, **arguments: Any) -> Optimizer: ...
@overload
def get(identifier: Mapping[str, Any]) -> AnyOptimizer: ...
@overload
def get(identifier: type[One], **arguments: Any) -> One: ...
@overload
def get(identifier: One) -> One: ...
def get(identifier: Any, **arguments: Any) -> Any:
    """An optimizer from a name, a class, a `serialize` dict, or an optimizer, which is returned as it is.

    Args:
        identifier: a name ("adam"; case, underscores and hyphens do not matter), a class, a dict, or an optimizer.
        arguments: those of the constructor, with a name or a class.

    Raises:
        ValueError: no optimizer has this name, or something else is no identifier.
        TypeError: arguments are given with a dict or with an optimizer, which have theirs.

    Example:
        >>> import optimc
        >>> optimc.get("rmsprop", learning_rate=0.1)
        <RMSprop(learning_rate=0.1): 0 steps, not built>
    """
    if isinstance(identifier, str):
        return _find(identifier)(**arguments)
    if isinstance(identifier, type) and issubclass(identifier, tuple(_bases)):
        return identifier(**arguments)
    if arguments:
        raise TypeError(f"get: arguments ({', '.join(arguments)}) go with a name or a class, not with "
                        f"{type(identifier).__name__}, which has its own")
    if identifier is None or isinstance(identifier, tuple(_bases)):
        return identifier
    return deserialize(identifier)
