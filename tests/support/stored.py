"""The oracle of a step in fewer bits: encode(rule(decode(state))), and the ways of storing that the tests enumerate.

`ways_of` draws them from the registry, so a new case is tested in all of them.  `Stored` is the oracle of one.
"""

import functools
import itertools
import zlib
from typing import NamedTuple

import codec_twin as twin
import ml_dtypes
import numpy as np
from cases import BOUNDS, OPTIONS, assert_same_bits, values
from oracle import Reference

import optimc
from optimc import _core
from optimc.base.narrow import choices_of

#: how weights are stored -> their dtype, and the arguments of the optimizer
WEIGHTS = {
    "float32": (np.dtype(np.float32), {}),
    "float64": (np.dtype(np.float64), {}),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), {}),
    "bfloat16 at random": (np.dtype(ml_dtypes.bfloat16), {"master_weights": False}),
    "float16": (np.dtype(np.float16), {}),
}
#: how slots are stored -> the storage of slot number k
SLOTS = {
    "as numbers": lambda k: None,
    "bfloat16": lambda k: "bfloat16",
    "int8": lambda k: "int8",
    "float32": lambda k: "float32",
    "mixed": lambda k: ("bfloat16", "int8", "float32")[k % 3],
    "otherwise mixed": lambda k: ("int8", "float32", "bfloat16")[k % 3],
}
ROUNDINGS = {_core.EXACT: "EXACT", _core.NEAREST: "NEAREST", _core.NEAREST_16: "NEAREST", _core.RANDOM: "RANDOM"}
GRADIENTS = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)
FEW = [(257,), (25, 12), (2, 3, 7), (2100,)]
STEP_OPTIONS = {**OPTIONS, "cautious": {"cautious": True, "weight_decay": 0.1},
                "cautious, coupled": {"cautious": True, "weight_decay": 0.1, "coupled_weight_decay": True,
                                      "gradient_accumulation_steps": 2},
                "checked": {"check_finite": "raise", "weight_decay": 0.1}}


class Way(NamedTuple):
    """A way to store what an optimizer steps: names of WEIGHTS and SLOTS, and whether 16 bits are rounded to nearest.
    """

    weights: str
    slots: str
    to_nearest: bool = False

    def arguments(self, case):
        """The arguments by which a case stores so."""
        chosen = {slot: storable(case, slot, SLOTS[self.slots](k)) for slot, k in narrow_slots(case).items()
                  if SLOTS[self.slots](k)}
        return {**WEIGHTS[self.weights][1], **({"state_dtype": chosen} if chosen else {})}

    @property
    def dtype(self):
        return WEIGHTS[self.weights][0]


def numbered_slots(kernel):
    """The slots that a kernel keeps, with their numbers."""
    _, rule, mask = _core.kernels[kernel]
    return {slot: k for k, slot in enumerate(_core.rules[rule][0]) if mask >> k & 1}


def narrow_slots(case):
    """The slots of a case that may be stored in fewer bits, with their numbers."""
    return {slot: k for kernel in case.optimizer._possible_kernels() for slot, k in numbered_slots(kernel).items()
            if _core.roundings[kernel][k] != _core.EXACT and slot not in case.cls._scratch_slots}


def storable(case, slot, storage):
    """The storage; 16 bits where the slot may not have 8."""
    return "bfloat16" if storage == "int8" and "int8" not in choices_of(case.optimizer, slot) else storage


def ways_of(case):
    """Every way to store a case that is not plain numbers; those that come to the same only once."""
    ways = {}
    for weights, slots in itertools.product(WEIGHTS, SLOTS):
        way = Way(weights, slots)
        arguments = way.arguments(case)
        if slots != "float32" and (arguments or way.dtype not in (np.float32, np.float64)):
            ways.setdefault((weights, *sorted(arguments.get("state_dtype", {}).items())), way)
    return [*ways.values()]


def chosen(case, k):
    """One of the ways to store a case.  Over all cases, each k meets each way."""
    ways = ways_of(case)
    return ways[(zlib.crc32(repr(case).encode()) + 5 * k) % len(ways)]


def has(case, options):
    return set(options) <= set(case.cls._arguments)


def start(case, shapes, dtype):
    """Weights of some shapes, vectors where others have no exact bits; high matrices lie in Fortran order."""
    rng, weights = np.random.default_rng(0), []
    for shape in shapes:
        high = len(shape) == 2 and shape[0] > 2 * shape[1] and case.cls._rule not in _core.factors
        weight = np.array(values(rng, shape, np.float32).astype(dtype), order="F" if high else "C")
        weights.append(weight.ravel() if case.kernel_of(weight) in BOUNDS else weight)
    return weights


def gradients(rng, weights, step, missing=False, special=False):
    """Gradients of all float types, some of them missing."""
    with np.errstate(over="ignore"):
        grads = [values(rng, w.shape, np.float32, special).astype(GRADIENTS[(step + i) % len(GRADIENTS)])
                 for i, w in enumerate(weights)]
    return [None if missing and i and (step + i) % 3 == 0 else g for i, g in enumerate(grads)]


#: as adapters have it: without masters, and slots are rounded as weights are, in their type if no other is given
TO_NEAREST = [Way("bfloat16", "float32", True), Way("float16", "mixed", True), Way("bfloat16", "as numbers", True),
              Way("float16", "as numbers", True)]

numbers_of = functools.lru_cache(4096)(twin.random_numbers)     # many runs have the same


def unrolled(array):
    """An array whose elements lie in C order as those of the given one lie: of one in Fortran order, a vector."""
    return array if array.flags.c_contiguous else array.ravel(order="F")


class Stored(Reference):
    """The twin of an optimizer of which something may be stored in fewer bits.

    It computes with unrolled arrays: sums and blocks follow the order of memory.  `weights` are those of the
    optimizer before its first step; `number` and `begin` choose random numbers.
    """

    def __init__(self, case, optimizer, weights, number=0, begin=0):
        super().__init__(optimizer, case.slots_of)
        self.case, self.seed, self.number, self.begin = case, optimizer.seed, number, begin
        self.storage, self.to_nearest = optimizer.state_dtype or {}, bool(optimizer._to_nearest)
        self.dtypes = [w.dtype for w in weights]
        self.orders = ["C" if w.flags.c_contiguous else "F" for w in weights]
        self.shapes = [unrolled(w).shape for w in weights]
        kinds = [(dtype.name, "to nearest" if self.to_nearest else dtype.name == "float16"
                  or optimizer.master_weights) for dtype in self.dtypes]
        self.codecs = [twin.WEIGHTS.get(kind) for kind in kinds]
        self.reals = [np.dtype(np.float64 if dtype == np.float64 else np.float32) for dtype in self.dtypes]
        self.kernels = [case.kernel_of(unrolled(w)) for w in weights]
        self.codes, self.stored, self.changed = [None for _ in weights], [{} for _ in weights], set()
        for i, w in enumerate(weights):
            self.put_weight(i, unrolled(w).astype(self.reals[i]), 0)
        self.build([self.weight(i) for i in range(len(weights))])

    def random(self, i, t, part):
        size = int(np.prod(self.shapes[i]))
        return numbers_of(self.seed, self.number + i, t, part, size, self.begin)

    def put_weight(self, i, w, t):
        """Encodes weight i: `codes` has the codes and the master, or the numbers and None."""
        self.codes[i] = w, None
        if self.codecs[i]:
            self.codes[i] = self.codecs[i][0](w.ravel(), self.random(i, t, twin.WEIGHT))

    def weight(self, i):
        """Weight i as a step computes with it."""
        if not self.codecs[i]:
            return self.codes[i][0]
        return self.codecs[i][1](*self.codes[i]).reshape(self.shapes[i])

    def put_slots(self, i, t):
        """Encodes the slots of weight i, which from here on have the numbers of their codes."""
        kernel = self.kernels[i]
        for slot, k in numbered_slots(kernel).items():
            storage = self.storage.get(slot)
            rounding = ROUNDINGS[_core.roundings[kernel][k]]
            if self.to_nearest and rounding != "EXACT":
                storage = storage or self.dtypes[i].name
                rounding = rounding if storage == "int8" else "NEAREST"
            key = storage, rounding
            if key in twin.SLOTS and slot in self.state[i]:
                encode, decode = twin.SLOTS[key]
                numbers = self.state[i][slot]
                self.stored[i][slot] = codes = encode(numbers.ravel(), self.random(i, t, k))
                self.state[i][slot] = decode(codes, numbers.size).reshape(numbers.shape).astype(numbers.dtype)

    # ---- what the oracle of plain numbers does

    def build(self, weights):
        super().build(weights)
        for i in range(len(weights)):
            self.put_slots(i, 0)

    def update(self, i, w, g, excluded, t):
        self.o.settled = functools.partial(self.settled, i, t)
        w = super().update(i, w, g, excluded, t)
        self.changed.add(i)
        self.put_slots(i, t)
        return w

    def settled(self, i, t, w):
        self.put_weight(i, w, t)
        return self.weight(i)

    def average(self, weights, before):
        super().average(weights, before)
        if self.o.ema_overwrite_frequency and (before + 1) % self.o.ema_overwrite_frequency == 0:
            self.changed.update(range(len(weights)))

    def step(self, grads, excluded=()):
        t, weights = self.t + 1, [self.weight(i) for i in range(len(self.codes))]
        grads = [g if g is None or order == "C" else g.ravel(order=order)
                 for g, order in zip(grads, self.orders, strict=True)]
        self.changed.clear()
        weights = super().step(weights, grads, excluded)
        for i in self.changed:
            self.put_weight(i, weights[i], t)

    # ---- comparison

    def assert_like(self, optimizer, weights, what=""):
        """Every array of an optimizer has the bits of the twin."""
        for i, (code, master) in enumerate(self.codes):
            assert_same(weights[i], code, f"{what}: weight {i}")
            held = optimizer._masters and optimizer._masters[i]
            assert (held is None) == (master is None), what
            if master is not None:
                assert_same(held, master, f"{what}: master {i}")
            for slot in self.state[i]:
                assert_same(optimizer._slots[slot][i], self.stored[i].get(slot, self.state[i][slot]),
                            f"{what}: slot {slot} of {i}")
            if optimizer.use_ema:
                assert_same(optimizer._averages[i], self.averages[i], f"{what}: average {i}")


def assert_same(got, expected, what):
    """The same bits; those of 16 as what they mean, for a NaN may be any NaN."""
    got = unrolled(got).ravel()
    if expected.dtype == np.uint16:
        dtype = ml_dtypes.bfloat16 if got.dtype == np.uint16 else got.dtype
        got, expected = got.view(dtype), expected.view(dtype)
    assert_same_bits(got, expected.ravel(), what)


def made(case, way, isa, weights, places=None, **more):
    """An optimizer of a case that stores in a way, built for copies of weights on an ISA; and these."""
    copies = [w.copy(order="K") for w in weights]
    _core._use_isa(isa)
    try:
        optimizer = case.make(**way.arguments(case), **more)
        optimizer._to_nearest = [way.weights] * way.to_nearest
        optimizer._locked(optimizer._move, copies, places=places)
    finally:
        _core._use_isa(optimc.isa)
    return optimizer, copies
