"""Copies live optimizers of Keras and torch, so that training continues in optimc.

A copy has the configuration, the state and the step count.  This module imports neither library; it only reads the
optimizer that it is given.  Next: torch_names.py.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optimc import _core, registry
from optimc.base import keras_order, narrow
from optimc.base.narrow import Place
from optimc.base.rules import kept_slots
from optimc.base.state import BY_ROWS
from optimc.base.storage import IN_WORDS, TYPES, Like, likes_of, name_of
from optimc.torch_names import AXES, MASTER, STORAGE, TORCH, Counterpart
from optimc.torch_own import OWN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optimc._types import Array
    from optimc.base.optimizer import Optimizer
    from optimc.loss_scale import LossScaleOptimizer


def from_keras(optimizer: Any) -> Optimizer | LossScaleOptimizer:
    """Copies a live Keras optimizer into an optimizer of optimc, which continues from the same state.

    Args:
        optimizer: a `keras.optimizers.Optimizer`, built or not, on any backend; also a LossScaleOptimizer, and one of
            `optimc.keras`.

    Returns:
        The optimizer of optimc, with the same configuration, step count and slots.  Its next step binds it to
        weights: a list of arrays in the order that Keras was built with, or a dict named by the variables' paths.

    Raises:
        ValueError: optimc has no optimizer of that name.
    """
    name = _class_name(optimizer, "keras")
    config = optimizer.get_config()
    if name == "LossScaleOptimizer":
        around: Any = registry.deserialize({"class_name": name, "config": {
            **config, "inner_optimizer": registry.serialize(from_keras(optimizer.inner_optimizer))}})
        around.inner_optimizer = from_keras(optimizer.inner_optimizer)
        around.inner_optimizer.loss_scale_factor = float(optimizer.dynamic_scale)
        around.step_counter = int(optimizer.step_counter)
        wrapper: LossScaleOptimizer = around
        return wrapper
    if name not in registry.classes:
        raise ValueError(f"optimc has no optimizer {name!r}, only {', '.join(sorted(registry.classes))}")
    config["name"] = optimizer.name
    is_ours = "_ours" in dir(optimizer)             # of optimc.keras
    if isinstance(config["learning_rate"], dict):
        rate = config["learning_rate"]
        rate = rate["config"]["schedule"] if is_ours and rate["class_name"] == "Schedule" else rate
        config["learning_rate"] = {key: rate[key] for key in ("class_name", "config")}
    ours = registry.classes[name].from_config(config)
    if not optimizer.built or (ours._late_slots and not int(optimizer.iterations)):
        return ours
    weights = [_like_of(v.path, v) for v in optimizer._trainable_variables]
    names = [variable.path for variable in optimizer._trainable_variables]
    state = iter([np.asarray(_numpy(variable)) for variable in optimizer.variables])
    calls = int(next(state))
    if not callable(ours._get_value(0, 0)):
        next(state)
    averages, accumulators = ([np.array(next(state), like.real.dtype) for like in weights] if given else None
                              for given in (ours.use_ema, ours.gradient_accumulation_steps))
    masters = [like and np.array(next(state)) for like in map(functools.partial(narrow.master_like, ours), weights,
                                                              names)] if is_ours else []
    kept = kept_slots(ours._kernels(names, weights))
    slots: dict[str, list[Any]] = {slot: [None] * len(weights) for slot in kept if slot not in ours._scratch_slots}
    in_keras: Mapping[str, list[Any]] = kept
    if name == "Adafactor" and not is_ours:         # Keras keeps every slot of every weight, used or not
        in_keras = {slot: [True] * len(weights) for block in ours._keras_slots for slot in block}
    for slot, _, i in keras_order.slots_in_order(ours._keras_slots, in_keras):
        array = next(state)
        if slot in kept and kept[slot][i] is not None:
            slots[slot][i] = _slot(array, ours._slot_like(slot, weights[i]), is_ours)
    if is_ours or name == "Nadam":
        ours._set_all_scalars([float(next(state)) for _ in ours._all_scalars()])
    waits = calls % (ours.gradient_accumulation_steps or 1) != 0
    by_rows = optimizer._stepper.by_rows if is_ours else ()
    _hold(ours, calls, names=tuple(names), likes=likes_of(weights), slots=slots, averages=averages,
          accumulators=accumulators, masters=masters if any(master is not None for master in masters) else None,
          waiting=tuple(0 if not waits else BY_ROWS if i in by_rows else 1 for i in range(len(weights))))
    return ours


def _slot(array: Array, plain: Like, may_be_coded: bool) -> Array:
    """A slot from a variable of Keras, as plain numbers or in the codes that it has."""
    if may_be_coded and array.dtype == narrow.BYTES:
        return np.array(array)
    if may_be_coded and name_of(array.dtype) == "bfloat16":
        return np.array(array.view(narrow.HALVES))
    return array.astype(plain.dtype).reshape(plain.shape)


def from_torch(optimizer: Any) -> Optimizer:
    """Copies a live torch optimizer into an optimizer of optimc, which continues from the same state.

    Args:
        optimizer: a `torch.optim.Optimizer` on the CPU, with its param_groups and state; also one of `optimc.torch`,
            which may be one that torch lacks or that offloads.

    Returns:
        The optimizer of optimc in style "torch", with the same step count and slots.  Its style is "keras" for
        SparseAdam, which has that formula, and for those that torch lacks.  It has groups where param_groups differ.
        Its next step binds it to weights: arrays in the order of the parameters.  Slots and masters are stored as in
        an optimizer of `optimc.torch`; slots that are rounded to nearest in 16 bits, as torch's are, become float32,
        and their parameters get masters.

    Raises:
        ValueError: optimc has no optimizer of that kind, or its parameters have done different numbers of steps, or
            its groups have values that optimc has once for all weights, or the parameters hold averages.
    """
    name, known = _class_name(optimizer, "torch").removeprefix("Offload"), {**TORCH, **OWN}
    if name not in known:
        raise ValueError(f"optimc has no optimizer like torch's {name}, only {', '.join(sorted(known))}")
    if not all(group.get("train_mode", True) for group in optimizer.param_groups):
        raise ValueError(f"{name} is in eval mode, in which parameters hold averages: call train() first")
    counterpart = known[name]
    sources = counterpart.sources(optimizer.param_groups[0])
    first, *others = [{**{source.argument: source.read(group) for source in sources}, **counterpart.storage(group)}
                      for group in optimizer.param_groups]
    _check_storage(optimizer.param_groups, [first, *others])
    groups: list[dict[str, Any]] = []
    position = len(optimizer.param_groups[0]["params"])
    for values, group in zip(others, optimizer.param_groups[1:], strict=True):
        n = len(group["params"])
        different = {key: value for key, value in values.items() if key not in STORAGE and value != first[key]}
        if values.get("state_dtype") != first.get("state_dtype"):
            different["state_dtype"] = values.get("state_dtype") or {}         # {}: no slot in fewer bits
        if different:
            groups.append({"weights": list(range(position, position + n)), **different})
        position += n
    ours: Optimizer = registry.classes[counterpart.name](**first, groups=groups, style=counterpart.style)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state.get(p, {}) for p in params]
    if not any(states):
        return ours
    counts = {int(state["step"]) for state in states if "step" in state}
    if not all(states):
        raise ValueError(f"parameter {[bool(state) for state in states].index(False)} has no state, and others have: "
                         "optimc has one step count for all")
    if len(counts) > 1:
        raise ValueError(f"the parameters have done different numbers of steps ({sorted(counts)}): "
                         "optimc has one step count")
    weights = [_like_of(f"parameter {i}", p) for i, p in enumerate(params)]
    arrays = FromTorch(ours, counterpart, weights, states)
    kept = kept_slots(ours._kernels(None, weights))
    held = {slot: [None if k is None else arrays.slot(slot, k, i) for i, k in enumerate(numbers)]
            for slot, numbers in kept.items() if slot not in ours._scratch_slots}
    steps = counts.pop() if counts else 1               # torch's SGD has no count; only its first step is special
    if counterpart.scalars:
        for k, group in enumerate([None, *groups]):
            state = states[group["weights"][0] if group else 0]
            ours._set_scalars([float(state[key]) for key in counterpart.scalars], k)
    _hold(ours, steps, likes=likes_of(weights), slots=held, masters=arrays.masters(),
          waiting=(False,) * len(weights))
    return ours


def _check_storage(groups: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> None:
    """Refuses groups of torch with values of their own that optimc has once for all weights.

    ours: the same in the words of optimc.
    """
    for name, words in (("master_weights", ("master_weights", "stochastic_round")), ("seed", ("seed",))):
        if len({one.get(name, STORAGE[name]) for one in ours}) > 1:
            given = {word: [group.get(word, STORAGE[word]) for group in groups] for word in words}
            word, values = next((word, values) for word, values in given.items() if len(set(values)) > 1)
            raise ValueError(f"the parameter groups have different {word} ({', '.join(map(str, values))}): optimc "
                             "has one for all weights")


class FromTorch(NamedTuple):
    """The arrays of an optimizer's state, from the states of torch's parameters."""

    ours: Optimizer
    counterpart: Counterpart
    weights: Sequence[Like]
    states: Sequence[Mapping[str, Any]]

    def slot(self, slot: str, k: int, i: int) -> Array:
        """Slot number k of weight i, as the optimizer stores it."""
        tensor = self.states[i][self.counterpart.slots[slot]]
        weight, place = self.weights[i], Place(i, 0, self.weights[i].size)
        kernel = self.ours._kernel_of(None, weight)
        plain = self.ours._slot_like(slot, weight)
        like = narrow.slot_like(self.ours, kernel, slot, weight, place, self._group_of(i))
        stored = _floats(tensor)
        codec = narrow.codec_of(kernel, k, stored)
        if codec is not None:                               # of 8 bits, in the order of the parameter's memory
            axes = self.states[i].get(AXES, range(plain.ndim))
            if AXES not in self.states[i] and like.dtype == narrow.BYTES:
                return stored
            lies = plain._replace(shape=tuple(plain.shape[axis] for axis in axes))
            stored = narrow.decoded(codec, stored, lies).transpose(np.argsort(axes))
        codec = narrow.codec_of(kernel, k, like)
        if codec is None:
            return np.array(stored, plain.dtype, order="C").reshape(plain.shape)
        array = np.zeros(like.shape, like.dtype)
        narrow.encode(codec, stored, plain, array, _core.random_key(self.ours.seed, i, 0, k))
        return array

    def masters(self) -> list[Array | None] | None:
        """The masters that the states have; the others are made of the weights."""
        likes = [narrow.master_like(self.ours, weight, f"parameter {i}") for i, weight in enumerate(self.weights)]
        arrays = [None if like is None or MASTER not in state else state[MASTER].detach().numpy()
                  for like, state in zip(likes, self.states, strict=True)]
        masters = [np.array(array, order="C") if array is not None and like and like.fits(array) else None
                   for array, like in zip(arrays, likes, strict=True)]
        return masters if any(array is not None for array in masters) else None

    def _group_of(self, i: int) -> int:
        return next((k for k, selection in enumerate(self.ours._state.grouped, 1) if i in selection.arrays), 0)


def _floats(tensor: Any) -> Array:
    """A copy of a tensor of torch; of one of 16 bits as float32, because NumPy has not both of these types."""
    tensor = tensor.detach()
    return np.array((tensor.float() if tensor.element_size() == 2 else tensor).numpy())


def _hold(ours: Optimizer, calls: int, **held: Any) -> None:
    """Makes an optimizer take over parts of a state and a number of steps."""
    ours._hold(ours._state.but(**held), (calls, 0, ours._get_running()))


def _like_of(label: str, variable: Any) -> Like:
    """The `Like` of a variable or a tensor of another library."""
    name = str(variable.dtype).rpartition(".")[2]
    if name not in TYPES:
        raise TypeError(f"{label}: expected {IN_WORDS}, got {name}")
    return Like(tuple(variable.shape), TYPES[name].dtype)


def _class_name(optimizer: object, library: str) -> str:
    """The name of the optimizer's class, or of its nearest base class that belongs to the library."""
    for cls in type(optimizer).__mro__:
        if cls.__module__.split(".")[0] == library or cls.__module__ == f"optimc.{library}":
            return cls.__name__
    raise TypeError(f"expected an optimizer of {library}, got {type(optimizer).__name__}")


def _numpy(variable: Any) -> Any:
    value = getattr(variable, "value", variable)
    value = value() if callable(value) else value
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":                # torch gives NumPy none
        return value.float().numpy().astype(TYPES["bfloat16"].dtype)
    return value.numpy()

