"""The benchmark: python -m benchmarks

Times optimc beside the installed peers and the machine's own limit.  Writes FILE.json, FILE.md with all tables, and
plots, beside one another.  Figures are right on a quiet machine only; `spread` in the tables shows how quiet it was.
On a machine that others use, too, `--patience` measures disturbed cases again.
"""

import argparse
import contextlib
import fnmatch
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

from benchmarks import report, workloads
from optimc.cli.bench import machine, processes
from optimc.cli.bench.command import peers_named, threads_named
from optimc.cli.bench.peers import SETS, suited
from optimc.cli.errors import InputError


def chosen(args):
    """Returns the cases that the options ask for, each with the peers that they leave."""
    peers, threads = peers_named(args.peers), threads_named(args.threads)
    found = []
    for case in workloads.cases(threads):
        name = f"{case.group}/{case.title}"
        if args.quick and name not in workloads.QUICK:
            continue
        if args.cases and not any(fnmatch.fnmatch(name, f"*{word.strip()}*") for word in args.cases.split(",")):
            continue
        allowed = workloads.FASTEST if args.quick else case.job.peers
        fitting = suited(case.job.work) if allowed is None else allowed
        job = case.job._replace(name=name, peers=tuple(peer for peer in peers if peer in fitting))
        if args.quick:
            job = job._replace(repeats=11, seconds=0.005, budget=1.0)
        if args.smoke:
            job = job._replace(repeats=2, seconds=1e-4, budget=0.0, pause=min(job.pause, 1e-3))
        if machine.needed(job.work, len(job.variants)) > machine.memory():
            print(f"left out for lack of memory: {name}", file=sys.stderr)
        else:
            found.append(case._replace(job=job))
    if not found:
        raise InputError(f"--cases: there is no case {args.cases!r}; --list shows them")
    return found


def sets_of(job):
    """Returns the sets whose processes a job needs; also the first one if no peers are there but variants."""
    first = next(iter(SETS))
    found = [name for name, (_, peers) in SETS.items() if set(peers) & set(job.peers)] or [first]
    alone = job.variants and first not in found and all(map(processes.missing, found))
    return [first, *found] if alone else found


def disturbance(figures):
    """Returns the wider of two spreads: optimc's, and that of the stream over the same memory."""
    return max((report.spread(figures[name]) for name in (processes.OURS, processes.STREAM)
                if "median" in figures.get(name, {})), default=0.0)


def measured(found, patience=0.0):
    """Returns the part of the results that tells of the cases; after Ctrl-C, with the figures that are there."""
    results = {case.job.name: {"name": case.job.name, "group": case.group, "title": case.title,
                               "optimizer": case.job.work.optimizer, "arguments": case.job.work.arguments,
                               "dtype": case.job.work.dtype, "arrays": len(case.job.work.shapes),
                               "weights": case.job.work.weights, "threads": case.job.threads, "sets": {}}
               | ({"variants": [*case.job.variants]} if case.job.variants else {})
               for case in found}
    absent, interrupted = {}, False
    try:
        _measure(found, results, absent)
        _measure_again(found, results, patience)
    except KeyboardInterrupt:
        interrupted = True
    return {"missing": absent, "interrupted": interrupted, "cases": list(results.values())}


def _measure(found, results, absent):
    for name, (_, peers) in SETS.items():
        jobs = [case.job for case in found if name in sets_of(case.job)]
        gone = jobs and processes.missing(name)
        if gone:
            absent.update(dict.fromkeys(peers, gone))
            continue
        for k, (job, figures) in enumerate(processes.run(jobs, name)):
            results[job.name]["sets"][name] = figures
            failed = [f"{one}: {entry['error']}" for one, entry in figures.items() if "error" in entry]
            print(f"{name} {k + 1}/{len(jobs)}: {job.name}", *failed, sep="; ", file=sys.stderr, flush=True)


def _measure_again(found, results, patience):
    """Measures disturbed cases again and keeps the calmer figures of all their contestants.

    Cases that no target of speed judges are measured again only when the others are calm.
    """
    end = time.monotonic() + patience
    raced = report.raced({"cases": list(results.values())})

    def disturbed(name, first):
        return [case.job for case in found if not (case.job.pause or case.job.rival or case.job.matmul)
                and (case.job.name in raced) == first
                and disturbance(results[case.job.name]["sets"].get(name, {})) > report.CALM]
    for first in (True, False):
        while any(disturbed(name, first) for name in SETS):
            for name in SETS:
                _again(disturbed(name, first), name, results, end)
            if time.monotonic() >= end:
                return


def _again(jobs, name, results, end):
    """Measures jobs of a set again until the time is up."""
    with contextlib.closing(processes.run(jobs, name)) as runs:
        while time.monotonic() < end and (done := next(runs, None)):
            job, figures = done
            sets = results[job.name]["sets"]
            old, new = disturbance(sets[name]), disturbance(figures)
            failed = [one for one in sets[name] if "error" in figures.get(one, {"error": "not timed"})
                      and "error" not in sets[name][one]]
            if new < old and not failed:
                sets[name] = figures
            said = "; failed: ".join([f"spread {old:.0%}, now {new:.0%}", *failed])
            print(f"{name} again: {job.name}; {said}", file=sys.stderr, flush=True)


def import_time(repeats):
    """Returns the milliseconds that `import optimc` adds to `import numpy`: a median of new processes."""
    code = "import time, numpy\nt = time.perf_counter()\nimport optimc\nprint(1e3 * (time.perf_counter() - t))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                                  env=environment).stdout) for _ in range(repeats + 1)]
    return statistics.median(times[1:])


def main(argv=None):
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="seven cases beside the fastest peers, under two minutes")
    add("--smoke", action="store_true", help="every case a few times only: whether it runs, not how fast")
    add("--cases", metavar="NAMES", help="only cases whose name contains one of these (* and ? match), separated by "
        "commas")
    add("--peers", metavar="NAMES", help="only peers whose name contains one of these, separated by commas")
    add("--threads", metavar="N", type=int, help="beside one thread time so many (default: all)")
    add("--patience", metavar="MINUTES", type=float, default=0.0, help="after all cases, for so long, measure those "
        f"again whose times spread by more than {report.CALM:.0%}%, idleness and rivals aside, and keep the calmer "
        "figures: those that a target sets beside a peer, a limit or a time, and the others when these are calm "
        "(default: %(default)g)")
    add("--cpu", help="what the CPU is called in the tables (default: found out)")
    add("--out", metavar="FILE.json", type=pathlib.Path, default=pathlib.Path("build/speed.json"),
        help="default: %(default)s")
    add("--readme", action="store_true", help="write to benchmarks/results/speed.json, and from it the README's "
        "table and picture, and docs/performance/results.md")
    add("--list", action="store_true", help="print the names of the cases and stop")
    args = parser.parse_args(argv)
    try:
        found = chosen(args)
        if args.list:
            print(*(case.job.name for case in found), sep="\n")
            return 0
        if args.readme:
            args.out = report.RESULTS
        if not 0 <= args.patience < math.inf:
            raise InputError(f"--patience: expected minutes, 0 or more, got {args.patience:g}")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        figures = measured(found, 60 * args.patience)
        results = {"command": shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)]),
                   **machine.about(), "import_ms": import_time(1 if args.smoke else 9),
                   "patience": args.patience, "seconds": round(time.monotonic() - start), **figures}
        results["cpu"] = args.cpu or results["cpu"]
        report.write(args.out, results)
        if args.readme:
            report.publish(report.load(args.out))
    except (InputError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(report.headline(results))
    print(f"\n{report.targets(results)}\n\nWritten: {args.out} and what is drawn from it beside it; "
          f"{results['seconds']} s{', interrupted' * results['interrupted']}")
    return 130 if results["interrupted"] else 0


if __name__ == "__main__":
    sys.exit(main())
