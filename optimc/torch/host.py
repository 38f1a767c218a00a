"""Optimizers for parameters on an accelerator, whose masters, state and step are on the host.

Each parameter has a copy on the host, of its own type, in pinned memory if the device is CUDA.  An optimizer of
optimc.torch steps the copies: what a bfloat16 lacks of a float32 is in its state, and the step writes the bfloat16
that is copied back.  So the host holds no second copy in float32.

A step copies the gradients to the host, so whatever a program does to them before counts: clipping, a GradScaler,
other processes.  With `offload_gradients=True` each is copied as soon as a backward pass has made it, beside the rest
of the pass, and freed on the device.

Next: step.py, the step of the copies.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch

from optimc.base.names import UnknownArgument, closest
from optimc.torch import tensors
from optimc.torch.own import ScheduleFreeOptimizer
from optimc.torch.step import SparseOptimizer, TorchOptimizer, loss_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from optimc._types import Config


#: by which gradients are multiplied at least: a step divides by it
LEAST = 1e-30


def is_elsewhere(param: Tensor) -> bool:
    """True if a parameter is on an accelerator.  Tests replace it, to take the CPU for one."""
    return param.device.type != "cpu"


class Place:
    """A parameter and its copy on the host, which is the parameter itself if that is there.

    Attributes:
        param: the parameter.
        host: the copy.
        elsewhere: whether the parameter lies on a device.
    """

    param: Tensor
    host: Tensor
    elsewhere: bool

    def __init__(self, param: Tensor) -> None:
        self.param = param
        self.elsewhere = is_elsewhere(param)
        self.host = self._room(param) if self.elsewhere else param
        self._buffer: Tensor | None = None                  # for the gradient
        self._version = -1
        self._handle: Any = None                            # of the hook that takes the gradient away
        self.read()

    def _room(self, like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu", pin_memory=like.device.type == "cuda", requires_grad=False)

    def read(self) -> None:
        """Copies the parameter to the host if a program has written into it since it was copied last."""
        if self.elsewhere and self.param._version != self._version:
            if self.param.dtype != self.host.dtype or self.param.shape != self.host.shape:
                raise TypeError(f"a parameter was {tuple(self.host.shape)} of {self.host.dtype} when its optimizer "
                                f"was made, and is {tuple(self.param.shape)} of {self.param.dtype}")
            self.host.copy_(self.param.detach())
            self._version = self.param._version

    def forget(self) -> None:
        """Lets `read` copy the parameter in any case."""
        self._version = -1

    def write(self) -> None:
        """Copies the host's copy to the parameter."""
        if self.elsewhere:
            self.param.detach().copy_(self.host, non_blocking=True)         # its version counts
            self._version = self.param._version

    def take(self) -> None:
        """Starts copying the gradient."""
        grad = self.param.grad
        if not self.elsewhere:
            return
        if grad is None:
            self.host.grad = None
            return
        if grad.layout != torch.strided:
            raise TypeError(f"a gradient on {grad.device} is sparse: only dense ones can be offloaded")
        if self._buffer is None or self._buffer.dtype != grad.dtype:
            self._buffer = self._room(grad)
        self._buffer.copy_(grad.detach(), non_blocking=True)
        self.host.grad = self._buffer

    def take_away(self) -> None:
        """Adds the gradient to the host's, and frees it on the device."""
        grad = self.param.grad
        if grad is None or not self.elsewhere:
            return
        if self.host.grad is None:
            self.take()
        else:
            self.host.grad.add_(grad.detach().to("cpu"))
        self.param.grad = None

    def drop(self) -> None:
        """Forgets the gradient on the host."""
        if self.elsewhere:
            self.host.grad = None

    def watch(self) -> None:
        """Lets each backward pass take the gradient away."""
        if self._handle is None and self.elsewhere and self.param.requires_grad:
            param: Any = self.param
            self._handle = param.register_post_accumulate_grad_hook(self._arrived)

    def leave(self) -> None:
        """Ends that."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.no_grad()
    def _arrived(self, _: Tensor) -> None:
        self.take_away()


class Offloaded(torch.optim.Optimizer):
    """The base of the offloading classes, which `offload` makes.

    Args:
        params: as torch takes them.
        *args, **kwargs: of the class that steps on the host.
        offload_gradients: gradients leave the device as soon as a backward pass has made them, and are added up on
            the host, until a step.  Then clip with `clip_grad_norm_` of this class.
    """

    _inner: Callable[..., Any]      # the class of optimc.torch
    defaults: dict[str, Any]

    def __init__(self, params: Any, *args: Any, offload_gradients: bool = False, **kwargs: Any) -> None:
        self._places: dict[Tensor, Place] = {}              # with those of parameters that were taken out
        self._host: Any = None
        self._takes_away, self._clip = offload_gradients, 1.0
        if offload_gradients and _shares_gradients():
            raise ValueError("offload_gradients=True would take gradients away before other processes add theirs")
        super().__init__(params, {})
        made = [self._host_group(group) for group in self.param_groups]
        try:
            self._host = self._inner(made, *args, **kwargs)
        except UnknownArgument as error:
            said = str(error).replace("optimc.torch.", "optimc.torch.Offload", 1)
            meant = any(closest(name, ("offload_gradients",), 0.8) and repr(name) in said for name in kwargs)
            raise UnknownArgument(said + ": did you mean offload_gradients?" * meant) from None
        self.defaults = self._host.defaults
        self._read_groups()
        self._step_supports_amp_scaling = any(group.get("fused") for group in self.param_groups)
        weakref.finalize(self, _leave, self._places)
        self._watch()

    def _place(self, param: Tensor) -> Place:
        if param not in self._places:
            self._places[param] = Place(param)
        return self._places[param]

    def _stepped(self) -> list[Place]:
        """The places of the parameters that are in the groups now, each once."""
        return [self._place(param) for param in dict.fromkeys(
            param for group in self.param_groups for param in group["params"])]

    def _host_group(self, group: Config) -> Config:
        """The same group, with the places of its parameters on the host."""
        return {**group, "params": [self._place(param).host for param in group["params"]]}

    def _watch(self) -> None:
        """Lets backward passes take the gradients of these parameters away, if that is asked for."""
        if self._takes_away:
            stepped = set(self._stepped())
            for place in self._places.values():
                place.watch() if place in stepped else place.leave()

    def add_param_group(self, param_group: Config) -> None:
        if self._host is None:                      # from the constructor
            super().add_param_group(param_group)
            return
        self._write_groups()
        super().add_param_group(param_group)
        before = len(self._places)
        try:
            self._host.add_param_group(self._host_group(self.param_groups[-1]))
        except BaseException:
            self.param_groups.pop()
            for param in list(self._places)[before:]:
                del self._places[param]
            raise
        self._read_groups()
        self._watch()

    def _read_groups(self) -> None:
        for mine, theirs in zip(self.param_groups, self._host.param_groups, strict=True):
            mine.update({key: value for key, value in theirs.items() if key != "params"})

    def _write_groups(self) -> None:
        """Lets the groups on the host be these, whatever a program has changed, taken out or put in."""
        groups = self._host.param_groups
        del groups[len(self.param_groups):]
        for mine, theirs in zip(self.param_groups, groups, strict=False):
            kept = theirs["params"]
            kept[:] = [self._place(param).host for param in mine["params"]]
            theirs.clear()
            theirs.update({**mine, "params": kept})
        for mine in self.param_groups[len(groups):]:
            self._host.add_param_group(self._host_group(mine))
            mine.update({**groups[-1], "params": mine["params"]})
        self._watch()

    # ------------------------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, as in torch.  Returns the loss of the closure, if there is one."""
        loss = loss_of(closure)
        found, scale = getattr(self, "found_inf", None), 1.0            # from a GradScaler
        if found is not None:
            if self._takes_away:
                raise RuntimeError("a GradScaler looks for gradients on the device: pass offload_gradients=False")
            if float(found):
                return loss
            scale = float(getattr(self, "grad_scale", None) or 1.0)
        self._write_groups()
        places = self._gather()
        self._step_host(scale / self._clip)
        for place in places:
            if place.host.grad is not None:
                place.write()
            if self._takes_away:
                place.drop()
        self._clip = 1.0
        return loss

    def _step_host(self, scale: float) -> None:
        """Steps the copies; their gradients are this many times too large."""
        host = self._host
        if scale == 1.0:
            host._plain_step()
            return
        host.found_inf, host.grad_scale = torch.zeros(()), torch.tensor(scale, dtype=torch.float64)
        try:
            host._plain_step()
        finally:
            del host.found_inf, host.grad_scale

    def _gather(self) -> list[Place]:
        """Brings to the host what the step reads, and waits until it is there.  Returns the places stepped."""
        places = self._stepped()
        for place in places:
            place.read()
            place.take_away() if self._takes_away else place.take()
        _wait(places)
        return places

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Lets the next step clip its gradients by their global norm.  Returns the norm, computed on the host.

        It is what torch.nn.utils.clip_grad_norm_ does, where gradients are on the host only; the gradients themselves
        stay as they are.
        """
        norms = [tensors.norm(tensors.numbers(tensors.settled(place.host.grad))) for place in self._gather()
                 if place.host.grad is not None]
        total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        self._clip = max(min(1.0, float(max_norm / (total + 1e-6))), LEAST)
        return total

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; gradients on the host are dropped."""
        super().zero_grad(set_to_none)
        self._clip = 1.0
        for place in self._places.values():
            place.drop()

    # ------------------------------------------------------------------------------- state

    @property               # type: ignore[override]
    def state(self) -> Mapping[Any, Any]:
        """The state by parameter: tensors on the host, live.  The mapping itself is a copy."""
        if self._host is None:
            return {}
        states = self._host.state
        return {place.param: states[place.host] for place in self._stepped() if place.host in states}

    @state.setter
    def state(self, states: Any) -> None:
        if self._host is not None:
            raise AttributeError("the state is on the host: call load_state_dict to replace it")

    def load_state_dict(self, state_dict: Config) -> None:
        """Takes over a state of this class, or of the class that steps on the host.  It stays on the host."""
        state_dict = state_dict.copy()              # hooks may write into it
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self._write_groups()
        before = [(group, dict(group)) for group in self.param_groups]
        try:
            with self._host.loading_wholly():
                self._host.load_state_dict(state_dict)
                self._read_groups()
                for done in self._optimizer_load_state_dict_post_hooks.values():
                    done(self)
        except BaseException:
            self.param_groups[:] = [group for group, _ in before]
            for group, values in before:
                group.clear()
                group.update(values)
            raise

    def reset_master(self) -> None:
        """Starts from what the parameters say now.  Call it after writing into them through `.data`.

        Other writes, as by `load_state_dict` of a model, are noticed.  See `reset_master` of the class on the host.
        """
        for place in self._places.values():
            place.forget()
        for place in self._stepped():
            place.read()
        self._host.reset_master()

    def __getstate__(self) -> Config:
        raise TypeError(f"{type(self).__name__} holds memory of two devices: save its state_dict instead")


class OffloadedScheduleFree(Offloaded):
    """The base of offloading classes whose parameters hold the average of a run only in `eval` mode."""

    def train(self) -> None:
        """Lets the parameters hold the points at which gradients are computed.  A step needs this mode."""
        self._change_mode(True)

    def eval(self) -> None:
        """Lets the parameters hold the averages: call it before validation and before a model is saved."""
        self._change_mode(False)

    @torch.no_grad()
    def _change_mode(self, train: bool) -> None:
        self._write_groups()
        places = self._stepped()
        for place in places:
            place.read()
        _wait(places)
        self._host.train() if train else self._host.eval()
        for place in places:
            place.write()
        self._read_groups()


def _wait(places: Sequence[Place]) -> None:
    """Waits until all copies between these parameters and the host have arrived."""
    for device in {place.param.device for place in places if place.param.device.type != "cpu"}:
        torch.get_device_module(device).current_stream(device).synchronize()


def _leave(places: Mapping[Tensor, Place]) -> None:
    for place in places.values():
        place.leave()


def _shares_gradients() -> bool:
    """True if processes may add up their gradients."""
    return (torch.distributed.is_available() and torch.distributed.is_initialized()
            and torch.distributed.get_world_size() > 1)


def offload(cls: Any) -> Any:
    """The class that keeps a class of optimc.torch on the host, for parameters on an accelerator.

    The class takes the arguments of `cls`, and `offload_gradients`.

    Raises:
        TypeError: it is no such class, or one for sparse gradients.

    Example:
        >>> import torch, optimc.torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> opt = optimc.torch.offload(optimc.torch.AdamW)([p], lr=0.5)
        >>> p.grad = torch.ones(2)
        >>> opt.step()
        >>> bool((p != 1).all())
        True
    """
    if not (isinstance(cls, type) and issubclass(cls, TorchOptimizer) and hasattr(cls, "_counterpart")
            and not issubclass(cls, SparseOptimizer)):
        raise TypeError(f"offload takes a class of optimc.torch for dense gradients, such as AdamW, got {cls!r}")
    base = OffloadedScheduleFree if issubclass(cls, ScheduleFreeOptimizer) else Offloaded
    return type(f"Offload{cls.__name__}", (base,), {
        "__doc__": f"optimc.torch.{cls.__name__} on the host, for parameters on an accelerator: see "
                   "help(optimc.torch.offload).",
        "__module__": "optimc.torch", "_inner": cls})
