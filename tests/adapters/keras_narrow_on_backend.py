"""Tests of optimc.keras with variables and slots of fewer bits, which every backend runs.  See test_keras.py."""

import keras
import numpy as np
import pytest
from keras_cases import (
    BACKEND,
    IN_PLACE,
    OPTIONS,
    SHAPES,
    data,
    each_optimizer,
    gradients,
    needs_fit,
    numpy,
    rate_of,
    run,
    start,
    tensors,
)

import optimc
import optimc.keras
from optimc import registry
from optimc.base.narrow import choices_of
from optimc.base.rules import slots_of

STORED = [(dtype, choice) for dtype in ("bfloat16", "float16", "float32") for choice in (None, "bfloat16", "int8")]
STORED = STORED[:-3] + STORED[-2:] if IN_PLACE else [("bfloat16", "int8"), ("float16", "bfloat16")]
each_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
needs_torch = pytest.mark.skipif(BACKEND != "torch", reason="of torch")


def narrow(name, choice):
    """The `state_dtype` with which every slot that may be narrow is."""
    opt = registry.classes[name]()
    return {slot: choice if choice in choices else choices[-1] for kernel in opt._possible_kernels()
            for slot in slots_of(kernel) if slot not in opt._scratch_slots and (choices := choices_of(opt, slot))}


def variables(dtype):
    return [keras.Variable(value, dtype=dtype, name=name) for value, name in zip(start(), SHAPES, strict=True)]


def same(ours, theirs):
    for mine, other in zip(numpy(ours), theirs, strict=True):
        assert mine.tobytes() == np.asarray(other).tobytes()


def state_of(optimizer):
    return [variable for variable in optimizer.variables if len(variable.shape)]


@pytest.fixture
def floatx():
    """Makes bfloat16 the default of variables."""
    for dtype in ("bfloat16", "float32"):
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        if dtype == "bfloat16":
            yield


# ------------------------------------------------------------------------------------ steps

@pytest.mark.parametrize("options", ["defaults", "together"] if IN_PLACE else ["together"])
@pytest.mark.parametrize("dtype, choice", STORED)
@each_optimizer
def test_steps_are_optimcs(name, dtype, choice, options):
    """The same bits as optimc's own class in weights, masters and slots."""
    given = {"learning_rate": rate_of(name), **OPTIONS[options], "state_dtype": choice and narrow(name, choice),
             "seed": 5}
    ours, weights = getattr(optimc.keras, name)(**given), variables(dtype)
    core = getattr(optimc, name)(**given)
    arrays = dict(zip((v.path for v in weights), numpy(weights), strict=True))
    for step in range(4):
        ours.apply(tensors(gradients(step)), weights)
        core.apply(dict(zip(arrays, gradients(step), strict=True)), arrays)
    same(weights, arrays.values())
    same(state_of(ours), [array for array in core.variables if array.ndim])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_gradients(dtype):
    opt, weights = optimc.keras.Adam(0.125), variables(dtype)
    core, arrays = optimc.Adam(0.125), numpy(weights)
    for step in range(3):
        grads = [grad.astype(dtype) for grad in gradients(step)]
        opt.apply(tensors(grads), weights)
        core.apply(grads, arrays)
    same(weights, arrays)


def test_rounding_follows_the_seed():
    first, again, other = (run(optimc.keras.SGD(0.01, master_weights=False, seed=seed), variables("bfloat16"), 3)
                           for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, again)) and not all(map(np.array_equal, first, other))


def test_initial_values_are_encoded():
    """An accumulator that starts at 0.1, which is no bfloat16, is rounded at random to both neighbours."""
    opt, core = (module.Adagrad(state_dtype="bfloat16", seed=1) for module in (optimc.keras, optimc))
    opt.build([keras.Variable(np.ones(500, np.float32))])
    core.build([np.ones(500, np.float32)])
    values = numpy(state_of(opt))[0]
    assert values.tobytes() == core._slots["accumulator"][0].tobytes()
    assert len(set(values.astype(np.float32))) == 2


@needs_torch
def test_narrow_storage_is_stepped_by_tensors():
    opt = optimc.keras.AdamW(0.1, use_ema=True, state_dtype={"m": "int8", "v": "bfloat16"})
    weights = variables("bfloat16")
    opt.build(weights)
    held = [*weights, *state_of(opt)]
    places = [v._value.data_ptr() for v in held]
    run(opt, weights, 2)
    assert opt._stepper.tensors is not None
    tensors_before = opt._stepper.tensors
    run(opt, weights, 2, 2)
    assert opt._stepper.tensors is tensors_before
    assert places == [v._value.data_ptr() for v in held]


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras has no stateless_apply on tensorflow")
def test_stateless_apply():
    opt, weights = optimc.keras.Adam(0.1, state_dtype={"m": "int8", "v": "bfloat16"}), variables("bfloat16")
    run(opt, weights, 2)
    values = [[keras.ops.convert_to_tensor(v) for v in some] for some in (opt.variables, weights)]
    before = numpy([*weights, *opt.variables])
    done = opt.stateless_apply(values[0], tensors(gradients(2)), values[1])
    same([*weights, *opt.variables], before)
    run(opt, weights, 1, 2)
    same([*done[0], *done[1]], numpy([*weights, *opt.variables]))


# ---------------------------------------------------------------------- what else writes weights

@pytest.mark.parametrize("dtype, master", [("bfloat16", True), ("bfloat16", False), ("float16", True)])
def test_averages_are_put_in_with_their_masters(dtype, master):
    given = {"learning_rate": 0.125, "use_ema": True, "ema_momentum": 0.5, "master_weights": master}
    opt, weights = optimc.keras.SGD(**given), variables(dtype)
    core, arrays = optimc.SGD(**given), numpy(weights)
    for step in range(2):
        run(opt, weights, 1, step)
        core.apply(gradients(step), arrays)
    opt.finalize_variable_values(weights)
    core.finalize_variable_values()
    same(weights, arrays)
    run(opt, weights, 1, 2)
    core.apply(gradients(2), arrays)
    same(weights, arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_constraint_counts(dtype):
    """The next step goes on from the weights that a constraint has changed, exactly."""
    weight = keras.Variable(np.linspace(-1, 1, 64), dtype=dtype)
    weight.constraint = keras.constraints.NonNeg()
    opt = optimc.keras.SGD(0.5)
    opt.apply(tensors([np.full(64, 1e-3, np.float32)]), [weight])
    clipped = numpy([weight])[0].astype(np.float32) == 0
    assert 30 < clipped.sum() < 34
    opt.apply(tensors([np.full(64, -2.0, np.float32)]), [weight])
    assert np.all(numpy([weight])[0].astype(np.float32)[clipped] == 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_masters_are_reset(dtype):
    opt, weights = optimc.keras.SGD(0.5), variables(dtype)
    opt.reset_master()                                      # not built: there is none
    run(opt, weights, 3)
    for weight in weights:
        weight.assign(np.ones(weight.shape))
    opt.reset_master()
    opt.apply(tensors([np.full(shape, 0.5, np.float32) for shape in SHAPES.values()]), weights)
    assert all(np.all(value == 0.75) for value in numpy(weights))


# ------------------------------------------------------------------------- saving, configuration

@each_dtype
@pytest.mark.parametrize("choice", [None, "bfloat16", "int8"])
def test_resume_is_exact(dtype, choice, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((70,)), keras.layers.Dense(64, dtype=dtype), keras.layers.Dense(2)])
    model.compile(optimizer=optimc.keras.AdamW(0.01, state_dtype=choice, seed=7, use_ema=True), loss="mse")

    def step(model, k):
        rng = np.random.default_rng(k)
        model.optimizer.apply(tensors(rng.standard_normal(v.shape).astype(np.float32)
                                      for v in model.trainable_variables), model.trainable_variables)

    for k in range(3):
        step(model, k)
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    assert other.optimizer.get_config() == model.optimizer.get_config()
    assert [v.dtype for v in other.optimizer.variables] == [v.dtype for v in model.optimizer.variables]
    for k in range(3, 6):
        step(model, k)
        step(other, k)
    same([*model.weights, *model.optimizer.variables], numpy([*other.weights, *other.optimizer.variables]))


def test_configuration():
    given = {"state_dtype": {"m": "int8", "v": None}, "master_weights": False, "seed": 12}
    opt = optimc.keras.AdamW(0.01, groups=[{"weights": "bias", "state_dtype": "bfloat16"}], **given)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(opt))
    assert again.get_config() == opt.get_config()
    assert {name: again.get_config()[name] for name in given} == given
    assert (again.state_dtype, again.master_weights, again.seed) == tuple(given.values())
    again.build(variables("float32"))
    assert [v.dtype for v in state_of(again)] == ["uint8", "float32", "bfloat16", "bfloat16", "uint8", "float32",
                                                  "uint8"]


def test_refusals():
    half = [keras.Variable(np.ones(2), dtype="float16", name="half")]
    with pytest.raises(ValueError, match=r"^half: float16 weights need a master.* pass master_weights=True$"):
        optimc.keras.Adam(master_weights=False).build(half)
    with pytest.raises(ValueError, match=r"^state_dtype: the slot 'size' of Rprop must stay float32"):
        optimc.keras.Rprop(state_dtype="int8")
    with pytest.raises(ValueError, match=r"^state_dtype must be None, .* or 'int8', got 'float8'$"):
        optimc.keras.Adam(state_dtype="float8")
    with pytest.raises(TypeError, match=r"^whole: expected a variable of float32, .* got int32$"):
        optimc.keras.Adam().build([keras.Variable(np.ones(2), dtype="int32", trainable=False, name="whole")])


# -------------------------------------------------------------------------------------- fit

def fitted(optimizer, epochs=3):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(512, activation="relu"), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse")
    history = model.fit(*data(), batch_size=32, epochs=epochs, verbose=0, shuffle=False).history
    return [float(loss) for loss in history["loss"]], model


@needs_fit
@pytest.mark.parametrize("choice", [None, "bfloat16", "int8"])
def test_fit_with_narrow_variables(choice, floatx):
    losses, model = fitted(optimc.keras.Adam(0.01, state_dtype=choice))
    assert {v.dtype for v in model.trainable_variables} == {"bfloat16"}
    assert losses[-1] < 0.5 * losses[0] and np.isfinite(losses).all()


@needs_fit
@pytest.mark.parametrize("choice", ["bfloat16", "int8"])
def test_fit_with_narrow_slots_is_like_fit_with_wide_ones(choice):
    wide, _ = fitted(optimc.keras.Adam(0.01))
    losses, model = fitted(optimc.keras.Adam(0.01, state_dtype=choice))
    np.testing.assert_allclose(losses, wide, 0.2)
    assert {v.dtype for v in state_of(model.optimizer)} >= {"uint8" if choice == "int8" else "bfloat16"}


@needs_fit
def test_mixed_precision_keeps_variables_of_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        _, model = fitted(optimc.keras.Adam(0.01, state_dtype="bfloat16"), 1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert [v.dtype for v in state_of(model.optimizer)] == ["bfloat16"] * 8


@pytest.mark.parametrize("dtype, choice", STORED)
def test_narrow_storage_goes_on_in_optimc(dtype, choice):
    """`from_keras` brings codes and masters over; those of Keras's own optimizers become float32."""
    opt = optimc.keras.AdamW(0.125, state_dtype=choice and narrow("AdamW", choice), use_ema=True)
    weights = variables(dtype)
    run(opt, weights, 3)
    ours, arrays = optimc.from_keras(opt), numpy(weights)
    assert ours.iterations == 3
    for step in range(3, 5):
        run(opt, weights, 1, step)
        ours.apply(gradients(step), arrays)
    same(weights, arrays)
    if IN_PLACE:
        theirs, weights = keras.optimizers.AdamW(0.125, use_ema=True), variables("bfloat16")
        run(theirs, weights, 2)
        optimc.from_keras(theirs).apply(gradients(2), numpy(weights))
