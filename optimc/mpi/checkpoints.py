"""Checkpoints of a job: a file per rank, a shard, and the file that joins them.

The files are optimc.checkpoint's; here is which rank writes and reads what, and that ranks agree on it.  Next:
loading.py.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import zlib
from typing import TYPE_CHECKING

from optimc import checkpoint
from optimc.mpi.layout import Layout
from optimc.mpi.team import Fact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Literal

    from optimc._types import Array, Config, Path, Tensors
    from optimc.base.storage import Like
    from optimc.mpi.team import Call

    Share = tuple[Config, dict[str, tuple[Array, int | None]]]


def save(call: Call, path: Path, layout: Layout, share: Callable[[], Share],
         locked: Callable[[Callable[[], Config]], Config]) -> None:
    """Writes a checkpoint, all ranks together, within a call; see `Sharded.save`.

    Args:
        share: called without arguments, gives the description of the optimizer and this rank's tensors, as
            `share_of` does.
        locked: calls a function under the lock of the rank's optimizer.
    """
    checkpoint.format.target_of(path)               # raises here, before there is a file of any rank
    mark, rank = zlib.crc32(os.fsencode(path)), call.team.rank
    numbers = call.agree([Fact("has another path", mark)], tell=secrets.randbits(63))
    token = f"{numbers[0]:016x}"

    def write_share() -> Config:
        description, tensors = share()
        checkpoint.shards.write_shard(path, token, rank, tensors)
        return description

    call.reopen("write the file of a rank")
    try:
        description = locked(write_share)
        call.agree([Fact.of("has another state", checkpoint.descriptions.encode(description))])
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(checkpoint.shards.shard_path(path, token, rank))
        raise
    call.reopen("end the save")
    if rank == 0:
        checkpoint.shards.write_index(path, description, {
            "token": token, "orders": "".join(like.order for like in layout.likes),
            "files": [layout.owned(one) for one in range(call.team.size)]})
    call.agree()


def share_of(exported: tuple[Config, Tensors], layout: Layout, rank: int, slot_names: list[str]) -> Share:
    """Returns the description of the optimizer in one piece, and a rank's tensors as `write_shard` takes them.

    Args:
        exported: what the `_export` of the rank's optimizer gave.
        slot_names: the slots that the optimizer keeps for the weights of all ranks.
    """
    description, tensors = exported
    part = checkpoint.descriptions.weights_part(description)
    part["shapes"] = [[list(like.shape), like.dtype.name] for like in layout.likes]
    part["slots"] = slot_names
    part.pop("orders", None)                        # those of the whole weights stand in the index
    pieces = layout.pieces(rank)
    numbered = [(name, array, *pieces[_weight_of(name)]) for name, array in tensors.items()]
    return description, {
        name: (array, None) if layout.cut == "tensors" else (
            array.reshape(-1), low // checkpoint.shards.unit_of(name))
        for name, array, low, high in numbered if low < high}


def layout_of(description: Config, orders: Iterable[Literal["C", "F"]], ranks: int,
              cut: Callable[[Sequence[Like]], str]) -> Layout:
    """The layout for the weights that a checkpoint describes; `cut` tells where such weights may be cut."""
    likes = [checkpoint.descriptions.like_from(shape, dtype, order) for (shape, dtype), order in
             zip(checkpoint.descriptions.weights_part(description)["shapes"], orders, strict=True)]
    return Layout(likes, ranks, cut(likes))


def slot_names_of(description: Config) -> list[str]:
    """The slots that the optimizer keeps for the weights of all ranks."""
    names: list[str] = checkpoint.descriptions.weights_part(description)["slots"]
    return names


def read_share(path: Path, shards: dict[str, Any], description: Config, layout: Layout, rank: int) -> Tensors:
    """Returns a rank's tensors from the shards of any number of ranks; the description becomes that of its pieces."""
    pieces = layout.pieces(rank)
    vectors, whole = checkpoint.shards.read_shards(path, shards, description, pieces)
    tensors: Tensors = {}
    for name, array in {**vectors, **whole}.items():
        i, unit = _weight_of(name), checkpoint.shards.unit_of(name)
        low, high = pieces[i]
        piece: Array | None = array
        if unit > 1:
            piece = array if name in vectors else array[low // unit:-(-high // unit)]
        elif name in vectors:
            piece = layout.in_shape(i, low, array)
        else:
            piece = layout.piece_of(i, low, high, array)
        if piece is not None:
            tensors[name] = piece
    part, likes = checkpoint.descriptions.weights_part(description), layout.likes_of(rank)
    part["shapes"] = [[list(like.shape), like.dtype.name] for like in likes]
    part["orders"] = "".join(like.order for like in likes)
    return checkpoint.shards.with_empty(tensors, description)


def _weight_of(name: str) -> int:
    """The number of the weight that a tensor belongs to: the end of its name."""
    return int(name.rpartition("/")[2])
