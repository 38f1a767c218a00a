"""Plain tensors of real numbers, which C can look at, that stand for parameters, gradients and state it cannot.

- For a DTensor its local tensor stands, over the same memory.
- For a complex tensor its view as real numbers stands.
- For a parameter whose elements do not fill their memory a dense copy stands.  The step fills it before and writes it
  back after.

`optimizer.state` holds what torch has there: DTensors, and complex tensors.  Next: member.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: types of tensors whose methods run no Python code
PLAIN: tuple[type, ...] = (torch.Tensor, torch.nn.Parameter)
COMPLEX = (torch.complex64, torch.complex128)


def is_distributed(tensor: Tensor) -> bool:
    """True for a DTensor.  Its module need not be imported."""
    return type(tensor) not in PLAIN and hasattr(tensor, "_local_tensor")


def is_real(tensor: Tensor) -> bool:
    """True if it stands for itself: it is neither complex nor a DTensor."""
    return not tensor.is_complex() and not is_distributed(tensor)


def bare(tensor: Tensor) -> Tensor:
    """The plain tensor of real numbers over the same memory."""
    if is_distributed(tensor):
        there: Any = tensor
        tensor = there._local_tensor
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor


def gradient(param: Tensor) -> Tensor | None:
    """The gradient of a parameter, in the form in which `bare` has the parameter."""
    grad: Any = param.grad
    if grad is None:
        return None
    if is_distributed(param):
        there: Any = param
        if grad.placements != there.placements:
            grad = grad.redistribute(there.device_mesh, there.placements)
        grad = grad.to_local()
    plain: Tensor = grad
    if not param.is_complex():
        return plain
    if grad.layout == torch.sparse_coo:
        return torch.sparse_coo_tensor(grad._indices(), torch.view_as_real(grad._values().resolve_conj()),
                                       (*grad.shape, 2), check_invariants=False)
    return torch.view_as_real(grad.resolve_conj())


def dense_copy(param: Tensor) -> Tensor:
    """A dense copy of what `bare` gives, whose axes lie as those of torch's state."""
    there: Any = param
    local = there._local_tensor if is_distributed(param) else param
    return bare(torch.empty_like(local.detach()).copy_(local.detach()))


def like(tensor: Tensor, param: Tensor) -> Tensor:
    """The inverse of `bare`: a tensor for the state of `param`, over the memory of a plain one."""
    with torch.inference_mode(False):               # a program may look at state for the first time within it
        if param.is_complex():
            tensor = torch.view_as_complex(tensor)
        if is_distributed(param):
            local, made = tensor, torch.empty_like(param.detach(), dtype=tensor.dtype)
            made._local_tensor = local              # type: ignore[attr-defined]
            return made
    return tensor
