"""Averages of the weights: put in for a while, to evaluate, or for good.

What is put in is an optimizer's to say (`_evaluation_weights`): the averages that `use_ema` keeps, or what its rule
keeps of that kind.
"""

import contextlib

from optimc import _core


def bound(optimizer, params):
    """The weights of an optimizer, after a check that `params`, if given, are the same."""
    if not optimizer.built:
        raise ValueError("the optimizer is not built: it has no weights yet")
    if params is None:
        return optimizer._weights
    names, weights = _core.weights_of(params)
    known = optimizer._weights
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
    """Puts the averages of `use_ema` into the weights."""
    weights = bound(optimizer, params)
    if optimizer.use_ema:
        optimizer._locked(lambda: _put(weights, optimizer._averages))


@contextlib.contextmanager
def averaged(optimizer, params):
    """Within it the weights hold their averages and steps are refused; after it they hold what they held before."""
    weights = bound(optimizer, params)

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
