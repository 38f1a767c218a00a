"""Helpers of the tests of optimc.torch: options of every class, parameters, gradients."""

import pytest
from conftest import require

from optimc.torch_names import TORCH

torch = require("torch")
ot = pytest.importorskip("optimc.torch")

OPTIONS = {
    "SGD": [{"lr": 0.05}, {"lr": 0.05, "momentum": 0.9}, {"lr": 0.05, "momentum": 0.9, "nesterov": True},
            {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
            {"lr": 0.05, "momentum": 0.5, "maximize": True}],
    "Adam": [{}, {"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.01, "amsgrad": True, "betas": (0.8, 0.9), "eps": 1e-3},
             {"lr": 0.01, "maximize": True, "weight_decay": 0.1},
             {"lr": 0.01, "weight_decay": 0.3, "decoupled_weight_decay": True}],
    "AdamW": [{}, {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}],
    "Adagrad": [{}, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2}],
    "RMSprop": [{}, {"momentum": 0.9}, {"centered": True, "weight_decay": 0.1},
                {"centered": True, "momentum": 0.9, "lr": 0.001}],
    "Adadelta": [{}, {"rho": 0.8, "weight_decay": 0.1}],
    "Adafactor": [{}, {"eps": (0.1, 0.9), "d": 1.5, "weight_decay": 0.1}, {"beta2_decay": -0.5, "maximize": True}],
    "Adamax": [{}, {"weight_decay": 0.1}],
    "NAdam": [{}, {"momentum_decay": 0.1, "weight_decay": 0.1},
              {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "Rprop": [{}, {"etas": (0.6, 1.3), "step_sizes": (1e-4, 0.1)}],
    "ASGD": [{}, {"lambd": 0.1, "alpha": 0.5, "t0": 5, "weight_decay": 0.1}],
}
CASES = [(name, options) for name, rows in OPTIONS.items() for options in rows]
#: the classes that take dense gradients
DENSE = [name for name in TORCH if name != "SparseAdam"]
#: of them, those that take sparse gradients too
BY_ROWS = [name for name in DENSE if name != "Adafactor"]
each_class = pytest.mark.parametrize("name", DENSE)
each_case = pytest.mark.parametrize("name,options", CASES, ids=[f"{name}-{options}" for name, options in CASES])
SHAPES = [(10, 7), (7,), (7, 1), (1,), ()]


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def set_grads(seed, *lists):
    """The same gradients for every list of parameters."""
    generator = torch.Generator().manual_seed(seed)
    for group in zip(*lists, strict=True):
        grad = torch.randn(group[0].shape, generator=generator, dtype=group[0].dtype)
        for param in group:
            param.grad = grad.clone()


def close(a, b, bound=2e-5):
    for p, q in zip(a, b, strict=True):
        assert p.dtype == q.dtype
        assert (p - q).abs().max() <= bound * max(1.0, q.abs().max().item())


def both(name, options, dtype=torch.float32):
    mine, theirs = parameters(dtype), parameters(dtype)
    return (mine, getattr(ot, name)(mine, **options)), (theirs, getattr(torch.optim, name)(theirs, **options))


# ------------------------------------------------------------------ parameters of 16 bits, slots in fewer bits

HALVES = (torch.bfloat16, torch.float16)
HALF_SHAPES = [(10, 7), (7,), (), (4, 3, 5, 6), (5000,)]
AT_RANDOM = {"master_weights": False, "stochastic_round": True}
STORAGES = [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "int8"}, {"state_dtype": "bfloat16", "seed": 3},
            {"master_weights": False}, AT_RANDOM, {**AT_RANDOM, "state_dtype": "int8", "seed": 7}]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
each_storage = pytest.mark.parametrize("storage", STORAGES, ids=str)


def halves(dtype=torch.bfloat16, shapes=HALF_SHAPES):
    return [torch.nn.Parameter(p.detach().to(dtype)) for p in parameters(shapes=shapes)]


def wide(params):
    return [torch.nn.Parameter(p.detach().float()) for p in params]


def set_both(step, narrow, real):
    """The same gradients, of 16 bits, for both."""
    set_grads(step, narrow)
    for p, q in zip(narrow, real, strict=True):
        q.grad = p.grad.float()


def bits(tensor):
    return tensor.detach().contiguous().view(torch.uint8 if tensor.dtype == torch.uint8 else
                                             {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same(a, b):
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def split(real):
    """The bfloat16 nearest to float32 numbers, ties away, and the rest."""
    number = bits(real).to(torch.int64) & 0xffffffff
    upper, rest = (number + 0x8000) >> 16 & 0xffff, number & 0xffff
    upper, rest = ((part - (part >> 15 << 16)).to(torch.int16) for part in (upper, rest))
    return upper.view(torch.bfloat16), rest


def run(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        set_grads(step, params)
        optimizer.step()
