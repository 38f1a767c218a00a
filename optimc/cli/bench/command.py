"""`python -m optimc bench`: how long a step takes on this machine, beside the installed peers.

Options and words are here; the timing is bench_run.py's, the peers are bench_peers.py's, the machine's own limit is
bench_limit.py's.  Nothing but NumPy is needed: peers that are not installed are named and left out.
"""

import argparse
import json
import math
import os
import platform
import re
import statistics
import sys
import time
import zipfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import optimc
from optimc import bench_run, checkpoint, registry
from optimc.bench_peers import SETS, Work
from optimc.bench_run import DIVIDER, OURS, PASSES, STREAM, Job, with_threads
from optimc.compare_data import InputError

LESSON = "10x64,64,64x1,1"
COPIES = 20             # arrays like the weights that the largest set holds at once, about
LIBRARIES = ("numpy", "torch", "jax", "optax", "keras", "thinc", "scikit-learn")
EVEN = 1.05             # ratios below this are called equal


# ------------------------------------------------------------------------------------------- shapes


def read_shapes(text: str) -> list[tuple[int, ...]]:
    """Shapes from words like 10x64,64, or of the arrays in a .npz or .safetensors file.

    Example:
        >>> from optimc.bench import read_shapes
        >>> read_shapes("10x64,64")
        [(10, 64), (64,)]
    """
    suffix = Path(text).suffix.lower()
    if suffix in (".npz", ".safetensors"):
        try:
            shapes = _shapes_of_npz(text) if suffix == ".npz" else _shapes_of_safetensors(text)
        except OSError as error:
            raise InputError(f"--shapes {text}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"--shapes {text}: not a {suffix} file: {error}") from None
    else:
        words = text.split(",")
        if not all(re.fullmatch(r"[1-9][0-9]{0,14}(x[1-9][0-9]{0,14})*", word) for word in words):
            raise InputError(f"--shapes: expected shapes like {LESSON}, or a .npz or .safetensors file, got {text!r}")
        shapes = [tuple(map(int, word.split("x"))) for word in words]
    if not Work(shapes).weights:
        raise InputError(f"--shapes {text}: there are no weights in it")
    return shapes


def _shapes_of_npz(path):
    readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shapes = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                shapes.append(readers[np.lib.format.read_magic(file)[0]](file)[0])
    return shapes


def _shapes_of_safetensors(path):
    with open(path, "rb") as file:
        header, _ = checkpoint.read_json(path, file, os.fstat(file.fileno()).st_size)
    return [tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"]


def in_words(shapes: Sequence[tuple[int, ...]]) -> str:
    """Number of arrays and weights."""
    n = Work(list(shapes)).weights
    return f"{len(shapes)} array{'s' * (len(shapes) != 1)}, {n:,} weight{'s' * (n != 1)}"


# -------------------------------------------------------------------------------------- the machine


def cpu() -> str:
    """The CPU in general terms: its maker and widest vectors, how many may be used."""
    vendor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        found = re.search(r"vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text("utf-8", errors="replace"))
        vendor = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}.get(found[1], found[1]) if found else vendor
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{vendor} {platform.machine()}, {usable} CPUs, {optimc.isa}"


def versions() -> dict[str, str]:
    """Of optimc, Python and the libraries that are installed."""
    found = {"optimc": optimc.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def needed(work: Work) -> int:
    """Bytes that a set of peers needs for a job, about."""
    return work.weights * np.dtype(work.dtype).itemsize * COPIES


def memory() -> int:
    """Bytes of memory of this machine; as good as endless where it cannot be asked."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


# -------------------------------------------------------------------------------------- table, words


def duration(nanoseconds: float) -> str:
    """A time with three digits in a unit that suits it.

    Example:
        >>> from optimc.bench import duration
        >>> duration(1234.5)
        '1.23 µs'
    """
    units = {"s": 1e9, "ms": 1e6, "µs": 1e3, "ns": 1}
    nanoseconds = float(f"{nanoseconds:.3g}")
    unit = next((unit for unit, size in units.items() if nanoseconds >= size), "ns")
    value = nanoseconds / units[unit]
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 0.1))))}f} {unit}"


def bound(figures: dict[str, dict[str, Any]], threads: int = 1, key: str = "median") -> float | None:
    """The least time in ns that the machine allows for a step, if it was measured; or this "ratio"."""
    stream = figures.get(with_threads(STREAM, threads), {}).get(key)
    if stream is None:
        return None
    return max(stream, *(figures.get(name, {}).get(key, 0) / threads for name in (DIVIDER, PASSES)))


def share(figures: dict[str, dict[str, Any]], threads: int = 1) -> float | None:
    """How much of the machine's limit optimc reaches: of several processes, in the median of them."""
    key = "ratio" if "ratio" in figures.get(OURS, {}) else "median"
    least, ours = bound(figures, threads, key), figures.get(with_threads(OURS, threads), {}).get(key)
    return least / ours if least and ours else None


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in plain text, the first column to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                                                            zip(line[1:], widths[1:], strict=True))]).rstrip()
                     for line in lines)


def merged(sets: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """One entry per contestant, with its "ratio" to optimc's median in the same process.

    What every process times, optimc and the limits, is the median of the processes' figures: how a machine places
    the memory and the threads of one is a matter of luck that lasts as long as it.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for figures in sets.values():
        ours = figures.get(OURS, {}).get("median")
        for name, entry in figures.items():
            timed = "median" in entry
            found.setdefault(name, []).append(dict(entry, ratio=entry["median"] / ours) if ours and timed else entry)
    return {name: _pooled(entries) for name, entries in found.items()}


def _pooled(entries):
    timed = [entry for entry in entries if "median" in entry]
    if not timed:
        return entries[0]
    how = {"min": min, "max": max, "repeats": sum}
    return {key: how.get(key, statistics.median)([entry[key] for entry in timed if key in entry])
            for key in dict.fromkeys(key for entry in timed for key in entry)}


def is_peer(name: str) -> bool:
    """Whether a contestant is neither optimc nor a limit, and is timed with the first number of threads."""
    return not name.startswith((OURS, "limit")) and not name.endswith(" threads")


def recommendation(work: Work, threads: Sequence[int], sets: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """What the figures say to do, in sentences."""
    said = []
    ratios = {name: entry["ratio"] for name, entry in merged(sets).items() if is_peer(name) and "ratio" in entry}
    if ratios:
        best = min(ratios, key=ratios.__getitem__)
        if ratios[best] >= EVEN:
            said.append(f"optimc: its {work.optimizer} is {ratios[best]:.3g} times as fast as the fastest peer here, "
                        f"{best}.")
        elif ratios[best] > 1 / EVEN:
            said.append(f"optimc or {best}: within {EVEN - 1:.0%} of each other, so take what suits the rest of your "
                        "program.")
        else:
            said.append(f"{best}: it is {1 / ratios[best]:.3g} times as fast as optimc here.")
    figures = merged(sets)
    one, many = figures.get(OURS, {}), figures.get(with_threads(OURS, threads[-1]), {})
    if len(threads) > 1 and "median" in one and "median" in many:
        gain = 1 / many["ratio"]
        real = gain >= EVEN and many["high"] < one["low"]       # beyond the spread
        said.append(f"{threads[-1]} threads are " + (f"{gain:.2g} times as fast as one." if real else
                                                     "no faster than one for these shapes: one is enough."))
    reached = share(figures)
    if reached is not None:
        divided = figures.get(DIVIDER, {}).get("median", 0) > figures[STREAM]["median"]
        what = ("the CPU's square roots and divisions allow" if divided else "memory allows")
        said.append(f"optimc takes {reached:.0%} of the speed that {what} on one thread"
                    + (": only an optimizer with fewer slots, or more threads, would be faster."
                       if reached > 0.9 and not divided else "."))
    elif "median" in one:
        said.append(f"A step takes {duration(one['median'])}, {one['median'] / work.weights:.2g} ns per weight.")
    return said


# ------------------------------------------------------------------------------------- the command


def add_command(subparsers) -> None:
    """Adds `bench` and its options to the commands of `python -m optimc`."""
    parser = subparsers.add_parser(
        "bench", help="time a step on this machine, beside installed peers",
        description="Times one step of an optimizer for your shapes: optimc, NumPy and the installed peers in turn, "
        "beside what the machine's memory and divider allow (which needs a C compiler). Prints a table per peer "
        "process and a recommendation.",
        epilog=f"example: python -m optimc bench --shapes {LESSON} --optimizer adam")
    add = parser.add_argument
    add("--shapes", metavar="SHAPES", default=LESSON,
        help="shapes of the weights, or a .npz or .safetensors file whose arrays have them (default: %(default)s)")
    add("--optimizer", metavar="NAME", default="adam", help="a class of optimc (default: %(default)s)")
    add("--dtype", choices=("float32", "float64"), default="float32", help="of the weights (default: %(default)s)")
    add("--threads", metavar="N", type=int, help="also time so many threads (default: all)")
    add("--peers", metavar="NAMES", help="only peers whose name contains one of these, separated by commas")
    add("--seconds", metavar="S", type=float, default=3.0, help="per peer process, about (default: %(default)s)")
    add("--json", metavar="FILE", type=Path, help="write the figures to FILE")
    parser.set_defaults(run=run)


def peers_named(words: str | None) -> list[str]:
    """The peers whose names contain one of these words; of None, all."""
    known = [name for _, peers in SETS.values() for name in peers]
    if words is None:
        return known
    wanted = [word.strip().lower() for word in words.split(",") if word.strip()]
    if not wanted:
        raise InputError(f"--peers: expected names, got {words!r}")
    for word in wanted:
        if not any(word in name.lower() for name in known):
            raise InputError(f"--peers: there is no peer {word!r}; there are {', '.join(known)}")
    return [name for name in known if any(word in name.lower() for word in wanted)]


def threads_named(threads: int | None) -> int:
    """The most threads that are timed; of None, all."""
    if threads is not None and threads < 1:
        raise InputError(f"--threads: expected a number above 0, got {threads}")
    return threads or optimc.get_num_threads()


def run(args: argparse.Namespace) -> int:
    """Does what the options say and returns the exit code."""
    names = {name.lower(): name for name in registry.classes}
    if args.optimizer.lower() not in names:
        raise InputError(f"--optimizer: there is no {args.optimizer!r}; there are {', '.join(sorted(names))}")
    if not 0 < args.seconds <= 3600:
        raise InputError(f"--seconds: expected a number above 0, at most 3600, got {args.seconds}")
    most = threads_named(args.threads)
    if args.json and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {args.json.parent}")
    work = Work(read_shapes(args.shapes), args.dtype, names[args.optimizer.lower()])
    if needed(work) > memory():
        raise InputError(f"--shapes: {work.weights:,} weights need about {needed(work) / 1e9:.3g} GB with all "
                         f"copies, there are {memory() / 1e9:.3g}")
    chosen = peers_named(args.peers)
    threads = (1, most) if most > 1 else (1,)
    job = Job("bench", work, threads, peers=tuple(chosen), budget=args.seconds)
    print(f"{work.optimizer}, {work.dtype}, {in_words(work.shapes)}; {cpu()}\n"
          f"{', '.join(f'{name} {version}' for name, version in versions().items())}\n")
    sets, absent = {}, []
    for name, (_, peers) in SETS.items():
        asked = [peer for peer in peers if peer in chosen]
        gone = asked and bench_run.missing(name)
        if gone:
            absent += [f"{peer} ({gone} is not installed)" for peer in asked]
        elif asked:
            print(f"timing {', '.join(asked)} ...", file=sys.stderr, flush=True)
            for _, figures in bench_run.run([job], name):
                sets[name] = figures
                absent += [f"{peer} (no such {work.optimizer})" for peer in asked if peer not in figures]
    print(table(("one step", "min", "median", "max", "times optimc's"), [
        [name, *(duration(entry[key]) for key in ("min", "median", "max")), f"{entry['ratio']:.2f}"]
        for name, entry in merged(sets).items() if "ratio" in entry]))
    for name, entry in merged(sets).items():
        if "error" in entry:
            print(f"{name}: {entry['error']}")
    print(*([f"left out: {', '.join(absent)}"] if absent else []), "", *recommendation(work, threads, sets), sep="\n")
    if args.json:
        _write(args.json, {**about(), "job": job._asdict() | {"work": work._asdict()}, "sets": sets})
    return 0


def about() -> dict[str, Any]:
    """What a file of figures says of where they come from."""
    return {"date": time.strftime("%Y-%m-%d"), "cpu": cpu(), "versions": versions()}


def _write(path, values):
    try:
        path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror or error}") from None
