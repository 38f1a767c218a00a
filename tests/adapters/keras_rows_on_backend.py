"""Tests of gradients by rows in optimc.keras, which the tensorflow backend has.  See test_keras.py."""

import keras
import numpy as np
import pytest
from keras_cases import BACKEND, NAMES, OPTIONS, numpy, rate_of

import optimc
import optimc.keras

if BACKEND != "tensorflow":
    pytest.skip("Keras gives dense gradients on this backend", allow_module_level=True)

import tensorflow as tf

SHAPE = (7, 4)
WHOLE = ("Adafactor", "LARS", "Lamb", "Muon")


def start():
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def gradients(step, real=np.float32):
    """Indices, some of them repeated, with their values; and the gradient of a bias."""
    rng = np.random.default_rng(step + 1)
    indices = rng.integers(0, SHAPE[0] - 1, 5)
    return (np.append(indices, indices[:2]).astype((np.int32, np.int64)[step % 2]),
            rng.standard_normal((7, *SHAPE[1:])).astype(real), rng.standard_normal(3).astype(np.float32))


def variables(dtype="float32"):
    return [keras.Variable(start(), dtype=dtype, name="table"), keras.Variable(np.ones(3, np.float32), name="bias")]


def slices(indices, values, shape=SHAPE):
    return tf.IndexedSlices(tf.constant(values), tf.constant(indices), None if shape is None else tf.constant(shape))


def dense(indices, values, real=np.float32):
    total = np.zeros(SHAPE, real)
    np.add.at(total, indices, values.astype(real))
    return total


def apply_eagerly(opt):
    return lambda grads, weights: opt.apply(grads, weights)


def apply_in_a_function(opt):
    """Indices and values whose number the compiled step does not know."""
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, SHAPE[1]]),
                                  tf.TensorSpec([3])])
    def step(indices, values, other):
        opt.apply_gradients([(tf.IndexedSlices(values, indices, SHAPE), step.weights[0]), (other, step.weights[1])])

    def apply(grads, weights):
        step.weights = weights
        step(tf.cast(grads[0].indices, tf.int64), grads[0].values, grads[1])
    return apply


# ------------------------------------------------------------------------------------ steps

STEPS = [*((name, "together", apply_eagerly) for name in NAMES),
         *(("AdamW", options, apply_eagerly) for options in OPTIONS if options != "together"),
         *((name, "together", apply_in_a_function) for name in ("SGD", "Nadam", "Ftrl", "Lamb"))]


@pytest.mark.parametrize("name, options, way", STEPS)
def test_steps_are_optimcs(name, options, way):
    """The same bits as optimc's own class, by rows; or dense, for rules of whole weights."""
    given = {"learning_rate": rate_of(name), **OPTIONS[options]}
    if "loss_scale_factor" in given:
        given["loss_scale_factor"] = 64.0
    ours, weights = getattr(optimc.keras, name)(**given), variables()
    core, arrays = getattr(optimc, name)(**given), {v.path: array for v, array in zip(
        variables(), numpy(weights), strict=True)}
    ours.build(weights)
    core.build(arrays)
    apply = way(ours)
    for step in range(7):
        indices, values, other = gradients(step)
        apply([slices(indices, values), tf.constant(other)], weights)
        rows = dense(indices, values) if name in WHOLE else optimc.Rows(indices, values)
        core.apply(dict(zip(arrays, [rows, other], strict=True)), arrays)
    for mine, plain in zip(numpy(weights), arrays.values(), strict=True):
        if core._scalar_names():
            np.testing.assert_allclose(mine, plain, 1e-6, 1e-6)
        else:
            np.testing.assert_array_equal(mine, plain)
    if name not in WHOLE and "weight_decay" not in given and not given.get("use_ema"):
        np.testing.assert_array_equal(numpy(weights)[0][-1], start()[-1])       # a row that never occurs


@pytest.mark.parametrize("way", [apply_eagerly, apply_in_a_function])
def test_repeated_rows_are_summed_before_they_are_squared(way):
    """Against the formula of Adagrad in NumPy.  Keras's own Adagrad squares them apart."""
    weights, opt = variables(), optimc.keras.Adagrad(0.5)
    opt.build(weights)
    indices, values = np.array([2, 5, 2, 2], np.int64), np.ones((4, 4), np.float32)
    way(opt)([slices(indices, values), tf.zeros(3)], weights)
    expected, g = start(), dense(indices, values)
    expected -= np.float32(0.5) * g / np.sqrt(np.float32(0.1) + g * g + np.float32(1e-7))
    np.testing.assert_allclose(numpy(weights)[0], expected, 1e-6)
    theirs = keras.Variable(start())
    keras.optimizers.Adagrad(0.5).apply([slices(indices, values)], [theirs])
    assert np.abs(numpy([theirs])[0] - expected)[2].min() > 0.1


@pytest.mark.parametrize("options", ["decay", "global clipnorm", "accumulation"])
def test_storage_in_fewer_bits(options):
    """Weights and slots of 16 bits are stepped by rows; rows too short for the blocks of slots of 8 bits, densely."""
    for dtype, choice in (("bfloat16", "bfloat16"), ("float16", None), ("float32", "int8")):
        given = {"learning_rate": 0.125, **OPTIONS[options], "state_dtype": choice and {"m": choice}, "seed": 3}
        ours, weights = optimc.keras.Adam(**given), variables(dtype)
        core, arrays = optimc.Adam(**given), dict(zip("ab", numpy(weights), strict=True))
        for step in range(4):
            indices, values, other = gradients(step, weights[0].value.dtype.as_numpy_dtype)
            ours.apply([slices(indices, values), tf.constant(other)], weights)
            rows = dense(indices, values) if choice == "int8" else optimc.Rows(indices, values)
            core.apply({"a": rows, "b": other}, arrays)
        for mine, plain in zip(numpy(weights), arrays.values(), strict=True):
            assert mine.tobytes() == plain.tobytes()


def test_empty_rows_count_a_step():
    weights, opt = variables(), optimc.keras.Adam(0.1, weight_decay=0.5)
    opt.apply([slices(np.zeros(0, np.int64), np.zeros((0, 4), np.float32)), tf.zeros(3)], weights)
    np.testing.assert_array_equal(numpy(weights)[0], start())
    assert int(opt.iterations) == 1


def test_rows_of_a_vector():
    weight, opt = keras.Variable(np.ones(5, np.float32)), optimc.keras.SGD(1.0)
    opt.apply([slices(np.array([4, 1, 4]), np.ones(3, np.float32), None)], [weight])
    np.testing.assert_array_equal(numpy([weight])[0], [1, 0, 1, 1, -1])


# ------------------------------------------------------------------------------- accumulation

@pytest.mark.parametrize("kinds", ["rr", "rd", "dr", "r-"])
def test_rows_and_dense_gradients_in_a_cycle(kinds):
    given = {"learning_rate": 0.125, "gradient_accumulation_steps": 2, "weight_decay": 0.1}
    ours, weights = optimc.keras.Adam(**given), variables()
    core, arrays = optimc.Adam(**given), [array.copy() for array in numpy(weights)]
    ours.build(weights)
    core.build(arrays)
    for step, kind in enumerate(kinds * 2):
        indices, values, other = gradients(step)
        whole = np.random.default_rng(9).standard_normal(SHAPE).astype(np.float32)
        grad, same = {"r": (slices(indices, values), optimc.Rows(indices, values)), "d": (tf.constant(whole), whole),
                      "-": (None, None)}[kind]
        chosen = slice(1, None) if grad is None else slice(None)
        ours.apply([grad, tf.constant(other)][chosen], weights[chosen])
        core.apply([same, other][chosen], arrays[chosen])
    for mine, plain in zip(numpy(weights), arrays, strict=True):
        np.testing.assert_array_equal(mine, plain)


def test_optimc_goes_on_in_a_cycle():
    """`from_keras` knows that gradients that wait are of rows."""
    opt, weights = optimc.keras.AdamW(0.125, gradient_accumulation_steps=2), variables()
    for step in range(4):
        if step == 3:
            core, arrays = optimc.from_keras(opt), {v.path: a for v, a in zip(weights, numpy(weights), strict=True)}
        indices, values, other = gradients(step)
        opt.apply([slices(indices, values), tf.constant(other)], weights)
    core.apply(dict(zip(arrays, [optimc.Rows(indices, values), other], strict=True)), arrays)
    for mine, plain in zip(numpy(weights), arrays.values(), strict=True):
        np.testing.assert_array_equal(mine, plain)


def test_a_saved_model_continues_in_a_cycle(tmp_path):
    model = embedding(optimc.keras.AdamW(0.1, gradient_accumulation_steps=3, use_ema=True))
    x, y = batches()
    for _ in range(4):
        model.train_on_batch(x[:2], y[:2])
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    for k in range(4):
        for one in (model, other):
            one.train_on_batch(x[k:k + 2], y[k:k + 2])
    for mine, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# -------------------------------------------------------------------------------------- fit

def embedding(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(50, 4),
                              keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


def batches():
    rng = np.random.default_rng(0)
    return rng.integers(0, 20, (16, 3)), rng.random((16, 1)).astype(np.float32)


class Seen(optimc.keras.SGD):
    """Notes the kinds of gradients that reach the step."""

    kinds = ()

    def _step_by_values(self, chosen, grads):
        self.__dict__["kinds"] = [type(grad).__name__ for grad in grads]
        super()._step_by_values(chosen, grads)


class Dense(optimc.keras.SGD):
    """Makes every gradient dense, as docs/howto/keras.md shows."""

    def apply(self, grads, trainable_variables=None):
        super().apply([None if grad is None else tf.convert_to_tensor(grad) for grad in grads], trainable_variables)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("options", ["defaults", "loss scale", "global clipnorm"])
def test_fit(eager, options):
    """Without memory of time, rows and dense gradients give the same."""
    weights = []
    for cls in (Seen, Dense):
        optimizer = cls(0.1, **OPTIONS[options])
        model = embedding(optimizer, run_eagerly=eager)
        model.fit(*batches(), batch_size=8, epochs=2, verbose=0, shuffle=False)
        weights.append(model.get_weights())
        if cls is Seen:
            assert optimizer.kinds[0] == "Slices" and "Slices" not in optimizer.kinds[1:]
    for mine, other in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, other, 1e-4, 1e-6)


def test_kerass_wrapper_scales_the_loss():
    """In whole powers of two, the same numbers as without."""
    weights = []
    for optimizer in (Seen(0.1), keras.optimizers.LossScaleOptimizer(Seen(0.1))):
        model = embedding(optimizer)
        model.fit(*batches(), batch_size=8, epochs=2, verbose=0, shuffle=False)
        weights.append(model.get_weights())
        assert getattr(optimizer, "inner_optimizer", optimizer).kinds[0] == "Slices"
    for mine, other in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, other, 1e-6, 1e-7)


# -------------------------------------------------------------------------------- refusals

@pytest.mark.parametrize("name", ["Adam", "Lamb"])
@pytest.mark.parametrize("indices, values, words", [
    ([0, 7], (2, 4), r"indices\[1\]: expected a row from 0 to 6, got 7$"),
    ([-1, 0], (2, 4), r"indices\[0\]: expected a row from 0 to 6, got -1$"),
    ([0, 1], (2, 3), r"shape"),
])
def test_refusals(name, indices, values, words):
    weights, opt = variables(), getattr(optimc.keras, name)(0.1)
    opt.build(weights)
    before = numpy([*weights, *opt.variables])
    with pytest.raises(ValueError, match=words):
        opt.apply([slices(np.array(indices), np.ones(values, np.float32), None), tf.ones(3)], weights)
    for value, old in zip(numpy([*weights, *opt.variables]), before, strict=True):
        np.testing.assert_array_equal(value, old)
