"""Steps of single tensors for callers that keep the state: slots and count come with each step.

Parameters and slots are float32, bfloat16 or float16, in any mixture.  A step computes in float32 and rounds to
nearest, as if the tensors were converted, stepped and converted back.

Next: ops.py, which steps so for DeepSpeed.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

import torch

from optimc.base import storage
from optimc.torch import tensors
from optimc.torch.bare import PLAIN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from torch import Tensor

    from optimc.base.optimizer import Optimizer

FLOATS = (torch.float32, *tensors.HALVES)


class Plan:
    """A plan over flat tensors of one length and of some types, which may be others at every step.

    Args:
        inner: the optimizer of optimc.
        slots: the names of its slots.
        values: optimc's hyperparameters, which the step reads.
        size: the length.
        types: the type of the parameter, and those of the slots.
    """

    _inner: Optimizer
    _slots: Sequence[str]
    _places: dict[str, Any]

    def __init__(self, inner: Optimizer, slots: Sequence[str], values: dict[str, float], size: int,
                 types: Sequence[torch.dtype]) -> None:
        self._inner, self._slots = inner, slots
        self._places = dict.fromkeys(slots)
        for name in values:
            inner._set_item(0, inner._index[name], values, name, -1, name == "weight_decay")
        inner._to_nearest = frozenset(storage.TYPES)
        self._bind(*(torch.empty(size, dtype=dtype) for dtype in types))        # no page is ever touched
        kept = tuple((0, k, self._places, slot) for k, slot in enumerate(slots))
        inner._prepare_tensors((None,), (), kept, PLAIN)

    def _bind(self, param: Tensor, *slots: Tensor) -> None:
        self._inner._locked(
            self._inner._move, [tensors.view(param, param)],
            adopted={name: [tensors.view(slot, slot)] for name, slot in zip(self._slots, slots, strict=True)})

    def step(self, count: int, param: Tensor, grad: Tensor, slots: Sequence[Tensor]) -> None:
        """Step number `count`."""
        self._inner.iterations = count - 1
        if tensors.EXCHANGE is None:
            self._bind(param, *slots)
            self._inner.apply([tensors.view(grad, grad)], [tensors.view(param, param)])
            return
        self._places.update(zip(self._slots, slots, strict=True))
        self._inner._apply_tensors([param], tensors.EXCHANGE, [grad])


class Rule:
    """One of DeepSpeed's optimizers: a class of optimc with its flags, whose plans step any tensors.

    Args:
        cls: the class.
        slots: the names of its slots, in the order in which DeepSpeed gives them.
        flags: its arguments.
    """

    _cls: type[Optimizer]
    _slots: Sequence[str]
    _flags: dict[str, Any]
    _values: dict[str, float]
    _plans: dict[tuple[int, tuple[torch.dtype, ...]], Plan]

    def __init__(self, cls: type[Optimizer], slots: Sequence[str], **flags: Any) -> None:
        self._cls, self._slots, self._flags = cls, slots, flags
        self._values, self._plans = {}, {}
        self._lock = threading.Lock()

    def step(self, count: int, values: dict[str, float], param: Tensor, grad: Tensor, *slots: Tensor) -> None:
        """Step number `count` of a parameter.

        Args:
            values: optimc's hyperparameters.
            grad: of any float type.
            slots: tensors of the parameter's shape.

        Raises:
            TypeError: a tensor is not of a type that is stepped.
            ValueError: a tensor has not the parameter's shape, or what is written overlaps.
        """
        kept = (param, *slots)
        for tensor in (*kept, grad):
            if tensor.dtype not in FLOATS or tensor.device.type != "cpu":
                raise TypeError(f"expected float32, bfloat16 or float16 on the CPU, got {tensor.dtype} on "
                                f"{tensor.device}")
            if tensor.shape != param.shape:
                raise ValueError(f"expected shape {tuple(param.shape)}, like the parameter's, got "
                                 f"{tuple(tensor.shape)}")
        self._check_apart(kept)
        flat = [tensor.contiguous().reshape(-1) for tensor in kept]         # a view if it is contiguous, else a copy
        if not param.numel():
            return
        with self._lock, torch.no_grad():
            self._values.update(values)
            self._step_flat(count, flat, grad.contiguous().reshape(-1))
            for tensor, stepped in zip(kept, flat, strict=True):
                if not tensor.is_contiguous():
                    tensor.copy_(stepped.view(tensor.shape))

    def _check_apart(self, kept: Sequence[Tensor]) -> None:
        """Raises a ValueError if the parameter and its slots share memory, or elements of one of them do."""
        try:
            for i, tensor in enumerate(kept):
                tensors.check_parameter(tensor, i)
            tensors.check_apart(enumerate(kept))
        except ValueError as error:
            names = ("param", *self._slots)
            raise ValueError(re.sub(r"params\[(\d+)\]", lambda found: names[int(found[1])], str(error))) from None

    def _step_flat(self, count: int, kept: Sequence[Tensor], grad: Tensor) -> None:
        key = grad.numel(), tuple(tensor.dtype for tensor in kept)
        if key not in self._plans:
            self._plans[key] = Plan(self._cls(**self._flags), self._slots, self._values, *key)
        self._plans[key].step(count, kept[0], grad, kept[1:])
