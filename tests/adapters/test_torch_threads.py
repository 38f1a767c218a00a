"""One optimizer of optimc.torch in several threads: steps, looks at the state and saves come one after the other."""

import os
import sys
import threading

import pytest
from conftest import require
from forks import fork
from torch_cases import parameters, set_grads

import optimc
from optimc import _core

torch = require("torch")
ot = pytest.importorskip("optimc.torch")


@pytest.fixture(autouse=True)
def often():
    """Threads take turns as often as they can, so that a step without a turn of its own is found out."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def threads(*functions):
    """Runs functions in threads; raises what one of them raised."""
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)
    all_of_them = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in all_of_them:
        thread.start()
    for thread in all_of_them:
        thread.join()
    for error in errors:
        raise error


def many(count=100):
    """Parameters with equal gradients, and an optimizer for them."""
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(count)]
    for p in params:
        p.grad = torch.ones(3)
    return params, ot.Adam(params, lr=0.1)


def test_steps_of_two_threads_are_whole():
    (q,), one = many(1)
    for _ in range(10):
        one.step()
    for _ in range(3):
        params, ours = many()
        threads(*[lambda ours=ours: [ours.step() for _ in range(5)]] * 2)
        assert {float(ours.state[p]["step"]) for p in params} == {10.0}
        assert all(torch.equal(p, q) for p in params)


@pytest.mark.parametrize("look", [
    lambda ours: ours.state_dict(), lambda ours: [ours.state[p] for p in ours.param_groups[0]["params"]],
    lambda ours: ours.state.copy(), lambda ours: ours.__getstate__()],
    ids=["state_dict", "state", "copy", "pickle"])
def test_a_look_beside_steps_takes_nothing_from_them(look):
    for _ in range(3):
        params, ours = many()
        done = threading.Event()

        def looking(ours=ours, done=done):
            while not done.is_set():
                look(ours)

        def stepping(ours=ours, done=done):
            try:
                for _ in range(10):
                    ours.step()
            finally:
                done.set()
        threads(looking, stepping)
        assert {float(state["step"]) for state in ours.state.values()} == {10.0}
        assert len({tuple(p.tolist()) for p in params}) == 1


def test_a_state_dict_beside_steps_is_of_one_moment():
    _, ours = many()
    ours.step()
    seen, done = [], threading.Event()

    def saving():
        while not done.is_set():
            with ours._cohorts.turn:                # the tensors are live: read them before the next step
                state = ours.state_dict()["state"].values()
                seen.append({(float(s["step"]), float(s["exp_avg"][0])) for s in state})

    def stepping():
        try:
            for _ in range(50):
                ours.step()
        finally:
            done.set()
    threads(saving, stepping)
    assert all(len(of_one) == 1 for of_one in seen)


def test_torchs_threads_are_heeded():
    before, of_torch = optimc.get_num_threads(), torch.get_num_threads()
    _core._force_threads(0)
    try:
        torch.set_num_threads(1)
        assert optimc.get_num_threads() == 1
        optimc.set_num_threads(before)
        assert optimc.get_num_threads() == before
    finally:
        torch.set_num_threads(of_torch)
        _core._force_threads(0)


def test_steps_among_parallel_work_of_torchs():
    """The threads of torch's runtime step while they are awake; the bits are those of one thread."""
    def train():
        p = torch.nn.Parameter(torch.linspace(-1, 1, 1_500_001))
        p.grad = torch.linspace(2, -1, 1_500_001)
        ours = ot.AdamW([p], lr=0.1)
        for _ in range(20):
            torch.ones(300, 300) @ torch.ones(300, 300)
            ours.step()
        return p.detach()
    shared = train()
    optimc.set_num_threads(1)
    try:
        assert torch.equal(train(), shared)
    finally:
        _core._force_threads(0)


def test_optimizers_do_not_wait_for_each_other():
    _, first = many(1)
    (p,), second = many(1)
    with first._cohorts.turn:
        threads(second.step)
    assert (p != 0).all()


def test_a_step_within_a_step_is_refused():
    a = parameters(shapes=[(3,)])

    class Rate:
        def __float__(self):
            ours.step()
            return 0.1
    ours = ot.SGD(a, lr=0.1)
    ours.param_groups[0]["lr"] = Rate()
    set_grads(0, a)
    before = a[0].detach().clone()
    with pytest.raises(RuntimeError, match="a step was asked for while one is in progress in this thread"):
        ours.step()
    assert torch.equal(a[0], before)
    ours.param_groups[0]["lr"] = 0.1
    ours.step()
    assert not torch.equal(a[0], before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_takes_over_the_turn_of_a_thread_it_does_not_have():
    (p,), ours = many(1)
    ours.step()
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with ours._cohorts.turn:
            inside.set()
            leave.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    child = fork()
    if not child:
        ours.step()
        os._exit(int(float(ours.state[p]["step"]) != 2))
    leave.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
