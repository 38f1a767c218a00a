"""Which weights are meant: groups of them with values of their own, and those that an argument lists.

Weights are listed as arrays, as positions, or as regular expressions for their names.
"""

import re

import numpy as np

from optimc import _core
from optimc.base.arguments import Value, likely, plain
from optimc.base.rules import WHOLE


class Group:
    """Weights with values of their own: a mapping from the names of values to what they are here.

    Example:
        >>> import optimc
        >>> opt = optimc.AdamW(groups=[{"params": "bias", "weight_decay": 0.0}])
        >>> opt.groups[0]["weight_decay"], opt.groups[0]["learning_rate"]
        (0.0, 0.001)
        >>> opt.groups[0]["learning_rate"] = 0.01
    """

    def __init__(self, optimizer, label, overrides):
        if not isinstance(overrides, dict) or "params" not in overrides:
            raise TypeError(f"{label}: expected a dict with an entry 'params', got {overrides!r}")
        values = {name: value for name, value in overrides.items() if name != "params"}
        params = overrides["params"]
        self._optimizer = optimizer
        self.label = label
        self.arrays, self.patterns = weights_or_patterns(label, [params] if isinstance(params, str) else params)
        self._own = []
        for name in values:
            self._check(name)
        self._k = optimizer._add_group()
        for name, value in values.items():
            self._set(name, value)

    def _check(self, name):
        if not isinstance(self._optimizer._arguments.get(name), Value) or name in WHOLE:
            raise ValueError(f"{self.label}: {name!r} is not a value that weights can have of their own"
                             f"{likely([name], self._optimizer._index)}")

    def _set(self, name, value):
        self._optimizer._change(self._k, name, value)
        if name not in self._own:
            self._own.append(name)

    def __getitem__(self, name):
        self._check(name)
        return self._optimizer._ask_value(self._k, self._optimizer._index[name])

    def __setitem__(self, name, value):
        self._check(name)
        self._set(name, value)

    def given(self, arrays):
        """The group as the constructor takes it."""
        return {"params": [*arrays, *self.patterns],
                **{name: self._optimizer._get_value(self._k, self._optimizer._index[name])
                   for name in self._own}}

    def get_config(self):
        """The group as plain values; weights as their positions, once the optimizer is built."""
        positions = self._optimizer._positions(self.arrays)
        if any(isinstance(entry, np.ndarray) for entry in positions):
            raise ValueError(f"{self.label}: a list of weights can be stored only once the optimizer is built")
        return {name: plain(value) for name, value in self.given(positions).items()}

    def __repr__(self):
        values = ", ".join(f"{name}={self[name]!r}" for name in self._own)
        return f"<group of {len(self.arrays)} weights and {list(self.patterns)}: {values}>"


def weights_or_patterns(what, entries):
    """A list of weights (or positions) and regular expressions, apart."""
    arrays, patterns = [], []
    if not isinstance(entries, (list, tuple)):
        raise TypeError(f"{what}: expected a list, got {type(entries).__name__}")
    for entry in entries:
        if isinstance(entry, str):
            try:
                re.compile(entry)
            except re.error as error:
                raise ValueError(f"{what}: {entry!r} is not a regular expression: {error}") from None
            patterns.append(entry)
        elif isinstance(entry, np.ndarray) or (isinstance(entry, int) and not isinstance(entry, bool)):
            arrays.append(entry)
        else:
            raise TypeError(f"{what}: expected names or weights, got {type(entry).__name__}")
    return tuple(arrays), tuple(patterns)


def select(what, arrays, patterns, names, weights):
    """Positions of the weights that are one of `arrays` (or positions), or match one of `patterns`."""
    if patterns and names is None:
        raise ValueError(f"{what}: {patterns[0]!r} is matched against names, but the weights have none: "
                         "pass a dict")
    where = {_core.address(weight): i for i, weight in enumerate(weights) if weight.size}
    chosen = set()
    for k, array in enumerate(arrays):
        position = array
        if isinstance(array, np.ndarray):           # an empty one may share its address with others
            position = where.get(_core.address(array)) if array.size else next(
                (i for i, weight in enumerate(weights) if weight is array), None)
        if position is None or not 0 <= position < len(weights):
            said = f"entry {k}" if isinstance(array, np.ndarray) else f"entry {k}, {array},"
            raise ValueError(f"{what}: {said} is not one of the {len(weights)} weights")
        chosen.add(position)
    for pattern in patterns:
        matches = [i for i, name in enumerate(names) if re.search(pattern, name)]
        if not matches:
            raise ValueError(f"{what}: {pattern!r} matches none of the weights {', '.join(names)}")
        chosen.update(matches)
    return chosen


def group_of_each(all_groups, names, weights):
    groups = [0] * len(weights)
    for k, group in enumerate(all_groups, 1):
        for i in select(group.label, group.arrays, group.patterns, names, weights):
            if groups[i]:
                raise ValueError(f"params[{names[i] if names else i!r}] is in "
                                 f"{all_groups[groups[i] - 1].label} and {group.label}")
            groups[i] = k
    return tuple(groups)
