"""Muon of torch with matrix products that a CPU without instructions for bfloat16 is fast at.

A step is nearly all matrix products.  They are torch's, as is all else; no C of optimc takes part.  torch.optim.Muon
multiplies in bfloat16, which such a CPU does tens of times slower than float32.  So here the products of numbers of
bfloat16 are computed in float32 and rounded to bfloat16, which is as exact.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import TYPE_CHECKING, Any

import torch

from optimc.torch.step import loss_of, refuse_unknown
from optimc.torch_own import ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from optimc._types import Config


class Muon(torch.optim.Muon):
    """torch.optim.Muon with fast matrix products.  Arguments, formula and state are torch's.

    It takes parameters of two axes.  Results differ from torch's within the rounding of bfloat16.  With bfloat16
    parameters and nesterov=False the momentum is kept as the formula says, which torch 2.13 normalises by mistake.

    Example:
        >>> import torch, optimc.torch
        >>> p = torch.nn.Parameter(torch.ones(2, 2))
        >>> opt = optimc.torch.Muon([p], lr=0.5)
        >>> p.grad = torch.ones(2, 2)
        >>> opt.step()
        >>> bool((p != 1).all())
        True
    """

    if not TYPE_CHECKING:           # a checker knows torch's
        @functools.wraps(torch.optim.Muon.__init__)
        def __init__(self, *args, **kwargs):
            try:
                super().__init__(*args, **kwargs)
            except TypeError:
                refuse_unknown(type(self).__name__, kwargs, inspect.signature(super().__init__).parameters,
                               ARGUMENTS.get, ())
                raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, as in torch.  Returns the loss of the closure, if there is one."""
        loss = loss_of(closure)
        given = [(param, group) for group in self.param_groups for param in group["params"] if param.grad is not None]
        for param, group in given:                      # an error changes nothing
            _check(param, group)
        for param, group in given:
            _step(param, self.state[param], group)
        return loss


def _check(param: Tensor, group: Config) -> None:
    """Raises the errors of torch for what no step takes."""
    grad: Any = param.grad
    if param.is_complex():
        raise RuntimeError("Muon does not support complex parameters")
    if grad.is_sparse:
        raise RuntimeError("Muon does not support sparse gradients")
    if grad.ndim != 2:
        raise ValueError("Param gradient must be a 2D matrix")
    if group["ns_steps"] >= 100:
        raise ValueError("Number of steps must be less than 100 for computational efficiency")
    if len(group["ns_coefficients"]) != 3:
        raise ValueError("Coefficients must be a tuple of exactly 3 values")


def _step(param: Tensor, state: Config, group: Config) -> None:
    grad: Any = param.grad
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(grad, memory_format=torch.preserve_format)
    average, lr, momentum = state["momentum_buffer"], float(group["lr"]), group["momentum"]
    average.lerp_(grad, 1 - momentum)
    update = orthogonal(grad.lerp(average, momentum) if group["nesterov"] else average, group["ns_coefficients"],
                        group["ns_steps"], group["eps"])
    param.mul_(1 - lr * group["weight_decay"])
    param.add_(update, alpha=-lr * _ratio(group["adjust_lr_fn"], *param.shape))


def _ratio(adjusting: str | None, rows: int, columns: int) -> float:
    """The learning rate of a matrix as a share of that of its group."""
    if adjusting == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz steps in bfloat16: a matrix whose singular values come near 1."""
    a, b, c = coefficients
    y = matrix.bfloat16()
    y = y.T if y.size(0) > y.size(1) else y
    y = y / y.norm().clamp(min=eps)
    wide = y.device.type == "cpu" and not multiplies_bfloat16()

    def rounded(product: Tensor) -> Tensor:
        return product.bfloat16().float() if wide else product

    y = y.float() if wide else y
    for _ in range(steps):
        gram = rounded(y @ y.T)
        y = rounded(torch.addmm(y, rounded(torch.addmm(gram, gram, gram, beta=b, alpha=c)), y, beta=a))
    y = y.bfloat16()
    return y.T if matrix.size(0) > matrix.size(1) else y


def multiplies_bfloat16() -> bool:
    """True if this CPU multiplies matrices of bfloat16 fast, as torch's library for it says."""
    library: Any = torch.backends.mkldnn
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None) if library.is_available() else None
    return bool(supported and supported())
