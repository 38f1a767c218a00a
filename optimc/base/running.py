"""Running values: numbers that an optimizer carries from update to update beside the slots.

Each group has a dict of two dicts by name: "products" of the hyperparameters that vary, and "scalars" that the rule
keeps.  Here they are converted to plain values of a file and back.  Next: csrc/python/running.c, which keeps them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optimc import _core
from optimc.base import version_1
from optimc.base.rules import scalars_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from optimc._types import Running

    Base = _core.Optimizer
else:
    Base = object


def plain_running(running: Running) -> list[dict[str, dict[str, float | str]]]:
    """The result of `_get_running` as plain values for JSON.  A number that is not finite becomes a string."""
    return [{kind: {name: number if math.isfinite(number) else repr(number) for name, number in numbers.items()}
             for kind, numbers in one.items()} for one in running]


def running_from(rule: str | None, entries: Iterable[Any]) -> Running:
    """The argument of `_set_running` from plain values, of this version or of version 1."""
    return tuple(version_1.running_by_name(rule, one) if isinstance(one, (list, tuple)) else
                 {kind: {name: float(number) for name, number in numbers.items()} for kind, numbers in one.items()}
                 for one in entries)


class Scalars(Base):
    """The part of an optimizer that gets and sets the rule's scalars."""

    _rule: str

    def _scalar_names(self) -> tuple[str, ...]:
        """Names of the rule's scalars, in the order of its row."""
        return scalars_of(self._rule)

    def _scalars(self, group: int = 0) -> tuple[float, ...]:
        """The rule's scalars in one group, in the order of its row."""
        return tuple(self._get_running()[group]["scalars"].values())

    def _all_scalars(self) -> list[float]:
        """The rule's scalars in every group, one group after the other."""
        return [value for one in self._get_running() for value in one["scalars"].values()]

    def _set_all_scalars(self, values: Iterable[float]) -> None:
        """Sets what `_all_scalars` gives."""
        rest = iter(values)
        self._set_running(tuple({**one, "scalars": dict(zip(one["scalars"], rest, strict=False))}
                                for one in self._get_running()))

    def _set_scalars(self, values: Sequence[float], group: int | None = None) -> None:
        """Sets the rule's scalars, in one group or in all."""
        scalars = dict(zip(self._scalar_names(), values, strict=True))
        self._set_running(tuple({**one, "scalars": scalars} if group in (None, k) else one
                                for k, one in enumerate(self._get_running())))
