"""An optimizer remembers its weights by their memory, its slots over copies and rebuilds, its configuration."""

import copy
import itertools
import os
import pickle
import sys

import numpy as np
import pytest
from cases import WHOLE_WEIGHTS, Case, assert_same_bits, slots_of, values

import optimc
from optimc import base
from optimc.base.arguments import is_switch
from optimc.registry import classes

BASE = os.path.dirname(base.__file__)
SHAPES = [(4, 3), (5,), (), (0, 2)]


def arrays(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [values(rng, shape, np.float32) for shape in shapes]


def steps(optimizer, weights, count, seed=10):
    for k in range(count):
        optimizer.apply(arrays(seed + k), weights)


def assert_equal_state(a, b):
    assert a.iterations == b.iterations
    for slot, made in slots_of(a).items():
        for i, array in enumerate(made):
            if array is not None:
                assert_same_bits(array, slots_of(b)[slot][i], slot)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o))],
                         ids=["deepcopy", "copy", "pickle"])
def test_copies_continue_bit_for_bit(case, duplicate):
    straight, weights = case.make(), arrays(0)
    steps(straight, weights, 3)
    moved = [w.copy() for w in weights]
    other = duplicate(straight)
    steps(straight, weights, 3, seed=50)        # the original goes on; the copy must not notice
    assert other.iterations == 3 and not other.built
    steps(other, moved, 3, seed=50)
    assert_equal_state(straight, other)
    for w, m in zip(weights, moved, strict=True):
        assert_same_bits(w, m)


def test_a_copy_refuses_other_weights(case):
    if not case.slots:
        pytest.skip("no slots")
    optimizer, weights = case.make(), arrays(0)
    steps(optimizer, weights, 1)
    other = copy.deepcopy(optimizer)
    wrong = arrays(0)
    wrong[1] = np.zeros(6, np.float32)
    with pytest.raises(ValueError, match=r"weights\[1\]: expected shape \(5,\)"):
        other.apply([np.zeros_like(w) for w in wrong], wrong)
    with pytest.raises(ValueError, match="expected the 4 that the optimizer holds slots for, got 3"):
        other.apply(arrays(1)[:3], arrays(0)[:3])
    steps(other, [w.copy() for w in weights], 1, seed=11)
    steps(optimizer, weights, 1, seed=11)
    assert_equal_state(optimizer, other)


def test_fresh_views_are_the_same_weights(case):
    if case.cls._rule in WHOLE_WEIGHTS:
        pytest.skip("works on whole weights, so a part is another weight")
    base = np.linspace(-1, 1, 60, dtype=np.float32)
    other = base.copy()
    whole, viewed = case.make(), case.make()
    for k in range(4):
        g = arrays(k, [(60,)])[0]
        whole.apply([g], [other])
        viewed.apply([g[:20], g[20:].reshape(4, 10)], [base[:20], base[20:].reshape(4, 10)])
    assert_same_bits(base, other)


def test_weights_may_come_in_another_order_of_memory(case):
    w, first, second = arrays(0, [(4, 5)] * 3)
    optimizer, turned = case.make(), np.asfortranarray(w)
    try:
        case.make().build([turned.copy(order="F")])
    except ValueError:
        pytest.skip("its matrices are in C order")
    optimizer.apply([first], [w])
    turned[...] = w
    twin, expected = copy.deepcopy(optimizer), w.copy()
    optimizer.build([turned])
    for one, weight in ((optimizer, turned), (twin, expected)):
        one.apply([second], [weight])
    if optimizer._elementwise:                       # of others, sums and products follow the memory
        assert_same_bits(np.ascontiguousarray(turned), expected)
    np.testing.assert_allclose(turned, expected, rtol=1e-5, atol=1e-6)


def test_subsets_in_any_order(case):
    weights, expected = arrays(0), arrays(0)
    optimizer = case.make()
    optimizer.build(weights)
    grads = arrays(1)
    optimizer.apply([grads[1], grads[0]], [weights[1], weights[0]])
    assert_same_bits(weights[2], expected[2])
    assert optimizer.iterations == 1
    twin = case.make()
    twin.build(expected)
    with pytest.warns(UserWarning, match=r"weights\[2\], weights\[3\]"):
        twin.apply([grads[0], grads[1], None, None], expected)
    for w, e in zip(weights, expected, strict=True):
        assert_same_bits(w, e)


def test_empty_weights_in_any_order():
    """They may begin where another weight does, and any like one will do."""
    base = np.ones(4, np.float32)
    for order in itertools.permutations(range(6)):
        whole = base.copy()
        weights = [whole[:0], whole[:2], whole[2:2], whole[2:2].reshape(0, 3), whole[2:], np.zeros(0, np.float32)]
        optimizer = optimc.SGD(1.0)
        optimizer.build(weights)
        for _ in range(2):
            optimizer.apply([np.ones_like(weights[i]) for i in order], [weights[i] for i in order])
        assert whole.tolist() == [-1] * 4 and optimizer.iterations == 2


def test_weights_may_be_left_out_once_built():
    w = np.ones(3, np.float32)
    optimizer = optimc.SGD(1.0)
    optimizer.build({"w": w})
    optimizer.apply({"w": np.ones(3, np.float32)})
    optimizer.apply([np.ones(3, np.float32)])
    assert (w == -1).all() and optimizer.iterations == 2


def test_rebinding_is_refused_with_the_remedy(case):
    w = np.ones(3, np.float32)
    optimizer = case.make()
    optimizer.apply([w * 2], [w])
    with pytest.raises(ValueError, match="update weights in place"):
        optimizer.apply([w * 2], [w - 1])
    assert optimizer.iterations == 1


def test_build_moves_to_new_memory_and_adds_weights(case):
    a, b = case.make(), case.make()
    first, second = {"x": np.ones(3, np.float32)}, {"x": np.ones(3, np.float32)}
    g = np.array([1, -2, 3], np.float32)
    a.apply({"x": g}, first)
    b.apply({"x": g}, second)
    moved = {"new": np.zeros((2, 2), np.float32), "x": second["x"].copy()}
    b.build(moved)
    a.apply({"x": g}, first)
    b.apply({"x": g, "new": np.ones((2, 2), np.float32)}, moved)
    assert_same_bits(moved["x"], first["x"])
    for slot, made in slots_of(a).items():
        assert_same_bits(slots_of(b)[slot][1], made[0])
    if case.slots:
        with pytest.raises(ValueError, match="weights has no entry 'new'"):
            b.build({"x": moved["x"]})


@pytest.mark.parametrize("move", [lambda o: o, copy.deepcopy], ids=["built", "copy"])
def test_exclusions_and_groups_move_with_their_weights(move):
    def start():
        return {name: np.ones(2, np.float32) for name in ("x", "y", "z")}

    g, first, second = np.ones(2, np.float32), start(), start()
    optimizers = []
    for weights in (first, second):
        optimizer = optimc.SGD(0.5, weight_decay=0.5, groups=[{"weights": [weights["y"]], "learning_rate": 0.25}])
        optimizer.exclude_from_weight_decay([weights["x"]])
        optimizer.apply(dict.fromkeys(weights, g), weights)
        optimizers.append(optimizer)
    straight, moved = optimizers[0], move(optimizers[1])
    with pytest.raises(ValueError, match="overlap"):        # changes nothing
        moved.build({"new": np.ones(2, np.float32), **second, "again": second["x"]})
    again = {"new": np.ones(2, np.float32), **{name: second[name].copy() for name in ("z", "y", "x")}}
    moved.build(again)
    straight.apply(dict.fromkeys(first, g), first)
    moved.apply(dict.fromkeys(again, g), again)
    for name, weight in first.items():
        assert_same_bits(again[name], weight, name)
    assert moved.get_config()["groups"][0]["weights"] == [2]
    assert again["new"].tolist() == [0.25, 0.25]            # decayed, and stepped at the rate of no group


def test_slots_can_be_adopted(case):
    w = np.ones(5, np.float32)
    own = {slot: [np.zeros(5, np.float32)] for slot in case.slots}
    optimizer = case.make()
    optimizer.build([w], slots=own)
    optimizer.apply([np.full(5, 2, np.float32)], [w])
    optimizer.apply([np.full(5, 3, np.float32)], [w])
    for slot, (array,) in own.items():
        assert array.any(), slot
    if own:
        slot = case.slots[0]
        with pytest.raises(ValueError, match=rf"slot '{slot}' of weights\[0\]: expected shape \(5,\)"):
            case.make().build([w], slots={**own, slot: [np.zeros(4, np.float32)]})
        with pytest.raises(ValueError, match="overlap in memory"):
            case.make().build([w], slots={**own, slot: [w]})
        with pytest.raises(ValueError, match=rf"slots\['{slot}'\]\[0\]: expected an array, got None"):
            case.make().build([w], slots={**own, slot: [None]})
        with pytest.raises(ValueError, match="slots: expected"):
            case.make().build([w], slots={})


def test_scratch_may_be_given_and_is_kept():
    weights = [np.ones(shape, np.float32) for shape in ((3, 4), (5,))]
    for cls in (optimc.Lamb, optimc.Muon):
        optimizer = cls()
        optimizer.build(weights)
        scratch = optimizer._slots["update"]
        assert any(array is not None for array in scratch)
        optimizer.build([weight.copy() for weight in weights])
        assert all(a is b for a, b in zip(optimizer._slots["update"], scratch, strict=True))
        other = cls()
        other.build(weights, slots=optimizer._slots)
        assert all(a is b for a, b in zip(other._slots["update"], scratch, strict=True))


def test_averages_and_accumulators_can_be_adopted():
    w, average, held = (np.zeros(3, np.float32) for _ in range(3))
    optimizer = optimc.SGD(1.0, use_ema=True, gradient_accumulation_steps=2)
    optimizer.build([w], slots={}, averages=[average], accumulators=[held])
    optimizer.apply([np.ones(3, np.float32)], [w])
    assert (held == 1).all()
    optimizer.apply([np.ones(3, np.float32)], [w])
    assert (w == -1).all() and (average == -1).all() and (held == 0).all()
    with pytest.raises(ValueError, match="averages: expected no arrays, got 1"):
        optimc.SGD().build([w], averages=[average])
    with pytest.raises(ValueError, match="overlap in memory"):
        optimc.SGD(use_ema=True).build([w], averages=[w])


def test_slots_take_what_the_rule_needs(case):
    w = np.zeros(100_000, np.float32)
    optimizer = case.make()
    optimizer.build([w])
    assert list(slots_of(optimizer)) == case.slots
    for (array,) in optimizer._slots.values():
        assert array.nbytes == w.nbytes and array.ctypes.data % 64 == w.ctypes.data % 64
        assert array.base.nbytes <= w.nbytes + 4096 or array.base.base.nbytes <= w.nbytes + 4096


def test_configurations_round_trip(case):
    optimizer = case.make(name="mine")
    twin = type(optimizer).from_config(optimizer.get_config())
    assert twin.get_config() == optimizer.get_config()
    stored = optimc.serialize(optimizer)
    for again in (optimc.deserialize(stored), optimc.get(stored)):
        assert type(again) is type(optimizer) and again.get_config() == optimizer.get_config()


def test_optimizers_are_found_by_name():
    for name, cls in classes.items():
        assert type(optimc.get(name.lower())) is cls
        assert type(optimc.get(name)) is cls
    optimizer = optimc.SGD()
    assert optimc.get(optimizer) is optimizer and optimc.get(None) is None
    for bad in ("no_such", 3, {"config": {}}, ["adam"], {"class_name": 3}):
        with pytest.raises(ValueError, match="Could not interpret"):
            optimc.get(bad)


class Halving(optimc.schedules.LearningRateSchedule):
    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start * 0.5 ** step

    def get_config(self):
        return {"start": self.start}


def test_a_schedule_sees_the_step_and_is_kept():
    w = np.zeros(1, np.float64)
    optimizer = optimc.SGD(Halving(1.0))
    for rate in (1.0, 0.5, 0.25):
        assert optimizer.learning_rate == rate
        before = w.copy()
        optimizer.apply([np.ones(1)], [w])
        assert before - w == rate
    assert pickle.loads(pickle.dumps(optimizer)).learning_rate == 0.125
    config = optimc.serialize(optimizer)
    assert optimc.deserialize(config, {"Halving": Halving}).learning_rate == 1.0
    with pytest.raises(ValueError, match="Could not interpret schedule 'Halving'"):
        optimc.deserialize(config)


def test_values_can_be_set_and_options_cannot(case):
    optimizer, twin = case.make(learning_rate=0.5), case.make(learning_rate=0.25)
    optimizer.learning_rate = 0.25
    w, e = arrays(0), arrays(0)
    steps(optimizer, w, 2)
    steps(twin, e, 2)
    assert_same_bits(w[0], e[0])
    for name, parameter in type(optimizer)._arguments.items():
        if is_switch(parameter) and parameter.fixed:
            with pytest.raises(ValueError, match=f"{name} cannot change"):
                setattr(optimizer, name, not getattr(optimizer, name))
            assert getattr(optimizer, name) == getattr(twin, name)


def test_a_value_that_needs_another_slot_is_refused():
    optimizer = optimc.SGD(0.1)
    optimizer.build([np.zeros(2, np.float32)])
    with pytest.raises(ValueError, match=r"momentum=0.9 needs a slot"):
        optimizer.momentum = 0.9
    assert optimizer.momentum == 0


def test_a_clip_that_a_group_cannot_take_is_refused():
    optimizer = optimc.SGD(groups=[{"weights": [0], "clipnorm": 1.0}])
    with pytest.raises(ValueError, match="Only one of"):
        optimizer.global_clipnorm = 1.0
    assert optimizer.global_clipnorm is None
    optimc.SGD.from_config(optimizer.get_config())


def test_lambdas_cannot_be_pickled_but_copied():
    optimizer = optimc.SGD(lambda: 0.5)
    with pytest.raises(pickle.PicklingError, match=r"learning_rate is .*<lambda>.*cannot be pickled"):
        pickle.dumps(optimizer)
    assert copy.deepcopy(optimizer).learning_rate == 0.5


def test_a_subclass_with_its_own_arguments_is_copied():
    optimizer = Mine(3)
    optimizer.apply([np.ones(2, np.float32)], [np.ones(2, np.float32)])
    twin = pickle.loads(pickle.dumps(optimizer))
    assert (type(twin), twin.extra, twin.iterations, twin.learning_rate) == (Mine, 3, 1, 0.125)


class Mine(optimc.SGD):
    def __init__(self, extra):
        super().__init__(0.125, momentum=0.5)
        self.extra = extra


def test_repr_and_signature(case):
    optimizer = case.make()
    assert repr(optimizer).startswith(f"<{type(optimizer).__name__}(learning_rate=")
    assert "not built" in repr(optimizer)
    optimizer.apply(arrays(1), arrays(0))
    assert "1 step, 4 weights of 18 elements" in repr(optimizer)


def test_variables_come_in_keras_order(case):
    optimizer, weights = case.make(learning_rate=0.5, use_ema=True), arrays(0)
    steps(optimizer, weights, 2)
    iterations, rate, *rest = optimizer.variables
    assert iterations == 2 and rate == 0.5
    assert rest[:4] == optimizer._averages or all(a is b for a, b in zip(rest, optimizer._averages,
                                                                        strict=False))
    slots = rest[4:]
    assert len(slots) == sum(len(case.slots_of(w)) for w in weights)
    assert {id(s) for s in slots} == {id(a) for made in slots_of(optimizer).values() for a in made
                                      if a is not None}
    optimizer.learning_rate = lambda: 0.5
    assert len(optimizer.variables) == len(rest) + 1


def test_cases_are_pickled_by_name():
    assert repr(Case(optimc.SGD, {"momentum": 0.5})) == "SGD-momentum=0.5"


def test_adafactor_refuses_matrices_in_fortran_order():
    w = np.ones((3, 4), np.float32, order="F")
    with pytest.raises(ValueError, match="Adafactor needs weights of two axes or more in C order"):
        optimc.Adafactor().apply([w * 2], [w])


@pytest.mark.parametrize("built", [True, False], ids=["built", "unbuilt"])
@pytest.mark.parametrize("action", [lambda optimizer, weights, state: optimizer.load_state_dict(state),
                                    lambda optimizer, weights, state: optimizer.build([*weights, np.ones(2)])],
                         ids=["load", "build"])
def test_ctrl_c_leaves_a_load_or_build_whole_or_undone(action, built):
    """Raised before each line in turn."""
    def fresh(steps_done):
        optimizer, weights = optimc.Adam(use_ema=True), [np.ones(3, np.float32)]
        for _ in range(steps_done):
            optimizer.apply([np.ones(3, np.float32)], weights)
        return (optimizer if built else copy.deepcopy(optimizer)), weights

    def picture(optimizer):
        step = [np.ones(like.shape, like.dtype) for like in optimizer._state.likes]
        optimizer.apply(step, optimizer._weights or [np.ones_like(gradient) for gradient in step])
        return repr(optimizer.state_dict())

    def interrupted(at):
        optimizer, weights = fresh(2)

        def trace(frame, event, argument):
            nonlocal at
            if not frame.f_code.co_filename.startswith(BASE):
                return None
            at -= event == "line"
            if at < 0:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            action(optimizer, weights, state)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        return at < 0, picture(optimizer)

    state = fresh(5)[0].state_dict()
    outcomes, raised, at = {picture(fresh(2)[0]), interrupted(10 ** 9)[1]}, True, 0
    assert len(outcomes) == 2
    while raised:
        raised, left = interrupted(at)
        assert left in outcomes
        at += 1
    assert at > 50


def test_a_state_is_converted_before_and_after_the_optimizer_is_built():
    weights, grads = [np.ones(300, np.float32)], [np.linspace(-1, 1, 300, dtype=np.float32)]
    wide = optimc.Adam()
    wide.apply(grads, weights)
    early, late = (optimc.Adam(state_dtype={"m": "int8", "v": "bfloat16"}) for _ in range(2))
    late.build(weights)
    for narrow in (early, late):
        narrow.load_state_dict(wide.state_dict(), convert=True)
    early = copy.deepcopy(early)
    early.build(weights)
    for one, other in zip(early.variables, late.variables, strict=True):
        assert one.dtype == other.dtype and (one == other).all()
    strict = optimc.Adam(state_dtype="bfloat16")
    strict.load_state_dict(wide.state_dict())
    with pytest.raises(ValueError, match="stored as float32, and state_dtype asks for bfloat16"):
        strict.build(weights)


@pytest.mark.parametrize("slots", [{"m": "bfloat16", "v": "int8"}, "bfloat16"], ids=str)
@pytest.mark.parametrize("orders", ["CF", "FC", "FF"])
def test_a_state_is_converted_whatever_the_order_of_its_weights(slots, orders, tmp_path):
    grads = [np.linspace(-1, 1, 1500, dtype=np.float32).reshape(50, 30)]
    narrow = optimc.Adam(state_dtype=slots)
    narrow.apply(grads, [np.ones((50, 30), np.float32, orders[0])])
    narrow.save(tmp_path / "narrow")
    for state in (narrow.state_dict(), optimc.load(tmp_path / "narrow").state_dict()):
        wide = optimc.Adam()
        wide.build([np.ones((50, 30), np.float32, orders[1])])
        wide.load_state_dict(state, convert=True)
        for slot in "mv":
            assert_same_bits(wide.slots[slot][0], narrow.slots[slot][0])
