"""optimc.torch with parameters of 16 bits and slots in fewer bits: the bits of float32 where a master keeps them."""

import copy
import subprocess
import sys

import numpy as np
import pytest
from conftest import require
from torch_cases import (
    AT_RANDOM,
    DENSE,
    HALVES,
    STORAGES,
    bits,
    each_case,
    each_class,
    each_half,
    each_storage,
    halves,
    parameters,
    run,
    same,
    set_both,
    set_grads,
    split,
    wide,
)

import optimc
from optimc import _core
from optimc.base.narrow import choices_of
from optimc.torch_names import STORAGE, rounds_to_nearest

torch = require("torch")
ml_dtypes = require("ml_dtypes")
ot = pytest.importorskip("optimc.torch")
from optimc.torch import tensors  # noqa: E402

needs_table = pytest.mark.skipif(tensors.EXCHANGE is None, reason="this torch has no exchange table")


# -------------------------------------------------------------------------------------------- masters


@each_half
@each_case
def test_parameters_of_16_bits_are_those_of_float32_rounded(name, options, dtype):
    """At every step, bit for bit, and so are their slots."""
    cls, narrow = getattr(ot, name), halves(dtype)
    real = wide(narrow)
    ours, theirs = cls(narrow, **options), cls(real, **options)
    for step in range(9):
        set_both(step, narrow, real)
        ours.step()
        theirs.step()
        for p, q in zip(narrow, real, strict=True):
            master = ours.state[p]["master_param"]
            if dtype == torch.bfloat16:
                upper, rest = split(q)
                assert same(p, upper) and same(master, rest)
            else:
                assert same(p, q.detach().half()) and same(master, q.detach())
    for p, q in zip(narrow, real, strict=True):
        mine, other = ours.state[p], theirs.state[q]
        assert {*mine} == {*other, "master_param"}
        for key, value in other.items():
            if isinstance(value, torch.Tensor):
                assert same(mine[key], value) and mine[key].shape == value.shape


@needs_table
@each_storage
def test_the_short_way_is_taken_and_stays_right_while_the_state_is_held(storage):
    narrow = halves()
    ours = ot.AdamW(narrow, **storage)
    twins = copy.deepcopy((ours, narrow))
    held = []
    for step in range(6):
        set_grads(step, narrow, twins[1])
        ours.step()
        twins[0].step()
        assert not step or ours._cohorts.turn.step is not None
        if step == 1:
            held = [tensor for p in narrow for key, tensor in ours.state[p].items() if key != "step"]
            ours.step()
            twins[0].step()
    assert held and all(map(same, narrow, twins[1]))
    for p in narrow:
        for key, tensor in ours.state[p].items():
            assert key == "step" or any(tensor is other for other in held)


def test_a_model_of_several_types_steps_in_one_call():
    params = [*halves(), *halves(torch.float16), *parameters()]
    ours = ot.Adam(params, state_dtype="bfloat16")
    run(ours, params, 3)
    assert len(ours._cohorts.all) == 1
    assert [ours.state[p].get("master_param", p).dtype for p in (params[0], params[6], params[-1])] == [
        torch.int16, torch.float32, torch.float32]


def test_a_model_may_become_narrow_and_wide_again():
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    params = [*model.parameters()]
    ours = ot.AdamW(params, lr=0.01)
    for step, (dtype, master) in enumerate([(torch.float32, None), (torch.bfloat16, torch.int16),
                                            (torch.float16, torch.float32), (torch.float32, None),
                                            (torch.bfloat16, torch.int16), (torch.float64, None)]):
        model.to(dtype)
        for k in range(2):
            before = [p.detach().clone() for p in params]
            set_grads(2 * step + k, params)
            ours.step()
            assert not any(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        for p in params:
            state = ours.state[p]
            assert getattr(state.get("master_param"), "dtype", None) == master
            assert state["exp_avg"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert state["step"] == 2 * step + 2


def test_masters_are_reset_when_a_program_says_so():
    for dtype in HALVES:
        p, = halves(dtype, [(300,)])
        q = torch.nn.Parameter(torch.full((300,), 0.7))
        ours, theirs = ot.SGD([p], lr=0.01), ot.SGD([q], lr=0.01)
        run(ours, [p], 3)
        with torch.no_grad():
            p.fill_(0.7)
            q.copy_(p)
        ours.reset_master()
        set_both(5, [p], [q])
        ours.step()
        theirs.step()
        assert same(p, split(q)[0] if dtype == torch.bfloat16 else q.detach().half())


# ---------------------------------------------------------------------------------------- as torch rounds


def share_apart(mine, exact):
    """The share of numbers that are not the exact ones rounded, but close to them: others fail."""
    if mine.dtype == torch.float32:
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-6)
        return 0
    expected = exact.to(mine.dtype)
    torch.testing.assert_close(mine, expected, rtol=2.0 ** -7, atol=1e-4)
    return (mine != expected).float().mean()


@each_half
@each_case
def test_without_masters_a_step_ends_with_rounding_to_nearest(name, options, dtype):
    """From parameters and slots of 16 bits: torch's step of the same numbers in float32, rounded once."""
    narrow = halves(dtype)
    ours = getattr(ot, name)(narrow, master_weights=False, **options)
    for step in range(4):
        real = wide(narrow)
        theirs = getattr(torch.optim, name)(real, **options)
        theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
        set_both(step, narrow, real)
        ours.step()
        theirs.step()
        for p, q in zip(narrow, real, strict=True):
            assert "master_param" not in ours.state[p]
            of_torch = theirs.state[q]
            assert ours.state[p].keys() == of_torch.keys() and p.dtype == dtype
            assert share_apart(p, q) <= max(0.01, 1 / p.numel())
            for slot, key in ours._counterpart.slots.items():
                mine, inner = ours.state[p].get(key), ours._cohorts.all[0].inner
                if mine is not None:
                    assert mine.dtype == (dtype if choices_of(inner, slot) else torch.float32)
                    assert share_apart(mine, of_torch[key]) <= max(0.01, 1 / mine.numel())


@each_half
def test_modes_of_schedule_free_are_rounded_once(dtype):
    p, = halves(dtype, [(5000,)])
    ours = ot.ScheduleFreeAdamW([p], lr=0.05, betas=(0.75, 0.999), master_weights=False)
    run(ours, [p], 4)
    ours.eval()
    average, z = p.detach().float(), ours.state[p]["z"].clone()
    ours.train()
    assert same(p, (0.25 * z + 0.75 * average).to(dtype))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_without_masters_states_are_those_of_torch(name):
    lists = halves(), halves()
    ours = getattr(ot, name)(lists[0], lr=0.01, master_weights=False)
    theirs = getattr(torch.optim, name)(lists[1], lr=0.01, fused=name != "SGD")      # its fused step errs here
    for step in range(20):
        set_grads(step, *lists)
        ours.step()
        theirs.step()
    for p, q in zip(*lists, strict=True):
        kinds = [{key: getattr(value, "dtype", None) for key, value in one.items()}
                 for one in (ours.state[p], theirs.state[q])]
        assert kinds[0] == kinds[1]
        assert (p != q).float().mean() < 0.2 or p.numel() < 100         # torch rounds some of its products, too
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.002)
    saved = copy.deepcopy(theirs.state_dict())
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    ours.load_state_dict(saved)
    set_grads(20, *lists)
    ours.step()
    theirs.step()


def test_only_what_has_16_bits_is_rounded_so():
    """Slots of a float32 parameter in the same group are stored as `state_dtype` says."""
    both = [[*halves(shapes=[(500,)]), *parameters(shapes=[(500,)])] for _ in range(2)]
    for params, storage in zip(both, ({}, {"state_dtype": "bfloat16"}), strict=True):
        ours = ot.Adam(params, lr=0.01, master_weights=False, **storage)
        run(ours, params, 3)
        assert len(ours._cohorts.all) == 1
        assert [ours.state[p]["exp_avg_sq"].dtype for p in params] == [
            torch.bfloat16, torch.bfloat16 if storage else torch.float32]
    assert same(both[0][0], both[1][0])


# ------------------------------------------------------------------------------------- slots in fewer bits


def core_of(name, storage, shapes):
    cls = {"NAdam": "Nadam"}.get(name, name)
    to_nearest, storage = rounds_to_nearest(storage), {**storage}
    at_random = storage.pop("stochastic_round", False)
    storage["master_weights"] = not at_random
    weights = [p.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy() for p in halves(shapes=shapes)]
    optimizer = getattr(optimc, cls)(style="torch", **storage)
    optimizer._to_nearest = ["bfloat16"] * to_nearest
    return optimizer, weights


@each_storage
@pytest.mark.parametrize("name", [name for name in DENSE if name not in ("ASGD", "Rprop")])
def test_the_bits_are_those_of_the_optimizer_of_arrays(name, storage):
    """So random numbers depend on the position of the parameter, its steps and the seed."""
    shapes = [(10, 7), (5000,), (64, 80)]
    if name == "Adafactor" and "state_dtype" in storage:
        pytest.skip("its slots stay float32")
    narrow = halves(shapes=shapes)
    core, weights = core_of(name, storage, shapes)
    core.learning_rate = 0.05
    ours = getattr(ot, name)(narrow, lr=0.05, **storage)
    for step in range(5):
        set_grads(step, narrow)
        ours.step()
        core.apply([p.grad.float().numpy() for p in narrow], weights)
    for p, w in zip(narrow, weights, strict=True):
        assert np.array_equal(bits(p).numpy(), w.view(np.int16))
    counterpart = ours._counterpart
    for slot, arrays in core._slots.items():
        for p, array in zip(narrow, arrays, strict=True):
            if array is None:
                continue
            tensor = ours.state[p][counterpart.slots[slot]].reshape(array.shape)
            assert np.array_equal(bits(tensor).numpy(), bits(torch.from_numpy(array.view(np.int16) if array.dtype ==
                                                                              np.uint16 else array)).numpy())


def test_the_form_of_each_slot():
    params = [*parameters(shapes=[(100, 50), (20,)]), *halves(shapes=[(100, 50), (20,)])]
    for word, forms in {
            "bfloat16": [(p.shape, torch.bfloat16) for p in params],
            "int8": [((_core.coded_size(5000),), torch.uint8), ((20,), torch.float32)] * 2,
            torch.bfloat16: [(p.shape, torch.bfloat16) for p in params],
            torch.float32: [(p.shape, torch.float32) for p in params],
            None: [(p.shape, torch.float32) for p in params]}.items():
        ours = ot.Adam(params, state_dtype=word)
        run(ours, params, 2)
        for key in ("exp_avg", "exp_avg_sq"):
            assert [(ours.state[p][key].shape, ours.state[p][key].dtype) for p in params] == forms
    for words in ({"exp_avg": "bfloat16"}, {"m": torch.bfloat16, "v": None}):
        ours = ot.Adam(params, state_dtype=words)
        run(ours, params, 2)
        assert ours.state[params[0]]["exp_avg"].dtype == torch.bfloat16
        assert ours.state[params[0]]["exp_avg_sq"].dtype == torch.float32


@each_storage
def test_random_numbers_do_not_change_with_the_parameters_that_step_together(storage):
    """A flag without effect parts the parameters of one of two optimizers; in both, one of them rests at times."""
    results = []
    for decoupled in (False, True):
        params = halves(shapes=[(5000,), (70, 80), (30,)])
        groups = [{"params": params[:1]}, {"params": params[1:], "decoupled_weight_decay": decoupled}]
        ours = ot.Adam(groups, **storage)
        for step in range(6):
            set_grads(step, params)
            if step in (1, 3):
                params[1].grad = None
            ours.step()
        results.append([*params, *(tensor for p in params for tensor in ours.state[p].values())])
    assert all(map(same, *results))


def test_seeds_differ():
    results = []
    for seed in (0, 0, 1):
        params = halves()
        run(ot.Adam(params, **AT_RANDOM, seed=seed), params, 3)
        results.append(params)
    assert all(map(same, results[0], results[1])) and not all(map(same, results[0], results[2]))


def test_accumulators_start_at_what_torch_was_told():
    """torch's constructor rounds them to the type of the parameter."""
    narrow = halves(shapes=[(5000,)])
    real = wide(narrow)
    for storage, dtype in (({}, torch.float32), ({"state_dtype": "bfloat16"}, torch.bfloat16)):
        ours = ot.Adagrad(narrow, initial_accumulator_value=0.1, **storage)
        assert ours.state[narrow[0]]["sum"].dtype == dtype
        assert ours.state[narrow[0]]["sum"].float().mean().item() == pytest.approx(0.1, rel=1e-4)
        ours.share_memory()
        run(ours, narrow, 2)
    assert same(ot.Adagrad(real, initial_accumulator_value=0.1).state[real[0]]["sum"], torch.full((5000,), 0.1))


# ------------------------------------------------------------------------------------------------ groups


def test_groups_store_their_slots_as_they_say():
    params = halves(shapes=[(5000,)] * 4)
    for first in ("int8", None):
        ours = ot.Adam([{"params": params[:1]}, {"params": params[1:2], "state_dtype": "bfloat16"},
                        {"params": params[2:3], "state_dtype": None}], **({"state_dtype": first} if first else {}))
        ours.add_param_group({"params": params[3:], "state_dtype": {"exp_avg_sq": "int8"}})
        run(ours, params, 2)
        assert len(ours._cohorts.all) == 1
        assert [ours.state[p]["exp_avg"].dtype for p in params] == [
            torch.uint8 if first else torch.float32, torch.bfloat16, torch.float32, torch.float32]
        assert ours.state[params[3]]["exp_avg_sq"].dtype == torch.uint8
        assert ("state_dtype" in ours.param_groups[0]) == bool(first)
        again = ot.Adam(copy.deepcopy(ours.param_groups))
        assert [group.get("state_dtype") for group in again.param_groups] == [
            first, "bfloat16", None, {"exp_avg_sq": "int8"}]


def test_storage_may_change_between_steps():
    params = halves(shapes=[(5000,)])
    ours, seen = ot.Adam(params), []
    group, = ours.param_groups
    for step, word in enumerate([None, "bfloat16", "int8", "bfloat16", None]):
        if word or step:
            group["state_dtype"] = word
        run(ours, params, 2, 2 * step)
        seen.append(ours.state[params[0]]["exp_avg"].dtype)
        assert ours.state[params[0]]["step"] == 2 * step + 2
    assert seen == [torch.float32, torch.bfloat16, torch.uint8, torch.bfloat16, torch.float32]
    assert "master_param" in ours.state[params[0]]
    group["master_weights"] = False
    run(ours, params, 2)
    assert "master_param" not in ours.state[params[0]]
    group["seed"] = -1
    with pytest.raises(ValueError, match="seed must be in"):
        run(ours, params, 1)


def test_groups_may_have_seeds_and_masters_of_their_own():
    params = halves(shapes=[(500,)] * 3)
    ours = ot.Adam([{"params": params[:1]}, {"params": params[1:2], **AT_RANDOM},
                    {"params": params[2:], **AT_RANDOM, "seed": 5}])
    run(ours, params, 3)
    assert [("master_param" in ours.state[p]) for p in params] == [True, False, False]
    again = halves(shapes=[(500,)] * 3)
    run(ot.Adam(again, **AT_RANDOM, seed=5), again, 3)
    assert same(params[2], again[2]) and not same(params[1], again[1])


# ------------------------------------------------------------------------------- what programs do with it


@pytest.mark.parametrize("storage", STORAGES[:3], ids=str)
def test_state_that_a_program_holds_counts(storage):
    def other_type(state, key):
        state[key] = torch.full((70, 80), 0.01)

    def share(state, key):
        state[key].share_memory_()

    def move(state, key):
        state[key].data = state[key].data.clone()

    def replace(state, key):
        state[key] = state[key].clone()

    def misplace(state, key):
        state[key] = torch.cat([state[key].flatten()[:1], state[key].flatten()])[1:].view(state[key].shape)

    params = halves(shapes=[(70, 80), (5000,)])
    twins = copy.deepcopy(params)
    ours, other = ot.Adam(params, **storage), ot.Adam(twins, **storage)
    run(ours, params, 1)
    run(other, twins, 1)
    state, twin = ours.state[params[0]], other.state[twins[0]]
    for step, change in enumerate([share, move, replace, misplace, other_type, move, misplace], 1):
        set_grads(step, params, twins)
        ours.step()                             # the state is held since before this step
        other.step()
        keys = ("exp_avg", "exp_avg_sq", *["master_param"] * (change is not other_type))
        for key in keys:
            change(state, key)
        if change is other_type:
            for key in keys:
                change(twin, key)
    set_grads(9, params, twins)
    ours.step()
    other.step()
    assert all(map(same, params, twins))
    assert all(same(state[key], twin[key]) for key in state)


@each_half
def test_gradient_scaling(dtype):
    """Within the step.  torch refuses to unscale gradients of float16 without fused=True."""
    narrow = halves(dtype, [(50,)])
    real = wide(narrow)
    ours, theirs = (ot.SGD(params, lr=0.1, momentum=0.9, fused=params is narrow) for params in (narrow, real))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    for step in range(5):
        set_both(step, narrow, real)
        for p in narrow:
            p.grad *= 8.0
        if step == 2:
            narrow[0].grad[3] = float("inf")
        else:
            theirs.step()
        scaler.scale(torch.ones(()))
        scaler.step(ours)
        scaler.update(8.0)
    assert same(narrow[0], split(real[0])[0] if dtype == torch.bfloat16 else real[0].detach().half())


def test_averages_and_loading_of_models():
    from torch.optim.swa_utils import AveragedModel
    model = torch.nn.Linear(20, 30).bfloat16()
    params = [*model.parameters()]
    ours, averaged = ot.AdamW(params, lr=0.01), AveragedModel(model)
    for step in range(3):
        run(ours, params, 1, step)
        averaged.update_parameters(model)
    saved = copy.deepcopy((model.state_dict(), ours.state_dict()))
    after = [run(ours, params, 2, 3), [p.detach().clone() for p in params]][1]
    for first in (ours, model):                     # in both orders
        ours.load_state_dict(saved[1])
        model.load_state_dict(saved[0])
        if first is model:
            ours.load_state_dict(saved[1])
        run(ours, params, 2, 3)
        assert all(map(same, params, after))


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_both_ways_to_the_memory(monkeypatch, storage):
    lists = halves(), halves()
    optimizers = [ot.AdamW(params, **storage) for params in lists]
    for step in range(4):
        for k, (optimizer, params) in enumerate(zip(optimizers, lists, strict=True)):
            with monkeypatch.context() as patch:
                if k:
                    patch.setattr(tensors, "EXCHANGE", None)
                run(optimizer, params, 1, step)
                params[0].data = params[0].data.clone()
    assert all(map(same, *lists))


WITHOUT_ML_DTYPES = """
import sys; sys.modules["ml_dtypes"] = None
import torch, optimc.torch as ot
params = [torch.nn.Parameter(torch.ones(5000, dtype=dtype)) for dtype in (torch.float32, torch.float16)]
optimizer = ot.AdamW(params, state_dtype="bfloat16")
for _ in range(3):
    for p in params: p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
narrow = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
for build in (lambda: ot.AdamW([narrow]), lambda: optimizer.add_param_group({"params": [narrow]})):
    try: build()
    except ImportError as error: print(error)
print(len(optimizer.param_groups))
"""


def test_a_step_without_ml_dtypes():
    """Slots in fewer bits need it not; parameters of bfloat16 do."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_ML_DTYPES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["bfloat16 weights need ml_dtypes: pip install ml_dtypes"] * 2 + ["1"]


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name, storage, message", [
    ("Adam", {"state_dtype": "float8"}, "state_dtype must be None, 'float32', 'bfloat16' or 'int8', got 'float8'"),
    ("Adam", {"state_dtype": {"exp_avg": "float8"}}, r"state_dtype\['exp_avg'\] must be"),
    ("Adam", {"state_dtype": {"exp": "int8"}}, "keeps no slot 'exp'.*it has 'exp_avg', 'exp_avg_sq'"),
    ("Rprop", {"state_dtype": "bfloat16"},
     "slot 'step_size' of Rprop must stay float32: pass state_dtype={'prev': 'bfloat16'}"),
    ("ASGD", {"state_dtype": "int8"}, "the slot 'ax' of ASGD must stay float32"),
    ("SGD", {"seed": -1}, "seed must be in"),
    ("SGD", {"master_weights": 1}, "master_weights must be a bool"),
    ("SGD", {"stochastic_round": 1, "master_weights": False}, "stochastic_round must be a bool, got int"),
    ("SGD", {"stochastic_round": True}, "stochastic_round=True is for parameters without a master: pass master_")])
def test_what_cannot_be_stored_is_refused(name, storage, message):
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(ot, name)(halves(), lr=0.1, **storage)
    ours = getattr(ot, name)(halves(), lr=0.1)
    with pytest.raises((TypeError, ValueError), match=message):
        ours.add_param_group({"params": halves(), **storage})
    assert len(ours.param_groups) == 1


def test_words_in_groups_that_nearly_are_about_storage_are_refused():
    for key in ("state_dytpe", "master_weight", "stochastic_rounding"):
        with pytest.raises(TypeError, match=rf"^optimc\.torch\.Adam: a parameter group has '{key}': did you mean"):
            ot.Adam([{"params": parameters(), key: None}])
    assert ot.Adam([{"params": parameters(), "lr_scale": 0.5, "name": "head"}]).param_groups[0]["lr_scale"] == 0.5


def test_float16_needs_a_master_or_is_rounded_to_nearest():
    message = r"params\[1\]: only bfloat16 parameters can be rounded at random, got float16: leave stochastic_round"
    mixed = [*halves(shapes=[(3,)]), *halves(torch.float16, [(3,)])]
    with pytest.raises(ValueError, match=message):
        ot.SGD(mixed, lr=0.1, **AT_RANDOM)
    ours = ot.SGD(mixed[:1], lr=0.1, **AT_RANDOM)
    with pytest.raises(ValueError, match=message):
        ours.add_param_group({"params": mixed[1:]})
    mixed[0].data = mixed[0].data.half()
    with pytest.raises(ValueError, match=message.replace("1", "0", 1)):
        run(ours, mixed[:1], 1)


@each_class
def test_words_for_storage(name):
    for word, advice in (("state_dtypes", "state_dtype"), ("master_weight", "master_weights")):
        with pytest.raises(TypeError, match=rf"has no argument '{word}': did you mean {advice}\?"):
            getattr(ot, name)(halves(), **{word: None})
    assert all(word in getattr(ot, name).__doc__ for word in STORAGE)


def test_arguments_that_are_not_given_are_no_keys_of_groups():
    ours = ot.Adam(halves())
    assert {*ours.param_groups[0]} == {*torch.optim.Adam(halves()).param_groups[0]}
    ours = ot.Adam(halves(), seed=0, state_dtype=None)
    assert {"seed", "state_dtype"} <= {*ours.param_groups[0]} and "master_weights" not in ours.defaults
    assert type(ours)(halves(), **ours.defaults).defaults == ours.defaults
