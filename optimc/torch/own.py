"""Classes for optimizers that torch lacks: what stands where torch's class does for the others.

`base` makes a subclass of torch.optim.Optimizer that has the arguments of a row of torch_own.py and no step.
`TorchOptimizer` comes before it, and steps.  A step takes parameters on the CPU only, as nobody else has one.
"""

from __future__ import annotations

import inspect
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optimc.base import narrow, storage
from optimc.base.arguments import Option
from optimc.registry import classes
from optimc.torch import bare, handed, tensors
from optimc.torch.step import TorchOptimizer
from optimc.torch_names import MASTER
from optimc.torch_own import words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from optimc._types import Config
    from optimc.torch_own import Word


class OwnOptimizer(TorchOptimizer):
    """The base of classes that torch lacks."""

    def _check_groups(self, new: Sequence[Config]) -> None:
        cls = classes[self._counterpart.name]
        for i, param, _, is_handed in handed.split(self.param_groups):
            if is_handed and param.device.type != "meta":
                raise TypeError(f"params[{i}]: expected a tensor on the CPU, once, for torch has no {cls.__name__}")
            if not cls._elementwise and not bare.is_real(param):
                raise TypeError(f"params[{i}]: {cls.__name__} looks at whole parameters, and takes no DTensor and no "
                                "complex parameter")
        for group, word in itertools.product(new, words(cls)):
            argument = None if isinstance(word.ours, tuple) else cls._arguments[word.ours]
            if isinstance(argument, Option):
                argument.check(word.name, group[word.name])
        super()._check_groups(new)


class ScheduleFreeOptimizer(OwnOptimizer):
    """The base of classes whose parameters hold the average of a run only in `eval` mode."""

    _modes = ("train_mode",)

    def train(self) -> None:
        """Lets the parameters hold the points at which gradients are computed.  A step needs this mode."""
        self._change_mode(True)

    def eval(self) -> None:
        """Lets the parameters hold the averages: call it before validation and before a model is saved."""
        self._change_mode(False)

    def _change_mode(self, train: bool) -> None:
        with self._cohorts.turn:
            for group in self.param_groups:
                for param in group["params"] if group["train_mode"] != train else ():
                    state = dict.get(self.state, param) or {}
                    if state.get("z") is not None:
                        _move(param, state, group["betas"][0], train)
                        torch.autograd.graph.increment_version([param])
                group["train_mode"] = train

    def _plain_step(self, closure: Callable[[], Any] | None = None) -> Any:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(f"{type(self).__name__} is not in train mode: call train() before steps, and eval() "
                               "before validation")
        return super()._plain_step(closure)


def _moved(numbers: Any, z: Any, beta: Any, train: bool) -> Any:
    """y = (1 - beta) z + beta x of the average x, or x of y.  All are arrays or tensors of one type."""
    cls: Any = classes["ScheduleFreeAdamW"]
    return (1 - beta) * z + beta * numbers if train else cls._average(numbers, z, beta)


@torch.no_grad()
def _move(param: Tensor, state: Config, beta: float, train: bool) -> None:
    """Moves a parameter from the average to the point at which gradients are computed, or back."""
    plain, z, master = bare.bare(param), bare.bare(state["z"]), state.get(MASTER)
    if master is None:
        plain.copy_(_moved(plain.to(z.dtype), z, torch.tensor(beta, dtype=z.dtype), train))
        return
    dense = plain if tensors.is_dense(plain) else bare.dense_copy(param)
    weight, rest = tensors.view(dense, dense), tensors.stored(bare.bare(master), dense)
    numbers = _moved(narrow.exact(weight, rest), tensors.stored(z, dense), np.float32(beta), train)
    narrow.encode(narrow.weight_codec(weight, rest) or 0, numbers, storage.like_of(weight).real, weight, master=rest)
    if dense is not plain:
        plain.copy_(dense)


#: the bases that come before a class that torch lacks, where that is not `OwnOptimizer`
BASES: dict[str, type[OwnOptimizer]] = {"ScheduleFreeAdamW": ScheduleFreeOptimizer}


def _parameter(word: Word) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if word.keyword_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(word.name, kind, default=word.default)


def base(name: str) -> Any:
    """A class with the arguments of an optimizer of optimc, in the words of torch, which has no step."""
    signature = inspect.Signature([
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
        inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *map(_parameter, words(classes[name]))])
    modes = dict.fromkeys(BASES.get(name, OwnOptimizer)._modes, True)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        given.pop("self")
        torch.optim.Optimizer.__init__(self, given.pop("params"), {**given, **modes})

    init.__signature__ = signature                  # type: ignore[attr-defined]

    def step(self: Any, closure: Any = None) -> None:
        raise TypeError(f"optimc.torch.{name} steps parameters on the CPU, once each, for torch has no {name}")

    return type(name, (torch.optim.Optimizer,), {"__init__": init, "step": step, "__module__": __name__})
