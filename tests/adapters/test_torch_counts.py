"""optimc.torch counts as torch does, at full precision: who looks, saves or is refused changes no later bit."""

import copy
import io
import pickle
import random

import numpy as np
import pytest
from conftest import require
from torch_cases import OPTIONS, STORAGES, both, close, each_case, halves, parameters, same, set_grads

import optimc

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
    if ot.step.tensors.EXCHANGE is not None:
        assert ours._cohorts.turn.step is not None      # C writes it


@each_with_options
def test_reading_the_state_does_not_lengthen_the_way_of_a_step(name, options):
    """A logger reads it between steps: no step looks at it in Python then, and numbers are torch's."""
    (a, ours), (b, theirs) = both(name, options, torch.float64)
    for step in range(12):
        set_grads(step, a, b)
        come_and_go(step, a, b) if step > 8 else None
        if ot.step.tensors.EXCHANGE is not None and step > 3:
            assert ours._cohorts.turn.step is not None
        ours.step()
        theirs.step()
        for p, q in zip(a, b, strict=True):
            mine, other = ours.state[p], theirs.state[q]
            for key in [key for key, value in other.items() if isinstance(value, torch.Tensor)]:
                torch.testing.assert_close(mine[key], other[key], rtol=1e-5, atol=1e-7,
                                           check_dtype=key not in ("mu_product", "eta", "mu"))


EDITS_OF_COUNTS = {
    "in place": lambda state: state["step"].fill_(40.0),
    "through NumPy": lambda state: state["step"].numpy().fill(40.0),
    "another tensor": lambda state: state.update(step=torch.tensor(40.0)),
    "a double": lambda state: state.update(step=torch.tensor(40.0, dtype=torch.float64)),
    "an int": lambda state: state.update(step=40),
    "of one axis": lambda state: state.update(step=torch.tensor([40.0])),
    "moved": lambda state: setattr(state["step"], "data", torch.tensor(40.0)),
    "no whole number": lambda state: state.update(step=torch.tensor(40.5)),
    "expanded": lambda state: state.update(step=torch.tensor(40.0).expand(1)),
}


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("edit", EDITS_OF_COUNTS)
@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam"])
def test_counts_that_a_program_edits_are_those_of_the_next_step(name, edit, table, monkeypatch):
    """With gradients that come and go; then every parameter counts on from its own."""
    if not table:
        monkeypatch.setattr(ot.step.tensors, "EXCHANGE", None)
    a = parameters()
    ours = getattr(ot, name)(a, lr=0.02)
    for step in range(10):
        come_and_go(step, a, share=0.7)
        if step == 5:
            assert float(ours.state[a[0]]["step"]) > 0
            EDITS_OF_COUNTS[edit](ours.state[a[0]])
            b = copy.deepcopy(a)
            for p, q in zip(a, b, strict=True):
                q.grad = None if p.grad is None else p.grad.clone()
            again = getattr(ot, name)(b, lr=0.02)
            again.load_state_dict(ours.state_dict())
        ours.step()
        if step >= 5:
            if step > 5:
                come_and_go(step, b, share=0.7)
            again.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    for p, q in zip(a, b, strict=True):
        assert float(ours.state[p].get("step", 0)) == float(again.state[q].get("step", 0))
    expected = 40 + sum(random.Random(step).random() < 0.7 for step in range(5, 10))
    assert float(ours.state[a[0]]["step"]) == expected


@pytest.mark.parametrize("given, error", [
    (((0, 0, {}, "step"),), TypeError), (((2, 0, {}, "step", None),), ValueError),
    (((0, 3, {}, "step", None),), ValueError), (((-1, 0, {}, "step", None),), ValueError), ((1,), TypeError),
    (((0, 0, [], "step", None),), TypeError)])
def test_numbers_that_no_step_can_keep_are_refused(given, error):
    core = optimc.Adam()
    core.build([np.ones(3), np.ones(2)])
    with pytest.raises(error):
        core._prepare_tensors((None, None), (), (), (), None, given)


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


def come_and_go(step, *lists, share=0.5):
    """The same gradients for every list, of some parameters drawn at random."""
    draw = random.Random(step)
    set_grads(step, *lists)
    for group in zip(*lists, strict=True):
        if draw.random() >= share:
            for param in group:
                param.grad = None


def change(step, *optimizers):
    """Changes what schedulers change, so that parameters with equal counts differ in the scalars of their rule."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] *= 0.98
            if "momentum_decay" in group:
                group["momentum_decay"] = 0.004 + 0.01 * (step % 3)


def steps_of(optimizer, params):
    """By parameter, the count and the scalars."""
    return [[float(optimizer.state[p].get(key, 0.0)) for key in ("step", "mu_product", "eta", "mu")] for p in params]


def in_groups(module, name, params, options):
    """An optimizer with two groups of different values."""
    groups = [{"params": params[:7]}, {"params": params[7:], "lr": 0.02, "weight_decay": 0.01}]
    return getattr(module, name)(groups[:1] if name == "Rprop" else groups, **options)


@each_case
def test_gradients_come_and_go_as_in_torch(name, options):
    """Each parameter has the bits of an optimizer of its own, too."""
    if name == "Rprop":
        pytest.skip("its groups have no weight_decay")
    shapes = [(5, 3), (7,), ()] * 4
    a, b, c = (parameters(torch.float64, shapes) for _ in range(3))
    ours, theirs = in_groups(ot, name, a, options), in_groups(torch.optim, name, b, options)
    alone = [getattr(ot, name)([{**group, "params": [p]}]) for group, params in zip(
        ours.param_groups, (c[:7], c[7:]), strict=True) for p in params]
    for step in range(24):
        come_and_go(step, a, b, c)
        for optimizer in (ours, theirs, *alone):
            optimizer.step()
        change(step, ours, theirs, *alone)
        if step % 6 == 5:
            close(a, b, 1e-7)
            mine, other = steps_of(ours, a), steps_of(theirs, b)
            assert [row[0] for row in mine] == [row[0] for row in other]
            for row, expected in zip(mine, other, strict=True):
                assert row == pytest.approx(expected, rel=1e-5)        # torch keeps scalars in float32
    assert all(torch.equal(p, q) for p, q in zip(a, c, strict=True))
    assert len(ours._cohorts.all) == 1


@pytest.mark.parametrize("how", [save, hand_over, unpickle, deepcopied])
@pytest.mark.parametrize("name", ["Adam", "NAdam", "ASGD", "RAdam"])
def test_a_run_whose_gradients_come_and_go_is_resumed_exactly(name, how):
    a = parameters(torch.float64)
    ours = getattr(ot, name)(a)
    for step in range(12):
        come_and_go(step, a)
        ours.step()
    b, again = how(ours, a, {})
    for step in range(12, 24):
        come_and_go(step, a, b)
        ours.step()
        again.step()
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert steps_of(ours, a) == steps_of(again, b)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_parameters_that_count_have_the_bits_of_those_that_do_not(name, storage):
    a, b = halves(), halves()
    one, other = (getattr(ot, name)(params, lr=0.01, **storage) for params in (a, b))
    for step in range(6):
        set_grads(step, a, b)
        one.step()
        other.step()
        other._cohorts.all[0].count()
    assert all(same(p, q) for p, q in zip(a, b, strict=True))
    for p, q in zip(a, b, strict=True):
        mine, its = one.state[p], other.state[q]
        assert all(same(mine[key], its[key]) for key in mine if isinstance(mine[key], torch.Tensor))


def test_parameters_that_never_had_a_gradient_lengthen_no_way():
    a, b = parameters(), parameters()
    ours, theirs = ot.Adam(a), torch.optim.Adam(b)
    for step in range(12):
        set_grads(step, a, b)
        for params in (a, b):
            params[0].grad = None
            if step < 6:
                params[2].grad = None
        if 1 < step < 6 or step > 7:
            assert ours._cohorts.turn.step is not None or ot.step.tensors.EXCHANGE is None
        ours.step()
        theirs.step()
    close(a, b)
    assert [row[0] for row in steps_of(ours, a)] == [row[0] for row in steps_of(theirs, b)] == [0, 12, 6, 12, 12]
    with pytest.raises(TypeError, match="step: expected None or"):
        ours._cohorts.turn.step = (1, 2, 3)


def test_parameters_with_gaps_and_complex_ones_rest_too():
    lists = []
    for _ in range(2):
        wide = torch.arange(24.0).reshape(4, 6) / 10
        lists.append([torch.nn.Parameter(wide[:, ::2]), torch.nn.Parameter(torch.ones(3, dtype=torch.complex64)),
                      torch.nn.Parameter(torch.ones(5))])
    a, b = lists
    ours, theirs = ot.Adam(a, lr=0.01), torch.optim.Adam(b, lr=0.01)
    for step in range(16):
        come_and_go(step, a, b)
        for params in lists:
            if params[0].grad is None:
                params[0].data.add_(0.5)
        ours.step()
        theirs.step()
        close(a, b)
    assert [row[0] for row in steps_of(ours, a)] == [row[0] for row in steps_of(theirs, b)]


def test_only_what_is_stepped_has_changed():
    a = parameters()
    ours = ot.Adam(a)
    set_grads(0, a)
    for _ in range(3):
        ours.step()
    a[1].grad = None
    for _ in range(3):
        before, numbers = [p._version for p in a], a[1].detach().clone()
        ours.step()
        assert [p._version - old for p, old in zip(a, before, strict=True)] == [1, 0, 1, 1, 1]
        assert torch.equal(a[1], numbers)
    assert [float(ours.state[p]["step"]) for p in a] == [6, 3, 6, 6, 6]


def without_memory(p):
    p.data = torch.ones(p.shape)
    p.untyped_storage().resize_(0)


def complex_numbers(p):
    p.data = torch.ones(p.shape, dtype=torch.complex64)


def other_shape(p):
    p.data = torch.ones(2, 3)


@pytest.mark.parametrize("spoil", [without_memory, complex_numbers, other_shape])
@pytest.mark.parametrize("rests", [range(2, 6), range(1, 6)])
def test_a_parameter_that_rests_may_be_anything(spoil, rests):
    a, b = parameters(), parameters()
    ours, theirs = ot.Adam(a), torch.optim.Adam(b)
    for step in range(8):
        set_grads(step, a, b)
        kept = a[1].data
        if step in rests:
            a[1].grad = b[1].grad = None
        if 2 <= step < 6:
            spoil(a[1])
        ours.step()
        theirs.step()
        a[1].data = kept
    close(a, b)
    assert [row[0] for row in steps_of(ours, a)] == [row[0] for row in steps_of(theirs, b)]


def test_another_may_lie_where_one_lay_that_rests():
    a, b = parameters(shapes=[(9,)] * 3), parameters(shapes=[(9,)] * 3)
    ours, theirs = ot.Adam(a), torch.optim.Adam(b)
    for step in range(6):
        set_grads(step, a, b)
        if step > 1:
            a[step % 3].grad = b[step % 3].grad = None
            old = a[step % 3].data
            a[step % 3].data = old.clone()
            moved = (step + 1) % 3
            a[moved].grad = old.copy_(a[moved].grad)
        ours.step()
        theirs.step()
        close(a, b)


@pytest.mark.parametrize("progress, error", [
    (None, ValueError), ((), ValueError), (((1,),), ValueError), ((1, 2), TypeError), (((1,), (2, 0.5)), TypeError),
    (((1,), (-1,)), ValueError), (((1,), (2 ** 62,)), ValueError), (((1,), (2.0,)), TypeError)])
def test_progress_that_is_none_is_refused(progress, error):
    inner = optimc.Adam()
    with pytest.raises(ValueError, match="expected a tuple with an entry per weight"):
        inner._set_progress(((1,), (2,)))
    inner.build([np.ones(3), np.ones(2)])
    for before in (None, ((3,), (4,))):
        if before:
            inner._set_progress(before)
        with pytest.raises(error, match=r"progress|iterations|integer"):
            inner._set_progress(progress)
        assert inner._get_progress() == before


def test_weights_count_in_numpy_programs_too():
    """With averages, clipping by norm and accumulation, whose counts stay the optimizer's."""
    options = {"use_ema": True, "ema_momentum": 0.9, "global_clipnorm": 1.0, "gradient_accumulation_steps": 2}
    (u, v), (x, y) = ([np.ones(5), np.ones(3)] for _ in range(2))
    one, other = optimc.Adam(**options), optimc.Adam(**options)
    one.build([u, v])
    other.build([x, y])
    other._set_progress(((0,), (0,)))
    for step in range(12):
        grads = [np.full(5, 0.1 * step), np.full(3, 0.2 - step)]
        one.apply(grads)
        other.apply(grads)
    assert (u == x).all() and (v == y).all()
    assert other._get_progress() == ((6,), (6,)) and one._get_progress() is None


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


@each_with_options
def test_a_parameter_that_rests_from_its_first_step_on_has_no_state(name, options):
    a = parameters(shapes=[(3,), (3,)])
    ours = getattr(ot, name)(a, **options)
    for step in range(2):
        set_grads(step, a)
        ours.step()
    ours.state.pop(a[0])
    a[0].grad = None
    for _ in range(3):
        ours.step()
        assert list(ours.state) == [a[1]]
    copy.deepcopy(ours)
    ours.load_state_dict(ours.state_dict())
    set_grads(0, a)
    ours.step()
    assert set(ours.state[a[0]]) == set(ours.state[a[1]])
