"""The tensors of a parameter's state: the form in which a step takes them, and others brought into it.

Slots have torch's keys.  One that is stored as plain numbers, or as bfloat16, is a tensor of the parameter's shape
and strides.  One of 8 bits is a flat tensor of uint8: the codes in the order of the parameter's memory, bytes of 0 up
to a multiple of 4, and a float32 scale for 256 of them.  If that order is not the axes' own, the state says it under
`AXES`.  The master of a parameter of 16 bits is under `MASTER`: int16 beside bfloat16, float32 beside float16.

No step takes a tensor of another type, order or alignment: `Slots` makes one anew, and converts what it holds.
torch's loading would cast them to the type of the parameter, so loading.py takes them round it.

Next: narrow.py of optimc.base, which chooses how a slot is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optimc import _core
from optimc.base import memory, narrow
from optimc.base.narrow import Place
from optimc.base.rules import slots_of, used_slots
from optimc.base.storage import FLOAT32, Like
from optimc.torch import bare, tensors
from optimc.torch_names import AXES, MASTER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from optimc._types import Array, Config
    from optimc.base.optimizer import Optimizer
    from optimc.torch.member import Member
    from optimc.torch_names import Counterpart


class Slots:
    """The slots and masters of parameters that one inner optimizer steps.  No state changes.

    Args:
        inner: the optimizer of optimc.
        counterpart: torch's names.
        members: the `Member` of each parameter.
        groups: their groups, in the order of the inner optimizer's.
        moves: all tensors are made anew, in memory where a step is fast.

    Attributes:
        weights: NumPy views of the plain tensors that stand for the parameters.
        places: the `Place` of each.
        keys: torch's keys of the slots -> (slot, its number).
        new: (`Member`, key, value) of entries that are to enter the states; those without value are to leave them.
    """

    inner: Optimizer
    members: Sequence[Member]
    moves: bool
    weights: list[Array]
    places: list[Place]
    keys: dict[str, tuple[str, int]]
    new: list[tuple[Member, str, Any]]

    def __init__(self, inner: Optimizer, counterpart: Counterpart, members: Sequence[Member],
                 groups: Sequence[Config], moves: bool = False) -> None:
        self.inner, self.members, self.moves = inner, members, moves
        self._params = [member.plan() for member in members]
        self.weights = [tensors.view(param, param) for param in self._params]
        self.places = [Place(member.index, 0, param.numel())
                       for member, param in zip(members, self._params, strict=True)]
        self.keys = {counterpart.slots[slot]: (slot, k) for slot, k in used_slots(inner).items()
                     if slot in counterpart.slots}
        self.new = []
        self._kernels, self._counterpart = inner._kernels(None, self.weights), counterpart
        self._groups = {id(group): k for k, group in enumerate(groups)}

    def is_kept(self, slot: str) -> bool:
        """True if a parameter has this slot."""
        return any(slot in slots_of(kernel) for kernel in self._kernels)

    def slot(self, key: str, initial: Callable[[Config], float | None]) -> list[Array | None]:
        """The arrays of a slot, whose tensors the members note; None for parameters without.

        initial: a function of the group that gives the number a new tensor is filled with, None for the parameter's.

        Raises:
            ValueError: a state has something else there than a slot of its parameter.
        """
        slot, k = self.keys[key]
        likes: list[Like | None] = [
            narrow.slot_like(self.inner, kernel, slot, weight, place, self._groups[id(member.group)])
            if slot in slots_of(kernel) else None
            for kernel, weight, place, member in zip(self._kernels, self.weights, self.places, self.members,
                                                     strict=True)]
        for i, (member, like) in enumerate(zip(self.members, likes, strict=True)):
            if like is not None and not bare.is_real(member.param):
                self._check_storage(i, like)
            if member.state.get(key) is not None and like is not None and not self.can_read(key, i):
                self._refuse(key, i, like)

        def fill(array: Array, tensor: Tensor | None, i: int) -> None:
            number = initial(self.members[i].group) if tensor is None else self._numbers(tensor, key, i)
            self._encode(array, self.weights[i] if number is None else number, key, i)

        return self._taken(key, k, likes, fill)

    def masters(self) -> list[Array | None] | None:
        """The arrays of the masters, whose tensors the members note; None if there is no master.

        Raises:
            ValueError: a parameter needs a master that it is not to have, or a state has one of another shape.
        """
        likes = [master_like(self.inner, weight, member.index)
                 for weight, member in zip(self.weights, self.members, strict=True)]
        for i, (member, like) in enumerate(zip(self.members, likes, strict=True)):
            tensor = member.state.get(MASTER)
            if like is None and tensor is not None:
                self.new.append((member, MASTER, None))
            elif like is not None and tensor is not None and not (
                    isinstance(tensor, torch.Tensor) and bare.bare(tensor).shape == self._params[i].shape):
                self._refuse(MASTER, i, like)

        def fill(array: Array, tensor: Tensor | None, i: int) -> None:
            if array.dtype == FLOAT32:              # one of another type is none: torch has cast it
                array[...] = self.weights[i]

        return self._taken(MASTER, _core.PART_MASTER, likes, fill) if any(likes) else None

    def check_whole(self) -> None:
        """Raises a ValueError if a state lacks a slot of its parameter."""
        for key, (slot, _) in self.keys.items():
            for kernel, member in zip(self._kernels, self.members, strict=True):
                if slot in slots_of(kernel) and member.state.get(key) is None:
                    raise ValueError(f"loaded state of parameter {member.index}: it was stepped, and has no {key!r}")

    def can_read(self, key: str, i: int) -> bool:
        """Whether what a state has for a slot is numbers of its parameter, of a type that this can convert."""
        tensor, param = self.members[i].state.get(key), self._params[i]
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            return False
        tensor, real = bare.bare(tensor), tensors.DTYPES[tensors.TYPES[param.dtype].real]
        return self._codec_of(tensor, key, i) is not None or (
            tensor.shape == self._frame(key, i).shape
            and tensor.dtype in (real, torch.float32, torch.float64, *tensors.HALVES))

    def _check_storage(self, i: int, like: Like) -> None:
        """Refuses storage of a slot that has no form in the state of a complex parameter or a DTensor."""
        param = self.members[i].param
        if like.dtype == narrow.BYTES or (param.is_complex() and like.dtype == narrow.HALVES):
            kind = "complex parameter" if param.is_complex() else "DTensor"
            raise ValueError(f"params[{self.members[i].index}]: a {kind} has no slots of "
                             f"{tensors.DTYPES[like.dtype]}: leave state_dtype out")

    def _refuse(self, key: str, i: int, like: Like) -> None:
        tensor = self.members[i].state[key]
        tensor = bare.bare(tensor) if isinstance(tensor, torch.Tensor) else tensor
        got = f"{tuple(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else repr(tensor)
        shape = like.shape if like.dtype == narrow.BYTES else tuple(self._frame(key, i).shape)
        raise ValueError(f"params[{self.members[i].index}]: state {key!r}: expected shape {shape} of "
                         f"{tensors.DTYPES[like.dtype]}, got {got}")

    def _taken(self, key: str, part: int, likes: Sequence[Like | None],
               fill: Callable[[Array, Tensor | None, int], None]) -> list[Any]:
        """The arrays for an entry of the states: those of tensors that a step takes, else new ones, which are filled.

        part: the number of the slot or master, by which memory.like places new arrays.
        """
        arrays: list[Any] = [None] * len(likes)
        new = []
        for i, (like, member) in enumerate(zip(likes, self.members, strict=True)):
            if like is None:
                continue
            tensor = member.state.get(key)
            tensors.check_versions([] if tensor is None or tensors.has_version(tensor) else [tensor])
            frame = self._frame(key, i)
            if tensor is None or self.moves or not self._is_taken(tensor, i, like, frame):
                new.append((i, like, None if tensor is None else bare.bare(tensor)))
            else:
                arrays[i], member.slots[key] = tensors.stored(bare.bare(tensor), frame), tensor
        made = memory.like([self.weights[i] for i, _, _ in new], part, [like for _, like, _ in new])
        for (i, like, tensor), array in zip(new, made, strict=True):
            member, frame = self.members[i], self._frame(key, i)
            mine = tensors.over(array, frame)
            arrays[i] = array = array if key not in self._counterpart.factors else array.reshape(frame.shape)
            if tensor is not None and self._has_form(tensor, i, like, frame):
                mine.copy_(tensor)
            else:
                fill(array, tensor, i)
            member.slots[key] = bare.like(mine, member.param)
            self.new.append((member, key, member.slots[key]))
            if like.dtype == narrow.BYTES and _axes_of(member.state) != tensors.order(self._params[i]):
                self.new.append((member, AXES, tensors.order(self._params[i])))
        return arrays

    def _frame(self, key: str, i: int) -> Tensor:
        """A tensor with the shape and strides of a slot or master: the parameter, if the slot lacks no axis of it.

        Raises:
            ValueError: a slot has numbers of rows, and the axes of the parameter lie in another order.
        """
        param = self._params[i]
        if key not in self._counterpart.factors:
            return param
        if tensors.order(param) is not None:
            raise ValueError(f"params[{self.members[i].index}]: expected a contiguous tensor, got strides "
                             f"{param.stride()}: {type(self.inner).__name__} keeps a number for each row")
        return torch.empty(self._counterpart.shape(key, param.shape), device="meta")

    def _is_taken(self, tensor: Tensor, i: int, like: Like, frame: Tensor) -> bool:
        """True if a step takes a tensor of a state as it is."""
        if bare.is_distributed(tensor) != bare.is_distributed(self.members[i].param):
            return False
        tensor = bare.bare(tensor)
        if like.dtype == narrow.BYTES:
            return (self._has_form(tensor, i, like, frame) and tensor.is_contiguous()
                    and tensor.data_ptr() % narrow.SCALE.itemsize == 0)
        return (self._has_form(tensor, i, like, frame) and tensors.order(tensor) == tensors.order(frame)
                and tensors.is_dense(tensor))

    def _has_form(self, tensor: Tensor, i: int, like: Like, frame: Tensor) -> bool:
        """True if a plain tensor holds what is stored in an array of this `Like`, whatever its strides.

        frame: a tensor of the shape that it has if its numbers are not coded in 8 bits.
        """
        if tensor.dtype != tensors.DTYPES[like.dtype]:
            return False
        if like.dtype == narrow.BYTES:
            return (tuple(tensor.shape) == like.shape
                    and _axes_of(self.members[i].state) == tensors.order(self._params[i]))
        return tensor.shape == frame.shape

    def _codec_of(self, tensor: Tensor, key: str, i: int) -> int | None:
        """The codec of a tensor that holds codes of 8 bits; None if it holds none for this slot of its parameter."""
        like = Like((_core.coded_size(self._params[i].numel()),), narrow.BYTES)
        return narrow.codec_of(self._kernels[i], self.keys[key][1], like) \
            if tensor.dtype == torch.uint8 and tuple(tensor.shape) == like.shape else None

    def _numbers(self, tensor: Tensor, key: str, i: int) -> Array:
        """The numbers that a tensor of a state holds, with the axes in the order of the parameter's memory."""
        param = self._params[i]
        codec = self._codec_of(tensor, key, i)
        if codec is None:
            return tensors.view(tensor.to(tensors.DTYPES[tensors.TYPES[param.dtype].real]), self._frame(key, i))
        axes, mine = _axes_of(self.members[i].state), tensors.order(param)
        shape = tuple(param.shape[axis] for axis in axes) if axes else tuple(param.shape)
        numbers = narrow.decoded(codec, np.array(tensors.array(tensor)), Like(shape, FLOAT32))
        numbers = numbers.transpose(np.argsort(axes)) if axes else numbers
        return numbers.transpose(mine) if mine else numbers

    def _encode(self, array: Array, numbers: Any, key: str, i: int) -> None:
        """Stores numbers in a new array for a slot."""
        slot, _ = self.keys[key]
        narrow.fill(self.inner, self._kernels[i], slot, numbers, self.weights[i], array, self.places[i])


def master_like(inner: Optimizer, weight: Array | Like, i: int) -> Like | None:
    """The `Like` of the master of parameter number i; None if it has none.

    Raises:
        ValueError: it is of float16, and is to be rounded at random.
    """
    try:
        return narrow.master_like(inner, weight, f"params[{i}]")
    except ValueError:
        raise ValueError(f"params[{i}]: only bfloat16 parameters can be rounded at random, got float16: leave "
                         "stochastic_round out") from None


def _axes_of(state: Config) -> tuple[int, ...] | None:
    """The order of memory that codes of 8 bits in a state are in."""
    axes = state.get(AXES)
    return None if axes is None else tuple(axes)

