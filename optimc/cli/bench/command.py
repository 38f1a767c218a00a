"""`python -m optimc bench`: how long a step takes on this machine, beside the installed peers.

The options are here, and what is printed and written.  Next: processes.py times the jobs, peers.py has the peers,
limit.py the machine's own limit, words.py says what the figures mean.  Only NumPy is needed: peers that are not
installed are named and left out.
"""

import argparse
import json
import sys
from pathlib import Path

import optimc
from optimc import registry
from optimc.cli.bench import processes
from optimc.cli.bench.machine import about, cpu, memory, needed, versions
from optimc.cli.bench.peers import SETS, Work
from optimc.cli.bench.processes import Job
from optimc.cli.bench.shapes import LESSON, in_words, read_shapes
from optimc.cli.bench.words import duration, merged, recommendation, table
from optimc.cli.errors import InputError


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
    add("--threads", metavar="N", type=int, help="also time a step on N threads (default: all)")
    add("--peers", metavar="NAMES", help="only peers whose name contains one of these, separated by commas")
    add("--seconds", metavar="S", type=float, default=3.0, help="per peer process, about (default: %(default)s)")
    add("--json", metavar="FILE", type=Path, help="write the figures to FILE")
    parser.set_defaults(run=run)


def peers_named(words: str | None) -> list[str]:
    """Returns the peers whose names contain one of these words, separated by commas; all for None."""
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
    """Returns the most threads that are timed; all for None."""
    if threads is not None and threads < 1:
        raise InputError(f"--threads: expected a number above 0, got {threads}")
    return threads or optimc.get_num_threads()


def run(args: argparse.Namespace) -> int:
    """Runs the command with its options and returns the exit code."""
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
        gone = asked and processes.missing(name)
        if gone:
            absent += [f"{peer} ({gone} is not installed)" for peer in asked]
        elif asked:
            print(f"timing {', '.join(asked)} ...", file=sys.stderr, flush=True)
            for _, figures in processes.run([job], name):
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


def _write(path, values):
    try:
        path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror or error}") from None
