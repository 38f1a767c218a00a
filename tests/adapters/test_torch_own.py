"""optimc's optimizers that torch lacks, as optimizers of torch: the bits of the class for arrays, torch's manners."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
from conftest import require
from torch_cases import ot, parameters, set_grads

import optimc
from optimc.base import narrow
from optimc.registry import classes
from optimc.torch_own import OWN, words

torch = require("torch")

ROWS_REFUSED = ("LARS", "Lamb")         # they look at whole weights


def choices(name):
    """The defaults, each flag turned, and other numbers with decay, in torch's words."""
    found = words(classes[name])
    turned = [{word.name: not word.default} for word in found if isinstance(word.default, bool)]
    numbers = {word.name: tuple(beta / 2 for beta in word.default) if isinstance(word.default, tuple) else
               word.default / 2 or 0.125 for word in found if not isinstance(word.default, bool)}
    return [{}, *turned, {**numbers, "weight_decay": 0.1}]


CASES = [(name, options) for name in OWN for options in choices(name)]
each_case = pytest.mark.parametrize("name,options", CASES, ids=[f"{name}-{options}" for name, options in CASES])
each_class = pytest.mark.parametrize("name", OWN)


def for_arrays(name, options, **more):
    """The optimizer of optimc with these options."""
    given = {}
    for key, value in options.items():
        ours = OWN[name].arguments[key]
        given |= dict(zip(ours, value, strict=True)) if isinstance(ours, tuple) else {ours: value}
    return classes[name](**given, **more)


def arrays(params):
    return [param.detach().numpy().copy() for param in params]


def assert_same(params, weights):
    assert all(np.array_equal(param.detach().numpy(), weight) for param, weight in zip(params, weights, strict=True))


@each_case
def test_the_bits_are_those_of_the_class_for_arrays(name, options):
    params = [*parameters(), *parameters(torch.float64)]
    weights, ours, theirs = arrays(params), getattr(ot, name)(params, **options), for_arrays(name, options)
    for step in range(6):
        set_grads(step, params)
        theirs.apply([param.grad.numpy() for param in params], weights)
        ours.step()
        assert_same(params, weights)
    for slot, key in OWN[name].slots.items():
        for param, array in zip(params, theirs.slots.get(slot, {}).values(), strict=False):
            assert np.array_equal(ours.state[param][key].numpy(), array)


@each_case
def test_from_torch_goes_on_with_the_same_bits(name, options):
    params = parameters()
    ours = getattr(ot, name)(params, **options)
    assert type(optimc.from_torch(ours)) is classes[name]
    for step in range(6):
        if step == 3:
            theirs, weights = optimc.from_torch(ours), arrays(params)
            assert theirs.iterations == 3
        set_grads(step, params)
        ours.step()
        if step >= 3:
            theirs.apply([param.grad.numpy() for param in params], weights)
            assert_same(params, weights)


def test_from_torch_takes_what_is_offloaded_and_refuses_averages():
    params = parameters()
    ours = ot.OffloadLion(params, lr=0.5)
    set_grads(0, params)
    ours.step()
    theirs, weights = optimc.from_torch(ours), arrays(params)
    set_grads(1, params)
    ours.step()
    theirs.apply([param.grad.numpy() for param in params], weights)
    assert_same(params, weights)
    free = ot.ScheduleFreeAdamW(params)
    free.eval()
    with pytest.raises(ValueError, match=r"^ScheduleFreeAdamW is in eval mode, .*: call train\(\) first"):
        optimc.from_torch(free)
    with pytest.raises(ValueError, match="optimc has no optimizer like torch's LBFGS, only ASGD, AdaBelief"):
        optimc.from_torch(torch.optim.LBFGS(params))


@each_class
def test_groups_schedulers_and_hooks(name):
    params, steps = parameters(), []
    first = "lr" if name != "Ftrl" else "beta"
    ours = getattr(ot, name)([{"params": params[:2], first: 0.5}, {"params": params[2:]}], lr=0.01)
    weights = arrays(params)
    theirs = for_arrays(name, {"lr": 0.01}, groups=[{"weights": [0, 1], OWN[name].arguments[first]: 0.5}])
    scheduler = torch.optim.lr_scheduler.StepLR(ours, 2, 0.5)
    ours.register_step_post_hook(lambda *_: steps.append(1))
    for step in range(5):
        set_grads(step, params)
        theirs.learning_rate = ours.param_groups[1]["lr"]
        if first == "lr":
            theirs.groups[0]["learning_rate"] = ours.param_groups[0]["lr"]
        theirs.apply([param.grad.numpy() for param in params], weights)
        assert ours.step(lambda: 3.0) == 3.0
        scheduler.step()
    assert_same(params, weights)
    assert len(steps) == 5 and isinstance(ours, torch.optim.Optimizer)


@each_case
@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_resume_is_exact(name, options, how):
    a = parameters()
    ours = getattr(ot, name)(a, **options)
    for step in range(3):
        set_grads(step, a)
        ours.step()
    if how == "torch.save":
        b, file = copy.deepcopy(a), io.BytesIO()
        torch.save(ours.state_dict(), file)
        file.seek(0)
        again = getattr(ot, name)(b, **options)
        again.load_state_dict(torch.load(file, weights_only=True))
    else:
        again, b = pickle.loads(pickle.dumps((ours, a)))
    for step in range(3, 6):
        set_grads(step, a, b)
        ours.step()
        again.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@each_class
def test_state_has_its_keys_and_shapes(name):
    params = parameters()
    ours = getattr(ot, name)(params)
    set_grads(0, params)
    ours.step()
    assert {key for param in params for key in ours.state[param]} == {"step", *OWN[name].slots.values()}
    assert all(ours.state[param]["step"].item() == 1 for param in params)
    set_grads(1, params)
    params[0].grad = None                           # it rests
    ours.step()
    assert [int(ours.state[param]["step"].item()) for param in params] == [1, *[2] * (len(params) - 1)]


@each_class
def test_sparse_gradients(name):
    p = torch.nn.Parameter(torch.randn(20, 3, generator=torch.Generator().manual_seed(1)))
    ours, weights, theirs = getattr(ot, name)([p]), arrays([p]), for_arrays(name, {})
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        indices = torch.randint(0, 9, (1, 7), generator=generator)
        with torch.sparse.check_sparse_tensor_invariants():
            p.grad = torch.sparse_coo_tensor(indices, torch.randn(7, 3, generator=generator), p.shape)
        if name in ROWS_REFUSED:
            with pytest.raises((TypeError, ValueError), match="grads"):
                ours.step()
            continue
        theirs.apply([optimc.Rows(indices[0].numpy(), p.grad._values().numpy())], weights)
        ours.step()
    assert_same([p], weights)


@each_class
def test_parameters_and_slots_of_fewer_bits(name):
    ml_dtypes = require("ml_dtypes")
    cls = classes[name]
    some = {slot: "bfloat16" for slot in OWN[name].slots if "bfloat16" in narrow.choices_of(cls(), slot)}
    for storage in ({}, some):
        params = parameters(torch.bfloat16, [(40, 30), (7,)])
        weights = [param.detach().float().numpy().astype(ml_dtypes.bfloat16) for param in params]
        ours = getattr(ot, name)(params, state_dtype={OWN[name].slots[slot]: word for slot, word in storage.items()})
        theirs = cls(state_dtype=storage)
        for step in range(4):
            set_grads(step, params)
            theirs.apply([param.grad.float().numpy() for param in params], weights)
            ours.step()
        for param, weight in zip(params, weights, strict=True):
            assert np.array_equal(param.detach().float().numpy(), weight.astype(np.float32))


@each_class
def test_arguments(name):
    param, cls = torch.nn.Parameter(torch.ones(3, 2)), getattr(ot, name)
    with pytest.raises(ValueError, match=r"^lr must be finite and"):
        cls([param], lr=-1.0)
    with pytest.raises(TypeError, match=rf"optimc.torch.{name} has no argument 'learning_rate': did you mean lr\?"):
        cls([param], learning_rate=0.1)
    for word in words(classes[name]):
        if isinstance(word.default, bool):
            with pytest.raises(TypeError, match=f"^{word.name} must be a bool"):
                cls([param], **{word.name: 3})
    signature = inspect.signature(cls)
    assert next(iter(signature.parameters)) == "params"
    assert signature.parameters["lr"].default == classes[name]._arguments["learning_rate"].default
    if "initial_accumulator_value" in signature.parameters:
        with pytest.raises(ValueError, match=r"^initial_accumulator_value"):
            cls([param], initial_accumulator_value=-1.0)


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.9, 0.9), None, "ab "])
def test_betas_are_a_tuple_of_the_right_length(betas):
    param = torch.nn.Parameter(torch.ones(3))
    for cls in (ot.Lion, ot.Adam):
        with pytest.raises(ValueError, match=r"^betas must be a tuple of 2 numbers, got"):
            cls([param]).add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "betas": betas})
        ours = cls([a := torch.nn.Parameter(torch.ones(3))])
        for count in (1, 2):
            a.grad = torch.ones(3)
            ours.step()
            before, ours.param_groups[0]["betas"] = a.detach().clone(), betas
            with pytest.raises(ValueError, match=r"^betas must be a tuple of 2 numbers, got"):
                ours.step()
            assert torch.equal(a, before) and ours.state[a]["step"] == count
            ours.param_groups[0]["betas"] = (0.9, 0.99)
    with pytest.raises(ValueError, match=r"^betas must be a tuple of 2 numbers, got"):
        ot.Lion([param], betas=betas)


@pytest.mark.parametrize("cls", [ot.Lion, ot.Adam])
def test_errors_of_groups_and_steps_are_in_torchs_words(cls):
    for kind, wrong in ((ValueError, {"lr": -1.0}), (TypeError, {"lr": "a"}), (ValueError, {"betas": (0.9, 2.0)})):
        param, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
        ours, key = cls([param]), next(iter(wrong))
        with pytest.raises(kind, match=f"^{key} must be"):
            ours.add_param_group({"params": [other], **wrong})
        param.grad = torch.ones(3)
        ours.step()
        before = param.detach().clone()
        ours.param_groups[0].update(wrong)
        with pytest.raises(kind, match=f"^{key} must be"):
            ours.step()
        assert torch.equal(param, before)


def test_parameters_that_no_step_takes():
    param = torch.nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(TypeError, match="on the CPU, once"):
        ot.Lion([param, param])
    with pytest.raises(TypeError, match="looks at whole parameters, and takes no DTensor and no complex"):
        ot.Lamb([torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    complex_one = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    free = ot.ScheduleFreeAdamW([complex_one], lr=0.1)
    for _ in range(3):
        complex_one.grad = torch.ones_like(complex_one)
        free.step()
    before = complex_one.detach().clone()
    free.eval()
    assert not torch.equal(complex_one, before)
    free.train()
    torch.testing.assert_close(complex_one.detach(), before)


def test_rows_of_parameters_in_another_order_are_refused():
    param = torch.nn.Parameter(torch.ones(3, 2).T)
    optimizer = ot.RowwiseAdagrad([param])
    param.grad = torch.ones(3, 2).T
    with pytest.raises(ValueError, match="expected a contiguous tensor"):
        optimizer.step()


# ------------------------------------------------------------------------------------ schedule-free

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_modes_of_schedule_free(dtype):
    params = parameters(dtype)
    ours, weights, theirs = ot.ScheduleFreeAdamW(params, lr=0.1), arrays(params), optimc.ScheduleFreeAdamW(0.1)
    for step in range(5):
        set_grads(step, params)
        theirs.apply([param.grad.numpy() for param in params], weights)
        ours.step()
    versions = [param._version for param in params]
    ours.eval()
    ours.eval()
    with theirs.averaged(weights):
        assert_same(params, weights)
    assert all(param._version > version for param, version in zip(params, versions, strict=True))
    with pytest.raises(RuntimeError, match=r"ScheduleFreeAdamW is not in train mode: call train\(\)"):
        ours.step()
    again = ot.ScheduleFreeAdamW(params, lr=0.1)
    again.load_state_dict(ours.state_dict())        # saved where validation was
    again.train()
    for param, weight in zip(params, weights, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), weight, rtol=1e-5, atol=1e-7)
    again.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_modes_of_schedule_free_in_16_bits(dtype):
    params = parameters(dtype)
    ours = ot.ScheduleFreeAdamW(params, lr=0.1)
    for step in range(5):
        set_grads(step, params)
        ours.step()
    before = [param.clone() for param in params]
    ours.eval()
    assert any(not torch.equal(p, q) for p, q in zip(params, before, strict=True))
    ours.train()                                    # the masters keep what a parameter lacks
    assert all(((p - q).abs() <= q.abs() * 2 ** -7).all() for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_modes_of_a_parameter_with_gaps_lose_nothing(dtype):
    whole = parameters(dtype, [(6, 4)])
    gapped = [torch.zeros(6, 8, dtype=dtype)[:, ::2].requires_grad_()]
    gapped[0].detach().copy_(whole[0].detach())
    ours, theirs = ot.ScheduleFreeAdamW(gapped, lr=0.1), ot.ScheduleFreeAdamW(whole, lr=0.1)
    for step in range(4):
        set_grads(step, whole, gapped)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.eval()
        assert torch.equal(gapped[0], whole[0])
        for optimizer in (ours, theirs):
            optimizer.train()
        assert torch.equal(gapped[0], whole[0])
        assert torch.equal(ours.state[gapped[0]]["master_param"], theirs.state[whole[0]]["master_param"])
