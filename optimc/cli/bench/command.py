"""`optimc bench`: how long a step takes on this machine, beside the installed peers.

The options are here, and what is printed and written.  Next: processes.py times the jobs, peers.py has the peers,
limit.py the machine's own limit, words.py says what the figures mean.  Only NumPy is needed: peers that are not
installed are named and skipped.
"""

import argparse
import functools
import json
import time
from pathlib import Path

import optimc
from optimc import registry
from optimc.base.narrow import CHOICES
from optimc.base.storage import TYPES
from optimc.cli.bench import processes, storage
from optimc.cli.bench.machine import about, cpu, memory, needed, versions
from optimc.cli.bench.peers import SETS, Work, suited
from optimc.cli.bench.processes import OURS, Job
from optimc.cli.bench.shapes import SMALL_NETWORK, in_words, read_shapes
from optimc.cli.bench.words import SWING, duration, merged, multiple, recommendation, swing, table
from optimc.cli.errors import InputError, no_such
from optimc.cli.progress import spoken

EXAMPLES = f"""\
examples:
  optimc bench
      times Adam for a small network ({SMALL_NETWORK}) beside every installed library
  optimc bench --shapes model.safetensors --optimizer sgd
      times SGD for the shapes of the arrays in a file
  optimc bench --shapes 1000x1000,1000 --threads 4 --peers torch
      times Adam beside torch only, on one thread and on four
  optimc bench --shapes 4096x1024 --dtype bfloat16 --state-dtype int8
      times Adam with bfloat16 weights, their masters, and slots in 8 bits, beside float32

exit codes: 0 done, 2 an error that you can put right, 130 after Ctrl-C
"""


def add_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `bench` and its options to the commands of `optimc`."""
    parser = subparsers.add_parser(
        "bench", help="time a step on this machine, beside installed peers",
        description="Times one step of an optimizer for your shapes: optimc, NumPy and other installed\n"
        "libraries in turn, compared with the hardware limits (memory bandwidth, divide\n"
        "throughput; measuring them needs a C compiler). Prints a table and a recommendation.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--shapes", metavar="SHAPES", default=SMALL_NETWORK,
        help="shapes of the weights, or a .npz or .safetensors file whose arrays have them (default: %(default)s)")
    add("--optimizer", metavar="NAME", default="adam", help="a class of optimc (default: %(default)s)")
    add("--dtype", choices=TYPES, default="float32", help="of weights and gradients (default: %(default)s)")
    add("--state-dtype", choices=CHOICES, help="store all slots so (default: as the step computes)")
    add("--no-master-weights", action="store_true",
        help="round bfloat16 weights at random instead of keeping the rest of their bits")
    add("--threads", metavar="N", type=int, help="number of threads to time besides 1 (default: all CPUs)")
    add("--peers", metavar="NAMES", help="only libraries whose name contains one of these, separated by commas")
    add("--seconds", metavar="S", type=float, default=3.0,
        help="approximate seconds per library (default: %(default)s)")
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
            raise InputError(f"--peers: {no_such('peer', word, known)}")
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
        raise InputError(f"--optimizer: {no_such('optimizer', args.optimizer.lower(), sorted(names))}")
    if not 0 < args.seconds <= 3600:
        raise InputError(f"--seconds: expected a number above 0, at most 3600, got {args.seconds}")
    most = threads_named(args.threads)
    if args.json and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {args.json.parent}")
    work = storage.asked(Work(read_shapes(args.shapes), args.dtype, names[args.optimizer.lower()]),
                         args.state_dtype, not args.no_master_weights)
    variants = {work.real.name: storage.wide(work)} if work.narrow else {}
    total = needed(work, len(variants))
    if total > memory():
        raise InputError(f"--shapes: {work.weights:,} weights need about {total / 1e9:.3g} GB with all "
                         f"copies, there are {memory() / 1e9:.3g}")
    named = peers_named(args.peers)
    chosen = [name for name in named if name in suited(work)]
    there, absent = installed(chosen)
    if not there and work.narrow and (args.peers is None or not absent):
        there = {next(iter(SETS)): [OURS]}
    if not there:
        absent = absent or [f"{name} (stores arrays otherwise)" for name in named]
        raise InputError(f"--peers: nothing to time: {', '.join(absent)}")
    threads = (1, most) if most > 1 else (1,)
    job = Job("bench", work, threads, peers=tuple(chosen), budget=args.seconds, variants=variants)
    print(f"{work.optimizer}, {work.dtype}, {in_words(work.shapes)}; {cpu()}\n"
          f"{', '.join(f'{name} {version}' for name, version in versions().items())}\n", flush=True)
    sets = _timed(job, there)
    figures = merged(sets)
    failed = [f"{name}: {entry['error']}" for name, entry in figures.items() if "error" in entry]
    rows = [[name, *(duration(entry[key]) for key in ("min", "median", "max")), multiple(entry["ratio"]),
             *(_bytes(work, entry) if work.narrow else ()), "noisy" if swing(figures, name) > SWING else ""]
            for name, entry in figures.items() if "ratio" in entry]
    if not rows:
        raise InputError(f"nothing was timed: {'; '.join(failed) or 'no process answered'}")
    print(table(("one step", "min", "median", "max", "relative time (optimc = 1)",
                 *(("bytes kept", "bytes moved") if work.narrow else ()), ""), rows))
    if "slots" in figures.get(OURS, {}):
        print(storage.in_words(figures[OURS]))
    if work.narrow and any(name.startswith("torch ") and "ratio" in entry for name, entry in figures.items()):
        print(storage.TO_NEAREST)
    absent += [f"{name} ({entry['skipped']})" for entries in sets.values() for name, entry in entries.items()
               if "skipped" in entry]
    others = [name for name in named if name not in chosen] if work.narrow else []
    print(*failed, *([f"skipped: {', '.join(absent)}"] if absent else []),
          *([f"left out, as they store arrays otherwise: {', '.join(others)}"] if others else []),
          "", *recommendation(work, threads, sets), sep="\n")
    if args.json:
        _write(args.json, {**about(), "job": job._asdict() | {
            "work": work._asdict(), "variants": {name: other._asdict() for name, other in variants.items()}},
            "sets": sets})
    return 0


def _bytes(work, entry):
    """Bytes per weight that are kept, and that a step moves, as far as they are known."""
    moved = entry["bytes"] / work.weights if "bytes" in entry else entry.get("moved")
    return ["" if number is None else f"{number:.3g}" for number in (storage.kept(entry), moved)]


def installed(chosen: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the sets of these peers that can be timed, with the peers' names, and the others with the reason."""
    there, absent = {}, []
    for name, (_, peers) in SETS.items():
        asked = [peer for peer in peers if peer in chosen]
        gone = asked and processes.missing(name)
        if gone:
            absent += [f"{peer} ({gone} is not installed)" for peer in asked]
        elif asked:
            there[name] = asked
    return there, absent


def _timed(job, there):
    """The figures of each set; says on standard error which one is being timed."""
    sets = {}
    for k, (name, peers) in enumerate(there.items()):
        head = f"timing {k + 1} of {len(there)}: {', '.join(peers)}"
        with spoken(functools.partial(_line, head, job.budget, time.monotonic())):
            for _, figures in processes.run([job], name):
                sets[name] = figures
    return sets


def _line(head, budget, start):
    passed = time.monotonic() - start
    return f"{head}; {passed:.0f} s" if passed > 1 else f"{head} (about {budget:.3g} s, and the time to load it)"


def _write(path, values):
    try:
        path.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"--json {path}: {error.strerror or error}") from None
