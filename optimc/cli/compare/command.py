"""`python -m optimc compare`: the lesson's comparison of optimizers, measured.

The lesson trains a small network with one optimizer after another and says which is fast, stable, adaptive and
frugal.  This command trains that network and puts numbers in the lesson's table.  The options are here.  In the
order in which they work:

    data.py      a table of numbers, cut 60/20/20 into training, validation and test rows.
    training.py  the network, the sweep of learning rates, the runs.
    numbers.py   the numbers of each optimizer.
    words.py     the table and the sentences.
    figures.py   the figures.

What draws and prints (the extra `optimc[compare]`) is imported when it runs, and none of its global state is
changed.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import math
import sys
import tempfile
from pathlib import Path

from optimc.cli.compare.data import load_data, to_float
from optimc.cli.compare.figures import draw_losses, draw_paths
from optimc.cli.compare.numbers import as_json, summarise
from optimc.cli.compare.training import CONTESTANTS, RATES, SWEEP_SEEDS, Settings, constructor, measure_all
from optimc.cli.compare.words import show
from optimc.cli.errors import InputError
from optimc.cli.style import STYLE


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
    """Runs the command with its options and returns the exit code."""
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
    with _writing(out), matplotlib.style.context(["default", STYLE]):
        (out / "compare.json").write_text(numbers + "\n", "utf-8")
        draw_losses(out / "losses.png", results, target)
        draw_paths(out / "paths.png", list(results))
    console.print(f"Written: losses.png, paths.png and compare.json in {out}", soft_wrap=True)
    if interrupted:
        print(f"interrupted: {len(results)} of {len(names)} optimizers are done", file=sys.stderr)
    return 130 if interrupted else 0


@contextlib.contextmanager
def _progress(console, optimizers, settings):
    """Shows which run is under way, on a terminal only; yields the `tick` of `measure`."""
    from rich import progress
    sweep = 0 if settings.learning_rate else len(RATES) * min(SWEEP_SEEDS, settings.seeds)
    columns = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
               progress.TimeElapsedColumn(), "left:", progress.TimeRemainingColumn())
    with progress.Progress(*columns, console=console, transient=True,
                           disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=optimizers * (sweep + settings.seeds))
        done = itertools.count()            # a run is heard of before it starts
        yield lambda description: bar.update(task, description=description, completed=next(done))
