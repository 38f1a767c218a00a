"""The data of `optimc compare`: a table of numbers, cut in three parts and standardised."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optimc.base.names import counted
from optimc.cli.errors import InputError, no_such

MIN_ROWS = 10
OTHERS = ";\t|"         # separators of tables that are not separated by commas


class Data(NamedTuple):
    name: str
    features: list[str]
    target: str
    parts: dict[str, tuple[np.ndarray, np.ndarray]]     # training, validation, test -> x, y


def load_data(path: str | None, target: str | None) -> Data:
    """The user's table, or scikit-learn's 442 diabetes patients."""
    if path is None:
        from sklearn.datasets import load_diabetes
        bunch = load_diabetes(scaled=False)
        return prepare("diabetes", bunch.feature_names, "progression", bunch.data, bunch.target)
    names, table = read_table(path)
    if target not in names:
        raise InputError(f"{path}: {no_such('column', str(target), names)}")
    if len(names) < 2:
        raise InputError(f"{path}: the file has no feature columns, only the target {target!r}")
    k = names.index(target)
    return prepare(Path(path).name, names[:k] + names[k + 1:], target, np.delete(table, k, axis=1),
                   table[:, k])


def read_table(path: str) -> tuple[list[str], np.ndarray]:
    """Column names and rows of a comma-separated file of finite numbers with a header row."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a comma-separated text in UTF-8: {error}") from None
    if not names:
        raise InputError(f"{path}: the file is empty; expected a header row, then rows of numbers")
    other = next((mark for mark in OTHERS if len(names) == 1 and mark in names[0]), None)
    if other:
        raise InputError(f"{path}: expected commas between the columns; is the separator {other!r}? got {names[0]!r}")
    for k, name in enumerate(names):
        if not name or name in names[:k]:
            raise InputError(f"{path}: column {k + 1} of the header has "
                             + (f"the name {name!r} of another column" if name else "no name"))
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(f"{path}: row {line}: expected {counted(len(names), 'cell')}, got {len(row)}")
    if len(rows) < MIN_ROWS:
        raise InputError(f"{path}: expected {MIN_ROWS} rows of numbers or more, got {len(rows)}")
    return names, np.array([[_number(path, line, name, text)
                             for name, text in zip(names, row, strict=True)] for line, row in rows])


def _number(path, line, name, text):
    number = to_float(text)
    if not math.isfinite(number):
        raise InputError(f"{path}: row {line}, column {name!r}: expected a finite number, "
                         f"got {text!r}")
    return number


def to_float(text: str) -> float:
    """The number that a text is, or NaN."""
    try:
        return float(text.replace("_", "?"))        # Python would read 1_0 as 10
    except ValueError:
        return math.nan


def prepare(name: str, features: list[str], target: str, x: np.ndarray, y: np.ndarray) -> Data:
    """Cuts the rows into the three parts and standardises them."""
    order = np.random.default_rng(0).permutation(len(y))
    rows = np.split(order, [len(y) * 3 // 5, len(y) * 4 // 5])
    x, y = standardise(x, rows[0]), standardise(y[:, None], rows[0])
    return Data(name, list(features), target, {
        part: (x[index], y[index])
        for part, index in zip(("training", "validation", "test"), rows, strict=True)})


def standardise(table: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and deviation 1 over the training rows, float32; constant ones become 0."""
    largest = np.abs(table).max(axis=0)
    table = table / np.where(largest > 0, largest, 1)           # so that no square can overflow
    mean, deviation = table[training].mean(axis=0), table[training].std(axis=0)
    varies = (np.ptp(table[training], axis=0) > 0) & (deviation > 0)
    with np.errstate(over="ignore"):
        return np.where(varies, (table - mean) / np.where(varies, deviation, 1), 0).astype("f4")
