"""A call that is interrupted anywhere leaves everything as it was, or is as if it had ended."""

import copy
import os
import pickle

import numpy as np
import pytest
from interrupting import every_interruption

import optimc

F = np.float32
ROOT = os.path.dirname(optimc.__file__)


def numbers(shape, k):
    return np.cos(np.arange(int(np.prod(shape)), dtype=F) * k).reshape(shape)


class Job:
    """An optimizer, weights and gradients, made anew for every interruption."""

    def __init__(self, make, steps):
        self.optimizer = make()
        shapes = {"a": (4, 3), "b": (3,), "c": (2, 2)}
        self.weights = {name: numbers(shape, k + 1) for k, (name, shape) in enumerate(shapes.items())}
        self.grads = {name: numbers(shape, k + 4) for k, (name, shape) in enumerate(shapes.items())}
        self.more = {**self.weights, "d": numbers(5, 9)}
        for _ in range(steps):
            self.optimizer.apply(self.grads, self.weights)
        self.state = self.optimizer.state_dict() if steps and hasattr(self.optimizer, "state_dict") else None

    def seen(self):
        """Everything that can be seen of the job, as a text."""
        wrappers = [self.optimizer, *(one for one in self.optimizer.__dict__.values()
                                      if isinstance(one, optimc.MultiOptimizer))]
        return repr(([w.tobytes() for w in self.more.values()], [of_one(one) for one in made_of(self.optimizer)],
                     [(sorted(one.__dict__.get("_routes", ())), {
                         name: value for name, value in one.__dict__.items() if isinstance(value, (int, float, str))})
                      for one in wrappers]))


def made_of(optimizer):
    """All optimizers that one is made of, used so far or not."""
    if isinstance(optimizer, optimc.LossScaleOptimizer):
        return made_of(optimizer.inner_optimizer)
    if isinstance(optimizer, optimc.MultiOptimizer):
        chosen = optimizer.optimizer_map
        return chosen.optimizers() if isinstance(chosen, optimc.OptimizerMap) else list(chosen.__self__.values())
    return [optimizer]


def of_one(one):
    state = one._state_now()
    arrays = {name: array.tobytes() for name, array in state.without(one._scratch_slots).tensors().items()}
    return (one.built, one._calls, one.skipped_steps, one._get_running(), state.names, state.waiting,
            [(selection.label, len(selection.arrays), selection.patterns) for selection in
             (state.excluded, *state.grouped)], arrays, one.get_config(), one._evaluating, one._steps, one._maximize)


def by_function(**more):
    chosen = {"a": optimc.SGD(0.5, momentum=0.5), "b": optimc.Adam(0.5), "c": optimc.Muon(), "d": optimc.SGD()}
    return optimc.MultiOptimizer(chosen.get, **more)


MAKERS = {
    "Adam": lambda: optimc.Adam(0.5, use_ema=True, groups=[{"weights": "b", "learning_rate": 0.25}]),
    "accumulating": lambda: optimc.Lamb(0.5, gradient_accumulation_steps=2, global_clipnorm=1.0),
    "Muon": lambda: optimc.Muon(0.5),
    "LossScaleOptimizer": lambda: optimc.LossScaleOptimizer(optimc.Muon(0.5), 2.0, 1),
    "MultiOptimizer": lambda: optimc.MultiOptimizer(
        optimc.OptimizerMap(optimc.SGD(0.5), {"a": optimc.Muon(0.5)}), loss_scale_factor=2.0),
    "LossScaleOptimizer of a MultiOptimizer": lambda: optimc.LossScaleOptimizer(optimc.MultiOptimizer(
        optimc.OptimizerMap(optimc.SGD(0.5), {"a": optimc.Muon(0.5)})), 2.0, 1),
    "MultiOptimizer by function": by_function,
    "MultiOptimizer by function, scaled": lambda: by_function(loss_scale_factor=2.0),
}
WRONG = {"c": np.ones(7, F)}
OPERATIONS = {
    "first step": (0, lambda job: job.optimizer.apply(job.grads, job.weights)),
    "step": (1, lambda job: job.optimizer.apply(job.grads, job.weights)),
    "skipped or bad step": (1, lambda job: job.optimizer.apply({**job.grads, "a": job.grads["a"] * F(np.inf)},
                                                               job.weights)),
    "refused first step": (0, lambda job: job.optimizer.apply({**job.grads, **WRONG}, job.weights)),
    "refused step": (1, lambda job: job.optimizer.apply({**job.grads, **WRONG}, job.weights)),
    "build": (0, lambda job: job.optimizer.build(job.weights)),
    "refused build": (0, lambda job: job.optimizer.build({**job.weights, "c": np.ones(2, int)})),
    "build for more": (1, lambda job: job.optimizer.build(job.more)),
    "loss scale": (1, lambda job: hasattr(job.optimizer, "loss_scale_factor")
                   and setattr(job.optimizer, "loss_scale_factor", 4.0)),
    "deepcopy": (1, lambda job: copy.deepcopy(job.optimizer)),
    "pickle": (1, lambda job: None if "function" in repr(job) else pickle.dumps(job.optimizer)),
    "save": (1, lambda job: job.optimizer.save(os.devnull)),
    "state_dict": (1, lambda job: job.state and job.optimizer.state_dict()),
    "load_state_dict": (1, lambda job: job.state and job.optimizer.load_state_dict(job.state)),
    "exclude": (1, lambda job: job.state and job.optimizer.exclude_from_weight_decay(var_names=["b"])),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", MAKERS)
def test_an_interrupted_call_is_whole(name, operation):
    steps, call = OPERATIONS[operation]
    jobs = []

    def prepare():
        jobs.append(Job(MAKERS[name], steps))

        def run():
            try:
                call(jobs[-1])
            except (TypeError, ValueError):
                assert "refused" in operation or operation == "save" or name.startswith("MultiOptimizer by")
        return run

    before, seen = Job(MAKERS[name], steps).seen(), []
    for _ in every_interruption(prepare=prepare, opcodes=True, within=ROOT, most=40):
        seen.append(jobs[-1].seen())
    assert {*seen} <= {before, seen[-1]}
    for job in jobs[::7]:                               # nobody waits for what was interrupted
        job.optimizer.apply(job.grads, job.weights)
