"""`from_keras` and `from_torch`: a live optimizer goes on in optimc, on the same trajectory."""

import importlib

import numpy as np
import pytest
from cases import CASES, assert_same_bits
from conftest import require
from test_keras_numpy import KERAS_CASES, equal_bits
from test_styles import TORCH_CASES, problem

import optimc
from optimc.registry import classes

OPTIONS = {
    "plain": {},
    "options": {"weight_decay": 0.1, "clipvalue": 0.9, "use_ema": True, "gradient_accumulation_steps": 2},
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("case", KERAS_CASES, ids=repr)
def test_keras_optimizers_go_on(case, name):
    keras = require("keras")
    rng = np.random.default_rng(0)
    shapes = [(6, 4), (4,), (2, 3, 4)]
    options = OPTIONS[name] if case.cls._rule != "muon" or name == "plain" else {"use_ema": True}
    theirs = getattr(keras.optimizers, case.cls.__name__)(**{**case.arguments, **options})
    variables = [keras.Variable(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    grads = [[rng.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(12)]
    for g in grads[:5]:
        theirs.apply(g, variables)
    weights = [np.array(v.value) for v in variables]
    ours = optimc.from_keras(theirs)
    assert ours.iterations == int(theirs.iterations)
    for g in grads[5:]:
        theirs.apply(g, variables)
        ours.apply(g, weights)
    for w, v in zip(weights, variables, strict=True):
        if equal_bits(case):
            assert_same_bits(w, np.asarray(v.value))
        else:
            np.testing.assert_allclose(w, np.asarray(v.value), rtol=0, atol=2e-4)
    assert ours.get_config()["learning_rate"] == pytest.approx(float(theirs.learning_rate))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("floor", [False, True])
def test_adafactor_of_optimc_keras_goes_on(floor):
    keras = require("keras")
    rng, shapes = np.random.default_rng(0), [(6, 4), (4,), (2, 3, 4)]
    theirs = importlib.import_module("optimc.keras").Adafactor(0.1, epsilon_as_floor=floor)
    variables = [keras.Variable(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    for step in range(6):
        if step == 3:
            weights, ours = [np.array(v.value) for v in variables], optimc.from_keras(theirs)
        g = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        theirs.apply(g, variables)
        if step >= 3:
            ours.apply(g, weights)
    for w, v in zip(weights, variables, strict=True):
        assert_same_bits(w, np.asarray(v.value))


def test_keras_schedules_and_loss_scales_come_over():
    keras = require("keras")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    theirs = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule, momentum=0.5), 8.0, 3)
    v = keras.Variable(np.zeros(3, np.float32))
    theirs.build([v])
    for _ in range(2):
        theirs.apply([np.ones(3, np.float32)], [v])
    ours, w = optimc.from_keras(theirs), np.array(v.value)
    for k in range(5):
        g = np.full(3, 16.0 if k != 2 else np.inf, np.float32)
        theirs.apply([g], [v])
        ours.apply([g], [w])
        assert_same_bits(w, np.asarray(v.value))
        assert ours.dynamic_scale == float(theirs.dynamic_scale)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_unbuilt_keras_optimizers_bring_their_configuration():
    keras = require("keras")
    ours = optimc.from_keras(keras.optimizers.AdamW(0.5, weight_decay=0.25))
    assert (ours.learning_rate, ours.weight_decay, ours.iterations) == (0.5, 0.25, 0)
    with pytest.raises(TypeError, match="expected an optimizer of keras"):
        optimc.from_keras(optimc.SGD())


@pytest.mark.parametrize("name,arguments,their_name,their_arguments", TORCH_CASES,
                         ids=[f"{row[0]}-{row[1]}" for row in TORCH_CASES])
def test_torch_optimizers_go_on(name, arguments, their_name, their_arguments):
    torch = require("torch")
    start, grads = problem(np.float64)
    params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    theirs = getattr(torch.optim, their_name)(params, **their_arguments)

    def step(g):
        for p, array in zip(params, g, strict=True):
            p.grad = torch.tensor(array)
        theirs.step()

    for g in grads[:5]:
        step(g)
    weights = [p.detach().numpy().copy() for p in params]
    ours = optimc.from_torch(theirs)
    assert type(ours) is classes[name]
    for g in grads[5:20]:
        step(g)
        ours.apply(g, weights)
    for w, p in zip(weights, params, strict=True):
        np.testing.assert_allclose(w, p.detach().numpy(), rtol=1e-7 if name == "ASGD" else 1e-10, atol=1e-12)


def test_torch_groups_come_over():
    torch = require("torch")
    start, grads = problem(np.float64)
    params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    theirs = torch.optim.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.5, "weight_decay": 0.1}],
                             lr=0.1, momentum=0.9)
    weights = [w.copy() for w in start]
    ours = optimc.from_torch(theirs)
    for g in grads[:10]:
        for p, array in zip(params, g, strict=True):
            p.grad = torch.tensor(array)
        theirs.step()
        ours.apply(g, weights)
    for w, p in zip(weights, params, strict=True):
        np.testing.assert_allclose(w, p.detach().numpy(), rtol=1e-12)


def test_torch_groups_bring_scalars_of_their_own():
    torch = require("torch")
    start, grads = problem(np.float64)
    params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    theirs = torch.optim.NAdam([{"params": params[:1]}, {"params": params[1:], "betas": (0.5, 0.9)}], lr=0.1)

    def step(g):
        for p, array in zip(params, g, strict=True):
            p.grad = torch.tensor(array)
        theirs.step()

    for g in grads[:3]:
        step(g)
    weights = [p.detach().numpy().copy() for p in params]
    ours = optimc.from_torch(theirs)
    for g in grads[3:8]:
        step(g)
        ours.apply(g, weights)
    for w, p in zip(weights, params, strict=True):
        np.testing.assert_allclose(w, p.detach().numpy(), rtol=1e-6)


STORAGES = [{}, {"state_dtype": "bfloat16", "seed": 3}, {"state_dtype": "int8"}, {"master_weights": False},
            {"master_weights": False, "stochastic_round": True}, {"state_dtype": {"exp_avg": "bfloat16"}}]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("ours", [False, True], ids=["torch", "optimc.torch"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_torch_optimizers_of_any_storage_go_on(dtype, ours, storage):
    """Those of `optimc.torch` bit for bit; those that round to nearest, as torch's own do, get masters."""
    torch, ml_dtypes = require("torch"), require("ml_dtypes")
    from torch_cases import halves, set_grads
    if (storage and not ours) or (dtype == "float16" and "stochastic_round" in storage):
        pytest.skip("no such optimizer")
    params = [*halves(getattr(torch, dtype)), torch.nn.Parameter(torch.randn(8, 16, 9, 5).to(
        getattr(torch, dtype)).to(memory_format=torch.channels_last))]
    theirs = (optimc.torch if ours else torch.optim).Adam([
        {"params": params[:2]}, {"params": params[2:], "lr": 0.01, **({"state_dtype": "bfloat16"} if ours else {})}],
        lr=0.1, eps=1e-3, **storage)                # torch's own of float16 divides by 0 with a small epsilon
    for step in range(4):
        set_grads(step, params)
        theirs.step()
    arrays = [p.detach().contiguous() for p in params]
    weights = [(array.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array.numpy()
                ).copy() for array in arrays]
    other = optimc.from_torch(theirs)
    if not ours:
        for p in params:
            p.data = p.data.float()
        theirs.load_state_dict(theirs.state_dict())
    for step in range(4, 8):
        set_grads(step, params)
        theirs.step()
        other.apply([p.grad.float().numpy() for p in params], weights)
    for p, w in zip(params, weights, strict=True):
        to_nearest = "master_weights" in storage and "stochastic_round" not in storage and dtype != "float32"
        if ours and p.is_contiguous() and not to_nearest:           # random numbers depend on the order of memory
            assert_same_bits(w.astype(np.float32), p.detach().float().numpy())
        else:
            np.testing.assert_allclose(w.astype(np.float32), p.detach().float().numpy(), rtol=0.05, atol=4e-3)


def test_torch_groups_of_other_storage_are_refused():
    torch = require("torch")
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    nearest = {"master_weights": False}
    at_random = {**nearest, "stochastic_round": True}
    for name, one, other, said in (("seed", {}, {"seed": 5}, "0, 5"),
                                   ("master_weights", {}, at_random, "True, False"),
                                   ("stochastic_round", nearest, at_random, "False, True")):
        theirs = optimc.torch.SGD([{"params": params[:1], **one}, {"params": params[1:], **other}], lr=0.1)
        with pytest.raises(ValueError, match=rf"parameter groups have different {name} \({said}\): optimc has one"):
            optimc.from_torch(theirs)


def test_what_has_no_counterpart_is_refused():
    torch = require("torch")
    p = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match="no optimizer like torch's LBFGS"):
        optimc.from_torch(torch.optim.LBFGS(p))
    late = torch.optim.Adam([p[0], q := torch.nn.Parameter(torch.zeros(2))])
    p[0].grad = torch.ones(2)
    late.step()
    with pytest.raises(ValueError, match=r"^parameter 1 has no state, and others have: optimc has one step count"):
        optimc.from_torch(late)
    q.grad = torch.ones(2)
    late.step()
    with pytest.raises(ValueError, match="different numbers of steps"):
        optimc.from_torch(late)
    assert CASES
    pair = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    pair.grad = torch.ones_like(pair)
    strange = torch.optim.SGD([p[0], pair], momentum=0.5)
    strange.step()
    with pytest.raises(TypeError, match=r"^parameter 1: expected float32, .* bfloat16 or float16, got complex64$"):
        optimc.from_torch(strange)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("make", ["Adam", "Nadam", "Yogi", "ASGD", "ScheduleFreeAdamW", "scheduled"])
def test_an_optimizer_of_optimc_keras_is_copied_too(make):
    keras = require("keras")
    ok = importlib.import_module("optimc.keras")
    rate = optimc.schedules.CosineDecay(0.5, 20)
    theirs = ok.SGD(rate, momentum=0.5) if make == "scheduled" else getattr(ok, make)(0.25, use_ema=True)
    rng = np.random.default_rng(0)
    variables = [keras.Variable(rng.normal(size=shape).astype("f")) for shape in ((4, 3), (3,))]
    grads = [[rng.normal(size=v.shape).astype("f") for v in variables] for _ in range(6)]
    for g in grads[:3]:
        theirs.apply([keras.ops.convert_to_tensor(one) for one in g], variables)
    ours, weights = optimc.from_keras(theirs), [np.array(v.value) for v in variables]
    assert type(ours) is getattr(optimc, "SGD" if make == "scheduled" else make) and ours.iterations == 3
    for g in grads[3:]:
        theirs.apply([keras.ops.convert_to_tensor(one) for one in g], variables)
        ours.apply(g, weights)
    for w, v in zip(weights, variables, strict=True):
        np.testing.assert_array_equal(w, np.asarray(v.value))
