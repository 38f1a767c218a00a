"""Tests of optimc.keras that every backend runs; KERAS_BACKEND says which.  See test_keras.py."""

import doctest
import warnings

import keras
import numpy as np
import pytest
from keras_cases import (
    BACKEND,
    IN_PLACE,
    NAMES,
    OPTIONS,
    data,
    each_common,
    each_optimizer,
    fit,
    gradients,
    make_model,
    needs_fit,
    numpy,
    rate_of,
    run,
    run_kerass,
    start,
    tensors,
    variables,
)

import optimc
import optimc.keras

# --------------------------------------------------------------------------------- the formula

@pytest.mark.parametrize("options", OPTIONS)
@each_optimizer
def test_steps_are_optimcs(name, options):
    """The same bits as optimc's own class; Nadam and ASGD keep their scalars in float32, as Keras does."""
    rate = {"learning_rate": rate_of(name), **OPTIONS[options]}
    ours, weights = getattr(optimc.keras, name)(**rate), variables()
    core, arrays = getattr(optimc, name)(**rate), dict(zip((v.path for v in weights), start(), strict=True))
    for step in range(7):
        core.apply(dict(zip(arrays, gradients(step), strict=True)), arrays)
    for mine, plain in zip(run(ours, weights, 7), arrays.values(), strict=True):
        if core._scalar_names():
            np.testing.assert_allclose(mine, plain, 1e-6, 1e-6)
        else:
            np.testing.assert_array_equal(mine, plain)
    assert int(ours.iterations) == core.iterations


@pytest.mark.parametrize("options", OPTIONS if IN_PLACE else ["defaults", "together"])   # Keras is slow elsewhere
@each_common
def test_steps_are_kerass(name, options):
    if name == "ScheduleFreeAdamW" and BACKEND in ("torch", "tensorflow"):
        pytest.skip("Keras itself differs here from its other backends")
    ours, theirs = (getattr(module, name)(**OPTIONS[options]) for module in (optimc.keras, keras.optimizers))
    a, b = variables(), variables()
    sizes = np.abs(run(ours, a, 7)[0] - start()[0]).max()
    for mine, other in zip(numpy(a), run_kerass(theirs, b, 7), strict=True):
        np.testing.assert_allclose(mine, other, 1e-4, 1e-3 * sizes + 1e-6)
    assert int(ours.iterations) == int(theirs.iterations)


def plain(optimizer):
    """The configuration, without the name, and an empty list (of Muon's) as None."""
    return {key: value if value != [] else None for key, value in optimizer.get_config().items() if key != "name"}


@each_common
def test_arguments_are_kerass(name):
    ours, theirs = getattr(optimc.keras, name)(), getattr(keras.optimizers, name)()
    assert isinstance(ours, keras.optimizers.Optimizer)
    assert plain(ours) == plain(theirs)
    assert plain(type(theirs).from_config(ours.get_config())) == plain(theirs)
    assert plain(type(ours).from_config(theirs.get_config())) == plain(theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes(dtype):
    if BACKEND == "jax" and dtype == "float64":
        pytest.skip("jax has float64 only if asked")
    weight = keras.Variable(np.ones(3), dtype=dtype)
    opt = optimc.keras.Adam(0.5, use_ema=True)
    opt.apply([keras.ops.ones(3, dtype)], [weight])
    assert keras.backend.standardize_dtype(weight.dtype) == dtype
    np.testing.assert_allclose(numpy([weight])[0], 0.5, 1e-5)


# -------------------------------------------------------------------------------------- fit

OPTIMIZERS = {"sgd": ("SGD", {}), "momentum": ("SGD", {"momentum": 0.9}), "rmsprop": ("RMSprop", {}),
          "adam": ("Adam", {}), "adagrad": ("Adagrad", {}),
          "adamw": ("AdamW", {"clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 5})}


@needs_fit
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_the_program_of_courses(case):
    name, options = OPTIMIZERS[case]
    ours, a = fit(getattr(optimc.keras, name)(**options))
    theirs, b = fit(getattr(keras.optimizers, name)(**options))
    np.testing.assert_allclose(ours, theirs, 1e-3)
    for mine, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, 1e-3, 1e-4)


@needs_fit
def test_fit_eagerly():
    losses = []
    for module in (optimc.keras, keras.optimizers):
        model = make_model()
        model.compile(optimizer=module.Adam(), loss="mse", run_eagerly=True)
        losses.append(fit(None, 1, model)[0])
    np.testing.assert_allclose(*losses, 1e-5)


@needs_fit
@pytest.mark.skipif(BACKEND == "jax", reason="Keras wants all gradients on jax")
def test_fit_goes_on_with_frozen_layers():
    weights = []
    for module in (optimc.keras, keras.optimizers):
        _, model = fit(module.Adam(0.01, use_ema=True, gradient_accumulation_steps=2), 1)
        model.layers[0].trainable = False
        model.compile(optimizer=model.optimizer, loss="mse")
        for _ in range(3):
            model.train_on_batch(*data())
        weights.append(model.get_weights())
    for mine, other in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, other, 1e-3, 1e-5)


@needs_fit
@pytest.mark.parametrize("callback", [
    lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
    lambda: keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.1, patience=1, min_delta=1.0),
    lambda: keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
], ids=["scheduler", "plateau", "swap ema"])
def test_callbacks(callback):
    results = []
    for module in (optimc.keras, keras.optimizers):
        losses, model = fit(module.Adam(0.01, use_ema=True), 4, callbacks=[callback()])
        results.append([*losses, float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
                        *(np.abs(w).sum() for w in model.get_weights())])
    np.testing.assert_allclose(*results, 1e-3)


@needs_fit
def test_schedules():
    """Keras's schedule and optimc's of the same name, against Keras."""
    arguments = {"initial_learning_rate": 0.1, "decay_steps": 5, "decay_rate": 0.5}
    theirs, _ = fit(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(**arguments)))
    for module in (keras.optimizers.schedules, optimc.schedules):
        ours, model = fit(optimc.keras.SGD(module.ExponentialDecay(**arguments)))
        np.testing.assert_allclose(ours, theirs, 1e-4)
        np.testing.assert_allclose(float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
                                   0.1 * 0.5 ** (24 / 5), 1e-5)


@needs_fit
def test_mixed_precision():
    losses = []
    for module in (optimc.keras, keras.optimizers):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            model = make_model()
            model.compile(optimizer=module.Adam(0.01), loss="mse", jit_compile=BACKEND == "jax")
        finally:
            keras.config.set_dtype_policy("float32")
        losses.append(fit(None, 3, model)[0])
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert 0 < int(model.optimizer.iterations) <= 24
    np.testing.assert_allclose(*losses, 1e-2)


@needs_fit
def test_constraints():
    weights = []
    for module in (optimc.keras, keras.optimizers):
        _, model = fit(module.SGD(0.5), 2, make_model(kernel_constraint=keras.constraints.NonNeg()))
        weights.append(model.get_weights())
    assert weights[0][0].min() == 0
    for mine, other in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, other, 1e-3, 1e-5)


@needs_fit
def test_embeddings():
    """Gradients that some backends keep sparse; an index that repeats counts as often."""
    weights = []
    rows = np.array([[1, 1, 3], [2, 1, 0]])
    for module in (optimc.keras, keras.optimizers):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 4),
                                  keras.layers.Flatten(), keras.layers.Dense(1)])
        model.compile(optimizer=module.SGD(0.1, momentum=0.5), loss="mse")
        for _ in range(3):
            model.train_on_batch(rows, np.ones((2, 1)))
        weights.append(model.get_weights())
    for mine, other in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, other, 1e-4, 1e-6)


# ------------------------------------------------------------------------------------ the rest

def test_groups_and_exclusions():
    a, b, c = variables(), variables(), variables()
    run(optimc.keras.SGD(0.1, weight_decay=0.5, groups=[{"weights": "bias", "weight_decay": 0.0}]), a, 2)
    opt = optimc.keras.SGD(0.1, weight_decay=0.5)
    opt.exclude_from_weight_decay(var_names=["bias"])
    run(opt, b, 2)
    opt = keras.optimizers.SGD(0.1, weight_decay=0.5)
    opt.exclude_from_weight_decay(var_list=[c[1]])
    run(opt, c, 2)
    for one, two, three in zip(numpy(a), numpy(b), numpy(c), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, three, 1e-6, 1e-6)


def test_missing_gradients_and_parts():
    results = []
    for module in (optimc.keras, keras.optimizers):
        weights, opt = variables(), module.Adam(0.1, use_ema=True)
        opt.build(weights)
        run(opt, weights, 2)
        grads = tensors(gradients(2))
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            opt.apply([None, *grads[1:]], weights)
        opt.apply([grads[2], grads[0]], [weights[2], weights[0]])
        with pytest.raises(ValueError, match="No gradients"):
            opt.apply([None] * 4, weights)
        with pytest.raises(ValueError, match="Unknown variable"):
            opt.apply(grads[:1], [keras.Variable(np.ones((4, 3), np.float32))])
        opt.apply([])
        run(opt, weights, 2, 3)
        results.append([*numpy(weights), *numpy(opt._model_variables_moving_average), np.array(int(opt.iterations))])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine, other, 1e-4, 1e-6)


def test_variables_overwritten_with_their_gradient():
    results = []
    for module in (optimc.keras, keras.optimizers):
        weights, opt = variables(), module.SGD(0.5, momentum=0.5)
        weights[1].overwrite_with_gradient = True
        results.append(run(opt, weights, 2))
    np.testing.assert_array_equal(results[0][1], gradients(1)[1])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine, other, 1e-6, 1e-6)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras has no stateless_apply on tensorflow")
@pytest.mark.parametrize("options", ["defaults", "together"])
@each_optimizer
def test_stateless_apply_is_a_function(name, options):
    weights, opt = variables(), getattr(optimc.keras, name)(**OPTIONS[options])
    run(opt, weights, 3)
    before = numpy([*weights, *opt.variables])
    given = [tensors(numpy(opt.variables)), tensors(gradients(3)), tensors(numpy(weights))]
    first, second = ([*map(list, opt.stateless_apply(*given))] for _ in range(2))
    for array, again in zip(before, numpy([*weights, *opt.variables, ]), strict=True):
        np.testing.assert_array_equal(array, again)
    run(opt, weights, 1, 3)
    for one, two, three in zip(numpy([*first[0], *first[1]]), numpy([*second[0], *second[1]]),
                               numpy([*weights, *opt.variables]), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_arguments_can_be_set():
    weights, opt = variables(), optimc.keras.SGD(0.5, momentum=0.5)
    run(opt, weights, 1)
    opt.learning_rate, opt.momentum, opt.clipvalue = 0.25, 0.75, 0.1
    assert opt.momentum == 0.75 and opt.get_config()["clipvalue"] == 0.1
    other, plain = optimc.SGD(0.5, momentum=0.5), start()
    other.apply(gradients(0), plain)
    other.learning_rate, other.momentum, other.clipvalue = 0.25, 0.75, 0.1
    other.apply(gradients(1), plain)
    for mine, expected in zip(run(opt, weights, 1, 1), plain, strict=True):
        np.testing.assert_array_equal(mine, expected)
    with pytest.raises(TypeError, match="momentum: expected a number"):
        opt.momentum = optimc.schedules.OneCycle(0.5, 10)


def test_steps_that_are_skipped():
    weights, opt = variables(), optimc.keras.Adam(0.5, check_finite="skip")
    run(opt, weights, 2)
    before = numpy(weights)
    grads = gradients(2)
    grads[0][0, 0] = np.nan
    opt.apply(tensors(grads), weights)
    assert int(opt.iterations) == 2
    for mine, expected in zip(numpy(weights), before, strict=True):
        np.testing.assert_array_equal(mine, expected)
    opt.apply(tensors(gradients(3)), weights)
    assert int(opt.iterations) == 3


def test_bad_input():
    with pytest.raises(ValueError, match="has no argument"):
        optimc.keras.Adam(lr=0.1)
    with pytest.raises(ValueError, match=r"beta_1 must be in \[0, 1\)"):
        optimc.keras.Adam(beta_1=1.5)
    with pytest.raises(TypeError, match="beta_1: expected a number"):
        optimc.keras.Adam(beta_1=optimc.schedules.OneCycle(0.5, 10))
    with pytest.raises(TypeError, match=r"^whole: expected a variable of float32, .* or float16, got int32$"):
        optimc.keras.Adam().build([keras.Variable(np.ones(2), dtype="int32", trainable=False, name="whole")])
    weights, opt = variables(), optimc.keras.Adam()
    with pytest.raises(ValueError, match="built"):
        opt.apply(tensors(gradients(0)))
    with pytest.raises(ValueError, match="grads has 1 entries, trainable_variables 4"):
        opt.apply(tensors(gradients(0))[:1], weights)
    before = numpy(weights)
    with pytest.raises(Exception, match="shape"):
        opt.apply(tensors([*gradients(0)[:3], np.ones(2, np.float32)]), weights)
    for mine, expected in zip(numpy(weights), before, strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert int(opt.iterations) == 0


@pytest.mark.skipif(not IN_PLACE, reason="elsewhere the error comes through the framework")
def test_a_schedule_cannot_step_its_own_optimizer():
    class Steps(optimc.schedules.LearningRateSchedule):
        def __call__(self, step):
            opt.apply(tensors(gradients(0)), weights)

    weights, opt = variables(), optimc.keras.SGD(Steps())
    with pytest.raises(RuntimeError):
        opt.apply(tensors(gradients(0)), weights)
    for value, before in zip(numpy(weights), start(), strict=True):
        np.testing.assert_array_equal(value, before)


def test_old_argument_warns():
    with pytest.warns(UserWarning, match="`decay` is no longer supported"):
        optimc.keras.SGD(0.1, decay=0.5)


def test_no_warnings():
    weights, opt = variables(), optimc.keras.Adam(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(3):
            opt.apply(tensors(gradients(k)), weights)
    assert int(opt.iterations) == 3


def test_examples_run():
    results = doctest.testmod(optimc.keras)
    assert results.attempted >= 3 * len(NAMES) and not results.failed
