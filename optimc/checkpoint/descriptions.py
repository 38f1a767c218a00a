"""The description of an optimizer in a checkpoint, as JSON: everything but its tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from optimc.base import storage

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from optimc._types import Config

#: the names of averages and accumulators, which stand beside the names of slots
AVERAGE, ACCUMULATOR, MASTER = "ema_average", "gradient_accumulator", "master_weight"
#: the end of the name of the scales that stand beside the codes of a slot
SCALES = ".scale"


def encode(description: Config) -> str:
    try:
        return json.dumps(description, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"the configuration cannot be stored in a checkpoint: {error}") from None


def weights_part(description: Config) -> Config:
    """The part of a description that concerns weights: that of the optimizer, or of the one in a wrapper."""
    return description["inner"][0] if "inner" in description else description


def like_from(shape: Iterable[int], dtype: str, order: Literal["C", "F"] = "C") -> storage.Like:
    """The `Like` of a weight from a description.  The text of the dtype never reaches NumPy's parser."""
    if dtype not in storage.TYPES or order not in ("C", "F") or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shapes: expected sizes and {storage.IN_WORDS}, got {shape!r:.80} and {dtype!r:.80}")
    return storage.Like(tuple(shape), storage.TYPES[dtype].dtype, order)


def likes_from(description: Config) -> tuple[storage.Like, ...]:
    """The `Like` of each weight in the description of a state."""
    shapes = description["shapes"]
    return tuple(like_from(shape, dtype, order) for (shape, dtype), order in zip(
        shapes, description.get("orders") or "C" * len(shapes), strict=True))
