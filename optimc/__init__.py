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
except ModuleNotFoundError as _error:
    if _error.name != "optimc._core":
        raise
    raise ImportError("optimc's C extension is not built here: run `pip install -e .` in the "
                      "source tree, or leave the tree to import an installed optimc") from None

from optimc import optimizers, schedules
from optimc._core import get_num_threads, isa, set_num_threads
from optimc.base.optimizer import Optimizer
from optimc.checkpoint import CheckpointError, load
from optimc.loss_scale import LossScaleOptimizer
from optimc.migrate import from_keras, from_torch
from optimc.muon import Muon
from optimc.optimizers import *  # noqa: F403  # each class of its __all__
from optimc.registry import deserialize, get, serialize
from optimc.routing import MultiOptimizer, OptimizerMap

__version__: str


def _version() -> str:
    """The version, looked up when asked for: importing importlib.metadata takes longer than all of optimc."""
    from importlib.metadata import version
    return version("optimc")


if not _typing.TYPE_CHECKING:       # a checker would take it to mean that every name is there
    def __getattr__(name):
        if name in ("optimizer", "structured", "wrappers"):     # 0.1 imported them along with optimc
            from importlib import import_module
            return import_module(f"optimc.{name}")
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return _version()


def show_config() -> None:
    """Prints what a bug report or a benchmark needs: version, compiler, ISA, threads."""
    print(f"optimc {_version()}, built with {_core.compiler}\n"
          f"ISA: {isa} of {', '.join(_core.isas)} (force one with OPTIMC_ISA)\n"
          f"threads: up to {get_num_threads()} (OPTIMC_NUM_THREADS, set_num_threads)")


__all__ = [
    *optimizers.__all__,
    "CheckpointError", "LossScaleOptimizer", "MultiOptimizer", "Muon", "Optimizer", "OptimizerMap", "deserialize",
    "from_keras", "from_torch", "get", "get_num_threads", "isa", "load", "schedules", "serialize", "set_num_threads",
    "show_config",
]
