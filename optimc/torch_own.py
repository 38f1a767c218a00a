"""optimc's optimizers that torch lacks, in the words of torch: their arguments and state, from the registry.

Names are those of the packages that have such classes for torch.  A class that is new in the registry is in `OWN` by
itself.  As torch_names.py, this does not import torch.  Next: optimc/torch/own.py, which makes the classes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optimc.base.arguments import is_switch
from optimc.base.optimizer import Optimizer
from optimc.base.rules import factors_of, slots_of_rule
from optimc.registry import classes
from optimc.torch_names import ITSELF, TORCH, Counterpart

if TYPE_CHECKING:
    from typing import Any

#: torch's words for arguments and slots; the others keep optimc's
ARGUMENTS = {"learning_rate": "lr", "epsilon": "eps"}
SLOTS = {"m": "exp_avg", "v": "exp_avg_sq"}
#: slots that mean something else in a class, or have a name of their own in its package
SLOTS_OF = {"Adan": {"v": "exp_avg_diff", "n": "exp_avg_sq", "previous": "previous_grad"},
            "AdaBelief": {"s": "exp_avg_var"}}
#: numbers that choose a kernel
CHOOSING = ("learning_rate_power",)
#: classes of optimc that steps of tensors have no use for: torch has its own
LEFT_OUT = ("Muon",)


class Word(NamedTuple):
    """An argument of a class in the words of torch.

    Attributes:
        name: torch's word.
        ours: optimc's argument, or the tuple of them.
        default: the default; a tuple if `ours` is one.
        keyword_only: whether it is given by keyword.
    """

    name: str
    ours: str | tuple[str, ...]
    default: Any
    keyword_only: bool


def words(cls: type[Optimizer]) -> list[Word]:
    """The arguments of a class of optimc as a class of torch has them, in their order."""
    own = [argument for argument in cls._arguments.values() if argument.owner is not Optimizer]
    betas = tuple(argument.name for argument in own if re.fullmatch(r"beta_\d", argument.name))
    found = []
    for argument in own:
        if argument.name in betas:
            if argument.name == betas[0]:
                defaults = tuple(cls._arguments[name].default for name in betas)
                found.append(Word("betas", betas, defaults, False))
        elif argument.name != "weight_decay":
            found.append(Word(ARGUMENTS.get(argument.name, argument.name), argument.name, argument.default,
                              argument.keyword_only))
    decay = cls._arguments["weight_decay"].default or 0.0
    return [*(word for word in found if not word.keyword_only), Word("weight_decay", "weight_decay", decay, False),
            *(word for word in found if word.keyword_only), Word("maximize", "maximize", False, True)]


def counterpart(cls: type[Optimizer]) -> Counterpart:
    """The row of a class, as TORCH has rows of torch's classes."""
    slots = {slot: {**SLOTS, **SLOTS_OF.get(cls.__name__, {})}.get(slot, slot) for slot in slots_of_rule(cls._rule)
             if slot not in cls._scratch_slots}
    found = words(cls)
    flags = tuple(word.name for word in found if isinstance(word.default, bool) or word.ours in CHOOSING)
    factors = {slots[slot]: axis for slot, axis in factors_of(cls._rule).items() if slot in slots}
    initial = {slots[slot]: start for slot in slots for start in _starts(cls, slot)}
    return Counterpart(cls.__name__, {word.name: word.ours for word in found}, slots, style="keras", flags=flags,
                       factors=factors, initial=initial)


def _starts(cls: type[Optimizer], slot: str) -> list[str]:
    """The argument that gives the initial number of a slot, or ITSELF if it starts as its weight; else nothing."""
    weight, number = np.zeros(1), 0.125
    if cls()._initial(slot, weight, 0) is weight:
        return [ITSELF]
    return [name for name, argument in cls._arguments.items()
            if argument.owner is not Optimizer and name not in cls._index and not is_switch(argument)
            and isinstance(argument.default, float) and cls(**{name: number})._initial(slot, weight, 0) == number]


#: optimc's classes that torch lacks -> their rows
OWN: dict[str, Counterpart] = {name: counterpart(cls) for name, cls in sorted(classes.items())
                               if name not in LEFT_OUT and name not in {row.name for row in TORCH.values()}}
