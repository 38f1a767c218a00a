"""A plugin for pytest that runs Keras's own optimizer tests with optimc's classes in place of Keras's.

test_keras.py runs it, on each backend.  It skips the tests listed below.
"""

import types

import keras
import pytest
from keras.src import optimizers

import optimc.keras

OURS = {name: getattr(optimc.keras, name) for name in optimc.keras.__all__ if name != "Schedule"}
MESSAGE = "expects the words of an error; the error is the same"
INSIDE = "calls a method, or looks at an attribute, that is not Keras's interface: lr_adjust, _u_product, ..."
NOT_OURS = {
    "AdamWTest::test_weight_decay_is_none": MESSAGE,
    "FtrlTest::test_invalid_initial_accumulator_value": MESSAGE,
    "FtrlTest::test_invalid_l1_regularization_strength": MESSAGE,
    "FtrlTest::test_invalid_l2_regularization_strength": MESSAGE,
    "FtrlTest::test_invalid_l2_shrinkage_regularization_strength": MESSAGE,
    "FtrlTest::test_invalid_learning_rate_power": MESSAGE,
    "LionTest::test_invalid_beta_1": MESSAGE,
    "SGDTest::test_invalid_momentum": MESSAGE,
    "MuonTest::test_Newton_Schulz": INSIDE,
    "MuonTest::test_adamw_single_step": INSIDE,
    "MuonTest::test_adamw_weight_decay": INSIDE,
    "MuonTest::test_lr_adjust_2d": INSIDE,
    "MuonTest::test_lr_adjust_none": INSIDE,
    "MuonTest::test_muon_single_step": INSIDE,
    "MuonTest::test_should_use_adamw": INSIDE,
    "NadamTest::test_build_with_empty_var_list": INSIDE,
    "OptimizerTest::test_get_method": 'keras.optimizers.get("sgd") is Keras\'s own class',
    "OptimizerSparseTest::test_sparse_gradients_loss_scale_optimizer_sgd":
        "expects Keras's way to scatter a sparse gradient; the step in C takes it",
}
#: on the numpy backend Keras cannot fit
FITS = ("AdamTest::test_ema", "LionTest::test_ema", "MuonTest::test_model_fit",
        "MultiOptimizerTest::test_swap_ema_weights_with_multi_optimizer",
        "MultiOptimizerTest::test_multi_optimizer_with_model_fit",
        "OptimizerTest::test_ema_with_model_fit", "ScheduleFreeAdamWTest::test_with_model")


def pytest_collection_modifyitems(items):
    for module in {item.module for item in items}:
        for name, value in list(vars(module).items()):
            if value is optimizers:
                setattr(module, name, types.SimpleNamespace(**{**vars(optimizers), **OURS}))
            elif isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer) and value.__name__ in OURS:
                setattr(module, name, OURS[value.__name__])
    for item in items:
        name = item.nodeid.partition("::")[2]
        if name in NOT_OURS:
            item.add_marker(pytest.mark.skip(reason=NOT_OURS[name]))
        elif name in FITS and keras.backend.backend() == "numpy":
            item.add_marker(pytest.mark.skip(reason="the numpy backend cannot fit"))
