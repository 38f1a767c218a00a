"""The step of torch's optimizers in C: what each class of optimc.torch has beside torch's class of that name.

`TorchOptimizer` keeps torch's interface: hooks, closures, gradient scalers, `state_dict`, pickles.  The cohorts
(cohorts.py) hold the plans and the state.  The usual step is one call into C; all others go by `_step_all`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import os
import threading
from typing import TYPE_CHECKING

import torch
import torch.autograd.profiler as _profiler
import torch.optim.optimizer as _torch
from torch.compiler import is_dynamo_compiling

from optimc import _core
from optimc._core import CHECKED, NOT_AS_PLANNED
from optimc.base.names import ELSEWHERE, UnknownArgument, closest
from optimc.torch import handed, loading, tensors
from optimc.torch.cohorts import Cohorts
from optimc.torch.inner import make_inner
from optimc.torch.slots import master_like
from optimc.torch.states import place_numbers
from optimc.torch_names import MASTER, STORAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from optimc._types import Config
    from optimc.torch_names import Counterpart, Source

    Base = torch.optim.Optimizer
else:
    Base = object


class TorchOptimizer(Base):
    """The base that comes before torch's class in each class of optimc.torch."""

    _counterpart: Counterpart       # from TORCH
    _sources: Sequence[Source] = ()                 # where its arguments stand in a parameter group
    _looks_first = False                            # the class has a `_plain_step` of its own
    _modes: Sequence[str] = ()                      # keys of a group that it reads beside its arguments
    found_inf: Tensor | None = None                 # a GradScaler sets it for a step, and `grad_scale`

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls._looks_first = cls._plain_step is not TorchOptimizer._plain_step

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cohorts = Cohorts(self, self._counterpart, self._sources)
        self._given = {name: kwargs.pop(name) for name in STORAGE if name in kwargs}    # for add_param_group
        try:
            super().__init__(*args, **kwargs)
        except TypeError:
            refuse_unknown(type(self).__name__, kwargs, inspect.signature(super().__init__).parameters,
                           self._counterpart.word_for)
            raise
        self._cohorts.watch_state()
        self._cohorts.states.known = False          # torch has made what is in it, if anything
        self._check_groups(self.param_groups)
        if self._cohorts.states:
            loading.place(self._counterpart, self._sources, self.param_groups, self._cohorts.states, anew=True)

    def add_param_group(self, param_group: Config) -> None:
        with self._cohorts.turn:
            self.defaults.update(self.__dict__.pop("_given", {}))
            super().add_param_group(param_group)
            if self._cohorts.states is not None:    # not from the constructor, which checks them all
                try:
                    self._check_groups(self.param_groups[-1:])
                except BaseException:
                    self.param_groups.pop()
                    raise

    def _own(self) -> list[tuple[int, Tensor]]:
        """(number, parameter) of those whose step is not handed to torch's own implementation."""
        return [(i, param) for i, param, _, is_handed in handed.split(self.param_groups) if not is_handed]

    def _check_groups(self, new: Sequence[Config]) -> None:
        """Refuses what a step would refuse in the last groups."""
        own, new_ones = self._own(), {id(param) for group in new for param in group["params"]}
        for i, param in own:
            if id(param) in new_ones:
                tensors.check_parameter(param, i)
        tensors.check_apart(own)
        for group in new:
            _refuse_near_words(type(self).__name__, group.keys() - self.defaults)
            handed.check_storage(group)
            self._counterpart.check_lengths(group)
            with self._counterpart.wording():
                inner = make_inner(self._counterpart, self._sources, [group])
            among = set(map(id, group["params"]))
            for i, param in (row for row in own if id(row[1]) in among):
                if not torch.nn.parameter.is_lazy(param):
                    master_like(inner, tensors.like_of(param), i)

    # ----------------------------------------------------------------------------- the step

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One step, as in torch.  Returns the loss of the closure, if there is one.

        Hooks are given the closure as the program gave it: by its place or by its name.
        """
        if is_dynamo_compiling():
            return _step_outside(self, args, kwargs)
        if (self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
                or _torch._global_optimizer_pre_hooks or _torch._global_optimizer_post_hooks
                or _profiler._is_profiler_enabled):
            return _hooked_step(self, args, kwargs)
        if args or kwargs or self._looks_first or self.found_inf is not None:
            return self._plain_step(*args, **kwargs)
        return None if self._cohorts.turn.apply() else self._step_the_long_way()

    # torch wraps a step that lacks this mark; this one does itself what the wrapper does
    step.hooked = True      # type: ignore[attr-defined]

    def _plain_step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else loss_of(closure)
        if self.found_inf is not None or not self._cohorts.turn.apply():
            self._step_the_long_way()
        return loss

    step.__signature__ = inspect.signature(_plain_step)     # type: ignore[attr-defined]

    def _step_the_long_way(self) -> None:
        cohorts, me = self._cohorts, (os.getpid(), threading.get_ident())
        with cohorts.turn:
            if cohorts.stepping == me:              # a number in a group, say, steps when it is read
                raise RuntimeError(f"{type(self).__name__}: a step was asked for while one is in progress in this "
                                   "thread")
            try:
                cohorts.stepping = me
                with self._counterpart.wording():
                    self._step_all()
            except RuntimeError:
                # C says less plainly what it cannot look at
                tensors.check_gradients(self._own())
                raise
            except (TypeError, ValueError):
                if all(cohort.has_its_forms() for cohort in cohorts.all):
                    raise
                cohorts.expire()                    # a parameter is of another type, shape or layout now
                with self._counterpart.wording():
                    self._step_all()
            finally:
                cohorts.stepping = None

    def _step_all(self) -> None:
        """The step when anything is unusual: several cohorts, a state that may have changed, a gradient scale."""
        scale = None
        if self.found_inf is not None:
            if self.found_inf.item():
                return
            scale = getattr(self, "grad_scale", None)
            scale = None if scale is None else scale.item()
        cohorts = self._cohorts
        for _ in range(5):                          # the second time, or a later one, all is planned as it is now
            cohorts.refresh()
            with _core.Transaction() as steps:
                checked = [cohort.check(steps, scale) for cohort in cohorts.all]
                if NOT_AS_PLANNED not in checked:
                    if cohorts.handed:              # torch may refuse, a commit cannot
                        handed.step(self, TorchOptimizer, cohorts.handed)
                    steps.commit()
                    break
            cohorts.adapt([cohort for cohort, done in zip(cohorts.all, checked, strict=True)
                           if done == NOT_AS_PLANNED])
        else:
            raise RuntimeError("parameters, gradients or state change while the step looks at them")
        for cohort, done in zip(cohorts.all, checked, strict=True):
            if done == CHECKED:
                cohort.write_back()
                torch.autograd.graph.increment_version(cohort.stepped())
        cohorts.finish()

    # ------------------------------------------------------------------------------- state

    def state_dict(self) -> Config:
        """The state, in the format of torch's class of the same name.  Each class loads the other's.

        It holds the live tensors of the optimizer: save or copy it before the next step.
        """
        with self._cohorts.turn:
            self._cohorts.watch_state()
            return super().state_dict()

    def load_state_dict(self, state_dict: Config) -> None:
        """Takes over a copy of a state of this class or torch's.  One that is refused changes nothing.

        Slots come in the type in which this optimizer stores them, whatever type they were saved in.

        Raises:
            TypeError, ValueError: it is of other parameters, lacks an argument or a slot that this class needs, as
                one of another class may, or has a value that no step takes.
        """
        name, keys = type(self).__name__, {*self._counterpart.slots.values(), MASTER}

        def check(_: Any, loaded: Config) -> Config:    # the last hook, which sees what those of the program made
            loading.check_loaded(name, loaded, self.param_groups, keys, self._counterpart)
            return loading.with_own_form(loaded, self.param_groups, keys, self._counterpart.scalars)

        with self.loading_wholly():
            handle = self.register_load_state_dict_pre_hook(check)
            try:
                super().load_state_dict(copy.deepcopy(state_dict))
            finally:
                handle.remove()
            loading.check_groups(name, self._counterpart, self._sources, self._modes, self.param_groups)
            self._cohorts.states.known = not loading.place(
                self._counterpart, self._sources, self.param_groups, self._cohorts.states)

    @contextlib.contextmanager
    def loading_wholly(self) -> Iterator[None]:
        """A block that replaces the state and the groups, or, if it raises, nothing."""
        with self._cohorts.turn:
            self._cohorts.watch_state()
            self._cohorts.write()                   # what is loaded may be what state_dict gave
            before: Any = {"state": self.state, "param_groups": self.param_groups}
            try:
                yield
            except BaseException:
                self.__dict__.update(before)
                self._cohorts.restore(before["state"])
                raise

    def reset_master(self) -> None:
        """Makes the masters of bfloat16 and float16 parameters what the parameters themselves say.

        Call it after other numbers were written into bfloat16 parameters, as to load a model.  Without it the next
        step adds what the old numbers lacked, less than half a last place.
        """
        with self._cohorts.turn, torch.no_grad():
            for param, state in dict.items(self.state):
                master = state.get(MASTER) if isinstance(state, dict) else None
                if isinstance(master, torch.Tensor):
                    master.zero_() if master.dtype != torch.float32 else master.copy_(param)

    def __getstate__(self) -> Config:
        with self._cohorts.turn:
            self._cohorts.watch_state()
            return {**super().__getstate__(), "state": self.state.copy()}

    def __setstate__(self, state: Config) -> None:
        loading.release(state.get("state", {}))
        place_numbers(state.get("state", {}), self._counterpart.scalars)
        if "_cohorts" not in self.__dict__:
            self._cohorts = Cohorts(self, self._counterpart, self._sources)
        with self._cohorts.turn:
            super().__setstate__(state)
            self._cohorts.forget()
            self._cohorts.watch_state()


def refuse_unknown(owner: str, given: Collection[str], known: Mapping[str, inspect.Parameter],
                   word_for: Callable[[str], str | None], storage: Collection[str] = tuple(STORAGE)) -> None:
    """Refuses arguments that torch does not have, with torch's word for those that optimc has.

    Args:
        owner: the name of the class.
        given: the arguments by keyword.
        known: torch's.
        word_for: gives torch's argument for one of optimc's.
        storage: the arguments about storage that the class has.

    Raises:
        UnknownArgument: names the first of them.
    """
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return                                      # of a program's class, which knows what it takes
    for name in (name for name in given if name not in known):
        words = [name, *(ELSEWHERE[name].here if name in ELSEWHERE else ())]
        theirs = next(filter(None, map(word_for, words)), None) or next(
            (word for word in words if word in storage), None) or closest(name, [*known, *storage], 0.8)
        if "global_clipnorm" in words or name in ("clipnorm", "clipvalue"):
            function = "clip_grad_value_" if name == "clipvalue" else "clip_grad_norm_"
            advice = f": call torch.nn.utils.{function} before the step"
        elif name in STORAGE:
            advice = ": its state is torch's"
        else:
            advice = f": did you mean {theirs}?" if theirs else ""
        raise UnknownArgument(f"optimc.torch.{owner} has no argument {name!r}{advice}") from None


def _refuse_near_words(owner: str, keys: Iterable[object]) -> None:
    """Refuses keys of a group that are nearly an argument about storage.  Programs may have others of their own."""
    for key in keys:
        like = closest(str(key), [name for name in STORAGE if name != "seed"], 0.9)
        if like and key not in STORAGE:
            raise UnknownArgument(f"optimc.torch.{owner}: a parameter group has {key!r}: did you mean {like}?")


class SparseOptimizer(TorchOptimizer):
    """The base of classes that torch has for sparse gradients only."""

    def _plain_step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = loss_of(closure)
        for i, param in self._own():
            if param.grad is not None and not param.grad.is_sparse:
                raise RuntimeError(f"params[{i}].grad: {type(self).__name__} does not support dense gradients, "
                                   f"please consider {self._counterpart.name} instead")
        super()._plain_step()
        return loss


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """The loss that the closure of a step computes, with gradients; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


@torch._disable_dynamo            # type: ignore[attr-defined]
def _step_outside(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The step as a call that torch.compile leaves as it is."""
    return optimizer.step(*args, **kwargs)


def _hooked_step(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The step as torch wraps it, with its hooks and its record for the profiler."""
    name = f"Optimizer.step#{type(optimizer).__name__}.step"
    with _profiler.record_function(name):
        args = (optimizer, *args)
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
