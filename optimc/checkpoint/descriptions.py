"""What a checkpoint says of an optimizer beside its tensors, as JSON."""

import json

from optimc.base import storage

#: what averages and accumulators are called beside the slots
AVERAGE, ACCUMULATOR = "ema_average", "gradient_accumulator"


def encode(description):
    try:
        return json.dumps(description, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"the configuration cannot be stored in a checkpoint: {error}") from None


def weights_part(description):
    """What a description says of the weights: of an optimizer itself, or of the one within a wrapper."""
    return description["inner"][0] if "inner" in description else description


def like_from(shape, dtype, order="C"):
    """What a weight is like, from a description; the text of its dtype never reaches NumPy's parser."""
    if dtype not in storage.TYPES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shapes: expected sizes and {storage.IN_WORDS}, got {shape!r:.80} and {dtype!r:.80}")
    return storage.Like(tuple(shape), storage.TYPES[dtype].dtype, order)
