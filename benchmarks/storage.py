"""Storage types of AdamW beside float32: what is timed, and how fast it should be.

workloads.py makes cases of it, and report.py judges them.
"""

from benchmarks.libraries import IN_8_BITS
from optimc.cli.bench.processes import OURS, with_threads
from optimc.cli.bench.words import share, too_noisy

#: what differs from float32, by the name of the variant; gradients have the type of the weights unless it is given
VARIANTS = {
    "m bfloat16": {"arguments": {"state_dtype": {"m": "bfloat16"}}},
    "m and v bfloat16": {"arguments": {"state_dtype": "bfloat16"}},
    "int8": {"arguments": {"state_dtype": "int8"}},
    "split": {"dtype": "bfloat16"},
    "all bfloat16": {"dtype": "bfloat16", "arguments": {"state_dtype": "bfloat16", "master_weights": False}},
    "bfloat16 gradients": {"grads": "bfloat16"},
}
#: least speed in multiples of float32's, on one thread and on more
SPEEDS = {"m bfloat16": (1.0, 1.1), "m and v bfloat16": (0.9, 1.2), "int8": (0.6, 1.1), "split": (0.9, 1.05)}
#: from so many weights they hold
LARGE = 25_000_000
#: of the speed of the same bytes' stream is enough, too, on more threads than one
OF_LIMIT = 0.95
#: peer -> the variant that it is timed in, and least speed of optimc in multiples of the peer's
RACES = {**dict.fromkeys(IN_8_BITS, ("int8", 20.0)), "torch fused": ("all bfloat16", 1.2)}


def judged(found, entries):
    """Yields (case, target, figure, whether it is met or None) for the cases that have variants."""
    for name, case in found.items():
        for threads in dict.fromkeys((case["threads"][0], case["threads"][-1]) if case.get("variants") else ()):
            if case["weights"] >= LARGE:
                yield from _beside_float32(name, entries[name], threads)
            for figures in case["sets"].values():           # times of different processes do not compare
                yield from _beside_peers(name, figures, threads)


def _beside_float32(name, figures, threads):
    for variant, least in SPEEDS.items():
        wide, narrow = (figures.get(with_threads(OURS, threads, which), {}).get("ratio") for which in ("", variant))
        if not (wide and narrow):
            continue
        bar, speed = least[threads > 1], wide / narrow
        target, said, good = f"{bar} times as fast as float32", f"{speed:.2f}", speed >= bar
        reached = share(figures, threads, variant) if threads > 1 else None
        if reached:
            target += f", or {OF_LIMIT:.0%} of the limit"
            noisy = too_noisy(figures, threads, variant)
            said += ", limit too noisy to judge" if noisy else f", {min(reached, 1):.0%}"
            good = good or (None if noisy else reached >= OF_LIMIT)
        yield name, f"{with_threads(variant, threads)}: {target}", said, good


def _beside_peers(name, figures, threads):
    for peer, (variant, least) in RACES.items():
        ours, theirs = (figures.get(with_threads(who, threads, variant), {}).get("median") for who in (OURS, peer))
        if ours and theirs:
            target = f"{with_threads(variant, threads)}: {least:g} times as fast as {peer}"
            yield name, target, f"{theirs / ours:.3g}", theirs / ours >= least
