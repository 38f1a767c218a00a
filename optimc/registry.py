"""Optimizers by name: what `optimc.get("adam")` finds, and configurations that can be stored."""

from optimc import optimizers, structured
from optimc.optimizer import Optimizer, slots_of

#: every optimizer class of optimc, by its name
classes = {name: value for name, value in {**vars(optimizers), **vars(structured)}.items()
           if isinstance(value, type) and issubclass(value, Optimizer) and value.rule}


def _wrappers():
    """The wrappers by name; they need this module for what they wrap."""
    from optimc import wrappers
    return {"LossScaleOptimizer": wrappers.LossScaleOptimizer, "MultiOptimizer": wrappers.MultiOptimizer}


def serialize(optimizer):
    """The class and configuration of an optimizer as a dict of plain values, for `deserialize`.

    Example:
        >>> import optimc
        >>> optimc.serialize(optimc.SGD(0.5))["class_name"]
        'SGD'
    """
    if not isinstance(optimizer, (Optimizer, *_wrappers().values())):
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
    known = {**classes, **_wrappers(), **(custom_objects or {})}
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
    if identifier is None or isinstance(identifier, (Optimizer, *_wrappers().values())):
        return identifier
    if isinstance(identifier, str):
        identifier = {"class_name": identifier, "config": {}}
    return deserialize(identifier)


def used_slots(optimizer):
    """The slots an optimizer keeps for weights whose shape makes no difference, and their numbers."""
    return slots_of(optimizer._kernel())
