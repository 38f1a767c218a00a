"""Tests of optimc.keras that every backend runs; KERAS_BACKEND says which.  See test_keras.py."""

import copy
import doctest
import types
import warnings

import keras
import numpy as np
import pytest

import optimc
import optimc.keras
from optimc import registry

BACKEND = keras.backend.backend()
NAMES = sorted(registry.classes)
COMMON = [name for name in NAMES if hasattr(keras.optimizers, name)]
IN_PLACE = BACKEND in ("torch", "numpy")

OPTIONS = {
    "defaults": {},
    "decay": {"weight_decay": 0.1},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 1.0},
    "global clipnorm": {"global_clipnorm": 1.0},
    "ema": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss scale": {"loss_scale_factor": 128.0},
    "together": {"weight_decay": 0.1, "clipvalue": 0.5, "use_ema": True, "gradient_accumulation_steps": 3,
                 "loss_scale_factor": 2.0},
}
SHAPES = {"kernel": (4, 3), "bias": (3,), "embedding": (5, 2), "scale": ()}

needs_fit = pytest.mark.skipif(BACKEND == "numpy", reason="the numpy backend cannot fit")
each_optimizer = pytest.mark.parametrize("name", NAMES)
each_common = pytest.mark.parametrize("name", COMMON)


def start():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]


def gradients(step):
    rng = np.random.default_rng(step + 1)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]


def variables():
    return [keras.Variable(value, name=name) for value, name in zip(start(), SHAPES, strict=True)]


def tensors(arrays):
    return [keras.ops.convert_to_tensor(array) for array in arrays]


def numpy(values):
    return [np.array(keras.ops.convert_to_numpy(value)) for value in values]


def rate_of(name):
    """The default learning rate, as Keras's variable holds it."""
    return float(np.float32(registry.classes[name]._arguments["learning_rate"].default))


def run(optimizer, weights, steps, first=0):
    for step in range(first, first + steps):
        optimizer.apply(tensors(gradients(step)), weights)
    return numpy(weights)


def make_model(**keywords):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((10,)), keras.layers.Dense(64, activation="relu", **keywords),
                             keras.layers.Dense(1)])


def data():
    rng = np.random.default_rng(0)
    x = rng.random((256, 10), np.float32)
    return x, (x.sum(1, keepdims=True) / 5 - 1).astype(np.float32)


def fit(optimizer, epochs=3, model=None, **keywords):
    """The lesson's program; the losses."""
    model = model or make_model()
    if optimizer is not None:
        model.compile(optimizer=optimizer, loss="mse")
    history = model.fit(*data(), batch_size=32, epochs=epochs, verbose=0, shuffle=False, **keywords)
    return [float(loss) for loss in history.history["loss"]], model


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
    for mine, other in zip(numpy(a), run(theirs, b, 7), strict=True):
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


LESSON = {"sgd": ("SGD", {}), "momentum": ("SGD", {"momentum": 0.9}), "rmsprop": ("RMSprop", {}),
          "adam": ("Adam", {}), "adagrad": ("Adagrad", {}),
          "adamw": ("AdamW", {"clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 5})}


@needs_fit
@pytest.mark.parametrize("case", LESSON)
def test_lesson(case):
    name, options = LESSON[case]
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


# ------------------------------------------------------------------------------------- state


def compiled(name, **options):
    """A model whose weights all kinds of slots are kept for, with its optimizer."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile(optimizer=getattr(optimc.keras, name)(**options), loss="mse")
    return model


def step(model, k):
    rng = np.random.default_rng(k)
    model.optimizer.apply(tensors(rng.standard_normal(v.shape).astype(np.float32) for v in model.trainable_variables),
                          model.trainable_variables)


@pytest.mark.parametrize("options", ["defaults", "together"])
@each_optimizer
def test_resume_is_exact(name, options, tmp_path):
    model = compiled(name, **OPTIONS[options])
    for k in range(4):
        step(model, k)
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    assert type(other.optimizer) is type(model.optimizer)
    assert other.optimizer.get_config() == model.optimizer.get_config()
    for k in range(4, 9):
        for each in (model, other):
            step(each, k)
    for mine, again in zip([*model.get_weights(), *numpy(model.optimizer.variables)],
                           [*other.get_weights(), *numpy(other.optimizer.variables)], strict=True):
        np.testing.assert_array_equal(mine, again)


@needs_fit
@pytest.mark.parametrize("schedule", [None, keras.optimizers.schedules, optimc.schedules],
                         ids=["rate", "keras", "optimc"])
def test_fit_resumes(schedule, tmp_path):
    rate = schedule.CosineDecay(0.1, 20) if schedule else 0.01
    _, model = fit(optimc.keras.Nadam(rate, use_ema=True, gradient_accumulation_steps=3, weight_decay=0.1), 1)
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    assert fit(None, 2, model)[0] == fit(None, 2, other)[0]
    for mine, again in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, again)


@each_common
def test_variables_are_kerass(name):
    """So that either loads what the other saved."""
    ours, theirs = (getattr(module, name)(use_ema=True, gradient_accumulation_steps=2)
                    for module in (optimc.keras, keras.optimizers))
    for optimizer in (ours, theirs):
        optimizer.build(variables())
    if name == "Adafactor":
        pytest.skip("Keras keeps two numbers without use for vectors")
    assert [tuple(v.shape) for v in ours.variables] == [tuple(v.shape) for v in theirs.variables]
    assert [v.path.split("/", 1)[-1].rstrip("_0123456789") for v in ours.variables][4:-1] == \
        [v.path.split("/", 1)[-1].rstrip("_0123456789") for v in theirs.variables][4:-1]


def test_goes_on_where_keras_stopped():
    a, theirs = variables(), keras.optimizers.Adam(0.01, amsgrad=True)
    run(theirs, a, 3)
    ours, b = optimc.keras.Adam(0.01, amsgrad=True), variables()
    ours.build(b)
    for mine, other in zip([*ours.variables, *b], numpy([*theirs.variables, *a]), strict=True):
        mine.assign(other)
    for mine, other in zip(run(ours, b, 3, 3), run(theirs, a, 3, 3), strict=True):
        np.testing.assert_allclose(mine, other, 1e-5, 1e-6)


def test_serialization():
    opt = optimc.keras.AdamW(0.01, 0.3, cautious=True, groups=[{"params": "bias", "weight_decay": 0.0}])
    again = keras.optimizers.deserialize(keras.optimizers.serialize(opt))
    assert type(again) is optimc.keras.AdamW and again.get_config() == opt.get_config()
    assert again.get_config()["cautious"] is True and again.get_config()["groups"]
    assert type(keras.optimizers.get("optimc>Adam")) is optimc.keras.Adam
    twin = copy.deepcopy(optimc.keras.SGD(0.5, momentum=0.25))
    assert twin.momentum == 0.25 and float(keras.ops.convert_to_numpy(twin.learning_rate)) == 0.5


# ------------------------------------------------------------------------------------ the rest


def test_groups_and_exclusions():
    a, b, c = variables(), variables(), variables()
    run(optimc.keras.SGD(0.1, weight_decay=0.5, groups=[{"params": "bias", "weight_decay": 0.0}]), a, 2)
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
    with pytest.raises(ValueError, match="not recognized"):
        optimc.keras.Adam(lr=0.1)
    with pytest.raises(ValueError, match=r"beta_1 must be in \[0, 1\)"):
        optimc.keras.Adam(beta_1=1.5)
    with pytest.raises(TypeError, match="beta_1: expected a number"):
        optimc.keras.Adam(beta_1=optimc.schedules.OneCycle(0.5, 10))
    with pytest.raises(TypeError, match="half: expected a variable of float32 or float64, got float16"):
        optimc.keras.Adam().build([keras.Variable(np.ones(2), dtype="float16", name="half")])
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


@pytest.mark.skipif(not IN_PLACE, reason="values there are not memory")
@pytest.mark.parametrize("name", ["Adam", "Muon"])
def test_in_place(name):
    weights, opt = variables(), getattr(optimc.keras, name)(0.1, use_ema=True, gradient_accumulation_steps=2)
    opt.build(weights)
    held = [*weights, *(v for v in opt.variables if v.shape)]
    values = [v._value for v in held]
    before = [np.array(v.detach() if BACKEND == "torch" else v) for v in values]
    places = [v.data_ptr() if BACKEND == "torch" else v.ctypes.data for v in values]
    run(opt, weights, 4)
    assert all(v._value is value for v, value in zip(held, values, strict=True))
    assert places == [v.data_ptr() if BACKEND == "torch" else v.ctypes.data for v in values]
    changed = [not np.array_equal(a, b) for a, b in zip(before, numpy(held), strict=True)]
    assert sum(changed) >= 4 * 3


@pytest.mark.skipif(BACKEND != "torch", reason="of torch")
def test_memory_of_torch():
    import torch
    weights, opt = variables(), optimc.keras.Adam(0.1)
    run(opt, weights, 2)
    for first in (False, True):         # by tensors, then by arrays
        loss = (weights[0]._value ** 2).sum()
        opt.apply(tensors(gradients(2))[:1 if first else 4], weights[:1 if first else 4])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    # where a weight lies is read afresh
    a, b = variables(), variables()
    one, two = optimc.keras.Adam(0.1), optimc.keras.Adam(0.1)
    run(one, a, 2)
    run(two, b, 2)
    with torch.no_grad():
        for v in a:
            v._value.data = v._value.data.clone()
    for mine, other in zip(run(one, a, 3, 2), run(two, b, 3, 2), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.skipif(BACKEND not in ("torch", "tensorflow"), reason="of torch and tensorflow")
def test_devices():
    opt = optimc.keras.Adam()
    if BACKEND == "torch":
        with keras.device("meta"):
            weight = keras.Variable(np.ones(2, np.float32), name="w")
        with pytest.raises(TypeError, match="w: expected a variable on the CPU, got one on meta"):
            opt.build([weight])
    else:
        opt._distribution_strategy = types.SimpleNamespace(num_replicas_in_sync=2)
        with pytest.raises(ValueError, match="expected one replica, got 2"):
            opt.build(variables())


@pytest.mark.skipif(BACKEND != "torch", reason="of torch")
def test_compiled_by_torch():
    import torch
    a, b = variables(), variables()
    one, two = optimc.keras.Adam(0.1), optimc.keras.Adam(0.1)
    compiled = torch.compile(lambda grads: one.apply(grads, a), backend="eager")
    with torch.no_grad():
        for k in range(3):
            compiled(tensors(gradients(k)))
    for mine, other in zip(numpy(a), run(two, b, 3), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.skipif(BACKEND != "torch", reason="of torch")
def test_gradients_of_other_strides_and_types():
    import torch
    results = []
    for change in (lambda g: g, lambda g: g.double(), lambda g: g.t().contiguous().t() if g.dim() == 2 else g):
        weights, opt = variables(), optimc.keras.Adam(0.1)
        with torch.no_grad():
            for k in range(3):
                opt.apply([change(g) for g in tensors(gradients(k))], weights)
        results.append(numpy(weights))
    for one, two, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def fitted(**arguments):
    """A small model after a compiled fit, and a second fit of two epochs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    model.compile(optimizer=optimc.keras.Adam(0.05, **arguments), loss="mse")
    x = np.linspace(-1, 1, 96, dtype=np.float32).reshape(32, 3)
    for epochs in (1, 2):
        model.fit(x, x.sum(1), batch_size=8, epochs=epochs, verbose=0)
    return model, x


@pytest.mark.skipif(BACKEND != "jax", reason="of jax")
@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 3, "global_clipnorm": 0.1}], ids=str)
def test_over_xlas_own_buffers_and_by_callback(monkeypatch, arguments):
    """Both ways have the same bits; what is kept of buffers that XLA has taken back is never looked at."""
    assert optimc.keras.IN_BUFFERS
    over, x = fitted(**arguments)
    assert over.optimizer._traced
    monkeypatch.setattr(optimc.keras, "IN_BUFFERS", False)
    back, _ = fitted(**arguments)
    assert not back.optimizer._traced
    for one, two in zip([*over.weights, *over.optimizer.variables], [*back.weights, *back.optimizer.variables],
                        strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    monkeypatch.undo()
    over.optimizer.learning_rate = 0.0
    before = numpy(over.weights)
    over.fit(x, x.sum(1), batch_size=16, verbose=0)
    for one, two in zip(before, numpy(over.weights), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.skipif(BACKEND != "jax", reason="of jax")
def test_an_error_in_xlas_call_is_raised():
    model, x = fitted(check_finite="raise")
    with pytest.raises(Exception, match=r"FloatingPointError: .* is not finite"):
        model.fit(x * np.float32("nan"), x.sum(1), verbose=0)
        numpy(model.weights)                                    # jax runs ahead: an error waits for a look


@pytest.mark.skipif(BACKEND != "jax", reason="of jax")
def test_a_compiled_step_outlives_its_optimizer_only_to_say_so():
    import jax
    weights = variables()
    opt = optimc.keras.SGD(0.5)
    opt.build(weights)
    held = [v.value for v in opt.variables]
    step = jax.jit(lambda held, ws, gs: opt.stateless_apply(held, gs, ws)).lower(
        held, [w.value for w in weights], tensors(gradients(0))).compile()
    assert np.isfinite(numpy(step(held, [w.value for w in weights], tensors(gradients(0)))[0])[0]).all()
    for traced in opt._traced:                                  # as if the optimizer were gone
        del optimc.keras._Traced.known[traced.number]
    with pytest.raises(Exception, match="optimizer of this compiled step is gone"):
        numpy(step(held, [w.value for w in weights], tensors(gradients(0)))[0])


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


@pytest.mark.skipif(BACKEND not in ("tensorflow", "jax"), reason="no sparse gradients there")
def test_sparse_gradients():
    """They are made dense: rows that come twice are added up."""
    rows, values = np.array([3, 1, 3]), np.arange(6, dtype=np.float32).reshape(3, 2)
    dense = np.zeros((5, 2), np.float32)
    np.add.at(dense, rows, values)
    if BACKEND == "tensorflow":
        import tensorflow
        sparse = tensorflow.IndexedSlices(tensorflow.constant(values), rows, (5, 2))
    else:
        from jax.experimental.sparse import BCOO
        sparse = BCOO((values, rows[:, None]), shape=(5, 2))
    results = []
    for grad in (sparse, keras.ops.convert_to_tensor(dense)):
        weight, opt = keras.Variable(np.ones((5, 2), np.float32)), optimc.keras.Adam(0.1)
        for _ in range(2):
            opt.apply([grad], [weight])
        results += numpy([weight])
    np.testing.assert_array_equal(*results)
