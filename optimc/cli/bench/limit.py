"""The machine's own limit for a step: how fast it can read, write, divide and take roots.

There are two bounds.  Each is C code, compiled for this CPU by the system's compiler when it is asked for:

    stream      reads and writes the arrays of the step as often as the rule does, and computes next to nothing:
                a ^= 0.  It runs over the optimizer's own arrays, so its pages are the same ones, and masters, codes
                and scales are as many bytes as they are for the step.
    divider     takes as many square roots and divisions as the rule, within the first-level cache.  It bounds a rule
                whose arrays lie in cache.

A step of several passes has a third bound: the slower of the two in each pass, added up.  costs.py says what each
kernel reads, writes and computes.  Without a compiler there is no limit, and the tables leave its column empty.
"""

import concurrent.futures
import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import optimc
from optimc.base.narrow import BYTES, split
from optimc.base.storage import like_of
from optimc.cli.bench.costs import PASSES, Pass
from optimc.cli.bench.peers import Ours, Work

STREAM = """
#include <stddef.h>
#include <stdint.h>
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
static volatile uint64_t sink;
void stream(const ptrdiff_t count, const ptrdiff_t *const n, void **const *const arrays, const ptrdiff_t part,
            const ptrdiff_t parts, const uint64_t zero)
{{
    for (ptrdiff_t k = 0; k < count; k++) {{
        {pointers}
        const ptrdiff_t end = n[k] * (part + 1) / parts;
        ptrdiff_t i = n[k] * part / parts;
        for (; i < end && (uintptr_t)({first} + i) % 64; i++) {{ {body} }}
        INDEPENDENT
        for (; i < end; i++) {{ {body} }}
        sink = 0{seen};
    }}
}}
"""
DIVIDE = """
#include <math.h>
#include <stddef.h>
typedef {real} real;
void divide(ptrdiff_t n, const real one, const real *restrict const x, real *restrict const y)
{{
    for (; n > 0; n -= {size}) {{
        for (ptrdiff_t i = 0; i < {size}; i++) {{
            real t = x[i];
            {body}
            y[i] = t;
        }}
        __asm__ volatile("" : : : "memory");        // the compiler must not keep y from the last round
    }}
}}
"""
L1 = 1024           # elements of the divider's loop


class NoLimit(Exception):
    """No limit can be measured here."""


@functools.cache
def compiled(source: str) -> ctypes.CDLL:
    """The library made of a C source, for this CPU."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        raise NoLimit(f"no C compiler {command[0]!r}")
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
    if optimc.isa == "avx512":
        flags.append("-mprefer-vector-width=512")
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "limit.so")
        done = subprocess.run([*command[:1], *flags, "-x", "c", "-", "-o", library, "-lm"], input=source,
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoLimit(f"{command[0]} failed: {done.stderr.strip()[-200:]}".replace("\n", " "))
        return ctypes.CDLL(library)


def passes(work: Work, ours: Ours) -> list[Pass]:
    """The passes over memory that a step needs, those of options included."""
    kernel, given = ours.optimizer._kernel_of(None, ours.weights[0]), work.arguments
    own = PASSES[kernel]
    if own is None:
        raise NoLimit(f"{kernel} is more than a stream")
    steps = list(own)
    if work.dtype == "float64":
        steps = [one._replace(divisions=one.divisions + one.double_divisions) for one in steps]
    slots = dict.fromkeys(name for one in own for name in one.both if name != "w")
    if given.get("use_ema"):
        steps[-1] = steps[-1]._replace(both=(*steps[-1].both, "ema"))
    if given.get("cautious"):
        steps.insert(0, Pass(("g", *slots)))
    if given.get("gradient_accumulation_steps"):
        raise NoLimit("accumulating steps differ from one another")
    if any(given.get(name) for name in ("global_clipnorm", "clipnorm", "check_finite")):
        steps.insert(0, Pass(("g",)))
    return steps


def bytes_moved(work: Work, ours: Ours) -> int:
    """Bytes that a step reads and writes."""
    return sum(sum(array.nbytes for array in read) + 2 * sum(array.nbytes for array in both)
               for one in passes(work, ours) for read, both in _together(ours, one))


def stream(work: Work, ours: Ours, threads: int, only: Pass | None = None) -> Callable[[], object]:
    """Returns a function that streams the optimizer's arrays as a step does, or as one pass, on some threads."""
    calls = [call for one in ([only] if only else passes(work, ours)) for call in _calls(ours, one)]
    if threads == 1:
        return lambda: [call(0, 1) for call in calls]
    pool = concurrent.futures.ThreadPoolExecutor(threads - 1)

    def step():
        for call in calls:
            others = [pool.submit(call, part, threads) for part in range(1, threads)]
            call(0, threads)
            for other in others:
                other.result()
    return step


def _arrays(ours, name):
    """The arrays of numbers in which a pass finds a part of each weight: a list per weight."""
    if name == "g":
        return [[grad] for grad in ours.grads]
    if name == "w":
        masters = ours.optimizer._masters or [None] * len(ours.weights)
        return [[weight] if master is None else [weight, master]
                for weight, master in zip(ours.weights, masters, strict=True)]
    arrays = ours.optimizer._averages if name == "ema" else ours.optimizer._slots[name]
    return [split(array, like_of(weight)) if array.dtype == BYTES else [array]
            for array, weight in zip(arrays, ours.weights, strict=True)]


def _together(ours, one):
    """Yields arrays of equal size that a pass reads, and those that it writes, too: those of a weight, its scales."""
    named = {name: _arrays(ours, name) for name in (*one.read, *one.both)}
    for k in range(len(ours.weights)):
        read, both = ([array for name in names for array in named[name][k]] for names in (one.read, one.both))
        for size in dict.fromkeys(array.size for array in (*read, *both)):
            yield [array for array in read if array.size == size], [array for array in both if array.size == size]


def _calls(ours, one):
    """The functions that stream the arrays of a pass: one for all weights that are stored alike."""
    alike: dict[Any, list[Any]] = {}
    for read, both in _together(ours, one):
        layout = tuple(tuple(array.itemsize for array in arrays) for arrays in (read, both))
        alike.setdefault(layout, []).append([*read, *both])
    return [_call(len(read), read + both, rows) for (read, both), rows in alike.items()]


def _call(reads, items, rows):
    """The function that streams rows of arrays with items of these sizes, of which it only reads the first few."""
    kinds = [f"uint{8 * item}_t" for item in items]
    pointers = " ".join(
        f"const {kind} *restrict const a{j} = arrays[{j}][k]; {kind} seen{j} = 0;" if j < reads else
        f"{kind} *restrict const a{j} = arrays[{j}][k]; const {kind} zero{j} = ({kind})zero;"
        for j, kind in enumerate(kinds))
    body = " ".join(f"seen{j} ^= a{j}[i];" if j < reads else f"a{j}[i] ^= zero{j};" for j in range(len(kinds)))
    function = compiled(STREAM.format(
        pointers=pointers, first=f"a{reads if reads < len(kinds) else 0}", body=body,
        seen="".join(f" ^ seen{j}" for j in range(reads)))).stream
    size, pointer = ctypes.c_ssize_t, ctypes.c_void_p
    function.argtypes = [size, pointer, pointer, size, size, ctypes.c_uint64]
    function.restype = None
    count = len(rows)
    sizes = (size * count)(*(row[0].size for row in rows))
    columns = [(pointer * count)(*(row[j].ctypes.data for row in rows)) for j in range(len(kinds))]
    table = (pointer * len(kinds))(*map(ctypes.addressof, columns))

    def call(part, parts, keep=(columns, rows)):
        function(count, sizes, table, part, parts, 0)
    return call


def divider(work: Work, ours: Ours, only: Pass | None = None) -> Callable[[], object] | None:
    """Returns a function that takes roots and divides in cache, as often as a step or pass; None if they do not."""
    several = [only] if only else passes(work, ours)
    roots, divisions = sum(one.roots for one in several), sum(one.divisions for one in several)
    if not roots + divisions:
        return None
    real, root, number = {4: ("float", "sqrtf", ctypes.c_float), 8: ("double", "sqrt", ctypes.c_double)}[
        work.real.itemsize]
    body = f"t = {root}(t); " * roots + "t = one / t; " * divisions
    function = compiled(DIVIDE.format(real=real, size=L1, body=body)).divide
    function.argtypes = [ctypes.c_ssize_t, number, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = None
    x, y = (np.full(L1, 1.5, work.real) for _ in range(2))
    n = work.weights
    return lambda: function(n, 1.0, x.ctypes.data, y.ctypes.data)


def pass_by_pass(work: Work, ours: Ours) -> list[list[Callable[[], object]]]:
    """Returns the bounds of each pass, a list of functions per pass; none for one pass, or without roots."""
    several = passes(work, ours)
    if len(several) == 1 or not any(one.roots + one.divisions for one in several):
        return []
    return [[step for step in (stream(work, ours, 1, one), divider(work, ours, one)) if step] for one in several]
