"""optimc.torch counts as torch does, at full precision: who looks, saves or is refused changes no later bit."""

import copy
import io
import pickle
import random

import pytest
from conftest import require
from torch_cases import OPTIONS, both, close, parameters, set_grads

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
cohorts = pytest.importorskip("optimc.torch.cohorts")

each_with_options = pytest.mark.parametrize(("name", "options"), [
    *((name, rows[-1]) for name, rows in OPTIONS.items()), ("SGD", {"lr": 1.0, "momentum": 0.9, "dampening": 0.5})])


@pytest.fixture
def default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_counts_do_not_depend_on_the_default_dtype(default_dtype, dtype):
    default_dtype(dtype)
    (a, ours), (b, theirs) = both("NAdam", {})
    set_grads(0, a, b)
    for _ in range(260):
        ours.step()
        ours.state_dict()
    theirs.step()
    mine, other = ours.state[a[0]], theirs.state[b[0]]
    assert float(mine["step"]) == 260 and mine["step"].dtype == other["step"].dtype
    assert mine["mu_product"].dtype == torch.float64


def save(ours, a, options):
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    again = type(ours)(b := copy.deepcopy(a), **options)
    again.load_state_dict(torch.load(file, weights_only=True))
    return b, again


def hand_over(ours, a, options):
    again = type(ours)(b := copy.deepcopy(a), **options)
    again.load_state_dict(ours.state_dict())
    return b, again


def unpickle(ours, a, options):
    return pickle.loads(pickle.dumps((a, ours)))


def deepcopied(ours, a, options):
    return copy.deepcopy((a, ours))


@pytest.mark.parametrize("how", [save, hand_over, unpickle, deepcopied])
@each_with_options
def test_a_run_that_saves_is_the_run_that_does_not(name, options, how):
    dtype = torch.float64 if name in ("ASGD", "NAdam") else torch.float32   # where every bit of a scalar is seen
    a, c = parameters(dtype), parameters(dtype)
    ours, undisturbed = getattr(ot, name)(a, **options), getattr(ot, name)(c, **options)
    for step in range(8):
        set_grads(step, a, c)
        ours.step()
        undisturbed.step()
    b, again = how(ours, a, options)
    for step in range(8, 16):
        set_grads(step, a, b, c)
        for optimizer in (ours, again, undisturbed):
            optimizer.step()
        ours.state.get(a[0])
    for p, q, r in zip(a, b, c, strict=True):
        assert torch.equal(p, r) and torch.equal(q, r)


def test_counts_go_beyond_what_float32_counts():
    a = parameters()
    ours = ot.Adam(a)
    set_grads(0, a)
    ours.step()
    for p in a:
        ours.state[p]["step"] = torch.tensor(2.0 ** 24 - 1)
    for more in range(1, 6):
        ours.step()
        assert float(ours.state[a[0]]["step"]) == 2 ** 24 - 1 + more
    again, theirs = ot.Adam(b := copy.deepcopy(a)), torch.optim.Adam(c := copy.deepcopy(a))
    again.load_state_dict(ours.state_dict())
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    set_grads(0, b, c)
    again.step()
    theirs.step()
    assert float(again.state[b[0]]["step"]) == float(theirs.state[c[0]]["step"]) == 2 ** 24 + 5


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -1.0])
def test_a_count_that_is_none_is_refused(count):
    a = parameters()
    ours = ot.Adam(a)
    set_grads(0, a)
    ours.step()
    ours.state[a[1]]["step"].fill_(count)
    before = [p.detach().clone() for p in a]
    with pytest.raises(ValueError, match=r"params\[1\]: state 'step': expected a count, got"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))
    ours.state[a[1]]["step"].fill_(1)
    ours.step()
    assert {float(state["step"]) for state in ours.state.values()} == {2.0}


# ----------------------------------------------------------------------------------- refused steps

def overlap(optimizer, params):
    params[1].grad = params[1].detach()


def bad_rate(optimizer, params):
    optimizer.param_groups[0]["lr"] = -1.0


def sparse(optimizer, params):
    params[0].grad = torch.eye(10, 7).to_sparse()


@pytest.mark.parametrize("spoil", [overlap, bad_rate, sparse])
@pytest.mark.parametrize("before", [0, 3], ids=["first step", "later step"])
@each_with_options
def test_a_refused_step_leaves_nothing_behind(name, options, before, spoil):
    a, b = parameters(), parameters()
    ours, undisturbed = getattr(ot, name)(a, **options), getattr(ot, name)(b, **options)
    rate = ours.param_groups[0]["lr"]
    for step in range(before):
        set_grads(step, a, b)
        ours.step()
        undisturbed.step()
    state = copy.deepcopy(ours.state_dict()["state"]) if name == "Adagrad" or before else {}
    for _ in range(2):
        set_grads(7, a)
        spoil(ours, a)
        with pytest.raises((TypeError, ValueError)):
            ours.step()
        ours.param_groups[0]["lr"] = rate
        now = ours.state_dict()["state"]
        assert now.keys() == state.keys()
        for i, entries in state.items():
            assert now[i].keys() == entries.keys() and all(torch.equal(now[i][key], entries[key]) for key in entries)
    for step in range(before, before + 3):
        set_grads(step, a, b)
        ours.step()
        undisturbed.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# ------------------------------------------------------------------- entries that their owner changes

KEPT = {
    "slot": lambda state: state.update(exp_avg=torch.full_like(state["exp_avg"], 5.0)),
    "count": lambda state: state.update(step=torch.tensor(40.0)),
    "count in place": lambda state: state["step"].fill_(40.0),
    "number for a count": lambda state: state.update(step=torch.tensor(7), exp_avg_sq=state["exp_avg_sq"] + 1),
    "all": lambda state: state.clear(),
}


@pytest.mark.parametrize("edit", KEPT)
@pytest.mark.parametrize("when", ["before the first step", "between steps"])
@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam"])
def test_a_state_that_is_kept_over_steps_may_be_edited(name, when, edit):
    (a, ours), (b, theirs) = both(name, {"lr": 0.05})
    kept = []
    for step in range(8):
        set_grads(step, a, b)
        if step == (0 if when == "before the first step" else 2):
            kept = [ours.state[a[1]], theirs.state[b[1]]]
        if step == 5:
            for state in kept:
                KEPT[edit](state)
        ours.step()
        theirs.step()
        close(a, b)
    for state in kept:
        assert float(state["step"]) == float(theirs.state[b[1]]["step"])


@pytest.mark.parametrize("held", [lambda ours, a: ours.state[a[0]], lambda ours, a: ours.state[a[0]]["step"],
                                  lambda ours, a: ours.state_dict(), lambda ours, a: list(ours.state.items()),
                                  lambda ours, a: dict(ours.state)])
def test_a_count_that_is_kept_goes_on(held):
    a = parameters()
    ours = ot.Adam(a)
    set_grads(0, a)
    ours.step()
    kept = held(ours, a)
    for _ in range(3):
        ours.step()
    while not (isinstance(kept, dict) and "step" in kept) and not isinstance(kept, torch.Tensor):
        kept = next(iter(kept.values())) if isinstance(kept, dict) else kept[0][1]
    assert float(kept["step"] if isinstance(kept, dict) else kept) == 4
    assert ours._cohorts.turn.step is None
    del kept
    ours.step()
    if ot.step.tensors.EXCHANGE is not None:
        assert ours._cohorts.turn.step is not None      # nobody holds it now: steps go the short way again


def test_views_of_the_state_look_when_they_are_read():
    (a, ours), (b, theirs) = both("Adam", {"lr": 0.05})
    set_grads(0, a, b)
    for optimizer in (ours, theirs):
        optimizer.step()
    views = [(optimizer.state.items(), optimizer.state.values()) for optimizer in (ours, theirs)]
    for step in range(4):
        set_grads(step, a, b)
        for optimizer, (items, values) in zip((ours, theirs), views, strict=True):
            optimizer.step()
            for _, state in items:
                state["exp_avg"] = state["exp_avg"] * 2
            for state in values:
                state["step"] = state["step"] + 3
            optimizer.step()
        close(a, b)
    assert float(ours.state[a[0]]["step"]) == float(theirs.state[b[0]]["step"])


# --------------------------------------------------------------------- gradients that come and go

@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam"])
def test_parameters_that_come_and_go_need_no_new_plans_in_the_end(name, monkeypatch):
    """A dense part, and experts of two tensors each, drawn at random at every step; torch beside them."""
    made, make_inner = [], cohorts.make_inner
    monkeypatch.setattr(cohorts, "make_inner", lambda *args: made.append(1) or make_inner(*args))
    draw, experts = random.Random(0), 16
    shapes = [(3,)] * 4 + [(2, 2), (2,)] * experts
    a, b = parameters(shapes=shapes), parameters(shapes=shapes)
    ours, theirs = getattr(ot, name)(a, lr=0.01), getattr(torch.optim, name)(b, lr=0.01)
    for step in range(30):
        set_grads(step, a, b)
        for expert in range(experts):
            if draw.random() < 0.5:
                for i in (4 + 2 * expert, 5 + 2 * expert):
                    a[i].grad = b[i].grad = None
        if step == 15:
            made.clear()
        ours.step()
        theirs.step()
    close(a, b)
    assert not made
    for p, q in zip(a, b, strict=True):
        assert ours.state[p].get("step", 0) == theirs.state[q].get("step", 0)


def test_a_gradient_that_goes_while_it_is_looked_at_is_no_silent_rest():
    a = parameters(shapes=[(3,), (3,)])
    grads = [torch.ones(3), torch.ones(3)]

    class Rate:
        def __float__(self):
            a[1].grad = None if a[1].grad is not None else grads[1]
            return 0.1
    ours = ot.Adam(a)
    for p, grad in zip(a, grads, strict=True):
        p.grad = grad
    ours.step()
    ours.param_groups[0]["lr"] = Rate()
    before = a[0].detach().clone()
    try:
        ours.step()
    except RuntimeError as error:
        assert "change while the step looks at them" in str(error)
        assert torch.equal(a[0], before)
    else:
        assert not torch.equal(a[0], before)
