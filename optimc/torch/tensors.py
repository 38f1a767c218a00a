"""Tensors as the C step sees them: views of their memory, the order of their axes, and what no step can take.

Two tensors of one order have their elements at the same places.  A step walks a parameter, its gradient and its state
in the order in which the parameter lies in memory, so that tensors in channels-last order are stepped in place too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from optimc._core import Rows
from optimc.base import narrow, storage
from optimc.torch.bare import COMPLEX, PLAIN, bare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from torch import Tensor

    from optimc._types import Array

TYPES: dict[torch.dtype, storage.StorageType] = {getattr(torch, name): row for name, row in storage.TYPES.items()}
#: types of 16 bits
HALVES = (torch.bfloat16, torch.float16)
#: NumPy's types of slots and masters -> torch's
DTYPES: dict[np.dtype[Any], torch.dtype] = {
    storage.FLOAT32: torch.float32, storage.FLOAT64: torch.float64, narrow.HALVES: torch.bfloat16,
    np.dtype(np.float16): torch.float16,
    narrow.BYTES: torch.uint8, narrow.RESTS: torch.int16}

#: the table by which C looks at tensors; None before torch 2.10: then steps go through NumPy views
EXCHANGE: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)


def order(tensor: Tensor) -> tuple[int, ...] | None:
    """The axes in the order in which they lie in memory; None if that is their own order."""
    if tensor.is_contiguous():
        return None
    return tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order of the axes."""
    axes = order(tensor)
    return axes is None or tensor.permute(axes).is_contiguous()


def array(tensor: Tensor) -> Array:
    """A NumPy view of a tensor's memory, that of bfloat16 as uint16.

    Raises:
        ValueError: it has elements but no memory; NumPy would take some of its own.
    """
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        raise ValueError(f"a weight, its gradient or its state, of shape {tuple(tensor.shape)}, has no memory")
    if tensor.dtype == torch.bfloat16:
        halves: Array = tensor.detach().view(torch.int16).numpy().view(np.uint16)
        return halves
    return tensor.detach().numpy()


def stored(tensor: Tensor, like: Tensor) -> Array:
    """The same of a slot or a master, with its axes in the order of `like`'s; codes of 8 bits have one axis."""
    axes = order(like)
    return array(tensor if axes is None or tensor.dtype == torch.uint8 else tensor.permute(axes))


def view(tensor: Tensor, like: Tensor) -> Array:
    """The same of a parameter or a gradient: bfloat16 is bfloat16 of ml_dtypes."""
    return _typed(stored(tensor, like), tensor)


def _typed(found: Array, tensor: Tensor) -> Array:
    return found.view(TYPES[torch.bfloat16].dtype) if tensor.dtype == torch.bfloat16 else found


def rows(grad: Tensor, param: Tensor, i: int) -> Rows | None:
    """The `Rows` over the memory of a sparse gradient, as of torch.nn.Embedding(sparse=True); None of another tensor.

    It need not be coalesced: the step adds up repeated rows, in order of occurrence.

    Args:
        grad: the gradient.
        param: its parameter.
        i: the number of the parameter in messages.

    Raises:
        TypeError: it is sparse in other axes than the first, or no step takes its type.
        ValueError: it has not the shape of its parameter, or the parameter's rows are not one after the other.
    """
    if not isinstance(grad, torch.Tensor) or grad.layout is not torch.sparse_coo or grad.device.type != "cpu":
        return None
    if grad.sparse_dim() != 1:
        raise TypeError(f"grads[{i}]: expected a dense tensor, or a sparse one with sparse_dim 1, as of an "
                        f"embedding, got sparse_dim {grad.sparse_dim()}")
    if grad.dtype not in TYPES:
        raise TypeError(f"grads[{i}]: expected {storage.IN_WORDS}, got {grad.dtype}")
    if grad.shape != param.shape:
        raise ValueError(f"grads[{i}]: expected shape {tuple(param.shape)}, like its parameter, "
                         f"got {tuple(grad.shape)}")
    if order(param) is not None:
        raise ValueError(f"grads[{i}]: expected a dense tensor, for the parameter has strides {param.stride()}: "
                         "sparse gradients need one that is contiguous")
    values = grad._values().resolve_neg()
    return Rows(array(grad._indices()[0]), _typed(array(values), values))


def gradient(grad: Tensor, param: Tensor, i: int) -> Array | Rows:
    """A gradient as a step over arrays takes it: a view, or `rows`."""
    found = rows(grad, param, i)
    return view(grad.resolve_neg(), param) if found is None else found


def settled(grad: Tensor) -> Tensor:
    """The gradient with its numbers as they are in memory: coalesced if it is sparse, else not conjugate."""
    return grad.coalesce() if grad.layout is torch.sparse_coo else grad.resolve_conj()


def numbers(grad: Tensor) -> Tensor:
    """The real numbers of a `settled` gradient, over its memory."""
    values = grad._values() if grad.layout is torch.sparse_coo else grad
    return torch.view_as_real(values) if values.is_complex() else values


def norm(numbers: Tensor) -> Tensor:
    """The norm of real numbers, in float32 if they have 16 bits."""
    there: Tensor = torch.linalg.vector_norm(numbers, dtype=torch.float32 if numbers.dtype in HALVES else None)
    return there


def over(array: Array, like: Tensor) -> Tensor:
    """A tensor over the memory of `array`, with the shape and strides of `like`; the inverse of `stored`."""
    with torch.inference_mode(False):               # a program may look at state for the first time within it
        if not array.size:              # it may begin where an array of another type does, which torch.save refuses
            flat = torch.empty(0, dtype=DTYPES[array.dtype])
        elif array.dtype == narrow.HALVES:
            flat = torch.from_numpy(array.reshape(-1).view(np.int16)).view(torch.bfloat16)
        else:
            flat = torch.from_numpy(array.reshape(-1))
        return flat if array.dtype == narrow.BYTES else flat.as_strided(like.shape, like.stride())


def form(tensor: Tensor) -> tuple[Any, ...]:
    """All that a plan depends on of a parameter but its address."""
    plain = bare(tensor)
    return tensor.device, tensor.dtype, tensor.shape, plain.shape, plain.stride()


def like_of(param: Tensor) -> storage.Like:
    """The `Like` of a parameter as `bare` gives it, with its axes in their own order.

    Raises:
        ImportError: ml_dtypes, which has its type, is not installed.
    """
    plain = bare(param)
    return storage.Like(tuple(plain.shape), TYPES[plain.dtype].dtype)


def is_on_cpu(tensor: object) -> bool:
    """Whether it is a tensor with memory of the CPU."""
    return isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"


def is_number(entry: Any, is_count: bool) -> bool:
    """True if C reads and writes the number in a tensor of a state: one of float64, or a count of float32."""
    return (type(entry) in PLAIN and is_on_cpu(entry) and entry.numel() == 1
            and (entry.dtype == torch.float64 or (is_count and entry.dtype == torch.float32))
            and not entry.is_inference() and not entry.is_neg())


def is_stepped(param: Tensor) -> bool:
    """Whether a step takes a parameter."""
    return (is_on_cpu(param) and (param.dtype in TYPES or param.dtype in COMPLEX)
            and not torch.nn.parameter.is_lazy(param) and _is_apart(bare(param)))


def _reach(tensor: Tensor) -> int:
    """The bytes from the first element of a plain tensor to the end of the last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + steps) * tensor.element_size() if tensor.numel() else 0


def _is_apart(tensor: Tensor) -> bool:
    """True if the elements of a plain tensor surely lie apart from each other, with gaps or without."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)) if tensor.numel() else ():
        if size > 1:
            if stride <= reach:
                return False
            reach += (size - 1) * stride
    return True


def check_parameter(param: Tensor, i: int) -> None:
    """Raises an error if parameter number `i` cannot be stepped.

    Raises:
        TypeError: it is not on the CPU, is sparse, or of a type that no step takes.
        ValueError: its elements share memory, or are not the numbers that are in it.
    """
    if param.device.type != "cpu":
        raise TypeError(f"params[{i}]: expected a tensor on the CPU, got one on {param.device}")
    if param.layout is not torch.strided:
        raise TypeError(f"params[{i}]: expected a dense tensor, got {param.layout}")
    if param.dtype not in TYPES and param.dtype not in COMPLEX:
        raise TypeError(f"params[{i}]: expected {storage.IN_WORDS}, or complex64 or complex128, got {param.dtype}")
    if torch.nn.parameter.is_lazy(param):
        return
    if param.is_conj() or (param.is_neg() and is_dense(param)):         # a copy stands for one with gaps
        raise ValueError(f"params[{i}]: expected the numbers in memory, got the lazy "
                         f"{'conjugate' if param.is_conj() else 'negative'} of them: "
                         f"{'resolve_conj' if param.is_conj() else 'resolve_neg'}() has such a memory of its own")
    if not _is_apart(bare(param)):
        raise ValueError(f"params[{i}]: expected elements that lie apart from each other, "
                         f"got shape {tuple(param.shape)} with strides {param.stride()}: "
                         "clone() has such a memory of its own")


def check_apart(params: Iterable[tuple[int, Tensor]]) -> None:
    """Raises a ValueError if two parameters, given with their numbers, share memory."""
    plain = [(i, bare(param)) for i, param in params if not torch.nn.parameter.is_lazy(param)]
    before: list[tuple[int, int, Tensor]] = []
    for place, i, tensor in sorted(((tensor.data_ptr(), i, tensor) for i, tensor in plain if tensor.numel()),
                                   key=lambda row: row[:2]):
        before = [row for row in before if row[0] > place]
        for _, k, other in before:
            if (is_dense(tensor) and is_dense(other)) or _share(tensor, other):
                i, k = sorted((i, k))
                raise ValueError(f"params[{i}] and params[{k}] overlap in memory")
        before.append((place + _reach(tensor), i, tensor))


def _share(a: Tensor, b: Tensor) -> bool:
    """True if two plain tensors have an element in common, as far as that is soon found out."""
    try:
        return np.shares_memory(array(a), array(b), max_work=100_000)       # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return False


def has_version(tensor: Tensor) -> bool:
    """Whether torch counts the changes of a tensor: not those of one made in inference mode."""
    try:
        return tensor._version is not None
    except RuntimeError:
        return False


def check_versions(unversioned: Sequence[Tensor]) -> None:
    """Raises a RuntimeError, as torch does, for tensors made in inference mode that are to be stepped outside it."""
    if unversioned and not torch.is_inference_mode_enabled():
        raise RuntimeError("a parameter or its state was made in inference mode: it cannot be updated outside it")


def check_gradients(params: Iterable[tuple[int, Tensor]]) -> None:
    """Raises a TypeError for a gradient that C cannot look at; parameters are given with their numbers."""
    for i, param in params:
        grad = param.grad
        if grad is not None and (grad.layout not in (torch.strided, torch.sparse_coo) or grad.device.type != "cpu"):
            raise TypeError(f"params[{i}].grad: expected a dense tensor on the CPU, or a sparse one of rows, "
                            f"got {grad.layout} on {grad.device}") from None
