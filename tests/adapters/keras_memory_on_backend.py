"""Tests of optimc.keras that depend on a backend: its memory, devices, compilers.  See test_keras.py."""

import types

import keras
import numpy as np
import pytest
from keras_cases import BACKEND, IN_PLACE, gradients, numpy, run, tensors, variables

import optimc
import optimc.keras
from optimc.keras.backends import Traced, backend


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


@pytest.mark.skipif(BACKEND != "torch", reason="of torch")
@pytest.mark.parametrize("by_arrays", [False, True])
@pytest.mark.parametrize("name", ["Adam", "Adafactor"])
@pytest.mark.parametrize("change", ["share", "clone", "clone and back"])
def test_state_of_torch_may_move(name, change, by_arrays):
    """After a move some steps go by tensors, some by arrays: all of them follow."""
    a, b = variables(), variables()
    one, two = (getattr(optimc.keras, name)(0.1, use_ema=True, gradient_accumulation_steps=2) for _ in "ab")
    run(one, a, 2)
    run(two, b, 2)
    held = [v for v in one.variables if v.shape]
    first = [v._value.data for v in held]
    for step in range(2, 14, 3):
        for variable, kept in zip(held, first, strict=True):
            if change == "share":
                variable._value.share_memory_()
            else:
                back = change == "clone and back" and step % 2
                variable._value.data = kept.copy_(variable._value.data) if back else variable._value.data.clone()
        for k in range(3):
            for optimizer, weights in ((one, a), (two, b)):
                some = weights[:2] if by_arrays and k == 1 else weights
                optimizer.apply(tensors(gradients(step + k)[:len(some)]), some)
        for mine, other in zip(numpy([*a, *one.variables]), numpy([*b, *two.variables]), strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.skipif(BACKEND != "torch", reason="of torch")
def test_odd_gradients_of_torch():
    import torch
    results = []
    for make in (lambda g: -g, lambda g: torch.complex(g, g).conj().imag):
        weights, opt = variables(), optimc.keras.Adam(0.1)
        for k in range(4):
            some = weights[:2] if k == 2 else weights                   # by arrays
            opt.apply([make(g) for g in tensors(gradients(k))[:len(some)]], some)
        results.append(numpy(weights))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
    before, gone = numpy(weights), tensors(gradients(9))
    gone[0] = torch.ones(gone[0].shape)
    gone[0].untyped_storage().resize_(0)
    for n in (4, 2):
        with pytest.raises(ValueError, match="memory"):
            opt.apply(gone[:n], weights[:n])
    for one, two in zip(numpy(weights), before, strict=True):
        np.testing.assert_array_equal(one, two)


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
    assert backend.in_buffers
    over, x = fitted(**arguments)
    assert over.optimizer._stepper.kept
    monkeypatch.setattr(backend, "in_buffers", False)
    back, _ = fitted(**arguments)
    assert not back.optimizer._stepper.kept
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
def test_a_compiled_step_in_python_outlives_its_optimizer_only_to_say_so():
    import jax
    weights = variables()
    opt = optimc.keras.Muon(0.5)
    opt.build(weights)
    held = [v.value for v in opt.variables]
    step = jax.jit(lambda held, ws, gs: opt.stateless_apply(held, gs, ws)).lower(
        held, [w.value for w in weights], tensors(gradients(0))).compile()
    assert np.isfinite(numpy(step(held, [w.value for w in weights], tensors(gradients(0)))[0])[0]).all()
    for traced in opt._stepper.kept:                            # as if the optimizer were gone
        del Traced.known[traced.number]
    with pytest.raises(Exception, match="optimizer of this compiled step is gone"):
        numpy(step(held, [w.value for w in weights], tensors(gradients(0)))[0])


@pytest.mark.skipif(BACKEND != "jax", reason="of jax")
def test_sparse_gradients():
    """They are made dense: rows that come twice are added up."""
    from jax.experimental.sparse import BCOO
    rows, values = np.array([3, 1, 3]), np.arange(6, dtype=np.float32).reshape(3, 2)
    dense = np.zeros((5, 2), np.float32)
    np.add.at(dense, rows, values)
    sparse = BCOO((values, rows[:, None]), shape=(5, 2))
    results = []
    for grad in (sparse, keras.ops.convert_to_tensor(dense)):
        weight, opt = keras.Variable(np.ones((5, 2), np.float32)), optimc.keras.Adam(0.1)
        for _ in range(2):
            opt.apply([grad], [weight])
        results += numpy([weight])
    np.testing.assert_array_equal(*results)
