"""The leak loop: calls that succeed and calls that are refused, over and over; nothing may stay behind.

    python tests/process/leaks.py                       every call, a table of what each left per call
    python tests/process/leaks.py --rounds 20000        for longer
    python tests/process/leaks.py --plant memory        with a leak on purpose (built with OPTIMC_PLANT=1): must fail

Three measures, since each is blind to something: traced memory (Python's allocators), resident memory (everything,
but coarsely) and reference counts of all arguments and of what Python code shares.
"""

import argparse
import copy
import ctypes
import gc
import io
import os
import pickle
import sys
import tempfile
import tracemalloc
import warnings

import numpy as np

import optimc
from optimc import _core
from optimc.registry import classes

SHAPES = {"kernel": (7, 5), "bias": (5,), "scalar": (), "none": (0, 3)}
#: bytes per call that are noise: a page or two of an arena, the free lists of the interpreter
RESIDENT, TRACED = 60.0, 32.0
BLOCKS = 3


def arrays(dtype=np.float32, value=1.0):
    return {name: np.full(shape, value, dtype) for name, shape in SHAPES.items()}


def build_and_step(cls, **arguments):
    def call(weights, grads):
        optimizer = cls(**arguments)
        optimizer.apply(grads, weights)
        optimizer.apply(list(grads.values()), list(weights.values()))
    return call


def on_one(optimizer, action):
    """A call on an optimizer that stays."""
    optimizer.build(ANCHORED)
    return lambda weights, grads: action(optimizer, weights, grads)


def refused(optimizer, error, change):
    """A step that is refused, of an optimizer that stays and of one that is being built."""
    optimizer.build(ANCHORED)

    def call(weights, grads):
        for one, own in ((optimizer, ANCHORED), (type(optimizer)(check_finite=optimizer.check_finite), weights)):
            own, given = dict(own), dict(grads)
            change(own, given)
            try:
                one.apply(given, own)
            except error:
                continue
            raise AssertionError("accepted")
    return call


def failing_schedule(weights, grads):
    for value in (lambda: 1 / 0, lambda: "x", lambda: -1.0, lambda: float("nan")):
        try:
            optimc.Adam(value).apply(grads, weights)
        except (ZeroDivisionError, TypeError, ValueError):
            continue
        raise AssertionError("accepted")


def save_and_load(optimizer, weights, grads):
    path = os.path.join(FOLDER, "x")
    optimizer.save(path)
    optimc.load(path).apply(grads, weights)


def load_damaged(optimizer, weights, grads):
    path = os.path.join(FOLDER, "y")
    optimizer.save(path)
    for at in (9, -1):
        with open(path, "rb+") as file:
            file.seek(at, io.SEEK_SET if at >= 0 else io.SEEK_END)
            byte = file.read(1)
            file.seek(-1, io.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        try:
            optimc.load(path)
        except optimc.CheckpointError:
            continue
        raise AssertionError("accepted")


def set_bad_values(optimizer, weights, grads):
    for name, value in (("learning_rate", -1), ("learning_rate", "x"), ("clipnorm", float("nan")), ("beta_1", 2)):
        try:
            setattr(optimizer, name, value)
        except (TypeError, ValueError):
            continue
        raise AssertionError("accepted")


def wrapped(wrapper, bad):
    def call(weights, grads):
        given = {**grads, "kernel": np.full(SHAPES["kernel"], np.inf, np.float32)} if bad == "inf" else dict(grads)
        if bad == "shape":
            given["bias"] = np.ones(2, np.float32)
        try:
            wrapper.apply(given, ANCHORED)
        except ValueError:
            assert bad == "shape"
    return call


def change_settings(optimizer, weights, grads):
    optimizer.learning_rate = 0.1
    optimizer.learning_rate = optimc.schedules.CosineDecay(0.1, 10)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply(grads, ANCHORED)
    optimizer.iterations = 3
    optimizer.load_state_dict(optimizer.state_dict())


def cases():
    everything = dict(weight_decay=0.1, global_clipnorm=1.0, use_ema=True, ema_overwrite_frequency=2,
                      gradient_accumulation_steps=2, loss_scale_factor=2.0)
    for name, cls in classes.items():
        yield f"{name}, built and stepped", build_and_step(cls)
        yield f"{name} with every option", build_and_step(cls, **everything)
    yield "gradients to cast", on_one(optimc.Adam(), lambda optimizer, weights, grads: optimizer.apply(
        {name: grad.astype(np.float16)[...] for name, grad in grads.items()}, ANCHORED))
    yield "gradients of other libraries", on_one(optimc.Adam(), lambda optimizer, weights, grads: optimizer.apply(
        {name: memoryview(grad) if grad.size else grad for name, grad in grads.items()}, ANCHORED))
    yield "some missing", on_one(optimc.Adam(), lambda optimizer, weights, grads: optimizer.apply(
        {**grads, "bias": None}, ANCHORED))
    yield "copies", on_one(optimc.Adam(), lambda optimizer, weights, grads: (
        copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), optimizer.get_config(), repr(optimizer)))
    yield "save and load", on_one(optimc.Adam(), save_and_load)
    yield "load of damaged files", on_one(optimc.Adam(), load_damaged)
    yield "settings", on_one(optimc.AdamW(), change_settings)
    yield "bad settings", on_one(optimc.Adam(), set_bad_values)
    yield "failing schedules", failing_schedule
    for what, error, change in (
            ("a bad shape", ValueError, lambda own, given: given.update(bias=np.ones(9, np.float32))),
            ("a bad dtype", TypeError, lambda own, given: given.update(bias=np.ones(5, int))),
            ("no array", TypeError, lambda own, given: given.update(bias=[1.0] * 5)),
            ("a bad weight", TypeError, lambda own, given: own.update(bias=np.ones(5, int))),
            ("a weight twice", ValueError, lambda own, given: own.update(bias=own["kernel"].reshape(-1)[:5])),
            ("an overlap", ValueError, lambda own, given: given.update(bias=own["bias"])),
            ("no gradients", ValueError, lambda own, given: given.update(dict.fromkeys(given))),
            ("other keys", ValueError, lambda own, given: given.update({"x": given.pop("bias")}))):
        yield f"refused: {what}", refused(optimc.Adam(), error, change)
    yield "refused: not finite", refused(optimc.Adam(check_finite="raise"), FloatingPointError,
                                         lambda own, given: given.update(bias=np.full(5, np.nan, np.float32)))
    for bad in ("", "inf", "shape"):
        yield f"loss scale {bad}", wrapped(optimc.LossScaleOptimizer(optimc.Adam(), 8.0, 3), bad)
        yield f"routed {bad}", wrapped(optimc.MultiOptimizer(optimc.OptimizerMap(
            optimc.Adam(check_finite="skip"), {"bias": optimc.Muon(), "scalar": optimc.SGD()})), bad)


def resident():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(call, rounds, plant):
    """Measures each call: the traced bytes, resident bytes and references that it leaves behind."""
    weights, grads = arrays(), arrays(value=0.5)
    watched = [weights, grads, *weights.values(), *grads.values(), *ANCHORED.values(), None, True, False, (), "",
               np.dtype(np.float32), np.dtype(np.float64), _core.Optimizer]

    def repeat(n):
        for _ in range(n):
            call(weights, grads)
            if plant:
                _core._plant(plant, grads)
        gc.collect()

    def counts():
        return np.array([sys.getrefcount(thing) for thing in watched])

    readings = np.zeros((2, BLOCKS + 1))
    tracemalloc.start()
    repeat(rounds)
    references = counts()
    for block in range(BLOCKS + 1):
        readings[0, block] = tracemalloc.get_traced_memory()[0]
        if block < BLOCKS:
            repeat(rounds)
    counted = np.abs(counts() - references).max() / (rounds * BLOCKS)
    tracemalloc.stop()
    for block in range(BLOCKS + 1):
        readings[1, block] = resident()
        if block < BLOCKS:
            repeat(rounds)
    # what leaks grows in every block; a cache, or an arena, in one
    traced, held = np.diff(readings).min(axis=1) / rounds
    return traced, held, counted


def main():
    parser = argparse.ArgumentParser(description="The leak loop.")
    parser.add_argument("--rounds", type=int, default=100, help="calls between two readings (default: %(default)s)")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--plant", help="leak on purpose: memory, block or reference")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    leaks = 0
    for name, call in cases():
        if options.only not in name:
            continue
        for rounds in (options.rounds, 5 * options.rounds):     # noise does not grow with the calls, a leak does
            traced, held, references = measure(call, rounds, options.plant)
            leaking = traced > TRACED or held > RESIDENT or references > 0.5
            if not leaking:
                break
        leaks += leaking
        print(f"{name:40} traced {traced:8.2f}  resident {held:8.1f}  references {references:5.2f}"
              f"{'  LEAK' if leaking else ''}")
    print(f"{leaks} leaks")
    return int(leaks > 0)


ANCHORED = arrays()                                     # weights that optimizers stay bound to

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as FOLDER:
        sys.exit(main())
