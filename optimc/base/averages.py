"""Puts averages into the weights, for an evaluation or for good.

`Optimizer._evaluation_weights` chooses the averages: those of `use_ema`, or those that the rule itself keeps.
`_core.Averaged` (csrc/python/averages.c) puts them in and takes them out, each in one call: nothing that interrupts a
program leaves half of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from optimc import _core
from optimc.base import narrow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from optimc._types import Array, Weights
    from optimc.base.optimizer import Optimizer

    Bound = tuple[Array, ...]

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_core.leave_dead_evaluations)


def bound(known: Bound | None, weights: Weights | None) -> Bound:
    """The weights that an optimizer is bound to.  Raises if `weights` is given and differs from them."""
    if known is None:
        raise ValueError("the optimizer is not built: it has no weights yet")
    if weights is None:
        return known
    names, weights = _core.weights_of(weights)
    if len(weights) != len(known):
        raise ValueError(f"weights has {len(weights)} entries, the optimizer {len(known)}")
    for i, (weight, own) in enumerate(zip(weights, known, strict=True)):
        if weight.size and _core.address(weight) != _core.address(own):
            raise ValueError(f"weights[{names[i] if names else i!r}] is not the weight the optimizer "
                             "was built with")
    return known


def _everything(optimizer: Optimizer) -> None:
    """The `weights` of the contexts below that names no weights."""


def finalize(optimizers: Iterable[Optimizer], params_of: Callable[[Optimizer], Weights | None] = _everything) -> None:
    """Copies the averages of `use_ema` into the weights of these optimizers."""
    for optimizer in optimizers:
        bound(optimizer._weights, params_of(optimizer))
    _core.Averaged([optimizer for optimizer in optimizers if optimizer.use_ema], narrow.finalizing).finalize()


def averaged(optimizers: Iterable[Optimizer], params_of: Callable[[Optimizer], Weights | None] = _everything,
             whole: Bound | None = None) -> _core.Averaged:
    """A context in which the weights of these optimizers hold their averages, and steps are refused.

    params_of: a function of an optimizer that gives the weights that it must have, or None.
    whole: arrays that are put back instead of the weights, which are parts of them.
    """
    def averages_of(optimizer: Optimizer) -> Iterable[Array] | None:
        weights = bound(optimizer._weights, params_of(optimizer))
        return None if optimizer._evaluating else optimizer._evaluation_weights(weights)

    return _core.Averaged(optimizers, averages_of, *([whole] if whole else ()))
