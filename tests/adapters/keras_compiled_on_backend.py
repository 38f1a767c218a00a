"""Tests of compiled steps of optimc.keras that need no Python: their bits, and what may change between them."""

import numpy as np
import pytest
from keras_cases import BACKEND, NAMES, OPTIONS, gradients, numpy, rate_of, start, variables

import optimc
import optimc.keras

if BACKEND != "jax":
    pytest.skip("steps need Python on this backend", allow_module_level=True)

import jax

from optimc.keras import stepper


class Program:
    """A compiled step of an optimizer over variables, which are its own: values in, values out."""

    def __init__(self, optimizer, donate=True):
        self.optimizer, self.weights = optimizer, variables()
        optimizer.build(self.weights)
        self.values = [list(map(jax.numpy.array, (v.value for v in part)))
                       for part in (self.weights, optimizer.variables)]
        self.compiled = jax.jit(lambda state, weights, grads: optimizer.stateless_apply(state, grads, weights),
                                donate_argnums=(0, 1) if donate else ())

    def step(self, number, grads=None):
        """One step with the gradients of this number, or those given; the weights after it."""
        grads = gradients(number) if grads is None else grads
        self.values = self.compiled(self.values[1], self.values[0], list(map(jax.numpy.asarray, grads)))
        return self.values[0]

    def run(self, steps, first=0):
        for number in range(first, first + steps):
            self.step(number)
        return numpy(self.values[0])

    def assign(self, name, value):
        """Gives a variable of the optimizer another value between two steps."""
        for i, variable in enumerate(self.optimizer.variables):
            if variable.name == name:
                self.values[1][i] = jax.numpy.asarray(value, variable.dtype)


@pytest.fixture
def python_steps(monkeypatch):
    """A list to which each step that C leaves to Python adds its number."""
    seen = []
    plain = stepper.Stepper.step_in_buffers

    def step(self, given, changed, others):
        seen.append(int(changed[0]))
        plain(self, given, changed, others)

    monkeypatch.setattr(stepper.Stepper, "step_in_buffers", step)
    return seen


def uncompiled(name, steps, **options):
    """The weights after steps of optimc's own class, with the learning rate as Keras holds it."""
    core, arrays = getattr(optimc, name)(**options), dict(zip((v.path for v in variables()), start(), strict=True))
    for number in range(steps):
        core.apply(dict(zip(arrays, gradients(number), strict=True)), arrays)
    return core, list(arrays.values())


@pytest.mark.parametrize("options", ["defaults", "together"])
@pytest.mark.parametrize("name", NAMES)
def test_steps_have_the_bits_of_optimcs(name, options, python_steps):
    keywords = {"learning_rate": rate_of(name), **OPTIONS[options]}
    program = Program(getattr(optimc.keras, name)(**keywords))
    core, expected = uncompiled(name, 7, **keywords)
    for mine, plain in zip(program.run(7), expected, strict=True):
        if core._scalar_names():
            np.testing.assert_allclose(mine, plain, 1e-6, 1e-6)
        else:
            np.testing.assert_array_equal(mine, plain)
    needs_python = name == "Muon"
    assert python_steps == (list(range(7)) if needs_python else [0] if core._late_slots else [])
