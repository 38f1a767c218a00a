"""The optimizer of optimc that steps a cohort, made from torch's parameter groups.

It has no values of its own: C reads the learning rate and the others from torch's parameter groups at every step, so
schedulers and programs that write into a group need nobody to tell optimc.  Only flags, a momentum of zero and the
storage are fixed, because they choose the kernel; cohorts.py plans anew when one of them changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc import registry
from optimc.base import narrow
from optimc.torch_names import rounds_to_nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from torch import Tensor

    from optimc.base.optimizer import Optimizer
    from optimc.torch_names import Counterpart, Source


def make_inner(counterpart: Counterpart, sources: Sequence[Source], groups: Sequence[dict[str, Any]],
               members: Sequence[tuple[Tensor, dict[str, Any]]] = ()) -> Optimizer:
    """A new optimizer of optimc.

    Args:
        counterpart: the class and its slots, from torch_names.py.
        sources: where its arguments stand in a group.
        groups: torch's groups; those after the first become groups of the optimizer too.
        members: (parameter, its group) of each weight.

    Raises:
        TypeError, ValueError: a group has a value that the optimizer does not take.
    """
    inner = without_values(counterpart, sources, groups, members)
    numbers = [source for source in sources if not source.is_flag(groups[0]) and source.argument in inner._index]
    for k, group in enumerate(groups):
        for source in numbers:
            index = inner._index[source.argument]
            if source.key == "momentum" and not group["momentum"]:
                inner._set_value(k, index, 0.0, False)
            elif source.key in counterpart.flags:
                inner._set_value(k, index, source.read(group), False)
            else:
                inner._set_item(k, index, group, source.key, source.item, source.key == "weight_decay",
                                source.items)
    return inner


def without_values(counterpart: Counterpart, sources: Sequence[Source], groups: Sequence[dict[str, Any]],
                   members: Sequence[tuple[Tensor, dict[str, Any]]] = ()) -> Optimizer:
    """The same, with flags and storage only: enough to tell how slots are stored."""
    first = groups[0]
    flags: dict[str, Any] = {source.argument: source.read(first) for source in sources if source.is_flag(first)}
    flags |= {source.argument: float(bool(first["momentum"])) for source in sources if source.key == "momentum"}
    flags |= {source.argument: source.read(first) for source in sources if source.key in counterpart.flags}
    others = []
    for group in groups[1:]:
        choice = counterpart.storage(group).get("state_dtype")
        others.append({"weights": [i for i, (_, own) in enumerate(members) if own is group],
                       "state_dtype": {} if choice is None else choice})        # {}: no slot in fewer bits
    try:
        inner = registry.classes[counterpart.name](**flags, **counterpart.storage(first),
                                                   style=counterpart.style, groups=others)
    except ValueError as error:
        raise ValueError(counterpart.in_torchs_words(str(error))) from None
    inner._to_nearest = narrow.MASTERS if rounds_to_nearest(first) else ()
    return inner
