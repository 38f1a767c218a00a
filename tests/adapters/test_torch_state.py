"""optimc.torch keeps its state as torch does: it moves both ways, and programs may look at it and edit it."""

import collections
import copy
import io
import pickle

import pytest
from conftest import require
from torch_cases import both, close, each_case, parameters, set_grads

torch = require("torch")
ot = pytest.importorskip("optimc.torch")


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
                # optimc keeps the scalars of a rule as it steps with them
                    torch.testing.assert_close(value, other["state"][k][key], rtol=1e-4, atol=1e-5,
                                               check_dtype=key not in ("mu_product", "eta", "mu"))
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
    with pytest.raises(ValueError, match=r"params\[1\]: state 'exp_avg': expected shape \(7,\)"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))


@pytest.mark.parametrize(("name", "key", "wrong"), [
    ("Adam", "step", torch.tensor(float("nan"))), ("Adam", "step", torch.ones(2)), ("Adam", "step", -1),
    ("Adam", "step", None), ("Adam", "step", float("inf")), ("NAdam", "mu_product", torch.ones(2)),
    ("ASGD", "eta", float("nan"))])
def test_wrong_numbers_are_refused_before_anything_changes(name, key, wrong):
    a = parameters()
    ours = getattr(ot, name)(a)
    set_grads(0, a)
    ours.step()
    state = copy.deepcopy(ours.state_dict())
    state["state"][1][key] = wrong
    kept = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=rf"loaded state '{key}' of parameter 1: expected a (count|number), got"):
        ours.load_state_dict(state)
    assert all(torch.equal(value, ours.state_dict()["state"][1][k]) for k, value in kept["state"][1].items())
    ours.step()
    assert ours.state[a[1]]["step"] == 2


def start_over(optimizer, params):
    """Restarts a parameter as a user does who knows torch's state."""
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


@each_case
def test_keys_that_are_no_parameters_pass(name, options):
    """A counter or a flag that a program, or a hook of its, puts beside the states."""
    (a, ours), (b, theirs) = both(name, options)
    states = []
    for params, optimizer in ((a, ours), (b, theirs)):
        optimizer.register_load_state_dict_post_hook(lambda own: own.state.__setitem__("loaded", True))
        optimizer.register_state_dict_post_hook(lambda own, state: state["state"].__setitem__("saved", True))
        for step in range(6):
            set_grads(step, params)
            if step == 2:
                optimizer.state["steps"] = 5
                optimizer.state["history"] = [1, {"a": 2}]
            if step == 4:
                optimizer.load_state_dict(optimizer.state_dict())
            optimizer.step()
            optimizer.zero_grad()
        states.append({key: value for key, value in optimizer.state.items() if isinstance(key, str)})
        assert optimizer.state_dict()["state"]["steps"] == 5
        copied = copy.deepcopy(optimizer)
        assert copied.state["history"] == [1, {"a": 2}]
        pickle.loads(pickle.dumps(optimizer))
    assert states[0] == states[1] and states[0]["loaded"] is states[0]["saved"] is True
    close(a, b)


def test_groups_keep_scalars_of_their_own():
    """NAdam's product of momentums depends on a group's betas; it must survive a look at the state."""
    (a, b), (ours, theirs) = zip(*((params, cls([{"params": params[:1]}, {"params": params[1:], "betas": (0.5, 0.9)}],
                                                lr=0.05))
                                   for cls, params in ((ot.NAdam, parameters(torch.float64)),
                                                       (torch.optim.NAdam, parameters(torch.float64)))), strict=True)
    for step in range(6):
        set_grads(step, a, b)
        ours.step()
        theirs.step()
        for p, q in zip(a, b, strict=True):
            assert ours.state[p]["mu_product"].item() == pytest.approx(theirs.state[q]["mu_product"].item(), rel=1e-6)
    close(a, b, 1e-6)
