"""Shapes of weights for the benchmark: read from words or files, and put into words.

It reads headers only, never the data of an array.  Next: peers.py, whose `Work` takes the shapes.
"""

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optimc import checkpoint
from optimc.cli.bench.peers import Work
from optimc.cli.errors import InputError

SMALL_NETWORK = "10x64,64,64x1,1"


def read_shapes(text: str) -> list[tuple[int, ...]]:
    """Reads shapes from words like 10x64,64, or from the arrays of a .npz or .safetensors file.

    Example:
        >>> from optimc.cli.bench.shapes import read_shapes
        >>> read_shapes("10x64,64")
        [(10, 64), (64,)]
    """
    suffix = Path(text).suffix.lower()
    if suffix in (".npz", ".safetensors"):
        try:
            shapes = _shapes_of_npz(text) if suffix == ".npz" else _shapes_of_safetensors(text)
        except OSError as error:
            raise InputError(f"--shapes {text}: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"--shapes {text}: not a {suffix} file: {error}") from None
    else:
        words = text.split(",")
        if not all(re.fullmatch(r"[1-9][0-9]{0,14}(x[1-9][0-9]{0,14})*", word) for word in words):
            raise InputError(f"--shapes: expected shapes like {SMALL_NETWORK}, or a .npz or .safetensors file, "
                             f"got {text!r}")
        shapes = [tuple(map(int, word.split("x"))) for word in words]
    if not Work(shapes).weights:
        raise InputError(f"--shapes {text}: there are no weights in it")
    return shapes


def _shapes_of_npz(path):
    readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shapes = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                shapes.append(readers[np.lib.format.read_magic(file)[0]](file)[0])
    return shapes


def _shapes_of_safetensors(path):
    with open(path, "rb") as file:
        header, _ = checkpoint.format.read_json(path, file, os.fstat(file.fileno()).st_size)
    return [tuple(map(int, entry["shape"])) for name, entry in header.items() if name != "__metadata__"]


def in_words(shapes: Sequence[tuple[int, ...]]) -> str:
    """Says how many arrays and weights there are."""
    n = Work(list(shapes)).weights
    return f"{len(shapes)} array{'s' * (len(shapes) != 1)}, {n:,} weight{'s' * (n != 1)}"
