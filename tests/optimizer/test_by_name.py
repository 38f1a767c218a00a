"""`optimc.get` finds an optimizer by name or class, and `optimc.NAME` that does not exist says what is meant."""

import re

import pytest

import optimc
from optimc.base.names import SCHEDULE_WORDS, SCHEDULES
from optimc.registry import classes


@pytest.mark.parametrize("name", ["rmsprop", "RMSprop", "rms_prop", "RMS-Prop", "rms prop", optimc.RMSprop])
def test_get_takes_a_name_or_a_class_and_arguments(name):
    assert type(optimc.get(name)) is optimc.RMSprop
    assert optimc.get(name, learning_rate=0.5, rho=0.75).get_config() == optimc.RMSprop(0.5, 0.75).get_config()
    with pytest.raises(TypeError, match="RMSprop has no argument 'lr': did you mean learning_rate"):
        optimc.get(name, lr=0.1)


def test_no_two_classes_have_the_same_name_without_its_spelling():
    from optimc.base.names import plain
    assert len({plain(name) for name in classes}) == len(classes)


@pytest.mark.parametrize(("wrong", "message"), [
    ("adm", r"'adm': did you mean 'adam'\?$"), ("nadm", r"did you mean 'nadam'\?$"),
    ("momentum", r"did you mean optimc.SGD\(momentum=0.9\)\?$"),
    ("Nesterov", r"did you mean optimc.SGD\(momentum=0.9, nesterov=True\)\?$"),
    ("zzzzz", "'zzzzz'; there are ASGD, AdaBelief, .*, Yogi$"), (3, "3; expected the name of an optimizer"),
    (int, "<class 'int'>; expected the name of an optimizer")])
def test_get_says_what_is_meant(wrong, message):
    with pytest.raises(ValueError, match=f"^Could not interpret optimizer identifier: .*{message}"):
        optimc.get(wrong)


def test_arguments_go_with_names_and_classes_only():
    for one in (optimc.Adam(), optimc.serialize(optimc.Adam()), None):
        with pytest.raises(TypeError, match=rf"get: arguments \(learning_rate\) .* not with {type(one).__name__}"):
            optimc.get(one, learning_rate=0.1)


@pytest.mark.parametrize(("wrong", "meant"), [
    ("adam", "Adam"), ("RMSProp", "RMSprop"), ("NAdam", "Nadam"), ("AdaGrad", "Adagrad"), ("Adm", "Adam"),
    ("Momentum", "SGD(momentum=0.9)"), ("schedule", "schedules"), ("laod", "load"), ("kears", "keras"),
    ("adma", "Adam"), ("CosineDecay", "schedules.CosineDecay"), ("StepLR", "schedules.PiecewiseConstantDecay")])
def test_a_name_of_the_package_that_is_wrong_says_what_is_meant(wrong, meant):
    with pytest.raises(AttributeError, match=rf"^module 'optimc' has no attribute '{wrong}': did you mean "
                       rf"optimc.{re.escape(meant)}\?$"):
        getattr(optimc, wrong)


def test_a_name_like_nothing_is_an_ordinary_error():
    with pytest.raises(AttributeError, match=r"^module 'optimc' has no attribute 'zzzzz'$"):
        _ = optimc.zzzzz


def test_what_is_looked_for_in_the_wrong_place_is_found():
    with pytest.raises(AttributeError, match=r"'save': an optimizer saves itself, opt.save\(path\)$"):
        _ = optimc.save
    with pytest.raises(AttributeError, match=r"^module 'optimc.schedules' .*: did you mean CosineDecay\?$"):
        _ = optimc.schedules.CosineAnnealingLR
    with pytest.raises(AttributeError, match=r"^module 'optimc.schedules' has no attribute 'zzzzz'$"):
        _ = optimc.schedules.zzzzz
    with pytest.raises(AttributeError, match=r"'load': optimc.load\(path\) gives the optimizer that was saved$"):
        optimc.Adam().load("x")
    with pytest.raises(AttributeError, match=r"'step' \(torch has it\): call apply\(grads, weights\)$"):
        _ = optimc.step
    for name in ("step", "LambdaLR", "zzz"):
        with pytest.raises(AttributeError) as raised:
            getattr(optimc, name)
        assert "Lamb?" not in str(raised.value) and "schedules" not in str(raised.value)


def test_words_of_other_libraries_for_schedules_name_schedules():
    for name in (*SCHEDULES.values(), *SCHEDULE_WORDS.values()):
        assert name in optimc.schedules.public()
