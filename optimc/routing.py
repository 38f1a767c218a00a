"""Routing: each weight steps with the optimizer that its name is mapped to."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, cast

from optimc import _core, registry
from optimc.base import averages
from optimc.base.arguments import LOW_OPEN, Count, kept
from optimc.base.names import Elsewhere, Strict
from optimc.base.optimizer import Optimizer
from optimc.base.spellings import older_spellings
from optimc.base.wrapper import Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, NoReturn, Self

    from optimc._types import Array, Classes, Config, Gradient, Loss
    from optimc.schedules import Number


class OptimizerMap(Strict):
    """Maps names of weights to optimizers: by an exact key, otherwise by the one pattern that matches.

    Args:
        default_optimizer: the optimizer for all other names.
        optimizer_map: dict of names or regular expressions (matched against the whole name) to optimizers.

    Example:
        >>> import optimc
        >>> routes = optimc.OptimizerMap(optimc.Adam(), {".*/bias": optimc.SGD()})
        >>> routes["dense/bias"]
        <SGD(learning_rate=0.01): 0 steps, not built>
    """

    default_optimizer: Optimizer

    def __init__(self, default_optimizer: Optimizer, optimizer_map: Mapping[str, Optimizer] | None = None) -> None:
        if not isinstance(default_optimizer, Optimizer):
            raise TypeError(f"default_optimizer must be an optimizer, got {type(default_optimizer).__name__}")
        if optimizer_map is not None and not isinstance(optimizer_map, dict):
            raise TypeError(f"optimizer_map must be a dict, got {type(optimizer_map).__name__}")
        self.default_optimizer = default_optimizer
        self._map: dict[str, Optimizer] = {}
        for key, optimizer in (optimizer_map or {}).items():
            self[key] = optimizer

    def __setitem__(self, key: str, optimizer: Optimizer) -> None:
        if not isinstance(key, str):
            raise ValueError(f"keys must be str, got {type(key).__name__}")
        if key in self._map:
            raise ValueError(f"{key!r} is mapped already")
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"{key!r}: expected an optimizer, got {type(optimizer).__name__}")
        try:
            re.compile(key)
        except re.error as error:
            raise ValueError(f"{key!r} is not a regular expression: {error}") from None
        self._map[key] = optimizer

    def __getitem__(self, name: str) -> Optimizer:
        if name in self._map:
            return self._map[name]
        matches = [key for key in self._map if re.fullmatch(key, name)]
        if len(matches) > 1:
            raise ValueError(f"{name!r} matches {' and '.join(map(repr, matches))}")
        return self._map[matches[0]] if matches else self.default_optimizer

    __call__ = __getitem__

    def __iter__(self) -> Iterator[str]:
        return iter(self._map)

    def __len__(self) -> int:
        return len(self._map)

    def optimizers(self) -> list[Optimizer]:
        """Every optimizer once, the default last."""
        return list({id(optimizer): optimizer
                     for optimizer in (*self._map.values(), self.default_optimizer)}.values())

    def get_config(self) -> Config:
        """The constructor's arguments as a dict of plain values."""
        return {"default_optimizer": registry.serialize(self.default_optimizer),
                "optimizer_map": {key: registry.serialize(value) for key, value in self._map.items()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Classes | None = None) -> Self:
        """A new map from what `get_config` gave."""
        made: dict[str, Any] = {key: registry.deserialize(value, custom_objects)
                                for key, value in config["optimizer_map"].items()}
        default: Any = registry.deserialize(config["default_optimizer"], custom_objects)
        return cls(default, made)


def _parts_of(weights: Any) -> Callable[[Optimizer], dict[str, Array] | None]:
    """A function that gives an optimizer's part of `weights`, a dict; None for None."""
    weights = _core.flattened(weights)
    if weights is not None and not isinstance(weights, dict):
        raise TypeError(f"weights must be a dict, whose keys are the names, got {type(weights).__name__}")

    def part(optimizer: Optimizer) -> dict[str, Array] | None:
        if weights is None:
            return None
        for name in optimizer._names:
            if name not in weights:
                raise ValueError(f"weights has no entry {name!r}")
        return {name: weights[name] for name in optimizer._names}

    return part


def _branches(grads: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Gradients by name; a None that is no weight's stands for all weights below its name."""
    def names(name: str) -> list[str]:
        below = [] if name in known else [one for one in known if one.startswith(f"{name}/")]
        return below or [name]

    if not any(grad is None and name not in known for name, grad in grads.items()):
        return grads
    return {one: grad for name, grad in grads.items() for one in (names(name) if grad is None else [name])}


def _of_parts(name: str) -> Any:
    """A property that mapped optimizers have, each its own: here it is an error that says so."""
    def refuse(self: MultiOptimizer, *value: object) -> NoReturn:
        raise AttributeError(f"a MultiOptimizer has no {name} of its own: ask the optimizers it maps to")

    return property(refuse, refuse)


@registry.wrapper
class MultiOptimizer(Wrapper):
    """Steps each weight with the optimizer for its name.  All optimizers are checked before any of them steps.

    Weights and gradients must be dicts, whose keys are the names, or nested ones.

    Args:
        optimizer_map: an `OptimizerMap`, or a function from a name to an optimizer.
        loss_scale_factor: replaces the loss_scale_factor of every mapped optimizer.
        name: display name.

    Example:
        >>> import numpy as np, optimc
        >>> weights = {"kernel": np.ones(1, np.float32), "bias": np.ones(1, np.float32)}
        >>> opt = optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD(0.5), {"bias": optimc.SGD(0.25)}))
        >>> opt.apply({name: np.ones(1, np.float32) for name in weights}, weights)
        >>> weights
        {'kernel': array([0.5], dtype=float32), 'bias': array([0.75], dtype=float32)}
    """

    _scale_moves = False                    #: True within a LossScaleOptimizer: mapped optimizers keep their scales
    iterations: Count = Count()         #: calls of apply so far
    optimizer_map: OptimizerMap | Callable[[str], Optimizer]
    name: str

    def __init__(self, optimizer_map: OptimizerMap | Callable[[str], Optimizer],
                 loss_scale_factor: Number | None = None, name: str | None = None) -> None:
        if not callable(optimizer_map) or isinstance(optimizer_map, (type, Elsewhere)):
            raise TypeError(f"optimizer_map must be an OptimizerMap or a function, got "
                            f"{type(optimizer_map).__name__}")
        self.optimizer_map, self.loss_scale_factor = optimizer_map, loss_scale_factor
        self.name = name or "multi_optimizer"
        self.iterations = 0
        self._routes: dict[str, Optimizer] = {}

    def _inner(self) -> list[Optimizer]:
        if isinstance(self.optimizer_map, OptimizerMap):
            return self.optimizer_map.optimizers()
        return self._routed()

    def _routed(self) -> list[Optimizer]:
        """The optimizers that weights are routed to, once each."""
        routed = list(self._routes.values())            # a copy: another thread may add routes
        return list({id(optimizer): optimizer for optimizer in routed}.values())

    def _numbers(self) -> tuple[str, ...]:
        return ("iterations",)

    @property
    def loss_scale_factor(self) -> float | None:
        """That of every mapped optimizer, or None if each has its own."""
        factor: float | None = kept(self, "loss_scale_factor")
        return factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: Number | None) -> None:
        if value is not None:
            value = _core.check_number("loss_scale_factor", value, 0.0, math.inf, LOW_OPEN)
        used = {id(one): one for one in self._routed()} if "_routes" in self.__dict__ else {}
        with _core.Transaction() as steps:
            for _, optimizer in () if self._scale_moves else sorted(used.items()):
                steps.lock(optimizer)
                steps.set_value(optimizer, 0, optimizer._index["loss_scale_factor"], value)
            steps.store(self.__dict__, "loss_scale_factor", value, True)
            steps.commit()

    learning_rate: Any = _of_parts("learning_rate")
    skipped_steps: Any = _of_parts("skipped_steps")
    last_global_norm: Any = _of_parts("last_global_norm")

    def _route(self, name: str, new: dict[str, Optimizer]) -> Optimizer:
        """The optimizer of a name; `new` gets it if the name has none yet."""
        optimizer = self._routes.get(name) or new.get(name)
        if optimizer is None:
            optimizer = self.optimizer_map(name)
            if not isinstance(optimizer, Optimizer):
                raise TypeError(f"optimizer_map must give an optimizer for {name!r}, got "
                                f"{type(optimizer).__name__}")
            new[name] = optimizer
        return optimizer

    def _split(self, what: str, entries: Any,
               new: dict[str, Optimizer]) -> dict[int, tuple[Optimizer, dict[str, Any]]]:
        """Entries by optimizer: id -> (optimizer, dict).  `new` gets the routes of names that have none yet."""
        if not isinstance(entries, dict):
            raise TypeError(f"{what} must be a dict, whose keys are the names, got {type(entries).__name__}")
        parts: dict[int, tuple[Optimizer, dict[str, Any]]] = {}
        for name, entry in entries.items():
            if not isinstance(name, str):
                raise TypeError(f"{what}: keys must be str, got {type(name).__name__}")
            optimizer = self._route(name, new)
            parts.setdefault(id(optimizer), (optimizer, {}))[1][name] = entry
        return parts

    def _scale_of(self, optimizer: Optimizer) -> float | None:
        """The loss scale that an optimizer gets with its first weight here, or None: it has it, or keeps its own."""
        gives_none = self.loss_scale_factor is None or self._scale_moves
        if gives_none or any(optimizer is one for one in self._routed()):
            return None
        if callable(optimizer._get_value(0, optimizer._index["loss_scale_factor"])):
            optimizer.loss_scale_factor = self.loss_scale_factor    # a step takes no number in place of a schedule
            return None
        return self.loss_scale_factor

    def _keep(self, steps: _core.Transaction, new: dict[str, Optimizer],
              scales: list[tuple[Optimizer, float]]) -> None:
        """Tells a transaction of new routes, and of the loss scales that optimizers get with them."""
        for name, optimizer in new.items():
            steps.store(self._routes, name, optimizer, True)
        for optimizer, scale in scales:
            steps.set_value(optimizer, 0, optimizer._index["loss_scale_factor"], scale)

    @older_spellings
    def build(self, weights: Mapping[str, Array]) -> None:
        """Builds every optimizer for the weights that are mapped to it; all of them, or none if one is refused."""
        new: dict[str, Optimizer] = {}
        scales = []
        parts = self._split("weights", _core.flattened(weights), new)
        with _core.Transaction() as steps:
            for _, (optimizer, part) in sorted(parts.items()):      # as steps are locked
                steps.lock(optimizer)
                steps.bind(optimizer, optimizer._build(part, may_add=True))
                if (scale := self._scale_of(optimizer)) is not None:
                    scales.append((optimizer, scale))
            self._keep(steps, new, scales)
            steps.commit()

    @older_spellings
    def apply(self, grads: Mapping[str, Gradient], weights: Mapping[str, Array] | None = None) -> None:
        """One step of every optimizer; arguments and errors are `Optimizer.apply`'s, with dicts."""
        with _core.Transaction() as steps:
            self._check_all(steps, grads, weights)
            steps.count(self.__dict__, "iterations")
            steps.commit()

    def _check_all(self, steps: _core.Transaction, grads: Any, weights: Any, finite: bool = False) -> bool:
        """Checks the step of every optimizer that has a gradient, in a transaction.

        finite: the caller asks whether all gradients are; False if one is not.
        """
        new: dict[str, Optimizer] = {}
        scales, ready, good = [], [], True
        grads, weights = _core.flattened(grads), _core.flattened(weights)
        if isinstance(grads, dict):
            grads = _branches(grads, {**self._routes} if weights is None else weights)
        parts, weights_of = self._split("grads", grads, new), {}
        if weights is not None:
            weights_of = self._split("weights", weights, new)
            for name in weights:
                if name not in grads:
                    raise ValueError(f"grads has no entry for weights[{name!r}]")
            for name in grads:
                if name not in weights:
                    raise ValueError(f"weights has no entry for grads[{name!r}]")
        idle = {key for key, (_, part) in parts.items() if all(grad is None for grad in part.values())}
        if len(idle) == len(parts):
            raise ValueError("No gradients provided for any variable.")
        if idle:
            names = ", ".join(f"weights[{name!r}]" for key in idle for name in parts[key][1])
            _core.warn(f"Gradients do not exist for {names}: these weights are left as they are")
        resting = {id(one): one for one in self._inner() if id(one) not in parts} if self._scale_moves else {}
        for key in sorted([*parts, *resting]):          # in one order: threads that share optimizers wait in turn
            if key in resting:
                steps.lock(resting[key])                # one step at a time moves the scale that all share
                continue
            optimizer, part = parts[key]
            scale = self._scale_of(optimizer) if new else None
            if scale is not None:
                scales.append((optimizer, scale))
            if key in idle:
                if scale is not None:
                    steps.lock(optimizer)
            elif steps.check(optimizer, part, weights_of[key][1] if weights_of else None, finite=finite,
                             loss_scale=self.loss_scale_factor if self._scale_moves else scale):
                ready.append(optimizer)
            else:
                good = False
        if finite and not good:
            return False
        self._keep(steps, new, scales)
        for optimizer in ready:
            optimizer._between()
        return True

    def scale_loss(self, loss: Loss) -> Loss:
        """The loss multiplied by `loss_scale_factor`, if there is one."""
        factor, scaled = self.loss_scale_factor, cast("Any", loss)
        return loss if factor is None else cast("Loss", scaled * factor)

    @older_spellings
    def finalize_variable_values(self, weights: Mapping[str, Array] | None = None) -> None:
        """Every optimizer's."""
        averages.finalize([optimizer for optimizer in self._inner() if optimizer.built], _parts_of(weights))

    @older_spellings
    def averaged(self, weights: Mapping[str, Array] | None = None) -> _core.Averaged:
        """A context manager, `Optimizer.averaged`, for all weights whose optimizers keep averages."""
        kept = [optimizer for optimizer in self._inner() if optimizer.built and optimizer.keeps_averages]
        if not kept:
            raise ValueError(f"{self.name} keeps no averages: construct an optimizer with use_ema=True, and build it")
        return averages.averaged(kept, _parts_of(weights))

    def get_config(self) -> Config:
        """The constructor's arguments as a dict of plain values; needs an `OptimizerMap`."""
        if not isinstance(self.optimizer_map, OptimizerMap):
            raise ValueError("a MultiOptimizer can be stored only with an OptimizerMap, not with a function")
        return {"optimizer_map": self.optimizer_map.get_config(), "loss_scale_factor": self.loss_scale_factor,
                "name": self.name}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Classes | None = None) -> Self:
        """A new wrapper from what `get_config` gave."""
        return cls(**{**config, "optimizer_map": OptimizerMap.from_config(config["optimizer_map"],
                                                                          custom_objects)})

    def __repr__(self) -> str:
        return f"<MultiOptimizer({', '.join(map(repr, self._inner()))})>"

    def __getstate__(self) -> dict[str, Any]:
        routes = dict(self._routes)                     # a step may add some while they are copied
        used = list({id(one): one for one in routes.values()}.values())
        return {**self.__dict__, "_routes": routes, "_used": used}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        del self.__dict__["_used"]          # only what reads older pickles knows it
