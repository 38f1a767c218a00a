"""optimc.torch.Adafactor beside torch's: any memory layout, resting parameters, states in both directions."""

import copy

import numpy as np
import pytest
from torch_cases import ot, torch

if not hasattr(torch.optim, "Adafactor"):
    pytest.skip("this torch has no Adafactor", allow_module_level=True)

SHAPES = [(10, 7), (7,), (), (4, 3, 5, 6), (2, 3, 4), (1, 5), (5, 1), (100, 70), (3000,)]
OPTIONS = [{}, {"weight_decay": 0.1, "eps": (1e-2, 0.5), "d": 2.0},
           {"lr": 0.5, "beta2_decay": -0.3, "maximize": True}]
BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-12}


def parameters(dtype):
    """Plain ones, one in channels-last order, a transposed one, one with gaps."""
    generator = torch.Generator().manual_seed(0)

    def filled(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    return [torch.nn.Parameter(tensor) for tensor in (
        *(filled(*shape) for shape in SHAPES), filled(4, 3, 5, 6).contiguous(memory_format=torch.channels_last),
        filled(20, 10).T, filled(20, 10, 2)[..., 0])]


def set_grads(step, a, b, rests=False):
    generator = torch.Generator().manual_seed(step)
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * (1e-4 if step % 3 else 1)
        p.grad, q.grad = (None, None) if rests and (step + i) % 3 == 0 else (grad.clone(), grad)


def assert_close(mine, other):
    assert mine.shape == other.shape and mine.dtype == other.dtype
    assert (mine - other).abs().max() <= BOUNDS[mine.dtype] * other.abs().max()


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize("rests", [False, True], ids=["all", "some rest"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_fifty_steps_are_torchs(dtype, options, rests, foreach):
    a, b = parameters(dtype), parameters(dtype)
    ours, theirs = ot.Adafactor(a, **options), torch.optim.Adafactor(b, **options, foreach=foreach)
    for step in range(50):
        set_grads(step, a, b, rests)
        ours.step()
        theirs.step()
        if step == 30:
            mine, other = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
            ours.load_state_dict(other)
            theirs.load_state_dict(mine)
    for p, q in zip(a, b, strict=True):
        assert_close(p.detach(), q.detach())
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            assert_close(ours.state[p][key], value)


def test_parameters_of_16_bits_are_stepped_in_float32():
    for dtype in (torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(0)
        a = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((10, 7), (7,))]
        b = [torch.nn.Parameter(p.detach().float()) for p in a]
        ours, theirs = ot.Adafactor(a, lr=0.1), torch.optim.Adafactor(b, lr=0.1)
        for step in range(20):
            for i, (p, q) in enumerate(zip(a, b, strict=True)):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i)).to(dtype)
                q.grad = p.grad.float()
            ours.step()
            theirs.step()
        for p, q in zip(a, b, strict=True):
            np.testing.assert_allclose(p.detach().float(), q.detach().to(dtype).float(), rtol=1e-2, atol=1e-5)
            assert ours.state[p]["variance" if p.dim() < 2 else "row_var"].dtype == torch.float32


def test_a_program_may_move_and_replace_the_state():
    (a, b), steps = (parameters(torch.float32)[:3] for _ in range(2)), iter(range(100))
    ours, theirs = ot.Adafactor(a), torch.optim.Adafactor(b)

    def step():
        set_grads(next(steps), a, b)
        ours.step()
        theirs.step()
        for p, q in zip(a, b, strict=True):
            assert_close(p.detach(), q.detach())

    step()
    step()
    assert ours._cohorts.turn.step is not None          # matrices and vectors are one call
    for optimizer, param in ((ours, a[0]), (theirs, b[0])):
        optimizer.state[param]["row_var"] = optimizer.state[param]["row_var"] * 4
        optimizer.state[param]["col_var"].mul_(2)
    step()
    ours.state[a[0]]["row_var"].data = ours.state[a[0]]["row_var"].detach().clone()
    step()
    step()
    assert ours.state[a[0]]["row_var"].shape == (10, 1) and ours.state[a[0]]["col_var"].shape == (1, 7)


@pytest.mark.parametrize("key,shape", [("row_var", (10,)), ("col_var", (7,)), ("row_var", (1, 7))])
def test_a_state_of_another_shape_is_refused(key, shape):
    a, b = (parameters(torch.float32)[:1] for _ in range(2))
    ours, theirs = ot.Adafactor(a), torch.optim.Adafactor(b)
    set_grads(0, a, b)
    theirs.step()
    state = theirs.state_dict()
    state["state"][0][key] = torch.ones(shape)
    with pytest.raises(ValueError, match=f"^loaded state '{key}' of parameter 0: expected shape"):
        ours.load_state_dict(state)
    ours.step()
    ours.state[a[0]][key] = torch.ones(shape)
    before = a[0].detach().clone()
    with pytest.raises(ValueError, match=rf"^params\[0\]: state '{key}': expected shape"):
        ours.step()
    assert torch.equal(before, a[0])


def test_what_torch_refuses_is_refused():
    param = torch.nn.Parameter(torch.ones(4, 3))
    ours = ot.Adafactor([param])
    param.grad = torch.ones(4, 3).to_sparse(1)
    with pytest.raises(ValueError, match=r"looks at the whole weight, and takes no rows"):
        ours.step()
    with pytest.raises(ValueError, match="the slot 'row_var' of Adafactor must stay float32"):
        ot.Adafactor([param], state_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"^eps must be a tuple of 2 numbers, got 0.1"):
        ours.param_groups[0]["eps"] = 0.1
        ours.step()
    assert bool((param == 1).all())


def test_epsilons_are_read_at_every_step():
    a, b = (parameters(torch.float32)[:3] for _ in range(2))
    ours, theirs = ot.Adafactor(a, eps=(1e-3, 1e-3)), torch.optim.Adafactor(b, eps=(1e-3, 1e-3))
    for step, eps in enumerate([(None, 1e-3), (1.0, 0.5), (None, 0.2), (0.0, 0.2)]):
        set_grads(step, a, b)
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["eps"] = eps
            optimizer.step()
        for p, q in zip(a, b, strict=True):
            assert_close(p.detach(), q.detach())
