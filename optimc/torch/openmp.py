"""torch's OpenMP runtime, whose threads run large steps while they are awake.

After parallel work of torch's the workers of its runtime spin for some milliseconds on the processors that a step
would use.  The C side borrows them then, and uses no more threads than the runtime would: `torch.set_num_threads` and
`OMP_NUM_THREADS` hold, unless `optimc.set_num_threads` or `OPTIMC_NUM_THREADS` says otherwise.  (torch applies its
setting in each thread when it first works there.)  Threads of Python other than the first use optimc's own.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import torch

from optimc import _core

#: libraries that have the entry points of OpenMP: of GNU, of Intel and of LLVM
NAME = re.compile(r"lib(g|i)?omp\d*[-.]")
#: in the flags of /proc/self/stat: forked, and no program begun since
FORKED = 0x40


def loaded() -> list[str]:
    """The paths of the OpenMP runtimes that this process has loaded, torch's own first; none but on Linux."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    paths = {line[line.index("/"):] for line in maps.splitlines() if "/" in line}
    own = str(Path(torch.__file__).resolve().parent)
    return sorted((path for path in paths if NAME.match(os.path.basename(path))),
                  key=lambda path: (not path.startswith(own), path))


def is_forked() -> bool:
    """True if this process began as a fork: it may lack the threads that the runtime believes it has."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="surrogateescape").rpartition(")")[2]
    except OSError:
        return False
    return bool(int(fields.split()[6]) & FORKED)


def borrow() -> None:
    """Names the first of these to the C side; without one, nothing changes."""
    for path in [] if is_forked() else loaded():
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            run, size = (ctypes.cast(getattr(library, name), ctypes.c_void_p).value
                         for name in ("GOMP_parallel", "omp_get_max_threads"))
        except (OSError, AttributeError):           # renamed since it was loaded, or without these
            continue
        if run and size:
            _core._use_team(run, size)
            return
