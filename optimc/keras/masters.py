"""Weights of 16 bits with a master: what Keras writes into a weight, its master has to follow.

A step changes both.  Keras itself writes a weight where a constraint changes it, and where it puts averages into the
model.  For what else a program writes there is `KerasOptimizer.reset_master`.  Next: optimc/base/narrow.py, which
says what a master is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
import numpy as np

from optimc.base import narrow

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from optimc.base.storage import Like


def put_in(average: Any, variable: Any, master: Any, like: Like) -> None:
    """Writes an average into a weight, rounded as a step rounds it; into its master, if it has one, the rest."""
    code, rest = np.empty(like.shape, like.dtype), None if master is None else np.empty(like.shape, master.dtype)
    codec = narrow.weight_codec(like, rest)
    if master is None or codec is None:
        variable.assign(keras.ops.cast(average, like.dtype.name))
        return
    narrow.encode(codec, keras.ops.convert_to_numpy(average), like.real, code, master=rest)
    variable.assign(code)
    master.assign(rest)


def follow_constraint(assign: Callable[[Any, Any], None], variable: Any, rest: Any) -> None:
    """Drops the rest of a bfloat16 weight where the constraint that Keras is about to apply changes it.

    assign: of the optimizer, which assigns a value to a variable.
    """
    ops = keras.ops
    value, held = map(ops.convert_to_tensor, (variable, rest))
    constrained = ops.cast(variable.constraint(value), value.dtype)
    assign(rest, ops.where(ops.equal(constrained, value), held, ops.zeros_like(held)))


def reset(variable: Any, master: Any) -> None:
    """Makes a master what its weight itself says."""
    is_rest = np.dtype(master.dtype) == narrow.RESTS
    master.assign(np.zeros(master.shape, narrow.RESTS) if is_rest else keras.ops.cast(variable, master.dtype))
