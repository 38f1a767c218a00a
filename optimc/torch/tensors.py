"""torch's optimizers with the step in C: change the name, keep the program.

    import optimc.torch
    opt = optimc.torch.AdamW(model.parameters(), lr=1e-3)

Each class here is a subclass of torch's own class of that name, so arguments, defaults, checks, parameter
groups, hooks, schedulers and `state_dict` are torch's.  The step is optimc's: one call into C for all parameters,
in place, with torch's formula (`style="torch"`).  Parameters, gradients and state stay torch tensors; their
memory is read afresh at every step, so `p.data = ...` just works.

State lives in `optimizer.state` as torch keeps it.  What a step needs is planned once for a *cohort*: parameters
that have done the same number of steps.  A parameter without a gradient rests, as in torch, and leaves its cohort.

CPU tensors of float32 and float64; what lies elsewhere, or is sparse, is an error.
"""

import copy
import functools
import inspect
import itertools
from collections import defaultdict

try:
    import torch
except ImportError as error:
    raise ImportError("optimc.torch needs torch: pip install 'optimc[torch]'") from error

import torch.optim.optimizer as _torch

from optimc import _core, memory, registry
from optimc.migrate import TORCH

#: the table by which C looks at tensors; None before torch 2.10: then steps go through NumPy views
EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
#: arguments of torch's that choose among its own implementations
IMPLEMENTATIONS = ("foreach", "fused", "capturable", "differentiable")


class _States(defaultdict):
    """The state by parameter; whoever looks at it finds the step counts written, and is believed to change it."""

    def __init__(self, optimizer, states):
        self.optimizer = None                       # nobody looks while it is made
        super().__init__(dict, states)
        self.optimizer = optimizer

    def of(self, param):
        """The state of a parameter, made if it is new, for the step itself."""
        state = dict.get(self, param)
        if state is None:
            dict.__setitem__(self, param, state := {})
        return state

    def copy(self):
        self._look()
        return defaultdict(dict, dict.items(self))

    __copy__ = copy

    def __or__(self, other):
        return self.copy() | other

    def __ror__(self, other):
        return other | self.copy()

    def __reduce__(self):
        return defaultdict, (dict, dict(self.copy()))

    def _look(self):
        if self.optimizer is not None:
            self.optimizer._write_steps()
            self.optimizer._touched = True


def _looking(name):
    """A dict's method, for _States."""
    method = getattr(defaultdict, name)

    @functools.wraps(method)
    def looking(self, *args, **kwargs):
        self._look()
        return method(self, *args, **kwargs)
    return looking


for _name in ("__getitem__", "__setitem__", "__delitem__", "__ior__", "get", "items", "values", "pop", "popitem",
              "setdefault", "update", "clear", "__iter__"):         # without the last, dict(state) looks at nothing
    setattr(_States, _name, _looking(_name))


class _Cohort:
    """Parameters that step together: they have done the same number of steps, with the same flags."""

    def __init__(self, core, members):
        self.core = core
        self.members = members                          # (parameter, its group)
        self.params = [param for param, _ in members]
        self.pointers = [param.data_ptr() for param in self.params]
        self.forms = [_form(param) for param in self.params]


class _Step:
    """What the classes here add to torch's: the step, and state kept in step with it."""

    _flags = ()             # arguments that choose a kernel; "momentum" counts as one
    _ours = ""
    _names: dict[str, str | tuple[str, ...]] = {}
    _slots: dict[str, tuple[str, int]] = {}
    _counts = True          # whether torch keeps a step count in the state

    def __init__(self, *args, **kwargs):
        self._cohorts, self._resting, self._touched = None, [], True
        super().__init__(*args, **kwargs)
        for name in ("capturable", "differentiable"):
            if any(group.get(name) for group in self.param_groups):
                raise ValueError(f"optimc.torch.{type(self).__name__} has no {name}=True")
        self._step_supports_amp_scaling = True
        self._keep_states()
        for group in self.param_groups:
            self._check_group(group)

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        if hasattr(self, "_step_supports_amp_scaling"):         # not from the constructor, which checks them all
            try:
                self._check_group(self.param_groups[-1])
            except BaseException:
                self.param_groups.pop()
                raise
            self._write_steps()
        self._cohorts = None

    def _check_group(self, group):
        for i, param in enumerate(group["params"]):
            if param.device.type != "cpu":
                raise TypeError(f"params[{i}]: expected a tensor on the CPU, got one on {param.device}")
            if param.layout is not torch.strided:
                raise TypeError(f"params[{i}]: expected a dense tensor, got {param.layout}")
            if param.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"params[{i}]: expected float32 or float64, got {param.dtype}")
        self._core([group])

    # ----------------------------------------------------------------------------- the step

    def step(self, closure=None):
        """One step; see torch.  With a closure, its loss is returned."""
        if (self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
                or _torch._global_optimizer_pre_hooks or _torch._global_optimizer_post_hooks
                or torch.autograd.profiler._is_profiler_enabled):
            return _hooked_step(self, closure)
        return self._plain_step(closure)

    # torch is not to wrap it: it does itself what the wrapper does
    step.hooked = True      # type: ignore[attr-defined]

    def _plain_step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        try:
            return self._step_once(loss)
        except RuntimeError:
            self._refuse_gradients()
            raise
        except (TypeError, ValueError):
            if all(cohort.forms == [_form(param) for param in cohort.params] for cohort in self._cohorts or ()):
                raise
        self._write_steps()
        self._touched = True                        # a parameter is of another type, shape or layout now
        return self._step_once(loss)

    def _refuse_gradients(self):
        """Says plainly what C could not look at."""
        for group in self.param_groups:
            for i, param in enumerate(group["params"]):
                grad = param.grad
                if grad is not None and (grad.layout is not torch.strided or grad.device.type != "cpu"):
                    raise TypeError(f"params[{i}].grad: expected a dense tensor on the CPU, "
                                    f"got {grad.layout} on {grad.device}") from None

    def _step_once(self, loss):
        found = getattr(self, "found_inf", None)
        if found is not None:
            if found.item():
                return loss
            scale = getattr(self, "grad_scale", None)
            self._step_all(None if scale is None else scale.item())
        elif self._cohorts and len(self._cohorts) == 1 and not (self._touched or self._resting or EXCHANGE is None):
            cohort, = self._cohorts
            done = cohort.core._apply_tensors(cohort.params, EXCHANGE)
            if done == 1:
                torch.autograd.graph.increment_version(cohort.params)
            elif done == 2:
                self._step_all(None)
        else:
            self._step_all(None)
        return loss

    def _step_all(self, scale):
        """The step when anything is unusual: several cohorts, state that may have changed, a gradient scale."""
        if self._touched or not self._cohorts or any(param.grad is not None for param in self._resting) or any(
                len({param.grad is None for param in cohort.params}) > 1 or not self._as_planned(cohort)
                for cohort in self._cohorts):
            self._regroup()
        started, run, then = [], False, ()
        try:
            for cohort in self._cohorts:
                if cohort.params[0].grad is None:
                    continue
                then += ((cohort.core._set_value, (0, cohort.core._index["loss_scale_factor"], None, False)),)
                cohort.core.loss_scale_factor = scale
                if EXCHANGE is not None:
                    cohort.core._check_tensors(cohort.params, EXCHANGE, started)
                else:
                    cohort.core._check([_view(param.grad, param) for param in cohort.params],
                                       [_view(param, param) for param in cohort.params], False, started)
            stepped = [cohort for cohort in self._cohorts if any(core is cohort.core for core, _ in started)]
            run = True
        finally:
            _core.finish(started, run, then)
        for cohort in stepped:
            torch.autograd.graph.increment_version(cohort.params)

    # ---------------------------------------------------------------------------- planning

    def _as_planned(self, cohort):
        moved = EXCHANGE is None and cohort.pointers != [param.data_ptr() for param in cohort.params]
        return not moved and cohort.core._is_as_watched()

    def _regroup(self):
        """Makes the cohorts anew, by what each parameter has done so far and has a gradient for now."""
        self._write_steps()
        parts = {}
        for group in self.param_groups:
            for param in group["params"]:
                state = dict.get(self.state, param) or {}
                key = (self._count(state), param.grad is None, *(group[name] for name in self._flags),
                       *(self._running(state) or ()))
                parts.setdefault(key, []).append((param, group))
        cohorts, resting = [], []
        for (count, without_gradient, *_), members in parts.items():
            if without_gradient and not count:
                resting += [param for param, _ in members]      # never had one: nothing to plan yet
            else:
                cohorts.append(self._cohort(members, count))
        self._cohorts, self._resting, self._touched = cohorts, resting, False

    def _running(self, state):
        """The rule's scalars as torch keeps them in a parameter's state, or None."""
        return None

    def _count(self, state):
        """Steps done with this state."""
        if "step" in state:
            return int(state["step"])
        # torch's SGD counts none; only the first step is special, and before it there is no buffer
        return 1 if state.get("momentum_buffer") is not None else 0

    def _cohort(self, members, count):
        groups = list({id(group): group for _, group in members}.values())
        core = self._core(groups, members)
        params = [param for param, _ in members]
        weights = [_view(param, param) for param in params]
        core.build(weights, slots={
            slot: self._slot(members, weights, self._slots[slot][0], k, lambda group, slot=slot: core._ask_initial(
                slot, group))
            for slot, k in core._used_by_all.items()})
        core.iterations = count
        for k, group in enumerate(groups):
            param = next(param for param, own in members if own is group)
            scalars = self._running(dict.get(self.state, param, {}))
            if scalars and count:
                core._set_scalars(scalars, k)
        core._prepare_tensors(tuple(_order(param) for param in params), (
            (self.__dict__, "state", self.state), (self.__dict__, "param_groups", tuple(self.param_groups)),
            *((group, "params", tuple(group["params"])) for group in self.param_groups),
            *((group, name, group[name]) for group in groups for name in self._flags)))
        return _Cohort(core, members)

    def _core(self, groups, members=()):
        """The optimc optimizer for parameters of these groups; its values are read from them at every step."""
        first, cls = groups[0], registry.classes[self._ours]
        arguments = {"style": "torch"}
        for theirs, ours in self._names.items():
            if isinstance(first[theirs], bool):
                arguments[ours] = not first[theirs] if theirs == "decoupled_weight_decay" else first[theirs]
        core = cls(**arguments, groups=[
            {"params": [i for i, (_, own) in enumerate(members) if own is group]} for group in groups[1:]])
        for k, group in enumerate(groups):
            for theirs, ours in self._names.items():
                for item, name in enumerate(ours if isinstance(ours, tuple) else (ours,)):
                    if isinstance(first[theirs], bool) or name not in core._index:
                        continue
                    if theirs == "momentum" and not group[theirs]:
                        core._set_value(k, core._index[name], 0.0, False)
                    else:
                        core._set_item(k, core._index[name], group, theirs,
                                       item if isinstance(ours, tuple) else -1, theirs == "weight_decay")
        core._group_of = {id(group): k for k, group in enumerate(groups)}
        core._used_by_all = registry.used_slots(core)
        core._ask_initial = lambda slot, group: (
            group["lr"] if slot == "size" else group.get("initial_accumulator_value", 0.0))
        return core

    def _slot(self, members, weights, key, k, initial):
        """Views of one tensor of each parameter's state, made if it is new, checked if it was there."""
        states = [self.state.of(param) for param, _ in members]
        for state, (param, _) in zip(states, members, strict=True):
            tensor = state.get(key)
            if tensor is None:
                continue
            if not isinstance(tensor, torch.Tensor) or tensor.shape != param.shape or tensor.dtype != param.dtype:
                got = f"{tuple(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else repr(tensor)
                raise ValueError(f"state {key!r} of a parameter: expected shape {tuple(param.shape)} of "
                                 f"{param.dtype}, got {got}")
        new = [i for i, (param, _) in enumerate(members)
               if (tensor := states[i].get(key)) is None or _order(tensor) != _order(param) or not _is_dense(tensor)]
        for i, array in zip(new, memory.like([weights[i] for i in new], k), strict=True):
            (param, group), before = members[i], states[i].get(key)
            tensor = _tensor(array, param)
            states[i][key] = tensor.fill_(float(initial(group))) if before is None else tensor.copy_(before)
        return [_view(state[key], param) for state, (param, _) in zip(states, members, strict=True)]

    # ------------------------------------------------------------------------------- state

    def _keep_states(self):
        """Makes the state one that tells when it is looked at, if somebody has put another in its place."""
        if not isinstance(self.state, _States) or self.state.optimizer is not self:
            self.state = _States(self, dict(self.state))
            self._touched = True

    def _write_steps(self):
        """Brings the step counts in the state up to date, if nobody may have changed it since they were."""
        self._keep_states()
        for cohort in (self._cohorts or ()) if self._counts and not self._touched else ():
            count = cohort.core.iterations
            for param, group in cohort.members:
                self._write(self.state.of(param), group, count, cohort.core)

    def _write(self, state, group, count, core):
        _put(state, "step", float(count))

    def state_dict(self):
        """The state as torch's class of this name has it; either loads the other's.

        Its tensors are those of the optimizer, but the step counts in them are written only when they are looked at:
        save it, or copy it, before the next step.
        """
        self._keep_states()
        watched, self.state = self.state, self.state.copy()
        try:
            return super().state_dict()
        finally:
            self.state = watched

    def load_state_dict(self, state_dict):
        """Takes over a copy of the state of this class or torch's; shapes are checked before anything changes."""
        self._check_loaded(state_dict)
        self._write_steps()                         # what is loaded may be what state_dict gave
        super().load_state_dict(copy.deepcopy(state_dict))
        self._place_loaded()

    def _place_loaded(self):
        """Moves what torch has just made to where a step is fast, before anyone has looked at it."""
        states = dict.items(self.state)
        for k, (key, _) in enumerate(self._slots.values()):
            some = [(param, state) for param, state in states if _is_like(state.get(key), param)]
            arrays = memory.like([_view(param, param) for param, _ in some], k)
            for (param, state), array in zip(some, arrays, strict=True):
                state[key] = _tensor(array, param).copy_(state[key])

    def _check_loaded(self, state_dict):
        mine = [param for group in self.param_groups for param in group["params"]]
        theirs = [key for group in state_dict["param_groups"] for key in group["params"]]
        keys = {key for key, _ in self._slots.values()}
        for i, (param, index) in enumerate(zip(mine, theirs, strict=False)):
            for key, value in state_dict["state"].get(index, {}).items():
                if key in keys and isinstance(value, torch.Tensor) and value.shape != param.shape:
                    raise ValueError(f"loaded state {key!r} of parameter {i}: expected shape {tuple(param.shape)}, "
                                     f"got {tuple(value.shape)}")

    def __getstate__(self):
        self._keep_states()
        state = super().__getstate__()
        state["state"] = self.state.copy()
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self._step_supports_amp_scaling = True
        self._cohorts, self._resting, self._touched = None, [], True
        self._keep_states()


def _hooked_step(optimizer, closure):
    """The step as torch wraps it, with its hooks and its record for the profiler."""
    name = f"Optimizer.step#{type(optimizer).__name__}.step"
    with torch.autograd.profiler.record_function(name):
        args, kwargs = (optimizer, closure) if closure is not None else (optimizer,), {}
        for hook in itertools.chain(_torch._global_optimizer_pre_hooks.values(),
                                    optimizer._optimizer_step_pre_hooks.values()):
            result = hook(optimizer, args, kwargs)
            if result is not None:
                if not isinstance(result, tuple) or len(result) != 2:
                    raise RuntimeError(f"a step pre-hook must return None or (args, kwargs), got {result!r}")
                args, kwargs = result
        loss = optimizer._plain_step(*args[1:], **kwargs)
        for hook in itertools.chain(optimizer._optimizer_step_post_hooks.values(),
                                    _torch._global_optimizer_post_hooks.values()):
            hook(optimizer, args, kwargs)
        return loss


def _order(tensor):
    """The axes in the order in which they lie in memory; None if that is their own order."""
    if tensor.is_contiguous():
        return None
    return tuple(sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis)))


def _is_dense(tensor):
    order = _order(tensor)
    return order is None or tensor.permute(order).is_contiguous()


def _view(tensor, like):
    """A NumPy view of a tensor's memory, its axes in the order of `like`'s."""
    order = _order(like)
    tensor = tensor.detach()
    return (tensor if order is None else tensor.permute(order)).numpy()


def _is_like(tensor, param):
    """Whether a step takes both: on the CPU, dense, of the same shape and type."""
    return (isinstance(tensor, torch.Tensor) and isinstance(param, torch.Tensor)
            and tensor.layout == torch.strided == param.layout and tensor.device.type == "cpu" == param.device.type
            and tensor.dtype == param.dtype in (torch.float32, torch.float64) and tensor.shape == param.shape
            and _is_dense(param))


def _tensor(array, like):
    """The tensor, with the shape and strides of another, of which `array` is the view."""
    with torch.inference_mode(False):               # whoever looks first may be in it
        return torch.from_numpy(array.reshape(-1)).as_strided(like.shape, like.stride())


def _form(tensor):
    """What a plan rests on of a parameter."""
    return tensor.dtype, tensor.shape, tensor.stride()


def _put(state, name, value):
    """A number of the state, as torch keeps it: in the tensor that is there, if there is one."""
    tensor = state.get(name)
    if (isinstance(tensor, torch.Tensor) and tensor.numel() == 1 and tensor.is_floating_point()
            and not tensor.is_inference()):
        tensor.fill_(value)
    else:
        with torch.inference_mode(False):
            state[name] = torch.tensor(value, dtype=torch.get_default_dtype())


class _CountsNothing:
    """torch's SGD keeps no step count in its state."""

    _counts = False


class _KeepsProduct:
    """torch's NAdam keeps the product of its momentums."""

    def _write(self, state, group, count, core):
        super()._write(state, group, count, core)
        _put(state, "mu_product", core._scalars()[0] if count else 1.0)

    def _running(self, state):
        return [state["mu_product"].item()] if "mu_product" in state else None


class _KeepsRates:
    """torch's ASGD keeps its next rate and share."""

    def _write(self, state, group, count, core):
        super()._write(state, group, count, core)
        for name, value in zip(("eta", "mu"), core._scalars(core._group_of[id(group)]) if count
                               else (float(group["lr"]), 1.0), strict=True):
            _put(state, name, value)

    def _running(self, state):
        return [float(state["eta"]), float(state["mu"])] if "eta" in state else None


def _make(name, *mixins):
    """The class of that name: torch's, with `_Step` before it."""
    theirs = getattr(torch.optim, name)
    ours, names, slots = TORCH[name]
    known = inspect.signature(theirs).parameters
    names = {key: value for key, value in names.items() if key in known}     # what older versions of torch lack
    flags = tuple(key for key in (*names, "momentum") if key in
                  ("amsgrad", "nesterov", "centered", "maximize", "decoupled_weight_decay"))
    cls = type(name, (*mixins, _Step, theirs), {
        "__doc__": f"""torch.optim.{name} with the step in C; arguments, formula and state are torch's.

        The arguments that choose among torch's implementations ({', '.join(IMPLEMENTATIONS[:2])}) have no effect.

        Example:
            >>> import torch, optimc.torch
            >>> p = torch.nn.Parameter(torch.ones(2))
            >>> opt = optimc.torch.{name}([p], lr=0.5)
            >>> p.grad = torch.ones(2)
            >>> opt.step()
            >>> bool((p != 1).all())
            True
        """,
        "__module__": __name__, "_ours": ours, "_names": names, "_slots": slots,
        "_flags": (*flags, *(["momentum"] if "momentum" in names else [])),
    })
    return cls


SGD = _make("SGD", _CountsNothing)
Adam = _make("Adam")
AdamW = _make("AdamW")
Adagrad = _make("Adagrad")
RMSprop = _make("RMSprop")
Adadelta = _make("Adadelta")
Adamax = _make("Adamax")
NAdam = _make("NAdam", _KeepsProduct)
RAdam = _make("RAdam")
Rprop = _make("Rprop")
ASGD = _make("ASGD", _KeepsRates)

__all__ = ["ASGD", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"]

