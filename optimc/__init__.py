"""optimc: the optimizers that train neural networks, as exact C kernels over NumPy buffers.

    >>> import numpy as np, optimc
    >>> weights = [np.ones((2, 2), np.float32), np.zeros(2, np.float32)]
    >>> grads = [np.full((2, 2), 0.5, np.float32), np.ones(2, np.float32)]
    >>> opt = optimc.Adam(learning_rate=1e-3)
    >>> opt.apply(grads, weights)                   # the weights change in place
    >>> opt.iterations
    1

Importing it needs NumPy and nothing else.
"""

import typing as _typing

try:
    from optimc import _core
except ModuleNotFoundError as error:
    if error.name != "optimc._core":
        raise
    raise ImportError("optimc's C extension is not built here: run `pip install -e .` in the "
                      "source tree, or leave the tree to import an installed optimc") from None

from optimc import schedules
from optimc._core import get_num_threads, isa, set_num_threads
from optimc.checkpoint import CheckpointError, load
from optimc.migrate import from_keras, from_torch
from optimc.optimizer import Optimizer
from optimc.optimizers import (
    ASGD,
    SGD,
    AdaBelief,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Adan,
    Ftrl,
    Lamb,
    Lion,
    Nadam,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    Yogi,
)
from optimc.registry import deserialize, get, serialize
from optimc.structured import Muon
from optimc.wrappers import LossScaleOptimizer, MultiOptimizer, OptimizerMap

__version__: str

if not _typing.TYPE_CHECKING:       # to a checker it would say that every name is there
    def __getattr__(name):
        """`__version__` is looked up when asked for: importing importlib.metadata takes longer than all of optimc."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version
        return version("optimc")


def show_config():
    """Prints what a bug report or a benchmark needs: version, compiler, ISA, threads."""
    from optimc import __version__
    print(f"optimc {__version__}, built with {_core.compiler}\n"
          f"ISA: {isa} of {', '.join(_core.isas)} (force one with OPTIMC_ISA)\n"
          f"threads: up to {get_num_threads()} (OPTIMC_NUM_THREADS, set_num_threads)")


__all__ = [
    "ASGD", "SGD", "AdaBelief", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Adan",
    "CheckpointError", "Ftrl",
    "Lamb", "Lion", "LossScaleOptimizer", "MultiOptimizer", "Muon", "Nadam", "Optimizer", "OptimizerMap",
    "RAdam", "RMSprop", "Rprop", "ScheduleFreeAdamW", "Yogi", "deserialize", "from_keras", "from_torch", "get",
    "get_num_threads", "isa", "load", "schedules", "serialize", "set_num_threads", "show_config",
]
