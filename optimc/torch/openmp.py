"""torch's OpenMP runtime, whose threads run large steps while they are awake.

After parallel work of torch's the workers of its runtime spin for some milliseconds on the processors that a step
would use.  The C side borrows them then, and uses no more threads than the runtime would: `torch.set_num_threads` and
`OMP_NUM_THREADS` hold, unless `optimc.set_num_threads` or `OPTIMC_NUM_THREADS` says otherwise.
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


def loaded() -> list[str]:
    """The paths of the OpenMP runtimes that this process has loaded, torch's own first; none but on Linux."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    paths = {line[line.index("/"):] for line in maps.splitlines() if "/" in line}
    own = str(Path(torch.__file__).parent)
    return sorted((path for path in paths if NAME.match(os.path.basename(path))),
                  key=lambda path: (not path.startswith(own), path))


def borrow() -> None:
    """Names the first of these to the C side; without one, nothing changes."""
    for path in loaded():
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            run, size = (ctypes.cast(getattr(library, name), ctypes.c_void_p).value
                         for name in ("GOMP_parallel", "omp_get_max_threads"))
        except (OSError, AttributeError):           # renamed since it was loaded, or without these
            continue
        if run and size:
            _core._use_team(run, size)
            return
