"""A parameter of an optimizer, and its state as optimc left it.  Next: cohorts.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimc.torch import bare, tensors
from optimc.torch.states import number, put_number

if TYPE_CHECKING:
    from torch import Tensor

    from optimc._types import Config
    from optimc.torch.states import States

    Numbers = tuple[Any, ...]


class Member:
    """A parameter in a cohort, and its state as optimc left it.

    Attributes:
        param, group: the parameter and its group.
        index: its position among all parameters of the optimizer.
        needs_order: whether it is stepped in the order of its axes, wherever they lie.
        state: the dict of its state.
        numbers: torch's keys of the count and the scalars -> the entry in the state, or None, and the number there.
        slots: torch's keys -> the tensors that the plan steps, the master among them.
        copy: the dense copy that the plan steps, if the elements of the parameter have gaps between them, or lie in
            another order than is needed.
        count, scalars: what it came into the cohort with.
    """

    param: Tensor
    group: Config
    index: int
    needs_order: bool
    state: Config
    numbers: dict[str, tuple[Any, Any]]
    slots: dict[str, Tensor]
    copy: Tensor | None
    _form: tuple[Any, ...] | None
    count: int
    scalars: Numbers

    __slots__ = ("_form", "copy", "count", "group", "index", "needs_order", "numbers", "param", "scalars", "slots",
                 "state")

    def __init__(self, param: Any, group: Any, index: int, state: Config, numbers: dict[str, tuple[Any, Any]],
                 needs_order: bool) -> None:
        self.param, self.group, self.index, self.state, self.numbers = param, group, index, state, numbers
        self.needs_order = needs_order
        self.slots, self.count, self.scalars = {}, 0, ()
        self._form = self.copy = None

    def plan(self) -> Tensor:
        """The plain tensor that stands for the parameter in a plan, filled with its numbers."""
        plain = bare.bare(self.param)
        if self.copy is None and not (plain.is_contiguous() if self.needs_order else tensors.is_dense(plain)):
            self.copy, self._form = bare.dense_copy(self.param), tensors.form(self.param)
            if self.needs_order:
                self.copy = self.copy.contiguous()
        return bare.bare(self.param) if self.copy is None else self.copy

    def is_plain(self) -> bool:
        """True if the parameter stands for itself in a plan."""
        return self.copy is None and bare.is_real(self.param)

    def stand(self) -> Tensor:
        """The tensor that stands for the parameter in a step, with its gradient."""
        if self.is_plain():
            return self.param
        if self.copy is None:
            tensor = bare.bare(self.param).detach()
        elif self.param.grad is None:
            return self.copy                            # it rests
        elif self._form != tensors.form(self.param):
            raise ValueError(f"params[{self.index}]: it has not the type, shape and strides it was planned with")
        else:
            tensor = self.copy.copy_(bare.bare(self.param).detach())
        tensor.grad = bare.gradient(self.param)
        return tensor

    def write_back(self) -> None:
        """Writes a stepped copy into the parameter, and lets go of its gradient."""
        if self.copy is not None:
            bare.bare(self.param).detach().copy_(self.copy)
            self.copy.grad = None

    def keeps(self, key: str) -> bool:
        """Whether the count or scalar in the state is still what optimc read or wrote there last."""
        entry, value = self.numbers[key]
        return self.state.get(key) is entry and (entry is None or number(entry) == value)

    def write(self, numbers: dict[str, float]) -> None:
        """Writes counts and scalars into the state, but for those that the owner has changed."""
        for key, value in numbers.items():
            if self.numbers[key][1] != value and self.keeps(key):
                self.numbers[key] = put_number(self.state, key, value), value

    def is_as_left(self, states: States) -> bool:
        """Whether nothing has changed in the state that a step depends on."""
        found = dict.get(states, self.param)
        return (found is self.state or (found is None and not self.slots)) and all(map(self.keeps, self.numbers)) \
            and all(self.state.get(key) is tensor for key, tensor in self.slots.items())
