"""Checkpoints of a job of several processes: a file per rank, and an index that joins them.

`optimc.checkpoint` describes their layout.  This module knows neither processes nor MPI: a shard holds elements.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from typing import TYPE_CHECKING

import numpy as np

from optimc import _core
from optimc.base.rules import FACTORS, without_axis
from optimc.checkpoint.descriptions import ACCUMULATOR, AVERAGE, SCALES, encode, like_from, weights_part
from optimc.checkpoint.format import TEMPORARY, CheckpointError, read, stem_of, write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from optimc._types import Array, Config, Path, Shape, Tensors

    Segments = Sequence[tuple[int, int, int]]
    Block = tuple[str, int, int | None, tuple[str, Shape]]

SHARD_NAME = TEMPORARY + len(".0123456789abcdef.0")    # bytes that its temporary file's name adds to the index's
SHARD_BLOCK = 1 << 20                       # elements of a tensor of a shard, at most


def shard_path(path: Path, token: str, rank: int) -> str:
    """The path of a rank's shard, for the save to `path` with this token (16 hexadecimal digits)."""
    directory, name = os.path.split(os.path.realpath(os.fsdecode(path)))
    return os.path.join(directory, f"{stem_of(name, SHARD_NAME)}.{token}.{rank}")


def write_shard(path: Path, token: str, rank: int, tensors: Mapping[str, tuple[Array, int | None]]) -> None:
    """Writes a rank's file of a save to `path`.

    Args:
        tensors: dict of names to pairs: a vector and the number of its first element in the weight (of scales: of
            the first scale), or a whole tensor and None.
    """
    blocks = {}
    for name, (array, low) in tensors.items():
        if low is None:
            blocks[name] = array
        else:
            for start in range(0, len(array), SHARD_BLOCK):
                blocks[f"{name}@{low + start}"] = array[start:start + SHARD_BLOCK]
    write(shard_path(path, token, rank), blocks, {"shard": token})


def write_index(path: Path, description: Config, shards: dict[str, Any]) -> None:
    """Ends a save of shards: writes the file that joins them, then removes those of earlier saves.

    Args:
        description: of the optimizer in one piece, as its `_export` gives it.
        shards: dict: "token"; "orders", a "C" or "F" per weight, the order of elements in its vectors; "files", for
            each rank a list of [weight, first element, last + 1].
    """
    write(path, {}, {"optimizer": encode(description), "shards": json.dumps(shards, separators=(",", ":"))})
    directory, name = os.path.split(os.path.realpath(os.fsdecode(path)))
    stem = re.escape(stem_of(name, SHARD_NAME))
    pattern = re.compile(rf"\.?{stem}\.([0-9a-f]{{16}})\.[0-9]+(\.[0-9a-f]{{16}}\.tmp)?")
    for entry in os.listdir(directory):
        match = pattern.fullmatch(entry)
        if match and match[1] != shards["token"]:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.unlink(os.path.join(directory, entry))


def read_shards(path: Path, shards: dict[str, Any], description: Config,
                pieces: Sequence[tuple[int, int]] | None = None) -> tuple[Tensors, Tensors]:
    """Reads some elements from the shards of a save.  Blocks without any of these elements are not read.

    Args:
        shards: the metadata entry of the index.
        description: of the optimizer.
        pieces: (first element, last + 1) for each weight, the elements to read; default: all.

    Returns:
        Two dicts by name: vectors of the pieces, and the tensors that are stored whole.
    """
    path = os.fsdecode(path)
    likes = [like_from(*entry) for entry in weights_part(description)["shapes"]]
    sizes = [like.size for like in likes]
    _check_cover(path, shards["files"], sizes)
    if not re.fullmatch("[0-9a-f]{16}", shards["token"]):
        raise CheckpointError(f"{path}: invalid shard token {shards['token']!r}")
    pieces = [(0, size) for size in sizes] if pieces is None else pieces
    files: list[tuple[str, dict[tuple[str, Shape], tuple[str, int, int | None]]]] = []
    filled: dict[str, int] = {}
    for rank, segments in enumerate(shards["files"]):       # headers alone: no memory before all is known to fit
        if not any(_common(pieces[i], low, high) for i, low, high in segments):
            continue
        file, wanted = shard_path(path, shards["token"], rank), {}
        found: list[tuple[str, Shape]] = []
        _, metadata = read(file, lambda *entry, found=found: found.append(entry))
        if metadata.get("shard") != shards["token"]:
            raise CheckpointError(f"{file}: not a shard of {path}")
        for base, i, start, entry in _blocks(file, found, {i: (low, high) for i, low, high in segments}, sizes):
            piece = _in_units(base, pieces[i], sizes[i])
            n = piece[1] - piece[0] if start is None else _common(piece, start, start + entry[1][0])
            if n:
                wanted[entry] = base, i, start
                filled[base] = filled.get(base, 0) + n
        files.append((file, wanted))
    for base, n in filled.items():
        i = _place_of(base)[1]
        low, high = _in_units(base, pieces[i], sizes[i])
        if n != high - low:
            raise CheckpointError(f"{path}: tensor {base!r} is not complete in its shards")
    vectors, whole = {}, {}
    for file, wanted in files:
        tensors, _ = read(file, lambda *entry, wanted=wanted: entry in wanted)
        for (name, _), (base, i, start) in wanted.items():
            array = tensors[name]
            if start is None:
                whole[base] = array
                continue
            low, high = _in_units(base, pieces[i], sizes[i])
            if base not in vectors:
                vectors[base] = np.empty(high - low, array.dtype)
            if array.dtype != vectors[base].dtype:
                raise CheckpointError(f"{file}: tensor {name!r}: expected {vectors[base].dtype}, as before, got "
                                      f"{array.dtype}")
            vectors[base][max(start - low, 0):start + len(array) - low] = array[max(low - start, 0):high - start]
    return vectors, whole


def unit_of(name: str) -> int:
    """The elements of a weight for which a tensor has one number: scales have one for each block of codes."""
    return _core.CODE_BLOCK if name.partition("@")[0].rpartition("/")[0].endswith(SCALES) else 1


def _in_units(base: str, piece: tuple[int, int], size: int) -> tuple[int, int]:
    """The numbers of a tensor that belong to elements low .. high - 1 of a weight."""
    unit, (low, high) = unit_of(base), piece
    if low % unit or (high % unit and high != size):
        raise CheckpointError(f"tensor {base!r} is cut within a block of {unit} elements")
    return low // unit, -(-high // unit)


def _common(piece: tuple[int, int], low: int, high: int) -> int:
    """The number of elements that a piece shares with low .. high - 1."""
    return max(min(piece[1], high) - max(piece[0], low), 0)


def _place_of(name: str) -> tuple[str, int, int | None]:
    """A tensor's name without its first element, the number of its weight, and the first element or None."""
    match = re.fullmatch("(.+/(0|[1-9][0-9]{0,18}))(?:@(0|[1-9][0-9]{0,18}))?", name)
    if not match:
        raise ValueError(f"tensor {name!r:.80} has an unexpected name")
    return match[1], int(match[2]), int(match[3]) if match[3] else None


def _blocks(file: str, found: Iterable[tuple[str, Shape]], segments: dict[int, tuple[int, int]],
            sizes: Sequence[int]) -> list[Block]:
    """The name, weight, first element and entry (name and shape) of each tensor of a shard, without gaps."""
    reached: dict[str, int] = {}
    blocks = []
    for name, shape in found:
        base, i, start = _place_of(name)
        size = sizes[i] if i < len(sizes) else 0
        low, high = _in_units(base, segments.get(i, (0, 0)), size)
        before = reached.get(base, low)
        if start is None:
            good, end = (low, high) == _in_units(base, (0, size), size), high
        else:
            good, end = len(shape) == 1 and start == before, start + math.prod(shape)
        if not good or not before < end <= high:
            raise CheckpointError(f"{file}: tensor {name!r} is not at its place in the index")
        reached[base] = end
        blocks.append((base, i, start, (name, shape)))
    for base, end in reached.items():
        i = _place_of(base)[1]
        if end != _in_units(base, segments[i], sizes[i])[1]:
            raise CheckpointError(f"{file}: tensor {base!r} is not complete")
    return blocks


def _check_cover(path: str, files: Sequence[Segments], sizes: Sequence[int]) -> None:
    """Refuses files whose segments do not cover every element of every weight once."""
    reached = [0] * len(sizes)
    for i, low, high in sorted(segment for segments in files for segment in segments):
        if not all(type(n) is int for n in (i, low, high)) or not 0 <= i < len(sizes) or low != reached[i] \
                or high <= low:
            raise CheckpointError(f"{path}: its shards overlap or do not cover all weights")
        reached[i] = high
    if reached != sizes:
        raise CheckpointError(f"{path}: its shards do not cover all weights")


def with_empty(tensors: Tensors, description: Config) -> Tensors:
    """Adds the tensors that no shard holds: the slots, averages and accumulators of weights without elements."""
    part = weights_part(description)
    prefix = "0/" if part is not description else ""
    kept = [AVERAGE] * bool(part["config"]["use_ema"]) + \
        [ACCUMULATOR] * bool(part["config"]["gradient_accumulation_steps"])
    for what in (*part["slots"], *kept):
        for i, (shape, dtype) in enumerate(part["shapes"]):
            lacks = FACTORS.get(what, 0)
            if math.prod(shape) == 0 and lacks <= 0:
                own = without_axis(tuple(shape), lacks) if lacks else shape
                tensors[f"{prefix}{what}/{i}"] = np.zeros(own, like_from(shape, dtype).real.dtype)
    return tensors


def join(path: Path, shards: dict[str, Any], description: Config) -> Tensors:
    """The tensors of all shards, in the shape of their weights."""
    vectors, whole = read_shards(path, shards, description)
    part = weights_part(description)
    for base, vector in vectors.items():
        i = _place_of(base)[1]
        whole[base] = vector if unit_of(base) > 1 else vector.reshape(part["shapes"][i][0], order=shards["orders"][i])
    part["orders"] = shards["orders"]
    return with_empty(whole, description)
