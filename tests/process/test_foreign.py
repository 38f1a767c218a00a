"""Steps that threads of frameworks take by an optimizer's number, without the GIL, beside Python's threads.

Those that step need a build with OPTIMC_PLANT=1, which .ci/sanitize makes; the frameworks' own are in tests/adapters.
"""

import gc
import threading

import numpy as np
import pytest

import optimc
from optimc import _core

needs_steps = pytest.mark.skipif(not hasattr(_core, "_foreign_steps"), reason="not built with OPTIMC_PLANT=1")
SHAPES = ((300, 200), (7,))


class Program:
    """An optimizer, and arrays of another program that it steps."""

    def __init__(self, **arguments):
        rng = np.random.default_rng(0)
        self.optimizer = optimc.Adam(**arguments)
        self.optimizer.build([np.empty(shape, np.float32) for shape in SHAPES])
        self.number = self.optimizer._open_foreign(self.places(), False)
        self.weights = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
        self.arrays = (*self.weights, *(np.zeros(shape, np.float32) for _ in range(2) for shape in SHAPES))
        self.grads = tuple(rng.standard_normal(shape).astype(np.float32) for shape in SHAPES)

    def places(self):
        return tuple((i, part) for part in (_core.PART_WEIGHT, 0, 1) for i in range(len(SHAPES)))

    def step(self, steps):
        return _core._foreign_steps(self.number, steps, self.arrays, self.grads)


def start(*functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    return threads


def test_numbers_are_new():
    first, other = Program(), Program()
    assert other.number > first.number
    assert first.optimizer._open_foreign(first.places(), False) == first.number
    del first
    gc.collect()
    assert Program().number > other.number


def test_places_are_checked():
    optimizer = Program().optimizer
    for places, error in [(((5, -1),), IndexError), (((0, 99),), IndexError), (((0, -1), (0, -1)), ValueError),
                          ((3,), TypeError), ([], TypeError)]:
        with pytest.raises(error):
            optimizer._open_foreign(places, False)
    with pytest.raises(ValueError, match="not built"):
        optimc.Adam()._open_foreign((), False)


def test_several_calls_are_one_turn():
    program, seen = Program(), []
    optimizer = program.optimizer

    def several():
        optimizer.build(program.weights)
        optimizer.clipvalue = 0.5
        optimizer.apply(program.grads)
        optimizer._alone(seen.append, 1)
        optimizer._locked(seen.append, 2)
        with pytest.raises(RuntimeError, match="while one is in progress"):
            optimizer._locked(optimizer.apply, program.grads)
        return optimizer.iterations

    assert optimizer._alone(several) == 1 and seen == [1, 2]
    with pytest.raises(TypeError):
        optimizer._alone()
    optimizer.apply(program.grads)


@needs_steps
def test_steps_have_the_same_bits():
    program, other = Program(clipnorm=1.0), Program(clipnorm=1.0)
    assert program.step(5) == 5
    other.optimizer.build(other.weights)
    for _ in range(5):
        other.optimizer.apply(other.grads)
    for mine, plain in zip(program.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, plain)
    assert program.optimizer.iterations == 5


@needs_steps
def test_python_sets_and_steps_meanwhile():
    program, done = Program(), []
    optimizer, own = program.optimizer, [np.zeros(shape, np.float32) for shape in SHAPES]

    def change():
        for i in range(300):
            optimizer.clipvalue = 1.0 + i
            optimizer.learning_rate = 0.001
            done.append((optimizer.iterations, optimizer.clipvalue))
            optimizer._get_running()

    def rebuild():
        for _ in range(30):
            optimizer._alone(lambda: (optimizer.build(own), optimizer.apply(program.grads)))

    for thread in start(lambda: program.step(300), change, rebuild, lambda: program.step(300)):
        thread.join()
    assert len(done) == 300


@needs_steps
def test_an_optimizer_goes_while_it_is_stepped():
    for _ in range(20):
        program, done = Program(), []
        optimizer, program.optimizer = program.optimizer, None
        threads = start(*[lambda program=program, done=done: done.append(program.step(10**9)) for _ in range(3)])
        while not optimizer.iterations:
            pass
        del optimizer
        for thread in threads:
            thread.join()
        assert sum(done) > 0
        assert program.step(1) == 0
