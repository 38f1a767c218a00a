"""The bases of optimizers made of optimizers (optimc/loss_scale.py, optimc/routing.py, optimc/mpi/).

A wrapper steps in a transaction (`_core.Transaction`).  It checks the steps of all wrapped optimizers, lets
`_between` prepare the work that needs NumPy, and commits all steps in one call.  Ctrl-C comes before the commit or
after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimc import _core, checkpoint
from optimc.base import copies
from optimc.base.arguments import check_count, unzip
from optimc.base.names import Elsewhere, Strict
from optimc.base.spellings import pairs_alone

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

    from optimc._types import Array, Config, Loss, Pairs, Path, Tensors
    from optimc.base.optimizer import Optimizer
    from optimc.schedules import Rate


class Wrapper(Strict, Elsewhere):
    """The methods that wrappers share with optimizers: building, pairs, configuration."""

    if TYPE_CHECKING:                   # what each wrapper has of its own
        name: str
        learning_rate: Any

        @property
        def iterations(self) -> int: ...
        def build(self, weights: Any) -> None: ...
        def apply(self, grads: Any, weights: Any = None) -> None: ...
        def averaged(self, weights: Any = None) -> AbstractContextManager[None]: ...
        def finalize_variable_values(self, weights: Any = None) -> None: ...
        def scale_loss(self, loss: Loss) -> Loss: ...
        def get_config(self) -> Config: ...

    def _inner(self) -> list[Any]:
        """The wrapped optimizers."""
        raise NotImplementedError

    @property
    def built(self) -> bool:
        """True if the wrapped optimizers are bound to weights."""
        return all(optimizer.built for optimizer in self._inner())

    @pairs_alone
    def apply_gradients(self, grads_and_vars: Pairs) -> int:
        """`apply` for pairs, as `zip(grads, weights)` gives them.  Returns `iterations`."""
        self.apply(*unzip(grads_and_vars))
        return self.iterations

    def _leaves(self) -> list[Optimizer]:
        """The optimizers that step: those wrapped, or wrapped by a wrapped one."""
        return [leaf for inner in self._inner()
                for leaf in (inner._leaves() if isinstance(inner, Wrapper) else [inner])]

    def _own_variables(self) -> list[Array]:
        return []

    def save(self, path: Path) -> None:
        """Writes a checkpoint that `optimc.load` continues from; see `Optimizer.save`."""
        self._locked(checkpoint.save, path, self)

    def _locked(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function while no wrapped optimizer steps; all of them are at one moment then."""
        result: list[Any] = []

        def now() -> None:
            if self._leaves() == leaves:                # not if a step has routed a weight to another one meanwhile
                result.append(function(*args))

        while not result:
            leaves = self._leaves()
            _core.locked(leaves, now)
        return result[0]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol < 2:
            return super().__reduce_ex__(protocol)
        return copies.taken(self) or self._locked(self._reduced_now, protocol)

    def _reduced_now(self, protocol: Any) -> Any:
        """The result of `__reduce_ex__`, with pictures of all wrapped optimizers at the same moment."""
        moment = copies.Moment(self._leaves())
        made, args, *rest = self._reduced(protocol, moment)
        return made, copies.Alive(args, moment), *rest

    def _reduced(self, protocol: Any, moment: copies.Moment) -> Any:
        """The result of `__reduce_ex__`; tells `moment` of those of wrapped wrappers."""
        for inner in self._inner():
            if isinstance(inner, Wrapper):
                moment.add(inner, inner._reduced(protocol, moment))
        reduced: Any = super().__reduce_ex__(protocol)
        made, args, state, *rest = reduced
        now = dict(state) if isinstance(state, dict) else (dict(state[0]), state[1])    # a tuple with __slots__
        return made, args, now, *rest

    def _numbers(self) -> tuple[str, ...]:
        """Names of the attributes that are the wrapper's own state.  All are whole numbers."""
        return ()

    def _export(self) -> tuple[Config, Tensors]:
        parts = [optimizer._export() for optimizer in self._inner()]
        return {"class_name": type(self).__name__, "config": self.get_config(),
                "own": {name: getattr(self, name) for name in self._numbers()},
                "inner": [description for description, _ in parts]}, \
            {f"{k}/{name}": array for k, (_, tensors) in enumerate(parts) for name, array in tensors.items()}

    def _import(self, description: Config, tensors: Tensors) -> None:
        inner = self._inner()
        if description["class_name"] != type(self).__name__ or len(description["inner"]) != len(inner):
            raise ValueError(f"expected the state of a {type(self).__name__} of {len(inner)} optimizers, got that of "
                             f"a {description['class_name']} of {len(description['inner'])}")
        for name in self._numbers():
            if type(description["own"][name]) is not int:
                raise ValueError(f"{name}: expected a count, got {description['own'][name]!r}")
            check_count(name, description["own"][name])
        for k, (optimizer, part) in enumerate(zip(inner, description["inner"], strict=True)):
            own = {name.partition("/")[2]: array for name, array in tensors.items() if name.startswith(f"{k}/")}
            before = set(own)
            optimizer._import(part, own)
            for name in before - set(own):
                del tensors[f"{k}/{name}"]
            if "loss_scale_factor" in part["config"]:
                optimizer.loss_scale_factor = part["config"]["loss_scale_factor"]
        for name in self._numbers():
            setattr(self, name, description["own"][name])

    def reset_master(self) -> None:
        """Makes the masters of weights of 16 bits what the weights say, see `Optimizer.reset_master`."""
        for optimizer in self._inner():
            optimizer.reset_master()

    @property
    def slots(self) -> dict[str, dict[int | str, np.ndarray]]:
        """The slots of the wrapped optimizers, read-only: see `Optimizer.slots`.

        Several optimizers whose slots have the same name share its entry, by the names of their weights.
        """
        merged: dict[str, dict[int | str, np.ndarray]] = {}
        for optimizer in self._inner():
            for slot, arrays in optimizer.slots.items():
                merged.setdefault(slot, {}).update(arrays)
        return merged

    @property
    def variables(self) -> list[Array]:
        """The state as a list of arrays, in Keras's order: the wrapper's own, then the wrapped optimizers'."""
        own = [np.array(0), np.array(0.0), *self._own_variables()]
        return own + [array for optimizer in self._inner() for array in optimizer.variables]


class WrapperOfOne(Wrapper):
    """A wrapper whose steps are those of one optimizer: it forwards what that one counts and knows."""

    @property
    def _leading(self) -> Any:
        return self._inner()[0]

    @property
    def iterations(self) -> int:
        """Updates done so far, without the skipped steps."""
        done: int = self._leading.iterations
        return done

    @property
    def skipped_steps(self) -> int:
        """Steps skipped so far because a gradient was not finite."""
        skipped: int = self._leading.skipped_steps
        return skipped

    @property
    def last_global_norm(self) -> float | None:
        """The norm of all gradients together in the last step that needed it, or None."""
        norm: float | None = self._leading.last_global_norm
        return norm

    @property
    def learning_rate(self) -> float:
        """The wrapped optimizer's."""
        rate: float = self._leading.learning_rate
        return rate

    @learning_rate.setter
    def learning_rate(self, value: Rate) -> None:
        self._leading.learning_rate = value

    def scale_loss(self, loss: Loss) -> Loss:
        """The loss multiplied by the loss scale, if there is one."""
        scaled: Loss = self._leading.scale_loss(loss)
        return scaled
