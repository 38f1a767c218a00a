"""optimc.torch beside torch.optim: the same training, and right where torch 2.13's fused is not."""

import inspect

import numpy as np
import pytest
from conftest import require
from torch_cases import both, close, each_case, each_class, parameters, set_grads

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
tensors = pytest.importorskip("optimc.torch.tensors")


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


def test_hooks_get_the_closure_as_it_was_given():
    """So one that replaces it does as with torch, which has no closure by place and by name at once."""
    seen = {}
    for module in (ot, torch.optim):
        optimizer, calls = module.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), []

        def replace(_, args, kwargs, calls=calls):
            calls.append((len(args), sorted(kwargs)))
            if "closure" in kwargs:
                return args, {**kwargs, "closure": lambda: 3.0}
            return (args[0], lambda: 4.0), kwargs

        def note(_, args, kwargs, calls=calls):
            calls.append((len(args), sorted(kwargs)))
        optimizer.register_step_pre_hook(replace)
        optimizer.register_step_post_hook(note)
        calls += [optimizer.step(closure=lambda: 1.0), optimizer.step(lambda: 1.0), optimizer.step()]
        seen[module] = calls
    assert seen[ot] == seen[torch.optim] and seen[ot][-3:] == [3.0, 4.0, 4.0]
    assert str(inspect.signature(ot.SGD([torch.ones(1)], lr=1.0).step)).startswith("(closure")


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
    from optimc._core import CHECKED, NOT_AS_PLANNED
    params = [torch.ones(3), torch.ones(2)]
    core = optimc.SGD(0.5)
    core.build([p.numpy() for p in params])
    core._prepare_tensors((None, None), ())
    assert core._apply_tensors(params, tensors.EXCHANGE, [torch.ones(3), torch.full((2,), 2.0)]) == CHECKED
    assert params[0].tolist() == [0.5] * 3 and params[1].tolist() == [0.0] * 2
    for grads in ([torch.ones(3)], (torch.ones(3), torch.ones(2))):
        with pytest.raises(ValueError, match="grads: expected a list with an entry per tensor"):
            core._apply_tensors(params, tensors.EXCHANGE, grads)
    with pytest.raises(ValueError, match=r"grads\[1\]: expected the shape of its parameter"):
        core._apply_tensors(params, tensors.EXCHANGE, [torch.ones(3), torch.ones(3)])
    assert core._apply_tensors(params, tensors.EXCHANGE, [torch.ones(3), None]) == NOT_AS_PLANNED
    assert core.iterations == 1


DECOUPLED = {"AdamW": {}, "Adam": {"decoupled_weight_decay": True}, "NAdam": {"decoupled_weight_decay": True},
             "RAdam": {"decoupled_weight_decay": True}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("name", DECOUPLED)
def test_decay_has_torchs_bits(name, implementation, dtype):
    if name in ("NAdam", "RAdam") and "fused" in implementation:
        pytest.skip("torch has no such class")
    mine, theirs = parameters(dtype, [(1000,)]), parameters(dtype, [(1000,)])
    options = {"lr": 1.3e-3, "weight_decay": 0.017, **DECOUPLED[name]}
    ours, torchs = getattr(ot, name)(mine, **options), getattr(torch.optim, name)(theirs, **options, **implementation)
    for _ in range(5):
        for param in (*mine, *theirs):
            param.grad = torch.zeros_like(param)
        ours.step()
        torchs.step()
    assert torch.equal(mine[0], theirs[0])
