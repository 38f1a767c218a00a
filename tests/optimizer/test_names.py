"""Names that do not exist: a misspelling or a word of another library is an error with the name of optimc."""

import copy
import pickle
import re
import subprocess
import sys
import unittest.mock

import numpy as np
import pytest

import optimc
from optimc import schedules
from optimc.base.names import CLASSES, ELSEWHERE, hint
from optimc.registry import classes


def wrapped():
    return optimc.LossScaleOptimizer(optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD())))


OBJECTS = {**{name: cls for name, cls in classes.items()}, "LossScaleOptimizer": wrapped,
           "MultiOptimizer": lambda: optimc.MultiOptimizer(optimc.OptimizerMap(optimc.SGD())),
           "OptimizerMap": lambda: optimc.OptimizerMap(optimc.SGD()),
           "CosineDecay": lambda: schedules.CosineDecay(0.1, 10)}


@pytest.fixture(params=OBJECTS)
def made(request):
    return OBJECTS[request.param]()


# ------------------------------------------------------------------------------------------------ setting


def test_an_attribute_that_is_not_declared_is_refused(made):
    kind, before = re.escape(type(made).__name__), dict(vars(made))
    for name in ("lr", "step", "no_such_thing", "momemtum"):
        with pytest.raises(AttributeError, match=rf"^{kind} has no attribute '{name}'"):
            setattr(made, name, 0.1)
    assert vars(made) == before


@pytest.mark.parametrize(("name", "message"), [
    ("lr", "did you mean learning_rate"), ("learning_rte", "did you mean learning_rate"),
    ("betas", "did you mean beta_1 and beta_2"), ("eps", "did you mean epsilon"),
    ("beta1", "did you mean beta_1"), ("param_groups", "did you mean groups"),
    ("alpha", "did you mean learning_rate"), ("zzz", "'zzz'$"),
    ("step", r"\(torch has it\): call apply\(grads, weights\)")])
def test_the_name_that_is_meant_is_suggested(name, message):
    with pytest.raises(AttributeError, match=message):
        setattr(optimc.Adam(), name, 1)


def test_declared_and_private_attributes_can_be_set(made):
    made._mine = 1
    assert made._mine == 1
    for name in vars(made).copy():
        if name not in ("groups", "_mine"):
            setattr(made, name, getattr(made, name))
    with unittest.mock.patch.object(made, "get_config", return_value={}):
        assert made.get_config() == {}
    assert made.get_config() != {}


class Own(optimc.Adam):
    note = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.history, self.lr = [], 0.5

    def step(self, grads, weights):
        self.steps = 1
        self.apply(grads, weights)


def test_objects_of_a_program_s_class_take_any_attribute():
    own, w = Own(0.1), np.ones(1, np.float32)
    own.step([w.copy()], [w])
    own.note, own.anything = "a", 2
    for one in (own, copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert (one.history, one.lr, one.note, one.anything, one.steps) == ([], 0.5, "a", 2, 1)
    assert {"history", "lr", "step"} <= set(dir(own)) and "minimize" not in dir(own)

    class Decay(schedules.CosineDecay):
        def __call__(self, step):
            self.asked = step
            return super().__call__(step)

    decay = Decay(0.5, 10)
    assert decay(0) == 0.5 and decay.asked == 0


def test_attributes_in_older_pickles_stay():
    optimizer = optimc.Adam()
    optimizer.__dict__["note"] = 1                  # 0.1 took any attribute
    other = pickle.loads(pickle.dumps(optimizer))
    other.note += 1
    assert other.note == 2


def test_groups_say_that_their_values_are_entries():
    group = optimc.Adam(groups=[{"params": "bias"}]).groups[0]
    for name in ("lr", "learning_rate"):
        with pytest.raises(AttributeError, match=rf"groups\[0\] has no attribute '{name}'.*\['learning_rate'\]"):
            setattr(group, name, 1)
        with pytest.raises(AttributeError, match=rf"groups\[0\] has no attribute '{name}'.*\['learning_rate'\]"):
            getattr(group, name)
    with pytest.raises(ValueError, match="did you mean learning_rate"):
        group["lr"] = 0.1


# ------------------------------------------------------------------------------------------------ reading


def test_words_of_other_libraries_are_errors_with_advice(made):
    if isinstance(made, (schedules.LearningRateSchedule, optimc.OptimizerMap)):
        pytest.skip("a part of an optimizer")
    for name, other in ELSEWHERE.items():
        if hasattr(made, name):
            assert name in type(made)._arguments
            continue
        with pytest.raises(AttributeError, match=rf"^{type(made).__name__} has no attribute '{name}'") as caught:
            getattr(made, name)
        assert other.advice in str(caught.value) or "did you mean" in str(caught.value)
        assert caught.value.name is None            # or Python would add a suggestion
    with pytest.raises(TypeError, match=r"is not a function: call apply\(grads, weights\)"):
        made([], [])


def test_no_public_name_is_taken_for_a_word_of_another_library():
    for cls in (optimc.Optimizer, *classes.values()):
        for name in dir(cls()) if cls._rule else ():
            getattr(cls(), name)
            assert name in cls._arguments or name not in ELSEWHERE


def test_python_suggests_no_private_name():
    for name in ("step", "steps", "weight", "slot", "calls", "learning_rte"):
        run = subprocess.run([sys.executable, "-c", f"import optimc; optimc.Adam().{name}"], capture_output=True,
                             text=True, timeout=60)
        line = run.stderr.splitlines()[-1]
        assert line.startswith("AttributeError") and not re.search("mean:? '?_", line), line
    assert line.endswith("Did you mean: 'learning_rate'?")


def test_optimizers_are_no_values_although_calls_have_an_answer():
    with pytest.raises(TypeError, match="learning_rate must be a number, a schedule or a callable, got SGD"):
        optimc.Adam(optimc.SGD())
    with pytest.raises(TypeError, match="optimizer_map must be an OptimizerMap or a function, got SGD"):
        optimc.MultiOptimizer(optimc.SGD())


# -------------------------------------------------------------------------------------------------- tables


def test_tables_name_things_that_exist():
    attributes = {name for cls in classes.values() for name in dir(cls())}
    attributes |= set(dir(wrapped())) | set(dir(schedules.CosineDecay(0.1, 1))) | {"initial_learning_rate"}
    for other in ELSEWHERE.values():
        assert other.here or other.advice
        for here in other.here:
            assert attributes.issuperset(here.split(" and ")), here
    for expression in CLASSES.values():
        assert isinstance(eval(expression, vars(optimc).copy()), optimc.Optimizer)


def test_a_name_like_nothing_gets_no_suggestion():
    assert hint("zzz", ["learning_rate"]) == ""
    assert hint("Learning-Rate", ["learning_rate"]) == ": did you mean learning_rate?"


def test_arguments_of_other_rules_name_these():
    with pytest.raises(TypeError, match=r"Adagrad has no argument 'cautious': only rules with momentum"):
        optimc.Adagrad(cautious=True)
    with pytest.raises(TypeError, match=r"SGD has no argument 'amsgrad': only Adam and AdamW have it"):
        optimc.SGD(amsgrad=True)
    with pytest.raises(TypeError, match=r"no argument 'lr': did you mean learning_rate\?; no argument 'zzz'$"):
        optimc.Adam(lr=0.1, zzz=1)


@pytest.mark.parametrize(("value", "message"), [
    ("cosine", r"got str 'cosine': did you mean optimc.schedules.CosineDecay"), ("0.1", "pass the number 0.1"),
    ("step", "optimc.schedules.PiecewiseConstantDecay"), ("zzz", "'zzz': see optimc.schedules"),
    ([np.ones(2)], r"weights are given to apply\(grads, weights\)"), (None, "got NoneType$")])
def test_values_that_are_none_get_advice(value, message):
    with pytest.raises(TypeError, match=f"^learning_rate must be a number, a schedule or a callable, {message}"
                       if message.startswith("got") else message):
        optimc.Adam(value)


def test_declared_values_are_set_without_a_look_at_names():
    """Python's check of names is not called for them."""
    optimizer = optimc.Adam()
    with unittest.mock.patch.object(optimc.Optimizer, "_check_attribute", side_effect=AssertionError):
        optimizer.learning_rate, optimizer.name, optimizer.iterations = 0.5, "x", 3
        with pytest.raises(AssertionError):
            optimizer.lr = 1


def test_a_mixin_after_the_class_keeps_its_names():
    class Mixin:
        state = "its own"

        def step(self):
            return self.state

        @classmethod
        def load(cls, path):
            return cls, path

    class Mixed(optimc.SGD, Mixin):
        pass

    assert Mixed().step() == "its own"
    assert Mixed.load("x") == Mixed().load("x") == (Mixed, "x")
