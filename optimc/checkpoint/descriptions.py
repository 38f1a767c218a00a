"""What a checkpoint says of an optimizer beside its tensors, as JSON."""

import json

import numpy as np

#: what averages and accumulators are called beside the slots
AVERAGE, ACCUMULATOR = "ema_average", "gradient_accumulator"
FACTORS = ("row", "column")                 # slots that are not of their weight's shape


def encode(description):
    try:
        return json.dumps(description, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(f"the configuration cannot be stored in a checkpoint: {error}") from None


def weights_part(description):
    """What a description says of the weights: of an optimizer itself, or of the one within a wrapper."""
    return description["inner"][0] if "inner" in description else description


def shape_of(shape, dtype):
    """A weight's shape and dtype as a description has them; its text never reaches NumPy's parser of dtypes."""
    if dtype not in ("float32", "float64") or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shapes: expected sizes and float32 or float64, got {shape!r:.80} and {dtype!r:.80}")
    return tuple(shape), np.dtype(dtype)
