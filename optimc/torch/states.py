"""`optimizer.state`: a dict of torch's kind that knows when a program looks into it.

torch's programs read and edit `optimizer.state` directly, and torch keeps a step count there for each parameter.  To
keep these counts would cost a tensor write per parameter and step, while the step itself is one call.  So `States`
catches the moment when somebody looks:

- The first call of a method that gives out or changes what is in the dict writes the current step counts into it.
- A program may hold what it was given.  So from then on every step compares the counts with those written, plans anew
  what a program has changed, and writes the counts that it has made.  It also asks where the other tensors of the
  state are, as it does with parameters.

A program that never looks pays nothing.  The step itself goes round these methods (`dict.get(states, ...)`).  Copies
and pickles of the dict are plain, and so is the dict of each parameter.

The functions below make and read the numbers in it.  Next: slots.py, the tensors in it, and cohorts.py, which plans.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import ItemsView, ValuesView
from typing import TYPE_CHECKING, Any

import torch

from optimc._core import LAST_WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from torch import Tensor

    from optimc._types import Config
    from optimc.torch.cohorts import Cohorts


class States(defaultdict[Any, Any]):
    """The state by parameter, for `optimizer.state`.

    Args:
        cohorts: the `Cohorts` that keep the counts and want to know of a first look.
        states: the state so far.

    Attributes:
        known: whether a program may hold tensors that are in it, and so may move them at any time.
    """

    known: bool

    def __init__(self, cohorts: Cohorts, states: Mapping[Any, Any]) -> None:
        self.cohorts: Any = None                         # filling the dict is no look
        super().__init__(dict, states)
        self.cohorts, self.known = cohorts, bool(states)

    def items(self) -> Any:
        return ItemsView(self)                      # looks at every entry it gives

    def values(self) -> Any:
        return ValuesView(self)

    def copy(self) -> Any:
        with self.cohorts.turn:
            if not self.known:
                self.cohorts.look(self)
            return defaultdict(dict, dict.items(self))

    __copy__ = copy

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return defaultdict, (dict, dict(self.copy()))


def _looking(name: str) -> Callable[..., Any]:
    """A method of dict that looks first, and tells of changes.  No step runs meanwhile."""
    method, reads = getattr(defaultdict, name), name in ("__getitem__", "get", "__iter__")

    @functools.wraps(method)
    def looking(self: States, *args: Any, **kwargs: Any) -> Any:
        if self.cohorts is None:
            return method(self, *args, **kwargs)
        with self.cohorts.turn:
            if not self.known:
                self.cohorts.look(self)
            size = len(self)
            try:
                return method(self, *args, **kwargs)
            finally:
                if not reads or len(self) != size:          # a default enters
                    self.cohorts.note_change(self)
    return looking


for _name in ("__getitem__", "__setitem__", "__delitem__", "__ior__", "get", "pop", "popitem", "setdefault", "update",
              "clear", "__iter__"):                 # dict(state) calls __iter__ and __getitem__
    setattr(States, _name, _looking(_name))


# ------------------------------------------------------------------------------- counts and scalars

def put_number(state: Config, key: str, value: float) -> Tensor | int:
    """Writes a number into a parameter's state, into the tensor that is there if it can hold it; returns the entry.

    An int stays one.  Another step count is kept in the type that torch gives it, and in float64 beyond 2^24.  The
    scalars of a rule are kept in float64, as the step has them, so that a run resumes exactly.
    """
    exact = value > LAST_WHOLE if key == "step" else True
    tensor = state.get(key)
    if (isinstance(tensor, torch.Tensor) and tensor.numel() == 1 and not tensor.is_inference()
            and (tensor.dtype == torch.float64 or (tensor.dtype == torch.float32 and not exact))):
        tensor.fill_(value)
    elif isinstance(value, int):
        state[key] = value
        return value
    else:
        exact = exact or torch.get_default_dtype() == torch.float64
        with torch.inference_mode(False):
            state[key] = tensor = torch.tensor(value, dtype=torch.float64 if exact else torch.float32)
    return tensor


def number(entry: Any) -> float:
    """What an entry of a parameter's state says, a tensor or a number."""
    return entry.item() if isinstance(entry, torch.Tensor) else float(entry)


def count_of(state: Config, index: int) -> int:
    """The steps done with the state of parameter `index`."""
    if "step" in state:
        count = number(state["step"])
        if not (math.isfinite(count) and count >= 0):
            raise ValueError(f"params[{index}]: state 'step': expected a count, got {count}")
        return int(count)
    # torch's SGD keeps no count; only its first step is special, and before it there is no buffer
    return 1 if state.get("momentum_buffer") is not None else 0


# ------------------------------------------------------------------------------------------ loading

def with_numbers(state_dict: Config, keys: Container[str]) -> Config:
    """A state_dict that has plain numbers under these keys, which torch's loading leaves as they are."""
    return {**state_dict, "state": {
        index: {key: number(value) if key in keys else value for key, value in state.items()}
        if isinstance(state, dict) else state for index, state in state_dict["state"].items()}}


def place_numbers(states: Mapping[Any, Any], keys: Iterable[str]) -> None:
    """Makes tensors of plain numbers in states, before torch does it with fewer bits."""
    for state in states.values():
        for key in keys:
            if isinstance(state, dict) and isinstance(state.get(key), float):
                put_number(state, key, state[key])
