"""Steps without Python: which of them C may do in a thread of the framework, and why not others.

The answer is for a compiled step, given as it is traced.  It rests on the optimizer's rule and on which values the
step is given, and not on their numbers: C (csrc/python/foreign.c) leaves a step to Python that turns out to need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.base.optimizer import Optimizer

if TYPE_CHECKING:
    from optimc.keras.layout import Layout
    from optimc.keras.stepper import Given


def why_not(inner: Optimizer, layout: Layout, given: Given, by_rows: bool = False) -> str | None:
    """The reason for which steps that are given these values need Python; None if they do not.

    Args:
        by_rows: whether the framework can hand over gradients of rows.
    """
    if type(inner)._between is not Optimizer._between:
        return f"{type(inner).__name__} has Python code between the halves of a step"
    if not given.rated:
        return "the learning rate is a schedule of optimc, which Python calls"
    if not layout.weights or list(given.chosen) != list(range(len(layout.weights))):
        return "some weights have no gradient, or the gradients are in another order"
    if not by_rows and any(given.by_rows):
        return "a gradient is of rows of its weight"
    return None
