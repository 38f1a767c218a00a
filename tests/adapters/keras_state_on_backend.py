"""Tests of what optimc.keras keeps, which every backend runs: saving, loading, variables.  See test_keras.py."""

import copy

import keras
import numpy as np
import pytest
from keras_cases import OPTIONS, each_common, each_optimizer, fit, needs_fit, numpy, run, tensors, variables

import optimc


def compiled(name, **options):
    """A model whose weights all kinds of slots are kept for, with its optimizer."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile(optimizer=getattr(optimc.keras, name)(**options), loss="mse")
    return model


def step(model, k):
    rng = np.random.default_rng(k)
    model.optimizer.apply(tensors(rng.standard_normal(v.shape).astype(np.float32) for v in model.trainable_variables),
                          model.trainable_variables)


@pytest.mark.parametrize("options", ["defaults", "together"])
@each_optimizer
def test_resume_is_exact(name, options, tmp_path):
    model = compiled(name, **OPTIONS[options])
    for k in range(4):
        step(model, k)
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    assert type(other.optimizer) is type(model.optimizer)
    assert other.optimizer.get_config() == model.optimizer.get_config()
    for k in range(4, 9):
        for each in (model, other):
            step(each, k)
    for mine, again in zip([*model.get_weights(), *numpy(model.optimizer.variables)],
                           [*other.get_weights(), *numpy(other.optimizer.variables)], strict=True):
        np.testing.assert_array_equal(mine, again)


@needs_fit
@pytest.mark.parametrize("schedule", [None, keras.optimizers.schedules, optimc.schedules],
                         ids=["rate", "keras", "optimc"])
def test_fit_resumes(schedule, tmp_path):
    rate = schedule.CosineDecay(0.1, 20) if schedule else 0.01
    _, model = fit(optimc.keras.Nadam(rate, use_ema=True, gradient_accumulation_steps=3, weight_decay=0.1), 1)
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    assert fit(None, 2, model)[0] == fit(None, 2, other)[0]
    for mine, again in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, again)


@each_common
def test_variables_are_kerass(name):
    """So that either loads what the other saved."""
    ours, theirs = (getattr(module, name)(use_ema=True, gradient_accumulation_steps=2)
                    for module in (optimc.keras, keras.optimizers))
    for optimizer in (ours, theirs):
        optimizer.build(variables())
    if name == "Adafactor":
        pytest.skip("Keras keeps two numbers without use for vectors")
    assert [tuple(v.shape) for v in ours.variables] == [tuple(v.shape) for v in theirs.variables]
    assert [v.path.split("/", 1)[-1].rstrip("_0123456789") for v in ours.variables][4:-1] == \
        [v.path.split("/", 1)[-1].rstrip("_0123456789") for v in theirs.variables][4:-1]


def test_goes_on_where_keras_stopped():
    a, theirs = variables(), keras.optimizers.Adam(0.01, amsgrad=True)
    run(theirs, a, 3)
    ours, b = optimc.keras.Adam(0.01, amsgrad=True), variables()
    ours.build(b)
    for mine, other in zip([*ours.variables, *b], numpy([*theirs.variables, *a]), strict=True):
        mine.assign(other)
    for mine, other in zip(run(ours, b, 3, 3), run(theirs, a, 3, 3), strict=True):
        np.testing.assert_allclose(mine, other, 1e-5, 1e-6)


def test_serialization():
    opt = optimc.keras.AdamW(0.01, 0.3, cautious=True, groups=[{"weights": "bias", "weight_decay": 0.0}])
    again = keras.optimizers.deserialize(keras.optimizers.serialize(opt))
    assert type(again) is optimc.keras.AdamW and again.get_config() == opt.get_config()
    assert again.get_config()["cautious"] is True and again.get_config()["groups"]
    assert type(keras.optimizers.get("optimc>Adam")) is optimc.keras.Adam
    twin = copy.deepcopy(optimc.keras.SGD(0.5, momentum=0.25))
    assert twin.momentum == 0.25 and float(keras.ops.convert_to_numpy(twin.learning_rate)) == 0.5
