"""Tests of compiled steps of optimc.keras that need no Python: their bits, and what may change between them."""

import gc
import threading
import weakref

import keras
import numpy as np
import pytest
from keras_cases import BACKEND, NAMES, OPTIONS, fit, gradients, make_model, numpy, rate_of, start, variables

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


def test_nothing_is_donated_that_is_still_held():
    """Values kept from before a step are what they were, and the steps are the same."""
    program, donating = (Program(optimc.keras.Adam(0.01, weight_decay=0.1), donate) for donate in (False, True))
    program.run(2)
    held, copies = program.values, [numpy(part) for part in program.values]
    for mine, other in zip(program.run(3, 2), donating.run(5), strict=True):
        np.testing.assert_array_equal(mine, other)
    for part, copy in zip(held, copies, strict=True):
        for value, number in zip(numpy(part), copy, strict=True):
            np.testing.assert_array_equal(value, number)


def test_values_that_are_set_hold_at_the_next_step(python_steps):
    optimizer = optimc.keras.Adam(0.5, weight_decay=0.25)
    program, core = Program(optimizer), optimc.Adam(0.5, weight_decay=0.25)
    arrays = {v.path: array for v, array in zip(program.weights, start(), strict=True)}

    def both(number):
        program.step(number)
        core.apply(dict(zip(arrays, gradients(number), strict=True)), arrays)

    both(0)
    for k, (name, value) in enumerate([
            ("clipvalue", 0.125), ("weight_decay", 0.5), ("beta_1", 0.5), ("epsilon", 0.125), ("clipvalue", None),
            ("maximize", True), ("global_clipnorm", 1.0)], 1):
        for each in (optimizer, core):
            setattr(each, name, value)
        both(k)
    program.assign("learning_rate", 0.25)
    core.learning_rate = 0.25
    both(8)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    core.exclude_from_weight_decay(var_names=["bias"])
    both(9)
    program.assign("iteration", 100)
    core.iterations = 100
    both(10)
    for mine, plain in zip(numpy(program.values[0]), arrays.values(), strict=True):
        np.testing.assert_array_equal(mine, plain)
    assert python_steps == []


def test_arrays_may_be_others_at_every_step():
    """The program may put other arrays in the place of weights and state; they are stepped wherever they lie."""
    program, core = Program(optimc.keras.Adam(0.5)), optimc.Adam(0.5)
    arrays = start()
    core.build(arrays)
    for number in range(4):
        program.step(number)
        core.apply(gradients(number))
        program.values = [[jax.numpy.array(np.asarray(value) * 2) if value.shape else value for value in part]
                          for part in program.values]
        for array in (*arrays, *(slot for slots in core._slots.values() for slot in slots)):
            if array.shape:
                array *= 2
    for mine, plain in zip(numpy(program.values[0]), arrays, strict=True):
        np.testing.assert_array_equal(mine, plain)


def test_a_gradient_that_is_not_finite():
    bad = [np.full_like(grad, np.inf if i == 1 else 1) for i, grad in enumerate(gradients(0))]
    skipping, raising = (Program(optimc.keras.Adam(0.5, check_finite=word), False) for word in ("skip", "raise"))
    for program in (skipping, raising):
        program.run(2)
    before = [numpy(part) for part in skipping.values]
    skipping.step(0, bad)
    for part, copy in zip(skipping.values, before, strict=True):
        for value, number in zip(numpy(part), copy, strict=True):
            np.testing.assert_array_equal(value, number)
    assert skipping.optimizer._inner.skipped_steps == 1
    held = raising.values
    with pytest.raises(Exception, match=r"FloatingPointError: grads\[1\] is not finite"):
        jax.block_until_ready(raising.step(0, bad))
    raising.values = held
    for mine, other in zip(raising.run(1, 2), skipping.run(1, 2), strict=True):
        np.testing.assert_array_equal(mine, other)
    skipping.optimizer.check_finite = "propagate"
    assert not np.isfinite(numpy(skipping.step(0, bad))[1]).any()


def test_steps_in_python_and_in_c_may_follow_each_other(python_steps):
    """Eager steps, and compiled ones that turn out to need Python."""
    program, (_, expected) = Program(optimc.keras.Nadam(0.01), False), uncompiled("Nadam", 6, learning_rate=0.01)
    for number in range(6):
        if number % 3 == 0:
            program.step(number)
        elif number % 3 == 1:
            program.values = program.optimizer.stateless_apply(program.values[1], list(map(
                jax.numpy.asarray, gradients(number))), program.values[0])
        else:
            program.optimizer._inner._hold(program.optimizer._inner._state)
            program.step(number)
    for mine, plain in zip(numpy(program.values[0]), expected, strict=True):
        np.testing.assert_allclose(mine, plain, 1e-6, 1e-6)
    assert python_steps == [2, 5]


def test_threads_share_an_optimizer():
    """Each steps values of its own, and Python sets values meanwhile: none waits for the other for ever."""
    optimizer = optimc.keras.Adam(0.01)
    programs = [Program(optimizer) for _ in range(3)]
    for program in programs[1:]:
        program.optimizer = optimizer
    threads = [threading.Thread(target=program.run, args=(40,)) for program in programs]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        optimizer.clipvalue = 100.0
        optimizer._inner.iterations = 0
    for thread in threads:
        thread.join()
    _, expected = uncompiled("Adam", 40, learning_rate=float(np.float32(0.01)), clipvalue=100.0)
    for program in programs:
        for mine, plain in zip(numpy(program.values[0]), expected, strict=True):
            np.testing.assert_array_equal(mine, plain)


def test_two_models_fit_in_two_threads():
    losses, models = {}, [make_model(), make_model()]

    def train(k):
        losses[k] = fit(optimc.keras.Adam(0.01), 2, models[k])[0]

    threads = [threading.Thread(target=train, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert losses[0] == losses[1] and losses[0][1] < losses[0][0]


@pytest.mark.parametrize("rate", [lambda: jax.numpy.int32(1),
                                  keras.optimizers.schedules.PiecewiseConstantDecay([1], [1, 2])],
                         ids=["callable", "schedule"])
def test_a_learning_rate_may_be_a_whole_number(rate):
    optimizer, plain = optimc.keras.SGD(rate), keras.optimizers.SGD(rate)
    weights, twins = variables(), variables()
    for one, these in ((optimizer, weights), (plain, twins)):
        one.build(these)
        values = [[jax.numpy.array(v.value) for v in part] for part in (these, one.variables)]
        step = jax.jit(lambda *given, one=one: one.stateless_apply(*given))
        for k in range(3):
            values = step(values[1], list(map(jax.numpy.asarray, gradients(k))), values[0])
        for variable, value in zip(these, values[0], strict=True):
            variable.assign(value)
    for weight, twin in zip(numpy(weights), numpy(twins), strict=True):
        np.testing.assert_allclose(weight, twin, rtol=1e-6)


def compiled_without(optimizer):
    """A compiled step of an optimizer to which nothing else leads, and values for it."""
    weights = variables()
    optimizer.build(weights)
    values = [[jax.numpy.array(v.value) for v in part] for part in (optimizer.variables, weights)]
    values.insert(1, list(map(jax.numpy.asarray, gradients(0))))
    return jax.jit(lambda *given: optimizer.stateless_apply(*given)).lower(*values).compile(), values


def test_a_compiled_step_outlives_its_optimizer_only_to_say_so():
    optimizer = optimc.keras.SGD(0.5)
    step, values = compiled_without(optimizer)
    jax.block_until_ready(step(*values))
    gone = weakref.ref(optimizer._inner)
    del optimizer
    keras.backend.clear_session()
    jax.clear_caches()
    gc.collect()
    assert gone() is None
    with pytest.raises(Exception, match="the optimizer of this compiled step is gone"):
        jax.block_until_ready(step(*values))


def test_a_step_of_another_optimizer_is_refused():
    """A compiled program holds a number, and nothing keeps it from being called with other arrays."""
    optimizer = optimc.keras.SGD(0.5)
    _, (state, grads, weights) = compiled_without(optimizer)

    def call(*values):
        call = jax.ffi.ffi_call("optimc_step", [jax.ShapeDtypeStruct(value.shape, value.dtype)
                                                for value in values[:1 + len(weights)]])
        return jax.block_until_ready(call(*values, number=np.int64(0), foreign=np.int64(optimizer._stepper.number)))

    count, rate = state[0], state[1]
    after, *stepped = call(count, *weights, rate, *grads)           # these results do not lie over their arguments
    assert int(after) == 1
    for weight, was, grad, number in zip(stepped, weights, grads, numpy(variables()), strict=True):
        np.testing.assert_array_equal(was, number)
        np.testing.assert_allclose(weight, number - 0.5 * np.asarray(grad), rtol=1e-6)
    for values in [(count, *weights, *grads[1:]), (count, *weights), (rate, *weights, rate, *grads),
                   (count, *reversed(weights), rate, *grads), (count, *weights, count, *grads)]:
        with pytest.raises(Exception, match=r"another optimizer|expected a"):
            call(*values)


@pytest.mark.parametrize("options", [
    {"state_dtype": "int8"}, {"state_dtype": "bfloat16", "use_ema": True}, {"gradient_accumulation_steps": 2},
    {"groups": [{"weights": "bias", "learning_rate": 0.5}], "clipnorm": 0.5}],
    ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_narrow_storage_and_groups_have_the_bits_of_pythons_steps(dtype, options, python_steps, monkeypatch):
    """The steps that call Python are the reference: keras_narrow_on_backend.py tests them."""

    def stepped():
        rng = np.random.default_rng(0)
        optimizer = optimc.keras.Nadam(0.01, **options)
        weights = [keras.Variable(jax.numpy.asarray(rng.standard_normal(shape), dtype), dtype=dtype, name=name)
                   for name, shape in {"kernel": (90, 50), "bias": (50,)}.items()]
        optimizer.build(weights)
        values = [[jax.numpy.array(v.value) for v in part] for part in (weights, optimizer.variables)]
        step = jax.jit(lambda *given: optimizer.stateless_apply(*given))
        for _ in range(4):
            grads = [jax.numpy.asarray(rng.standard_normal(v.shape), dtype) for v in weights]
            values = step(values[1], grads, values[0])
        return [np.asarray(value) for part in values for value in part]

    mine = stepped()
    assert python_steps == []
    monkeypatch.setattr(stepper.Stepper, "open", lambda *args: None)
    for one, other in zip(mine, stepped(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert python_steps == list(range(4))
