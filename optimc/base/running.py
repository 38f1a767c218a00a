"""Running values: numbers that an optimizer carries from update to update beside the slots.

Each group has a dict of two dicts by name: "products" of the hyperparameters that vary, and "scalars" that the rule
keeps.  Here they are converted to plain values of a file and back.  Next: csrc/python/running.c, which keeps them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optimc.base import version_1

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from optimc._types import Running


def plain_running(running: Running) -> list[dict[str, dict[str, float | str]]]:
    """The result of `_get_running` as plain values for JSON.  A number that is not finite becomes a string."""
    return [{kind: {name: number if math.isfinite(number) else repr(number) for name, number in numbers.items()}
             for kind, numbers in one.items()} for one in running]


def running_from(rule: str | None, entries: Iterable[Any]) -> Running:
    """The argument of `_set_running` from plain values, of this version or of version 1."""
    return tuple(version_1.running_by_name(rule, one) if isinstance(one, (list, tuple)) else
                 {kind: {name: float(number) for name, number in numbers.items()} for kind, numbers in one.items()}
                 for one in entries)
