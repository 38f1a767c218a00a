"""Gradients of every float type, byte order and layout are read as a cast would, and never changed."""

import warnings

import ml_dtypes
import numpy as np
import pytest
from cases import WHOLE_WEIGHTS, Guarded, assert_same_bits, values

import optimc

TYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.longdouble]


def step_with(grad, shape, dtype, order="C"):
    """The weight after two steps with `grad`, and after two steps with its plain cast."""
    after = []
    for g in (grad, np.asarray(grad, order="C").astype(dtype)):
        w = np.asarray(np.linspace(-1, 1, int(np.prod(shape))).reshape(shape), dtype, order=order)
        optimizer = optimc.Adam(0.1)
        optimizer.apply([g], [w])
        optimizer.apply([g], [w])
        after.append(w)
    return after


@pytest.mark.parametrize("source", TYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (600,), (3, 300), (5, 1, 7, 9), (257, 3)])
def test_every_type_and_layout_is_read_like_a_cast(source, shape, dtype):
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        plain = values(rng, shape, np.float64, special=True).astype(source)
    flipped = plain[tuple(slice(None, None, -1) for _ in shape)]
    wide = np.zeros((*shape, 3), source)
    wide[..., 1] = plain
    layouts = {"plain": plain, "fortran": np.array(plain, order="F"), "reversed": flipped,
               "strided": wide[..., 1], "transposed": plain.T.copy().T,
               "broadcast": np.broadcast_to(plain.ravel()[:1].reshape((1,) * len(shape)), shape)}
    if source is not ml_dtypes.bfloat16:
        layouts["swapped"] = plain.astype(plain.dtype.newbyteorder())
    read_only = plain.copy()
    read_only.flags.writeable = False
    layouts["read-only"] = read_only
    raw = np.zeros(plain.nbytes + 1, np.uint8)
    layouts["unaligned"] = np.ndarray(shape, source, raw, 1)
    layouts["unaligned"][...] = plain
    for order in "CF":
        for name, grad in layouts.items():
            before = grad.tobytes()
            with np.errstate(all="ignore"):
                got, expected = step_with(grad, shape, dtype, order)
            assert_same_bits(got, expected, f"{name}, order {order}")
            assert grad.tobytes() == before, name


def test_all_halves_are_read_exactly():
    halves = np.arange(2 ** 16, dtype=np.uint16)
    for source in (np.float16, ml_dtypes.bfloat16):
        grad = halves.view(source)
        w = np.zeros(2 ** 16, np.float32)
        optimc.SGD(1.0).apply([grad], [w])
        with np.errstate(all="ignore"):
            assert_same_bits(w, np.float32(0) - grad.astype(np.float32), source.__name__)


def test_gradients_may_overlap_one_another():
    grad = np.ones(5, np.float32)
    weights = [np.zeros(5, np.float32), np.zeros(4, np.float32)]
    optimc.SGD(1.0).apply([grad, grad[1:]], weights)
    assert all((w == -1).all() for w in weights)


def test_objects_that_offer_an_array_are_gradients():
    class Foreign:
        def __array__(self, dtype=None, copy=None):
            return np.full(3, 2.0, np.float32)

    w = np.zeros(3, np.float32)
    optimc.SGD(1.0).apply({"w": Foreign()}, {"w": w})
    assert (w == -2).all()
    optimc.SGD(1.0).apply((memoryview(np.ones(3, np.float32)),), (w,))
    assert (w == -3).all()


def test_a_gradient_may_be_reshaped_while_it_is_read(monkeypatch):
    def reshape(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grad.shape = (600, 2, 1)
        kept.extend(np.empty((3, 5), np.int8) for _ in range(64))

    grad, kept = np.arange(2400.0).reshape(600, 4)[:, ::2], []
    weights = [np.zeros((600, 2), np.float32), np.ones(1, np.float32)]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", reshape)
        optimc.SGD(1.0).apply([grad, None], weights)
    assert kept
    assert_same_bits(weights[0], np.float32(0) - grad[..., 0].astype(np.float32))


@pytest.mark.parametrize("order", "CF")
def test_weights_in_either_order(case, order, dtype):
    if case.cls._rule in WHOLE_WEIGHTS and order == "F":
        pytest.skip("sums over the whole weight, in memory order")
    rng = np.random.default_rng(5)
    start, grads = values(rng, (30, 40), dtype), [values(rng, (30, 40), dtype) for _ in range(3)]
    flat, shaped = case.make(), case.make()
    w, guarded = start.copy(), Guarded(start, offset=3, order=order)
    for g in grads:
        flat.apply([g], [w])
        shaped.apply([np.asarray(g, order="F")], [guarded.array])
    assert_same_bits(guarded.array, w)
    guarded.assert_intact()
