"""The machine's own limit for a step: how fast it can read, write, divide and take roots.

There are two bounds.  Each is C code, compiled for this CPU by the system's compiler when it is asked for:

    stream      reads and writes the arrays of the step as often as the rule does, and computes next to nothing:
                a += 0 g.  It runs over the optimizer's own arrays, so its pages are the same ones.
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

import numpy as np

import optimc
from optimc.cli.bench.costs import PASSES, Pass
from optimc.cli.bench.peers import Ours, Work

STREAM = """
#include <stddef.h>
#include <stdint.h>
typedef {real} real;
#ifdef __clang__
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif
static volatile {word} sink;
void stream(const ptrdiff_t count, const ptrdiff_t *const n, real **const *const arrays, const ptrdiff_t part,
            const ptrdiff_t parts, const real zero)
{{
    for (ptrdiff_t k = 0; k < count; k++) {{
        {pointers}
        const ptrdiff_t end = n[k] * (part + 1) / parts;
        ptrdiff_t i = n[k] * part / parts;
        {word} seen = 0;
        for (; i < end && (uintptr_t)({first} + i) % 64; i++) {{ {body} }}
        INDEPENDENT
        for (; i < end; i++) {{ {body} }}
        sink = seen;
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


def bytes_per_weight(work: Work, ours: Ours) -> int:
    """Bytes that a step reads and writes for each weight."""
    item = np.dtype(work.dtype).itemsize
    return item * sum(len(one.read) + 2 * len(one.both) for one in passes(work, ours))


def stream(work: Work, ours: Ours, threads: int, only: Pass | None = None) -> Callable[[], object]:
    """Returns a function that streams the optimizer's arrays as a step does, or as one pass, on some threads."""
    named = {"g": ours.grads, "w": ours.weights, **ours.optimizer._slots}
    if ours.optimizer._averages:
        named["ema"] = ours.optimizer._averages
    calls = [_pass(work, [named[name] for name in one.read], [named[name] for name in one.both])
             for one in ([only] if only else passes(work, ours))]
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


def _pass(work, read, both):
    real, word, number = {4: ("float", "uint32_t", ctypes.c_float), 8: ("double", "uint64_t", ctypes.c_double)}[
        np.dtype(work.dtype).itemsize]
    names = [f"r{k}" for k in range(len(read))] + [f"a{k}" for k in range(len(both))]
    pointers = " ".join(f"{'const ' * name.startswith('r')}real *restrict const {name} = arrays[{k}][k];"
                        for k, name in enumerate(names))
    if both:
        total = " + ".join(f"{name}[i]" for name in names[:len(read)])
        body = f"const real t = ({total}) * zero; " + " ".join(f"{name}[i] += t;" for name in names[len(read):])
    else:
        body = " ".join(f"seen ^= ((const {word} *){name})[i];" for name in names)
    function = compiled(STREAM.format(real=real, word=word, pointers=pointers, first=names[len(read) * bool(both)],
                                      body=body)).stream
    size, pointer = ctypes.c_ssize_t, ctypes.c_void_p
    function.argtypes = [size, pointer, pointer, size, size, number]
    function.restype = None
    count = len(work.shapes)
    sizes = (size * count)(*(array.size for array in read[0]))
    rows = [(pointer * count)(*(array.ctypes.data for array in arrays)) for arrays in (*read, *both)]
    table = (pointer * len(rows))(*(ctypes.addressof(row) for row in rows))

    def call(part, parts, keep=(rows, read, both)):
        function(count, sizes, table, part, parts, 0.0)
    return call


def divider(work: Work, ours: Ours, only: Pass | None = None) -> Callable[[], object] | None:
    """Returns a function that takes roots and divides in cache, as often as a step or pass; None if they do not."""
    several = [only] if only else passes(work, ours)
    roots, divisions = sum(one.roots for one in several), sum(one.divisions for one in several)
    if not roots + divisions:
        return None
    real, root, number = {4: ("float", "sqrtf", ctypes.c_float), 8: ("double", "sqrt", ctypes.c_double)}[
        np.dtype(work.dtype).itemsize]
    body = f"t = {root}(t); " * roots + "t = one / t; " * divisions
    function = compiled(DIVIDE.format(real=real, size=L1, body=body)).divide
    function.argtypes = [ctypes.c_ssize_t, number, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = None
    x, y = (np.full(L1, 1.5, work.dtype) for _ in range(2))
    n = work.weights
    return lambda: function(n, 1.0, x.ctypes.data, y.ctypes.data)


def pass_by_pass(work: Work, ours: Ours) -> list[list[Callable[[], object]]]:
    """Returns the bounds of each pass, a list of functions per pass; none for one pass, or without roots."""
    several = passes(work, ours)
    if len(several) == 1 or not any(one.roots + one.divisions for one in several):
        return []
    return [[step for step in (stream(work, ours, 1, one), divider(work, ours, one)) if step] for one in several]
