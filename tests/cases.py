"""What the generic tests enumerate, drawn from the registry: no test names an optimizer.

A case is a class with arguments that reach one kernel; together the cases reach every kernel.
"""

import itertools

import numpy as np

import optimc
from optimc import _core
from optimc.arguments import Value, is_switch
from optimc.registry import classes

DTYPES = (np.float32, np.float64)


class Case:
    """A class, the arguments that differ from its defaults, and the kernel they ask for."""

    def __init__(self, cls, arguments):
        self.cls, self.arguments = cls, arguments
        self.kernel = self.make()._kernel()
        self.slots = [name for k, name in enumerate(cls._slot_names)
                      if _core.kernels[self.kernel][2] >> k & 1]

    def make(self, **more):
        return self.cls(**{**self.arguments, **more})

    def __repr__(self):
        return "-".join([self.cls.__name__, *(f"{name}={value}"
                                              for name, value in self.arguments.items())])


def _choices(cls):
    """The arguments that choose a kernel: flags, and hyperparameters that are off at 0."""
    for name, argument in cls._arguments.items():
        if name in vars(optimc.Optimizer):
            continue
        if is_switch(argument):
            yield name, (False, True)
        elif isinstance(argument, Value) and argument.default == 0:
            yield name, (0.0, 0.9)


def all_cases():
    cases = []
    for cls in classes.values():
        names, values = zip(*_choices(cls), strict=True) if list(_choices(cls)) else ((), ())
        for chosen in itertools.product(*values):
            arguments = {name: value for name, value in zip(names, chosen, strict=True)
                         if value != cls._arguments[name].default}
            cases.append(Case(cls, arguments))
    return cases


CASES = all_cases()


def bits(array):
    """The array's bits as integers, every NaN alike (which NaN an operation gives is not IEEE's)."""
    words = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").copy()
    words[np.isnan(array).reshape(words.shape)] = -1 % 2 ** (8 * array.dtype.itemsize)
    return words


def assert_same_bits(got, expected, what=""):
    assert got.dtype == expected.dtype and got.shape == expected.shape, what
    different = np.flatnonzero(bits(got).ravel() != bits(expected).ravel())
    assert not different.size, (
        f"{what}: {different.size} of {got.size} differ, first at {different[0]}: "
        f"{got.ravel()[different[0]]!r} instead of {expected.ravel()[different[0]]!r}")


CANARY = 0xA5


class Guarded:
    """An array inside a larger buffer of canary bytes, starting `offset` elements past a cache line."""

    def __init__(self, values, offset=0, order="C"):
        values = np.asarray(values)
        size = values.dtype.itemsize
        self.buffer = np.full(values.nbytes + 64 * 5, CANARY, np.uint8)
        self.start = -self.buffer.ctypes.data % 64 + 64 + offset * size
        self.array = np.ndarray(values.shape, values.dtype, self.buffer, self.start, order=order)
        self.array[...] = values

    def assert_intact(self):
        end = self.start + self.array.nbytes
        assert (self.buffer[:self.start] == CANARY).all(), "written before the array"
        assert (self.buffer[end:] == CANARY).all(), "written behind the array"


SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-39, 3e38, -3e38, 1e-20, 1e20]


def values(rng, shape, dtype, special=False):
    """Random numbers of very different sizes; with `special`, the rare ones too."""
    numbers = rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 3, shape)
    if special:
        where = rng.random(shape) < 0.3
        numbers = np.where(where, rng.choice(SPECIAL, shape), numbers)
    with np.errstate(over="ignore"):
        return np.asarray(numbers, dtype)


def slots_of(optimizer):
    return {name: list(arrays) for name, arrays in optimizer._slots.items()}


__all__ = ["CASES", "DTYPES", "Case", "Guarded", "assert_same_bits", "bits", "optimc", "slots_of", "values"]
