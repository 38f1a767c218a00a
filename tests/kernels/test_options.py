"""The base options, on every optimizer, equal Keras's sequence of operations bit for bit."""

import copy
import threading

import numpy as np
import pytest
from cases import CASES, OPTIONS, Guarded, assert_equal, assert_same_bits, values
from oracle import Reference

import optimc

SIZES = [(40, 33), (1,), (2048,), (), (5000,), (17,), (3, 2, 5, 7)]


def run(case, dtype, arguments, missing=False, special=False, steps=7, excluded=()):
    """Steps optimizer and oracle side by side and compares everything they hold."""
    rng = np.random.default_rng(0)
    optimizer = case.make(**arguments)
    oracle = Reference(optimizer, case.slots_of)
    guarded = [Guarded(values(rng, size, dtype), offset=3 * i) for i, size in enumerate(SIZES)]
    weights = [g.array for g in guarded]
    expected = [w.copy() for w in weights]
    optimizer.build(weights)
    if excluded:
        optimizer.exclude_from_weight_decay([weights[i] for i in excluded])
    for step in range(steps):
        grads = [values(rng, size, dtype, special) for size in SIZES]
        if missing:
            grads = [None if (step + i) % 3 == 0 and i else g for i, g in enumerate(grads)]
        before = [g if g is None else g.copy() for g in grads]
        if any(g is None for g in grads):
            with pytest.warns(UserWarning, match="Gradients do not exist"):
                optimizer.apply(grads, weights)
        else:
            optimizer.apply(grads, weights)
        expected = oracle.step(expected, grads, excluded)
        assert optimizer.iterations == oracle.t
        if oracle.norm is not None:
            assert_same_bits(np.float64(optimizer.last_global_norm), np.float64(oracle.norm))
        for i, (w, e) in enumerate(zip(weights, expected, strict=True)):
            assert_equal(case, w, e, f"step {step}, weight {i}")
            guarded[i].assert_intact()
            for slot in case.slots_of(w):
                assert_equal(case, optimizer._slots[slot][i], oracle.state[i][slot],
                             f"step {step}, slot {slot} of {i}")
            if optimizer.use_ema:
                assert_equal(case, optimizer._averages[i], oracle.averages[i], f"step {step}, average {i}")
            if before[i] is not None:
                assert_same_bits(grads[i], before[i], "the gradient was changed")
    return optimizer, weights


@pytest.mark.parametrize("name", OPTIONS)
def test_options_equal_the_sequence(case, dtype, name):
    run(case, dtype, {**case.arguments, **OPTIONS[name]})


@pytest.mark.parametrize("name", OPTIONS)
def test_options_with_missing_gradients(case, name):
    run(case, np.float32, {**case.arguments, **OPTIONS[name]}, missing=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_with_special_values(case, name):
    run(case, np.float32, {**case.arguments, **OPTIONS[name]}, special=True, steps=3)


@pytest.mark.parametrize("name", ["everything", "everything per weight"])
def test_options_on_every_isa_and_thread_count(case, dtype, isa, threads, name):
    run(case, dtype, {**case.arguments, **OPTIONS[name]}, steps=4)


CAUTIOUS = [case for case in CASES if "cautious" in case.cls._arguments]
CAUTIOUS_OPTIONS = {
    "alone": {},
    "decay": {"weight_decay": 0.1},
    "factor": {"weight_decay": 0.1, "decay_as_factor": True},
    "everything": {"weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True, "ema_overwrite_frequency": 2,
                   "gradient_accumulation_steps": 2},
    "coupled": {"weight_decay": 0.1, "coupled_weight_decay": True, "loss_scale_factor": 2.0, "clipvalue": 1.0},
}


@pytest.mark.parametrize("name", CAUTIOUS_OPTIONS)
@pytest.mark.parametrize("case", CAUTIOUS, ids=repr)
def test_cautious_steps(case, dtype, isa, threads, name):
    run(case, dtype, {**CAUTIOUS_OPTIONS[name], "cautious": True})
    run(case, dtype, {**CAUTIOUS_OPTIONS[name], "cautious": True}, special=True, steps=2)


def test_cautious_steps_rest_where_they_disagree():
    w = np.zeros(4, np.float32)
    optimizer = optimc.SGD(1.0, momentum=0.5, cautious=True)
    optimizer.apply([np.array([4, 4, 4, 4], np.float32)], [w])
    assert w.tolist() == [-4 * np.float32(0.8)] * 4 # all four move: a factor of 4 / (4 + 1)
    w[:] = 0
    optimizer.apply([np.array([-1, 1, 1, 1], np.float32)], [w])
    assert w.tolist() == [0, -3, -3, -3]            # three move, 4 / (3 + 1); the first would go on down


def test_exclusions_from_decay(case):
    run(case, np.float32, {"weight_decay": 0.3}, excluded=(0, 3))


def test_mixed_dtypes_are_clipped_by_one_norm(case):
    rng = np.random.default_rng(4)
    weights = [values(rng, 40, np.float32), values(rng, 50, np.float64)]
    expected = [w.copy() for w in weights]
    optimizer = case.make(global_clipnorm=0.5)
    oracle = Reference(optimizer, case.slots_of)
    for _ in range(3):
        grads = [values(rng, 40, np.float64), values(rng, 50, np.float32)]
        optimizer.apply(grads, weights)
        expected = oracle.step(expected, grads)
        assert optimizer.last_global_norm == oracle.norm
        for w, e in zip(weights, expected, strict=True):
            assert_equal(case, w, e)


@pytest.mark.parametrize("name", OPTIONS)
def test_copies_continue_in_the_middle_of_everything(case, name):
    rng = np.random.default_rng(1)
    shapes = [(30,), (4, 5)]
    optimizer = case.make(**OPTIONS[name])
    weights = [values(rng, shape, np.float32) for shape in shapes]
    grads = [[values(rng, shape, np.float32) for shape in shapes] for _ in range(9)]
    with pytest.warns(UserWarning):
        optimizer.apply([grads[0][0], None], weights)
    for g in grads[:4]:
        optimizer.apply(g, weights)
    other, moved = copy.deepcopy(optimizer), [w.copy() for w in weights]
    for g in grads[4:]:
        optimizer.apply(g, weights)
        other.apply(g, moved)
        for w, m in zip(weights, moved, strict=True):
            assert_same_bits(w, m)
    assert optimizer.iterations == other.iterations


def test_rebuilding_keeps_what_was_accumulated():
    optimizer = optimc.SGD(1.0, gradient_accumulation_steps=2, use_ema=True)
    w = np.zeros(2, np.float32)
    optimizer.apply([np.array([2, 4], np.float32)], [w])
    optimizer.build([moved := w.copy()])
    optimizer.apply([np.zeros(2, np.float32)], [moved])
    assert moved.tolist() == [-1, -2] and optimizer.iterations == 1


def test_averages_are_read_and_put_in(case):
    optimizer, weights = run(case, np.float32, {"use_ema": True, "ema_momentum": 0.5})
    kept, averages = [w.copy() for w in weights], [a.copy() for a in optimizer._averages]
    with optimizer.averaged(weights):
        for w, a in zip(weights, averages, strict=True):
            assert_same_bits(w, a)
        with optimizer.averaged(weights):
            pass
        with pytest.raises(RuntimeError, match=r"^within averaged\(\)"):
            optimizer.apply([np.ones_like(w) for w in weights], weights)
    for w, k in zip(weights, kept, strict=True):
        assert_same_bits(w, k)
    with pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    assert_same_bits(weights[0], kept[0])
    for bad in (weights[:2], [np.zeros_like(w) for w in weights]):
        with pytest.raises(ValueError, match="weights"):
            optimizer.finalize_variable_values(bad)
    optimizer.finalize_variable_values(weights)
    for w, a in zip(weights, averages, strict=True):
        assert_same_bits(w, a)
    plain = case.make()
    with pytest.raises(ValueError, match="not built"), plain.averaged(weights):
        pass
    plain.build(weights)
    assert optimizer.keeps_averages
    if not plain.keeps_averages:
        with pytest.raises(ValueError, match="keeps no averages"), plain.averaged(weights):
            pass


def test_scale_loss():
    assert optimc.SGD().scale_loss(3.0) == 3.0
    assert optimc.SGD(loss_scale_factor=4).scale_loss(3.0) == 12.0


def test_bad_options(case):
    for arguments, error, message in [
            ({"clipnorm": 1.0, "clipvalue": 1.0}, ValueError, "Only one of"),
            ({"clipvalue": 0.0, "global_clipnorm": 0.0}, ValueError, "Only one of"),
            ({"gradient_accumulation_steps": 1}, ValueError, "at least 2, got 1"),
            ({"gradient_accumulation_steps": -2}, ValueError, "at least 2"),
            ({"gradient_accumulation_steps": 2.5}, TypeError, "must be an int or None, got float"),
            ({"gradient_accumulation_steps": True}, TypeError, "must be an int"),
            ({"ema_momentum": 1.5}, ValueError, r"ema_momentum must be in \[0, 1\]"),
            ({"ema_overwrite_frequency": -1}, ValueError, "at least 1"),
            ({"ema_overwrite_frequency": 2.0}, TypeError, "ema_overwrite_frequency"),
            ({"use_ema": 1}, TypeError, "use_ema must be a bool"),
            ({"loss_scale_factor": 0}, ValueError, "loss_scale_factor must be finite and > 0, got 0"),
            ({"check_finite": "no"}, ValueError, "check_finite must be one of 'propagate', 'raise'"),
            ({"name": 3}, TypeError, "name must be a str")]:
        with pytest.raises(error, match=message):
            case.make(**arguments)
    optimizer = case.make(clipnorm=1.0)
    with pytest.raises(ValueError, match="Only one of"):
        optimizer.clipvalue = 2.0
    assert optimizer.clipvalue is None and optimizer.clipnorm == 1.0
    case.make(gradient_accumulation_steps=0, ema_overwrite_frequency=0)


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"global_clipnorm": 1.0}, {"gradient_accumulation_steps": 2},
                                     {"loss_scale_factor": 3.0, "use_ema": True}], ids=str)
def test_gradients_that_are_not_finite(case, policy, bad, options, threads):
    optimizer = case.make(check_finite=policy, **options)
    rng = np.random.default_rng(0)
    weights = {"a": values(rng, 50, np.float32), "b": values(rng, 30_000, np.float32)}
    grads = {k: values(rng, w.shape, np.float32) for k, w in weights.items()}
    for first in (True, False):
        state = [w.copy() for w in weights.values()], optimizer.iterations, optimizer._calls
        slots = copy.deepcopy(optimizer._slots), copy.deepcopy(optimizer._averages)
        wrong = {**grads, "b": grads["b"].copy()}
        wrong["b"][20_001] = bad
        if policy == "raise":
            with pytest.raises(FloatingPointError, match=r"^grads\['b'\] is not finite$"):
                optimizer.apply(wrong, weights)
        else:
            optimizer.apply(wrong, weights)
            assert optimizer.skipped_steps == 2 - first
        for w, k in zip(weights.values(), state[0], strict=True):
            assert_same_bits(w, k)
        assert (optimizer.iterations, optimizer._calls) == state[1:]
        if not first:
            for slot, arrays in slots[0].items():
                assert all((a == b).all() for a, b in zip(arrays, optimizer._slots[slot], strict=True))
        optimizer.apply(grads, weights)
    huge = {k: np.full_like(g, 3e38) for k, g in grads.items()}
    before = optimizer._calls
    state = [w.copy() for w in weights.values()]
    if "global_clipnorm" not in options:
        with np.errstate(all="ignore"):
            optimizer.apply(huge, weights)      # finite, though its norm is not
        assert optimizer._calls == before + 1
        return
    if policy == "raise":
        with pytest.raises(FloatingPointError, match=r"^the norm of grads\['a'\] is not finite$"):
            optimizer.apply(huge, weights)
    else:
        optimizer.apply(huge, weights)
        assert optimizer.skipped_steps == 3
    assert optimizer._calls == before
    for w, k in zip(weights.values(), state, strict=True):
        assert_same_bits(w, k)


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_a_spike_does_not_stay_in_what_is_accumulated(clip):
    w = np.ones(2, np.float32)
    optimizer = optimc.SGD(0.5, gradient_accumulation_steps=2, check_finite="skip", **{clip: 1.0})
    for g in (1e20, 1, 1e20, 1, 1, 1):
        optimizer.apply([np.full(2, g, np.float32)], [w])
    assert optimizer.skipped_steps == 2 and optimizer.iterations == 2
    assert np.isfinite(w).all() and (w < 1).all()


@pytest.mark.parametrize("dtypes,value", [("dd", 1.2e154), ("fd", 1e100)])
def test_a_global_norm_that_a_weight_cannot_read_is_not_finite(dtypes, value):
    weights = [np.ones(1, dtype) for dtype in dtypes]
    grads = [np.full(1, value if dtype == "d" else 1.0, dtype) for dtype in dtypes]
    optimizer = optimc.SGD(0.5, global_clipnorm=1.0, check_finite="raise")
    with pytest.raises(FloatingPointError, match=r"^the norm of all gradients is not finite$"):
        optimizer.apply(grads, weights)
    optimizer.check_finite = "skip"
    optimizer.apply(grads, weights)
    assert [w.tolist() for w in weights] == [[1], [1]] and optimizer.skipped_steps == 1


def test_the_averages_wait_for_a_step_of_another_thread():
    begun, go_on = threading.Event(), threading.Event()

    def rate():
        begun.set()
        go_on.wait(10)
        return 0.5

    w = np.ones(1, np.float32)
    optimizer = optimc.SGD(1.0, use_ema=True)
    optimizer.apply([np.ones(1, np.float32)], [w])
    optimizer.learning_rate = rate
    begun.clear()
    stepping = threading.Thread(target=optimizer.apply, args=([np.ones(1, np.float32)], [w]))
    stepping.start()
    assert begun.wait(10)
    threading.Timer(0.05, go_on.set).start()
    with optimizer.averaged([w]):
        assert optimizer.iterations == 2
    stepping.join()
    assert w.tolist() == [-0.5]


@pytest.mark.parametrize("name", OPTIONS)
def test_groups_that_repeat_what_all_have_change_nothing(case, name):
    rate = case.optimizer.get_config()["learning_rate"]
    groups = [{"weights": [1, 3]}, {"weights": [2], "learning_rate": rate}]
    run(case, np.float32, {**case.arguments, **OPTIONS[name], "groups": groups}, steps=5)


def test_scheduled_betas_use_the_running_product():
    w = np.zeros(1, np.float64)
    betas = [0.5, 0.75, 0.875]
    optimizer = optimc.Adam(1.0, beta_1=lambda: betas[optimizer.iterations], beta_2=0.0, epsilon=0.0)
    m, product = 0.0, 1.0
    for beta in betas:
        m += (1.0 - m) * (1 - beta)
        product *= beta
        before = w[0]
        optimizer.apply([np.ones(1)], [w])
        alpha = 1.0 * np.sqrt(1 - 0.0) / (1 - product)
        assert w[0] == before - m * alpha / 1.0
    twin = copy.deepcopy(optimizer)
    assert twin._get_running() == optimizer._get_running() == ({"products": {"beta_1": product}, "scalars": {}},)
