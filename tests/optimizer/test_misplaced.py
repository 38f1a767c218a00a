"""Calls of `apply` with the right arrays in the wrong places: the error says what was meant, and nothing changes."""

import numpy as np
import pytest

import optimc

F = np.float32


def good():
    weights = [np.linspace(-1, 1, 6, dtype=F).reshape(2, 3), np.ones(4, F), np.array(2, F)]
    return weights, [np.full(w.shape, 0.5, F) for w in weights]


def refused(optimizer, grads, weights, error, message):
    """One call that must raise and change neither weights nor gradients."""
    arrays = [array for array in (*grads, *(weights or ())) if isinstance(array, np.ndarray)]
    before, steps = [array.tobytes() for array in arrays], optimizer.iterations
    with pytest.raises(error, match=message) as caught:
        optimizer.apply(grads, weights)
    assert "\n" not in str(caught.value)
    assert [array.tobytes() for array in arrays] == before and optimizer.iterations == steps


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def test_swapped_arguments_are_recognised(case):
    """Once the optimizer knows its weights it finds them in the place of gradients."""
    weights, grads = good()
    optimizer = case.make()
    optimizer.apply(grads, weights)
    asked = "is no weight of this optimizer, but grads{0} is one: are grads and weights swapped"
    refused(optimizer, weights, grads, ValueError, r"^weights\[0\] " + asked.format(r"\[0\]"))
    refused(optimizer, weights, [Foreign(grad) for grad in grads], ValueError,
            r"^weights\[0\] " + asked.format(r"\[0\]"))
    refused(optimizer, weights, [grad.astype(np.float16) for grad in grads], ValueError, "swapped")
    refused(optimizer, weights, None, ValueError, r"^grads\[0\] overlaps weights\[0\] in memory$")
    named = case.make()
    named.apply(dict(zip("abc", grads, strict=True)), dict(zip("abc", weights, strict=True)))
    with pytest.raises(ValueError, match=r"^weights\['a'\] " + asked.format(r"\['a'\]")):
        named.apply(dict(zip("abc", weights, strict=True)), dict(zip("abc", grads, strict=True)))


def test_a_first_step_with_swapped_arguments_is_asked_about_where_it_is_refused():
    """Gradients that cannot be weights give them away; what could be a step is one."""
    weights, grads = good()
    for kind in (lambda g: g.astype(np.longdouble), Foreign, lambda g: np.broadcast_to(g, g.shape)):
        with pytest.raises((TypeError, ValueError), match=r"\(are grads and weights swapped\?\)$"):
            optimc.Adam().apply(weights, [kind(grad) for grad in grads])
    for wrong in ([grad.astype(int) for grad in grads], [1.0] * 3, [grads[0].astype(np.longdouble), *grads[1:]]):
        with pytest.raises(TypeError) as caught:
            optimc.Adam().apply(weights, wrong)
        assert "swapped" not in str(caught.value)
    optimc.Adam().apply(weights, grads)


def test_zips_and_generators_are_told_where_they_belong(case):
    weights, grads = good()
    with pytest.raises(TypeError, match=r"^grads must be .*, got a zip: pass pairs to apply_gradients"):
        case.make().apply(zip(grads, weights, strict=True))
    with pytest.raises(TypeError, match=r"^grads must be .*, got generator, which can be read only once: pass list"):
        case.make().apply(grad for grad in grads)
