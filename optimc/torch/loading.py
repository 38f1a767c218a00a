"""Loading of a state: what it must have, and its tensors round torch's cast to the type of the parameters.

Next: slots.py, the forms of the tensors.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from optimc import _core
from optimc.torch import handed, tensors
from optimc.torch.inner import make_inner, without_values
from optimc.torch.member import Member
from optimc.torch.slots import Slots
from optimc.torch.states import count_of, number, with_numbers
from optimc.torch_names import MASTER

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any, NoReturn

    from torch import Tensor

    from optimc._types import Config
    from optimc.torch_names import Counterpart, Source


#: flags without which a class keeps the fewest slots; a step makes what it lacks once one is set
OFF: dict[str, bool | float] = {"amsgrad": False, "centered": False, "nesterov": False, "momentum": 0.0}


class Kept:
    """A tensor that torch's loading leaves as it is."""

    tensor: Tensor

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def released(self, param: Tensor) -> Tensor:
        """The tensor on the device of its parameter, dense, not in float64 unless the parameter is."""
        tensor = self.tensor.to(param.device).to_dense()            # torch's momentum of sparse gradients is sparse
        if param.is_complex():
            return tensor.to(param.dtype)
        return tensor.float() if tensor.dtype == torch.float64 != param.dtype else tensor


def with_own_form(state_dict: Config, param_groups: Sequence[Config], keys: Collection[str],
                  scalars: Collection[str]) -> Config:
    """A state_dict whose loading gives the states the form in which a step takes them.

    States of parameters that torch's own implementation steps stay as they are.

    Args:
        state_dict: what is to be loaded.
        param_groups: the groups of the optimizer.
        keys: torch's keys of the slots and the master.
        scalars: torch's keys of the scalars of the rule.
    """
    theirs, states = state_dict["param_groups"], state_dict["state"]
    groups = [{**their, "params": group["params"]} for their, group in zip(theirs, param_groups, strict=False)]
    indexes = [index for group in theirs for index in group["params"]]
    alone = {index for index, (_, _, _, is_handed) in zip(indexes, handed.split(groups), strict=False) if is_handed}
    own = with_kept(with_numbers({"state": {index: state for index, state in states.items() if index not in alone}},
                                 scalars), keys)["state"]
    return with_own_storage({**state_dict, "state": {
        index: state if index in alone else own[index] for index, state in states.items()}}, param_groups)


def with_kept(state_dict: Config, keys: Collection[str]) -> Config:
    """A state_dict whose tensors under these keys torch's loading leaves as they are."""
    return {**state_dict, "state": {
        index: {key: Kept(value) if key in keys and isinstance(value, torch.Tensor) else value
                for key, value in state.items()}
        if isinstance(state, dict) else state for index, state in state_dict["state"].items()}}


def release(states: Mapping[Any, Any]) -> None:
    """Puts the tensors that were kept into the states."""
    for param, state in states.items():
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, Kept):
                state[key] = value.released(param) if isinstance(param, torch.Tensor) else value.tensor


def with_own_storage(state_dict: Config, param_groups: Sequence[Config]) -> Config:
    """A state_dict whose groups store slots and weights as these groups do; a seed that it has stays."""
    theirs = state_dict["param_groups"]
    if len(theirs) != len(param_groups):
        return state_dict                           # which torch refuses
    names = ("state_dtype", "master_weights", "stochastic_round")
    return {**state_dict, "param_groups": [
        {**{name: group[name] for name in (*names, "seed") if name in group},
         **{name: value for name, value in their.items() if name not in names}}
        for their, group in zip(theirs, param_groups, strict=True)]}


def check_loaded(owner: str, state_dict: Config, param_groups: Sequence[Config], keys: Collection[str],
                 counterpart: Counterpart) -> None:
    """Raises a ValueError if a state_dict has a slot or a master that is not of its parameter's shape, or no numbers.

    The same if a count or a scalar is no number that a step can go on from, or there is no count.
    """
    _require(owner, "it", state_dict, ("state", "param_groups"))
    if not isinstance(state_dict["state"], dict):
        raise TypeError(f"the loaded state: expected a dict of states, got {type(state_dict['state']).__name__}")
    for k, group in enumerate(state_dict["param_groups"]):
        _require(owner, f"its param_groups[{k}]", group, ("params",))
    mine = [param for group in param_groups for param in group["params"]]
    theirs = [index for group in state_dict["param_groups"] for index in group["params"]]
    for i, (param, index) in enumerate(zip(mine, theirs, strict=False)):
        state = state_dict["state"].get(index, {})
        if not isinstance(state, dict):
            raise TypeError(f"loaded state of parameter {i}: expected a dict, got {type(state).__name__}")
        if counterpart.counts_steps and any(isinstance(value, torch.Tensor) for value in state.values()):
            _require(owner, f"its state of parameter {i}", state, ("step", *counterpart.scalars))
        for key, value in state.items() if param.device.type == "cpu" else ():
            if key == "step" or (key in counterpart.scalars and value is not None):
                _check_number(key, value, i)
            elif key in keys and value is not None:
                _check_slot(key, value, param, i, counterpart)


def check_groups(owner: str, counterpart: Counterpart, sources: Sequence[Source], modes: Collection[str],
                 param_groups: Sequence[Config]) -> None:
    """Raises a TypeError or ValueError if loaded groups lack what the class reads, or have what no step takes.

    Args:
        owner: the name of the class.
        counterpart: its row.
        sources: where its arguments stand in a group.
        modes: what else it reads there.
        param_groups: the groups.
    """
    for k, group in enumerate(param_groups):
        _require(owner, f"its param_groups[{k}]", group, [*(source.key for source in sources), *modes])
        if not handed.is_group_handed(group):
            counterpart.check_lengths(group)
            with counterpart.wording():
                make_inner(counterpart, sources, [group])


def _require(owner: str, what: str, found: Collection[object], keys: Collection[str]) -> None:
    """Refuses what is loaded into an optimizer of the class `owner` if it lacks one of these entries."""
    for key in keys:
        if key not in found:
            raise ValueError(f"the loaded state is not one of {owner}: {what} has no {key!r}")


def _refuse(key: str, i: int, expected: str, got: object) -> NoReturn:
    raise ValueError(f"loaded state {key!r} of parameter {i}: expected {expected}, got {got}")


def _check_slot(key: str, value: Any, param: Tensor, i: int, counterpart: Counterpart) -> None:
    """Refuses what is neither a tensor of a slot's shape nor codes for all of it."""
    if not isinstance(value, torch.Tensor):
        _refuse(key, i, "a tensor", type(value).__name__)
    if torch.nn.parameter.is_lazy(param) or (
            value.dtype == torch.uint8 and value.shape == (_core.coded_size(param.numel()),)):
        return
    expected = counterpart.shape(key, param.shape)
    if value.shape != expected:
        _refuse(key, i, f"shape {expected}", tuple(value.shape))
    numbers = value.dtype in tensors.TYPES or (value.is_complex() and param.is_complex())
    if not (numbers or (key == MASTER and value.dtype == torch.int16)):
        _refuse(key, i, "floating-point numbers", value.dtype)


def _check_number(key: str, value: Any, i: int) -> None:
    try:
        found = float(number(value))
    except (OverflowError, RuntimeError, TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or (key == "step" and not 0 <= found <= _core.MOST_STEPS):
        _refuse(key, i, "a count" if key == "step" else "a number", " ".join(repr(value).split()))


def place(counterpart: Counterpart, sources: Sequence[Source], param_groups: Sequence[Config], states: Any,
          anew: bool = False) -> bool:
    """Moves tensors that torch has put into states to where a step is fast, in the form in which it takes them.

    anew: slots start from their initial numbers instead.  Adagrad's constructor rounds them to the type of the
        parameter.

    Returns:
        Whether all tensors were moved, so that nobody else holds one.
    """
    index, moved = 0, True
    for group in param_groups:
        inner = without_values(counterpart, sources, [group])
        members: list[Member] = []
        is_handed = handed.is_group_handed(group)
        for param in group["params"]:
            state = dict.get(states, param)
            if state and not is_handed and not torch.nn.parameter.is_lazy(param):
                members.append(Member(param, group, index, state, {}, counterpart.needs_order()))
            index += 1
        moved &= _placed(inner, counterpart, sources, members, group, anew)
    return moved


def _placed(inner: Any, counterpart: Counterpart, sources: Sequence[Source], members: Sequence[Member], group: Config,
            anew: bool) -> bool:
    moved = True
    if counterpart.counts_steps and not anew:
        stepped = [member for member in members if tensors.is_stepped(member.param)
                   and count_of(member.state, member.index)]
        off = {key: OFF[key] for key in OFF if key in group}
        least = without_values(counterpart, sources, [{**group, **off, "state_dtype": None}])
        Slots(least, counterpart, stepped, [group]).check_whole()
    for key in (*counterpart.slots.values(), MASTER):
        having = [member for member in members if member.state.get(key) is not None or (anew and key == MASTER)]
        known = [member for member in having if tensors.is_stepped(member.param)
                 and tensors.is_on_cpu(member.state.get(key, member.param))]
        slots = Slots(inner, counterpart, known, [group], moves=True)
        if key in slots.keys:
            readable = [member for i, member in enumerate(known) if slots.can_read(key, i)]
            slots = Slots(inner, counterpart, readable, [group], moves=True)
            for member in readable if anew else ():
                del member.state[key]
            slots.slot(key, partial(counterpart.initial_value, key))
        elif key == MASTER:
            slots.masters()
        moved &= len(having) == len(slots.members)
        for member, entry, value in slots.new:
            if value is None:
                member.state.pop(entry, None)
            else:
                member.state[entry] = value
    return moved
