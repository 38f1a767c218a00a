"""The floating-point mode of the thread that steps is the mode of the whole step, whoever computes its parts."""

import contextlib
import ctypes
import ctypes.util
import platform

import numpy as np
import pytest
from cases import assert_same_bits

import optimc
from optimc import _core

#: of each machine: the offset of the control word within fenv_t, and the bits of two modes
WORDS = {"x86_64": (28, {"flush to zero": 0x8040, "rounding up": 0x4000}),
         "aarch64": (0, {"flush to zero": 1 << 24, "rounding up": 1 << 22})}
if platform.system() != "Linux" or platform.machine() not in WORDS:
    pytest.skip("the layout of fenv_t is not known", allow_module_level=True)
OFFSET, MODES = WORDS[platform.machine()]
LIBM = ctypes.CDLL(ctypes.util.find_library("m"))


@contextlib.contextmanager
def mode(bits):
    """Computes in a mode within the block, in this thread."""
    before = (ctypes.c_uint8 * 256)()
    LIBM.fegetenv(before)
    now = (ctypes.c_uint8 * 256).from_buffer_copy(before)
    word = ctypes.c_uint32.from_buffer(now, OFFSET)
    word.value |= bits
    LIBM.fesetenv(now)
    try:
        yield
    finally:
        LIBM.fesetenv(before)


def stepped(bits, steps=10):
    """A weight and its second moment after steps in a mode: tiny gradients, whose squares are denormal."""
    w, g = np.ones(1 << 17, np.float32), np.full(1 << 17, 3e-20, np.float32)
    optimizer = optimc.Adam(1e-3, global_clipnorm=1.0)
    optimizer.build([w])
    with mode(bits):
        for _ in range(steps):
            optimizer.apply([g], [w])
    return w, optimizer._slots["v"][0].copy()


@pytest.mark.parametrize("name", MODES)
def test_bits_do_not_depend_on_the_number_of_threads(name):
    plain, alone = stepped(0), stepped(MODES[name])
    assert any((a != b).any() for a, b in zip(plain, alone, strict=True))       # the mode makes a difference
    _core._force_threads(2)
    try:
        for _ in range(5):
            for bits, expected in ((0, plain), (MODES[name], alone), (0, plain)):       # workers go back to their own
                for got, wanted in zip(stepped(bits), expected, strict=True):
                    assert_same_bits(got, wanted)
    finally:
        _core._force_threads(0)
