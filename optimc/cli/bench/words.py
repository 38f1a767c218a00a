"""Figures of the benchmark in words: durations, tables, ratios, shares of the limit, a recommendation.

Nothing is timed here.  Figures come from processes.py: a dict per process, from the contestant's name to its
minimum, median and so on.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from optimc.cli.bench.peers import Work
from optimc.cli.bench.processes import DIVIDER, OURS, PASSES, STREAM, with_threads

EVEN = 1.05             # smaller ratios are called equal
BEYOND = 1.05           # nobody is faster than the limit: a larger share of it shows that the limit was disturbed
SWING = 3.0             # a larger ratio of the slowest to the fastest repeat shows that the machine was busy
NOISY = "too noisy to judge"
AGAIN = "Run it again on a quieter machine, or with more --seconds."


def duration(nanoseconds: float) -> str:
    """Writes a time with three digits in a unit that suits it.

    Example:
        >>> from optimc.cli.bench.words import duration
        >>> duration(1234.5)
        '1.23 µs'
    """
    units = {"s": 1e9, "ms": 1e6, "µs": 1e3, "ns": 1}
    nanoseconds = float(f"{nanoseconds:.3g}")
    unit = next((unit for unit, size in units.items() if nanoseconds >= size), "ns")
    value = nanoseconds / units[unit]
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 0.1))))}f} {unit}"


def bound(figures: dict[str, dict[str, Any]], threads: int = 1, key: str = "median", variant: str = "",
          ) -> float | None:
    """Returns the least time in ns that the machine allows for a step, if it was measured; or another of its keys."""
    stream = figures.get(with_threads(STREAM, threads, variant), {}).get(key)
    if stream is None:
        return None
    return max(stream, *(figures.get(name, {}).get(key, 0) / threads for name in (DIVIDER, PASSES)))


def share(figures: dict[str, dict[str, Any]], threads: int = 1, variant: str = "") -> float | None:
    """Returns the share of the machine's limit that optimc reaches: the median of all processes."""
    key = "ratio" if "ratio" in figures.get(OURS, {}) else "median"
    ours = figures.get(with_threads(OURS, threads, variant), {}).get(key)
    least = bound(figures, threads, key, variant)
    return least / ours if least and ours else None


def swing(figures: dict[str, dict[str, Any]], *names: str) -> float:
    """Returns the largest ratio of the slowest to the fastest repeat of these contestants; 1 if none was timed."""
    return max((_swing(figures[name]) for name in names if "median" in figures.get(name, {})), default=1.0)


def _swing(entry):
    return entry.get("swing", entry["max"] / entry["min"])


def too_noisy(figures: dict[str, dict[str, Any]], threads: int = 1, variant: str = "") -> bool:
    """True if a busy machine spoilt the times of optimc or of the limit on so many threads."""
    timed = (with_threads(name, threads, variant) for name in (OURS, STREAM))
    return (share(figures, threads, variant) or 0) > BEYOND or swing(figures, *timed, DIVIDER, PASSES) > SWING


def share_of_limit(figures: dict[str, dict[str, Any]], threads: int = 1, variant: str = "") -> str:
    """Writes the share of the machine's limit that optimc reaches; never above 100 %, and empty if not measured.

    Tables, notebooks and `bench` all write it with this function.

    Example:
        >>> from optimc.cli.bench.words import share_of_limit
        >>> def times(median, slowest=1.2):
        ...     return {"min": median * 0.9, "median": median, "max": median * slowest}
        >>> share_of_limit({"optimc": times(10.0), "limit: memory": times(9.0)})
        '90%'
        >>> share_of_limit({"optimc": times(10.0), "limit: memory": times(10.3)})
        'at the limit'
        >>> share_of_limit({"optimc": times(10.0), "limit: memory": times(12.0)})
        'too noisy to judge'
        >>> share_of_limit({"optimc": times(10.0, slowest=5), "limit: memory": times(9.0)})
        'too noisy to judge'
    """
    reached = share(figures, threads, variant)
    if reached is None:
        return ""
    if too_noisy(figures, threads, variant):
        return NOISY
    return f"{reached:.0%}" if reached < 0.995 else "at the limit"


def multiple(ratio: float) -> str:
    """Writes a ratio of times: two decimals below ten, else two digits."""
    return f"{ratio:.2f}" if ratio < 9.95 else f"{float(f'{ratio:.2g}'):,.0f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in plain text, the first column to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in
                                                            zip(line[1:], widths[1:], strict=True))]).rstrip()
                     for line in lines)


def merged(sets: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Merges the figures of all processes: one entry per contestant, with its "ratio" to optimc's median there.

    Peers that were skipped are left out.  Every process times optimc and the limits; their entries are the medians
    over the processes.  A machine places the memory and threads of a process by luck, and the luck lasts as long as
    the process.  "swing" is the ratio of the slowest to the fastest repeat of a process, and also a median: one
    disturbed process of several does no harm.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for figures in sets.values():
        ours = figures.get(OURS, {}).get("median")
        for name, entry in figures.items():
            if "skipped" in entry:
                continue
            if ours and "median" in entry:
                entry = {**entry, "ratio": entry["median"] / ours, "swing": entry["max"] / entry["min"]}
            found.setdefault(name, []).append(entry)
    return {name: _pooled(entries) for name, entries in found.items()}


def _pooled(entries):
    timed = [entry for entry in entries if "median" in entry]
    if not timed:
        return entries[0]
    how: dict[str, Any] = {"min": min, "max": max, "repeats": sum}
    return {key: how.get(key, statistics.median)([entry[key] for entry in timed if key in entry])
            for key in dict.fromkeys(key for entry in timed for key in entry)}


def is_peer(name: str) -> bool:
    """Whether a contestant is a peer, timed with the first number of threads; neither optimc nor a limit."""
    return not name.startswith((OURS, "limit")) and not name.endswith(" threads")


def recommendation(work: Work, threads: Sequence[int], sets: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Recommends, in sentences, what to do by the figures; nothing if the machine was too busy."""
    figures = merged(sets)
    ratios = {name: entry["ratio"] for name, entry in figures.items() if is_peer(name) and "ratio" in entry}
    best = min(ratios, key=ratios.__getitem__, default=OURS)
    timed = [OURS, best, *(with_threads(OURS, n) for n in threads)]
    slowest = swing(figures, *timed, with_threads(STREAM, 1), DIVIDER, PASSES)
    if slowest > SWING:
        return [f"{NOISY.capitalize()}: the slowest repeat took {slowest:.2g} times as long as the fastest. {AGAIN}"]
    if too_noisy(figures):
        return [f"{NOISY.capitalize()}: optimc came out faster than the machine's limit. {AGAIN}"]
    said = []
    if ratios:
        said.append(_choice(work, best, ratios[best]))
    other = next((name for name in figures if name.startswith(f"{OURS}, float") and not name.endswith("threads")), "")
    if other:
        said.append(f"In {other.partition(', ')[2]}, a step takes {multiple(figures[other]['ratio'])} times as long.")
    one, many = figures.get(OURS, {}), figures.get(with_threads(OURS, threads[-1]), {})
    if len(threads) > 1 and "median" in one and "median" in many:
        gain = 1 / many["ratio"]
        real = gain >= EVEN and many["high"] < one["low"]       # beyond the spread
        said.append(f"{threads[-1]} threads are " + (f"{gain:.2g} times as fast as one." if real else
                                                     "no faster than one for these shapes: one is enough."))
    reached, of_limit = share(figures), share_of_limit(figures)
    if reached:
        divided = figures.get(DIVIDER, {}).get("median", 0) > figures[STREAM]["median"]
        bounds = "divide throughput" if divided else "memory bandwidth"
        said.append(f"optimc runs at {of_limit.replace('at the', 'the')} of {bounds} on one thread"
                    + (": only an optimizer with fewer slots, or more threads, would be faster."
                       if reached > 0.9 and not divided else "."))
    elif "median" in one:
        said.append(f"A step takes {duration(one['median'])}, {one['median'] / work.weights:.2g} ns per weight.")
    return said


def _choice(work, best, ratio):
    """The sentence that names what to take: optimc or its fastest peer."""
    if ratio >= EVEN:
        return f"optimc: its {work.optimizer} is {ratio:.3g} times as fast as the fastest peer here, {best}."
    if ratio > 1 / EVEN:
        return (f"optimc or {best}: within {EVEN - 1:.0%} of each other, so take what suits the rest of your "
                "program.")
    return f"{best}: it is {1 / ratio:.3g} times as fast as optimc here."
