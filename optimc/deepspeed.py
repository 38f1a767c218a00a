"""DeepSpeed's optimizers for the CPU on optimc's kernels: no compiler, no CUDA toolkit.

    import optimc.deepspeed
    optimc.deepspeed.install()                  # in every process, before deepspeed.initialize

DeepSpeed compiles the C++ code of `DeepSpeedCPUAdam`, `DeepSpeedCPULion` and `DeepSpeedCPUAdagrad` when one of them
is first made.  `install` puts optimc where DeepSpeed keeps what it has compiled.  The classes stay DeepSpeed's own,
so all that asks for their types works: ZeRO 1 to 3 with offload, masters in bfloat16, accelerate, Transformers.

Parameters and states are float32, bfloat16 or float16, in any mixture.  A step computes in float32, with DeepSpeed's
formulas, and rounds to nearest.

Next: optimc/torch/ops.py, what is put there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.base import lazy

try:
    import deepspeed
    from deepspeed.ops import op_builder
except ImportError as _error:
    lazy.needs("deepspeed", _error)

from optimc.torch.ops import OPS, Op

if TYPE_CHECKING:
    from typing import Any

#: DeepSpeed's builders of these modules
BUILDERS = {"cpu_adam": "CPUAdamBuilder", "cpu_lion": "CPULionBuilder", "cpu_adagrad": "CPUAdagradBuilder"}


def install() -> None:
    """Lets DeepSpeedCPUAdam, DeepSpeedCPULion and DeepSpeedCPUAdagrad step with optimc, in this process.

    Call it before one of them is made, in every process: a launched script runs it in each rank.  A second call
    does nothing.

    Raises:
        RuntimeError: this version of deepspeed has no place for optimc, or has compiled code of its own there.

    Example:
        >>> import optimc.deepspeed
        >>> optimc.deepspeed.install()
        >>> from deepspeed.ops.op_builder import CPUAdamBuilder
        >>> type(CPUAdamBuilder().load())
        <class 'optimc.torch.ops.AdamOp'>
    """
    places = {name: _place(name, builder) for name, builder in BUILDERS.items()}
    for name, place in places.items():
        place.setdefault(name, OPS[name]())


def _place(name: str, builder: str) -> dict[str, Any]:
    """The dict in which DeepSpeed keeps a compiled module."""
    found = getattr(op_builder, builder, None)
    place: Any = getattr(found, "_loaded_ops", None)
    if not isinstance(place, dict) or getattr(found, "NAME", None) != name:
        raise RuntimeError(f"deepspeed {deepspeed.__version__} has no place where optimc could put its {name}")
    if not isinstance(place.get(name), (Op, type(None))):
        raise RuntimeError(f"deepspeed has loaded a {name} of its own: call optimc.deepspeed.install() earlier")
    return place


__all__ = ["install"]
