"""optimc.torch follows the memory of parameters, gradients and state, wherever a program puts it."""

import contextlib
import gc
import subprocess
import sys
import time
import weakref

import pytest
from conftest import require
from torch_cases import both, close, parameters, set_grads

import optimc
from optimc import _core
from optimc._core import CHECKED

torch = require("torch")
ot = pytest.importorskip("optimc.torch")
from optimc.torch import bare, tensors  # noqa: E402

needs_table = pytest.mark.skipif(tensors.EXCHANGE is None, reason="this torch has no exchange table")


def exchange(params):
    for p, q in zip(params[::2], params[1::2], strict=False):
        if p.shape == q.shape:
            p.data, q.data = q.data, p.data


def clone_backwards(params):
    for p in reversed(params):
        p.data = p.data.clone()


def pass_on(params):
    """Each takes the memory of the one before it."""
    last = params[-1].data
    for p, q in zip(params[:0:-1], params[-2::-1], strict=True):
        p.data = q.data
    params[0].data = last


def evaluate_in_double(params):
    for p in params:
        p.data = p.data.double()
    for p in params:
        p.data = p.data.float()


@pytest.mark.parametrize("move", [exchange, clone_backwards, pass_on, evaluate_in_double])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_parameters_move_together(name, move):
    lists = parameters(shapes=[(6, 50)] * 6), parameters(shapes=[(6, 50)] * 6)
    optimizers = [getattr(module, name)(params, lr=0.01)
                  for module, params in zip((ot, torch.optim), lists, strict=True)]
    for step in range(10):
        set_grads(step, *lists)
        for optimizer, params in zip(optimizers, lists, strict=True):
            optimizer.step()
            move(params)
        close(*lists)


def test_a_gradient_may_lie_where_a_parameter_was():
    a, b = parameters(shapes=[(9,)] * 4), parameters(shapes=[(9,)] * 4)
    ours, theirs = ot.Adam(a), torch.optim.Adam(b)
    for step in range(4):
        set_grads(step, a, b)
        for params, optimizer in ((a, ours), (b, theirs)):
            optimizer.step()
            old = params[-1].data
            params[-1].data = old.clone()
            params[0].grad = old.copy_(params[0].grad)
            optimizer.step()
        close(a, b)


def test_a_refused_move_leaves_all_in_its_place():
    a, b = parameters(shapes=[(9,)] * 3), parameters(shapes=[(9,)] * 3)
    ours, theirs = ot.Adam(a), torch.optim.Adam(b)
    for step in range(3):
        set_grads(step, a, b)
        ours.step()
        theirs.step()
        before, kept = [p.detach().clone() for p in a], a[1].data
        a[0].data = a[0].data.clone()
        room = torch.cat([a[1].data, a[2].data])
        a[1].data, a[2].data = room[:9], room[5:14]
        with pytest.raises(ValueError, match=r"params\[2\]: overlaps another parameter or its state in memory"):
            ours.step()
        a[1].data, a[2].data = kept, before[2].clone()
        assert all(torch.equal(p, q) for p, q in zip(a, before, strict=True))
        ours.step()
        theirs.step()
        close(a, b)


def test_other_types_are_refused_until_they_are_real_again():
    a, b = parameters(), parameters()
    ours, theirs = ot.Adam(a), torch.optim.Adam(b)
    for step, dtype in enumerate([torch.float8_e4m3fn, torch.float8_e5m2] * 2):
        set_grads(step, a, b)
        ours.step()
        theirs.step()
        kept = [p.data for p in a]
        for p in a:
            p.grad = None
            p.data = p.data.to(dtype)
            p.grad = torch.ones_like(p)
        with pytest.raises(TypeError, match=f"bfloat16 or float16, or complex64 or complex128, got {dtype}"):
            ours.step()
        for p, data in zip(a, kept, strict=True):
            p.grad, p.data = None, data
    close(a, b)


def test_moving_all_parameters_takes_time_like_a_step():
    """To move one at a time, sorting each time, takes hundreds of steps; to move all together takes about four."""
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(500)]
    for p in params:
        p.grad = torch.ones(4)
    ours, best = ot.SGD(params, lr=0.1), {}
    for moved in [False] * 2 + [True, False] * 5:
        for p in params if moved else ():
            p.data = p.data.clone()
        start = time.perf_counter()
        ours.step()
        best[moved] = min(best.get(moved, 1e9), time.perf_counter() - start)
    assert best[True] < 50 * best[False]


# --------------------------------------------------------------------------------------------- state


def share(state, key):
    state[key].share_memory_()


def move(state, key):
    state[key].data = state[key].data.clone()


def replace(state, key):
    state[key] = state[key] + 1


def replace_by_strided(state, key):
    state[key] = torch.stack([state[key]] * 2, -1)[..., 1]


def replace_by_double_and_back(state, key):
    state[key] = state[key].double()
    state[key] = state[key].float()


@pytest.mark.parametrize("change", [share, move, replace, replace_by_strided, replace_by_double_and_back])
@pytest.mark.parametrize("name, key", [("SGD", "momentum_buffer"), ("Adam", "exp_avg"), ("Adam", "exp_avg_sq")])
def test_state_that_a_program_holds_counts(name, key, change):
    (a, ours), (b, theirs) = both(name, {"momentum": 0.9, "lr": 0.1} if name == "SGD" else {})
    set_grads(0, a, b)
    for optimizer in (ours, theirs):
        optimizer.step()
    states = [[optimizer.state[p] for p in params] for params, optimizer in ((a, ours), (b, theirs))]
    for step in range(1, 7):
        set_grads(step, a, b)
        for own, optimizer in zip(states, (ours, theirs), strict=True):
            optimizer.step()                        # the state is held since before this step
            change(own[step % len(own)], key)
        close(a, b, 1e-4)
    for own, their in zip(*states, strict=True):
        close([own[key]], [their[key]], 1e-4)


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, dtype=torch.int32), 1.0])
def test_state_that_a_program_holds_is_checked(wrong):
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    ours = ot.Adam([p])
    ours.step()
    state = ours.state[p]
    ours.step()
    before, kept, state["exp_avg"] = p.detach().clone(), state["exp_avg"], wrong
    with pytest.raises(ValueError, match=r"params\[0\]: state 'exp_avg': expected shape \(2,\) of torch.float32"):
        ours.step()
    assert torch.equal(p, before)
    state["exp_avg"] = kept
    ours.step()
    assert not torch.equal(p, before)


# ------------------------------------------------------------------------------- what is held, and how long


def stepped(n=5):
    """A parameter, its optimizer, and its state, which is held since before the last step."""
    p = torch.nn.Parameter(torch.zeros(n))
    p.grad = torch.ones(n)
    ours = ot.Adam([p])
    ours.step()
    state = ours.state[p]
    ours.step()
    return p, ours, state


@needs_table
def test_what_a_step_touches_is_held_from_its_check_to_its_end():
    from torch.multiprocessing.reductions import StorageWeakRef
    p, ours, state = stepped()
    cohort = ours._cohorts.all[0]
    p.data, p.grad.data, state["exp_avg"].data = torch.zeros(5), torch.ones(5), torch.ones(5)
    touched = [StorageWeakRef(tensor.untyped_storage()) for tensor in (p, p.grad, state["exp_avg"])]
    with _core.Transaction() as steps:
        assert steps.check_tensors(cohort.inner, cohort.params, cohort.exchange) == CHECKED
        p.data, p.grad.data, state["exp_avg"].data = torch.zeros(5), torch.ones(5), torch.ones(5)
        assert not any(storage.expired() for storage in touched)
        steps.commit()
    assert all(storage.expired() for storage in touched)
    assert p.tolist() == [0.0] * 5
    ours.step()
    assert (p != 0).all()


class Shy(torch.Tensor):
    """A tensor whose methods run Python code, by which another tensor moves."""

    move = staticmethod(lambda: None)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.untyped_storage:
            cls.move()
        return super().__torch_function__(function, types, args, kwargs or {})


@needs_table
def test_memory_that_moves_while_it_is_looked_at_is_looked_at_again(monkeypatch):
    q, p = params = [torch.nn.Parameter(torch.zeros(5)) for _ in range(2)]
    q.grad, p.grad = torch.ones(5), torch.ones(5).as_subclass(Shy)
    ours, moves = ot.SGD(params, lr=1.0), []
    ours.step()
    cohort = ours._cohorts.all[0]

    def check_and_commit():
        with _core.Transaction() as steps:
            steps.check_tensors(cohort.inner, cohort.params, cohort.exchange)
            steps.commit()

    def change():
        if len(moves) < 3:
            moves.append(q.data)
            q.data = torch.zeros(5)

    monkeypatch.setattr(Shy, "move", change)
    check_and_commit()
    assert len(moves) == 3 and (q == -1).all() and (moves[0] == -1).all() and not moves[1].any() | moves[2].any()
    monkeypatch.setattr(Shy, "move", lambda: setattr(q, "data", torch.zeros(5)))
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="memory moves while the step looks at them"):
        check_and_commit()
    assert torch.equal(p, before)


SWAPS = """
import threading, torch, optimc.torch
torch.set_num_threads(1)
n = 1_000_000
p = torch.nn.Parameter(torch.zeros(n)); p.grad = torch.ones(n)
opt = optimc.torch.Adam([p]); opt.step(); state = opt.state[p]
ended = threading.Event()
def swap():
    while not ended.is_set():
        p.data = torch.zeros(n); p.grad = torch.ones(n); state["exp_avg"] = torch.zeros(n)
thread = threading.Thread(target=swap); thread.start()
for _ in range(60):
    opt.step()
ended.set(); thread.join()
"""


def test_memory_may_be_exchanged_during_a_step():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", SWAPS], capture_output=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr


def test_what_steps_over_tensors_need_cannot_be_replaced_within_one():
    class Parameter(torch.nn.Parameter):
        action = staticmethod(lambda: None)

        @property
        def grad(self):
            self.action()
            return torch.ones(3)

    params = [Parameter(torch.ones(3)), Parameter(torch.ones(3))]
    core = optimc.SGD(0.5)
    core.build([p.detach().numpy() for p in params])
    core._prepare_tensors((None, None), ())
    for action in (lambda: core._prepare_tensors((None, None), ()), lambda: core.build([p.detach().numpy()
                                                                                        for p in params])):
        params[1].action = action
        with pytest.raises(RuntimeError, match="a step was asked for while one is in progress in this thread"):
            core._apply_tensors(params, tensors.EXCHANGE)
        assert all((p == 1).all() for p in params)
    params[1].action = lambda: None
    assert core._apply_tensors(params, tensors.EXCHANGE) == CHECKED
    assert all((p == 0.5).all() for p in params)


@needs_table
def test_a_step_that_cannot_hold_what_it_touches_does_nothing():
    hooks = pytest.importorskip("_testcapi", reason="this interpreter cannot make allocations fail")
    params, states = [torch.ones(5), torch.ones(3)], [{"m": torch.zeros(5)}, {"m": torch.zeros(3)}]
    core = optimc.SGD(0.5, momentum=0.9)
    core.build([p.numpy() for p in params], slots={"velocity": [state["m"].numpy() for state in states]})
    core._prepare_tensors((None, None), (), tuple((i, 0, state, "m") for i, state in enumerate(states)),
                          bare.PLAIN)
    failures = through = n = 0
    gc.disable()
    while through < 5:
        for p in params:
            p.data, p.grad = torch.ones(p.shape), torch.ones(p.shape)
        with _core.Transaction() as steps:
            found = None
            with contextlib.suppress(MemoryError, RuntimeError):
                hooks.set_nomemory(n, n + 1)
                try:                        # within it no function is made, of which CPython 3.12 and 3.13 may die
                    found = steps.check_tensors(core, params, tensors.EXCHANGE)
                finally:
                    hooks.remove_mem_hooks()
            if found is not None:
                steps.commit()
        assert all((p != 1).all() if found == CHECKED else (p == 1).all() for p in params)
        failures, through, n = failures + (found != CHECKED), through + 1 if found == CHECKED else 0, n + 1
    gc.enable()
    assert failures > 3


def let_go(optimizer, params, state):
    pass


def after_looks(optimizer, params, state):
    for _ in range(3):
        optimizer.step()
        state.append(optimizer.state[params[0]])


def after_rests(optimizer, params, state):
    params[1].grad = None
    optimizer.step()
    optimizer.state_dict()


def refused(optimizer, params, state):
    params[0].grad = torch.ones(7).expand(7)
    params[0].grad.untyped_storage().resize_(0)
    with contextlib.suppress(ValueError, RuntimeError):
        optimizer.step()


def hooked(optimizer, params, state):
    optimizer.register_step_pre_hook(lambda *_: None)
    optimizer.register_step_post_hook(lambda *_: None)
    optimizer.step()


def loaded(optimizer, params, state):
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


def with_another_state(optimizer, params, state):
    optimizer.state = dict(optimizer.state)
    optimizer.step()


@pytest.mark.parametrize("use", [let_go, after_looks, after_rests, refused, hooked, loaded, with_another_state])
@pytest.mark.parametrize("steps", [0, 3])
def test_an_optimizer_goes_with_its_last_name(use, steps):
    params = [torch.nn.Parameter(torch.ones(7)) for _ in range(2)]
    for p in params:
        p.grad = torch.ones(7)
    optimizer, held = ot.Adam(params), []
    for _ in range(steps):
        optimizer.step()
    gc.collect()
    gc.disable()
    try:
        use(optimizer, params, held)
        state = optimizer.state
        gone = [weakref.ref(thing) for thing in (optimizer, optimizer._cohorts, *optimizer._cohorts.all)]
        moment = state[params[0]].get("exp_avg")
        gone += [] if moment is None or held else [weakref.ref(moment)]
        del state, moment
        del optimizer
        held.clear()
        assert not any(reference() for reference in gone)
    finally:
        gc.enable()


def test_a_state_that_outlives_its_optimizer_has_its_counts():
    p, ours, _ = stepped()
    state = ours.state
    ours.step()
    del ours
    assert float(state[p]["step"]) == 3


# -------------------------------------------------------------------------------- tensors of other kinds


def without_memory():
    gone = torch.ones(5)
    gone.untyped_storage().resize_(0)
    return gone


def fake():
    with torch._subclasses.fake_tensor.FakeTensorMode():
        return torch.ones(5)


@pytest.mark.parametrize("make", [without_memory, fake])
def test_tensors_without_memory_are_refused(make):
    for first in (True, False):
        p = torch.nn.Parameter(torch.zeros(5))
        ours = ot.SGD([p], lr=1.0)
        if not first:
            p.grad = torch.ones(5)
            ours.step()
            ours.step()
        before = p.detach().clone()
        p.grad = make()
        with pytest.raises((TypeError, ValueError, RuntimeError), match=r"memory|[Ff]ake"):
            ours.step()
        assert torch.equal(p, before)
    p, ours, state = stepped()
    state["exp_avg"] = make()
    with pytest.raises((ValueError, RuntimeError), match=r"memory|numpy"):
        ours.step()
    p, ours, state = stepped()
    p.data = without_memory()
    with pytest.raises((ValueError, RuntimeError), match="memory"):
        ours.step()


def imaginary(values):
    return torch.complex(torch.zeros_like(values), -values).conj().imag


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 5), (2, 1)])
def test_negative_gradients_have_their_sign(shape):
    values = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    assert imaginary(values).is_neg() and torch.equal(imaginary(values), values)
    p = torch.nn.Parameter(torch.zeros(shape))
    ours = ot.SGD([p], lr=1.0)
    for step in range(1, 4):
        p.grad = imaginary(values)
        ours.step()
        assert torch.equal(p, -step * values)


@pytest.mark.parametrize("where, error, message", [
    ("parameter", ValueError, r"^params\[0\]: expected the numbers in memory, got the lazy negative of them: "),
    ("state", RuntimeError, "negative bit")])
def test_negative_parameters_and_state_are_refused(where, error, message):
    p, ours, state = stepped()
    negative = torch._neg_view(torch.ones(5))
    if where == "parameter":
        p.data = negative
    else:
        state["exp_avg"] = negative
    with pytest.raises(error, match=message):
        ours.step()
    assert (negative == -1).all()


def test_what_was_made_in_inference_mode_is_stepped_there_only():
    with torch.inference_mode():
        p, entry = torch.nn.Parameter(torch.zeros(5)), torch.ones(5)
        p.grad = torch.ones(5)
    ours = ot.SGD([p], lr=1.0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inference mode"):
            ours.step()
        assert not p.any()
    for step in (1, 2):
        with torch.inference_mode():
            ours.step()
        assert (p == -step).all()
    with pytest.raises(RuntimeError, match="inference mode"):
        ours.step()
    p, ours, state = stepped()
    state["exp_avg"] = entry
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="inference mode"):
        ours.step()
    assert torch.equal(p, before) and (entry == 1).all()


@pytest.mark.parametrize("make", [lambda: torch.ones(1).expand(4, 3), lambda: torch.ones(3, 4).T,
                                  lambda: torch.ones(4, 3).as_subclass(Shy), lambda: torch.ones(8, 6)[::2, ::2]])
def test_gradients_of_any_kind_with_memory_are_taken(make):
    a, b = parameters(shapes=[(4, 3), (0, 2)]), parameters(shapes=[(4, 3), (0, 2)])
    ours, theirs = ot.Adam(a), torch.optim.Adam(b)
    for _ in range(3):
        for params, optimizer in ((a, ours), (b, theirs)):
            params[0].grad, params[1].grad = make(), torch.ones(0, 2)
            optimizer.step()
    close(a[:1], b[:1])


def test_garbage_that_moves_a_parameter_is_not_collected_within_a_step():
    """The list of those that step is made in mid-step, where another rests; its making must run no finalizer."""
    n = 4096
    a, b = (torch.nn.Parameter(torch.ones(n)) for _ in range(2))
    ours = ot.Adam([a, b], lr=0.1)

    class Garbage:
        def __del__(self):
            if inside:
                within.append(threshold)
                a.data = torch.full((n,), 7.0)

    def ran(stepped):
        nonlocal inside
        inside = False

    inside, within, before = False, [], gc.get_threshold()
    for k in range(3):
        a.grad, b.grad = torch.ones(n), torch.ones(n) if k < 2 else None
        ours.step()
    turn, moved = ours._cohorts.turn, []
    turn.step = (*turn.step[:4], ran)
    try:
        for threshold in range(1, 8):
            gc.disable()
            gc.collect()
            garbage = Garbage()
            garbage.itself = garbage
            del garbage
            where = a.data_ptr()
            gc.set_threshold(threshold, 1000, 1000)
            gc.enable()
            inside = True
            turn.apply()
            assert not inside
            moved.append(a.data_ptr() != where and bool((a == 7).all()))
    finally:
        gc.enable()
        gc.set_threshold(*before)
    assert not any(moved)


def test_parameters_whose_first_gradients_are_late_are_planned_before_them(monkeypatch):
    plans = []
    cls = type(ot.Adam(parameters())._cohorts)
    monkeypatch.setattr(cls, "_replan", lambda self, *args, replan=cls._replan, **kwargs: (
        plans.append(1), replan(self, *args, **kwargs)))
    a, b = ([torch.nn.Parameter(torch.ones(3)) for _ in range(12)] for _ in range(2))
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    ours, theirs = ot.Adam([*a, frozen], lr=0.1), torch.optim.Adam(b, lr=0.1)
    for step in range(12):
        for p, q in zip(a[:step + 1], b, strict=False):
            p.grad, q.grad = (torch.full((3,), step + 1.0) for _ in range(2))
        ours.step()
        theirs.step()
        close(a, b)
    assert len(plans) == 3
    assert [member.param for member in ours._cohorts._resting] == [frozen]
    assert [ours.state[p]["step"] for p in a] == list(range(12, 0, -1)) and frozen not in ours.state
