"""Optimizers that keep masters, state and step on the host, with the CPU in the place of the accelerator."""

import copy
import gc
import re

import pytest
from conftest import require
from torch_cases import AT_RANDOM, DENSE

from optimc.torch_own import OWN

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

from optimc.torch import host  # noqa: E402

KINDS = [(torch.float32, {}), (torch.float32, {"state_dtype": "bfloat16"}), (torch.bfloat16, {}),
         (torch.bfloat16, {"master_weights": False}),
         (torch.bfloat16, {"state_dtype": "bfloat16", **AT_RANDOM, "seed": 3})]
each_kind = pytest.mark.parametrize("dtype,storage", KINDS,
                                    ids=["float32", "narrow state", "bfloat16", "to nearest", "random"])


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """All parameters are on a device."""
    monkeypatch.setattr(host, "is_elsewhere", lambda param: True)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3)).to(dtype)


def backward(net, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    dtype = net[0].weight.dtype
    x = torch.randn(16, 8, generator=generator).to(dtype)
    (net(x).square().mean() * scale).backward()


def pair(name="AdamW", dtype=torch.float32, offload_gradients=False, **options):
    """(network, optimizer) on the device with the step on the host, and the same without a device."""
    away, here = network(dtype), network(dtype)
    return (away, getattr(ot, f"Offload{name}")(away.parameters(), offload_gradients=offload_gradients, **options)), \
        (here, getattr(ot, name)(here.parameters(), **options))


def train(*pairs, steps=3, first=0):
    for net, optimizer in pairs:
        for seed in range(first, first + steps):
            optimizer.zero_grad()
            backward(net, seed)
            optimizer.step()


def equal(one, other):
    assert all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("taking", [False, True], ids=["at the step", "in the backward pass"])
@pytest.mark.parametrize("name", [*DENSE, *OWN])
def test_every_class_steps_as_without_a_device(name, taking):
    away, here = pair(name, offload_gradients=taking)
    before = network()
    train(away, here)
    equal(away[0], here[0])
    assert not torch.equal(before[0].weight, here[0][0].weight)
    assert type(away[1]).__name__ == f"Offload{name}" and isinstance(away[1], torch.optim.Optimizer)


@each_kind
def test_storage_is_that_of_the_class_on_the_host(dtype, storage):
    away, here = pair(dtype=dtype, **storage)
    train(away, here)
    equal(away[0], here[0])
    mine, theirs = (optimizer.state[net[0].weight] for net, optimizer in (away, here))
    assert {key: value.dtype for key, value in mine.items()} == {key: value.dtype for key, value in theirs.items()}


def test_groups_and_schedules_are_those_of_the_device():
    away, here = pair(lr=0.1)
    schedulers = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=4) for _, optimizer in (away, here)]
    for step in range(5):
        train(away, here, steps=1, first=step)
        for scheduler in schedulers:
            scheduler.step()
        if step == 2:
            for _, optimizer in (away, here):
                optimizer.param_groups[0]["weight_decay"] = 0.3
    equal(away[0], here[0])


def test_groups_are_added_or_refused_as_a_whole():
    net = network()
    optimizer = ot.OffloadAdamW([{"params": net[0].parameters(), "weight_decay": 0.0}], lr=0.1)
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": list(net[2].parameters()), "state_dtype": "float8"})
    assert len(optimizer.param_groups) == 1 and len(optimizer._places) == 2
    optimizer.add_param_group({"params": list(net[2].parameters()), "weight_decay": 0.5})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]
    other = network()
    plain = ot.AdamW([{"params": other[0].parameters(), "weight_decay": 0.0},
                      {"params": other[2].parameters(), "weight_decay": 0.5}], lr=0.1)
    train((net, optimizer), (other, plain))
    equal(net, other)


def test_a_group_that_is_added_leaves_the_others_as_they_are():
    away, _ = pair(lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(away[1], 1, 0.1)
    away[1].step()
    scheduler.step()
    away[1].add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.5})
    assert [group["lr"] for group in away[1].param_groups] == [pytest.approx(0.1), 0.5]
    assert [group["lr"] for group in away[1]._host.param_groups] == [pytest.approx(0.1), 0.5]


@pytest.mark.parametrize("where,lr,error", [("meta", 0.1, NotImplementedError), ("cpu", -1.0, ValueError)])
def test_a_refused_group_leaves_nothing_behind(where, lr, error):
    away, here = pair(offload_gradients=True)
    params = [torch.nn.Parameter(torch.ones(2, device=device)) for device in ("cpu", where)]
    with pytest.raises(error):
        away[1].add_param_group({"params": params, "lr": lr})
    assert len(away[1].param_groups) == len(away[1]._host.param_groups) == 1
    params[0].sum().backward()
    assert params[0].grad is not None
    train(away, here)
    equal(away[0], here[0])


@pytest.mark.parametrize("taking", [False, True])
def test_groups_that_a_program_changes_count(taking):
    away, here = pair(offload_gradients=taking, lr=0.1)
    train(away, here)
    for net, optimizer in (away, here):
        optimizer.param_groups[0]["params"].remove(net[0].weight)
    train(away, here)
    backward(away[0])
    assert away[0][0].weight.grad is not None
    for net, optimizer in (away, here):                     # back again, in a group of its own
        optimizer.add_param_group({"params": [net[0].weight], "lr": 0.5})
    train(away, here)
    for _, optimizer in (away, here):
        optimizer.param_groups.pop(0)
    train(away, here)
    for net, optimizer in (away, here):
        optimizer.param_groups.append({**optimizer.param_groups[0], "params": [net[2].bias]})
    train(away, here)
    equal(away[0], here[0])
    assert len(away[1].state_dict()["state"]) == 2


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_given_twice_is_stepped_twice():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for param, cls in zip(params, (ot.OffloadSGD, torch.optim.SGD), strict=True):
        optimizer = cls([param, param], lr=0.1)
        param.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(*params)


@each_kind
@pytest.mark.parametrize("plain", [False, True], ids=["itself", "the class on the host"])
def test_a_run_resumes_exactly(dtype, storage, plain):
    away, here = pair(dtype=dtype, lr=0.1, **storage)
    train(away, here)
    again = network(dtype)
    optimizer = ot.OffloadAdamW(again.parameters(), **storage)
    again.load_state_dict(away[0].state_dict())
    optimizer.load_state_dict(copy.deepcopy((here if plain else away)[1].state_dict()))
    assert optimizer.param_groups[0]["lr"] == 0.1
    train(away, (again, optimizer), first=3)
    equal(away[0], again)


def test_what_is_written_into_parameters_counts():
    away, here = pair()
    train(away, here)
    for net, _ in (away, here):
        with torch.no_grad():
            net[0].weight.mul_(2)
        net[2].load_state_dict(network()[2].state_dict())
    train(away, here)
    equal(away[0], here[0])
    for net, optimizer in (away, here):
        net[0].weight.data = net[0].weight.data * 2
        optimizer.reset_master()
    train(away, here)
    equal(away[0], here[0])


def test_parameters_without_gradients_rest():
    away, here = pair(weight_decay=0.5)
    for net, _ in (away, here):
        for p in net[0].parameters():
            p.requires_grad_(False)
    train(away, here)
    equal(away[0], here[0])
    equal(away[0][0], network()[0])


def test_gradients_taken_away_are_added_up_until_the_step():
    away, here = pair(offload_gradients=True)
    for _ in range(3):
        for net, _ in (away, here):
            backward(net, 1)
            backward(net, 2)
        assert all(p.grad is None for p in away[0].parameters())
        for _, optimizer in (away, here):
            optimizer.step()
        here[1].zero_grad()             # a step has used up those that were taken away
    equal(away[0], here[0])
    backward(away[0], 5)
    away[1].zero_grad()
    before = away[0][0].weight.detach().clone()
    away[1].step()
    assert torch.equal(before, away[0][0].weight)


@pytest.mark.parametrize("taking", [False, True])
def test_the_global_norm_is_clipped_on_the_host(taking):
    away, here = pair("SGD", lr=0.1, offload_gradients=taking)
    for bound in (0.01, 100.0):
        for net, optimizer in (away, here):
            optimizer.zero_grad()
            backward(net, 3, scale=10.0)
        found = away[1].clip_grad_norm_(bound)
        torch.testing.assert_close(found, torch.nn.utils.clip_grad_norm_(here[0].parameters(), bound))
        for _, optimizer in (away, here):
            optimizer.step()
        for p, q in zip(away[0].parameters(), here[0].parameters(), strict=True):
            torch.testing.assert_close(p, q)
    assert not torch.equal(here[0][0].weight, network()[0].weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128])
def test_the_norm_of_any_type_is_clipped(dtype):
    params = [torch.nn.Parameter(torch.full((3,), 2, dtype=dtype)) for _ in range(2)]
    optimizers = [ot.OffloadSGD(params[:1], lr=0.5), torch.optim.SGD(params[1:], lr=0.5)]
    for param in params:
        param.grad = torch.full((3,), 3 - 4j if dtype.is_complex else 4, dtype=dtype)
    params[0].grad = params[0].grad.conj().resolve_conj().conj()        # conjugate, of the same numbers
    found = optimizers[0].clip_grad_norm_(0.5)
    torch.testing.assert_close(found.double(), torch.nn.utils.clip_grad_norm_(params[1:], 0.5).double(), rtol=1e-2,
                               atol=0)
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(*params)
    assert (params[0] != 2).all()


def test_the_norm_of_sparse_gradients_on_the_host_is_clipped(monkeypatch):
    monkeypatch.setattr(host, "is_elsewhere", lambda param: False)
    tables = [torch.nn.Parameter(torch.ones(5, 2)) for _ in range(2)]
    optimizers = [ot.OffloadSGD(tables[:1], lr=0.5), torch.optim.SGD(tables[1:], lr=0.5)]
    for table in tables:
        torch.nn.functional.embedding(torch.tensor([1, 3, 1]), table, sparse=table is tables[0]).sum().backward()
    torch.testing.assert_close(optimizers[0].clip_grad_norm_(0.5), torch.nn.utils.clip_grad_norm_(tables[1:], 0.5))
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(*tables)
    assert (tables[0] != 1).any(dim=1).nonzero().flatten().tolist() == [1, 3]


def test_a_bound_of_zero_and_no_gradients():
    away, _ = pair("SGD", lr=0.1)
    assert away[1].clip_grad_norm_(1.0) == 0
    backward(away[0])
    away[1].clip_grad_norm_(0.0)
    away[1].step()
    torch.testing.assert_close(away[0][0].weight, network()[0].weight)


@pytest.mark.parametrize("fused", [False, True], ids=["before the step", "in the step"])
def test_a_gradient_scaler_is_heeded(fused):
    away, here = pair(lr=0.1, fused=fused)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0 ** 10, growth_interval=2) for _ in range(2)]
    for seed in range(6):
        for (net, optimizer), scaler in zip((away, here), scalers, strict=True):
            optimizer.zero_grad()
            backward(net, seed, scale=scaler.scale(torch.ones(())).item() * (float("inf") if seed == 2 else 1.0))
            if seed > 3:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
    equal(away[0], here[0])
    assert int(away[1].state[away[0][0].weight]["step"]) == 5


def test_hooks_and_closures_run_once():
    away, _ = pair()
    seen = []
    away[1].register_step_pre_hook(lambda *_: seen.append("before"))
    away[1].register_step_post_hook(lambda *_: seen.append("after"))
    handle = register_optimizer_step_post_hook(lambda *_: seen.append("all"))
    try:
        assert away[1].step(lambda: seen.append("closure") or 7) == 7
    finally:
        handle.remove()
    assert sorted(seen) == ["after", "all", "before", "closure"]
    away[1].register_load_state_dict_pre_hook(lambda optimizer, state: seen.append("loading"))
    away[1].register_load_state_dict_post_hook(lambda optimizer: seen.append("loaded"))
    away[1].load_state_dict(away[1].state_dict())
    assert seen[-2:] == ["loading", "loaded"]


def test_a_load_that_fails_changes_nothing():
    away, _ = pair()
    _, optimizer = away
    saved = copy.deepcopy(optimizer.state_dict())
    train(away)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.register_load_state_dict_pre_hook(lambda _, state: state.update(mine=1))

    def fail(optimizer):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
        raise ZeroDivisionError

    handle = optimizer.register_load_state_dict_post_hook(fail)
    changed = {**saved, "param_groups": [{**group, "lr": 7.0, "initial_lr": 7.0} for group in saved["param_groups"]]}
    with pytest.raises(ZeroDivisionError):
        optimizer.load_state_dict(changed)
    assert str(optimizer.state_dict()) == str(before) and "mine" not in changed
    train(away)
    assert len(optimizer.param_groups) == 1
    handle.remove()
    optimizer.load_state_dict(changed)
    assert optimizer.param_groups[0]["initial_lr"] == 7.0 and not optimizer.state


def test_refusals(monkeypatch):
    away, _ = pair(offload_gradients=True)
    with pytest.raises(TypeError, match="holds memory of two devices: save its state_dict instead"):
        copy.deepcopy(away[1])
    with pytest.raises(AttributeError, match="call load_state_dict"):
        away[1].state = {}
    away[1].found_inf = torch.zeros(())
    with pytest.raises(RuntimeError, match="GradScaler looks for gradients on the device"):
        away[1].step()
    monkeypatch.setattr(host, "_shares_gradients", lambda: True)
    with pytest.raises(ValueError, match="before other processes add theirs"):
        pair(offload_gradients=True)
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = ot.OffloadSGD(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="only dense ones can be offloaded"):
        optimizer.step()
    away, _ = pair()
    away[0].to(torch.float64)
    with pytest.raises(TypeError, match=r"was \(20, 8\) of torch.float32 when its optimizer was made, and is"):
        away[1].reset_master()


def test_an_optimizer_that_is_gone_leaves_gradients_alone():
    net = network()
    optimizer = ot.OffloadAdamW(net.parameters(), offload_gradients=True)
    backward(net)
    assert net[0].weight.grad is None
    del optimizer
    gc.collect()
    backward(net)
    assert net[0].weight.grad is not None


def test_parameters_on_the_host_are_stepped_where_they_are(monkeypatch):
    monkeypatch.setattr(host, "is_elsewhere", lambda param: param.dim() == 2)
    away, here = pair(offload_gradients=True)
    assert [place.host is place.param for place in away[1]._places.values()] == [False, True, False, True]
    train(away, here)
    equal(away[0], here[0])


def test_names_and_classes():
    assert ot.OffloadAdamW is ot.OffloadAdamW
    assert ot.offload(ot.SGD).__name__ == "OffloadSGD"


@pytest.mark.parametrize("name,advice", [
    ("Lionn", ": did you mean OffloadLion?"), ("Muon", ": optimc.torch.Muon steps parameters on any device"),
    ("SparseAdam", ": sparse gradients cannot be offloaded"), ("TorchOptimizer", ""), ("", "")])
def test_names_that_are_none(name, advice):
    with pytest.raises(AttributeError, match=rf"has no attribute 'Offload{name}'{re.escape(advice)}$"):
        getattr(ot, f"Offload{name}")


def test_other_classes_and_arguments_are_refused():
    for cls in (torch.optim.AdamW, ot.SparseAdam, ot.TorchOptimizer, torch.optim.SGD.step):
        with pytest.raises(TypeError, match=r"offload takes a class of optimc\.torch for dense gradients, such as"):
            ot.offload(cls)
    with pytest.raises(TypeError, match=r"^optimc\.torch\.OffloadSGD has no argument 'learning_rate': did"):
        ot.OffloadSGD(network().parameters(), learning_rate=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_schedule_free_shows_its_averages(dtype):
    away, here = pair("ScheduleFreeAdamW", dtype=dtype, lr=0.1)
    for first in (0, 3):
        train(away, here, first=first)
        for _, optimizer in (away, here):
            optimizer.eval()
        equal(away[0], here[0])
        with pytest.raises(RuntimeError, match="call train"):
            away[1].step()
        assert not away[1].param_groups[0]["train_mode"]
        for _, optimizer in (away, here):
            optimizer.train()
        equal(away[0], here[0])
