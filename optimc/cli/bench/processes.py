"""Jobs of the benchmark, measured in processes of their own: jobs in, figures out.

A `Job` is one workload to be timed.  Peers that can share a process do: they are the sets of peers.py.  `run` starts
one process per set.  The process builds all optimizers and lets them step in turn, in a new order each time, with
optimc and the machine's limit among them.  So a peer is compared with the optimc of its own process and minute.  If a
peer raises, its error is a line in the results.  If it ends the process, so is that, and the process is started
again for the jobs that are left.

The child speaks JSON on its standard output, a message a line; libraries' own output goes to standard error.
"""

import functools
import importlib.util
import json
import operator
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import optimc
from optimc.cli.bench import limit, storage
from optimc.cli.bench.peers import SETS, Ours, Unsupported, Work
from optimc.cli.bench.timing import Contestant, interleaved, said, summary

OURS = "optimc"
STREAM, DIVIDER, PASSES = "limit: memory", "limit: divider", "limit: pass by pass"
LIMITED = 30_000        # from so many weights, and weights per array, the machine bounds a step, not the calls
LIMITED_EACH = 1_000
WORTH_THREADS = 1_000_000       # from so many weights the limit of several threads can be measured
PATIENCE = 120.0        # seconds beyond its budget after which a job is given up
#: a rival that keeps a core busy until the process that started it is gone
RIVAL = "import os; parent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100000))"


class Job(NamedTuple):
    """A workload and how it is timed.

    `variants` are more works of optimc in the same turns, by name, with the limit and peers of those that are narrow.

    Everybody is timed with the first number of `threads`; optimc, the limit, and peers that can set their threads,
    with the others too.  With `pause`, each repeat is one step, after a sleep of so many seconds; with `matmul`,
    after a product of matrices by torch on all threads.  With `rival`, another process keeps a core busy.
    """

    name: str
    work: Work
    threads: tuple[int, ...] = (1,)
    pause: float = 0.0
    rival: bool = False
    matmul: bool = False
    peers: tuple[str, ...] | None = None        # None: all
    repeats: int = 25
    seconds: float = 0.02                       # how long a repeat of a quick step should take
    budget: float = 5.0                         # seconds for all repeats of a set, about; shared evenly
    variants: dict[str, Work] = {}

    @classmethod
    def from_json(cls, values: list[Any]) -> "Job":
        name, work, threads, *rest, variants = values
        works = {variant: _work(others) for variant, others in variants.items()}
        return cls(name, _work(work), tuple(threads), *rest)._replace(variants=works)


def _work(values):
    shapes, *others = values
    return Work([tuple(shape) for shape in shapes], *others)


def with_threads(name: str, threads: int, variant: str = "") -> str:
    """Returns a contestant's name in the results."""
    return ", ".join([name, *([variant] if variant else []), *([f"{threads} threads"] if threads > 1 else [])])


# --------------------------------------------------------------------------------------- the child


def contestants(job: Job, set_name: str, ours: Ours, variant: str = "",
                ) -> tuple[dict[str, Contestant], dict[str, dict[str, str]]]:
    """Builds the contestants of a set that can do the job, or a variant of it.

    Returns:
        The contestants, and of the others {"error": why} or, if they have no such step, {"skipped": why}.
    """
    work = job.variants[variant] if variant else job.work
    built: dict[str, Contestant] = {}
    others: dict[str, dict[str, str]] = {}
    for threads in job.threads:
        built[with_threads(OURS, threads, variant)] = Contestant(ours.step, _setter(optimc.set_num_threads, threads))
    if variant and not work.narrow:
        return built, others
    for name, peer in SETS[set_name][1].items():
        if (job.peers is not None and name not in job.peers) or (variant and not peer.stores(work)):
            continue
        try:
            if not peer.stores(work):
                raise Unsupported("stores arrays otherwise")
            step = peer.build(work)
        except Unsupported as why:
            others[with_threads(name, 1, variant)] = {"skipped": str(why)}
            continue
        except Exception as error:
            others[with_threads(name, 1, variant)] = {"error": said(error)}
            continue
        for threads in job.threads if peer.threads else job.threads[:1]:
            before = _setter(peer.threads, threads) if peer.threads else getattr(step, "before", None)
            built[with_threads(name, threads, variant)] = Contestant(step, before, getattr(step, "MOST", 1 << 30))
    if work.weights >= max(LIMITED, LIMITED_EACH * len(work.shapes)):
        try:
            built |= _limits(job, work, ours, variant)
        except limit.NoLimit as error:
            others[with_threads(STREAM, 1, variant)] = {"error": str(error)}
    return built, others


def _limits(job, work, ours, variant):
    """The machine's limits; those of arithmetic are the same for all variants."""
    built = {with_threads(STREAM, threads, variant): Contestant(limit.stream(work, ours, threads))
             for threads in (job.threads if work.weights >= WORTH_THREADS else (1,))}
    divider = None if variant else limit.divider(work, ours)
    if divider:
        built[DIVIDER] = Contestant(divider)
    for k, bounds in enumerate([] if variant else limit.pass_by_pass(work, ours)):
        built.update({f"{PASSES} {k} {i}": Contestant(step) for i, step in enumerate(bounds)})
    return built


def _setter(function, threads):
    return lambda: function(threads)


def _between(job: Job) -> Callable[[], object] | None:
    """Returns a function to be called before each repeat of a job, or None."""
    if job.matmul:
        import torch

        import optimc.torch  # which shares threads with torch  # noqa: F401
        matrix = torch.ones(1024, 1024)

        def multiply():
            torch.set_num_threads(max(job.threads))
            return matrix @ matrix
        return multiply
    return functools.partial(time.sleep, job.pause) if job.pause else None


def measure(job: Job, set_name: str) -> dict[str, dict[str, Any]]:
    """The figures of a job, by contestant; {"error": why} for one that failed, {"skipped": why} for one not timed."""
    works = {"": job.work, **job.variants}
    everyone: dict[str, Ours] = {}
    built: dict[str, Contestant] = {}
    others: dict[str, dict[str, str]] = {}
    for variant, work in works.items():
        try:
            everyone[variant] = Ours(work)
        except (ImportError, ValueError) as error:
            others[with_threads(OURS, 1, variant)] = {"error": said(error)}
            continue
        more, failed = contestants(job, set_name, everyone[variant], variant)
        built, others = built | more, others | failed
    rival = subprocess.Popen([sys.executable, "-c", RIVAL]) if job.rival else None
    try:
        times = interleaved(built, job.repeats, job.seconds, job.budget, _between(job))
    finally:
        if rival:
            rival.kill()
            rival.wait()
    results: dict[str, dict[str, Any]] = {
        name: {"error": measured} if isinstance(measured, str) else summary(measured)
        for name, measured in times.items()}
    results |= others
    _add_passes(results)
    for variant, ours in everyone.items():
        entry, least = (results.get(with_threads(name, 1, variant), {}) for name in (OURS, STREAM))
        if "median" in least:
            least["bytes"] = limit.bytes_moved(works[variant], ours)
        if "median" in entry and (variant or job.variants):
            entry |= storage.sizes(works[variant], ours)
    return results


def _add_passes(results):
    """Replaces the bounds of the passes by one: the slower bound of each pass, added up."""
    parts = {name: results.pop(name) for name in list(results) if name.startswith(PASSES)}
    wrong = next((entry for entry in parts.values() if "error" in entry), None)
    if wrong:
        results[PASSES] = wrong
    elif parts:
        slowest: dict[str, Any] = {}
        for name, entry in parts.items():
            number = name.split()[-2]
            slowest[number] = max(slowest.get(number, entry), entry, key=operator.itemgetter("median"))
        results[PASSES] = {key: (min if key == "repeats" else sum)(entry[key] for entry in slowest.values())
                           for key in slowest[number]}


def child(set_name: str) -> None:
    """Does the jobs that it reads as JSON from standard input; runs in the child."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for k, values in enumerate(json.load(sys.stdin)):
        print(json.dumps(["begun", k]), file=out, flush=True)
        print(json.dumps(["done", k, measure(Job.from_json(values), set_name)]), file=out, flush=True)


# -------------------------------------------------------------------------------------- the parent


def missing(set_name: str) -> str | None:
    """Returns the name of a module that a set needs and that is not installed, or None."""
    needs = {peer.needs for peer in SETS[set_name][1].values()} | {SETS[set_name][0].get("KERAS_BACKEND", "numpy")}
    return next((name for name in sorted(needs) if importlib.util.find_spec(name) is None), None)


def run(jobs: Iterable[Job], set_name: str) -> Iterator[tuple[Job, dict[str, dict[str, Any]]]]:
    """Yields each job with its figures, measured in a process of the set; after a crash, with its reason."""
    left = list(jobs)
    while left:
        at = -1
        for kind, k, *rest in _messages(left, set_name):
            at = k
            if kind == "done":
                yield left[k], rest[0]
            elif kind == "lost":
                names = [name for name in SETS[set_name][1] if left[k].peers is None or name in left[k].peers]
                yield left[k], {name: {"error": rest[0]} for name in names or [OURS]}
        left = left[at + 1:]


def _messages(jobs, set_name):
    """Yields the messages of a child, and ["lost", job, why] if it ends too early."""
    with tempfile.TemporaryFile() as orders, tempfile.TemporaryFile() as errors:
        orders.write(json.dumps(jobs).encode())
        orders.seek(0)
        process = subprocess.Popen([sys.executable, "-m", "optimc.cli.bench.processes", set_name], stdin=orders,
                                   stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **SETS[set_name][0]})
        lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
        now, done, why = 0, 0, None
        try:
            while line := _next(lines, jobs[now].budget + PATIENCE):
                message = json.loads(line)
                now, done = message[1], message[1] + (message[0] == "done")
                yield message
            if line is None:
                why = "took too long"
                process.kill()
            code = process.wait()
        except BaseException:
            process.kill()                  # the caller has stopped listening
            process.wait()
            raise
        if done < len(jobs):
            yield ["lost", done, why or _reason(code, errors)]


def _listen(pipe, lines):
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")


def _next(lines, seconds):
    """Returns the next line, which is empty at the end; None if none came in time."""
    try:
        return lines.get(timeout=seconds)
    except queue.Empty:
        return None


def _reason(code, errors):
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()
    return f"the process ended: {said[-1][:200] if said else f'exit code {code}'}"


if __name__ == "__main__":
    child(sys.argv[1])
