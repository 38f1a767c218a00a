"""optimc.sklearn beside scikit-learn: the same estimators, the same loss curves, and state that is kept."""

import contextlib
import copy
import doctest
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from cases import assert_same_bits
from conftest import require
from interrupting import every_interruption

import optimc
from optimc.base.extras import advice

sklearn = require("sklearn")
adapter = pytest.importorskip("optimc.sklearn")
datasets, neural_network = require("sklearn.datasets"), require("sklearn.neural_network")
model_selection, estimator_checks = require("sklearn.model_selection"), require("sklearn.utils.estimator_checks")

MLPClassifier, MLPRegressor = adapter.MLPClassifier, adapter.MLPRegressor
both_kinds = pytest.mark.parametrize("kind", adapter.__all__)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def tables():
    digits, labels = datasets.load_digits(return_X_y=True)
    patients, progress = datasets.load_diabetes(return_X_y=True)
    return {"MLPClassifier": (digits[:500] / 16, labels[:500]),
            "MLPRegressor": (patients / patients.std(0), progress / progress.std())}


def make(kind, module=adapter, **arguments):
    return getattr(module, kind)(**{"hidden_layer_sizes": (16,), "max_iter": 8, "random_state": 0, **arguments})


def weights_of(model):
    return [weight.copy() for weight in model.coefs_ + model.intercepts_]


def assert_same_weights(a, b):
    for mine, other in zip(weights_of(a), weights_of(b), strict=True):
        assert_same_bits(mine, other)


# --------------------------------------------------------------------------------- an estimator

@estimator_checks.parametrize_with_checks([
    MLPClassifier(max_iter=100), MLPRegressor(max_iter=100),
    MLPClassifier(solver=optimc.AdamW(1e-2), max_iter=100), MLPRegressor(solver=optimc.AdamW(1e-2), max_iter=100)])
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("solver", [optimc.AdamW(0.01, groups=[{"weights": "intercepts", "weight_decay": 0.0}]),
                                    optimc.RMSprop(optimc.schedules.CosineDecay(0.1, 100)), "lion"], ids=repr)
def test_parameters_are_kept_as_given(solver):
    model = make("MLPClassifier", solver=solver)
    assert model.get_params()["solver"] is solver
    twin = sklearn.base.clone(model)
    assert repr(twin.solver) == repr(solver)
    other = optimc.Lion()
    assert model.set_params(solver=other).solver is other and twin.solver is not other
    assert repr(pickle.loads(pickle.dumps(twin)).solver) == repr(solver)
    assert "solver=" in repr(model)


@both_kinds
def test_fit_leaves_the_solver_alone(kind, tables):
    solver = optimc.Adam(0.01, beta_1=0.8)
    model = make(kind, solver=solver).fit(*tables[kind])
    assert model.solver is solver and solver.iterations == 0 and not solver.built
    assert type(model.optimizer_) is optimc.Adam and model.optimizer_.beta_1 == 0.8
    assert model.optimizer_.iterations == model.n_iter_ * -(-len(tables[kind][0]) // 200)
    first = weights_of(model)
    for mine, again in zip(first, weights_of(model.fit(*tables[kind])), strict=True):
        assert_same_bits(mine, again)                       # a second fit starts afresh


@both_kinds
@pytest.mark.parametrize("bad", ["no_such", 3, None, optimc.Adam, optimc.LossScaleOptimizer(optimc.SGD())],
                         ids=lambda bad: getattr(bad, "__name__", type(bad).__name__))
def test_unknown_solvers_are_refused(kind, bad, tables):
    with pytest.raises(ValueError, match=f"The 'solver' parameter of {kind} must be"):
        make(kind, solver=bad).fit(*tables[kind])


def test_a_scaled_loss_is_refused(tables):
    model = make("MLPRegressor", solver=optimc.SGD(loss_scale_factor=8.0))
    with pytest.raises(ValueError, match=r"without loss_scale_factor.*got 8\.0"):
        model.fit(*tables["MLPRegressor"])
    assert isinstance(model.solver, optimc.SGD)


def test_arguments_without_effect_are_told(tables):
    X, y = tables["MLPRegressor"]
    with pytest.warns(UserWarning, match=r"learning_rate_init=0\.5 has no effect with solver=<AdamW"):
        make("MLPRegressor", solver=optimc.AdamW(), learning_rate_init=0.5).fit(X, y)
    with pytest.warns(UserWarning, match=r"momentum=0\.5 has no effect with solver='lion'"):
        make("MLPRegressor", solver="lion", learning_rate_init=0.01, momentum=0.5).fit(X, y)


def test_a_search_over_optimizers(tables):
    solvers = [optimc.AdamW(1e-5), optimc.AdamW(0.03), "sgd"]
    search = model_selection.GridSearchCV(make("MLPClassifier", max_iter=25), {"solver": solvers}, cv=2)
    search.fit(*tables["MLPClassifier"])
    assert search.best_params_["solver"].learning_rate == 0.03
    assert search.best_score_ > 0.8


# ------------------------------------------------------------------- equal to scikit-learn's own

SGDS = [{}, {"nesterovs_momentum": False},
        {"momentum": 0.0, "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.1},
        {"learning_rate": "invscaling", "learning_rate_init": 0.1, "power_t": 0.3}]


@both_kinds
@pytest.mark.parametrize("arguments", SGDS, ids=str)
def test_sgd_has_the_bits_of_scikit_learn(kind, arguments, dtype, tables):
    X, y = tables[kind]
    X, y = X.astype(dtype), y if kind == "MLPClassifier" else y.astype(dtype)
    arguments = {"solver": "sgd", "learning_rate_init": 0.05, "max_iter": 15, "batch_size": 50, **arguments}
    mine, theirs = (make(kind, module, **arguments).fit(X, y) for module in (adapter, neural_network))
    assert mine.loss_curve_ == theirs.loss_curve_ and mine.n_iter_ == theirs.n_iter_
    assert mine.coefs_[0].dtype == dtype
    assert_same_weights(mine, theirs)
    assert mine._optimizer.learning_rate == theirs._optimizer.learning_rate
    if "learning_rate" in arguments:
        assert mine._optimizer.learning_rate < arguments["learning_rate_init"]


def test_float64_targets_of_float32_data(tables):
    """The gradients are float64 then: scikit-learn steps with these, optimc rounds them to the weights' dtype."""
    X, y = tables["MLPRegressor"]
    mine, theirs = (make("MLPRegressor", module, solver="sgd").fit(X.astype(np.float32), y)
                    for module in (adapter, neural_network))
    assert mine.coefs_[0].dtype == theirs.coefs_[0].dtype == np.float32
    assert mine.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=1e-5)


@both_kinds
@pytest.mark.parametrize("arguments", [{}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
                                       {"early_stopping": True, "tol": 1e-2, "n_iter_no_change": 2}], ids=str)
def test_adam_has_the_loss_curve_of_scikit_learn(kind, arguments, dtype, tables):
    X, y = tables[kind]
    arguments = {"learning_rate_init": 0.01, "max_iter": 15, **arguments}
    mine, theirs = (make(kind, module, **arguments).fit(X.astype(dtype), y) for module in (adapter, neural_network))
    bound = {np.float32: 1e-5, np.float64: 1e-12}[dtype]
    assert mine.loss_curve_ == pytest.approx(theirs.loss_curve_, rel=bound)
    assert mine.validation_scores_ == (None if theirs.validation_scores_ is None
                                       else pytest.approx(theirs.validation_scores_, rel=1e-4))


@both_kinds
def test_an_instance_is_the_name_with_the_same_values(kind, tables):
    for name, instance in (("sgd", optimc.SGD(0.02, momentum=0.9, nesterov=True)),
                           ("adam", optimc.Adam(0.02, epsilon=1e-8)), ("lion", optimc.Lion(0.02))):
        assert_same_weights(make(kind, solver=name, learning_rate_init=0.02).fit(*tables[kind]),
                            make(kind, solver=instance).fit(*tables[kind]))


@both_kinds
def test_lbfgs_stays_scikit_learns(kind, tables):
    mine, theirs = (make(kind, module, solver="lbfgs").fit(*tables[kind]) for module in (adapter, neural_network))
    assert_same_weights(mine, theirs)
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")


@pytest.mark.parametrize("solver", [name.lower() for name in optimc.registry.classes])
def test_every_optimizer_learns(solver, tables):
    X, y = tables["MLPRegressor"]
    first = make("MLPRegressor", solver=solver, learning_rate_init=0.01, max_iter=1, batch_size=20).fit(X, y)
    last = make("MLPRegressor", solver=solver, learning_rate_init=0.01, max_iter=20, batch_size=20).fit(X, y)
    assert last.loss_ < first.loss_
    assert type(last.optimizer_).__name__.lower() == solver


# -------------------------------------------------------------------------------- state that goes on

SOLVERS = {
    "adam by name": "adam",
    "adamw": optimc.AdamW(0.01),
    "schedule": optimc.SGD(optimc.schedules.ExponentialDecay(0.1, 10, 0.5), momentum=0.9),
    "averages": optimc.AdamW(0.01, use_ema=True, ema_momentum=0.8),
    "schedule-free": optimc.ScheduleFreeAdamW(0.01),
    "accumulation": optimc.Adam(0.01, gradient_accumulation_steps=2),
    "muon": optimc.Muon(0.01),
    "routed": optimc.MultiOptimizer(optimc.OptimizerMap(
        optimc.Lion(0.001), {"coefs_.*": optimc.Adam(0.01, use_ema=True)})),
}


@both_kinds
@pytest.mark.parametrize("name", SOLVERS)
def test_warm_starts_go_on(kind, name, tables):
    """Two fits of a few epochs are one of twice as many, but for the shuffling, which starts anew with each."""
    X, y = tables[kind]
    arguments = {"solver": SOLVERS[name], "shuffle": False, "batch_size": 100, "n_iter_no_change": 100}
    straight = make(kind, max_iter=10, **arguments).fit(X, y)
    halves = make(kind, max_iter=5, warm_start=True, **arguments).fit(X, y)
    assert_same_weights(straight, halves.fit(X, y))
    assert halves.optimizer_.iterations == straight.optimizer_.iterations
    assert halves.loss_curve_ == straight.loss_curve_


@both_kinds
@pytest.mark.parametrize("move", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["stay", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", SOLVERS)
def test_partial_fits_go_on(kind, name, move, tables):
    X, y = tables[kind]
    classes = {"classes": np.unique(y)} if kind == "MLPClassifier" else {}
    straight, moved = (make(kind, solver=SOLVERS[name], max_iter=6, shuffle=False, batch_size=100,
                            n_iter_no_change=100) for _ in range(2))
    straight.fit(X, y)
    for _ in range(3):
        moved.partial_fit(X, y, **classes)
    left = moved
    moved = move(left)
    for _ in range(3):
        moved.partial_fit(X, y)
    assert_same_weights(straight, moved)
    assert moved.optimizer_.iterations == straight.optimizer_.iterations
    if moved is not left:
        assert left.optimizer_.iterations == straight.optimizer_.iterations // 2
        for _ in range(3):
            left.partial_fit(X, y)
        assert_same_weights(straight, left)                 # the copy shared nothing with it


def test_scikit_learn_loses_its_state_and_this_does_not(tables):
    X, y = tables["MLPRegressor"]
    arguments = {"solver": "sgd", "shuffle": False, "learning_rate_init": 0.01, "n_iter_no_change": 100}
    for module, keeps in ((neural_network, False), (adapter, True)):
        straight = make("MLPRegressor", module, max_iter=8, **arguments).fit(X, y)
        halves = make("MLPRegressor", module, max_iter=4, warm_start=True, **arguments).fit(X, y).fit(X, y)
        assert (straight.loss_curve_ == halves.loss_curve_) == keeps


def test_another_solver_starts_afresh(tables):
    X, y = tables["MLPRegressor"]
    model = make("MLPRegressor", solver=optimc.Adam(0.01), warm_start=True, max_iter=2).fit(X, y)
    for change in ({"solver": optimc.Adam(0.01)}, {"solver": "adam"}, {"learning_rate_init": 0.02}):
        before = model.optimizer_
        model.set_params(**change).fit(X, y)
        assert model.optimizer_ is not before and model.optimizer_.iterations == 2 * 3
    before = model.optimizer_
    model.fit(X, y)
    assert model.optimizer_ is before and before.iterations == 2 * 2 * 3
    model.set_params(solver="lbfgs").fit(X, y)
    model.set_params(solver="adam").fit(X, y)
    assert model.optimizer_ is not before


def test_early_stopping_restores_the_best_and_goes_on(tables):
    X, y = tables["MLPClassifier"]
    model = make("MLPClassifier", solver=optimc.Adam(0.05), early_stopping=True, warm_start=True, max_iter=5)
    best = weights_of(model.fit(X, y))
    steps = model.optimizer_.iterations
    assert steps == 5 * 3
    model.fit(X, y)                                         # the weights lie elsewhere now
    assert model.optimizer_.iterations == 2 * steps
    assert any((a != b).any() for a, b in zip(best, weights_of(model), strict=True))


@pytest.mark.parametrize("name", ["averages", "schedule-free", "routed"])
def test_averages_are_what_predicts(name, tables):
    X, y = tables["MLPClassifier"]
    model = make("MLPClassifier", solver=SOLVERS[name]).fit(X, y)
    trained = list(model._optimizer.weights.values())
    assert any((a != b).any() for a, b in zip(trained, weights_of(model), strict=True))
    with model._optimizer.averaged():
        for a, b in zip(trained, weights_of(model), strict=True):
            assert_same_bits(a, b)
    stopped = make("MLPClassifier", solver=SOLVERS[name], early_stopping=True, n_iter_no_change=100).fit(X, y)
    _, X_validation, _, y_validation = model_selection.train_test_split(
        X, y, random_state=_after_initialisation(X, y), test_size=0.1)
    assert stopped.score(X_validation, y_validation) == stopped.best_validation_score_


def _after_initialisation(X, y):
    """The random state with which `fit` splits: the one the weights were drawn from."""
    random = np.random.RandomState(0)
    for fan_in, fan_out in ((X.shape[1], 16), (16, len(np.unique(y)))):
        random.uniform(size=(fan_in, fan_out))
        random.uniform(size=fan_out)
    return random


def test_names_reach_groups_and_exclusions(tables):
    X, y = tables["MLPRegressor"]
    groups = [{"weights": "^(coefs_0|intercepts)", "learning_rate": 0.0}]
    still = make("MLPRegressor", solver=optimc.SGD(groups=groups)).fit(X, y)
    start = make("MLPRegressor", solver=optimc.SGD(0.0)).fit(X, y)
    same = [(a == b).all() for a, b in zip(weights_of(still), weights_of(start), strict=True)]
    assert same == [True, False, True, True]
    solver = optimc.SGD(0.0)
    solver.exclude_from_weight_decay(var_names=["no_such"])
    with pytest.raises(ValueError, match="'no_such' matches none of the weights coefs_0, coefs_1, intercepts_0"):
        make("MLPRegressor", solver=solver).fit(X, y)


def test_gradients_that_are_not_finite(tables):
    X, y = tables["MLPRegressor"]
    model = make("MLPRegressor", solver=optimc.SGD(1e3, check_finite="raise"), max_iter=200)
    with pytest.raises(FloatingPointError, match=r"grads\['coefs_\d'\] is not finite"), np.errstate(all="ignore"):
        model.fit(X * 1e3, y)
    assert isinstance(model.solver, optimc.SGD)


# ------------------------------------------------------------------------------------------ house

def test_examples_run():
    failed, attempted = doctest.testmod(adapter)
    assert attempted and not failed


def test_it_is_imported_only_when_asked_for():
    code = ("import sys, optimc; assert 'sklearn' not in sys.modules; sys.modules['sklearn'] = None\n"
            "try:\n    import optimc.sklearn\nexcept ImportError as error:\n    print(error)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"optimc.sklearn needs scikit-learn: {advice('sklearn')}\n"


def test_no_convergence_is_still_told(tables):
    with pytest.warns(sklearn.exceptions.ConvergenceWarning):
        make("MLPRegressor", solver=optimc.SGD()).fit(*tables["MLPRegressor"])


@pytest.mark.parametrize("solver", ["sgd", "lion", optimc.ScheduleFreeAdamW(0.1)], ids=str)
@pytest.mark.parametrize("error", [False, True], ids=["ends", "raises"])
def test_an_interrupted_fit_leaves_the_solver_as_it_was_given(solver, error):
    X, y = np.linspace(-1, 1, 40).reshape(20, 2), np.linspace(0, 1, 20)
    y = np.full(20, "x") if error else y
    models = []

    def prepare():
        models.append(MLPRegressor(solver=solver, hidden_layer_sizes=2, max_iter=2, random_state=0))

        def fit():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(ValueError, TypeError):
                    models[-1].fit(X, y)
        return fit

    for _ in every_interruption(prepare=prepare, opcodes=True, within=adapter.__file__, most=60):
        assert models[-1].solver is solver and models[-1].get_params()["solver"] is solver
    assert (getattr(models[-1], "n_iter_", 0) == 2) != error
