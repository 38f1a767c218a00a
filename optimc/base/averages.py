"""Copies averages into the weights, for an evaluation or for good.

`Optimizer._evaluation_weights` chooses the averages: those of `use_ema`, or those that the rule itself keeps.
"""

import contextlib

from optimc import _core


def bound(known, params):
    """The weights that an optimizer is bound to.  Raises if `params` is given and differs from them."""
    if known is None:
        raise ValueError("the optimizer is not built: it has no weights yet")
    if params is None:
        return known
    names, weights = _core.weights_of(params)
    if len(weights) != len(known):
        raise ValueError(f"params has {len(weights)} entries, the optimizer {len(known)}")
    for i, (weight, own) in enumerate(zip(weights, known, strict=True)):
        if weight.size and _core.address(weight) != _core.address(own):
            raise ValueError(f"params[{names[i] if names else i!r}] is not the weight the optimizer "
                             "was built with")
    return known


def _put(weights, values):
    for weight, value in zip(weights, values, strict=True):
        weight[...] = value


def finalize(optimizer, params):
    """Copies the averages of `use_ema` into the weights."""
    weights = bound(optimizer._weights, params)
    if optimizer.use_ema:
        optimizer._locked(lambda: _put(weights, optimizer._averages))


@contextlib.contextmanager
def averaged(optimizer, params):
    """Within it the weights hold their averages, and steps are refused.  After it they hold their former values."""
    weights = bound(optimizer._weights, params)

    def enter():
        averages, kept = optimizer._evaluation_weights(weights), [weight.copy() for weight in weights]
        optimizer._evaluating += 1
        try:
            _put(weights, averages)
        except BaseException:
            leave(kept)
            raise
        return kept

    def leave(kept):
        optimizer._evaluating -= 1
        _put(weights, kept)

    kept = optimizer._locked(enter)
    try:
        yield
    finally:
        optimizer._locked(leave, kept)
