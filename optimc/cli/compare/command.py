"""`optimc compare`: the textbook comparison of optimizers, measured.

Textbooks say which optimizer is fast, stable, adaptive and frugal.  This command trains a small network with one
optimizer after another and puts numbers in that table.  The options are here.  In the order in which they work:

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
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path

from optimc.base.extras import advice
from optimc.base.narrow import CHOICES
from optimc.cli.compare.data import load_data, to_float
from optimc.cli.compare.figures import draw_losses, draw_paths
from optimc.cli.compare.numbers import as_json, summarise
from optimc.cli.compare.training import CONTESTANTS, RATES, SWEEP_SEEDS, Settings, constructor, measure_all
from optimc.cli.compare.words import joined, learnt, show
from optimc.cli.errors import InputError
from optimc.cli.progress import spoken
from optimc.cli.style import STYLE

#: what it writes into the folder
FILES = ("compare.json", "losses.png", "paths.png")
EXAMPLES = """\
examples:
  optimc compare
      trains all eight optimizers on scikit-learn's diabetes data, with ten seeds each; takes about ten seconds
      on an idle machine
  optimc compare --data houses.csv --target price
      predicts the column "price" of your own table from its other columns
  optimc compare --optimizers adam,sgd,lion --epochs 100 --out longer
      trains only these three, for longer, and writes into the folder "longer"
  optimc compare --learning-rate 0.01 --seeds 3 --force
      gives all the same rate instead of looking for the best one, and overwrites the last results
  optimc compare --state-dtype int8 --out narrow
      stores what optimizers keep for each weight in 8 bits, to compare with the results in the folder "compare"

exit codes: 0 done, 2 an error that you can put right, 130 after Ctrl-C (the optimizers that are done are kept)
"""


def add_command(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `compare` and its options to the commands of `optimc`."""
    parser = subparsers.add_parser(
        "compare", help="train one network with every optimizer and compare them",
        description="Trains a small network (inputs -> Dense relu -> Dense 1, mean squared error)\n"
        "with every optimizer, each at its best learning rate, and measures speed, stability,\n"
        "memory and time per step. Says what was learnt, prints a table and writes losses.png,\n"
        "paths.png and compare.json. Ctrl-C keeps the optimizers that are done.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
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
    add("--state-dtype", choices=CHOICES,
        help="store the slots of all optimizers so, except those that must stay float32 (default: float32)")
    add("--out", type=Path, default="compare", metavar="DIR",
        help="folder for the files (default: %(default)s)")
    add("--force", action="store_true",
        help="overwrite the results of an earlier run without asking")
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
            raise InputError(f"{extra} is not installed: {advice('compare')}")
    if (args.data is None) != (args.target is None):
        raise InputError("--data FILE.csv and --target COLUMN must be used together")
    words = " ".join(args.optimizers).replace(",", " ").lower().split()
    names = list(dict.fromkeys(words))
    if not names:
        raise InputError(f"--optimizers: expected names, got {' '.join(args.optimizers)!r}")
    for name in names:
        constructor(name)
    with _writing(args.out):
        _may_overwrite(args.out, args.force)
    data = load_data(args.data, args.target) if args.data else None
    settings = Settings(args.epochs, args.batch_size, args.hidden, args.seeds, args.learning_rate,
                        args.state_dtype)
    with _writing(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()        # better now than after the training
    if data and not data.parts["training"][1].any():    # standardised: a constant column is zeros
        print(f"optimc compare: warning: the target {data.target!r} is constant in the training rows, so there is "
              "nothing to learn", file=sys.stderr)
    return _compare(names, data, settings, args.out)


def _may_overwrite(folder, force):
    """Asks before results are overwritten; where nobody can answer, refuses."""
    held = [name for name in FILES if (folder / name).exists()]
    if force or not held:
        return
    said = f"the folder {folder} (--out) holds {joined(held)} of an earlier run"
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError(f"{said}; --force overwrites them, --out DIR takes another folder")
    print(f"{said}. Overwrite? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InputError("nothing was overwritten; --out DIR takes another folder")


@contextlib.contextmanager
def _writing(folder):
    try:
        yield
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror or error}") from None


def _compare(names, data, settings, out):
    with _progress(len(names), settings) as tick:
        import matplotlib.style  # now: the first line of progress has been printed
        from rich.console import Console
        data = data or load_data(None, None)
        results = measure_all(names, data, settings, tick)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((120, 24)).columns     # rich would take COLUMNS=0
    console = Console(force_terminal=terminal, width=width, highlight=False,
                      markup=False, emoji=False)
    if not results:
        raise KeyboardInterrupt
    target, rows = summarise(results)
    show(console, data, settings, target, rows)
    interrupted = len(results) < len(names)
    numbers = json.dumps(as_json(data, settings, results, interrupted), indent=1, allow_nan=False)
    with _writing(out), matplotlib.style.context(["default", STYLE]):
        (out / "compare.json").write_text(numbers + "\n", "utf-8")
        draw_losses(out / "losses.png", results, target, learnt(rows, settings))
        draw_paths(out / "paths.png", list(results), settings.state_dtype)
    console.print(f"Written: {joined(FILES)} in the folder {out.resolve() if terminal else out}", soft_wrap=True)
    if interrupted:
        print(f"interrupted: {len(results)} of {len(names)} optimizers are done", file=sys.stderr)
    return 130 if interrupted else 0


@contextlib.contextmanager
def _progress(optimizers, settings):
    """Shows on standard error which run is under way, as a bar or in lines; yields the `tick` of `measure`."""
    sweep = 0 if settings.learning_rate else len(RATES) * min(SWEEP_SEEDS, settings.seeds)
    total, start = optimizers * (sweep + settings.seeds), time.monotonic()
    heard: list[float] = []

    def line():
        head = f"training {optimizers} optimizer{'s' * (optimizers != 1)}: "
        if len(heard) < 2:
            return f"{head}{total} runs of {settings.epochs} epochs"
        passed = time.monotonic() - start
        left = passed / (len(heard) - 1) * (total - len(heard) + 1)
        return f"{head}{len(heard) - 1} of {total} runs in {passed:.0f} s, about {left:.0f} s left; {heard[-1]}"

    if not sys.stderr.isatty():
        with spoken(line):
            yield heard.append
        return
    from rich import progress
    from rich.console import Console
    columns = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
               progress.TimeElapsedColumn(), "left:", progress.TimeRemainingColumn())
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)

        def tick(description):                  # a run is heard of before it starts
            heard.append(description)
            bar.update(task, description=description, completed=len(heard) - 1)
        yield tick
