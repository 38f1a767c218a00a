"""The state of an optimizer in the order of Keras's variables.

Keras creates slots in blocks: within a block, all slots of the first weight come before those of the second.  A class
says in `_keras_slots` which slots are a block and how Keras calls them; without it, all slots are one block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optimc._types import Array
    from optimc.base.optimizer import Optimizer


def variables_of(optimizer: Optimizer) -> list[Array]:
    """What `Optimizer.variables` gives."""
    rate = [] if callable(optimizer._get_value(0, 0)) else [np.array(optimizer.learning_rate)]
    slots = optimizer._slots
    masters = [master for master in optimizer._masters or () if master is not None]
    return [np.array(optimizer.iterations), *rate, *(optimizer._averages or ()), *(optimizer._accumulators or ()),
            *masters, *(slots[slot][i] for slot, _, i in slots_in_order(optimizer._keras_slots, slots))]


def slots_in_order(blocks: Sequence[dict[str, str]],
                   kept: Mapping[str, Sequence[object]]) -> Iterator[tuple[str, str, int]]:
    """Yields (slot, Keras's name, position of the weight) in the order of Keras's variables.

    Args:
        blocks: the `_keras_slots` of a class.
        kept: for each slot a list with an entry per weight: None if the weight has no such slot.
    """
    for block in blocks or ({slot: slot for slot in kept},):
        names = {slot: name for slot, name in block.items() if slot in kept}
        for i, entries in enumerate(zip(*(kept[slot] for slot in names), strict=True)):
            for (slot, name), entry in zip(names.items(), entries, strict=True):
                if entry is not None:
                    yield slot, name, i
