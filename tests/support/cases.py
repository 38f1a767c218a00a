"""The cases that the generic tests enumerate, drawn from the registry: no generic test names an optimizer.

A case is a class with arguments that reach one kernel; together the cases reach every kernel.
"""

import warnings

import numpy as np

import optimc
from optimc import _core
from optimc.base.arguments import Value, is_switch
from optimc.registry import classes

DTYPES = (np.float32, np.float64)

#: a warning of some cases of SGD; conftest.py tells pytest, and this line jobs in other processes
EXPECTED_WARNING = r"SGD\(nesterov=True\) without momentum"
warnings.filterwarnings("ignore", EXPECTED_WARNING, UserWarning)

#: kernels whose formula holds what is not + - x / and square root, and how far from the oracle they may
#: be, as a share of the largest value.  A power's last bit is the C library's, and what Ftrl subtracts makes
#: more of it; in float32 it is rounded from double, so there the bits are the same.  A matrix product is
#: the BLAS's, which sums in its own order.
BOUNDS = {"ftrl_power": {np.float64: 1e-10}, "muon": {np.float32: 3e-3, np.float64: 1e-11}}


#: rules that look at a weight as a whole, so that a part of one is another weight
WHOLE_WEIGHTS = {cls._rule for cls in classes.values() if not cls._elementwise}

#: flags that choose no kernel: one is Keras's and has no effect, one looks at names that these weights lack,
#: one is tested among the options
NO_EFFECT = {"relative_step", "exclude_embeddings", "cautious"}


class Case:
    """A class and the arguments that differ from its defaults.

    `slots` and `kernel` are those of a vector; some optimizers treat matrices differently.
    """

    def __init__(self, cls, arguments):
        self.cls, self.arguments = cls, arguments
        self.optimizer = self.make()
        vector = np.ones(1, np.float32)
        self.kernel, self.slots = self.kernel_of(vector), self.slots_of(vector)
        self.has_scalars = bool(_core.rules[cls._rule][3])

    def make(self, **more):
        return self.cls(**{**self.arguments, **more})

    def kernel_of(self, weight):
        return self.optimizer._kernel_of(None, weight)

    def slots_of(self, weight):
        """Names of the slots a weight has, without those that are room to work in."""
        _, rule, mask = _core.kernels[self.kernel_of(weight)]
        return [name for k, name in enumerate(_core.rules[rule][0])
                if mask >> k & 1 and name not in self.cls._scratch_slots]

    def __repr__(self):
        return "-".join([self.cls.__name__, *(f"{name}={value}"
                                              for name, value in self.arguments.items())])


def _choices(cls):
    """Sets of arguments: no flag, each alone, all; each with no second value, each alone, all."""
    own = {name: argument for name, argument in cls._arguments.items() if name not in vars(optimc.Optimizer)}
    flags = [name for name, argument in own.items() if is_switch(argument) and name not in NO_EFFECT]
    seconds = {name: argument.also for name, argument in own.items()
               if isinstance(argument, Value) and argument.also is not None}
    alone = [{}, *({name: value} for name, value in seconds.items())]
    for switched in [(), *((name,) for name in flags), *([tuple(flags)] if len(flags) > 1 else [])]:
        turned = {name: not own[name].default for name in switched}
        for values_ in alone + ([seconds] if len(seconds) > 1 else []):
            yield {**turned, **values_}


def exact_cases():
    """Those whose vectors have the oracle's bits, in every dtype."""
    return [case for case in CASES if case.kernel not in BOUNDS]


def all_cases():
    return [Case(cls, arguments) for cls in classes.values() for arguments in _choices(cls)]


CASES = all_cases()


#: sets of base options, by a name for each
OPTIONS = {
    "decay": {"weight_decay": 0.02},
    "clipnorm": {"clipnorm": 3.0},
    "clipnorm of 1": {"clipnorm": 1.0},
    "clipvalue": {"clipvalue": 0.5},
    "global clipnorm": {"global_clipnorm": 2.0},
    "clips that do nothing": {"global_clipnorm": 1e9},
    "clip off": {"clipnorm": 0.0},
    "clip below 0": {"clipvalue": -1.0},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
    "ema overwritten": {"use_ema": True, "ema_overwrite_frequency": 3},
    "loss scale": {"loss_scale_factor": 1024.0},
    "odd loss scale": {"loss_scale_factor": 1000.0},
    "odd loss scale, clipped": {"loss_scale_factor": 7.0, "clipnorm": 0.1},
    "loss scale, clipped": {"loss_scale_factor": 8.0, "clipnorm": 0.1},
    "loss scale, clipped globally": {"loss_scale_factor": 8.0, "global_clipnorm": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation, ema": {"gradient_accumulation_steps": 3, "use_ema": True, "ema_momentum": 0.5,
                          "ema_overwrite_frequency": 2},
    "coupled decay": {"weight_decay": 0.02, "coupled_weight_decay": True},
    "coupled decay, clipped to 1": {"weight_decay": 0.02, "coupled_weight_decay": True, "clipnorm": 1.0},
    "coupled decay, clipped": {"weight_decay": 0.02, "coupled_weight_decay": True, "global_clipnorm": 1.0},
    "coupled without decay": {"coupled_weight_decay": True, "clipvalue": 0.5},
    "decay as a factor": {"weight_decay": 0.02, "decay_as_factor": True},
    "decay as a factor, everything": {"weight_decay": 0.1, "decay_as_factor": True, "clipvalue": 0.5, "use_ema": True,
                                      "gradient_accumulation_steps": 2},
    "maximize": {"maximize": True},
    "maximize all": {"maximize": True, "weight_decay": 0.1, "coupled_weight_decay": True, "clipvalue": 0.5,
                     "loss_scale_factor": 4.0, "gradient_accumulation_steps": 2},
    "everything": {"weight_decay": 0.1, "global_clipnorm": 1.0, "use_ema": True, "ema_momentum": 0.9,
                   "ema_overwrite_frequency": 4, "loss_scale_factor": 3.0,
                   "gradient_accumulation_steps": 2},
    "everything per weight": {"weight_decay": 0.1, "clipnorm": 1.0, "use_ema": True,
                              "loss_scale_factor": 4.0, "gradient_accumulation_steps": 2},
}


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


def assert_equal(case, got, expected, what=""):
    """The same bits, or within the bound of the kernel."""
    bound = BOUNDS.get(case.kernel_of(expected), {}).get(got.dtype.type)
    if bound is None:
        assert_same_bits(got, expected, what)
        return
    finite = np.isfinite(expected)
    assert (np.isfinite(got) == finite).all(), what
    if finite.any():
        error, most = np.abs(got[finite] - expected[finite]).max(), np.abs(expected[finite]).max()
        assert error <= bound * most, f"{what}: {error / most} of the largest value, not {bound}"


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
    """Slot name -> arrays, None for weights without; without room to work in."""
    return {name: list(arrays) for name, arrays in optimizer._slots.items()
            if name not in optimizer._scratch_slots}


__all__ = [
    "CASES",
    "DTYPES",
    "OPTIONS",
    "WHOLE_WEIGHTS",
    "Case",
    "Guarded",
    "assert_equal",
    "assert_same_bits",
    "bits",
    "exact_cases",
    "slots_of",
    "values",
]
