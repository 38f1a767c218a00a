"""optimc.torch hands to torch's own implementation what it does not step itself, and steps around torch.compile."""

import copy
import warnings

import pytest
from conftest import require
from torch_cases import OPTIONS, both, close, each_class, parameters, set_grads

torch = require("torch")
ot = pytest.importorskip("optimc.torch")


class Elsewhere(torch.Tensor):
    """A parameter that says it is on an accelerator."""

    device = property(lambda self: torch.device("cuda", 1))


def pretend(values):
    return values.detach().clone().as_subclass(Elsewhere).requires_grad_()


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "ASGD"])      # it makes tensors on the device
@pytest.mark.filterwarnings("ignore:optimc.torch")
def test_parameters_elsewhere_step_as_torchs(name):
    a, b = parameters(), parameters()
    a[1], a[3] = pretend(a[1]), pretend(a[3])
    ours = getattr(ot, name)([{"params": a[:2]}, {"params": a[2:], "lr": 0.02}], lr=0.01)
    theirs = getattr(torch.optim, name)([{"params": b[:2]}, {"params": b[2:], "lr": 0.02}], lr=0.01)
    for step in range(6):
        set_grads(step, a, b)
        if step == 2:
            a[3].grad = b[3].grad = a[0].grad = b[0].grad = None
        ours.step()
        theirs.step()
        close(a, b)
    assert torch.equal(a[1], b[1]) and torch.equal(a[3], b[3])
    for p, q in zip(a, b, strict=True):
        assert ours.state[p].keys() == theirs.state[q].keys()


def test_one_warning_names_the_device():
    p = pretend(torch.ones(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = ot.Adam([p, torch.nn.Parameter(torch.ones(2, device="meta"))])
        for _ in range(3):
            p.grad = torch.ones(3)
            ours.step()
    assert len(caught) == 1 and "steps the parameters on cuda:1, without state_dtype" in str(caught[0].message)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "Adafactor"])      # which has no such argument
def test_a_differentiable_step_is_torchs(name):
    found = []
    for module in (ot, torch.optim):
        x = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
        p = torch.ones(4, 3, requires_grad=True).clone()
        optimizer = getattr(module, name)([p], lr=0.1, differentiable=True)
        p.grad = 2 * x
        optimizer.step()
        (p ** 2).sum().backward()
        found.append((p, x.grad, sorted(optimizer.state[p])))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_state_of_torchs_own_implementation_is_loaded_as_torch_does(name):
    (a, ours), (b, theirs) = both(name, {"lr": 0.1})
    for optimizer, params in ((ours, a), (theirs, b)):
        optimizer.param_groups[0]["differentiable"] = True
        set_grads(0, params)
        with torch.no_grad():
            optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(a, b, strict=True):
        for key, value in theirs.state[q].items():
            mine = ours.state[p][key]
            assert type(mine) is type(value) and (not isinstance(value, torch.Tensor) or mine.dtype == value.dtype)


def test_a_group_may_become_differentiable_and_back():
    (a, ours), (b, theirs) = both("Adam", {"lr": 0.01})
    for step in range(6):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["differentiable"] = step in (2, 3)
        set_grads(step, a, b)
        with torch.no_grad():
            ours.step()
            theirs.step()
        close(a, b)
    assert ours.state[a[0]]["step"] == 6


def test_storage_is_refused_where_torch_steps():
    p = torch.nn.Parameter(torch.ones(2))
    for key in ("differentiable", "capturable"):
        with pytest.raises(ValueError, match=f"{key}=True is torch's own implementation, which has no state_dtype"):
            ot.Adam([p], state_dtype="bfloat16", **{key: True})
    ours = ot.Adam([p], capturable=True)
    p.grad = torch.ones(2)
    with pytest.raises(AssertionError, match="capturable"):
        ours.step()


@pytest.mark.parametrize("change", [
    lambda group: group.update(differentiable=True), lambda group: group["params"].append(group["params"][0])])
def test_storage_is_refused_where_a_group_becomes_torchs(change):
    p = torch.nn.Parameter(torch.ones(5000))
    ours = ot.Adam([p], state_dtype="int8")
    p.grad = torch.ones(5000)
    ours.step()
    before = p.detach().clone()
    change(ours.param_groups[0])
    for _ in range(2):
        with pytest.raises(ValueError, match="is torch's own implementation, which has no state_dtype"):
            ours.step()
    assert torch.equal(p, before) and ours.state[p]["step"] == 1
    ours.param_groups[0].update(differentiable=False, params=[p])
    ours.step()
    assert ours.state[p]["step"] == 2


def test_parameters_on_meta_are_refused_at_the_step_only_if_torch_does():
    far, near = (torch.nn.Parameter(torch.ones(2, device=device)) for device in ("meta", "cpu"))
    ours = ot.Adam([far, near], lr=0.1)
    far.grad, near.grad = torch.ones(2, device="meta"), torch.ones(2)
    ours.step()
    assert (near - 0.9).abs().max() < 1e-6 and ours.state[far]["exp_avg"].is_meta
    before = near.detach().clone()
    ours = ot.Adam([far, near], lr=0.1, fused=True)
    with pytest.raises(RuntimeError, match="`fused=True` requires all the params"):
        ours.step()
    assert torch.equal(near, before)


@each_class
def test_a_gradient_scaler_scales_in_the_step_only_where_torchs_does(name):
    for options in ({}, {"fused": True}) if name in ("SGD", "Adam", "AdamW", "Adagrad") else ({},):
        (a, ours), (b, theirs) = both(name, {"lr": 0.01, **options})
        assert hasattr(ours, "_step_supports_amp_scaling") == hasattr(theirs, "_step_supports_amp_scaling")
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(4):
            set_grads(step, a, b)
            for p in a:
                p.grad *= 8
            if step == 2:
                a[0].grad[0, 0] = float("inf")
            else:
                theirs.step()
            scaler.scale(torch.zeros(()))
            scaler.step(ours)
            scaler.update(8.0)
            close(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")    # dynamo looks at it
def test_a_compiled_program_steps():
    (a, ours), (b, theirs) = both("AdamW", {"lr": 0.01})

    def train():
        ours.zero_grad()
        loss = sum((p ** 2).sum() for p in a)
        loss.backward()
        ours.step()
        return loss

    compiled = [torch.compile(function, backend="eager") for function in (train, ours.step, lambda: ours.step())]
    for step in range(9):
        for p in b:
            p.grad = 2 * p.detach()
        if step % 3:
            for p in a:
                p.grad = 2 * p.detach()
        compiled[step % 3]()
        theirs.step()
        close(a, b)
