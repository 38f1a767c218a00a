"""`optimizer.state`: a dict of torch's kind that knows when a program looks into it.

torch's programs read and edit `optimizer.state` directly, and torch keeps a step count there for each parameter.  To
keep these counts would cost a tensor write per parameter and step, while the step itself is one call.  So `States`
catches the moment when somebody looks:

- Every method that reads or changes the dict first writes the current step counts into it.
- From then on the state counts as possibly changed: the next step plans anew, from what the state holds then.

A program that never looks pays nothing.  One that looks between two steps pays for one new plan.  From then on it may
hold tensors of the state, so every step looks where these are, as it does with parameters.  The step itself goes
round these methods (`States.of`, `dict.get(states, ...)`).  Copies and pickles of the dict are plain.

The functions below make and check the tensors in it.  Next: cohorts.py, which plans.
"""

import functools
from collections import defaultdict

import torch

from optimc.base import memory
from optimc.torch import tensors


class States(defaultdict):
    """The state by parameter, for `optimizer.state`.

    Args:
        cohorts: the `Cohorts` that keep the counts, and must plan anew after a look.
        states: the state so far.

    Attributes:
        given: whether there was such a state.
        looked: whether somebody has looked since.
    """

    def __init__(self, cohorts, states):
        self.cohorts = None                         # filling the dict is no look
        super().__init__(dict, states)
        self.cohorts = cohorts
        self.given, self.looked = bool(states), False

    def is_known(self):
        """Whether a program may hold what is in the dict, and so may move it or replace it at any time."""
        return self.given or self.looked

    def of(self, param):
        """The state of a parameter, made if it is new, for the step itself."""
        state = dict.get(self, param)
        if state is None:
            dict.__setitem__(self, param, state := {})
        return state

    def copy(self):
        self._look()
        return defaultdict(dict, dict.items(self))

    __copy__ = copy

    def __or__(self, other):
        return self.copy() | other

    def __ror__(self, other):
        return other | self.copy()

    def __reduce__(self):
        return defaultdict, (dict, dict(self.copy()))

    def _look(self):
        self.looked = True
        if self.cohorts is not None:
            self.cohorts.state_is_looked_at(self)


def _looking(name):
    """A method of dict that looks first."""
    method = getattr(defaultdict, name)

    @functools.wraps(method)
    def looking(self, *args, **kwargs):
        self._look()
        return method(self, *args, **kwargs)
    return looking


for _name in ("__getitem__", "__setitem__", "__delitem__", "__ior__", "get", "items", "values", "pop", "popitem",
              "setdefault", "update", "clear", "__iter__"):         # dict(state) calls __iter__ only
    setattr(States, _name, _looking(_name))


def put_number(state, key, value):
    """Writes a number into a parameter's state as torch keeps it: into the tensor that is there, if there is one."""
    tensor = state.get(key)
    if (isinstance(tensor, torch.Tensor) and tensor.numel() == 1 and tensor.is_floating_point()
            and not tensor.is_inference()):
        tensor.fill_(value)
    else:
        with torch.inference_mode(False):
            state[key] = torch.tensor(value, dtype=torch.get_default_dtype())


def slot_views(states, members, weights, key, k, initial):
    """NumPy views of the tensors under `key` in the parameters' states; makes those that are missing.

    Args:
        states: the `States`.
        members: (parameter, its group) of each weight.
        weights: NumPy views of the parameters.
        key: torch's key.
        k: the number of the slot, by which memory.like places it.
        initial: a function of the group that gives the number a new tensor is filled with.

    Raises:
        ValueError: a state is not of its parameter's shape and type; nothing has changed.
    """
    own = [states.of(param) for param, _ in members]
    for state, (param, _) in zip(own, members, strict=True):
        tensor = state.get(key)
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor) or tensor.shape != param.shape or tensor.dtype != param.dtype:
            got = f"{tuple(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else repr(tensor)
            raise ValueError(f"state {key!r} of a parameter: expected shape {tuple(param.shape)} of "
                             f"{param.dtype}, got {got}")
        tensors.check_versions([] if tensors.has_version(tensor) else [tensor])
    new = [i for i, (param, _) in enumerate(members)
           if (tensor := own[i].get(key)) is None or tensors.order(tensor) != tensors.order(param)
           or not tensors.is_dense(tensor)]
    for i, array in zip(new, memory.like([weights[i] for i in new], k), strict=True):
        (param, group), before = members[i], own[i].get(key)
        tensor = tensors.over(array, param)
        own[i][key] = tensor.fill_(initial(group)) if before is None else tensor.copy_(before)
    return [tensors.view(state[key], param) for state, (param, _) in zip(own, members, strict=True)]


def place_loaded(states, keys):
    """Moves tensors that torch has just loaded to where a step is fast, before a program has looked at them."""
    for k, key in enumerate(keys):
        some = [(param, state) for param, state in dict.items(states) if tensors.fits(state.get(key), param)]
        arrays = memory.like([tensors.view(param, param) for param, _ in some], k)
        for (param, state), array in zip(some, arrays, strict=True):
            state[key] = tensors.over(array, param).copy_(state[key])
    if all(tensors.fits(state.get(key, param), param) for param, state in dict.items(states) for key in keys):
        states.given = False                        # only what was placed here is in it


def check_loaded(state_dict, param_groups, keys):
    """Raises a ValueError if a state_dict has a slot that is not of its parameter's shape."""
    mine = [param for group in param_groups for param in group["params"]]
    theirs = [index for group in state_dict["param_groups"] for index in group["params"]]
    for i, (param, index) in enumerate(zip(mine, theirs, strict=False)):
        for key, value in state_dict["state"].get(index, {}).items():
            if key in keys and isinstance(value, torch.Tensor) and value.shape != param.shape:
                raise ValueError(f"loaded state {key!r} of parameter {i}: expected shape {tuple(param.shape)}, "
                                 f"got {tuple(value.shape)}")
