"""The step of torch's optimizers in C: what each class of optimc.torch has beside torch's class of that name.

`TorchOptimizer` keeps torch's interface: hooks, closures, gradient scalers, `state_dict`, pickles.  The cohorts
(cohorts.py) hold the plans and the state.  The usual step is one call into C; all others go by `_step_all`.
"""

import copy
import itertools

import torch
import torch.optim.optimizer as _torch

from optimc import _core
from optimc._core import CHECKED, NO_GRADIENTS, NOT_AS_PLANNED
from optimc.torch import tensors
from optimc.torch.cohorts import Cohorts
from optimc.torch.inner import make_inner
from optimc.torch.states import check_loaded, place_loaded


class TorchOptimizer:
    """The base that comes before torch's class in each class of optimc.torch."""

    _counterpart = None             # from TORCH
    _sources = ()                   # where its arguments stand in a parameter group

    def __init__(self, *args, **kwargs):
        self._cohorts = Cohorts(self, self._counterpart, self._sources)
        super().__init__(*args, **kwargs)
        for name in ("capturable", "differentiable"):
            if any(group.get(name) for group in self.param_groups):
                raise ValueError(f"optimc.torch.{type(self).__name__} has no {name}=True")
        self._step_supports_amp_scaling = True
        self._cohorts.watch_state()
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
            self._cohorts.write_steps()
        self._cohorts.forget()

    def _check_group(self, group):
        tensors.check_parameters(group["params"])
        make_inner(self._counterpart, self._sources, [group])   # refuses what C would refuse at a step

    # ----------------------------------------------------------------------------- the step

    def step(self, closure=None):
        """One step; see torch.  With a closure, its loss is returned."""
        if (self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
                or _torch._global_optimizer_pre_hooks or _torch._global_optimizer_post_hooks
                or torch.autograd.profiler._is_profiler_enabled):
            return _hooked_step(self, closure)
        return self._plain_step(closure)

    # torch wraps a step that lacks this mark; this one does itself what the wrapper does
    step.hooked = True      # type: ignore[attr-defined]

    def _plain_step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        try:
            return self._step_once(loss)
        except RuntimeError:
            for group in self.param_groups:
                tensors.check_gradients(group["params"])        # C says less plainly what it cannot look at
            raise
        except (TypeError, ValueError):
            if all(cohort.has_its_forms() for cohort in self._cohorts.all):
                raise
        self._cohorts.write_steps()
        self._cohorts.expire()                      # a parameter is of another type, shape or layout now
        return self._step_once(loss)

    def _step_once(self, loss):
        found = getattr(self, "found_inf", None)
        cohort = self._cohorts.only
        if found is not None:                       # from torch's GradScaler
            if not found.item():
                scale = getattr(self, "grad_scale", None)
                self._step_all(None if scale is None else scale.item())
        elif cohort is None:
            self._step_all(None)
        else:
            done = cohort.inner._apply_tensors(cohort.params, cohort.exchange)
            if done == CHECKED:
                torch.autograd.graph.increment_version(cohort.params)
            elif done == NOT_AS_PLANNED:
                self._step_all(None)
        return loss

    def _step_all(self, scale):
        """The step when anything is unusual: several cohorts, a state that may have changed, a gradient scale."""
        self._cohorts.refresh()
        if self._step_cohorts(scale):
            return
        self._cohorts.write_steps()
        self._cohorts.expire()                      # only C saw what has changed: a tensor of the state, say
        self._cohorts.refresh()
        if not self._step_cohorts(scale):
            raise RuntimeError("parameters, gradients or state change while the step looks at them")

    def _step_cohorts(self, scale):
        """Steps the cohorts that have gradients: whether their plans hold; else nothing has changed."""
        with _core.Transaction() as steps:
            found = [(cohort, self._check_cohort(steps, cohort, scale)) for cohort in self._cohorts.all
                     if cohort.params[0].grad is not None]
            if any(done == NOT_AS_PLANNED for _, done in found):
                return False
            steps.commit()
        for cohort, done in found:
            if done == CHECKED:
                torch.autograd.graph.increment_version(cohort.params)
        return True

    @staticmethod
    def _check_cohort(steps, cohort, scale):
        """Checks the step of a cohort: CHECKED if a commit will run it."""
        tensors.check_versions(cohort.unversioned)
        if cohort.exchange is not None:
            return steps.check_tensors(cohort.inner, cohort.params, cohort.exchange, loss_scale=scale)
        grads = [tensors.view(param.grad.resolve_neg(), param) for param in cohort.params]
        weights = [tensors.view(param, param) for param in cohort.params]
        return CHECKED if steps.check(cohort.inner, grads, weights, loss_scale=scale) else NO_GRADIENTS

    # ------------------------------------------------------------------------------- state

    def state_dict(self):
        """The state as torch's class of this name has it; either loads the other's.

        Its tensors are those of the optimizer, but the step counts in them are written only when they are looked at:
        save it, or copy it, before the next step.
        """
        self._cohorts.watch_state()
        watched, self.state = self.state, self.state.copy()
        try:
            return super().state_dict()
        finally:
            self.state = watched

    def load_state_dict(self, state_dict):
        """Takes over a copy of the state of this class or torch's; shapes are checked before anything changes."""
        keys = list(self._counterpart.slots.values())
        check_loaded(state_dict, self.param_groups, keys)
        self._cohorts.write_steps()                 # what is loaded may be what state_dict gave
        super().load_state_dict(copy.deepcopy(state_dict))
        place_loaded(self.state, keys)

    def __getstate__(self):
        self._cohorts.watch_state()
        state = super().__getstate__()
        state["state"] = self.state.copy()
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self._step_supports_amp_scaling = True
        self._cohorts = Cohorts(self, self._counterpart, self._sources)
        self._cohorts.watch_state()


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
