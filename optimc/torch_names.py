"""torch's optimizers in the words of optimc: their classes, arguments and state.

The table has two readers.  `optimc.torch` lets C read torch's parameter groups at every step; `optimc.from_torch`
copies a torch optimizer once.  `from_torch` does not import torch, and anything in the package optimc.torch would: so
the table lies outside it.

Next: optimc/torch/inner.py and optimc/migrate.py.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Any


#: optimc's arguments about storage, which a parameter group may have beside torch's
STORAGE: dict[str, Any] = {"state_dtype": None, "master_weights": True, "stochastic_round": False, "seed": 0}
#: the key of the master of a parameter of 16 bits in its state, as Transformer Engine names it
MASTER = "master_param"
#: the key of the order of memory, a tuple of axes, beside slots of 8 bits
AXES = "axes"
#: what stands for the initial number of a slot that starts as its parameter
ITSELF = "params"


class Source(NamedTuple):
    """The place in torch's parameter groups where one argument of optimc's stands.

    Attributes:
        argument: optimc's argument.
        key: the key of the parameter group.
        item: the position in the tuple or list that stands there, or -1 for a number or flag.
        negated: whether the flag means the opposite.
        items: the length of that tuple or list, or 0.
    """

    argument: str
    key: str
    item: int = -1
    negated: bool = False
    items: int = 0

    def is_flag(self, group: Mapping[str, Any]) -> bool:
        """Whether the group has a flag here, not a number."""
        return isinstance(group[self.key], bool)

    def read(self, group: Mapping[str, Any]) -> bool | float | None:
        """The value that the group has, as optimc's constructor takes it."""
        value = group[self.key]
        if isinstance(value, bool):
            return value != self.negated
        value = value if self.item < 0 else value[self.item]
        return None if value is None else float(value)


class Counterpart(NamedTuple):
    """The optimizer of optimc that does what one of torch's does.

    Attributes:
        name: optimc's class.
        arguments: torch's arguments -> optimc's; a tuple if torch's is one; "not ..." if the meaning is the opposite.
        slots: optimc's slots -> torch's keys in a parameter's state.
        scalars: torch's keys for the scalars of the rule, in the order of the rule's row.
        initial: torch's keys for slots and scalars that do not start as 0 -> a number, or the key of the parameter
            group that holds it, or ITSELF.
        counts_steps: whether torch keeps a step count in a parameter's state.
        counts_in_ints: whether that is a Python int, and no tensor.
        style: the style of optimc's class that has torch's formula.
        factors: torch's keys of slots that lack an axis of their parameter -> the axis, counted from the last, which
            has a length of 1 in torch; -1: all axes but the first, which are left out.
        flags: its arguments that choose a kernel or a formula, flags and numbers, beside those of torch.
    """

    name: str
    arguments: Mapping[str, str | tuple[str, ...]]
    slots: Mapping[str, str]
    scalars: tuple[str, ...] = ()
    initial: Mapping[str, float | str] = {}
    counts_steps: bool = True
    counts_in_ints: bool = False
    style: str = "torch"
    flags: tuple[str, ...] = ()
    factors: Mapping[str, int] = {}

    def sources(self, known: Iterable[str]) -> list[Source]:
        """Where the arguments stand, of those that this version of torch knows."""
        found = []
        for key in (key for key in self.arguments if key in known):
            argument = self.arguments[key]
            if isinstance(argument, tuple):
                found += [Source(each, key, item, items=len(argument)) for item, each in enumerate(argument)]
            else:
                found.append(Source(argument.removeprefix("not "), key, negated=argument.startswith("not ")))
        return found

    def kept(self, keys: Iterable[str], numbers: Iterable[float]) -> dict[str, float]:
        """Counts and scalars by torch's keys, as torch keeps them."""
        kind = int if self.counts_in_ints else float
        return dict(zip(keys, map(kind, numbers), strict=False))

    def storage(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments about storage that a group has, in the words of optimc.

        What `rounds_to_nearest` says has none: there 16 bits have masters, unless an adapter does without.

        Raises:
            TypeError, ValueError: `stochastic_round` is no bool, or asks for what a master excludes.
        """
        given = {name: group[name] for name in STORAGE if name in group}
        at_random = given.pop("stochastic_round", False)
        if not isinstance(at_random, bool):
            raise TypeError(f"stochastic_round must be a bool, got {type(at_random).__name__}")
        if at_random and given.get("master_weights", True):
            raise ValueError("stochastic_round=True is for parameters without a master: pass master_weights=False, "
                             "or leave it out")
        if rounds_to_nearest(group):
            given["master_weights"] = True
        if "state_dtype" in given:
            value, ours = given["state_dtype"], {theirs: slot for slot, theirs in self.slots.items()}
            given["state_dtype"] = {ours.get(slot, slot): _word(choice) for slot, choice in value.items()} \
                if isinstance(value, dict) else _word(value)
        return given

    def in_torchs_words(self, message: str) -> str:
        """An error about storage, with torch's names for the slots that it quotes."""
        return re.sub(r"'(\w+)'", lambda found: repr(self.slots.get(found[1], found[1])), message)

    def word_for(self, argument: str) -> str | None:
        """torch's argument for one of optimc's; None if torch has none."""
        return next((key for key, ours in self.arguments.items()
                     if argument in (ours if isinstance(ours, tuple) else (ours,))), None)

    @contextlib.contextmanager
    def wording(self) -> Iterator[None]:
        """Gives errors about an argument of optimc torch's name for it, within the block."""
        try:
            yield
        except (TypeError, ValueError) as error:
            message = re.sub(r"^\w+(?= must be )", lambda found: self.word_for(found[0]) or found[0], str(error))
            error.args = (message, *error.args[1:])
            raise

    def check_lengths(self, group: Mapping[str, Any]) -> None:
        """Raises a ValueError if a group has no tuple or list, or one of another length, where torch has a tuple."""
        for key, ours in self.arguments.items():
            value = group.get(key, ours)
            if isinstance(ours, tuple) and not (isinstance(value, (tuple, list)) and len(value) == len(ours)):
                raise ValueError(f"{key} must be a tuple of {len(ours)} numbers, got {value!r}")

    def shape(self, key: str, param: Sequence[int]) -> tuple[int, ...]:
        """The shape of a slot, by torch's key, of a parameter of this shape."""
        axis = self.factors.get(key, 0)
        return tuple(param[:1]) if axis < 0 else tuple(
            1 if len(param) - k == axis else length for k, length in enumerate(param))

    def needs_order(self) -> bool:
        """True if the axes of a parameter must lie in memory in their own order: its slots are means over some."""
        return any(axis > 0 for axis in self.factors.values())

    def initial_value(self, key: str, group: Mapping[str, Any]) -> float | None:
        """The number that a slot or scalar, by torch's key, starts from in a parameter group; None for ITSELF."""
        value = self.initial.get(key, 0.0)
        return None if value == ITSELF else float(group[value] if isinstance(value, str) else value)


def storage_asked_for(group: Mapping[str, Any]) -> list[str]:
    """The arguments by which a group asks for storage that torch's own implementation does not have."""
    return [name for name, default in STORAGE.items() if group.get(name, default) != default
            and not (name == "master_weights" and rounds_to_nearest(group))]


def rounds_to_nearest(group: Mapping[str, Any]) -> bool:
    """True if parameters of 16 bits in a group have no masters, and are rounded as torch's own optimizers round."""
    return group.get("master_weights", True) is False and not group.get("stochastic_round", False)


def _word(dtype: Any) -> Any:
    """A storage type by its name: torch's types are words too."""
    return str(dtype).removeprefix("torch.") if str(dtype).startswith("torch.") else dtype


_ADAM: dict[str, str | tuple[str, ...]] = {
    "lr": "learning_rate", "betas": ("beta_1", "beta_2"), "eps": "epsilon", "weight_decay": "weight_decay",
    "maximize": "maximize"}
_MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}

#: torch's classes -> what they are here
TORCH = {
    "SGD": Counterpart(
        "SGD", {"lr": "learning_rate", "momentum": "momentum", "dampening": "dampening",
                "weight_decay": "weight_decay", "nesterov": "nesterov", "maximize": "maximize"},
        {"velocity": "momentum_buffer"}, counts_steps=False),
    "Adam": Counterpart(
        "Adam", {**_ADAM, "amsgrad": "amsgrad", "decoupled_weight_decay": "not coupled_weight_decay"},
        {**_MOMENTS, "v_max": "max_exp_avg_sq"}),
    "SparseAdam": Counterpart(          # epsilon is added to a root without bias correction, as in Keras
        "Adam", {"lr": "learning_rate", "betas": ("beta_1", "beta_2"), "eps": "epsilon", "maximize": "maximize"},
        _MOMENTS, counts_in_ints=True, style="keras"),
    "AdamW": Counterpart("AdamW", {**_ADAM, "amsgrad": "amsgrad"}, {**_MOMENTS, "v_max": "max_exp_avg_sq"}),
    "RMSprop": Counterpart(
        "RMSprop", {"lr": "learning_rate", "alpha": "rho", "eps": "epsilon", "momentum": "momentum",
                    "weight_decay": "weight_decay", "centered": "centered", "maximize": "maximize"},
        {"v": "square_avg", "average": "grad_avg", "velocity": "momentum_buffer"}),
    "Adagrad": Counterpart(
        "Adagrad", {"lr": "learning_rate", "lr_decay": "learning_rate_decay", "eps": "epsilon",
                    "weight_decay": "weight_decay", "maximize": "maximize",
                    "initial_accumulator_value": "initial_accumulator_value"},
        {"accumulator": "sum"}, initial={"sum": "initial_accumulator_value"}),
    "Adadelta": Counterpart(
        "Adadelta", {"lr": "learning_rate", "rho": "rho", "eps": "epsilon", "weight_decay": "weight_decay",
                     "maximize": "maximize"},
        {"accumulator": "square_avg", "delta": "acc_delta"}),
    "Adamax": Counterpart("Adamax", _ADAM, {"m": "exp_avg", "u": "exp_inf"}),
    "NAdam": Counterpart(
        "Nadam", {**_ADAM, "momentum_decay": "momentum_decay", "decoupled_weight_decay": "not coupled_weight_decay"},
        _MOMENTS, scalars=("mu_product",), initial={"mu_product": 1.0}),
    "RAdam": Counterpart("RAdam", {**_ADAM, "decoupled_weight_decay": "not coupled_weight_decay"}, _MOMENTS),
    "Rprop": Counterpart(
        "Rprop", {"lr": "learning_rate", "etas": ("eta_minus", "eta_plus"), "step_sizes": ("min_step", "max_step"),
                  "maximize": "maximize"},
        {"previous": "prev", "size": "step_size"}, initial={"step_size": "lr"}),
    "Adafactor": Counterpart(
        "Adafactor", {"lr": "learning_rate", "beta2_decay": "beta_2_decay", "eps": ("epsilon_1", "epsilon_2"),
                      "d": "clip_threshold", "weight_decay": "weight_decay", "maximize": "maximize"},
        {"velocity": "variance", "row": "row_var", "column": "col_var"}, factors={"row_var": 1, "col_var": 2}),
    "ASGD": Counterpart(
        "ASGD", {"lr": "learning_rate", "lambd": "lambd", "alpha": "alpha", "t0": "t0",
                 "weight_decay": "weight_decay", "maximize": "maximize"},
        {"average": "ax"}, scalars=("eta", "mu"), initial={"eta": "lr", "mu": 1.0}),
}
