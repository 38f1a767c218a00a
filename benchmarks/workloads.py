"""The workloads of the benchmark, by group; those of the optimizers are drawn from the registry."""

import itertools
from typing import NamedTuple

import numpy as np

import optimc
from benchmarks.libraries import IN_8_BITS
from benchmarks.storage import VARIANTS
from optimc.base.arguments import Value, is_switch
from optimc.cli.bench.peers import SETS, Work
from optimc.cli.bench.processes import Job
from optimc.cli.bench.shapes import SMALL_NETWORK, read_shapes
from optimc.registry import classes

BIG = 25_000_000
#: sizes of one array, for the growth of time with size
SIZES = (1, 10, 100, 1_000, 10_000, 32_000, 100_000, 320_000, 1_000_000, 3_200_000, 10_000_000, BIG, 100_000_000)
WITH_ALL_PEERS = (1_000, 32_000, 1_000_000, BIG)                # of these sizes; `FAST` peers time the others
FAST = ("NumPy out=", "torch fused", "torch foreach", "optax jit")
FASTEST = ("NumPy out=", "torch fused", "optax jit")           # of those, for --quick
TORCH = tuple(SETS["torch"][1])
CALLED = (*TORCH, "optax jit")                                  # libraries that have more than Adam
EVERYWHERE = {                                                  # each option alone, on AdamW
    "plain": {}, "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 1.0}, "global clip": {"global_clipnorm": 1.0}, "EMA": {"use_ema": True},
    "finite check": {"check_finite": "skip"}, "loss scale": {"loss_scale_factor": 1024.0},
    "cautious": {"cautious": True},
    "coupled decay": {"coupled_weight_decay": True}, "accumulation": {"gradient_accumulation_steps": 2},
    "maximize": {"maximize": True},
}
#: its cases are timed where torch is, whose threads are awake then
AFTER_MATMUL = "after a product of matrices by torch"
CLIP_EMA = {"global_clipnorm": 1.0, "use_ema": True}
MODERN = {"loss_scale_factor": 1024.0, "check_finite": "skip", **CLIP_EMA}
QUICK = ("lists/small network", "lists/50 x 100", "lists/100 x 10 000", "sizes/1 000 000", "sizes/25 000 000",
         "float64/1 000 000", "options/modern step")


class Case(NamedTuple):
    """A job with its place in the tables; the name is group/title."""

    group: str
    title: str
    job: Job


def resnet50():
    """Weights of ResNet-50: a 7 x 7 convolution, 16 bottlenecks, a dense layer; 161 arrays, 25.6 million."""
    def convolution(out, into, size):
        return [(out, into, size, size), (out,), (out,)]        # and its batch normalisation

    shapes, into = convolution(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, into, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            shapes += [] if block else convolution(4 * width, into, 1)
            into = 4 * width
    return [*shapes, (1000, into), (1000,)]


def gpt2_small():
    """Weights of GPT-2 small: two embeddings, 12 blocks; 148 arrays, 124 million."""
    n = 768
    block = [(n,), (n,), (n, 3 * n), (3 * n,), (n, n), (n,), (n,), (n,), (n, 4 * n), (4 * n,), (4 * n, n), (n,)]
    return [(50257, n), (1024, n), *block * 12, (n,), (n,)]


def variants():
    """Yields a class and as few arguments as possible for each kernel of vectors; Muon has another for matrices."""
    seen = set()
    for cls in classes.values():
        own = {name: argument for name, argument in cls._arguments.items() if name not in vars(optimc.Optimizer)
               and name != "cautious"}
        switches = {name: not argument.default for name, argument in own.items() if is_switch(argument)}
        values = {name: argument.also for name, argument in own.items()
                  if isinstance(argument, Value) and argument.also is not None}
        changes = {**switches, **values}.items()
        for some in itertools.chain.from_iterable(itertools.combinations(changes, n) for n in range(3)):
            kernel = cls._rule, cls.__name__ == "AdamW", cls(**dict(some))._kernel_of(None, np.ones(1))
            if kernel not in seen:
                seen.add(kernel)
                yield cls.__name__, dict(some)


def number(n):
    """Writes a number in groups of three digits."""
    return f"{n:,}".replace(",", " ")


def described(optimizer, arguments):
    """Names an optimizer and its arguments that are not defaults."""
    return " ".join([optimizer, *(name if value is True else f"{name}={value}" for name, value in arguments.items())])


def cases(threads):
    """Yields all cases; `threads` is the larger number of threads to be timed, beside one."""
    both = (1, threads) if threads > 1 else (1,)
    yield from lists(both)
    for n in SIZES:
        peers = None if n in WITH_ALL_PEERS else FAST
        yield Case("sizes", number(n), Job("", Work([(n,)]), both, peers=peers, seconds=0.01,
                                           budget=8.0 if n == BIG else 2.5))
    for title, shapes in [("small network", read_shapes(SMALL_NETWORK)),
                          *((number(n), [(n,)]) for n in (32_000, 1_000_000, BIG))]:
        yield Case("float64", title, Job("", Work(shapes, "float64"), both, peers=FAST,
                                         budget=8.0 if shapes == [(BIG,)] else 2.5))
    yield from optimizers()
    yield from options(both)
    yield from storage(both)
    slow = ("torch fused",)
    for n in (1_000, 32_000, 100_000, 1_000_000, BIG):
        yield Case("after 50 ms of idleness", number(n),
                   Job("", Work([(n,)]), both, pause=0.05, peers=slow, budget=8.0))
    for n in (1_000_000, 5_000_000, BIG):
        yield Case(AFTER_MATMUL, number(n), Job("", Work([(n,)]), both, matmul=True, peers=slow, budget=8.0))
    for n in (1_000, 100_000, 1_000_000, BIG):
        yield Case("with a rival process", number(n),
                   Job("", Work([(n,)]), both, rival=True, peers=slow, seconds=0.05, budget=8.0))


def lists(both):
    """Lists of arrays, from a small network to a language model."""
    for title, shapes, peers in (
            ("small network", read_shapes(SMALL_NETWORK), None), ("50 x 100", [(100,)] * 50, None),
            ("1000 x 64", [(64,)] * 1000, None), ("100 x 10 000", [(10_000,)] * 100, None),
            ("ResNet-50", resnet50(), None), ("GPT-2 small", gpt2_small(), FAST)):
        yield Case("lists", title, Job("", Work(shapes), both, peers=peers, budget=4.0))


def optimizers():
    """Every optimizer at 25 million weights and one million, and in float64 against its own limit."""
    for name, arguments in variants():
        title = described(name, arguments)
        for n, peers in ((BIG, CALLED), (1_000_000, CALLED)):
            yield Case(f"optimizers, {number(n)}", title,
                       Job("", Work([(n,)], "float32", name, arguments), peers=peers, seconds=0.01, budget=3.0))
        yield Case(f"optimizers, {number(BIG)}, float64", title,
                   Job("", Work([(BIG,)], "float64", name, arguments), peers=(), budget=4.0))
    yield Case("optimizers, matrices", "Muon, 1024 x 1024",
               Job("", Work([(1024, 1024)], "float32", "Muon"), peers=CALLED, budget=3.0))
    yield Case("optimizers, matrices", "Adafactor, 5000 x 5000",
               Job("", Work([(5000, 5000)], "float32", "Adafactor"), peers=CALLED, budget=3.0))


def options(both):
    """AdamW with each option alone, and with those of a modern training step."""
    for n in (1_000_000, BIG):
        for title, arguments in EVERYWHERE.items():
            yield Case("options", f"{title}, {number(n)}",
                       Job("", Work([(n,)], "float32", "AdamW", arguments), peers=(), seconds=0.01, budget=2.5))
    for title, arguments in {"modern step": MODERN, "clip, AdamW, EMA": CLIP_EMA}.items():
        yield Case("options", title, Job("", Work([(BIG,)], "float32", "AdamW", arguments), both, peers=CALLED,
                                         budget=6.0))


def storage(both):
    """AdamW with storage in fewer bits beside float32, all in one process; in 8 bits beside slow peers."""
    works = {name: Work([(BIG,)], optimizer="AdamW")._replace(**changes) for name, changes in VARIANTS.items()}
    yield Case("storage", f"AdamW, {number(BIG)}",
               Job("", Work([(BIG,)], "float32", "AdamW"), both, peers=("torch fused",), budget=60.0, variants=works))
    shapes = [(1024, 1024)]                         # torchao keeps float32 where blocks of 256 do not fit
    yield Case("storage", "AdamW in 8 bits, 1024 x 1024",
               Job("", Work(shapes, "float32", "AdamW"), peers=IN_8_BITS, budget=6.0,
                   variants={"int8": works["int8"]._replace(shapes=shapes)}))
