"""optimc.thinc beside Thinc: the same results to rounding, Thinc's state, and names for configs."""

import copy
import doctest
import pickle
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from conftest import require
from places import ROOT, search_path

theirs, api, ours = require("thinc.optimizers"), require("thinc.api"), require("optimc.thinc")

SHAPES = [(24, 16), (16,), (3, 4, 5)]
FLOAT32 = np.float32


def decaying(start=0.1):
    """A generator, as a config makes one."""
    while True:
        yield start
        start *= 0.98


def train(optimizer, steps=30, weights=None, seed=1):
    """Steps that clip and do not, with keys that come and go and a factor of the rate; returns the weights."""
    rng = np.random.default_rng(seed)
    given = [rng.normal(size=shape).astype(FLOAT32) for shape in SHAPES]
    weights = given if weights is None else weights
    for step in range(steps):
        for k, weight in enumerate(weights):
            gradient = rng.normal(size=weight.shape).astype(FLOAT32) * FLOAT32(3 if step % 2 else 0.01)
            if k == 1 and step % 3 == 0:
                continue
            stepped, zeroed = optimizer((k, "W"), weight, gradient, lr_scale=0.5 if step % 5 == 0 else 1.0)
            assert np.shares_memory(stepped, weight) and np.shares_memory(zeroed, gradient) and not gradient.any()
        optimizer.step_schedules()
    return weights


def state_of(optimizer):
    return [array for held in (optimizer.mom1, optimizer.mom2, optimizer.averages or {})
            for _, array in sorted(held.items())]


@pytest.mark.parametrize("settings", [
    {}, {"L2": 0.1}, {"L2": 0.1, "L2_is_weight_decay": False}, {"grad_clip": 0.0}, {"use_averages": False},
    {"learn_rate": "decaying", "L2": 0.01}, {"learn_rate": [0.1, 0.05, 0.01]}], ids=str)
@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_results_are_thincs(name, settings):
    def made(module):
        given = {"learn_rate": 0.05, **settings}
        if given["learn_rate"] == "decaying":
            given["learn_rate"] = decaying()
        return getattr(module, name)(**given)

    mine, reference = made(ours), made(theirs)
    for ours_now, theirs_now in zip(train(mine), train(reference), strict=True):
        np.testing.assert_allclose(ours_now, theirs_now, rtol=2e-6, atol=2e-5)
    assert dict(mine.nr_update) == dict(reference.nr_update)
    for slots in ("mom1", "mom2", "averages"):
        assert (getattr(mine, slots) or {}).keys() == (getattr(reference, slots) or {}).keys()
    for ours_now, theirs_now in zip(state_of(mine), state_of(reference), strict=True):
        assert ours_now.shape == theirs_now.shape
        np.testing.assert_allclose(ours_now, theirs_now, rtol=2e-5, atol=2e-5)


def test_lion_is_optimcs():
    import optimc
    mine, inner = ours.Lion(0.01, grad_clip=0.5, use_averages=False), optimc.Lion(0.01, clipnorm=0.5)
    w, rng = np.ones((4, 4), FLOAT32), np.random.default_rng(0)
    expected = w.copy()
    for _ in range(5):
        gradient = rng.normal(size=w.shape).astype(FLOAT32)
        inner.apply([gradient.copy()], [expected])
        mine((1, "W"), w, gradient)
    assert (w == expected).all() and mine.mom2 == {}
    with pytest.raises(ValueError, match=r"\(1, 'W'\): Lion steps float32 arrays"):
        mine((1, "W"), w.astype(float), w.astype(float))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))],
                         ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_with_a_state_of_its_own(copied):
    first = ours.Adam(0.01, L2=0.1)
    weights = train(first)
    second, own = copied(first), [weight.copy() for weight in weights]
    train(first, 5, weights)
    between = [array.copy() for array in state_of(first)]
    train(second, 5, own)
    assert all((a == b).all() for a, b in zip(weights, own, strict=True))
    assert all((a == b).all() for a, b in zip(state_of(first), between, strict=True))


def test_state_that_a_program_puts_in_counts():
    mine, reference = ours.Adam(0.01), theirs.Adam(0.01)
    weights, expected = train(mine), train(reference)
    for optimizer in (mine, reference):
        optimizer.mom1 = {key: np.full(array.size, 0.5, FLOAT32) for key, array in optimizer.mom1.items()}
        optimizer.averages = {}
        optimizer.nr_update[0, "W"] = 3
    for weight, wanted in zip(train(mine, 3, weights), train(reference, 3, expected), strict=True):
        np.testing.assert_allclose(weight, wanted, rtol=2e-6, atol=2e-5)
    for array, wanted in zip(state_of(mine), state_of(reference), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=2e-5, atol=2e-5)


def test_weights_may_move():
    mine = ours.Adam(0.01)
    weights = train(mine)
    other = copy.deepcopy(mine)
    moved = [weight.copy() for weight in weights]
    for weight, same in zip(train(mine, 4, moved), train(other, 4, weights), strict=True):
        assert (weight == same).all()
    slots = dict(mine.mom1)
    train(mine, 1, [weight[...] for weight in moved])              # other arrays over the same memory, as of shims
    assert all(mine.mom1[key] is array for key, array in slots.items())


def test_thinc_steps_what_optimc_does_not_take():
    mine, reference = ours.Adam(0.1, L2=0.1), theirs.Adam(0.1, L2=0.1)
    weights = [np.ones((4, 6), FLOAT32)[:, ::2] for _ in range(2)]
    for optimizer, weight in zip((mine, reference), weights, strict=True):
        optimizer((1, "W"), weight, np.full((4, 3), 0.5, FLOAT32))
    assert (weights[0] == weights[1]).all() and mine.nr_update == reference.nr_update
    empty = np.zeros((0, 3), FLOAT32)
    assert mine((2, "W"), empty, empty)[0] is empty
    with pytest.raises(NotImplementedError):
        ours.Optimizer(0.1, beta1=0.0, beta2=0.9)((1, "W"), np.ones(2, FLOAT32), np.ones(2, FLOAT32))


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
@pytest.mark.parametrize(("case", "settings"), [
    ("NaN", {}), ("inf", {}), ("", {"grad_clip": -1.0}), ("count", {}), ("gaps", {})], ids=str)
def test_odd_steps_are_thincs(name, case, settings):
    mine, reference = getattr(ours, name)(0.05, **settings), getattr(theirs, name)(0.05, **settings)
    weights, expected = train(mine, 4), train(reference, 4)
    key, start = (0, "W"), weights[0].copy()
    expected[0][...] = start
    gradient = np.full(SHAPES[0], 2.0, FLOAT32)
    if case in ("NaN", "inf"):
        gradient[3, 2] = float(case)
    if case == "count":
        mine.nr_update.clear()
        reference.nr_update.clear()
    if case == "gaps":
        for slots in (mine.mom1, mine.averages):
            for at, array in slots.items():
                slots[at] = np.repeat(array, 2, axis=-1)[..., ::2]
    with np.errstate(invalid="ignore"):
        mine(key, weights[0], gradient.copy())
        reference(key, expected[0], gradient.copy())
    assert (weights[0] != start).any()
    np.testing.assert_allclose(weights[0], expected[0], rtol=2e-6, atol=2e-5)
    assert mine.nr_update == reference.nr_update
    for array, wanted in zip(state_of(mine), state_of(reference), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_a_refused_step_changes_nothing(trained):
    mine = ours.Adam(0.1, L2=0.1, L2_is_weight_decay=False)
    weights = train(mine, 3) if trained else [np.ones(SHAPES[0], FLOAT32)]
    weight, gradient = weights[0], np.ones(SHAPES[0], FLOAT32)
    fixed = gradient.copy()
    fixed.flags.writeable = False
    before, count, held = weight.copy(), dict(mine.nr_update), [array.copy() for array in state_of(mine)]
    beta1, mine.b1 = mine.b1, ours.Adam(0.1, beta1=1.5).b1
    with pytest.raises(ValueError, match="beta_1"):
        mine((0, "W"), weight, gradient)
    mine.b1 = beta1
    with pytest.raises(ValueError, match=r"\(0, 'W'\): expected a gradient that can be written"):
        mine((0, "W"), weight, fixed)
    assert (weight == before).all() and (gradient == 1).all() and dict(mine.nr_update) == count
    assert all((now == then).all() for now, then in zip(state_of(mine), held, strict=True))
    mine((0, "W"), weight, gradient)
    assert (weight != before).all() and mine.nr_update[0, "W"] == count.get((0, "W"), 0) + 1


def test_a_model_learns_and_is_evaluated_with_averages():
    def trained(optimizer):
        api.fix_random_seed(0)
        x = np.random.default_rng(0).normal(size=(64, 5)).astype(FLOAT32)
        y = np.eye(2, dtype=FLOAT32)[(x[:, 0] > 0).astype(int)]
        model = api.chain(api.Relu(16), api.Softmax()).initialize(X=x, Y=y)
        for _ in range(60):
            p, backprop = model.begin_update(x)
            backprop((p - y) / len(x))
            model.finish_update(optimizer)
            optimizer.step_schedules()
        with model.use_params(optimizer.averages):
            return model.predict(x)

    mine = ours.Adam(0.01)
    assert isinstance(mine, theirs.Optimizer)
    np.testing.assert_allclose(trained(mine), trained(theirs.Adam(0.01)), atol=1e-5)


CONFIG = """
import sys
from thinc.api import Config, registry
assert "optimc" not in sys.modules
for name in {names}:
    text = f'[optimizer]\\n@optimizers = "{{name}}"\\nlearn_rate = 0.25\\nL2 = 0.01'
    optimizer = registry.resolve(Config().from_str(text))["optimizer"]
    print(type(optimizer).__name__, optimizer.L2 if isinstance(optimizer.L2, float) else optimizer.L2(0))
"""


def test_a_config_needs_no_code(tmp_path):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    names = points["thinc_optimizers"]
    assert {f"optimc.{name}.v1": f"optimc.thinc:{name}" for name in set(ours.__all__) - {"Optimizer"}} == names
    folder = tmp_path / "points-0.dist-info"            # as pip would write it
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: points\nVersion: 0\n")
    (folder / "entry_points.txt").write_text("\n".join(["[thinc_optimizers]", *map(" = ".join, names.items())]))
    done = subprocess.run([sys.executable, "-c", CONFIG.format(names=list(names))], capture_output=True, text=True,
                          env={"PYTHONPATH": search_path(tmp_path, ROOT)})
    assert done.stdout.splitlines() == [f"{name.split('.')[1]} 0.01" for name in names], done.stderr


def test_a_config_refuses_what_thinc_would():
    with pytest.raises(Exception, match="rate"):
        api.registry.resolve({"optimizer": {"@optimizers": "optimc.Adam.v1", "learn_rate": 0.1, "rate": 1}})


def test_examples_run():
    found = doctest.testmod(ours)
    assert found.attempted > 20 and not found.failed
