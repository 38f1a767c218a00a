"""One step of one optimizer in each library, as its users would write it at its best; for processes.py.

A builder takes a `Work` and returns a function that does one step, on gradients that are already there, in memory of
its own.  It raises `Unsupported` if its library has no such optimizer or option.  Hyperparameters are the library's
defaults: they make no difference to the time.
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from optimc import registry
from optimc.base.narrow import CHOICES, by_slot
from optimc.base.storage import TYPES

#: does one step
Step = Callable[[], object]


class Unsupported(Exception):
    """This library has no such optimizer or option, or it is not timed; says which."""


class Work(NamedTuple):
    """The work of a step: the weights, the optimizer and its options."""

    shapes: list[tuple[int, ...]]
    dtype: str = "float32"
    optimizer: str = "Adam"                 # the name of a class of optimc
    arguments: dict[str, Any] = {}          # for its constructor; the others are its defaults
    grads: str | None = None                # the dtype of the gradients; None: that of the weights

    @property
    def weights(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def real(self) -> np.dtype[Any]:
        """The dtype that a step computes in."""
        return TYPES[self.dtype].real

    @property
    def slots(self) -> set[str]:
        """The types in which slots are asked to be stored."""
        given = self.arguments.get("state_dtype")
        narrow, exact = by_slot(registry.classes[self.optimizer](**self.arguments), CHOICES[0])
        return {(given.get(slot) if isinstance(given, dict) else given) or "float32" for slot in (*narrow, *exact)}

    @property
    def narrow(self) -> bool:
        """True if weights, gradients or slots are stored in fewer bits than a float32 has."""
        return bool({self.dtype, self.grads, *self.slots} & {"bfloat16", "float16", "int8"})

    def arrays(self, seed: int) -> list[np.ndarray]:
        """New arrays of these shapes: weights with seed 0, else gradients.

        The numbers repeat, so that large arrays are filled quickly.
        """
        dtype = TYPES[(self.grads if seed else None) or self.dtype].dtype
        block = np.random.default_rng(seed).standard_normal(1 << 16).astype(dtype)
        arrays = [np.empty(shape, dtype) for shape in self.shapes]
        for array in arrays:
            flat = array.reshape(-1)
            for start in range(0, flat.size, block.size):
                flat[start:start + block.size] = block[:flat.size - start]
        return arrays

    def only(self, *known: str) -> dict[str, Any]:
        """Returns the arguments; raises if the library knows only some of them."""
        unknown = [name for name in self.arguments if name not in known]
        if unknown:
            raise Unsupported(f"has no {', '.join(unknown)}")
        return self.arguments

    def plain_adam(self) -> None:
        """Raises for all but Adam without options."""
        if self.optimizer != "Adam" or self.arguments:
            raise Unsupported("timed for Adam only")


class Peer(NamedTuple):
    needs: str                              # the module that must be there
    build: Callable[[Work], Step]
    threads: Callable[[int], object] | None = None      # sets the number of threads, if it can
    stores: Callable[[Work], bool] = lambda work: not work.narrow       # true if it stores arrays as the work asks


# ------------------------------------------------------------------------------------------- optimc


class Ours:
    """optimc's step: `apply` with its arguments, and the arrays that it and the limits work on."""

    grads: list[np.ndarray]
    weights: list[np.ndarray]
    optimizer: Any
    step: Callable[[], object]

    def __init__(self, work: Work) -> None:
        self.grads, self.weights = work.arrays(1), work.arrays(0)
        self.optimizer = registry.deserialize({"class_name": work.optimizer, "config": {}})
        if work.arguments:
            self.optimizer = type(self.optimizer)(**work.arguments)
        self.optimizer.build(self.weights)
        self.step = functools.partial(self.optimizer.apply, self.grads, self.weights)


# -------------------------------------------------------------------------------------------- NumPy


def numpy_plain(work: Work) -> Step:
    """Adam as the formula reads."""
    work.plain_adam()
    weights, grads = work.arrays(0), work.arrays(1)
    m, v = ([np.zeros_like(w) for w in weights] for _ in range(2))
    t = 0

    def step():
        nonlocal t
        t += 1
        alpha = 1e-3 * (1 - 0.999 ** t) ** 0.5 / (1 - 0.9 ** t)
        for i, g in enumerate(grads):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g ** 2
            weights[i] -= alpha * m[i] / (np.sqrt(v[i]) + 1e-7)
    return step


def numpy_out(work: Work) -> Step:
    """Adam, every operation into memory that is already there: the fastest plain NumPy."""
    work.plain_adam()
    weights, grads = work.arrays(0), work.arrays(1)
    state = [tuple(np.zeros_like(w) for _ in range(4)) for w in weights]
    t = 0

    def step():
        nonlocal t
        t += 1
        alpha = 1e-3 * (1 - 0.999 ** t) ** 0.5 / (1 - 0.9 ** t)
        for w, g, (m, v, a, b) in zip(weights, grads, state, strict=True):
            np.subtract(g, m, out=a)
            np.multiply(a, 0.1, out=a)
            np.add(m, a, out=m)
            np.multiply(g, g, out=a)
            np.subtract(a, v, out=a)
            np.multiply(a, 0.001, out=a)
            np.add(v, a, out=v)
            np.sqrt(v, out=a)
            np.add(a, 1e-7, out=a)
            np.multiply(m, alpha, out=b)
            np.divide(b, a, out=b)
            np.subtract(w, b, out=w)
    return step


# -------------------------------------------------------------------------------------------- torch

TORCH = {"SGD": "SGD", "RMSprop": "RMSprop", "Adam": "Adam", "AdamW": "AdamW", "Adagrad": "Adagrad",
         "Adadelta": "Adadelta", "Adamax": "Adamax", "Nadam": "NAdam", "RAdam": "RAdam", "Rprop": "Rprop",
         "ASGD": "ASGD", "Adafactor": "Adafactor", "Muon": "Muon"}
#: options of optimc for which torch has functions beside its optimizers
STORAGE = ("state_dtype", "master_weights")
TORCH_CALLS = ("loss_scale_factor", "check_finite", "global_clipnorm", "use_ema")


def torch_step(**implementation: bool) -> Callable[[Work], Step]:
    """Returns a builder for torch's optimizer with `foreach=` or `fused=`, and the calls for options beside it."""
    def build(work):
        import torch
        own = ("momentum", "nesterov", "centered", "amsgrad") + ("weight_decay",) * (work.optimizer == "AdamW")
        arguments = work.only(*own, *TORCH_CALLS, *(STORAGE if torch_stores(work) else ()))
        cls = getattr(torch.optim, TORCH.get(work.optimizer, ""), None)
        if cls is None:
            raise Unsupported(f"has no {work.optimizer}")
        params = _torch_params(work)
        try:
            optimizer = cls(params, lr=1e-3, **{k: v for k, v in arguments.items() if k in own}, **implementation)
        except (TypeError, ValueError, RuntimeError) as error:
            raise Unsupported(str(error).splitlines()[0]) from None         # no fused= here, or no vectors
        return composed(torch, optimizer, params, arguments)
    return build


def torch_stores(work: Work) -> bool:
    """True for all arrays in one type without masters: torch has these, and rounds them to nearest."""
    types = {work.dtype, work.grads or work.dtype, *work.slots}
    return not work.narrow or (types == {"bfloat16"} and not work.arguments.get("master_weights", True))


def _torch_params(work):
    """torch's parameters with their gradients."""
    import torch

    def tensor(array):
        if array.dtype.name == "bfloat16":          # torch does not know NumPy's
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    params = [torch.nn.Parameter(tensor(w)) for w in work.arrays(0)]
    for param, grad in zip(params, work.arrays(1), strict=True):
        param.grad = tensor(grad)
    return params


def composed(torch: Any, optimizer: Any, params: list[Any], arguments: dict[str, Any]) -> Step:
    """A step with the calls for options before and after it; unscaled by 1, so that gradients stay as they are."""
    calls = []
    if "loss_scale_factor" in arguments:
        grads, found, one = [p.grad for p in params], torch.zeros(1), torch.ones(1)
        calls.append(lambda: torch._amp_foreach_non_finite_check_and_unscale_(grads, found, one))
    elif "check_finite" in arguments:
        raise Unsupported("has no check_finite without a loss scale")
    if "global_clipnorm" in arguments:
        norm = arguments["global_clipnorm"]
        calls.append(lambda: torch.nn.utils.clip_grad_norm_(params, norm))
    calls.append(optimizer.step)
    if "use_ema" in arguments:
        averages = [p.detach().clone() for p in params]
        calls.append(lambda: torch._foreach_lerp_(averages, params, 0.01))
    if len(calls) == 1:
        return optimizer.step

    def step():
        with torch.no_grad():
            for call in calls:
                call()
    return step


def torch_threads(threads: int) -> None:
    import torch
    torch.set_num_threads(threads)


def adam_in_8_bits(module: str) -> Callable[[Work], Step]:
    """Returns a builder for `Adam8bit` or `AdamW8bit` of a module with optimizers for torch."""
    def build(work):
        import torch
        work.only("state_dtype")
        optimizers = importlib.import_module(module)
        optimizer = getattr(optimizers, f"{work.optimizer}8bit")(_torch_params(work), lr=1e-3)
        return torch.no_grad()(optimizer.step)
    return build


def in_8_bits(work: Work) -> bool:
    """True for Adam or AdamW with all slots in 8 bits, and all else in float32."""
    return work.optimizer in ("Adam", "AdamW") and work.slots == {"int8"} and work.dtype == "float32" == (
        work.grads or work.dtype)


# ----------------------------------------------------------------------------- optax, Keras and more

OPTAX = {"SGD": "sgd", "RMSprop": "rmsprop", "Adam": "adam", "AdamW": "adamw", "Adagrad": "adagrad",
         "Adadelta": "adadelta", "Adamax": "adamax", "Nadam": "nadam", "RAdam": "radam", "Rprop": "rprop",
         "Lion": "lion", "Lamb": "lamb", "Yogi": "yogi", "AdaBelief": "adabelief", "Adan": "adan"}


def optax_jit(work: Work) -> Step:
    """optax under jit; weights, state and averages are donated, so that XLA may work in place."""
    import jax
    import jax.numpy as jnp
    import optax
    jax.config.update("jax_enable_x64", True)
    arguments = work.only("momentum", "nesterov", "global_clipnorm", "use_ema")
    if work.optimizer not in OPTAX:
        raise Unsupported(f"has no {work.optimizer}")
    own = {name: arguments[name] for name in ("momentum", "nesterov") if name in arguments}
    optimizer = getattr(optax, OPTAX[work.optimizer])(1e-3, **own)
    if "global_clipnorm" in arguments:
        optimizer = optax.chain(optax.clip_by_global_norm(arguments["global_clipnorm"]), optimizer)
    weights, grads = ([jnp.array(array) for array in work.arrays(seed)] for seed in (0, 1))
    averages = [jnp.array(w) for w in weights] if "use_ema" in arguments else []

    def update(weights, state, averages, grads):
        updates, state = optimizer.update(grads, state, weights)
        weights = optax.apply_updates(weights, updates)
        if averages:
            averages = optax.incremental_update(weights, averages, 0.01)
        return weights, state, averages

    jitted = jax.jit(update, donate_argnums=(0, 1, 2))
    now = (weights, optimizer.init(weights), averages)

    def step():
        nonlocal now
        now = jax.block_until_ready(jitted(*now, grads))
    return step


def keras_apply(work: Work) -> Step:
    """Keras 3's `apply` on the backend of this process, gradients in the backend's own arrays."""
    import keras
    arguments = work.only("momentum", "nesterov", "centered", "amsgrad", "weight_decay", "clipnorm", "clipvalue",
                          "global_clipnorm", "use_ema", "loss_scale_factor", "gradient_accumulation_steps")
    cls = getattr(keras.optimizers, work.optimizer, None)
    if cls is None:
        raise Unsupported(f"has no {work.optimizer}")
    optimizer = cls(**arguments)
    weights = [keras.Variable(w, dtype=work.dtype) for w in work.arrays(0)]
    grads = [keras.ops.convert_to_tensor(g) for g in work.arrays(1)]
    optimizer.build(weights)
    if keras.backend.backend() != "torch":
        return lambda: optimizer.apply(grads, weights)
    import torch

    def step():
        with torch.no_grad():
            optimizer.apply(grads, weights)
    return step


class ThincAdam:
    """thinc sets gradients to zero, so they are filled again before each repeat."""

    MOST = 200                              # steps: more without gradient would make denormal moments

    weights: list[np.ndarray]
    grads: list[np.ndarray]
    kept: list[np.ndarray]
    optimizer: Any
    keys: list[tuple[int, str]]

    def __init__(self, work: Work) -> None:
        from thinc.optimizers import Optimizer
        work.plain_adam()
        if work.dtype != "float32":
            raise Unsupported(f"has no {work.dtype}")
        self.weights, self.grads, self.kept = work.arrays(0), work.arrays(1), work.arrays(1)
        self.optimizer = Optimizer(1e-3, L2=0, grad_clip=0, use_averages=False)
        self.keys = [(i, "W") for i in range(len(self.weights))]

    def before(self) -> None:
        for grad, kept in zip(self.grads, self.kept, strict=True):
            grad[...] = kept

    def __call__(self) -> None:
        for key, w, g in zip(self.keys, self.weights, self.grads, strict=True):
            self.optimizer(key, w, g)


def sklearn_adam(work: Work) -> Step:
    """The optimizer inside MLPRegressor."""
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
    weights, grads = work.arrays(0), work.arrays(1)
    if work.optimizer == "Adam":
        work.plain_adam()
        optimizer = AdamOptimizer(weights)
    elif work.optimizer == "SGD" and work.arguments:
        given = work.only("momentum", "nesterov")
        optimizer = SGDOptimizer(weights, 1e-3, momentum=given["momentum"], nesterov=given.get("nesterov", False))
    else:
        raise Unsupported("timed for Adam and SGD with momentum only")
    return lambda: optimizer.update_params(weights, grads)


#: peers that share a process, by set: environment, and builders by name
SETS: dict[str, tuple[dict[str, str], dict[str, Peer]]] = {
    "numpy": ({}, {"NumPy out=": Peer("numpy", numpy_out), "NumPy plain": Peer("numpy", numpy_plain)}),
    "torch": ({}, {
        "torch fused": Peer("torch", torch_step(fused=True), torch_threads, torch_stores),
        "torch foreach": Peer("torch", torch_step(foreach=True), torch_threads, torch_stores),
        "torch default": Peer("torch", torch_step(), torch_threads, torch_stores)}),
    "jax": ({"JAX_PLATFORMS": "cpu", "JAX_CPU_ENABLE_ASYNC_DISPATCH": "0", "NPROC": "1",
             "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"},
            {"optax jit": Peer("optax", optax_jit)}),
    "keras-numpy": ({"KERAS_BACKEND": "numpy"}, {"Keras on NumPy": Peer("keras", keras_apply)}),
    "keras-torch": ({"KERAS_BACKEND": "torch"},
                    {"Keras on torch": Peer("keras", keras_apply, threads=torch_threads)}),
    "thinc": ({}, {"thinc": Peer("thinc", ThincAdam)}),
    "sklearn": ({}, {"scikit-learn": Peer("sklearn", sklearn_adam)}),
    "bitsandbytes": ({}, {"bitsandbytes 8-bit": Peer(
        "bitsandbytes", adam_in_8_bits("bitsandbytes.optim"), torch_threads, in_8_bits)}),
    "torchao": ({}, {"torchao 8-bit": Peer(
        "torchao", adam_in_8_bits("torchao.optim"), torch_threads, in_8_bits)}),
}


def suited(work: Work) -> list[str]:
    """Returns the names of the peers that store arrays as the work asks."""
    return [name for _, peers in SETS.values() for name, peer in peers.items() if peer.stores(work)]
