"""Tests of compiled steps on tensorflow, which are operations in C (csrc/python/graph.c).  See test_keras.py."""

import gc
import threading
import time

import keras
import numpy as np
import pytest
from keras_cases import BACKEND, NAMES, OPTIONS, gradients, numpy, start, variables

import optimc
import optimc.keras
from optimc import _core
from optimc.keras.backends import Traced, backend

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="of tensorflow")
if BACKEND == "tensorflow":
    import tensorflow as tf

LARGE = (160, 128)                          # 80 KiB in float32: changed in place where that can be
NEED_PYTHON = {"Muon"}


def large(seed=0, dtype="float32"):
    return keras.Variable(np.random.default_rng(seed).standard_normal(LARGE), dtype=dtype, name="large")


def large_gradient(step):
    return np.random.default_rng(1000 + step).standard_normal(LARGE).astype(np.float32)


def compiled(optimizer, weights):
    """A function that steps in a compiled program."""
    optimizer.build(weights)
    return tf.function(lambda grads: optimizer.apply(grads, weights), jit_compile=False)


def operations(step, grads):
    """Counts the nodes of optimc's in the program."""
    graph = step.get_concrete_function(grads).graph.as_graph_def()
    return sum(node.op.startswith("Optimc") for node in graph.node)


def steps(optimizer, weights, apply, count=4, first=0):
    """All that the optimizer has and the weights, after some steps with a large gradient as the last."""
    for k in range(first, first + count):
        apply([tf.constant(g) for g in [*gradients(k), large_gradient(k)][-len(weights):]])
    return numpy([*weights, *optimizer.variables])


def equal(these, those):
    assert len(these) == len(those)
    for one, two in zip(these, those, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_as_through_numpy(name):
    found = []
    for way in ("graph", "arrays"):
        opt, weights = getattr(optimc.keras, name)(**OPTIONS["together"]), [*variables(), large()]
        apply = compiled(opt, weights) if way == "graph" else lambda grads, opt=opt, weights=weights: opt.apply(
            grads, weights)
        found.append(steps(opt, weights, apply))
        if way == "graph":
            grads = [tf.constant(g) for g in [*gradients(0), large_gradient(0)]]
            assert operations(apply, grads) == (0 if name in NEED_PYTHON else 2)
    equal(*found)


@pytest.mark.parametrize(("dtype", "options"), [
    ("float32", {"state_dtype": "bfloat16"}), ("float64", {"state_dtype": "int8"}),
    ("bfloat16", {"check_finite": "raise", "clipnorm": 0.1}),
    ("float64", {"weight_decay": 0.1, "global_clipnorm": 0.5, "cautious": True})], ids=str)
def test_types_and_options(dtype, options):
    found = []
    for way in ("graph", "arrays"):
        weights = [keras.Variable(value, dtype=dtype) for value in start()] + [large(dtype=dtype)]
        opt = optimc.keras.AdamW(0.01, seed=3, **options)
        opt.build(weights)
        apply = compiled(opt, weights) if way == "graph" else lambda grads, opt=opt, weights=weights: opt.apply(
            grads, weights)
        found.append(steps(opt, weights, lambda grads, apply=apply: apply([tf.cast(g, dtype) for g in grads])))
    equal(*([np.asarray(a).view(np.uint8) if a.shape else a for a in part] for part in found))


def test_large_values_are_changed_in_place():
    weight, opt = large(), optimc.keras.Adam(0.1)
    apply = compiled(opt, [weight])
    before = _core._lent_blocks()
    steps(opt, [weight], apply, 5)
    blocks, in_place, shared, filled = np.subtract(_core._lent_blocks(), before)
    assert (blocks, in_place, shared, filled) == (3, 15, 0, 3)


def test_values_that_somebody_holds_are_kept():
    weight, opt = large(), optimc.keras.Adam(0.1)
    twin, plain = large(), optimc.keras.Adam(0.1)
    apply = compiled(opt, [weight])
    kept = []
    for k in range(4):
        kept.append((weight.value.read_value(), numpy([weight])[0]))
        steps(opt, [weight], apply, 1, k)
        steps(plain, [twin], lambda grads: plain.apply(grads, [twin]), 1, k)
    for tensor, array in kept:
        np.testing.assert_array_equal(tensor.numpy(), array)
    equal(numpy([weight]), numpy([twin]))


def test_a_value_that_is_read_before_the_step_is_kept():
    """Gradients are still being computed, in the same program."""
    weight, opt, read = large(), optimc.keras.SGD(0.5), []
    opt.build([weight])

    def slow():
        time.sleep(0.1)
        read.append(weight.value.read_value())
        return large_gradient(0)

    step = tf.function(lambda: opt.apply([tf.py_function(slow, [], tf.float32)], [weight]), jit_compile=False)
    before = _core._lent_blocks()
    for _ in range(3):
        held = numpy([weight])[0]
        step()
        np.testing.assert_array_equal(read[-1].numpy(), held)
    assert np.subtract(_core._lent_blocks(), before)[2] == 2    # shared; the first was not of optimc's memory


@pytest.mark.parametrize("dense", [True, False])
def test_gradients_of_unknown_shape(dense):
    weights, twins = [variables(), large()], [variables(), large()]
    weights, twins = [[*v, w] for v, w in (weights, twins)]
    opt, plain = optimc.keras.SGD(0.5), optimc.keras.SGD(0.5)
    grads = [*gradients(0), large_gradient(0)]
    opt.build(weights)

    def unknown(grad):
        made = tf.numpy_function(lambda: grad, [], tf.float32)
        if dense or grad.ndim < 2:
            return made
        rows = tf.numpy_function(lambda: np.arange(len(grad)), [], tf.int64)
        return tf.IndexedSlices(made, rows, grad.shape)

    tf.function(lambda: opt.apply(list(map(unknown, grads)), weights), jit_compile=False)()
    plain.build(twins)
    plain.apply(list(map(tf.constant, grads)), twins)
    equal(numpy(weights), numpy(twins))


def test_values_that_others_assign():
    weight, other, opt = large(), large(1), optimc.keras.SGD(0.5)
    apply = compiled(opt, [weight])
    for k in range(3):
        weight.assign(other)
        steps(opt, [weight], apply, 1, k)
        np.testing.assert_array_equal(numpy([weight])[0], numpy([large(1)])[0] - np.float32(0.5) * large_gradient(k))
        np.testing.assert_array_equal(numpy([other])[0], numpy([large(1)])[0])
    other.assign(weight)                                        # now it lies over memory of optimc's
    held = numpy([other])[0]
    steps(opt, [weight], apply, 2)
    np.testing.assert_array_equal(numpy([other])[0], held)


def step_of_rows(opt, weights):
    """A function of rows and, for each weight, values."""
    opt.build(weights)
    return lambda rows, *values: opt.apply([tf.IndexedSlices(value, rows, tuple(w.shape))
                                            for value, w in zip(values, weights, strict=True)], weights)


@pytest.mark.parametrize("name", ["Adam", "SGD", "Lamb", "RowwiseAdagrad"])
def test_gradients_of_rows(name):
    """They may be of any number of rows, repeated ones included; Lamb takes none, so they are made dense."""
    found = []
    for way in ("graph", "arrays"):
        weights, opt = [large(), keras.Variable(np.ones((6, 2), np.float32))], getattr(optimc.keras, name)(0.1)
        signature = [tf.TensorSpec([None], tf.int64),
                     *(tf.TensorSpec([None, w.shape[1]], tf.float32) for w in weights)]
        apply = step_of_rows(opt, weights)
        apply = tf.function(apply, signature) if way == "graph" else apply
        for rows in ([3, 1, 3], [0], [5, 5, 5, 2]):
            rng = np.random.default_rng(len(rows))
            apply(tf.constant(rows, tf.int64), *(
                tf.constant(rng.standard_normal((len(rows), w.shape[1])), tf.float32) for w in weights))
        found.append(numpy([*weights, *opt.variables]))
    equal(*found)


def test_values_set_between_steps():
    found = []
    for way in ("graph", "arrays"):
        weights, opt = [*variables(), large()], optimc.keras.SGD(0.5, momentum=0.5)
        apply = compiled(opt, weights) if way == "graph" else lambda grads, opt=opt, weights=weights: opt.apply(
            grads, weights)
        steps(opt, weights, apply, 2)
        opt.learning_rate, opt.momentum, opt.clipvalue = 0.25, 0.75, 0.1
        found.append(steps(opt, weights, apply, 2, 2))
    equal(*found)


def test_eager_and_compiled_steps_take_turns():
    found = []
    for mixed in (True, False):
        weights, opt = [*variables(), large()], optimc.keras.Adam(0.1, gradient_accumulation_steps=3, use_ema=True)
        apply = compiled(opt, weights)
        for k in range(8):
            steps(opt, weights, (lambda grads, opt=opt, weights=weights: opt.apply(grads, weights))
                  if mixed and k % 2 else apply, 1, k)
        found.append(numpy([*weights, *opt.variables]))
    equal(*found)


def test_two_programs_of_one_optimizer():
    weights, opt = [*variables(), large()], optimc.keras.Adam(0.1)
    one, two = compiled(opt, weights), compiled(opt, weights)
    twins, plain = [*variables(), large()], optimc.keras.Adam(0.1)
    for k in range(6):
        steps(opt, weights, one if k % 2 else two, 1, k)
    equal(numpy([*weights, *opt.variables]),
          steps(plain, twins, lambda grads: plain.apply(grads, twins), 6))


@pytest.mark.parametrize("place", [0, 4])
def test_a_step_that_raises_changes_nothing(place):
    weights, opt = [*variables(), large()], optimc.keras.Adam(0.1, check_finite="raise", use_ema=True)
    apply = compiled(opt, weights)
    before = steps(opt, weights, apply, 2)
    grads = [*gradients(2), large_gradient(2)]
    grads[place] = np.full_like(grads[place], np.nan)
    with pytest.raises(tf.errors.OpError, match=rf"FloatingPointError: grads\[{place}\] is not finite"):
        apply([tf.constant(g) for g in grads])
    equal(numpy([*weights, *opt.variables]), before)
    steps(opt, weights, apply, 1, 3)
    assert int(opt.iterations) == 3


def test_a_step_that_is_skipped_changes_nothing():
    weights, opt = [*variables(), large()], optimc.keras.Adam(0.1, check_finite="skip")
    apply = compiled(opt, weights)
    before = steps(opt, weights, apply, 2)
    apply([tf.constant(np.full_like(g, np.inf)) for g in [*gradients(2), large_gradient(2)]])
    equal(numpy([*weights, *opt.variables]), before)


def test_two_threads():
    """Each step of either is whole: SGD with a constant gradient loses steps at most."""
    weight, opt = large(), optimc.keras.SGD(1.0)
    apply, begin = compiled(opt, [weight]), numpy([weight])[0]
    grad = [tf.ones(LARGE)]
    apply(grad)

    def work():
        for _ in range(60):
            apply(grad)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moved = np.round(begin - numpy([weight])[0], 3)
    assert moved.min() == moved.max() and 60 <= moved.max() <= 121


def test_xla_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer=optimc.keras.Adam(), loss="mse", jit_compile=True)
    with pytest.raises(ValueError, match=r"XLA cannot compile a step of optimc: pass jit_compile=False"):
        model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)


def test_an_optimizer_that_is_gone():
    weights, opt = [*variables(), large()], optimc.keras.SGD(0.1)
    apply = compiled(opt, weights)
    steps(opt, weights, apply, 1)
    opt._stepper.home = None
    gc.collect()
    before = numpy(weights)
    with pytest.raises(tf.errors.FailedPreconditionError, match="the optimizer of this compiled step is gone"):
        steps(opt, weights, apply, 1)
    equal(numpy(weights), before)


def fitted(**keywords):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(200, activation="relu"),
                              keras.layers.Dense(200), keras.layers.Dense(1)])
    model.compile(optimizer=optimc.keras.Adam(0.01), loss="mse", **keywords)
    x = np.linspace(-1, 1, 640, dtype=np.float32).reshape(64, 10)
    model.fit(x, x.sum(1), batch_size=8, epochs=2, verbose=0, shuffle=False)
    return model


def test_models_that_are_rebuilt_leave_nothing():
    fitted()
    keras.backend.clear_session()
    gc.collect()
    before = _core._lent_blocks()[0], len(Traced.known)
    for _ in range(3):
        fitted()
    keras.backend.clear_session()
    gc.collect()
    assert (_core._lent_blocks()[0], len(Traced.known)) <= before


def test_fit_by_operations_and_by_callback(monkeypatch):
    one, two = fitted(), fitted(steps_per_execution=4)
    monkeypatch.setattr(type(backend), "why_no_operations", "TensorFlow has no TF_NewTensor")
    three = fitted()
    for other in (two, three):
        equal(numpy([*one.weights, *one.optimizer.variables]), numpy([*other.weights, *other.optimizer.variables]))


def test_saved_programs(tmp_path):
    model = fitted()
    x = np.ones((2, 10), np.float32)
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    loaded = keras.models.load_model(tmp_path / "model.keras")
    equal(numpy(loaded.optimizer.variables), numpy(model.optimizer.variables))
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_array_equal(exported.serve(x), model(x))


def test_what_is_in_use_can_be_asked(monkeypatch, capsys):
    optimc.keras.show_config()
    assert "compiled steps: operations in C" in capsys.readouterr().out
    monkeypatch.setattr(type(backend), "why_no_operations", "TensorFlow has no TF_NewTensor")
    optimc.keras.show_config()
    assert "callback" in (said := capsys.readouterr().out) and "TF_NewTensor" in said
