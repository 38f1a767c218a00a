"""Optimizers by name: what `optimc.get("adam")` finds, and configurations that can be stored.

This module imports nothing of optimc.  Classes register themselves when they are defined: an optimizer of optimc by
its base class, the base class and the wrappers by the decorators `base` and `wrapper`.
"""

#: every optimizer class of optimc, by its name
classes: dict[str, type] = {}
#: the wrappers, likewise
_wrappers: dict[str, type] = {}
#: the classes that every optimizer and wrapper is an instance of
_bases: list[type] = []


def is_ours(cls):
    """True for a class of optimc, False for a program's."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def optimizer(cls):
    """Registers an optimizer class, if it is one of optimc: a user's own is named by `custom_objects`."""
    if cls.rule and is_ours(cls):
        classes[cls.__name__] = cls


def base(cls):
    """Registers the class that all optimizers are derived from."""
    _bases.append(cls)
    return cls


def wrapper(cls):
    """Registers a wrapper."""
    _wrappers[cls.__name__] = cls
    return base(cls)


def serialize(optimizer):
    """The class and configuration of an optimizer as a dict of plain values, for `deserialize`.

    Example:
        >>> import optimc
        >>> optimc.serialize(optimc.SGD(0.5))["class_name"]
        'SGD'
    """
    if not isinstance(optimizer, tuple(_bases)):
        raise TypeError(f"expected an optimizer, got {type(optimizer).__name__}")
    return {"class_name": type(optimizer).__name__, "config": optimizer.get_config()}


def deserialize(config, custom_objects=None):
    """A new optimizer from what `serialize` gave.

    Args:
        config: a dict with "class_name" (case does not matter) and "config".
        custom_objects: dict of further optimizer and schedule classes by name.
    """
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ValueError(f"Could not interpret optimizer identifier: {config!r}")
    known = {**classes, **_wrappers, **(custom_objects or {})}
    cls = {name.lower(): value for name, value in known.items()}.get(config["class_name"].lower())
    if cls is None:
        raise ValueError(f"Could not interpret optimizer identifier: {config['class_name']!r}; "
                         f"there are {', '.join(sorted(classes))}")
    arguments = config.get("config", {})
    if not isinstance(arguments, dict):
        raise ValueError(f"config of {config['class_name']}: expected a dict, got {arguments!r}")
    return cls.from_config(arguments, custom_objects)


def get(identifier):
    """An optimizer from a name ("adam", with default arguments), a `serialize` dict, or an optimizer.

    Example:
        >>> import optimc
        >>> optimc.get("rmsprop")
        <RMSprop(learning_rate=0.001): 0 steps, not built>
    """
    if identifier is None or isinstance(identifier, tuple(_bases)):
        return identifier
    if isinstance(identifier, str):
        identifier = {"class_name": identifier, "config": {}}
    return deserialize(identifier)
