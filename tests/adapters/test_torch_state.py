"""optimc.torch beside torch.optim: the same training, the same state, and right where torch 2.13's fused is not."""

import collections
import copy
import io
import pickle

import numpy as np
import pytest
from conftest import require

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
tensors = pytest.importorskip("optimc.torch.tensors")

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
    "Adamax": [{}, {"weight_decay": 0.1}],
    "NAdam": [{}, {"momentum_decay": 0.1, "weight_decay": 0.1},
              {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "Rprop": [{}, {"etas": (0.6, 1.3), "step_sizes": (1e-4, 0.1)}],
    "ASGD": [{}, {"lambd": 0.1, "alpha": 0.5, "t0": 5, "weight_decay": 0.1}],
}
CASES = [(name, options) for name, rows in OPTIONS.items() for options in rows]
each_class = pytest.mark.parametrize("name", ot.__all__)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each_case
def test_training_with_a_scheduler(name, options, dtype):
    (a, ours), (b, theirs) = both(name, options, dtype)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in (ours, theirs)]
    for step in range(25):
        set_grads(step, a, b)
        for optimizer, scheduler in zip((ours, theirs), schedulers, strict=True):
            optimizer.step()
            scheduler.step()
    close(a, b, 2e-5 if dtype == torch.float32 or name == "ASGD" else 1e-9)


@each_case
def test_state_goes_both_ways(name, options):
    """Ours -> theirs and theirs -> ours in the middle of training; both go on as if nothing had happened."""
    (a, ours), (b, theirs) = both(name, options)
    for step in range(7):
        set_grads(step, a, b)
        ours.step()
        theirs.step()
    to_theirs = getattr(torch.optim, name)(c := copy.deepcopy(a), **options)
    to_theirs.load_state_dict(copy.deepcopy(ours.state_dict()))         # torch would share its tensors
    to_ours = getattr(ot, name)(d := copy.deepcopy(b), **options)
    to_ours.load_state_dict(theirs.state_dict())
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == other["param_groups"]
    assert {k: set(v) for k, v in mine["state"].items()} == {k: set(v) for k, v in other["state"].items()}
    for k in mine["state"]:
        for key, value in mine["state"][k].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, other["state"][k][key], rtol=1e-4, atol=1e-5)
    for step in range(7, 14):
        set_grads(step, a, b, c, d)
        for optimizer in (ours, theirs, to_theirs, to_ours):
            optimizer.step()
    close(a, b)
    close(c, b)
    close(d, b)


@each_case
@pytest.mark.parametrize("how", ["state_dict", "torch.save", "pickle", "deepcopy"])
def test_resume_is_exact(name, options, how):
    a = parameters()
    ours = getattr(ot, name)(a, **options)
    for step in range(5):
        set_grads(step, a)
        ours.step()
    if how in ("pickle", "deepcopy"):
        ours.held = a
        twin = pickle.loads(pickle.dumps((ours, a))) if how == "pickle" else copy.deepcopy((ours, a))
        again, b = twin
    else:
        b = copy.deepcopy(a)
        again = getattr(ot, name)(b, **options)
        state = ours.state_dict()
        if how == "torch.save":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        again.load_state_dict(state)
    for step in range(5, 10):
        set_grads(step, a, b)
        ours.step()
        again.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@each_class
def test_late_and_missing_gradients(name):
    (a, ours), (b, theirs) = both(name, {"lr": 0.01})
    for step in range(12):
        set_grads(step, a, b)
        for i in range(len(a)):
            if (i == 1 and step < 4) or (i == 2 and step % 3 == 1) or i == 4:
                a[i].grad = b[i].grad = None
        ours.step()
        theirs.step()
        close(a, b)
    for p, q in zip(a, b, strict=True):
        mine, other = ours.state[p], theirs.state[q]
        assert mine.get("step", 0) == other.get("step", 0)
    before = [p.detach().clone() for p in a]
    ours.zero_grad()
    ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))


@each_class
def test_groups(name):
    (a, _), (b, _) = both(name, {})
    ours = getattr(ot, name)([{"params": a[:2], "lr": 0.5}, {"params": a[2:3]}], lr=0.01)
    theirs = getattr(torch.optim, name)([{"params": b[:2], "lr": 0.5}, {"params": b[2:3]}], lr=0.01)
    for step in range(8):
        set_grads(step, a, b)
        if step == 3:
            for optimizer, params in ((ours, a), (theirs, b)):
                optimizer.add_param_group({"params": params[3:], "lr": 0.1})
        if step == 5:
            ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 0.25
        ours.step()
        theirs.step()
        close(a, b)


def test_flags_may_change_between_steps():
    (a, ours), (b, theirs) = both("SGD", {"lr": 0.1})
    for step in range(6):
        set_grads(step, a, b)
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["momentum"] = 0.9 if step >= 2 else 0.0
            optimizer.param_groups[0]["maximize"] = step >= 4
        ours.step()
        theirs.step()
        close(a, b)


def test_a_tensor_for_a_rate():
    (a, ours), (b, theirs) = both("Adam", {"lr": torch.tensor(0.01)})
    set_grads(0, a, b)
    ours.step()
    theirs.step()
    close(a, b)


def test_closures_and_hooks():
    from torch.optim.optimizer import register_optimizer_step_post_hook
    calls = []
    a = parameters()
    ours = ot.SGD(a, lr=0.1)

    def closure():
        assert torch.is_grad_enabled()
        ours.zero_grad()
        loss = sum((p ** 2).sum() for p in a)
        loss.backward()
        return loss

    handles = [ours.register_step_pre_hook(lambda *_: calls.append("pre")),
               ours.register_step_post_hook(lambda *_: calls.append("post")),
               register_optimizer_step_post_hook(lambda *_: calls.append("all"))]
    before = [p.detach().clone() for p in a]
    loss = ours.step(closure)
    assert calls == ["pre", "post", "all"] and loss.item() > 0
    for p, q in zip(a, before, strict=True):
        torch.testing.assert_close(p, q - 0.2 * q)
    for handle in handles:
        handle.remove()
    assert ours.step(closure) < loss
    with torch.profiler.profile() as profile:
        ours.step()
    assert any("Optimizer.step#SGD.step" in event.name for event in profile.events())


def test_a_stale_backward_is_an_error():
    w = torch.nn.Parameter(torch.ones(3))
    loss = (w ** 2).sum() * w.sum()
    w.grad = torch.ones(3)
    ot.Adam([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_class
def test_memory_is_read_afresh(name):
    (a, ours), (b, theirs) = both(name, {"lr": 0.01})
    for step in range(8):
        if step == 4:
            for p in a:
                p.data = p.data.clone()
        set_grads(step, a, b)
        ours.step()
        theirs.step()
    close(a, b)


@each_class
def test_gradients_of_other_strides_are_paired_rightly(name):
    start = torch.randn(33, 47, generator=torch.Generator().manual_seed(1))
    grad = torch.randn(47, 33, generator=torch.Generator().manual_seed(2)).T
    results = []
    for g in (grad, grad.contiguous()):
        p = torch.nn.Parameter(start.clone())
        p.grad = g
        getattr(ot, name)([p], lr=0.1).step()
        results.append(p.detach())
    assert torch.equal(*results)


@each_class
def test_channels_last_and_other_dense_layouts(name):
    start = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    layouts = [start.clone(), start.clone().to(memory_format=torch.channels_last), start.permute(3, 1, 0, 2)
               .contiguous().permute(2, 1, 3, 0)]
    results = []
    for layout in layouts:
        p = torch.nn.Parameter(layout)
        optimizer = getattr(ot, name)([p], lr=0.01)
        for seed in range(3):
            p.grad = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
        results.append(p.detach().contiguous())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_wrong_state_is_refused_before_anything_changes():
    a = parameters()
    ours = ot.Adam(a, lr=0.1)
    set_grads(0, a)
    ours.step()
    state = copy.deepcopy(ours.state_dict())
    state["state"][0]["exp_avg"] = torch.zeros(2)
    before, kept = [p.detach().clone() for p in a], copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=r"loaded state 'exp_avg' of parameter 0: expected shape \(10, 7\), got"):
        ours.load_state_dict(state)
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))
    assert all(torch.equal(kept["state"][0][k], v) for k, v in ours.state_dict()["state"][0].items())
    ours.state[a[1]]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"state 'exp_avg' of a parameter: expected shape \(7,\)"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))


def start_over(optimizer, params):
    """What a user who knows torch's state does to begin anew with a parameter."""
    state, first = optimizer.state[params[0]], {"mu_product": 1.0, "mu": 1.0, "eta": optimizer.param_groups[0]["lr"]}
    for key, value in state.items():
        if value is not None:
            state[key] = torch.full_like(value, first.get(key, 0.0))


EDITS = {
    "clear": lambda optimizer, params: optimizer.state.clear(),
    "pop": lambda optimizer, params: optimizer.state.pop(params[0], None),
    "delete": lambda optimizer, params: [optimizer.state.__delitem__(p) for p in params if p in optimizer.state],
    "set": lambda optimizer, params: optimizer.state.__setitem__(params[0], {}),
    "update": lambda optimizer, params: optimizer.state.update({params[0]: {}}),
    "replace": lambda optimizer, params: setattr(optimizer, "state", collections.defaultdict(dict)),
    "empty": lambda optimizer, params: optimizer.state[params[0]].clear(),
    "start over": start_over,
}


@pytest.mark.parametrize("edit", EDITS)
@each_case
def test_state_may_be_taken_away(name, options, edit):
    if name == "Adagrad" and edit != "start over":
        pytest.skip("torch makes the state of Adagrad in its constructor only")
    (a, ours), (b, theirs) = both(name, options)
    for step in range(7):
        set_grads(step, a, b)
        if step == 4:
            for optimizer, params in ((ours, a), (theirs, b)):
                EDITS[edit](optimizer, params)
        ours.step()
        theirs.step()
        close(a, b)
    mine, other = ours.state_dict()["state"], theirs.state_dict()["state"]
    for i, state in other.items():
        assert {key for key, value in state.items() if value is not None} <= set(mine[i])
        if "step" in state:
            assert float(mine[i]["step"]) == float(state["step"])
    twin = type(theirs)(b, **options)
    twin.load_state_dict(ours.state_dict())
    set_grads(9, a, b)
    ours.step()
    twin.step()


@each_case
def test_state_may_be_looked_at_in_inference_mode(name, options):
    (a, ours), (b, theirs) = both(name, options)
    for step in range(6):
        set_grads(step, a, b)
        if step in (2, 4):
            with torch.inference_mode():
                ours.load_state_dict(ours.state_dict())
                assert {*theirs.state[b[0]]} <= {*ours.state[a[0]]}
        ours.step()
        theirs.step()
        close(a, b)
    ours.state_dict()
    copy.deepcopy(ours).step()


@each_case
def test_state_may_be_handed_over(name, options):
    (a, ours), (b, theirs) = both(name, options)
    for step in range(6):
        set_grads(step, a, b)
        if step in (2, 4):
            before, (ours, theirs) = (ours, theirs), (getattr(ot, name)(a, **options), type(theirs)(b, **options))
            ours.state = before[0].state if step == 2 else collections.defaultdict(dict, before[0].state)
            theirs.state = before[1].state
        ours.step()
        theirs.step()
        close(a, b)
    assert {*theirs.state[b[0]]} <= {*dict(ours.state).get(a[0], {})}


def test_what_state_dict_gives_is_the_state():
    (a, ours), (b, theirs) = both("Adam", {})
    for step in range(3):
        set_grads(step, a, b)
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.state_dict()["state"][0]["exp_avg"] = torch.ones_like(a[0])
            optimizer.state_dict()["state"][1]["step"].fill_(7)
    close(a, b)


def test_a_group_that_is_refused_is_not_added():
    params = [torch.nn.Parameter(torch.ones(2))]
    ours = ot.Adam(params)
    with pytest.raises(TypeError, match=r"expected float32 or float64, got torch\.float16"):
        ours.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, dtype=torch.float16))]})
    assert len(ours.param_groups) == 1
    params[0].grad = torch.ones(2)
    ours.step()


def grow(optimizer, params):
    optimizer.param_groups[0]["params"].append(params[-1])


def swap(optimizer, params):
    optimizer.param_groups[0]["params"][0] = params[-1]


def shrink(optimizer, params):
    optimizer.param_groups[0]["params"] = params[1:2]


def drop_group(optimizer, params):
    del optimizer.param_groups[1]


@pytest.mark.parametrize("change", [grow, swap, shrink, drop_group])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_groups_may_be_edited_between_steps(name, change):
    lists = parameters(), parameters()
    optimizers = [getattr(module, name)([{"params": list(params[:2])}, {"params": [params[2]], "lr": 0.5}], lr=0.1)
                  for module, params in zip((ot, torch.optim), lists, strict=True)]
    for step in range(6):
        set_grads(step, *lists)
        for optimizer, params in zip(optimizers, lists, strict=True):
            if step == 3:
                change(optimizer, params)
            optimizer.step()
        close(*lists)


def test_a_state_dict_that_is_kept_follows_the_optimizer():
    (a, ours), (b, theirs) = both("Adam", {"lr": 0.1})
    kept = []
    for step in range(5):
        set_grads(step, a, b)
        for optimizer in (ours, theirs):
            optimizer.step()
            if step == 1:
                kept.append(optimizer.state_dict())
    for optimizer, state in zip((ours, theirs), kept, strict=True):
        optimizer.load_state_dict(state)
        optimizer.step()
    close(a, b)
    assert float(ours.state[a[0]]["step"]) == float(theirs.state[b[0]]["step"]) == 6


def test_the_state_can_be_copied():
    (a, ours), _ = both("Adam", {})
    set_grads(0, a)
    ours.step()
    for copied in (copy.copy(ours.state), ours.state.copy(), ours.state | {}, {} | ours.state):
        assert copied[a[0]]["exp_avg"] is ours.state[a[0]]["exp_avg"]
    for deep in (copy.deepcopy(ours.state), pickle.loads(pickle.dumps(ours.state))):
        assert [float(state["step"]) for state in deep.values()] == [1.0] * len(a)


@pytest.mark.parametrize("name, change", [
    ("SGD", lambda p: p.data.double()), ("SGD", lambda p: p.data[:2].clone()),
    ("Adam", lambda p: p.data.to(memory_format=torch.channels_last)),
    ("SGD", lambda p: p.data.to(memory_format=torch.channels_last))])
def test_a_parameter_may_change_its_form(name, change):
    lists = parameters(shapes=[(4, 3, 5, 6)]), parameters(shapes=[(4, 3, 5, 6)])
    optimizers = [getattr(module, name)(params, lr=0.1)
                  for module, params in zip((ot, torch.optim), lists, strict=True)]
    for step in range(4):
        if step == 2:
            for (p,) in lists:
                p.grad = None
                p.data = change(p)
        set_grads(step, *lists)
        for optimizer in optimizers:
            optimizer.step()
        close(*lists)


def test_state_may_be_edited_between_steps():
    (a, ours), (b, theirs) = both("Adam", {"lr": 0.01})
    for step in range(6):
        set_grads(step, a, b)
        if step == 3:
            for optimizer, params in ((ours, a), (theirs, b)):
                optimizer.state[params[0]]["exp_avg"] = torch.full((10, 7), 0.5)
                optimizer.state[params[1]]["exp_avg_sq"].mul_(2)
        ours.step()
        theirs.step()
        close(a, b)


def test_gradient_scaling():
    """Steps that overflow are skipped, the first one too; momentum starts at its first real step."""
    results = []
    for module in (ot, torch.optim):
        p = torch.nn.Parameter(torch.ones(4))
        optimizer = module.SGD([p], lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        for step in range(6):
            optimizer.zero_grad()
            factor = float("inf") if step in (0, 3) else 1.0
            scaler.scale((p * (step + 1) * factor).sum()).backward()
            if step == 4:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append((p.detach(), scaler.get_scale()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    assert results[0][1] == results[1][1]


def test_bad_parameters_and_arguments():
    p = torch.nn.Parameter(torch.ones(2))
    for bad, error, message in [
            (torch.ones(2, dtype=torch.float16), TypeError, "expected float32 or float64, got torch.float16"),
            (torch.ones(2, dtype=torch.bfloat16), TypeError, "got torch.bfloat16"),
            (torch.ones(2, device="meta"), TypeError, "expected a tensor on the CPU, got one on meta"),
            (torch.ones(2, 2).to_sparse(), TypeError, "expected a dense tensor")]:
        with pytest.raises(error, match=message):
            ot.SGD([bad.requires_grad_()], lr=0.1)
        ours = ot.SGD([p], lr=0.1)
        with pytest.raises(error, match=message):
            ours.add_param_group({"params": [bad.requires_grad_()]})
    for arguments in ({"lr": -1.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"lr": 0.1, "nesterov": True},
                      {"lr": 0.1, "weight_decay": -1.0}, {"lr": 0.1, "differentiable": True}):
        with pytest.raises(ValueError):
            ot.SGD([p], **arguments)
    with pytest.raises(ValueError, match="capturable"):
        ot.Adam([p], capturable=True)
    with pytest.raises(ValueError, match="beta"):
        ot.Adam([p], betas=(1.0, 0.9))
    with pytest.raises(ValueError, match="empty parameter list"):
        ot.Adam([])


def test_bad_gradients_change_nothing():
    a = parameters(shapes=[(3,), (4,)])
    ours = ot.Adam(a, lr=0.1)
    set_grads(0, a)
    ours.step()
    before, state = [p.detach().clone() for p in a], copy.deepcopy(ours.state_dict())
    a[0].grad = torch.ones(3)
    a[1].grad = a[0].detach()[:1].expand(4)
    with pytest.raises(ValueError, match=r"grads\[1\]: overlaps"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))
    q = torch.nn.Parameter(torch.ones(2, 2))
    q.grad = torch.eye(2).to_sparse()
    for optimizer in (ot.SGD([q], lr=0.1), ot.Adam([q])):
        for _ in range(2):
            with pytest.raises(TypeError, match=r"params\[0\]\.grad: expected a dense tensor on the CPU, got"):
                optimizer.step()
        assert (q == 1).all()
    ours.param_groups[0]["lr"] = -1.0
    set_grads(1, a)
    with pytest.raises(ValueError, match="learning_rate must be finite and >= 0"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))
    after = ours.state_dict()
    assert all(torch.equal(state["state"][i][k], v) for i in (0, 1) for k, v in after["state"][i].items())


def test_overlapping_parameters_are_refused():
    base = torch.ones(6)
    params = [torch.nn.Parameter(base[:4]), torch.nn.Parameter(base[2:])]
    for p in params:
        p.grad = torch.ones(4)
    with pytest.raises(ValueError, match="overlap in memory"):
        ot.SGD(params, lr=0.1).step()
    assert (base == 1).all()


@each_class
def test_a_real_training_goes_down(name):
    torch.manual_seed(0)
    x, y = torch.randn(64, 5), torch.randn(64, 1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = getattr(ot, name)(model.parameters(), **({} if name in ("Rprop", "Adadelta") else {"lr": 0.01}))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    assert isinstance(optimizer, getattr(torch.optim, name)) and name in repr(optimizer)


@pytest.mark.parametrize("without_table", [False, True], ids=["exchange table", "NumPy views"])
def test_both_ways_to_the_memory(monkeypatch, without_table):
    if without_table:
        monkeypatch.setattr(tensors, "EXCHANGE", None)
    (a, ours), (b, theirs) = both("AdamW", {"lr": 0.01})
    for step in range(5):
        set_grads(step, a, b)
        if step == 2:
            a[0].data = a[0].data.clone()
        ours.step()
        theirs.step()
    close(a, b)


def test_nothing_is_imported_before_it_is_asked_for():
    import subprocess
    import sys
    code = ("import sys, optimc; print(sorted(m for m in ('torch', 'keras', 'tensorflow', 'jax', 'sklearn', "
            "'matplotlib', 'rich') if m in sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_numpy_and_torch_agree():
    import optimc
    w = np.linspace(-1, 1, 12, dtype=np.float32)
    p = torch.nn.Parameter(torch.tensor(w))
    ours, wrapped = optimc.Adam(0.01, style="torch"), ot.Adam([p], lr=0.01)
    for k in range(5):
        g = np.linspace(-1, k + 1, 12, dtype=np.float32)
        p.grad = torch.tensor(g)
        ours.apply([g], [w])
        wrapped.step()
    assert np.array_equal(w, p.detach().numpy())


@pytest.mark.skipif(tensors.EXCHANGE is None, reason="this torch has no exchange table")
def test_gradients_beside_the_tensors():
    """A step of the core over tensors takes other gradients than the tensors' own."""
    import optimc
    params = [torch.ones(3), torch.ones(2)]
    core = optimc.SGD(0.5)
    core.build([p.numpy() for p in params])
    core._prepare_tensors((None, None), ())
    assert core._apply_tensors(params, tensors.EXCHANGE, [torch.ones(3), torch.full((2,), 2.0)]) == 1
    assert params[0].tolist() == [0.5] * 3 and params[1].tolist() == [0.0] * 2
    for grads in ([torch.ones(3)], (torch.ones(3), torch.ones(2))):
        with pytest.raises(ValueError, match="grads: expected a list with an entry per tensor"):
            core._apply_tensors(params, tensors.EXCHANGE, grads)
    with pytest.raises(ValueError, match=r"grads\[1\]: expected the shape of its parameter"):
        core._apply_tensors(params, tensors.EXCHANGE, [torch.ones(3), torch.ones(3)])
    assert core._apply_tensors(params, tensors.EXCHANGE, [torch.ones(3), None]) == 2 and core.iterations == 1


def stepped(size):
    """A parameter of ones and an optimizer that stepped it."""
    p = torch.nn.Parameter(torch.ones(size))
    optimizer = ot.Adam([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    return p, optimizer


def test_state_stays_the_tensors_that_a_program_has():
    """A program may hold them, give its own, or share them with other processes."""
    p, first = stepped(100_000)
    second = ot.Adam([p])
    second.load_state_dict(first.state_dict())
    held = dict(second.state[p])
    second.step()
    assert all(second.state[p][key] is held[key] for key in ("exp_avg", "exp_avg_sq"))
    for key in ("exp_avg", "exp_avg_sq"):
        second.state[p][key] = torch.zeros_like(p).share_memory_()
    held = dict(second.state[p])
    second.step()
    assert all(second.state[p][key] is held[key] and held[key].is_shared() and held[key].any()
               for key in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("loaded", [False, True])
def test_large_state_keeps_off_the_lines_of_its_parameter(loaded):
    p, optimizer = stepped(1_000_000)
    if loaded:
        again = ot.Adam([p])
        again.load_state_dict(optimizer.state_dict())
        optimizer = again
    places = {(tensor.data_ptr() - p.data_ptr()) % 4096 // 64 for tensor in optimizer.state[p].values()
              if tensor.dim()}
    assert len(places) == 2 and 0 not in places


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (1, 40, 1, 1), (2, 3, 4, 5)])
def test_state_has_the_strides_of_its_parameter(shape):
    p = torch.nn.Parameter(torch.ones(shape).to(memory_format=torch.channels_last))
    optimizer = ot.Adam([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].stride() == p.stride()
