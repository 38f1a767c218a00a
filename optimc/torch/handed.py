"""Parameters whose step is handed to torch's own implementation, so that one class serves a whole model.

These are parameters on an accelerator or on `meta`, the groups that are `differentiable` or `capturable`, and those
that have a parameter twice, of which torch warns.  torch's code sees an optimizer with the same class, groups, values
and states, that has no other parameters.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import TYPE_CHECKING

from optimc.torch_names import STORAGE, storage_asked_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from torch import Tensor

    from optimc._types import Config

#: torch's flags of a group that only its own implementation has
KEYS = ("differentiable", "capturable")


def is_group_handed(group: Config) -> bool:
    """True if torch's own implementation steps all parameters of a group."""
    return any(map(group.get, KEYS)) or len(set(map(id, group["params"]))) < len(group["params"])


def split(groups: Sequence[Config]) -> Iterator[tuple[int, Tensor, Config, bool]]:
    """Yields (number, parameter, its group, whether torch's own implementation steps it)."""
    i = 0
    for group in groups:
        whole = is_group_handed(group)
        for param in group["params"]:
            yield i, param, group, whole or param.device.type != "cpu"
            i += 1


def check_storage(group: Config) -> None:
    """Raises a ValueError if a group asks for storage that torch's own implementation does not have."""
    asked = storage_asked_for(group) if is_group_handed(group) else []
    if asked:
        cause = next((f"{key}=True" for key in filter(group.get, KEYS)), "a group that has a parameter twice")
        raise ValueError(f"{cause} is torch's own implementation, which has no {', '.join(asked)}")


def warn(optimizer: Any, pairs: Sequence[tuple[Tensor, Config]]) -> bool:
    """Warns of parameters on an accelerator; returns whether there are any."""
    devices = sorted({str(param.device) for param, _ in pairs} - {"cpu", "meta"})
    if devices:
        name = type(optimizer).__name__
        warnings.warn(f"optimc.torch.{name}: torch's own implementation steps the parameters on "
                      f"{', '.join(devices)}, without {', '.join(STORAGE)}", stacklevel=2)
    return bool(devices)


def step(optimizer: Any, base: type, pairs: Sequence[tuple[Tensor, Config]]) -> None:
    """Steps parameters with torch's own implementation.

    Args:
        optimizer: the optimizer whose parameters they are.
        base: the class after which torch's come in the order of its classes.
        pairs: (parameter, its group).
    """
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(optimizer.__dict__)
    groups = {id(group): {**group, "params": []} for _, group in pairs}
    for param, group in pairs:
        groups[id(group)]["params"].append(param)
    states = optimizer.state
    twin.param_groups = list(groups.values())
    twin.state = defaultdict(dict, {param: dict.get(states, param) for param, _ in pairs if dict.get(states, param)})
    above: Any = super(base, twin)
    theirs = above.step
    function = theirs.__func__
    if getattr(function, "hooked", False):          # torch wraps it in the hooks, which have run
        function = function.__wrapped__
    function(twin)
    for param, state in twin.state.items():
        dict.__setitem__(states, param, state)
