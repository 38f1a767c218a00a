"""optimc.torch.Muon beside torch.optim.Muon: equal to the rounding of bfloat16, and with its state."""

import copy
import inspect

import pytest
from conftest import require
from torch_cases import parameters, set_grads

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
if not hasattr(torch.optim, "Muon"):
    pytest.skip("this torch has no Muon", allow_module_level=True)
from optimc.torch import muon  # noqa: E402

SHAPES = [(6, 4), (4, 6), (12, 3), (1, 5)]
OPTIONS = [{}, {"nesterov": False, "weight_decay": 0.0}, {"adjust_lr_fn": "match_rms_adamw", "momentum": 0.5},
           {"adjust_lr_fn": "original", "ns_steps": 3, "eps": 1e-3}, {"ns_coefficients": (3.0, -4.0, 1.5)}]


@pytest.mark.parametrize("fast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_those_of_torch(monkeypatch, options, dtype, fast):
    if dtype == torch.bfloat16 and not options.get("nesterov", True):
        pytest.skip("torch 2.13 normalises the momentum itself here, in place")
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda: fast)
    a, b = parameters(dtype, SHAPES), parameters(dtype, SHAPES)
    ours, theirs = ot.Muon(a, lr=0.01, **options), torch.optim.Muon(b, lr=0.01, **options)
    for step in range(4):
        set_grads(step, a, b)
        assert ours.step(lambda: 2.0) == 2.0
        theirs.step()
    for p, q in zip(a, b, strict=True):
        if fast:
            assert torch.equal(p, q)
        assert (p - q).abs().max() <= 4 * 0.01 * 2 ** -5
        assert torch.equal(ours.state[p]["momentum_buffer"], theirs.state[q]["momentum_buffer"])
    assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]


def test_products_in_float32_are_as_exact(monkeypatch):
    g = torch.randn(40, 90, generator=torch.Generator().manual_seed(0))
    exact = g.double() / g.double().norm()
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        gram = exact @ exact.T
        exact = a * exact + (b * gram + c * gram @ gram) @ exact
    errors = []
    for fast in (False, True):
        monkeypatch.setattr(muon, "multiplies_bfloat16", lambda fast=fast: fast)
        errors.append((muon.orthogonal(g, (a, b, c), 5, 1e-7).double() - exact).norm().item())
    assert errors[0] <= 1.1 * errors[1]


def test_state_goes_both_ways_and_resumes_exactly():
    a = parameters(shapes=SHAPES)
    ours = ot.Muon(a, lr=0.01)
    for step in range(3):
        set_grads(step, a)
        ours.step()
    b = copy.deepcopy(a)
    theirs = torch.optim.Muon(copy.deepcopy(a), lr=0.01)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))        # torch would share its tensors
    again = ot.Muon(b, lr=0.01)
    again.load_state_dict(theirs.state_dict())
    for step in range(3, 6):
        set_grads(step, a, b)
        ours.step()
        again.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "advice"), [
    ("state_dtype", ": its state is torch's"), ("learning_rate", r": did you mean lr\?"), ("zzz", "")])
def test_arguments_that_it_lacks(name, advice):
    with pytest.raises(TypeError, match=rf"^optimc.torch.Muon has no argument '{name}'{advice}$"):
        ot.Muon(parameters(shapes=SHAPES), **{name: 1})
    assert inspect.signature(ot.Muon) == inspect.signature(torch.optim.Muon)


def test_an_error_changes_nothing():
    a = parameters(shapes=SHAPES)
    ours, before = ot.Muon(a, lr=0.01), copy.deepcopy(a)
    set_grads(0, a)
    a[-1].grad = a[-1].grad.to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        ours.step()
    ours.param_groups[0]["ns_steps"] = 100
    with pytest.raises(ValueError, match="less than 100"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True)) and not ours.state
    with pytest.raises(ValueError, match="only supports 2D parameters"):
        ot.Muon(parameters(shapes=[(3,)]))
