"""Steps within the backward pass: the steps of the same optimizer after it, with one gradient at a time."""

import copy
import gc
import weakref

import pytest
from conftest import require
from torch_cases import AT_RANDOM, DENSE

from optimc.torch_own import OWN

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
from optimc.torch import step_in_backward  # noqa: E402


def network(dtype=torch.float32, layers=3):
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(layers))).to(dtype)


def backward(net, seed, scale=1.0):
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
    (net(x.to(net[0].weight.dtype)).square().mean() * scale).backward()


def pair(name="AdamW", dtype=torch.float32, options=None, **arguments):
    """(network, optimizer) that steps in the backward pass, and the same after it."""
    within, after = network(dtype), network(dtype)
    cls, options = getattr(ot, name), options or {}
    return (within, step_in_backward(within, lambda params: cls(params, **options), **arguments)), \
        (after, cls(after.parameters(), **options))


def train(*pairs, steps=3, first=0, clip=None):
    for net, optimizer in pairs:
        for seed in range(first, first + steps):
            optimizer.zero_grad()
            backward(net, seed)
            if clip:
                clip(net.parameters())
            optimizer.step()


def equal(one, other):
    assert all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("name", [*DENSE, *OWN])
def test_the_steps_are_those_after_the_backward_pass(name):
    within, after = pair(name)
    train(within, after)
    equal(within[0], after[0])
    assert all(p.grad is None for p in within[0].parameters())
    mine, theirs = within[1].state_dict(), after[1].state_dict()
    assert mine["param_groups"] == theirs["param_groups"] and mine["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(mine["state"][index][key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("options", [{}, {"master_weights": False}, {"state_dtype": "bfloat16", **AT_RANDOM}])
def test_parameters_of_16_bits(options):
    within, after = pair(dtype=torch.bfloat16, options=options)
    train(within, after)
    equal(within[0], after[0])


def test_there_is_never_more_than_one_gradient():
    net, most = network(layers=10), []
    optimizer = step_in_backward(net, ot.AdamW)
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: most.append(sum(p.grad is not None for p in net.parameters())))
    backward(net, 0)
    assert max(most) <= 1 and len(most) == 20
    assert len(optimizer._cohorts.all) == 1                 # of all parameters, from the first step on


def test_schedules_groups_and_values_are_read_at_each_step():
    within, after = network(), network()
    ours = step_in_backward(within, lambda params: ot.SGD(
        [{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], lr=0.1, momentum=0.9))
    theirs = ot.SGD([{"params": after[0].parameters()}, {"params": after[1:].parameters(), "lr": 0.3}], lr=0.1,
                    momentum=0.9)
    schedulers = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=4) for optimizer in (ours, theirs)]
    for step in range(4):
        train((within, ours), (after, theirs), steps=1, first=step)
        for scheduler in schedulers:
            scheduler.step()
        if step == 2:
            for optimizer in (ours, theirs):
                optimizer.param_groups[1]["momentum"] = 0.5
    equal(within, after)


def test_a_run_resumes_exactly():
    within, after = pair()
    train(within, after)
    net, state = network(), copy.deepcopy(within[1].state_dict())
    net.load_state_dict(within[0].state_dict())
    again = step_in_backward(net, ot.AdamW)
    again.load_state_dict(state)
    train(within, (net, again), after, first=3)
    equal(within[0], net)
    equal(within[0], after[0])


def test_gradients_of_several_passes_are_added_up():
    within, after = pair(accumulate=3)
    for seed in range(6):
        backward(within[0], seed)
        assert all(p.grad is None for p in within[0].parameters())
        backward(after[0], seed)
        if seed % 3 == 2:
            after[1].step()
            after[1].zero_grad()
        equal(within[0], after[0])


def test_elements_are_clipped():
    within, after = pair("SGD", options={"lr": 0.1}, clip_value=1e-3)
    train(within)
    train(after, clip=lambda params: torch.nn.utils.clip_grad_value_(params, 1e-3))
    equal(within[0], after[0])


def test_the_norm_of_the_step_before_clips():
    within, after = pair("SGD", options={"lr": 0.1}, clip_norm_before=0.05)
    before = None
    for seed in range(4):
        backward(within[0], seed)
        after[1].zero_grad()
        backward(after[0], seed)
        norms = [torch.linalg.vector_norm(p.grad) for p in after[0].parameters()]
        for p, own in zip(after[0].parameters(), norms, strict=True):
            known = own if before is None else before
            if known > 0.05:
                p.grad.mul_(0.05 / known)
        before = torch.linalg.vector_norm(torch.stack(norms))
        after[1].step()
        for p, q in zip(within[0].parameters(), after[0].parameters(), strict=True):
            torch.testing.assert_close(p, q)
    assert before > 0.05


def test_parameters_that_rest_or_come_late():
    within, after = pair(options={"weight_decay": 0.5})
    extra = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for net, optimizer in (within, after):
        net[1].requires_grad_(False)
        optimizer.add_param_group({"params": [extra[net is after[0]]]})
    train(within, after)
    after[1].zero_grad()
    for p in extra:
        p.grad = torch.ones(3)
    for _, optimizer in (within, after):
        optimizer.step()                # those without a hook step here
    equal(within[0], after[0])
    assert torch.equal(*extra) and (extra[0] != 1).all()


def one_each(count=3, **options):
    params = [torch.nn.Parameter(torch.ones(2, **options)) for _ in range(count)]
    return params, lambda: sum(torch.view_as_real(p).sum() if p.is_complex() else p.sum() for p in params).backward()


def test_a_parameter_that_was_never_stepped_has_no_state():
    (a, b, *_), _ = one_each()
    optimizer = step_in_backward([a, b], ot.AdamW)
    for at in range(3):
        b.sum().backward()
        assert set(optimizer.state_dict()["state"]) == {1}, at
    copy.deepcopy(optimizer)
    twin = ot.AdamW([a, b])
    twin.load_state_dict(optimizer.state_dict())
    (a.sum() + b.sum()).backward()
    assert {int(state["step"]) for state in optimizer.state.values()} == {1, 4}


def test_a_gradient_steps_its_parameter_only():
    """Not those without a hook, nor those that have a gradient from before."""
    (a, b, late), backward_all = one_each()
    a.grad = torch.ones(2)
    optimizer = step_in_backward([a, b], lambda params: ot.SGD(params, lr=1.0))
    optimizer.add_param_group({"params": [late]})
    backward_all()
    assert a.tolist() == b.tolist() == [0, 0] and late.tolist() == [1, 1]
    optimizer.step()
    assert late.tolist() == [0, 0]
    late.grad, a.grad = None, torch.ones(2)                     # autograd adds to it
    backward_all()
    assert a.tolist() == [-2, -2] and b.tolist() == [-1, -1] and late.tolist() == [0, 0]


def test_a_pass_that_fails_leaves_the_norm_of_the_next_right():
    (a, b), backward_all = one_each(2)
    optimizer = step_in_backward([a, b], lambda params: ot.SGD(params, lr=1.0), clip_norm_before=1.0)

    def fail(_):
        raise RuntimeError("on purpose")
    handle = a.register_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        (b.sum() + (a * b).sum() * 10).backward()
    handle.remove()
    for _ in range(2):
        before = b.detach().clone()
        backward_all()
    torch.testing.assert_close(before - b, torch.full((2,), 0.5))       # the norm of four ones was 2
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128, torch.bfloat16], ids=str)
def test_gradients_of_any_type_are_clipped(dtype):
    for options in ({"clip_norm_before": 2 ** -0.5}, {"clip_value": 0.5}):
        (p,), backward_all = one_each(1, dtype=dtype)
        _kept = step_in_backward([p], lambda params: ot.SGD(params, lr=1.0), **options)
        before = p.detach().clone()
        if dtype.is_complex:
            p.real.sum().backward()
        else:
            backward_all()
        torch.testing.assert_close((before - p).detach(), torch.full_like(before, 0.5))
        assert p.grad is None


def test_sparse_gradients_are_clipped():
    rows = torch.tensor([1, 1, 2])
    for options, expected in (({"clip_value": 1.5}, [0, 1.5, 1.0]), ({"clip_norm_before": 5 ** 0.5}, [0, 1, 0.5])):
        table = torch.nn.Embedding(3, 4, sparse=True)
        before = table.weight.detach().clone()
        _kept = step_in_backward(table, lambda params: ot.SGD(params, lr=1.0), **options)
        table(rows).sum().backward()
        moved = before - table.weight.detach()
        torch.testing.assert_close(moved, torch.tensor(expected)[:, None].expand(3, 4), rtol=1e-5, atol=1e-6)


def test_hooks_that_cannot_all_be_made_are_taken_away():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(RuntimeError, match="gradient"):
        step_in_backward([a], lambda params: ot.SGD([*params, b], lr=1.0))
    assert not a._post_accumulate_grad_hooks


def test_hooks_of_the_step_run_in_step_only():
    (a,), backward_all = one_each(1)
    optimizer, called = step_in_backward([a], ot.AdamW), []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    backward_all()
    assert called == []
    optimizer.step()
    assert called == [1]


def test_tied_parameters_step_once():
    within, after = pair()
    for net, _ in (within, after):
        net[2].weight = net[0].weight
    train(within, after)
    equal(within[0], after[0])


@pytest.mark.parametrize("arguments,error,message", [
    ({"clip_norm": 1.0}, ValueError, r"clip_norm: the global norm of a step is known only with its last gradient, "
     r"when the first are stepped: pass clip_norm_before, or step after the backward pass"),
    ({"max_norm": 1.0}, ValueError, "pass clip_norm_before"),
    ({"clip": 1.0}, TypeError, "step_in_backward has no argument 'clip'"),
    ({"acumulate": 2}, TypeError, "no argument 'acumulate': did you mean accumulate"),
    ({"lr": 0.1}, TypeError, r"no argument 'lr': give the optimizer its arguments, as lambda params: .*lr="),
    ({"accumulate": 1.5}, TypeError, "accumulate must be a whole number, got 1.5"),
    ({"clip_norm_before": "1"}, TypeError, "clip_norm_before must be None or a number, got '1'"),
    ({"accumulate": 0}, ValueError, "accumulate must be at least 1, got 0"),
    ({"clip_value": 0.0}, ValueError, "clip_value must be greater than 0, got 0.0"),
    ({"clip_norm_before": -1.0}, ValueError, "clip_norm_before must be greater than 0"),
])
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        step_in_backward(network(), ot.AdamW, **arguments)


def test_other_optimizers_are_refused():
    with pytest.raises(TypeError, match=r"must make an optimizer of optimc.torch, got torch.optim.adamw.AdamW"):
        step_in_backward(network().parameters(), torch.optim.AdamW)
    net = network()
    with pytest.raises(TypeError, match=r"must be a class of optimc.torch, or a function .*, got an object of AdamW"):
        step_in_backward(net, ot.AdamW(net.parameters()))


def test_a_step_that_is_refused_leaves_the_backward_pass():
    net = network()
    optimizer = step_in_backward(net, ot.AdamW)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"^lr must be finite"):
        backward(net, 0)
    equal(net, network())


def test_the_optimizer_is_to_be_kept():
    net = network()
    optimizer = step_in_backward(net, ot.AdamW)
    net[0].bias.requires_grad_(False)           # has no hooks then
    del optimizer
    gc.collect()
    with pytest.warns(RuntimeWarning, match="steps nothing in it: keep what step_in_backward returns$") as caught:
        backward(net, 0)
    assert caught[0].filename == __file__ and len(caught) == 1
    backward(net, 0)                            # once is enough
    step_in_backward(net, ot.AdamW)
    optimizer = step_in_backward(net, ot.AdamW)
    backward(net, 0)
    del optimizer                               # no warning: it has stepped
    gc.collect()
    backward(net, 0)


def test_a_model_goes_with_an_optimizer_that_was_not_kept():
    net = network()
    step_in_backward(net, ot.AdamW)
    gone = weakref.ref(net[0].weight)
    del net
    gc.collect()
    assert gone() is None


def test_a_second_optimizer_that_fails_leaves_the_first():
    net = network()
    optimizer = step_in_backward(net, ot.AdamW)
    net[0].bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="hook"):
        step_in_backward(net, lambda _: ot.SGD(net.parameters(), lr=0.1))
    before = net[0].weight.detach().clone()
    backward(net, 0)
    assert net[0].weight.grad is None and not torch.equal(before, net[0].weight)
    assert optimizer.state[net[0].weight]["step"] == 1


def test_a_bound_may_be_a_tensor():
    nets = network(), network()
    kept = [step_in_backward(net, ot.AdamW, clip_value=bound) for net, bound in
            zip(nets, (1e-3, torch.tensor(1e-3, dtype=torch.float64)), strict=True)]
    for net in nets:
        backward(net, 0)
    equal(*nets)
    assert len(kept) == 2


def test_a_second_optimizer_takes_the_parameters_over():
    net, other = network(), network()
    first = step_in_backward(net, ot.AdamW)
    second, alone = (step_in_backward(each, lambda params: ot.SGD(params, lr=0.1)) for each in (net, other))
    backward(net, 0)
    backward(other, 0)
    equal(net, other)
    assert not first.state and len(net[0].weight._post_accumulate_grad_hooks) == 1
    assert second is not alone


def test_hooks_end_with_the_optimizer():
    net = network()
    optimizer = step_in_backward(net, ot.AdamW)
    backward(net, 0)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    backward(net, 0)
    assert net[0].weight.grad is not None
