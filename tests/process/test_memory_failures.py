"""The N-th allocation fails, for every N: a call is whole or changed nothing."""

import copy
import ctypes
import functools
import gc
import os
import sys
import types

import ml_dtypes
import numpy as np
import pytest

import optimc
from optimc.registry import classes

hooks = pytest.importorskip("_testcapi", reason="this interpreter cannot make allocations fail")

OPTIONS = {"plain": {}, "options": {"weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True,
                                    "gradient_accumulation_steps": 2}}
MOST = 20_000               # allocations of a call: no call of these tests makes a tenth of that


def loss_scaled(**options):
    options.pop("gradient_accumulation_steps", None)
    return optimc.LossScaleOptimizer(optimc.Adam(**options), initial_scale=2.0, dynamic_growth_steps=1)


def narrow(**options):
    return optimc.Adam(state_dtype={"m": "bfloat16", "v": "int8"}, **options)


def made(cls, options, steps):
    """An optimizer after some steps, its weights and gradients, one converted and one strided on the way."""
    rng = np.random.default_rng(0)
    dtype = ml_dtypes.bfloat16 if cls is narrow else np.float32
    weights = [rng.standard_normal(shape).astype(dtype) for shape in [(10, 64), (64,), (3, 2)]]
    grads = [rng.standard_normal(w.shape).astype(np.float32) for w in weights]
    grads[1] = grads[1].astype(np.float64)
    grads[2] = np.asfortranarray(grads[2])
    optimizer = cls(**OPTIONS[options])
    for _ in range(steps):
        optimizer.apply(grads, weights)
    return optimizer, weights, grads


@pytest.fixture(params=[optimc.Adam, optimc.Adafactor, optimc.Muon, narrow])
def start(request):
    """A vector's slots, a matrix's, room beside them, narrow storage: what a build and what follows it differ in."""
    return functools.partial(made, request.param, "options")


def picture(optimizer, weights):
    """All that a refused call may not change."""
    description, tensors = optimizer._export()
    return [w.tobytes() for w in weights], optimizer.built, repr(description), {
        name: array.tobytes() for name, array in tensors.items()}


def is_of_memory(error):
    """True for a MemoryError, and for an error that CPython or NumPy, not optimc, made of one."""
    if isinstance(error, KeyError) and isinstance(error.args[0], np.dtype):
        return True                         # without memory NumPy calls equal dtypes unequal
    frame = error.__traceback__
    while frame.tb_next:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals["__name__"]
    return isinstance(error, MemoryError) or "can't allocate" in str(error) or "ufunc" in str(error) \
        or not (module == __name__ or module.startswith("optimc"))


def codes_within(code):
    """The code objects of the functions that a function with this code makes: generator expressions, lambdas, ..."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from codes_within(constant)


@functools.cache
def lend_references(modules):
    """Keeps CPython alive where a function object gets no memory; once for each number of loaded modules.

    CPython 3.12 and 3.13 then give up the reference to its code object twice, and crash when its last reference is
    gone.  So each such code object gets references that are never taken back, more than the tests make it lose.
    """
    if sys.version_info < (3, 12):
        return
    codes = {id(code): code for function in gc.get_objects() if type(function) is types.FunctionType
             for code in codes_within(function.__code__)}
    for code in codes.values():
        references = ctypes.c_uint32.from_address(id(code))         # the field that an object begins with
        if references.value < 2 ** 30:                              # and is not immortal
            references.value += 1000


def failing(action, fresh, judge):
    """Calls `action(*fresh())` with allocation 0, 1, 2, … failing until it comes through ten times in a row.

    `judge(failed, *made)` looks at what is left.  Returns how many calls failed.
    """
    action(*fresh())                        # whatever is imported or cached on the way is there from now on
    lend_references(len(sys.modules))
    failures = through = n = 0
    gc.collect()
    gc.disable()
    try:
        while through < 10:
            subject = fresh()
            hooks.set_nomemory(n, n + 1)
            error = None
            try:
                action(*subject)
            except Exception as caught:
                error = caught
            finally:
                hooks.remove_mem_hooks()
            failed = error is not None
            assert not failed or is_of_memory(error), repr(error)
            assert n < MOST, f"it never comes through again: {error!r}"
            judge(failed, *subject)
            failures, through, n = failures + failed, 0 if failed else through + 1, n + 1
    finally:
        gc.enable()
    return failures


def whole_or_nothing(fresh, action):
    """The two outcomes that `failing` accepts: the bytes before the call, or those after an undisturbed one."""
    subject = fresh()
    before = picture(*subject[:2])
    action(*subject)
    after = picture(*subject[:2])

    def judge(failed, optimizer, weights, *_):
        assert picture(optimizer, weights) == (before if failed else after)
    return failing(action, fresh, judge)


def apply(optimizer, weights, grads):
    optimizer.apply(grads, weights)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cls", classes.values())
def test_a_first_step_is_whole_or_nothing(cls, options):
    assert whole_or_nothing(lambda: made(cls, options, 0), apply) > 50


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cls", [*classes.values(), loss_scaled, narrow])
def test_a_later_step_is_whole_or_nothing(cls, options, steps):
    whole_or_nothing(lambda: made(cls, options, steps), apply)


def test_a_build_is_whole_or_nothing(start):
    assert whole_or_nothing(lambda: start(0), lambda optimizer, weights, grads: optimizer.build(weights)) > 50


def test_more_weights_are_whole_or_nothing(start):
    more = np.ones(5, np.float32)
    assert whole_or_nothing(lambda: start(2),
                            lambda optimizer, weights, grads: optimizer.build([*weights, more])) > 50


def test_a_load_is_whole_or_nothing(start):
    held = start(3)[0].state_dict()
    assert whole_or_nothing(lambda: start(2),
                            lambda optimizer, weights, grads: optimizer.load_state_dict(held)) > 50


def test_a_copy_leaves_its_original(start):
    assert whole_or_nothing(lambda: start(2), lambda optimizer, weights, grads: copy.deepcopy(optimizer)) > 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")      # open() drops its file itself
def test_a_save_leaves_the_old_file_or_the_new(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)       # 1700 of them take minutes
    path = tmp_path / "state.safetensors"
    optimizer, weights, grads = made(optimc.Adam, "options", 2)
    old = picture(optimizer, weights)[2:]
    optimizer.save(path)
    optimizer.apply(grads, weights)
    new = picture(optimizer, weights)[2:]
    kept = path.read_bytes()

    def fresh():
        path.write_bytes(kept)
        return (optimizer,)

    def judge(failed, _):
        held = picture(optimizer, weights)
        assert held[2:] == new
        assert picture(optimc.load(path), [])[2:] == (old if failed and path.read_bytes() == kept else new)

    assert failing(lambda optimizer: optimizer.save(path), fresh, judge) > 50
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_harness_notices_a_half_step():
    """A call that writes before it can fail is found."""
    def planted(optimizer, weights, grads):
        weights[0] += 1
        optimizer.build([*weights, np.ones(5, np.float32)])

    with pytest.raises(AssertionError):
        whole_or_nothing(lambda: made(optimc.Adam, "plain", 2), planted)
