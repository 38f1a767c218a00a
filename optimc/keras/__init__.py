"""Keras optimizers with the step in C: change one name and keep your program.

    import optimc.keras
    model.compile(optimizer=optimc.keras.Adam(1e-3), loss="mse")

Every optimizer of optimc has a class here: a `keras.optimizers.Optimizer` with Keras's arguments, for the torch,
tensorflow, jax and numpy backends.  Clipping, decay, the update, EMA and accumulation are one pass in C.  The
iterations, the learning rate and every slot are Keras variables of the optimizer, so callbacks, schedules,
`model.save` and `load_model` find them as usual.

A step takes one of two routes.  *In place*, on torch and numpy: the plan lies over the memory of the variables.  *By
values*, on tensorflow and jax, and in `stateless_apply` on every backend: the framework hands over the values of all
variables and gets new ones.  Nothing is remembered from step to step.  Compiled programs there call C without Python
where a step allows it: foreign.py says which do.  docs/howto/keras.md says what each way costs.

Next: optimizer.py (the class), layout.py (the order of the variables), stepper.py (the step over arrays), backends.py
(what differs between frameworks), graph_step.py (tensorflow's compiled programs).
"""

from optimc.base import lazy

try:
    import keras  # noqa: F401
except ImportError as _error:
    if _error.name is None or _error.name.partition(".")[0] == "keras":
        lazy.needs("keras", _error)
    _backend = _error.name.partition(".")[0]
    raise ImportError(f"optimc.keras: Keras cannot import its backend {_backend}: install it, or set the environment "
                      "variable KERAS_BACKEND to one that is installed (tensorflow, torch, jax) before Keras is "
                      "imported", name=_error.name) from None

from optimc import registry
from optimc.keras.config import show_config
from optimc.keras.optimizer import make_class
from optimc.keras.schedule import Schedule

globals().update({name: make_class(name) for name in registry.classes})

__all__ = [*registry.classes, "Schedule", "show_config"]
