"""optimc: the optimizers that train neural networks, as exact C kernels over NumPy buffers.

    >>> import numpy as np, optimc
    >>> weights = [np.ones((2, 2), np.float32), np.zeros(2, np.float32)]
    >>> grads = [np.full((2, 2), 0.5, np.float32), np.ones(2, np.float32)]
    >>> opt = optimc.Adam(learning_rate=1e-3)
    >>> opt.apply(grads, weights)                   # the weights change in place
    >>> opt.iterations
    1

Importing it needs NumPy and nothing else.  Contents:

    optimizers      SGD, RMSprop, Adam, AdamW, Adagrad, Adadelta, Adafactor, Adamax, Ftrl, Lamb, Lion, Muon, Nadam,
                    ScheduleFreeAdamW (Keras's family), ASGD, AdaBelief, Adan, LARS, RAdam, RowwiseAdagrad,
                    Rprop, Yogi.
                    help(optimc.Adam) explains one, help(optimc.Optimizer) the options that all have.
    by name         get("adam", learning_rate=0.1); serialize and deserialize a configuration
    schedules       help(optimc.schedules): values that change with the step, such as schedules.CosineDecay
    wrappers        LossScaleOptimizer; MultiOptimizer with OptimizerMap: an optimizer for each group of weights
    rows            Rows(indices, values): a gradient of some rows of a table, as of an embedding
    state           opt.slots, opt.iterations, opt.state_dict()
    checkpoints     opt.save(path), load(path), CheckpointError
    taking over     from_keras, from_torch: continue from a live optimizer of Keras or torch
    adapters        optimc.torch, optimc.deepspeed, optimc.keras, optimc.sklearn, optimc.thinc, optimc.mpi,
                    optimc.threadpoolctl; each loads its framework at the first use
    this machine    isa, show_config, get_num_threads, set_num_threads
    command line    optimc compare, optimc bench (or python -m optimc)
"""

import typing as _typing

try:
    import optimc._core as _core
except ModuleNotFoundError as _error:
    if _error.name != "optimc._core":
        raise
    raise ImportError("optimc's C extension is not built for this Python in the folder of the source tree: run "
                      "`pip install -e .` there, or leave the folder to import an installed optimc") from None

from optimc import optimizers, schedules
from optimc._core import Rows, get_num_threads, isa, set_num_threads
from optimc.base import lazy as _lazy
from optimc.base.optimizer import Optimizer
from optimc.checkpoint import CheckpointError, load
from optimc.loss_scale import LossScaleOptimizer
from optimc.muon import Muon
from optimc.optimizers import *  # noqa: F403  # each class of its __all__
from optimc.registry import deserialize, get, serialize
from optimc.routing import MultiOptimizer, OptimizerMap

__version__: str


def _version() -> str:
    """The version, looked up when asked for: importing importlib.metadata takes longer than all of optimc."""
    from importlib.metadata import version
    return version("optimc")


if _typing.TYPE_CHECKING:
    from optimc.migrate import from_keras, from_torch
else:                               # a checker would take it to mean that every name is there
    def __getattr__(name):
        return _version() if name == "__version__" else _lazy.find(name, __all__)

    def __dir__():
        return sorted({*__all__, *_lazy.ADAPTERS, *(name for name in globals() if name[:2] == "__"), "__version__"})


def show_config() -> None:
    """Prints what a bug report or a benchmark needs: version, compiler, ISA, threads."""
    print(f"optimc {_version()}, built with {_core.compiler}\n"
          f"ISA: {isa} of {', '.join(_core.isas)} (force one with OPTIMC_ISA)\n"
          f"threads: up to {get_num_threads()} (OPTIMC_NUM_THREADS, set_num_threads)")


__all__ = [
    *optimizers.__all__,
    "CheckpointError", "LossScaleOptimizer", "MultiOptimizer", "Muon", "Optimizer", "OptimizerMap", "Rows",
    "deserialize", "from_keras", "from_torch", "get", "get_num_threads", "isa", "load", "schedules", "serialize",
    "set_num_threads", "show_config",
]
