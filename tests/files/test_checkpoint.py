"""Checkpoints: exact resume, state_dict, the file as other programs see it, golden files."""

import copy
import json
import os
import stat

import numpy as np
import pytest
from cases import assert_same_bits, slots_of
from checkpoint_cases import OPTIONS, same, steps, weights_of

import optimc
from optimc import checkpoint

# ------------------------------------------------------------------------------------------- resume

@pytest.mark.parametrize("named", [True, False], ids=["named", "by order"])
@pytest.mark.parametrize("name", OPTIONS)
def test_resume_is_bit_exact(case, tmp_path, name, named):
    straight, weights = case.make(**OPTIONS[name]), weights_of()
    if not named:
        weights = dict(enumerate(weights.values()))

    def train(optimizer, arrays, seeds):
        for seed in seeds:
            grads = weights_of(seed)
            optimizer.apply(*((grads, arrays) if named else (list(grads.values()), list(arrays.values()))))

    train(straight, weights, range(1, 6))
    moved = {k: w.copy() for k, w in weights.items()}
    straight.save(tmp_path / "x.safetensors")
    again = optimc.load(tmp_path / "x.safetensors")
    assert not again.built and again.iterations == straight.iterations
    train(straight, weights, range(6, 12))
    train(again, moved, range(6, 12))
    same(straight, again)
    for k in weights:
        assert_same_bits(moved[k], weights[k])


def test_schedules_groups_exclusions_and_wrappers_resume(tmp_path):
    schedule = optimc.schedules.join([0.1, optimc.schedules.CosineDecay(0.1, 20)], [3])
    for make in (lambda: optimc.AdamW(schedule, beta_1=optimc.schedules.PolynomialDecay(0.9, 9, 0.5),
                                      groups=[{"weights": "a", "learning_rate": 0.5}]),
                 lambda: optimc.LossScaleOptimizer(optimc.SGD(0.1, momentum=0.9), 8.0, 2),
                 lambda: optimc.MultiOptimizer(optimc.OptimizerMap(optimc.Adam(0.1), {"[ab]": optimc.Lion(0.1)}))):
        straight, weights = make(), weights_of()
        if isinstance(straight, optimc.AdamW):
            straight.exclude_from_weight_decay(var_names=["b", "c"])
        steps(straight, weights, range(1, 5))
        straight.save(tmp_path / "x")
        again, moved = optimc.load(tmp_path / "x"), {k: w.copy() for k, w in weights.items()}
        steps(straight, weights, range(5, 12))
        steps(again, moved, range(5, 12))
        for k in weights:
            assert_same_bits(moved[k], weights[k])
        assert repr(again) == repr(straight)


def test_state_dicts(case):
    a, weights = case.make(use_ema=True), weights_of()
    steps(a, weights, range(1, 4))
    state, start = a.state_dict(), {k: w.copy() for k, w in weights.items()}
    steps(a, weights, range(4, 7))
    for built in (False, True):
        b, moved = case.make(use_ema=True), {k: w.copy() for k, w in start.items()}
        if built:
            b.build(moved)
        b.load_state_dict(state)
        steps(b, moved, range(4, 7))
        same(a, b)
        for k in weights:
            assert_same_bits(moved[k], weights[k])


def test_wrong_states_change_nothing(case):
    optimizer, weights = case.make(), weights_of()
    steps(optimizer, weights, range(1, 4))
    state = optimizer.state_dict()
    before = copy.deepcopy(slots_of(optimizer)), optimizer.iterations
    bad = [{**state, "class_name": "Nothing"}, {**state, "calls": -1}, {**state, "calls": True},
           {**state, "names": ["a"]}, {**state, "waiting": [True]}, {**state, "running": []},
           {**state, "shapes": state["shapes"][:2]}, {**state, "tensors": {**state["tensors"], "x/0": np.ones(1)}}]
    if case.slots:
        first = next(iter(state["tensors"]))
        bad.append({**state, "tensors": {**state["tensors"], first: np.ones(77, np.float32)}})
    bad += [{k: v for k, v in state.items() if k != key} for key in state if key != "tensors"]
    bad += [{**state, key: value} for key in state for value in (None, 1, [[1]]) if (key, value) != ("names", None)
            and (key, value) not in (("calls", 1), ("skipped", 1))]
    for wrong in bad:
        with pytest.raises(optimc.CheckpointError, match=r"^state: "):
            optimizer.load_state_dict(wrong)
        assert optimizer.iterations == before[1]
        for slot, arrays in before[0].items():
            for x, y in zip(arrays, slots_of(optimizer)[slot], strict=True):
                assert x is None or (x == y).all()
    with pytest.raises(TypeError, match="state: expected"):
        optimizer.load_state_dict([])


@pytest.mark.parametrize("name", ["row/0", "column/0", "velocity/1"])
@pytest.mark.parametrize("shape", [(1,), (), (1, 4)])
def test_factors_of_another_shape_are_refused(tmp_path, name, shape):
    optimizer, weights = optimc.Adafactor(), [np.ones((4, 4), np.float32), np.ones(4, np.float32)]
    optimizer.apply([2 * w for w in weights], weights)
    state = optimizer.state_dict()
    state["tensors"][name] = np.ones(shape, np.float32)
    with pytest.raises(optimc.CheckpointError, match=rf"^state: tensor '{name}': expected shape \(4,\)"):
        optimizer.load_state_dict(state)
    description, tensors = optimizer._export()
    checkpoint.format.write(tmp_path / "x", tensors | state["tensors"], {"optimizer": json.dumps(description)})
    with pytest.raises(optimc.CheckpointError, match=f"tensor '{name}'"):
        optimc.load(tmp_path / "x")


def test_functions_cannot_be_stored(tmp_path):
    with pytest.raises(ValueError, match="learning_rate comes from a function"):
        optimc.SGD(lambda: 0.1).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


class Mine(optimc.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.5

    def get_config(self):
        return {}


def test_own_schedules_need_their_class(tmp_path):
    optimc.SGD(Mine()).save(tmp_path / "x")
    with pytest.raises(optimc.CheckpointError, match="Could not interpret schedule 'Mine': pass its class"):
        optimc.load(tmp_path / "x")
    assert optimc.load(tmp_path / "x", {"Mine": Mine}).learning_rate == 0.5


# ------------------------------------------------------------------------------------------- the file

def test_any_safetensors_reader_opens_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    optimizer, weights = optimc.Adam(), weights_of()
    weights["f"] = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    grads = {**weights_of(1), "f": np.arange(12, dtype=np.float32).reshape(3, 4)}
    optimizer.apply(grads, weights)
    optimizer.save(tmp_path / "x.safetensors")
    tensors = safetensors.load_file(tmp_path / "x.safetensors")
    for i, name in enumerate(weights):
        for slot in ("m", "v"):
            assert_same_bits(tensors[f"{slot}/{i}"], np.ascontiguousarray(optimizer._slots[slot][i]).reshape(
                weights[name].shape))
    again = optimc.load(tmp_path / "x.safetensors")
    moved = {k: w.copy(order="K") for k, w in weights.items()}
    optimizer.apply(grads, weights)
    again.apply(grads, moved)
    assert_same_bits(moved["f"], weights["f"])


def test_permissions(tmp_path):
    optimizer = optimc.SGD()
    before = os.umask(0o027)
    try:
        optimizer.save(tmp_path / "x")
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
        os.chmod(tmp_path / "x", 0o604)
        optimizer.save(tmp_path / "x")
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_places(tmp_path):
    optimizer = optimc.SGD()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        optimizer.save(tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        optimizer.save(tmp_path / "no" / "x")
    with pytest.raises(FileNotFoundError):
        optimc.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        optimc.load(tmp_path / "folder")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="not a regular file"):
        optimizer.save(tmp_path / "fifo")
    with pytest.raises(optimc.CheckpointError, match="not a regular file"):
        optimc.load(tmp_path / "fifo")
    (tmp_path / "folder" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("folder/real")
    optimizer.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and optimc.load(tmp_path / "folder" / "real").iterations == 0
    optimizer.save(str(tmp_path / "näme with spaces").encode())
    assert optimc.load(os.fsencode(tmp_path / "näme with spaces")).name == "sgd"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "folder", "link", "näme with spaces"]


def test_weights_that_have_no_position_yet_cannot_be_saved(tmp_path):
    optimizer = optimc.AdamW()
    optimizer.exclude_from_weight_decay([np.ones(3, np.float32)])
    with pytest.raises(ValueError, match="a list of weights can be stored only once the optimizer is built"):
        optimizer.save(tmp_path / "unbuilt")
    assert not list(tmp_path.iterdir())
