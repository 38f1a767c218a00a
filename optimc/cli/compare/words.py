"""The table of `python -m optimc compare`, and its sentences, which set the numbers beside the lesson.

It prints with rich, which is imported when it is needed.
"""

import itertools
import math

from optimc.cli.compare.data import Data
from optimc.cli.compare.numbers import WITHIN
from optimc.cli.compare.training import Settings

#: the lesson's table, fastest and most stable first: adaptive; memory, low (0) to higher (2)
LESSON = {"adam": (True, 2), "rmsprop": (True, 1), "momentum": (False, 1), "sgd": (False, 0)}


def sentences(rows: list[dict]) -> list[str]:
    """Says in words what follows from the numbers, and where they agree with the lesson."""
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


def _instability(row):
    spread = row["loss_spread"]
    return row["diverged"], math.inf if math.isnan(spread) else float(f"{spread:.2g}")     # as shown


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
