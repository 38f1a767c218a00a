"""Schedules of optimc as schedules of Keras."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

from optimc import schedules

if TYPE_CHECKING:
    from typing import Any

    from optimc._types import Config


@keras.saving.register_keras_serializable("optimc")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of `optimc.schedules` as one of Keras's; a learning rate given as the former becomes one.

    Example:
        >>> import optimc.keras
        >>> opt = optimc.keras.SGD(optimc.schedules.OneCycle(1.0, total_steps=100))
        >>> round(float(opt.learning_rate), 6)
        0.04
    """

    __module__ = "optimc.keras"         # where programs find it, and saved models name it

    def __init__(self, schedule: schedules.LearningRateSchedule | Config) -> None:
        if isinstance(schedule, dict):
            schedule = schedules.deserialize(schedule, keras.saving.get_custom_objects())
        self.schedule = schedule

    def __call__(self, step: Any) -> Any:
        return keras.ops.convert_to_tensor(self.schedule(int(step)), keras.config.floatx())

    def get_config(self) -> Config:
        return {"schedule": schedules.serialize(self.schedule)}
