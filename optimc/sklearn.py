"""scikit-learn's multi-layer perceptrons with the step in C, and any optimizer of optimc as their solver.

    from optimc.sklearn import MLPClassifier
    clf = MLPClassifier(solver=optimc.AdamW(1e-3), warm_start=True)

Each class here is a subclass of scikit-learn's class of the same name.  Network, loss, batches, early stopping and
the other arguments are scikit-learn's.  After each batch its loop calls optimc's optimizer instead of its own.

`solver` may be:

- An optimizer: `fit` steps a copy of it.  scikit-learn's arguments for its own solvers (`GOVERNED`) have no effect.
  A warning names those that are not at their default.
- "sgd" or "adam": scikit-learn's solvers, made from scikit-learn's arguments, with the same formulas.
- The name of another optimizer, in lower case ("adamw"): that optimizer, with `learning_rate_init` as its rate.
- "lbfgs": scikit-learn's own.

`alpha` stays an L2 term of the loss, as in scikit-learn.  The optimizer's weight decay is added to it.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
import warnings
import weakref
from typing import TYPE_CHECKING

from optimc.base import lazy

try:
    from sklearn import neural_network
except ImportError as _error:
    lazy.needs("sklearn", _error)

from sklearn.neural_network._stochastic_optimizers import SGDOptimizer
from sklearn.utils._param_validation import StrOptions

from optimc import registry
from optimc.base import averages
from optimc.base.optimizer import Optimizer
from optimc.routing import MultiOptimizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import Any

    from sklearn.neural_network._multilayer_perceptron import BaseMultilayerPerceptron as Base

    from optimc._types import Array
else:
    Base = object

#: the arguments that make up scikit-learn's own solvers
GOVERNED = ("learning_rate", "learning_rate_init", "power_t", "momentum", "nesterovs_momentum", "beta_1", "beta_2",
            "epsilon")
SOLVERS: dict[str, list[Any]] = {
    "solver": [StrOptions({"lbfgs", *(name.lower() for name in registry.classes)}), Optimizer, MultiOptimizer]}


class _Solver(SGDOptimizer):
    """The optimizer as scikit-learn's loop calls it: rates over epochs are scikit-learn's, the step is optimc's."""

    def __init__(self, optimizer: Any, made_from: tuple[Any, ...], learning_rate_init: float, lr_schedule: str,
                 power_t: float) -> None:
        self.optimizer, self.made_from = optimizer, made_from
        self.weights: dict[str, Array] = {}
        self.learning_rate_init, self.lr_schedule, self.power_t = learning_rate_init, lr_schedule, power_t

    @property
    def learning_rate(self) -> float:
        rate: float = self.optimizer.learning_rate
        return rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.optimizer.learning_rate = value

    def bind(self, weights: dict[str, Array]) -> None:
        """Builds the optimizer for these weights, unless it is bound to the very same."""
        known = self.optimizer.built and weights.keys() == self.weights.keys() and all(
            weights[name] is weight for name, weight in self.weights.items())
        if not known:
            self.optimizer.build(weights)
        self.weights = weights

    def update_params(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        self.optimizer.apply(dict(zip(self.weights, grads, strict=True)), self.weights)

    @property
    def keeps_averages(self) -> bool:
        return any(optimizer.keeps_averages for optimizer in self._parts())

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the weights hold their averages, if the optimizer keeps some."""
        return averages.averaged([optimizer for optimizer in self._parts()
                                  if optimizer.built and optimizer.keeps_averages])

    def _parts(self) -> list[Optimizer]:
        return self.optimizer._inner() if isinstance(self.optimizer, MultiOptimizer) else [self.optimizer]


class _Fitting:
    """A call of `_fit`: what it calls sees another `solver` than the program gave, and nothing else does.

    So whatever interrupts the call leaves the model its solver.
    """

    calls: weakref.WeakValueDictionary[int, _Fitting] = weakref.WeakValueDictionary()      # by the id of the model

    def __init__(self, model: object, frame: FrameType | None) -> None:
        self.frame = frame
        self.shown = "sgd"                              # scikit-learn asks whether it knows this name
        self.calls[id(model)] = self

    def called(self, frame: FrameType | None) -> bool:
        """True if a frame was called by this call, in whatever way."""
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


class _Fits(Base):
    """Gives scikit-learn's class an optimizer of optimc, keeps its state between fits, and scores its averages."""

    if TYPE_CHECKING:                   # checkers would read the type of `solver` from scikit-learn's default
        def __init__(self, hidden_layer_sizes: Any = (100,), activation: str = "relu", *,
                     solver: str | Optimizer | MultiOptimizer = "adam", **arguments: Any) -> None: ...

    coefs_: list[Array]
    intercepts_: list[Array]
    optimizer_: Any

    @property
    def solver(self) -> Any:
        call = _Fitting.calls.get(id(self))
        return call.shown if call and call.called(sys._getframe()) else self._solver

    @solver.setter
    def solver(self, solver: Any) -> None:
        self.__dict__["solver"] = solver

    @property
    def _solver(self) -> Any:
        return self.__dict__["solver"]

    def _check_solver(self) -> bool:
        return super()._check_solver() if self.solver == "lbfgs" else True

    def _fit(self, *args: Any, **kwargs: Any) -> Any:
        if self._solver == "lbfgs":
            self.__dict__.pop("_optimizer", None)       # lbfgs moves the weights, so the state no longer fits them
            return super()._fit(*args, **kwargs)
        call = _Fitting(self, sys._getframe())
        try:
            return super()._fit(*args, **kwargs)
        finally:
            call.frame = None

    def _fit_stochastic(self, *args: Any) -> None:
        goes_on, made_from = self.warm_start or args[-1], self._made_from()
        steps = getattr(self, "_optimizer", None)
        if not goes_on or steps is None or not _is_same(steps.made_from, made_from):
            steps = self._new_steps(made_from)
        elif steps.keeps_averages:                      # coefs_ are the averages: training goes on from the weights
            weights, half = list(steps.weights.values()), len(self.coefs_)
            self.coefs_, self.intercepts_ = weights[:half], weights[half:]
        steps.bind({f"{name}_{i}": weight for name, weights in
                    (("coefs", self.coefs_), ("intercepts", self.intercepts_)) for i, weight in enumerate(weights)})
        self._optimizer, self.optimizer_ = steps, steps.optimizer
        _Fitting.calls[id(self)].shown = ""             # the loop makes an optimizer for the names it knows only
        super()._fit_stochastic(*args)
        if steps.keeps_averages and not self.early_stopping:
            with steps.averaged():
                self.coefs_, self.intercepts_ = ([weight.copy() for weight in weights]
                                                 for weights in (self.coefs_, self.intercepts_))

    def _update_no_improvement_count(self, early_stopping: bool, *args: Any) -> None:
        # scikit-learn scores the averages, and keeps them if they are the best
        with self._optimizer.averaged() if early_stopping else contextlib.nullcontext():
            super()._update_no_improvement_count(early_stopping, *args)

    def _made_from(self) -> tuple[Any, ...]:
        """The solver and the arguments it depends on; the optimizer is kept as long as these stay the same."""
        named = isinstance(self._solver, str)
        governed = GOVERNED if self._solver in ("sgd", "adam") else ("learning_rate_init",) if named else ()
        parameters = inspect.signature(type(self)).parameters
        for name in GOVERNED:
            value = getattr(self, name)
            if name not in governed and value != parameters[name].default:
                warnings.warn(f"{name}={value!r} has no effect with solver={self._solver!r}: set the value "
                              "in the optimizer's constructor", stacklevel=2)
        return self._solver, tuple(getattr(self, name) for name in governed)

    def _new_steps(self, made_from: tuple[Any, ...]) -> _Solver:
        solver, rate = self._solver, self.learning_rate_init
        config = {"learning_rate": rate}
        if solver == "sgd":
            config |= {"momentum": self.momentum, "nesterov": bool(self.nesterovs_momentum)}
        elif solver == "adam":
            config |= {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        optimizer: Any = registry.get({"class_name": solver, "config": config} if isinstance(solver, str)
                                 else copy.deepcopy(solver))
        if optimizer.loss_scale_factor is not None:
            raise ValueError(f"solver: expected one without loss_scale_factor, as the loss is not scaled, got "
                             f"{optimizer.loss_scale_factor}")
        schedule = self.learning_rate if solver == "sgd" else "constant"
        return _Solver(optimizer, made_from, rate, schedule, self.power_t)


def _is_same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether two results of `_made_from` mean one solver: an equal name or the same object, and equal arguments."""
    return (a[0] is b[0] or (isinstance(a[0], str) and a[0] == b[0])) and a[1] == b[1]


DOC = """scikit-learn's {name}, with any optimizer of optimc as its solver.

    Arguments, methods and attributes are scikit-learn's, except:

    Args:
        solver: an optimizer (`optimc.AdamW(1e-3)` or a `MultiOptimizer`), of which `fit` uses a copy, or a name.
            "sgd" and "adam" use scikit-learn's arguments for them.  "lbfgs" is scikit-learn's.  The name of another
            optimizer, in lower case, uses `learning_rate_init` as its rate.  With an optimizer,
            `learning_rate_init` and the other arguments of scikit-learn's solvers have no effect.

    `optimizer_` is the optimizer that steps, with its state.  `partial_fit`, and `fit` with warm_start=True, continue
    with it, as long as `solver` and the arguments that make it stay the same.  The weights have the names "coefs_0",
    ..., "intercepts_0", ..., which the optimizer's groups and exclusions can match.  If the optimizer keeps averages
    (use_ema, ScheduleFreeAdamW, ASGD), `coefs_` and `intercepts_` hold them; training continues from the weights.

    X and weights are float64, or float32 if X is.

    Raises:
        ValueError: the solver is unknown or has a loss_scale_factor, or scikit-learn refuses an argument.
        FloatingPointError: a gradient is not finite, with check_finite="raise".

    Example:
        >>> import numpy as np, optimc
        >>> from optimc.sklearn import {name}
        >>> X = np.linspace(-1, 1, 40).reshape(20, 2)
        >>> y = {target}
        >>> model = {name}(solver=optimc.AdamW(0.05), random_state=0, max_iter=1000)
        >>> model.fit(X, y).score(X, y) > 0.9
        True
        >>> epochs = model.n_iter_
        >>> model.partial_fit(X, y).optimizer_.iterations == epochs + 1     # one batch each
        True
    """


class MLPClassifier(_Fits, neural_network.MLPClassifier):
    __doc__ = DOC.format(name="MLPClassifier", target="X[:, 0] > 0")
    _parameter_constraints = {**neural_network.MLPClassifier._parameter_constraints, **SOLVERS}


class MLPRegressor(_Fits, neural_network.MLPRegressor):
    __doc__ = DOC.format(name="MLPRegressor", target="X[:, 0] ** 2")
    _parameter_constraints = {**neural_network.MLPRegressor._parameter_constraints, **SOLVERS}


__all__ = ["MLPClassifier", "MLPRegressor"]
