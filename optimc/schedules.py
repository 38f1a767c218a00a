"""Values that change with the step: a schedule is called with the number of steps done so far."""


class LearningRateSchedule:
    """Base of schedules: subclass it, define `__call__(step)` and, to be saved, `get_config()`.

    `step` is the number of steps done, 0 at the first.  The result must be a number that the
    hyperparameter allows; it is checked before anything is written.

    Example:
        >>> import optimc
        >>> class Halve(optimc.schedules.LearningRateSchedule):
        ...     def __call__(self, step):
        ...         return 0.1 * 0.5 ** step
        >>> optimc.SGD(learning_rate=Halve()).learning_rate
        0.1
    """

    def __call__(self, step):
        raise NotImplementedError(f"{type(self).__name__} must define __call__(step)")

    def get_config(self):
        """The constructor's arguments, as a dict of plain values."""
        raise NotImplementedError(f"{type(self).__name__} must define get_config() to be saved")

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def is_schedule(value):
    """Whether a value is called with the step: one of our schedules, or of Keras's."""
    return any(base.__name__ == "LearningRateSchedule" for base in type(value).__mro__)


def serialize(schedule):
    """The class and configuration of a schedule as a dict of plain values, for `deserialize`."""
    return {"class_name": type(schedule).__name__, "config": schedule.get_config()}


def deserialize(config, custom_objects=None):
    """A schedule from what `serialize` gave; `custom_objects` names further classes."""
    known = {**{name: value for name, value in globals().items()
                if isinstance(value, type) and issubclass(value, LearningRateSchedule)},
             **(custom_objects or {})}
    if config["class_name"] not in known:
        raise ValueError(f"Could not interpret schedule {config['class_name']!r}: pass its class in "
                         "custom_objects")
    return known[config["class_name"]].from_config(config["config"])
