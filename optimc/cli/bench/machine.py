"""The machine that the benchmark runs on: its CPU and memory, and the versions of the libraries.

It names no host, path or user, so that a file of figures can be passed on.
"""

import os
import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import optimc
from optimc.base.names import counted
from optimc.cli.bench.peers import Work

COPIES = 20             # times the size of the weights that the largest set of peers holds at once, about
OWN = 8                 # times that optimc holds for a variant of the work, with a peer's, about
LIBRARIES = ("numpy", "ml_dtypes", "torch", "jax", "optax", "keras", "thinc", "scikit-learn", "bitsandbytes",
             "torchao")


def cpu() -> str:
    """Describes the CPU in general terms: its maker, how many may be used, the instruction set in use."""
    vendor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        found = re.search(r"vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text("utf-8", errors="replace"))
        vendor = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}.get(found[1], found[1]) if found else vendor
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{vendor} {platform.machine()}, {counted(usable or 1, 'CPU')}, {optimc.isa}"


def versions() -> dict[str, str]:
    """Returns the versions of optimc, Python and the installed libraries."""
    found = {"optimc": optimc.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def about() -> dict[str, Any]:
    """Returns the origin of figures, for the file that holds them: date, CPU, versions."""
    return {"date": time.strftime("%Y-%m-%d"), "cpu": cpu(), "versions": versions()}


def needed(work: Work, variants: int = 0) -> int:
    """Returns about how many bytes a set of peers needs for a job with some variants."""
    return work.weights * work.real.itemsize * (COPIES + OWN * variants)


def memory() -> int:
    """Returns the bytes of memory of this machine; a huge number where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62
