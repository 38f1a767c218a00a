"""The cost of a sharded step (optimc/mpi/) for 8 to 4096 ranks: calculated by formulas, checked by a simulation.

    python benchmarks/mpi_reckoning.py          # fills the tables of docs/explain/scaling.md

The simulation plays every message of a step; nothing is sent.  Each rank has a clock for its processor and one for
its link.  Buckets are those that optimc.mpi cuts.  A message costs a latency, and its bytes over a bandwidth.

There are two algorithms; MPI libraries choose one by size.  In the ring a message goes from neighbour to neighbour,
ranks - 1 times.  In halving, for powers of two, partners exchange halves, log2(ranks) times, and each partner is
nearer than the one before.  Both send as few bytes as is possible.
"""

import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

PAGE = Path(__file__).parents[1] / "docs" / "explain" / "scaling.md"
WIDTH = 4                                   # bytes of a weight
RANKS = (8, 64, 512, 4096)
#: seconds per weight on one core: reading gradients into a message, weights out of one, and Adam's step; measured
#: with 16 and 25 million weights on a Zen 4 server
PACK, UNPACK, UPDATE = 0.19e-9, 0.18e-9, 0.54e-9


class Network(NamedTuple):
    name: str
    latency: float                          # seconds
    bandwidth: float                        # bytes per second, of a rank, each way


NETWORKS = (Network("1 Gb/s", 30e-6, 0.125e9), Network("10 Gb/s", 15e-6, 1.25e9), Network("100 Gb/s", 2e-6, 12.5e9),
            Network("400 Gb/s", 2e-6, 50e9))


# ------------------------------------------------------------------------------------------ formulas


def memory(weights, ranks, slots, bucket):
    """Bytes of a rank: weights and gradients whole, slots and summed gradients its share, four messages."""
    return WIDTH * weights * (2 + (slots + 1) / ranks) + 4 * bucket


def bytes_sent(weights, ranks):
    """Bytes that a rank sends in a step: all gradients but its share once, its share of the weights to all."""
    return 2 * WIDTH * weights * (ranks - 1) / ranks


def steps_of(ranks, algorithm):
    """The number of messages of a collective that follow one another."""
    return ranks - 1 if algorithm == "ring" else math.log2(ranks)


def collective(size, ranks, network, algorithm):
    """Seconds of one reduce-scatter or all-gather of `size` bytes."""
    return steps_of(ranks, algorithm) * network.latency + size * (ranks - 1) / ranks / network.bandwidth


def step_time(weights, ranks, network, algorithm, bucket, overlapped=True):
    """Seconds of a step: the network's or the processor's, whichever is longer, and the ends that do not overlap."""
    n = max(1, math.ceil(weights * WIDTH / bucket))
    part = weights / n
    network_time = 2 * collective(part * WIDTH, ranks, network, algorithm)
    processor_time = part * (PACK + UNPACK + UPDATE / ranks)
    if not overlapped:
        return n * (network_time + processor_time)
    return n * max(network_time, processor_time) + min(network_time, processor_time)


def least_bucket(ranks, network, algorithm, share=0.1):
    """Bytes of a bucket from which latency is no more than this share of its time."""
    return steps_of(ranks, algorithm) * network.latency * network.bandwidth / share


# ---------------------------------------------------------------------------------------- simulation


def ring(ready, sizes, network):
    """When a collective in a ring is done on each rank, and what each has sent."""
    ranks, sent, clock = len(ready), np.zeros(len(ready)), ready.copy()
    for step in range(ranks - 1):
        chunk = sizes[(np.arange(ranks) - 1 - step) % ranks]            # what rank r passes on to r + 1
        sent += chunk
        arrival = np.roll(clock + network.latency + chunk / network.bandwidth, 1)
        clock = np.maximum(clock + chunk / network.bandwidth, arrival)
    return clock, sent


def halving(ready, sizes, network):
    """The same by halving: partners half the ranks apart exchange what the other's half is to have, and so on."""
    ranks, sent, clock = len(ready), np.zeros(len(ready)), ready.copy()
    before = np.concatenate([[0], np.cumsum(sizes)])
    distance, me = ranks // 2, np.arange(ranks)
    while distance:
        start = (me ^ distance) // distance * distance
        chunk = before[start + distance] - before[start]
        sent += chunk
        clock = np.maximum(clock, clock[me ^ distance]) + network.latency + chunk / network.bandwidth
        distance //= 2
    return clock, sent


def simulate(buckets, network, algorithm, late=0.0):
    """Plays a step, in the order in which optimc.mpi sends and waits.

    Args:
        buckets: for each the elements of each rank's part: what `optimc.mpi` cuts.
        late: mean seconds by which ranks begin late (exponentially distributed).

    Returns:
        Seconds of the slowest rank, and the bytes each has sent.
    """
    ranks = len(buckets[0])
    move = ring if algorithm == "ring" else halving
    processor = np.random.default_rng(0).exponential(late, ranks) if late else np.zeros(ranks)
    link, sent = np.zeros(ranks), np.zeros(ranks)
    reduced, gathered = [], []

    def send(counts):
        nonlocal link, sent
        link, more = move(np.maximum(processor, link), counts * WIDTH, network)
        sent += more
        return link

    for k in range(len(buckets) + 2):
        if k < len(buckets):
            processor = processor + PACK * buckets[k].sum()
            reduced.append(send(buckets[k]))
        if 1 <= k <= len(buckets):
            processor = np.maximum(processor, reduced[k - 1]) + UPDATE * buckets[k - 1]
            gathered.append(send(buckets[k - 1]))
        if k >= 2:
            processor = np.maximum(processor, gathered[k - 2]) + UNPACK * buckets[k - 2].sum()
    return processor.max(), sent


def buckets_of(weights, ranks, bucket):
    """The buckets of optimc.mpi for one vector of weights."""
    from optimc.mpi.layout import Layout, Like, buckets
    layout = Layout([Like((weights,), np.dtype("f4"), "C")], ranks, "elements")
    return [np.array(one.counts) for one in buckets(layout, 0, bucket)]


# -------------------------------------------------------------------------------------------- tables

WEIGHTS, SLOTS = 10 ** 9, 2                 # the model of the page, and Adam's slots
BUCKET = 4 << 20                            # bytes


def default(ranks):
    """The default of optimc.mpi, which the tests compare: 64 KiB of each rank at least."""
    return max(BUCKET, ranks << 16)


def size_table():
    """Memory and bytes."""
    yield "| ranks | slots of a rank | memory of a rank | of that, weights and gradients | sent by a rank in a step |"
    yield "| --- | --- | --- | --- | --- |"
    for ranks in (1, *RANKS):
        total = memory(WEIGHTS, ranks, SLOTS, default(ranks)) if ranks > 1 else WIDTH * WEIGHTS * (2 + SLOTS)
        whole = 2 * WIDTH * WEIGHTS / total
        yield (f"| {ranks} | {_gigabytes(WIDTH * WEIGHTS * SLOTS / ranks)} | {_gigabytes(total)} | {whole:.0%} "
               f"| {_gigabytes(bytes_sent(WEIGHTS, ranks))} |")


def time_table():
    """Seconds of a step."""
    yield "| network | algorithm, buckets | " + " | ".join(f"{ranks} ranks" for ranks in RANKS) + " |"
    yield "| --- | --- | " + " | ".join("---" for _ in RANKS) + " |"
    for network in NETWORKS:
        for algorithm, name, bucket in (("ring", "4 MiB", lambda ranks: BUCKET), ("ring", "default", default),
                                        ("halving", "default", default)):
            times = [_seconds(step_time(WEIGHTS, ranks, network, algorithm, bucket(ranks))) for ranks in RANKS]
            yield f"| {network.name} | {algorithm}, {name} | " + " | ".join(times) + " |"


def check_table():
    """Formulas beside the simulation, for 16 buckets."""
    yield ("| ranks | algorithm | sent, estimated | sent, simulated | step, estimated | step, simulated "
           "| step, ranks 1 ms late on average |")
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    network, weights = NETWORKS[2], 16 * BUCKET // WIDTH
    for ranks in RANKS:
        buckets = buckets_of(weights, ranks, BUCKET)
        for algorithm in ("ring", "halving"):
            simulated, sent = simulate(buckets, network, algorithm)
            late, _ = simulate(buckets, network, algorithm, late=1e-3)
            yield (f"| {ranks} | {algorithm} | {bytes_sent(weights, ranks) / 1e6:.2f} MB | {sent.max() / 1e6:.2f} MB "
                   f"| {_seconds(step_time(weights, ranks, network, algorithm, BUCKET))} "
                   f"| {_seconds(simulated)} | {_seconds(late)} |")


def bucket_table():
    """Bytes of a bucket from which latency is a small part of its time."""
    yield "| network | algorithm | " + " | ".join(f"{ranks} ranks" for ranks in RANKS) + " |"
    yield "| --- | --- | " + " | ".join("---" for _ in RANKS) + " |"
    for network in NETWORKS:
        for algorithm in ("ring", "halving"):
            yield f"| {network.name} | {algorithm} | " + " | ".join(
                f"{least_bucket(ranks, network, algorithm) / 2 ** 20:.3g} MiB" for ranks in RANKS) + " |"


TABLES = {"sizes": size_table, "times": time_table, "check": check_table, "buckets": bucket_table}


def _gigabytes(size):
    return f"{size / 1e9:.3g} GB"


def _seconds(time):
    return f"{time:.3g} s" if time >= 1 else f"{time * 1e3:.3g} ms"


def filled(text):
    """The page with its tables as they are now."""
    for name, table in TABLES.items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)",
                      lambda match, table=table: match[1] + "\n".join(table()) + "\n" + match[2], text, flags=re.S)
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    sys.stdout.write("".join(f"{line}\n" for table in TABLES.values() for line in (*table(), "")))
