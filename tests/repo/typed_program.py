"""A program that uses every public name of optimc, for type checkers and for Python.

`mypy --strict` and pyright find no error in it, and test_types.py runs it: `assert_type` looks at the type for the
checkers, and at the value when it runs.  The lines of `mistakes` never run.  A checker must refuse each of them: an
ignored error that is none is an error.
"""

import copy
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

import optimc
from optimc import schedules

if TYPE_CHECKING:
    from typing import assert_type
else:
    def assert_type(value: Any, kind: Any) -> None:
        """Looks whether a value has a type that was promised to checkers."""
        assert fits(value, kind), f"{value!r} is not of type {kind}"


def fits(value: Any, kind: Any) -> bool:
    """True if a value has a type."""
    origin, inner = get_origin(kind), get_args(kind)
    if hasattr(origin, "__value__"):            # an alias as `type NDArray[...] = ndarray[...]` makes it
        origin = get_origin(origin.__value__)
    if kind is Any or origin is Literal:
        return kind is Any or value in inner
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if kind is None:
        return value is None
    if not isinstance(value, origin or kind):
        return False
    if origin is list:
        return all(fits(entry, inner[0]) for entry in value)
    if origin is dict:
        return all(fits(key, inner[0]) and fits(entry, inner[1]) for key, entry in value.items())
    return True


Array = NDArray[np.float32]


def network() -> dict[str, Array]:
    return {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}


class Halve(schedules.LearningRateSchedule):
    """A schedule of the program's own."""

    def __init__(self, first: float) -> None:
        self.first = first

    def __call__(self, step: int) -> float:
        return self.first * 0.5 ** step

    def get_config(self) -> dict[str, Any]:
        return {"first": self.first}


class Warm(optimc.Adam):
    """An optimizer of the program's own."""

    colour = "red"


def package() -> None:
    assert_type(optimc.isa, str)
    assert_type(optimc.__version__, str)
    assert_type(optimc.get_num_threads(), int)
    optimc.set_num_threads(optimc.get_num_threads())
    optimc.show_config()


def every_optimizer() -> list[optimc.Optimizer]:
    return [optimc.SGD(0.1, momentum=0.9, nesterov=True), optimc.RMSprop(rho=0.9), optimc.Adam(beta_1=0.9),
            optimc.AdamW(1e-3, weight_decay=0.01), optimc.Adagrad(), optimc.RowwiseAdagrad(), optimc.Adadelta(),
            optimc.Adamax(),
            optimc.Nadam(), optimc.Ftrl(), optimc.Lion(), optimc.ScheduleFreeAdamW(), optimc.RAdam(), optimc.Yogi(),
            optimc.AdaBelief(), optimc.Rprop(), optimc.ASGD(), optimc.Adan(), optimc.Lamb(), optimc.LARS(),
            optimc.Adafactor(), optimc.Muon(ns_steps=4, exclude_layers=["head"]), Warm()]


def arguments() -> None:
    """Values are numbers of Python or NumPy, schedules or callables, and are read as numbers."""
    opt = optimc.Adam(
        np.float32(1e-3), epsilon=1e-8, amsgrad=True, weight_decay=lambda: 0.01, clipnorm=1, clipvalue=None,
        use_ema=True, ema_momentum=np.float64(0.9), ema_overwrite_frequency=None, loss_scale_factor=None,
        gradient_accumulation_steps=None, name="first", check_finite="skip", coupled_weight_decay=False,
        maximize=False, cautious=True, style="torch",
        groups=[{"weights": ["bias"], "weight_decay": 0.0}, {"weights": "kernel", "beta_1": 0.8}])
    opt.learning_rate = schedules.CosineDecay(1e-3, decay_steps=100)
    opt.learning_rate = lambda: 0.25
    assert_type(opt.learning_rate, float)
    assert_type(opt.beta_1, float)
    assert_type(opt.beta_2, float)
    assert_type(opt.epsilon, float)
    assert_type(opt.amsgrad, bool)
    assert_type(opt.bias_correction, bool)
    assert_type(opt.corrected_epsilon, bool)
    assert_type(opt.cautious, bool)
    assert_type(opt.weight_decay, float | None)
    assert_type(opt.clipnorm, float | None)
    assert_type(opt.clipvalue, float | None)
    assert_type(opt.global_clipnorm, float | None)
    assert_type(opt.use_ema, bool)
    assert_type(opt.ema_momentum, float)
    assert_type(opt.ema_overwrite_frequency, int | None)
    assert_type(opt.loss_scale_factor, float | None)
    assert_type(opt.gradient_accumulation_steps, int | None)
    assert_type(opt.check_finite, Literal["propagate", "raise", "skip"])
    assert_type(opt.coupled_weight_decay, bool)
    assert_type(opt.decay_as_factor, bool)
    assert_type(opt.maximize, bool)
    assert_type(opt.state_dtype, Literal["float32", "bfloat16", "int8"] | Mapping[str, str | None] | None)
    assert_type(opt.master_weights, bool)
    assert_type(opt.seed, int)
    opt.reset_master()
    assert_type(opt.style, Literal["keras", "torch", "optax"])
    assert_type(opt.name, str)
    opt.name, opt.check_finite, opt.clipnorm = "second", "raise", None
    group = opt.groups[0]
    assert_type(group["weight_decay"], float | None)
    group["weight_decay"] = schedules.ExponentialDecay(0.1, 10, 0.5)
    assert_type(group.label, str)
    assert_type(group.get_config(), dict[str, Any])
    assert_type(group.given([1]), dict[str, Any])
    assert group.selection.patterns == ("bias",)


def rows() -> None:
    """A gradient by rows stands wherever a gradient stands."""
    table, bias = np.ones((5, 2), np.float32), np.ones(2, np.float32)
    grad = optimc.Rows([4, 1, 4], np.ones((3, 2), np.float32))
    assert_type(grad.indices, NDArray[Any])
    assert_type(grad.values, NDArray[Any])
    assert_type(copy.copy(grad), optimc.Rows)
    opt = optimc.Adagrad()
    opt.apply([grad, bias], [table, bias.copy()])
    optimc.SGD().apply({"layer": [grad, bias]}, {"layer": [table, bias.copy()]})
    optimc.SGD().apply_gradients([(grad, table)])
    optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD())).apply({"table": grad}, {"table": table})


def steps(folder: Path) -> None:
    """Weights and gradients are lists, tuples or dicts of arrays."""
    weights, opt = network(), optimc.Adam(use_ema=True, global_clipnorm=1.0)
    grads = {name: np.full_like(weight, 0.5) for name, weight in weights.items()}
    opt.exclude_from_weight_decay(var_names=["bias"])
    opt.exclude_from_weight_decay(var_list=[weights["bias"]])
    opt.build(weights)
    opt.apply(grads, weights)
    with warnings.catch_warnings(action="ignore"):
        opt.apply({**grads, "bias": None})
    assert_type(opt.apply_gradients(zip([*grads.values()], [*weights.values()], strict=True)), int)
    optimc.SGD().apply([weight * 2 for weight in weights.values()], [*weights.values()])
    optimc.SGD().apply((np.ones(2), ), (np.ones(2), ))
    layers = {"dense": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}
    optimc.SGD().apply(copy.deepcopy(layers), layers)
    optimc.SGD().apply([[np.ones(1)], np.ones(3)], [[np.ones(1)], np.ones(3)])
    with warnings.catch_warnings(action="ignore"):
        optimc.SGD().apply({"dense": [None, np.ones(2)]}, {"dense": [weights["kernel"], np.ones(2)]})
    rows = optimc.Rows([3, 1], np.ones((2, 2)))
    assert_type(rows, optimc.Rows)
    assert_type(rows.indices, NDArray[Any])
    assert_type(rows.values, NDArray[Any])
    assert_type(pickle.loads(pickle.dumps(rows)), Any)
    optimc.SGD().apply({"table": rows, "bias": np.ones(2)}, {"table": np.ones((9, 2)), "bias": np.ones(2)})
    with opt.averaged(weights):
        pass
    with opt.averaged():
        opt.save(folder / "adam.safetensors")
    opt.finalize_variable_values(weights)
    assert_type(opt.built, bool)
    assert_type(opt.iterations, int)
    assert_type(opt.skipped_steps, int)
    assert_type(opt.keeps_averages, bool)
    assert_type(opt.last_global_norm, float | None)
    assert_type(opt.variables, list[NDArray[Any]])
    assert_type(opt.slots, dict[str, dict[int | str, NDArray[Any]]])
    assert_type(opt.scale_loss(2.0), float)
    opt.iterations = 7
    other = optimc.Adam(use_ema=True, global_clipnorm=1.0)
    other.load_state_dict(opt.state_dict())
    assert_type(pickle.loads(pickle.dumps(opt)), Any)
    assert_type(copy.copy(opt), optimc.Adam)
    assert_type(copy.deepcopy(opt), optimc.Adam)
    assert_type(optimc.Adam.from_config(opt.get_config()), optimc.Adam)
    loaded = optimc.load(str(folder / "adam.safetensors"), custom_objects={"Warm": Warm})
    assert isinstance(loaded, optimc.Adam)
    assert_type(loaded, optimc.Adam)
    try:
        optimc.load(folder)
    except (optimc.CheckpointError, OSError) as error:
        assert error.args


def names() -> None:
    """A name gives an optimizer, an optimizer gives itself, a configuration gives any optimizer."""
    assert_type(optimc.get("adam", learning_rate=0.1), optimc.Optimizer)
    assert_type(optimc.get(optimc.SGD, learning_rate=0.1), optimc.SGD)
    assert_type(optimc.get("adam").learning_rate, float)
    assert_type(optimc.get(optimc.SGD()), optimc.SGD)
    assert optimc.get(None) is None
    config = optimc.serialize(optimc.SGD(0.5))
    assert_type(config, dict[str, Any])
    for made in (optimc.get(config), optimc.deserialize(config, custom_objects={"Halve": Halve})):
        made.build([np.ones(2)])
        assert_type(made.built, bool)
        assert_type(made.iterations, int)
        assert isinstance(made, optimc.Optimizer)


def wrappers(folder: Path) -> None:
    weights = network()
    grads = {name: np.ones_like(weight) for name, weight in weights.items()}
    routes = optimc.OptimizerMap(optimc.SGD(use_ema=True), {"bias": optimc.Adam(use_ema=True)})
    routes["head"] = optimc.Lion()
    assert_type(routes["bias"], optimc.Optimizer)
    assert_type(routes.default_optimizer, optimc.Optimizer)
    assert_type(routes.optimizers(), list[optimc.Optimizer])
    for key in routes:
        assert_type(key, str)
    assert_type(len(routes), int)
    assert_type(optimc.OptimizerMap.from_config(routes.get_config()), optimc.OptimizerMap)
    multi = optimc.MultiOptimizer(routes, loss_scale_factor=4.0, name="two")
    multi.build(weights)
    multi.apply(grads, weights)
    assert_type(multi.apply_gradients([]) if TYPE_CHECKING else multi.iterations, int)
    assert_type(multi.iterations, int)
    assert_type(multi.loss_scale_factor, float | None)
    assert_type(multi.scale_loss(1.0), float)
    assert_type(multi.name, str)
    assert_type(multi.optimizer_map is routes, bool)
    assert_type(multi.variables, list[NDArray[Any]])
    with multi.averaged():
        pass
    multi.finalize_variable_values()
    multi.save(folder / "multi.safetensors")
    assert_type(optimc.MultiOptimizer.from_config(multi.get_config()), optimc.MultiOptimizer)
    scaled = optimc.LossScaleOptimizer(optimc.SGD(use_ema=True, global_clipnorm=1.0), initial_scale=4,
                                       dynamic_growth_steps=10, name="scaled")
    scaled.build(weights)
    scaled.apply(grads, weights)
    assert_type(scaled.apply_gradients(zip(grads.values(), weights.values(), strict=True)), int)
    assert_type(scaled.built, bool)
    assert_type(scaled.dynamic_scale, float)
    assert_type(scaled.initial_scale, float)
    assert_type(scaled.dynamic_growth_steps, int)
    assert_type(scaled.step_counter, int)
    assert_type(scaled.skipped_steps, int)
    assert_type(scaled.last_global_norm, float | None)
    scaled.learning_rate = schedules.CosineDecay(0.1, 10)
    assert_type(scaled.learning_rate, float)
    assert isinstance(scaled.inner_optimizer, optimc.SGD)
    with scaled.averaged():
        scaled.save(folder / "scaled.safetensors")
    assert isinstance(optimc.load(folder / "scaled.safetensors"), optimc.LossScaleOptimizer)


def every_schedule() -> None:
    each: list[schedules.LearningRateSchedule] = [
        schedules.ExponentialDecay(0.1, 10, 0.5, staircase=True), schedules.InverseTimeDecay(0.1, 10, 0.5),
        schedules.PolynomialDecay(0.1, decay_steps=10), schedules.PiecewiseConstantDecay([3, 6], [0.1, 0.2, 0.3]),
        schedules.CosineDecay(0.1, 10, warmup_target=0.2, warmup_steps=2), schedules.CosineDecayRestarts(0.1, 10),
        schedules.OneCycle(0.1, total_steps=10), schedules.join([0.1, Halve(0.5)], [5]), Halve(1.0)]
    for schedule in each:
        assert_type(schedule(7), float)
        again = schedules.deserialize(schedules.serialize(schedule), custom_objects={"Halve": Halve})
        assert again == schedule
        assert_type(optimc.SGD(schedule).learning_rate, float)
    assert schedules.is_schedule(each[0]) and isinstance(each[7], schedules.Join)
    assert_type(schedules.CosineDecay(0.1, 10).decay_steps, float)
    assert_type(schedules.CosineDecay.from_config({"initial_learning_rate": 1, "decay_steps": 2}),
                schedules.CosineDecay)
    rate: schedules.Rate = schedules.OneCycle(0.1, total_steps=10)
    number: schedules.Number = np.float32(0.1)
    optimc.SGD(rate).learning_rate = number


def torch_program() -> None:
    import torch

    import optimc.torch
    for cls in (optimc.torch.SGD, optimc.torch.Adam, optimc.torch.AdamW, optimc.torch.Adagrad, optimc.torch.RMSprop,
                optimc.torch.Adadelta, optimc.torch.Adamax, optimc.torch.NAdam, optimc.torch.RAdam,
                optimc.torch.Rprop, optimc.torch.ASGD):
        parameter = torch.nn.Parameter(torch.ones(2))
        opt: torch.optim.Optimizer = cls([parameter], lr=0.1)
        parameter.grad = torch.ones(2)
        opt.step()
        opt.zero_grad()
    parameter.grad = torch.ones(2).to_sparse(1)
    sparse: torch.optim.Optimizer = optimc.torch.SparseAdam([parameter], lr=0.1)
    sparse.step()
    for offloading in (optimc.torch.OffloadAdam, optimc.torch.OffloadAdamW, optimc.torch.OffloadSGD,
                       optimc.torch.OffloadAdagrad, optimc.torch.OffloadRMSprop, optimc.torch.OffloadAdafactor,
                       optimc.torch.OffloadLion):
        away = offloading([torch.nn.Parameter(torch.ones(2))], 0.1, state_dtype=None, offload_gradients=True)
        assert_type(away.clip_grad_norm_(1.0), torch.Tensor)
        away.step()
        away.zero_grad()
        away.reset_master()
        away.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5})
        away.load_state_dict(away.state_dict())
        assert len(away.state) < 3
    apart = optimc.torch.OffloadScheduleFreeAdamW([parameter], betas=(0.9, 0.99), warmup_steps=2)
    apart.eval()
    apart.train()
    optimc.torch.offload(optimc.torch.AdamW)
    factored: torch.optim.Adafactor = optimc.torch.Adafactor([parameter], eps=(None, 1e-3), d=2.0)
    assert_type(optimc.from_torch(factored), optimc.Optimizer)
    optimc.torch.step_in_backward([parameter], optimc.torch.AdamW, accumulate=2, clip_value=1.0, clip_norm_before=1.0)
    lion: torch.optim.Optimizer = optimc.torch.Lion([parameter], 0.1, betas=(0.9, 0.99), state_dtype="bfloat16")
    lion.step()
    for stored in (optimc.torch.AdamW([parameter], 0.1, state_dtype="int8", master_weights=False,
                                      stochastic_round=True, seed=3, fused=True),
                   optimc.torch.Lion([parameter], 0.1)):
        stored.reset_master()
    free = optimc.torch.ScheduleFreeAdamW([parameter], lr=0.1, warmup_steps=2)
    free.eval()
    free.train()
    assert_type(optimc.from_torch(opt), optimc.Optimizer)


def keras_program() -> None:
    import keras

    import optimc.keras
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    weights = [keras.Variable(np.ones(2, np.float32))]
    for cls in (optimc.keras.SGD, optimc.keras.RMSprop, optimc.keras.Adam, optimc.keras.AdamW, optimc.keras.Adagrad,
                optimc.keras.Adadelta, optimc.keras.Adamax, optimc.keras.Nadam, optimc.keras.Ftrl, optimc.keras.Lion,
                optimc.keras.ScheduleFreeAdamW, optimc.keras.RAdam, optimc.keras.Yogi, optimc.keras.AdaBelief,
                optimc.keras.Rprop, optimc.keras.ASGD, optimc.keras.Adan, optimc.keras.Lamb, optimc.keras.LARS,
                optimc.keras.Adafactor, optimc.keras.Muon):
        opt: keras.optimizers.Optimizer = cls(learning_rate=rate)
        opt.build(weights)
    adam = optimc.keras.Adam(schedules.OneCycle(0.1, total_steps=10), beta_1=0.8, clipnorm=1.0)
    assert_type(adam.beta_1, float)
    adam.exclude_from_weight_decay(var_names=["bias"])
    adam.build(weights)
    adam.apply([np.ones(2, np.float32)])
    ours = optimc.from_keras(adam)
    assert_type(ours, optimc.Optimizer | optimc.LossScaleOptimizer)
    assert_type(optimc.keras.Schedule(schedules.OneCycle(0.1, total_steps=10)).get_config(), dict[str, Any])


def sklearn_program() -> None:
    from optimc.sklearn import MLPClassifier, MLPRegressor
    x, y = np.linspace(-1, 1, 40).reshape(20, 2), np.linspace(-1, 1, 20)
    MLPRegressor(solver=optimc.AdamW(0.05), max_iter=1000).fit(x, y)
    MLPClassifier(solver="lion", max_iter=1000).fit(x, y > 0)


def thinc_program() -> None:
    import thinc.optimizers

    from optimc.thinc import SGD, Adam, Lion, Optimizer, RAdam
    array = np.ones(2, np.float32)
    rates = [0.1, 0.05]
    for optimizer in (Adam(rates, L2=0.01, beta1=0.8), RAdam(0.1, grad_clip=0.0), SGD(0.1, use_averages=False),
                      Lion(0.1, beta2=0.9), Optimizer(0.1, use_radam=True, L2_is_weight_decay=False)):
        base: thinc.optimizers.Optimizer = optimizer
        assert base is optimizer
        optimizer((1, "W"), array, array.copy())


def mpi_program(folder: Path) -> None:
    import optimc.mpi
    weights = network()
    opt = optimc.mpi.Sharded(optimc.Adam(use_ema=True), average=True, deterministic=False, bucket_bytes=1 << 16,
                             timeout=None)
    opt.build(weights)
    opt.apply({name: np.ones_like(weight) for name, weight in weights.items()}, weights)
    opt.exclude_from_weight_decay(var_names=["bias"])
    with opt.averaged():
        pass
    opt.finalize_variable_values()
    opt.save(folder / "sharded.safetensors")
    assert_type(optimc.mpi.load(folder / "sharded.safetensors", average=False), optimc.mpi.Sharded)
    assert_type(opt.rank, int)
    assert_type(opt.size, int)
    assert_type(opt.variables, list[NDArray[Any]])
    assert_type(optimc.mpi.default_bucket(opt.size), int)


def deepspeed_program() -> None:
    import optimc.deepspeed
    optimc.deepspeed.install()


def threads_program() -> None:
    import threadpoolctl

    import optimc.threadpoolctl
    assert issubclass(optimc.threadpoolctl.Controller, threadpoolctl.LibController)


def mistakes() -> None:
    """Each line is an error that a checker must find."""
    opt, weights = optimc.Adam(), [np.ones(2)]
    optimc.Adam(lr=0.1)                                     # type: ignore[call-arg]
    optimc.Adam("0.1")                                      # type: ignore[arg-type]
    optimc.Adam(check_finite="foo")                         # type: ignore[arg-type]
    optimc.Adam(style="jax")                                # type: ignore[arg-type]
    opt.lr = 0.1                                            # type: ignore[attr-defined]
    opt.learning_rate = "0.1"                               # type: ignore[assignment]
    opt.check_finite = "foo"                                # type: ignore[assignment]
    opt.step()                                              # type: ignore[attr-defined]
    opt(weights)                                            # type: ignore[operator]
    opt.apply()                                             # type: ignore[call-arg]
    opt.apply(1.0, weights)                                 # type: ignore[arg-type]
    optimc.Rows([1])                                        # type: ignore[call-arg]
    opt.apply_gradients(weights, weights)                   # type: ignore[call-arg, arg-type]
    opt.build(weights, state=None)                          # type: ignore[call-arg]
    print(optimc.get("adam").beta)                          # type: ignore[attr-defined]
    optimc.get(3)                                           # type: ignore[call-overload]
    optimc.load(7)                                          # type: ignore[arg-type]
    schedules.CosineDecay(0.1)                              # type: ignore[call-arg]
    schedules.CosineDecay(0.1, 10, warmup=3)                # type: ignore[call-arg]
    print(schedules.CosineDecay(0.1, 10).steps)             # type: ignore[attr-defined]
    optimc.LossScaleOptimizer("adam")                       # type: ignore[arg-type]
    optimc.LossScaleOptimizer(opt).scale = 2                # type: ignore[attr-defined]
    optimc.MultiOptimizer(opt)                              # type: ignore[arg-type]
    optimc.MultiOptimizer(optimc.OptimizerMap(opt)).apply(weights, weights)     # type: ignore[arg-type]
    optimc.torch.AdamW([], learning_rate=0.1)               # type: ignore[call-arg]
    optimc.torch.Lion([], betas=0.9)                        # type: ignore[arg-type]
    optimc.adam()                                           # type: ignore[attr-defined]
