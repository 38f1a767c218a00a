"""`python -m optimc compare`: the lesson's comparison of optimizers, measured.

The lesson trains a small network (inputs -> Dense 64 relu -> Dense 1, mean squared error) with one
optimizer after another and says which is fast, stable, adaptive and frugal.  This command trains
that network, in NumPy and float32, and puts numbers in the lesson's table:

    data      a table of numbers, cut 60/20/20 into training, validation and test rows, always the
              same way; features and target are standardised by the training rows.
    sweep     every optimizer gets the rate of `RATES` with the lowest validation loss, averaged
              over the epochs and the first `SWEEP_SEEDS` seeds: fast, and good to the end.
    training  with that rate, once per seed.  A seed fixes the first weights and the batches, so
              that all optimizers start alike and see the same.
    report    `summarise` makes the numbers, once, for the table, the JSON and the sentences.

The data are compare_data.py's, the figures compare_figures.py's.  What it draws and prints with (the
extra `optimc[compare]`) is imported when it runs, and none of its global state is changed.
"""

import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import optimc
from optimc import registry
from optimc.compare_data import Data, InputError, load_data, to_float

#: name -> constructor, called with the learning rate; any class of optimc may be named besides
CONTESTANTS: dict[str, Callable[[float], optimc.Optimizer]] = {
    "sgd": optimc.SGD,
    "momentum": functools.partial(optimc.SGD, momentum=0.9),
    "nesterov": functools.partial(optimc.SGD, momentum=0.9, nesterov=True),
    "rmsprop": optimc.RMSprop,
    "adam": optimc.Adam,
    "adam-textbook": functools.partial(optimc.Adam, bias_correction=False),
    "adamw": optimc.AdamW,
    "adagrad": optimc.Adagrad,
}
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
SWEEP_SEEDS = 5
WITHIN = 1.05       # fast is who comes this close to the lowest validation loss first
#: slots that remember the size of gradients (Rprop: of steps), so that each weight has its own rate
ADAPTIVE_SLOTS = ("v", "u", "n", "s", "accumulator", "row", "size")
#: the lesson's table, fastest and most stable first: adaptive; memory, low (0) to higher (2)
LESSON = {"adam": (True, 2), "rmsprop": (True, 1), "momentum": (False, 1), "sgd": (False, 0)}


# ---------------------------------------------------------------------------- network and training


def new_weights(inputs: int, hidden: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Kernel and bias of both layers, as Keras's Dense starts them (Glorot uniform, zeros)."""
    weights = []
    for shape in ((inputs, hidden), (hidden, 1)):
        limit = math.sqrt(6 / sum(shape))
        weights += [rng.uniform(-limit, limit, shape).astype("f4"), np.zeros(shape[1], "f4")]
    return weights


def forward(x: np.ndarray, weights: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer and the output."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    return hidden, hidden @ w2 + b2


def backward(x: np.ndarray, y: np.ndarray, weights: list[np.ndarray]) -> list[np.ndarray]:
    """The gradients of `mean_squared_error`, one per weight."""
    hidden, output = forward(x, weights)
    d_output = (output - y) * (2 / y.size)
    d_hidden = (d_output @ weights[2].T) * (hidden > 0)
    return [x.T @ d_hidden, d_hidden.sum(axis=0), hidden.T @ d_output, d_output.sum(axis=0)]


def mean_squared_error(x: np.ndarray, y: np.ndarray, weights: list[np.ndarray]) -> float:
    """The loss; infinite where it is not a number."""
    loss = float(np.mean(np.square(forward(x, weights)[1] - y)))
    return loss if math.isfinite(loss) else math.inf


class Settings(NamedTuple):
    epochs: int
    batch_size: int
    hidden: int
    seeds: int
    learning_rate: float | None = None          # None: sweep


class Run(NamedTuple):
    training: np.ndarray        # loss before training and after each epoch
    validation: np.ndarray
    test: float                 # loss at the end
    step_ns: float              # median
    slots: dict[str, list[np.ndarray | None]]
    n_weights: int

    @property
    def diverged(self) -> bool:
        """Whether the training loss was lost, or ended above where it began."""
        return bool(not np.isfinite(self.training).all() or self.training[-1] > self.training[0])


def train(optimizer: optimc.Optimizer, data: Data, settings: Settings, seed: int) -> Run:
    """Trains a new network from `seed`; stops early when the loss is no longer finite."""
    x, y = data.parts["training"]
    rng = np.random.default_rng(seed)
    weights = new_weights(x.shape[1], settings.hidden, rng)
    losses = np.full((2, settings.epochs + 1), math.inf)
    times = []
    with np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(settings.epochs + 1):
            order = rng.permutation(len(x) if epoch else 0)
            for start in range(0, len(order), settings.batch_size):
                batch = order[start:start + settings.batch_size]
                grads = backward(x[batch], y[batch], weights)
                before = time.perf_counter_ns()
                optimizer.apply(grads, weights)
                times.append(time.perf_counter_ns() - before)
            losses[:, epoch] = [mean_squared_error(*data.parts[part], weights)
                                for part in ("training", "validation")]
            if not np.isfinite(losses[0, epoch]):
                break
        test = mean_squared_error(*data.parts["test"], weights)
    return Run(losses[0], losses[1], test, statistics.median(times), optimizer._slots,
               sum(weight.size for weight in weights))


def best_rate(scores: dict[float, float]) -> float:
    """The rate with the lowest score; of equals, as when none is finite, the smallest."""
    return min(sorted(scores), key=scores.__getitem__)


class Result(NamedTuple):
    learning_rate: float
    scores: dict[float, float]      # of the sweep: rate -> mean validation loss
    runs: list[Run]


def measure(name: str, data: Data, settings: Settings, tick: Callable[[str], None]) -> Result:
    """Finds the rate of one optimizer and trains with every seed; `tick` hears before each run."""
    def runs(rate, seeds, purpose):
        for seed in range(seeds):
            tick(f"{name}: {purpose} {rate:g}, seed {seed}")
            yield train(constructor(name)(rate), data, settings, seed)

    rate, scores = settings.learning_rate, {}
    if rate is None:
        seeds = min(SWEEP_SEEDS, settings.seeds)
        scores = {rate: statistics.fmean(run.validation[1:].mean()
                                         for run in runs(rate, seeds, "trying rate"))
                  for rate in RATES}
        rate = best_rate(scores)
    return Result(rate, scores, list(runs(rate, settings.seeds, "training at rate")))


def measure_all(names: Iterable[str], data: Data, settings: Settings,
                tick: Callable[[str], None]) -> dict[str, Result]:
    """The results of the optimizers that were done before Ctrl-C, if it came."""
    results = {}
    with contextlib.suppress(KeyboardInterrupt):
        for name in names:
            results[name] = measure(name, data, settings, tick)
    return results


def constructor(name: str) -> Callable[[float], optimc.Optimizer]:
    """What makes the contestant of this name, or the class of this name."""
    known: dict[str, Callable[[float], optimc.Optimizer]] = {
        key.lower(): value for key, value in registry.classes.items()}
    known |= CONTESTANTS
    if name not in known:
        raise InputError(f"there is no optimizer {name!r}; there are {', '.join(sorted(known))}")
    return known[name]


# ------------------------------------------------------------------------------------- the numbers


def summarise(results: dict[str, Result]) -> tuple[float, list[dict]]:
    """The loss to reach in the speed column, and the numbers of each optimizer: a row each."""
    target = WITHIN * min(np.mean([run.validation for run in result.runs], axis=0).min()
                          for result in results.values())
    return target, [_row(name, result, target) for name, result in results.items()]


def _row(name, result, target):
    good = [run for run in result.runs if not run.diverged]
    final = [float(run.training[-1]) for run in good]
    epochs = [_epochs_to(target, run) for run in result.runs]
    slots = result.runs[0].slots
    return {
        "optimizer": name,
        "epochs_to_target": statistics.median_high(epochs),
        "epochs_by_seed": epochs,
        "loss_spread": statistics.stdev(final) if len(final) > 1 else math.nan,
        "diverged": len(result.runs) - len(good),
        "adaptive": any(slots[slot][0] is not None for slot in ADAPTIVE_SLOTS if slot in slots),
        "slot_bytes_per_weight": sum(array.nbytes for arrays in slots.values() for array in arrays
                                     if array is not None) / result.runs[0].n_weights,
        "learning_rate": result.learning_rate,
        "training_loss": statistics.fmean(final) if final else math.inf,
        "test_loss": statistics.fmean(run.test for run in good) if good else math.inf,
        "microseconds_per_step": statistics.median(run.step_ns for run in result.runs) / 1e3,
    }


def _epochs_to(target, run):
    reached = (run.validation <= target) & np.isfinite(run.validation)
    return int(reached.argmax()) if reached.any() else math.inf


def mean_curve(result, part):
    """Mean and standard deviation over the runs that did not diverge, by epoch."""
    curves = [getattr(run, part) for run in result.runs if not run.diverged]
    if not curves:
        return np.full((2, len(result.runs[0].training)), math.nan)
    return np.mean(curves, axis=0), np.std(curves, axis=0)


def _instability(row):
    spread = row["loss_spread"]
    return row["diverged"], math.inf if math.isnan(spread) else float(f"{spread:.2g}")     # as shown


def sentences(rows: list[dict]) -> list[str]:
    """What the numbers say, in words, and where they agree with the lesson."""
    held = {row["optimizer"]: row for row in rows if row["optimizer"] in LESSON}
    order = [name for name in LESSON if name in held]
    said = [_ranking("Fastest, in epochs", rows, lambda row: row["epochs_to_target"], _speed,
                     order)]
    if all(math.isnan(row["loss_spread"]) for row in rows):
        said.append("Stability takes two runs that do not diverge: not measured.")
    else:
        said.append(_ranking("Most stable", rows, _instability, _stability, order))
    if len(order) > 1:
        wrong = [name for name in order if held[name]["adaptive"] != LESSON[name][0]]
        wrong += [f"{a} against {b}" for a in order for b in order if LESSON[a][1] < LESSON[b][1]
                  and held[a]["slot_bytes_per_weight"] >= held[b]["slot_bytes_per_weight"]]
        said.append("Adaptive rates and the order of memory are as the lesson says"
                    + (f", but not for {', '.join(wrong)}." if wrong else "."))
    return said


def _ranking(title, rows, key, text, order):
    def listed(rows):
        return ", ".join(f"{row['optimizer']} {text(row)}" for row in rows)

    rows = sorted(rows, key=key)
    said = f"{title}: {listed(row for row in rows if key(row) == key(rows[0]))}."
    if len(order) > 1:
        said += (f" The lesson's order: {', '.join(order)}; "
                 f"measured: {listed(row for row in rows if row['optimizer'] in order)}. "
                 + _agreement({row["optimizer"]: key(row) for row in rows}, order))
    return said


def _agreement(keys, order):
    pairs = list(itertools.combinations(order, 2))
    turned = [f"{b} before {a}" for a, b in pairs if keys[a] > keys[b]]
    equal = [f"{a} and {b}" for a, b in pairs if keys[a] == keys[b]]
    said = f"They agree on {len(pairs) - len(turned) - len(equal)} of {len(pairs)} pairs"
    return said + "".join(f"; {word}: {', '.join(found)}" for word, found in
                          (("the other way round", turned), ("equal", equal)) if found) + "."


# ---------------------------------------------------------------------------------- table and JSON


def _speed(row):
    low, high = min(row["epochs_by_seed"]), max(row["epochs_by_seed"])
    median = str(row["epochs_to_target"]).replace("inf", "never")
    if low == high:
        return median
    return f"{median} ({low}-{high})" if math.isfinite(high) else f"{median} ({low}+)"


def _stability(row):
    said = [] if math.isnan(row["loss_spread"]) else [f"±{row['loss_spread']:#.2g}"]
    said += [f"{row['diverged']} diverged"] if row["diverged"] else []
    return ", ".join(said) or "-"


def _loss(name):
    return lambda row: f"{row[name]:#.4g}" if math.isfinite(row[name]) else "diverged"


COLUMNS = {
    "\noptimizer": lambda row: row["optimizer"],
    "speed\nepochs": _speed,
    "stability\nof loss": _stability,
    "\nadaptive": lambda row: "yes" if row["adaptive"] else "no",
    "memory\nB/weight": lambda row: f"{row['slot_bytes_per_weight']:.3g}",
    "\nrate": lambda row: f"{row['learning_rate']:g}",
    "training\nloss": _loss("training_loss"),
    "test\nloss": _loss("test_loss"),
    "step\nµs": lambda row: f"{row['microseconds_per_step']:.2f}",
}


def show(console, data: Data, settings: Settings, target: float, rows: list[dict]) -> None:
    """Prints table, key and sentences."""
    from rich import box
    from rich.table import Table
    from rich.text import Text
    size = sum(len(y) for _, y in data.parts.values())
    console.print(Text(
        f"{data.name}: {size} rows, {len(data.features)} features -> {settings.hidden} relu -> "
        f"{data.target}; epochs: {settings.epochs}, batch size: {settings.batch_size}, "
        f"seeds: {settings.seeds}\n", style="bold"))
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if "optimizer" in name else "right")
    for row in rows:
        table.add_row(*(text(row) for text in COLUMNS.values()))
    console.print(table)
    doubt = f" ({(2 * settings.seeds - 2) ** -0.5:.0%} uncertain)" if settings.seeds > 1 else ""
    console.print(
        f"\nspeed: epochs until the validation loss is {target:.4g} or less, that is within "
        f"{WITHIN - 1:.0%} of the lowest mean any optimizer reached; median and range over seeds "
        "(+: some never)\n"
        f"stability: standard deviation of the final training loss over seeds{doubt}\n"
        "memory: slots; losses: mean at the end, without diverged runs; step: one update, median\n",
        style="dim")
    for sentence in sentences(rows):
        console.print(sentence)


def as_json(data: Data, settings: Settings, results: dict[str, Result], interrupted: bool) -> dict:
    """All numbers as plain values; what is not finite (never, diverged) becomes None."""
    target, rows = summarise(results)
    return _plain({
        "data": {"name": data.name, "features": data.features, "target": data.target,
                 "rows": {part: len(y) for part, (_, y) in data.parts.items()}},
        "versions": {"optimc": optimc.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
        "isa": optimc.isa,
        "settings": {**settings._asdict(), "seeds": list(range(settings.seeds))},
        "interrupted": interrupted,
        "target_validation_loss": target,
        "results": [{
            **row,
            "sweep": [{"learning_rate": rate, "validation_loss": score}
                      for rate, score in result.scores.items()],
            "final_training_losses": [run.training[-1] for run in result.runs],
            "mean_curves": {part: mean_curve(result, part)[0] for part in ("training", "validation")},
        } for row, result in zip(rows, results.values(), strict=True)],
    })


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | np.ndarray):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):                    # NumPy's float64 is one
        return float(value) if math.isfinite(value) else None
    return value


# ------------------------------------------------------------------------------------- the command


def add_command(subparsers) -> None:
    """Adds `compare` and its options to the commands of `python -m optimc`."""
    parser = subparsers.add_parser(
        "compare", help="train one network with every optimizer and compare them",
        description="Trains a small network (inputs -> Dense relu -> Dense 1, mean squared error) "
        "with every optimizer, each at its best learning rate, and measures speed, stability, "
        "memory and time per step. Prints a table; writes losses.png, paths.png and compare.json. "
        "Ctrl-C keeps the optimizers that are done.",
        epilog="example: python -m optimc compare --data houses.csv --target price --optimizers "
        "adam,sgd,lion")
    add = parser.add_argument
    add("--data", metavar="FILE.csv", help="a comma-separated table of numbers with a header row; "
        "default: the 442 patients of scikit-learn's load_diabetes")
    add("--target", metavar="COLUMN",
        help="the column of FILE.csv to predict; all others are features")
    add("--optimizers", metavar="NAME", nargs="+", default=list(CONTESTANTS),
        help=f"names, separated by commas or spaces: {', '.join(CONTESTANTS)} (default: these), or "
        "any class of optimc")
    add("--epochs", type=_count, default=50, metavar="N",
        help="passes over the training rows (default: %(default)s)")
    add("--batch-size", type=_count, default=32, metavar="N",
        help="rows per step (default: %(default)s)")
    add("--hidden", type=_count, default=64, metavar="N",
        help="units of the hidden layer (default: %(default)s)")
    add("--seeds", type=_count, default=10, metavar="N",
        help="runs per optimizer, with the seeds 0 to N-1 (default: %(default)s)")
    add("--learning-rate", type=_rate, metavar="RATE",
        help=f"one rate for all; default: for each the best of {len(RATES)} from {RATES[0]:g} to "
        f"{RATES[-1]:g}, by the validation loss")
    add("--out", type=Path, default="compare", metavar="DIR",
        help="folder for the files (default: %(default)s)")
    parser.set_defaults(run=run)


def _count(text):
    if not (text.isascii() and text.isdecimal() and len(text) < 8 and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1000000, got {text!r}")
    return int(text)


def _rate(text):
    if not 0 < to_float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number above 0, got {text!r}")
    return to_float(text)


def run(args: argparse.Namespace) -> int:
    """Does what the options say and returns the exit code."""
    for extra in ("matplotlib", "rich", *([] if args.data else ["sklearn"])):
        if importlib.util.find_spec(extra) is None:
            raise InputError(f"{extra} is not installed: pip install 'optimc[compare]'")
    if (args.data is None) != (args.target is None):
        raise InputError("--data FILE.csv and --target COLUMN belong together")
    words = " ".join(args.optimizers).replace(",", " ").lower().split()
    names = list(dict.fromkeys(words or [""]))
    for name in names:
        constructor(name)
    data = load_data(args.data, args.target)
    settings = Settings(args.epochs, args.batch_size, args.hidden, args.seeds, args.learning_rate)
    with _writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()        # better now than after the training
    return _compare(names, data, settings, args.out)


@contextlib.contextmanager
def _writing(folder):
    try:
        yield
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror or error}") from None


def _compare(names, data, settings, out):
    import matplotlib.style
    from rich.console import Console

    from optimc import compare_figures
    terminal = sys.stdout.isatty()
    console = Console(force_terminal=terminal, width=None if terminal else 120, highlight=False,
                      markup=False, emoji=False)
    with _progress(console, len(names), settings) as tick:
        results = measure_all(names, data, settings, tick)
    if not results:
        raise KeyboardInterrupt
    target, rows = summarise(results)
    show(console, data, settings, target, rows)
    interrupted = len(results) < len(names)
    numbers = json.dumps(as_json(data, settings, results, interrupted), indent=1, allow_nan=False)
    with _writing(out), matplotlib.style.context(["default", compare_figures.STYLE]):
        (out / "compare.json").write_text(numbers + "\n", "utf-8")
        compare_figures.draw_losses(out / "losses.png", results, target)
        compare_figures.draw_paths(out / "paths.png", list(results))
    console.print(f"Written: losses.png, paths.png and compare.json in {out}", soft_wrap=True)
    if interrupted:
        print(f"interrupted: {len(results)} of {len(names)} optimizers are done", file=sys.stderr)
    return 130 if interrupted else 0


@contextlib.contextmanager
def _progress(console, optimizers, settings):
    """Shows which run is under way, on a terminal only; gives the `tick` of `measure`."""
    from rich import progress
    sweep = 0 if settings.learning_rate else len(RATES) * min(SWEEP_SEEDS, settings.seeds)
    columns = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
               progress.TimeElapsedColumn(), "left:", progress.TimeRemainingColumn())
    with progress.Progress(*columns, console=console, transient=True,
                           disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=optimizers * (sweep + settings.seeds))
        done = itertools.count()            # a run is heard of before it starts
        yield lambda description: bar.update(task, description=description, completed=next(done))
