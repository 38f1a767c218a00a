"""The state of optimc.torch with parameters of 16 bits and slots in fewer bits: saved, loaded, converted."""

import copy
import io
import math
import pickle

import pytest
from conftest import require
from torch_cases import AT_RANDOM, each_case, each_storage, halves, parameters, run, same

torch = require("torch")
require("ml_dtypes")
ot = pytest.importorskip("optimc.torch")


def resumed(how, optimizer, params, make):
    """A copy of the optimizer and its parameters, made in one of several ways."""
    if how == "pickle":
        return pickle.loads(pickle.dumps((optimizer, params)))
    if how == "deepcopy":
        return copy.deepcopy((optimizer, params))
    state, params = optimizer.state_dict(), copy.deepcopy(params)
    if how == "torch.save":
        file = io.BytesIO()
        torch.save({"optimizer": state, "model": params}, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)["optimizer"]
    again = make(params)
    again.load_state_dict(state)
    return again, params


@each_storage
@pytest.mark.parametrize("how", ["state_dict", "torch.save", "pickle", "deepcopy"])
@pytest.mark.parametrize("name, options", [("AdamW", {"amsgrad": True}), ("SGD", {"momentum": 0.9}), ("SGD", {}),
                                           ("NAdam", {}), ("Adagrad", {})])
def test_resume_is_exact(name, options, storage, how):
    params = [*halves(), *halves(torch.float32, [(0, 3), (7,)]), torch.nn.Parameter(
        torch.randn(8, 20, 5, 7).bfloat16().to(memory_format=torch.channels_last))]

    def make(params):
        return getattr(ot, name)(params, **options, **storage)

    ours = make(params)
    run(ours, params, 4)
    again, twins = resumed(how, ours, params, make)
    for p, q in zip(params, twins, strict=True):
        assert ours.state[p].keys() == again.state[q].keys()
        for key, value in ours.state[p].items():
            assert value is None or key == "axes" or same(value, again.state[q][key])
    run(ours, params, 4, 4)
    run(again, twins, 4, 4)
    assert all(map(same, params, twins))
    assert ours.state_dict()["param_groups"] == again.state_dict()["param_groups"]


@each_case
def test_the_state_of_torchs_class_is_taken_over(name, options):
    """torch keeps slots in the type of the parameter: they are widened, exactly."""
    narrow = halves()
    theirs = getattr(torch.optim, name)(narrow, **options)
    run(theirs, narrow, 3)
    twins = copy.deepcopy(narrow)
    ours = getattr(ot, name)(twins, **options)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    for p, q in zip(narrow, twins, strict=True):
        for key, value in theirs.state[p].items():
            if key in ours._counterpart.slots.values() and value is not None:
                assert same(ours.state[q][key], value.float())
    run(ours, twins, 3, 3)
    back = getattr(torch.optim, name)(last := copy.deepcopy(twins), **options)
    back.load_state_dict(copy.deepcopy(ours.state_dict()))
    run(back, last, 1)
    ours.load_state_dict(back.state_dict())         # with masters that torch has cast, and not stepped
    run(ours, twins, 1)
    for p in twins:
        assert ours.state[p]["master_param"].dtype == torch.int16


@pytest.mark.parametrize("real", [torch.float32, torch.bfloat16], ids=str)
def test_slots_are_loaded_in_the_type_of_the_optimizer(real):
    """Widened exactly; narrowed as a step rounds them."""
    params = [torch.nn.Parameter(p.detach().to(real)) for p in parameters(shapes=[(5000,), (70, 80)])]
    plain = ot.Adam(params)
    run(plain, params, 3)
    for word, bound in (("bfloat16", 2 ** -7), ("int8", 0.08)):
        narrow = ot.Adam(params, state_dtype=word, seed=4)
        narrow.load_state_dict(plain.state_dict())
        assert narrow.param_groups[0]["state_dtype"] == word and narrow.param_groups[0]["seed"] == 4
        again = ot.Adam(params)
        again.load_state_dict(narrow.state_dict())
        assert "state_dtype" not in again.param_groups[0] and again.param_groups[0]["seed"] == 4
        twice = ot.Adam(params, state_dtype=word)
        twice.load_state_dict(again.state_dict())
        for p in params:
            for key in ("exp_avg", "exp_avg_sq"):
                one, two = plain.state[p][key], again.state[p][key]
                assert two.dtype == torch.float32 and (one - two).abs().max() <= bound * one.abs().max()
                assert (word == "int8" and key == "exp_avg_sq") or torch.equal(
                    twice.state[p][key], narrow.state[p][key])


@pytest.mark.parametrize("word", ["bfloat16", "int8"])
def test_codes_follow_a_change_of_layout(word):
    """The state says in which order of the axes codes of 8 bits are."""
    start = torch.randn(8, 16, 9, 5, generator=torch.Generator().manual_seed(1))
    p = torch.nn.Parameter(start.to(memory_format=torch.channels_last))
    ours = ot.Adam([p], state_dtype=word)
    run(ours, [p], 3)
    assert ours.state[p].get("axes") == ((0, 2, 3, 1) if word == "int8" else None)
    plain = ot.Adam([p])
    plain.load_state_dict(ours.state_dict())
    q = torch.nn.Parameter(p.detach().contiguous())
    other = ot.Adam([q])
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other.state[q]["exp_avg"], plain.state[p]["exp_avg"])
    for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        before = plain.state[p]["exp_avg"].clone()
        p.data = p.data.contiguous(memory_format=layout)
        p.grad = torch.zeros_like(p)
        ours.param_groups[0]["betas"] = (1 - 1e-7, 1 - 1e-7)
        ours.step()
        plain.load_state_dict(ours.state_dict())
        assert (plain.state[p]["exp_avg"] - before).abs().max() <= 0.08 * before.abs().max()
        assert ("axes" in ours.state[p]) == (word == "int8" and layout == torch.channels_last)


def test_wrong_state_is_refused_before_anything_changes():
    params = halves(shapes=[(5000,)])
    ours = ot.Adam(params, state_dtype="int8")
    run(ours, params, 2)
    for key, wrong in (("master_param", torch.zeros(3, dtype=torch.int16)), ("exp_avg", torch.zeros(5000 + 20)),
                       ("exp_avg", torch.zeros(5076, dtype=torch.uint8))):
        state = copy.deepcopy(ours.state_dict())
        state["state"][0][key] = wrong
        with pytest.raises(ValueError, match=rf"loaded state '{key}' of parameter 0: expected shape \(5000,\), got"):
            ours.load_state_dict(state)
        kept, ours.state[params[0]][key] = ours.state[params[0]][key], wrong
        before = params[0].detach().clone()
        with pytest.raises(ValueError, match=rf"params\[0\]: state '{key}': expected shape \(50\d\d,\) of torch"):
            run(ours, params, 1)
        assert same(before, params[0])
        ours.state[params[0]][key] = kept
        run(ours, params, 1)


def test_a_count_is_kept_where_weights_are_rounded_at_random():
    """torch's SGD keeps none, and would draw the same numbers again."""
    params = halves(shapes=[(500,)])
    ours = ot.SGD(params, lr=0.01, **AT_RANDOM)
    run(ours, params, 4)
    assert ours.state[params[0]]["step"] == 4
    assert "step" not in ot.SGD(halves(), lr=0.1).state_dict()["state"]


@pytest.mark.parametrize("ours, theirs", [("AdamW", "SGD"), ("AdamW", "Lion"), ("Lion", "AdamW"), ("SGD", "AdamW"),
                                          ("Adafactor", "AdamW"), ("ScheduleFreeAdamW", "AdamW")])
def test_a_state_of_another_class_changes_nothing(ours, theirs):
    lists = parameters(shapes=[(7, 3)]), parameters(shapes=[(7, 3)])
    options = {"SGD": {"momentum": 0.9}}
    one, other = (getattr(ot, name)(params, lr=0.01, **options.get(name, {}))
                  for name, params in zip((ours, theirs), lists, strict=True))
    run(one, lists[0], 3)
    run(other, lists[1], 3)
    twin, copies = copy.deepcopy((one, lists[0]))
    with pytest.raises(ValueError, match=rf"^the loaded state is not one of {ours}: it.* has no '\w+'$"):
        one.load_state_dict(other.state_dict())
    assert str(one.state_dict()) == str(twin.state_dict())
    run(one, lists[0], 3, 3)
    run(twin, copies, 3, 3)
    assert all(map(same, lists[0], copies))


def refuses(ours, state, message):
    """The state is refused in one line that fits `message`, and nothing changes."""
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        ours.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert str(ours.state_dict()) == str(before)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_a_state_that_lacks_a_slot_changes_nothing(key):
    params = parameters(shapes=[(7, 3), (5,)])
    ours = ot.AdamW(params, lr=0.01, amsgrad=True)
    run(ours, params, 3)
    lacking = copy.deepcopy(ours.state_dict())
    del lacking["state"][1][key]
    refuses(ours, lacking, f"^loaded state of parameter 1: it was stepped, and has no '{key}'$")


@pytest.mark.parametrize("key, wrong, message", [
    ("betas", (0.9, 0.9, 0.9), "betas must be a tuple of 2 numbers"),
    ("lr", "x", "lr must be a number"), ("lr", math.nan, "lr must be finite"),
    ("exp_avg", torch.zeros(5, dtype=torch.int64), "'exp_avg' of parameter 0: expected floating-point numbers, got"),
    ("exp_avg", torch.zeros(5, dtype=torch.complex64), "'exp_avg' of parameter 0: expected floating-point numbers"),
    ("exp_avg", "x", "'exp_avg' of parameter 0: expected a tensor, got str"),
    ("exp_avg", torch.zeros(5).to(torch.float8_e5m2), "'exp_avg' of parameter 0: expected floating-point numbers"),
    *(("step", step, "'step' of parameter 0: expected a count, got") for step in
      (2 ** 70, 10 ** 400, torch.tensor(1e20), torch.tensor(1j), torch.zeros(200, 2))),
    ("step", None, "AdamW: its state of parameter 0 has no 'step'"),
])
def test_values_that_no_step_takes_change_nothing(key, wrong, message):
    params = parameters(shapes=[(5,)])
    ours = ot.AdamW(params, lr=0.01)
    run(ours, params, 2)
    bad = copy.deepcopy(ours.state_dict())
    entries = bad["param_groups"][0] if key in bad["param_groups"][0] else bad["state"][0]
    entries[key] = wrong
    if wrong is None:
        del entries[key]
    refuses(ours, bad, message)


def test_a_state_without_its_mode_is_refused():
    ours = ot.ScheduleFreeAdamW(parameters(shapes=[(5,)]))
    state = copy.deepcopy(ours.state_dict())
    del state["param_groups"][0]["train_mode"]
    refuses(ours, state, r"ScheduleFreeAdamW: its param_groups\[0\] has no 'train_mode'$")


each_flag = pytest.mark.parametrize("name, flag", [("AdamW", {"amsgrad": True}), ("RMSprop", {"momentum": 0.9}),
                                                   ("RMSprop", {"centered": True})])


@each_flag
def test_slots_of_a_flag_may_have_a_storage_of_their_own(name, flag):
    key = {"amsgrad": "max_exp_avg_sq", "momentum": "momentum_buffer", "centered": "grad_avg"}[next(iter(flag))]
    params = parameters(shapes=[(7, 3)])
    ours = getattr(ot, name)(params, lr=0.01, **flag, state_dtype={key: "float32"})
    run(ours, params, 2)
    before = copy.deepcopy(ours.state_dict())
    ours.load_state_dict(ours.state_dict())
    after = ours.state_dict()
    assert str(after["state"]) == str(before["state"]) and after["param_groups"] == before["param_groups"]


@each_flag
def test_slots_of_a_flag_that_was_set_later_start_in_the_next_step(name, flag):
    lists = parameters(shapes=[(7, 3)]), parameters(shapes=[(7, 3)])
    pair = [getattr(ot, name)(params, lr=0.01) for params in lists]
    for ours, params in zip(pair, lists, strict=True):
        run(ours, params, 2)
        ours.param_groups[0].update(flag)
    pair[0].load_state_dict(pair[0].state_dict())
    for ours, params in zip(pair, lists, strict=True):
        run(ours, params, 2, 2)
    one, two = (ours.state[params[0]] for ours, params in zip(pair, lists, strict=True))
    assert same(*(params[0] for params in lists))
    assert one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)


def test_a_state_is_loaded_before_its_parameters_have_a_shape():
    saved = ot.AdamW(params := parameters(shapes=[(3, 4), (3,)]))
    run(saved, params, 2)
    net = torch.nn.LazyLinear(3)
    ours = ot.AdamW(net.parameters())
    ours.load_state_dict(saved.state_dict())
    net(torch.ones(2, 4)).sum().backward()
    ours.step()
    assert ours.state[net.weight]["step"] == 3


def test_masters_of_a_state_from_the_constructor_are_in_it_at_once():
    """Programs that load tensors in place, as distributed checkpoints do, ask a new optimizer for them."""
    params = halves(shapes=[(50,)])
    ours = ot.Adagrad(params)
    assert ours.state[params[0]]["master_param"].dtype == torch.int16
    assert not ours.state[params[0]]["master_param"].any()


@pytest.mark.parametrize("name, key", [("NAdam", "mu_product"), ("ASGD", "eta"), ("ASGD", "mu")])
def test_a_state_that_lacks_a_scalar_changes_nothing(name, key):
    params = parameters(shapes=[(5,)])
    ours = getattr(ot, name)(params)
    run(ours, params, 2)
    lacking = copy.deepcopy(ours.state_dict())
    del lacking["state"][0][key]
    refuses(ours, lacking, f"^the loaded state is not one of {name}: its state of .* has no '{key}'$")


@pytest.mark.parametrize("wrong", [{"state": None}, {"state": {0: None}}], ids=str)
def test_states_are_dicts(wrong):
    ours = ot.AdamW(parameters(shapes=[(5,)]))
    refuses(ours, {**ours.state_dict(), **wrong}, r"expected a dict.*, got NoneType$")


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("mine"), KeyError()], ids=repr)
def test_a_hook_that_fails_changes_nothing(error):
    params = parameters(shapes=[(5,)])
    ours = ot.AdamW(params, lr=0.01)
    run(ours, params, 2)
    saved = copy.deepcopy(ours.state_dict())
    run(ours, params, 2)
    before, states = copy.deepcopy(ours.state_dict()), ours.state

    def fail(_):
        raise error

    handle = ours.register_load_state_dict_post_hook(fail)
    with pytest.raises(type(error)) as caught:
        ours.load_state_dict(saved)
    assert caught.value is error
    assert str(ours.state_dict()) == str(before) and ours.state is states
    handle.remove()
    run(ours, params, 1, 4)
    states.clear()
    run(ours, params, 1, 5)
    assert ours.state is states and states[params[0]]["step"] == 1
    ours.load_state_dict(saved)
    assert str(ours.state_dict()) == str(saved)
