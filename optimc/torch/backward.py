"""Steps within the backward pass: a parameter is stepped as soon as its gradient is there, and the gradient is freed.

So there are never more gradients than those of a layer.  One optimizer, with one plan, steps all parameters: while
one of them has a gradient, the others rest.

Next: step.py, the step.
"""

from __future__ import annotations

import math
import numbers
import sys
import warnings
import weakref
from typing import TYPE_CHECKING

import torch

from optimc.base.names import UnknownArgument, closest
from optimc.torch import tensors
from optimc.torch.step import TorchOptimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from torch import Tensor

#: what torch gives outside of a backward pass for its number
NO_PASS = -1


def step_in_backward(model: torch.nn.Module | Iterable[Tensor], make_optimizer: Callable[[list[Tensor]], Any], *,
                     accumulate: int = 1, clip_value: float | None = None, clip_norm_before: float | None = None,
                     **others: object) -> Any:
    """Lets `loss.backward()` step each parameter as soon as it has its gradient, and free the gradient.

    The rest of a training loop may stay: `step` and `zero_grad` then find nothing to do, and schedulers set the rate
    of the next backward pass.  The steps end when the optimizer is deleted, so keep it.

    - Gradients that are there before the call are dropped.
    - A second call for a parameter takes it over from the optimizer of the first.
    - `step` steps parameters that were added later with `add_param_group`.
    - The hooks of `register_step_pre_hook` and its like run in calls of `step` only.
    - Use no `GradScaler`: the steps would take its scaled gradients, and its `step` fails afterwards.

    Args:
        model: a module, or parameters.
        make_optimizer: makes the optimizer, of a class of optimc.torch, from the list of parameters that require
            gradients.
        accumulate: backward passes whose gradients are added up for a step.
        clip_value: gradients are clipped to this, element by element.
        clip_norm_before: gradients are scaled as if their global norm were that of the step before, and clipped to
            this.  In the first step each parameter's own norm is clipped.

    Returns:
        The optimizer.

    Raises:
        ValueError: asks for a global norm of the present step, which is known only when all gradients are there.
        TypeError: make_optimizer is none, or a number is of another type.

    Example:
        >>> import torch, optimc.torch
        >>> net = torch.nn.Linear(2, 1)
        >>> opt = optimc.torch.step_in_backward(net, optimc.torch.AdamW)
        >>> before = net.weight.detach().clone()
        >>> net(torch.ones(1, 2)).sum().backward()
        >>> net.weight.grad is None, bool((net.weight != before).all())
        (True, True)
    """
    _check(accumulate, clip_value, clip_norm_before, others)
    if not callable(make_optimizer):
        raise TypeError("make_optimizer must be a class of optimc.torch, or a function that makes its optimizer, as "
                        f"lambda params: AdamW(params, lr=1e-3), got an object of {type(make_optimizer).__name__}")
    params = model.parameters() if isinstance(model, torch.nn.Module) else model
    optimizer = make_optimizer([param for param in params if param.requires_grad])
    if not isinstance(optimizer, TorchOptimizer):
        raise TypeError("make_optimizer must make an optimizer of optimc.torch, got "
                        f"{type(optimizer).__module__}.{type(optimizer).__name__}")
    optimizer._cohorts.plans_all = True
    bounds = [None if bound is None else float(bound) for bound in (clip_value, clip_norm_before)]
    InBackward(optimizer, accumulate, *bounds)
    return optimizer


def _check(accumulate: object, clip_value: object, clip_norm_before: object, others: Iterable[str]) -> None:
    for name in others:
        if "norm" in name:
            raise ValueError(f"{name}: the global norm of a step is known only with its last gradient, when the "
                             "first are stepped: pass clip_norm_before, or step after the backward pass")
        like = closest(name, ("accumulate", "clip_value", "clip_norm_before"), 0.8)
        advice = f"did you mean {like}?" if like else \
            f"give the optimizer its arguments, as lambda params: AdamW(params, {name}=...)"
        raise UnknownArgument(f"step_in_backward has no argument {name!r}: {advice}")
    if not isinstance(accumulate, numbers.Integral) or isinstance(accumulate, bool):
        raise TypeError(f"accumulate must be a whole number, got {accumulate!r}")
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    for name, bound in (("clip_value", clip_value), ("clip_norm_before", clip_norm_before)):
        if bound is not None and not (isinstance(bound, numbers.Real) or (
                isinstance(bound, torch.Tensor) and bound.numel() == 1 and not bound.is_complex())):
            raise TypeError(f"{name} must be None or a number, got {bound!r}")
        if bound is not None and not float(bound) > 0:
            raise ValueError(f"{name} must be greater than 0, got {bound}")


class Hooks:
    """A function that parameters call when their gradient has been made."""

    def __init__(self, params: Iterable[Any]) -> None:
        self._handles: list[Any] = []
        try:
            for param in params:
                self._handles.append(param.register_post_accumulate_grad_hook(self._arrived))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Takes the function from all parameters."""
        for handle in self._handles:
            handle.remove()

    def let_go(self, param: Tensor) -> None:
        """Forgets a parameter that others have taken over."""

    def _arrived(self, param: Tensor) -> None:
        """The function."""
        raise NotImplementedError


class InBackward(Hooks):
    """The hooks of an optimizer on its parameters, which live as long as the optimizer."""

    def __init__(self, optimizer: Any, accumulate: int, clip_value: float | None, clip_norm: float | None) -> None:
        self._optimizer, self._accumulate = weakref.ref(optimizer), accumulate
        self._clip_value, self._clip_norm = clip_value, clip_norm
        self._waiting: dict[Tensor, tuple[int, Tensor]] = {}        # passes so far, the sum of their gradients
        self._norm: float | None = None         # of the gradients of the last step, before clipping
        self._squares, self._awaits_end = 0.0, False            # of this pass
        self._pass = NO_PASS
        self._others: list[Tensor] = []
        params: list[Tensor] = [param for group in optimizer.param_groups for param in group["params"]]
        super().__init__(params)
        self._hooked = set(params)
        weakref.finalize(optimizer, self._end).atexit = False
        for param in params:
            _take_over(param, self)
            param.grad = None                   # of a pass before, which would count twice

    def _end(self) -> None:
        self.remove()
        if self._pass == NO_PASS:
            Forgotten(param for param in self._hooked if param.requires_grad)

    def let_go(self, param: Tensor) -> None:
        self._hooked.discard(param)
        self._waiting.pop(param, None)

    @torch.no_grad()
    def _arrived(self, param: Tensor) -> None:
        """Steps a parameter whose gradient has just been made."""
        optimizer, grad = self._optimizer(), param.grad
        if optimizer is None or grad is None:
            return
        self._begin(optimizer)
        if self._accumulate > 1:
            passes, before = self._waiting.pop(param, (0, None))
            grad = grad if before is None else before.add_(grad)
            if passes + 1 < self._accumulate:
                self._waiting[param] = passes + 1, grad
                param.grad = None
                return
        param.grad = self._clipped(grad)
        self._step(optimizer, param)

    def _begin(self, optimizer: Any) -> None:
        """Begins a pass with its first gradient.  One that has failed before leaves nothing.

        Parameters without a hook, and those with a gradient before the pass comes to them, are noted.
        """
        now = torch._C._current_graph_task_id()
        if now != self._pass:
            self._pass, self._squares, self._awaits_end = now, 0.0, False
            self._others = [param for group in optimizer.param_groups for param in group["params"]
                            if param.grad is not None or param not in self._hooked]

    def _step(self, optimizer: Any, param: Tensor) -> None:
        """Steps this parameter alone, and frees its gradient."""
        aside = [(other, other.grad) for other in self._others if other is not param and other.grad is not None]
        for other, _ in aside:
            other.grad = None
        try:
            optimizer._plain_step()
        finally:
            param.grad = None
            for other, grad in aside:
                other.grad = grad

    def _clipped(self, grad: Tensor) -> Tensor:
        """The gradient after clipping: the same tensor, but of one that is sparse or conjugate."""
        if self._clip_norm is None and self._clip_value is None:
            return grad
        grad = tensors.settled(grad)
        values = tensors.numbers(grad)
        if self._clip_norm is not None:
            own = float(tensors.norm(values))
            self._measure(own)
            known = own if self._norm is None else self._norm
            if known > self._clip_norm:
                values.mul_(self._clip_norm / known)
        if self._clip_value is not None:
            values.clamp_(-self._clip_value, self._clip_value)
        return grad

    def _measure(self, own: float) -> None:
        """Adds the norm of one gradient to that of the pass."""
        if not self._awaits_end:
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._ended)
            self._awaits_end = True
        self._squares += own * own

    def _ended(self) -> None:
        """Ends the pass; called at the end of a backward pass."""
        self._norm = math.sqrt(self._squares)


class Forgotten(Hooks):
    """The hooks that warn of an optimizer which nobody has kept until the first pass."""

    def _arrived(self, param: Tensor) -> None:
        self.remove()
        warnings.warn("the optimizer of step_in_backward was deleted before this backward pass, and steps nothing in "
                      "it: keep what step_in_backward returns", RuntimeWarning, stacklevel=_depth_of_program())


def _take_over(param: Any, new: Hooks) -> None:
    """Takes from a parameter the hooks of others than `new`."""
    hooks = param._post_accumulate_grad_hooks
    for key, hook in [*hooks.items()]:
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Hooks) and owner is not new:
            owner.let_go(param)
            del hooks[key]


def _depth_of_program() -> int:
    """The number of frames from the caller of this function to that which has called torch."""
    frame, depth = sys._getframe(1).f_back, 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
        frame, depth = frame.f_back, depth + 1
    return depth
