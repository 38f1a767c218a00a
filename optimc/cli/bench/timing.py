"""The timing core of the benchmark: contestants step in turn, in a new order each time.

It knows neither optimizers nor processes.  Next: processes.py, which builds the contestants.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

FEWEST = 5              # repeats, even if they take too long


class Contestant(NamedTuple):
    """A step to be timed.  `before` runs before each repeat and is not timed; a repeat has at most `most` steps."""

    step: Callable[[], object]
    before: Callable[[], object] | None = None
    most: int = 1 << 30


def interleaved(contestants: dict[str, Contestant], repeats: int = 25, seconds: float = 0.02,
                budget: float = math.inf, between: Callable[[], object] | None = None,
                ) -> dict[str, list[float] | str]:
    """Times contestants in turn; returns each one's time per step in ns, one per repeat, or its error.

    Args:
        contestants: by name.
        repeats: how many.  A contestant that would take longer than its share of `budget` seconds has fewer, but at
            least five: it sits out turns, evenly, so that the quick ones are still timed often.
        seconds: how long a repeat should take; a quick step is done many times in it.  The first eighth of the steps
            is not timed; of a slow step, it is one step more.
        between: is called before each repeat, which is then one step, with none before it.

    Example:
        >>> from optimc.cli.bench.timing import Contestant, interleaved
        >>> times = interleaved({"sum": Contestant(lambda: sum(range(9)))}, repeats=5, seconds=1e-4)
        >>> len(times["sum"])
        5
    """
    first: dict[str, int] = {}              # untimed steps of a repeat
    loops: dict[str, int] = {}              # timed ones
    lasts: dict[str, float] = {}            # seconds, a repeat
    times: dict[str, list[float] | str] = {name: [] for name in contestants}
    order = random.Random(0)

    def repeat(name, n, untimed=1):
        one = contestants[name]
        try:
            if between:
                between()
            if one.before:
                one.before()
            step = one.step
            for _ in range(0 if between else untimed):
                step()                      # the others have pushed its arrays out of the cache
            start = time.perf_counter()
            for _ in range(n):
                step()
            return (time.perf_counter() - start) / n * 1e9
        except Exception as error:
            times[name] = said(error)
            return math.nan

    start = time.perf_counter()
    if between:
        between()
    rest = time.perf_counter() - start
    for name, one in contestants.items():
        repeat(name, 1)                     # builds, compiles
        once = repeat(name, 1)
        if once < seconds / 20 * 1e9:
            once = repeat(name, min(10, one.most))
        if not math.isnan(once):
            steps = 1 if between else min(int(seconds / once * 1e9), one.most)
            first[name] = max(1, steps // 8)
            loops[name] = max(1, steps - first[name])
            lasts[name] = (loops[name] + (0 if between else first[name])) * once / 1e9 + rest
    turns = {name: int(min(max(budget / len(loops) / lasts[name], FEWEST), repeats)) for name in loops}
    gc.collect()
    for k in range(repeats):
        due = [name for name in loops if (k + 1) * turns[name] // repeats > k * turns[name] // repeats]
        for name in order.sample(due, len(due)):
            measured, kept = repeat(name, loops[name], first[name]), times[name]
            if isinstance(kept, list):
                kept.append(measured)
            else:
                del loops[name]
    return times


def said(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def summary(times: Sequence[float]) -> dict[str, float]:
    """Returns minimum, quartiles, median and maximum of the repeats in ns, and how many there were."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"min": min(times), "low": low, "median": median, "high": high, "max": max(times), "repeats": len(times)}
