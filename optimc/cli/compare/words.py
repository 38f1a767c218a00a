"""The table of `optimc compare`, and its sentences, which set the numbers beside the ranking of textbooks.

What never reached the target loss, or diverged, is named and not ranked.  This prints with rich, which is imported
when it is needed.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

from optimc.cli.compare.data import Data
from optimc.cli.compare.numbers import WITHIN, Row
from optimc.cli.compare.training import RATES, Settings, storage

#: the textbook table, fastest and most stable first: adaptive; memory, low (0) to higher (2)
TEXTBOOK = {"adam": (True, 2), "rmsprop": (True, 1), "momentum": (False, 1), "sgd": (False, 0)}
OVERFIT = 1.02          # a test loss that ends so far above its best shows overfitting
NOTES = {"adam-textbook": "Adam without its bias correction, as textbooks often print it",
         "momentum": "SGD with momentum 0.9", "nesterov": "SGD with momentum 0.9 and Nesterov's look-ahead"}


def joined(names: Iterable[str]) -> str:
    """Writes names as a list in a sentence: "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


# --------------------------------------------------------------------------------------- the headline


def learnt(rows: list[Row], settings: Settings) -> str:
    """Says in one sentence what the comparison showed."""
    arrived = sorted((row for row in rows if _arrived(row)), key=_epochs)
    lost = [row["optimizer"] for row in rows if not _arrived(row) and 2 * row["diverged"] > settings.seeds]
    late = [row["optimizer"] for row in rows if not _arrived(row) and row["optimizer"] not in lost]
    if len(lost) == len(rows):
        advice = "; try a smaller --learning-rate" * (settings.learning_rate is not None)
        return f"Nothing was learnt: all runs diverged{advice}."
    if not arrived:
        said = "No optimizer reached the target loss in more than half of its runs; more --epochs may help"
    elif _epochs(arrived[0]) == 0:
        return (f"Nothing was learnt: the validation loss never fell by more than {WITHIN - 1:.0%} below that of the "
                "untrained network.")
    else:
        said = _race(arrived, len(rows), settings)
    said += f"; {joined(late)} did so in half of the runs at most" if late and arrived else ""
    said += f"; {joined(lost)} diverged" if lost else ""
    return f"{said}."


def _race(arrived, contestants, settings):
    """The sentence about those that arrived, the fastest first."""
    names = [row["optimizer"] for row in arrived]
    who = (f"all {len(names)} optimizers" if len(names) == contestants > 2 else
           joined(names) if len(names) < 4 else f"{len(names)} of {contestants} optimizers")
    low, high = _epochs(arrived[0]), _epochs(arrived[-1])
    said = "Each at its best rate" if settings.learning_rate is None else f"At the rate {settings.learning_rate:g}"
    said += f", {who} reached the target loss in {_counted(low, high)}"
    said += f" (median of {settings.seeds} runs)" * (settings.seeds > 1)
    if low == high:
        return said
    overlap = max(min(row["epochs_by_seed"]) for row in arrived) <= min(max(row["epochs_by_seed"]) for row in arrived)
    if overlap and high <= max(2 * low, low + 2):
        return f"{said}; the differences are small: the ranges of their runs overlap"
    ends = [joined(row["optimizer"] for row in arrived if _epochs(row) == end) for end in (low, high)]
    said += f"; first {ends[0]} ({low}), last {ends[1]} ({high})"
    return said + ", but the ranges of their runs overlap" * overlap


def _counted(low, high):
    return f"{low} epoch{'s' * (low != 1)}" if low == high else f"{low}-{high} epochs"


def _epochs(row):
    return row["epochs_to_target"]


def _arrived(row):
    return math.isfinite(row["epochs_to_target"])


# --------------------------------------------------------------------------------------- the sentences


def sentences(rows: list[Row]) -> list[str]:
    """Says in words what follows from the numbers, and where they agree with textbooks."""
    ranked = [row for row in rows if _arrived(row)]
    stable = [row for row in ranked if not row["diverged"] and not math.isnan(row["loss_spread"])]
    said = [_ranking("Fastest, in epochs", ranked, _epochs, _speed) if ranked else
            "Fastest: none, because no optimizer reached the target loss in more than half of its runs."]
    said.append(_ranking("Most stable", stable, _instability, _stability) if stable else
                "Stability not measured (needs two runs that converge).")
    left = [f"{row['optimizer']} ({_why(row)})" for row in rows if row not in ranked or row["diverged"]]
    said += [f"Not ranked: {', '.join(left)}."] if left and ranked else []
    said += _formulas(ranked)
    return said + _overfitting(rows)


def _overfitting(rows):
    rise = {row["optimizer"]: row["test_loss"] / row["best_test_loss"] for row in rows
            if math.isfinite(row["test_loss"]) and row["test_loss"] > OVERFIT * row["best_test_loss"]}
    if not rise:
        return []
    worst = max(rows, key=lambda row: rise.get(row["optimizer"], 0))
    most = f"most for {worst['optimizer']}" if len(rise) > 1 else "by its mean over the runs"
    return [f"Overfitting: the test loss of {joined(rise)} rose after its best epoch, {most} (from "
            f"{worst['best_test_loss']:.3g} at epoch {worst['best_epoch']} to {worst['test_loss']:.3g} at the end). "
            "There, fewer epochs are better."]


def _why(row):
    runs = len(row["epochs_by_seed"])
    if row["diverged"]:
        return f"{row['diverged']} of {runs} runs diverged"
    return f"reached the target loss in {sum(map(math.isfinite, row['epochs_by_seed']))} of {runs} runs"


def _formulas(ranked):
    """The part of the textbook table that follows from formulas."""
    held = {row["optimizer"]: row for row in ranked}
    order = [name for name in TEXTBOOK if name in held]
    if len(order) < 2:
        return []
    wrong = [name for name in order if held[name]["adaptive"] != TEXTBOOK[name][0]]
    wrong += [f"{a} against {b}" for a in order for b in order if TEXTBOOK[a][1] < TEXTBOOK[b][1]
              and held[a]["slot_bytes_per_weight"] >= held[b]["slot_bytes_per_weight"]]
    return ["Adaptive rates and the order of memory are as in textbooks"
            + (f", but not for {', '.join(wrong)}." if wrong else ".")]


def _ranking(title, rows, key, text):
    def listed(rows):
        return ", ".join(f"{row['optimizer']} {text(row)}" for row in rows)

    rows = sorted(rows, key=key)
    order = [name for name in TEXTBOOK if name in {row["optimizer"] for row in rows}]
    said = f"{title}: {listed(row for row in rows if key(row) == key(rows[0]))}."
    if len(order) > 1:
        said += (f" Textbook ranking: {', '.join(order)}. "
                 f"Measured: {listed(row for row in rows if row['optimizer'] in order)}. "
                 + _agreement({row["optimizer"]: key(row) for row in rows}, order))
    return said


def _agreement(keys, order):
    pairs = list(itertools.combinations(order, 2))
    turned = [f"{b} before {a}" for a, b in pairs if keys[a] > keys[b]]
    equal = [f"{a} and {b}" for a, b in pairs if keys[a] == keys[b]]
    said = f"{len(pairs) - len(turned) - len(equal)} of {len(pairs)} pairwise rankings agree"
    return said + "".join(f"; {word}: {', '.join(found)}" for word, found in
                          (("reversed", turned), ("tied", equal)) if found) + "."


# ------------------------------------------------------------------------------------------- the table


def _instability(row):
    return float(f"{row['loss_spread']:.2g}")           # as shown


def _speed(row):
    low, high = min(row["epochs_by_seed"]), max(row["epochs_by_seed"])
    median = str(_epochs(row)).replace("inf", "never")
    if low == high:
        return median
    return f"{median} ({low}-{high})" if math.isfinite(high) else f"{median} ({low}+)"


def _stability(row):
    said = [] if math.isnan(row["loss_spread"]) else [f"±{row['loss_spread']:#.2g}"]
    said += [f"{row['diverged']} diverged"] if row["diverged"] else []
    return ", ".join(said) or "-"


def _loss(name):
    return lambda row: f"{row[name]:#.4g}" if math.isfinite(row[name]) else "diverged"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "\noptimizer": lambda row: row["optimizer"],
    "speed\nepochs": _speed,
    "stability\nof loss": _stability,
    "\nadapts": lambda row: "yes" if row["adaptive"] else "no",
    "memory\nB/wgt": lambda row: f"{row['slot_bytes_per_weight']:.3g}",
    "\nrate": lambda row: f"{row['learning_rate']:g}",
    "train\nloss": _loss("training_loss"),
    "test\nloss": _loss("test_loss"),
    "best\ntest": _loss("best_test_loss"),
    "step\nµs": lambda row: f"{row['microseconds_per_step']:.2f}",
}


def key(settings: Settings, target: float, rows: list[Row]) -> list[str]:
    """Explains the columns of the table, and what is special in it."""
    doubt = f", itself uncertain by {(2 * settings.seeds - 2) ** -0.5:.0%}" if settings.seeds > 1 else ""
    best = f", the best of {len(RATES)} by the validation loss" * (settings.learning_rate is None)
    held = {row["optimizer"] for row in rows}
    notes = "; ".join(f"{name}: {text}" for name, text in NOTES.items() if name in held)
    return [
        "speed: not measured, because all runs diverged" if math.isnan(target) else
        f"speed: epochs to reach the target, a validation loss of {target:.4g} (within {WITHIN - 1:.0%} of the best "
        "optimizer); fewer is better; median (range) of the runs, one per seed; +: some runs never did",
        f"stability: ± is the standard deviation of the final training loss over the runs{doubt}",
        "adapts: whether each weight has a rate of its own; memory: bytes per weight that the optimizer keeps",
        f"rate: learning rate{best}; step: median time of one update",
        "losses: mean squared error after the last epoch, mean of the runs that did not diverge; best test: the "
        "lowest such mean after any epoch",
        *([notes] if notes else []),
    ]


def stored(names: list[str], state_dtype: str) -> str:
    """Says which optimizers keep their state in fewer bits, and which cannot."""
    found = {name: storage(name, state_dtype) for name in names}
    narrow = [name for name, (options, _) in found.items() if options]
    exact = [f"{joined(slots)} of {name}" for name, (_, slots) in found.items() if slots]
    none = [name for name, (options, slots) in found.items() if not options and not slots]
    said = f"state in {state_dtype}: {joined(narrow) if narrow else 'none'}"
    said += f"; must stay float32: {joined(exact)}" if exact else ""
    return said + (f"; without state: {joined(none)}" if none else "") + "."


def show(console: Any, data: Data, settings: Settings, target: float, rows: list[Row]) -> None:
    """Prints what was learnt, the table, its key and sentences."""
    from rich import box
    from rich.table import Table
    from rich.text import Text
    size = sum(len(y) for _, y in data.parts.values())
    console.print(Text(learnt(rows, settings), style="bold"))
    console.print(
        f"\n{data.name}: {size} rows, {len(data.features)} features -> {settings.hidden} relu -> "
        f"{data.target}; epochs: {settings.epochs}, batch size: {settings.batch_size}, "
        f"seeds: {settings.seeds}\n")
    if settings.state_dtype:
        console.print(stored([row["optimizer"] for row in rows], settings.state_dtype) + "\n")
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if "optimizer" in name else "right")
    for row in rows:
        table.add_row(*(text(row) for text in COLUMNS.values()))
    console.print(table)
    console.print("\n" + "\n".join(key(settings, target, rows)) + "\n", style="dim")
    for sentence in sentences(rows):
        console.print(sentence)
