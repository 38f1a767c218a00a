"""Storage in fewer bits: which slots have it, and whole arrays decoded and encoded.

A slot is stored as float numbers, as the upper halves of float32 in an array of uint16 (`"bfloat16"`), or in 8 bits
(`"int8"`): a vector of bytes with the codes in the order of the weight's memory and a float32 scale for 256 of them.
A weight of bfloat16 or float16 has a master: the int16 that a float32 has more than a bfloat16, or the float32.

csrc/kernels/codecs.inc defines the codes, and docs/explain/narrow-storage.md says why they are so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optimc import _core
from optimc.base.names import hint
from optimc.base.rules import slots_of
from optimc.base.storage import FLOAT32, Like, like_of, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optimc._types import Array
    from optimc.base.optimizer import Optimizer

#: weights with fewer elements keep float32 slots under state_dtype="int8", as users of 8-bit optimizers expect
LEAST_INT8 = 4096
CHOICES = ("bfloat16", "int8")
WORDS = ("float32", *CHOICES)           # the first: no fewer bits than the weight's
HALVES, BYTES, RESTS = np.dtype(np.uint16), np.dtype(np.uint8), np.dtype(np.int16)
CODECS: dict[tuple[np.dtype[Any], int], int] = {
    (HALVES, _core.NEAREST): _core.CODEC_BF16, (HALVES, _core.RANDOM): _core.CODEC_BF16_RANDOM,
    (BYTES, _core.NEAREST): _core.CODEC_S8, (BYTES, _core.RANDOM): _core.CODEC_U8_RANDOM,
    (HALVES, _core.NEAREST_16): _core.CODEC_BF16,
    **{(np.dtype(np.float16), rounding): _core.CODEC_F16
       for rounding in (_core.NEAREST, _core.RANDOM, _core.NEAREST_16)},
}
SCALE = np.dtype(np.float32)
#: the type of the master of a weight, by the name of the weight's
MASTERS: dict[str, np.dtype[Any]] = {"bfloat16": RESTS, "float16": FLOAT32}


class Place(NamedTuple):
    """The number of a weight, and the begin of a part in the whole weight: both choose the random numbers of codes.

    Args:
        number: of the weight.
        begin: its first element in the whole weight.
        size: elements of the whole weight.
    """

    number: int
    begin: int
    size: int


# --------------------------------------------------------------------------------------- choosing

def check_state_dtype(name: str, value: object) -> Any:
    """The `check` of `state_dtype`: None, a word, or a dict of slots to them, which is sorted by slot."""
    by_slot = isinstance(value, dict)
    entries: dict[Any, Any] = dict(value) if isinstance(value, dict) else {None: value}
    for slot, choice in entries.items():
        label = f"{name}[{slot!r}]" if by_slot else name
        if by_slot and not isinstance(slot, str):
            raise TypeError(f"{name} must name slots by str, got {slot!r}")
        if choice is not None and not isinstance(choice, str):
            raise TypeError(f"{label} must be None or a str{'' if by_slot else ', or a dict of slots to them'}, got "
                            f"{type(choice).__name__}")
        if choice is not None and choice not in WORDS:
            raise ValueError(f"{label} must be None, {', '.join(map(repr, WORDS[:-1]))} or {WORDS[-1]!r}, got "
                             f"{choice!r}")
    return dict(sorted(entries.items(), key=str)) if by_slot else value


def check_slots(optimizer: Optimizer, name: str, value: str | Mapping[str, str | None] | None) -> None:
    """Refuses a `state_dtype` for slots that the optimizer does not have, or that must keep their bits."""
    slots = _kept(optimizer)
    cls = type(optimizer).__name__
    if isinstance(value, dict):
        for slot, choice in value.items():
            if slot not in slots:
                raise ValueError(f"{name}: {cls} keeps no slot {slot!r}{hint(slot, slots)}: it has "
                                 f"{', '.join(map(repr, slots)) or 'none'}")
            _check_choice(cls, f"{name}[{slot!r}]", slot, choice, slots)
    for slot in slots if isinstance(value, str) else ():
        _check_choice(cls, name, slot, value, slots)


def by_slot(optimizer: Optimizer, choice: str) -> tuple[dict[str, str], list[str]]:
    """A `state_dtype` that stores slots so in weights of every size, and the slots that cannot be."""
    slots = _kept(optimizer)
    return {slot: choice for slot, choices in slots.items() if choice in choices}, \
        [slot for slot, choices in slots.items() if choice not in choices]


def _kept(optimizer: Optimizer) -> dict[str, tuple[str, ...]]:
    """The slots that weights may have, and the narrow types of each."""
    names = dict.fromkeys(slot for kernel in optimizer._possible_kernels() for slot in slots_of(kernel))
    return {slot: choices_of(optimizer, slot) for slot in names if slot not in optimizer._scratch_slots}


def _check_choice(cls: str, label: str, slot: str, choice: object, slots: Mapping[str, tuple[str, ...]]) -> None:
    if choice not in CHOICES or choice in slots[slot]:
        return
    others = {other: choice if choice in choices else choices[-1] for other, choices in slots.items() if choices}
    advice = f": pass state_dtype={others}" if others and "[" not in label else ""
    kept = "keep 16 bits" if slots[slot] else "stay float32"
    raise ValueError(f"{label}: the slot {slot!r} of {cls} must {kept}{advice}")


def choices_of(optimizer: Optimizer, slot: str) -> tuple[str, ...]:
    """The narrow types in which a slot may be stored, whatever weight it is of: those of CHOICES that it may."""
    roundings = {_rounding(kernel, slots_of(kernel)[slot])
                 for kernel in optimizer._possible_kernels() if slot in slots_of(kernel)}
    return tuple(choice for choice, dtype in zip(CHOICES, (HALVES, BYTES), strict=True)
                 if roundings <= {rounding for narrow, rounding in CODECS if narrow == dtype})


def _rounding(kernel: str, k: int) -> int:
    """The rounding that slot number k of a kernel allows: EXACT, NEAREST, RANDOM or NEAREST_16."""
    return _core.roundings[kernel][k]


def codec_of(kernel: str, k: int, array: Array | Like) -> int | None:
    """The codec of an array that is slot number k of a kernel; None if it holds plain numbers."""
    return CODECS.get((array.dtype, _rounding(kernel, k)))


def slot_like(optimizer: Optimizer, kernel: str, slot: str, weight: Array | Like, place: Place, group: int) -> Like:
    """The `Like` of the array in which a slot of a weight in a group is stored."""
    plain = optimizer._slot_like(slot, weight)
    given = optimizer._state_dtype_of(group)
    by_slot = isinstance(given, dict)
    choice = given.get(slot) if isinstance(given, dict) else given
    if choice is None and is_to_nearest(optimizer, weight) and "bfloat16" in choices_of(optimizer, slot):
        dtype = like_of(weight).dtype
        return plain._replace(dtype=dtype if name_of(dtype) == "float16" else HALVES)
    if choice not in CHOICES or slot in optimizer._scratch_slots:
        return plain
    if choice not in choices_of(optimizer, slot):
        check_slots(optimizer, "state_dtype", {slot: choice})
    if choice == "int8" and not by_slot and place.size < LEAST_INT8:
        return plain
    return coded_like(plain, choice)


def is_to_nearest(optimizer: Optimizer, weight: Array | Like) -> bool:
    """True if a weight and its slots are rounded to nearest in 16 bits, for an adapter: it has no master."""
    return name_of(weight.dtype) in optimizer._to_nearest


def coded_like(plain: Like, choice: str) -> Like:
    """The `Like` of a slot that is stored in a narrow type, from that of its plain numbers."""
    if choice == "bfloat16":
        return plain._replace(dtype=HALVES)
    return Like((_core.coded_size(plain.size),), BYTES)


def master_like(optimizer: Optimizer, weight: Array | Like, label: str) -> Like | None:
    """The `Like` of the master of a weight; None if it has none."""
    like = like_of(weight)
    name = name_of(like.dtype)
    if name in optimizer._to_nearest:
        return None
    if name == "float16" and not optimizer.master_weights:
        raise ValueError(f"{label}: float16 weights need a master, and only bfloat16 weights can be rounded at "
                         "random instead: pass master_weights=True")
    return like._replace(dtype=MASTERS[name]) if name in MASTERS and optimizer.master_weights else None


# ------------------------------------------------------------------------------ whole arrays

def decoded(codec: int, codes: Array, plain: Like, master: Array | None = None, room: Array | None = None) -> Array:
    """The numbers in an array of codes, as an array of float32 of the shape of `plain`: in `room`, or a new one.

    The order is that of `plain` for a vector of codes in 8 bits, and else that of the array.
    """
    flat = np.empty(plain.size, FLOAT32) if room is None or room.dtype != FLOAT32 else room.reshape(-1)
    numbers = flat.reshape(plain.shape, order=(plain if codes.dtype == BYTES else like_of(codes)).order)
    _core.decode(codec, codes, master, numbers)
    return numbers


def encode(codec: int, numbers: Any, plain: Like, codes: Array, key: int = 0, begin: int = 0,
           master: Array | None = None) -> None:
    """Encodes numbers, which are broadcast to the shape of `plain`, into an array of codes."""
    flat = np.empty(plain.shape, FLOAT32, plain.order)
    flat[...] = numbers
    _core.encode(codec, flat, codes, master, key, begin)


def fill(optimizer: Optimizer, kernel: str, slot: str, value: Any, weight: Array | Like, array: Array,
         place: Place) -> None:
    """Puts numbers, which are broadcast, into the array of a slot of a weight with a kernel, encoded if narrow."""
    k, plain = slots_of(kernel)[slot], optimizer._slot_like(slot, weight)
    codec = codec_of(kernel, k, array)
    if array.dtype == HALVES and is_to_nearest(optimizer, weight):
        codec = _core.CODEC_BF16
    if codec is None:
        array[...] = value
    else:
        before_any_update = 0
        key = _core.random_key(optimizer.seed, place.number, before_any_update, k)
        encode(codec, value, plain, array, key, place.begin)


def weight_codec(weight: Array | Like, master: Array | None) -> int | None:
    """The codec of a weight; None if it holds plain numbers."""
    if name_of(weight.dtype) == "bfloat16":
        return int(_core.CODEC_BF16_RANDOM if master is None else _core.CODEC_SPLIT)
    return _core.CODEC_HALF if name_of(weight.dtype) == "float16" else None


def exact(weight: Array, master: Array | None) -> Array:
    """The float32 numbers of a weight: those of its master, if it has one; a new array."""
    codec = weight_codec(weight, master)
    return np.array(weight) if codec is None else decoded(codec, weight, like_of(weight).real, master)


# --------------------------------------------------------------------------- codes in files

def split(coded: Array, like: Like) -> tuple[Array, Array]:
    """The codes of a slot in 8 bits, in the shape of its weight, and its scales: two views."""
    n = like.size
    scales = -(-n // _core.CODE_BLOCK)
    codes = coded[:n].reshape(like.shape, order=like.order)
    return codes, coded[len(coded) - scales * SCALE.itemsize:].view(SCALE)


def joined(codes: Array, scales: Array, like: Like) -> Array:
    """The slot of which `split` gave the parts; a new array."""
    coded = np.zeros(_core.coded_size(like.size), BYTES)
    to_codes, to_scales = split(coded, like)
    to_codes[...], to_scales[...] = codes, scales
    return coded


def cut(coded: Array, like: Like, low: int, high: int) -> Array:
    """Elements low .. high - 1 of a slot in 8 bits, as a slot of their own; `low` begins a block."""
    flat = like._replace(shape=(like.size,))
    codes, scales = split(coded, flat)
    first, last = low // _core.CODE_BLOCK, -(-high // _core.CODE_BLOCK)
    return joined(codes[low:high], scales[first:last], Like((high - low,), like.dtype))


def name_of_storage(array: Array) -> str:
    """The storage of a slot in words, for messages."""
    return {HALVES: "bfloat16", BYTES: "int8"}.get(array.dtype) or name_of(array.dtype)


# ------------------------------------------------------------------- what an optimizer holds

def slots_shown(optimizer: Optimizer) -> dict[str, dict[int | str, Array]]:
    """The result of `Optimizer.slots`."""
    state = optimizer._state.without(optimizer._scratch_slots)
    names = state.names
    kernels = optimizer._kernels(names, state.likes) if state.likes else []

    def numbers(slot: str, i: int, array: Array) -> Array:
        codec = codec_of(kernels[i], slots_of(kernels[i])[slot], array)
        return array if codec is None else decoded(codec, array, optimizer._slot_like(slot, state.likes[i]))

    return state.views(numbers)


def exact_weights(optimizer: Optimizer) -> list[Array]:
    """The weights of an optimizer as steps compute with them: those of 16 bits as float32 copies."""
    weights = optimizer._weights
    masters = optimizer._masters or [None] * len(weights)
    return [weight if weight_codec(weight, None) is None else exact(weight, master)
            for weight, master in zip(weights, masters, strict=True)]


def slot_numbers(optimizer: Optimizer, kernel: str, slot: str, i: int, room: Array) -> Array:
    """A slot of weight i as plain numbers: its array, or what is coded there, decoded into `room`, in C order."""
    array: Array = optimizer._slots[slot][i]
    codec = codec_of(kernel, slots_of(kernel)[slot], array)
    if codec is None:
        return array
    return decoded(codec, array, optimizer._slot_like(slot, optimizer._weights[i]), room=room)


def finalizing(optimizer: Optimizer) -> list[Array]:
    """The arrays that `_core.Averaged.finalize` takes for the averages of an optimizer.

    These are an array per weight, then the masters, then their new values.
    """
    weights, masters = optimizer._weights, optimizer._masters or ()
    values, new, live = list(optimizer._averages), [], []
    for i, master in enumerate(masters):
        if master is not None:
            code, rest = np.empty_like(weights[i]), np.empty_like(master)
            codec = weight_codec(weights[i], master)
            assert codec is not None
            encode(codec, values[i], like_of(weights[i]).real, code, master=rest)
            values[i] = code
            new.append(rest)
            live.append(master)
    return [*values, *live, *new]


def reset_masters(optimizer: Optimizer) -> None:
    """Does the work of `Optimizer.reset_master`; called through `_locked`."""
    for weight, master in zip(optimizer._weights or (), optimizer._masters or (), strict=False):
        if master is not None:
            master[...] = weight if master.dtype == FLOAT32 else 0
