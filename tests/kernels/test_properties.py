"""Properties that hold for any input, and a machine that does to an optimizer what users do, in any order.

Beside each harness stand twins with a planted defect, which it must notice.  `--soak` tries many times as much.
"""

import copy
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from cases import WHOLE_WEIGHTS, Case, assert_same_bits, exact_cases, values
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from oracle import Reference

import optimc
from optimc import _core
from optimc.base.arguments import Value

EXACT = [case for case in exact_cases() if case.cls._rule != "muon"]        # a matrix product has a bound, not bits
CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def examine(strategy, check, examples, **more):
    """Runs a check over scenarios: always the same ones, unless there are very many."""
    @settings(_settings(examples, **more))
    @given(strategy)
    def run(example):
        scenario = example if isinstance(example, Scenario) else example[0]
        _core._force_threads(scenario.threads)
        try:
            check(example)
        finally:
            _core._force_threads(0)
    run()


def _settings(examples, **more):
    more.setdefault("phases", [Phase.generate, Phase.shrink])
    return settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 1000,
                    suppress_health_check=list(HealthCheck), **more)


def notices(strategy, check):
    """Asserts that a check fails for some of the examples."""
    with pytest.raises(AssertionError):
        examine(strategy, check, 60, phases=[Phase.generate])


# ------------------------------------------------------------------------------------ strategies

rates = st.sampled_from([1e-30, 1e-3, 0.1, 1.0, 3])
seeds = st.integers(0, 2 ** 32 - 1)


@st.composite
def arguments(draw, cases=EXACT, without=()):
    """A case, with arguments of any kind added: the class's own values, and the options every optimizer has."""
    case = draw(st.sampled_from(cases))
    cls, chosen = case.cls, {"learning_rate": draw(rates)}
    for name, argument in cls._arguments.items():
        if isinstance(argument, Value) and (argument.low, argument.high) == (0.0, 1.0) and draw(st.booleans()):
            chosen[name] = draw(st.floats(0.01, 0.99))
    pool: dict[str, Any] = {
        "weight_decay": st.sampled_from([0.0, 0.01, 0.5]), "coupled_weight_decay": st.just(True),
        "maximize": st.just(True), "use_ema": st.just(True), "ema_overwrite_frequency": st.integers(1, 3),
        "loss_scale_factor": st.sampled_from([0.5, 3.0, 1024.0]), "gradient_accumulation_steps": st.integers(2, 3),
        **({"cautious": st.just(True)} if "cautious" in cls._arguments else {})}
    for name in draw(st.lists(st.sampled_from(sorted(pool)), unique=True)):
        chosen[name] = draw(pool[name])
    clip = draw(st.sampled_from([None, *CLIPS]))
    if clip:
        chosen[clip] = draw(st.sampled_from([0.01, 1.0, 1e9]))
    return Case(cls, {**case.arguments, **{name: value for name, value in chosen.items() if name not in without}})


class Arrays(list):
    """A list of arrays that prints short."""

    def __repr__(self):
        with np.printoptions(threshold=20, edgeitems=2):
            return super().__repr__()


class Scenario(NamedTuple):
    """An optimizer with its arguments, and the weights and gradients of its steps."""
    case: Case
    weights: Arrays
    grads: list[Arrays]         # one for each step
    isa: str
    threads: int                # 0: as many as the work is worth

    def make(self, weights):
        """A new optimizer, bound to the weights, on the ISA."""
        _core._use_isa(self.isa)
        try:
            optimizer = self.case.make()
            optimizer.build(weights)
        finally:
            _core._use_isa(optimc.isa)
        return optimizer


@st.composite
def shapes(draw, cls):
    least = 1 if cls._rule in WHOLE_WEIGHTS else 0
    some = st.lists(st.integers(least, 9), max_size=3).map(tuple) | st.sampled_from([(300,), (17, 31), (9000,)])
    return draw(st.lists(some, min_size=1, max_size=5))


def laid_out(gradient, how):
    """The same numbers in another layout."""
    if how == "fortran":
        return np.array(gradient, order="F")
    if how == "strided" and gradient.ndim:
        wide = np.zeros((*gradient.shape[:-1], 2 * gradient.shape[-1]), gradient.dtype)
        wide[..., ::2] = gradient
        return wide[..., ::2]
    return gradient


@st.composite
def gradients(draw, weights, missing=False, special=True):
    """One gradient for each weight: of any dtype and layout; some None, but never all."""
    rng = np.random.default_rng(draw(seeds))
    special = special and draw(st.booleans())
    grads: list[np.ndarray | None] = []
    for weight in weights:
        dtype = draw(st.sampled_from([weight.dtype.type, np.float16, np.float32, np.float64]))
        grads.append(laid_out(values(rng, weight.shape, dtype, special),
                              draw(st.sampled_from(["plain", "fortran", "strided"]))))
    if missing:
        kept = draw(st.sets(st.integers(0, len(weights) - 1), min_size=1))
        grads = [grad if i in kept else None for i, grad in enumerate(grads)]
    return Arrays(grads)


@st.composite
def scenarios(draw, cases=EXACT, without=(), missing=True):
    case = draw(arguments(cases, without))
    rng = np.random.default_rng(draw(seeds))
    special = draw(st.booleans())
    weights = [values(rng, shape, draw(st.sampled_from([np.float32, np.float64])), special)
               for shape in draw(shapes(case.cls))]
    steps = [draw(gradients(weights, missing)) for _ in range(draw(st.integers(1, 4)))]
    return Scenario(case, Arrays(weights), steps, draw(st.sampled_from(_core.isas)), draw(st.sampled_from([0, 2])))


def apply(optimizer, grads, weights):
    """The step; None among the gradients is warned about."""
    missing = any(grad is None for grad in grads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.apply(grads, weights)
    assert [warning.category for warning in caught] == [UserWarning] * missing


def assert_equal_state(case, optimizer, weights, oracle, expected):
    """Weights, slots, averages and counter are the oracle's."""
    assert optimizer.iterations == oracle.t
    for i, (weight, right) in enumerate(zip(weights, expected, strict=True)):
        assert_same_bits(weight, right, f"weight {i}")
        for slot in case.slots_of(weight) if oracle.state else ():
            assert_same_bits(optimizer._slots[slot][i], oracle.state[i][slot], f"slot {slot} of {i}")
        if optimizer._averages:
            assert_same_bits(optimizer._averages[i], oracle.averages[i], f"average {i}")


# ----------------------------------------------------------------------- equal to the oracle

def steps_equal(scenario, oracle_of=Reference):
    case, weights = scenario.case, [weight.copy() for weight in scenario.weights]
    optimizer = scenario.make(weights)
    oracle, expected = oracle_of(optimizer, case.slots_of), scenario.weights
    for grads in scenario.grads:
        before = [None if grad is None else grad.copy() for grad in grads]
        apply(optimizer, grads, weights)
        expected = oracle.step(expected, grads)
        assert_equal_state(case, optimizer, weights, oracle, expected)
        for grad, kept in zip(grads, before, strict=True):
            if grad is not None:
                assert_same_bits(grad, kept, "the gradient was changed")


class Off(Reference):
    """An oracle whose every decay is off by a millionth."""

    def __init__(self, optimizer, slots_of):
        super().__init__(optimizer, slots_of)
        for name, argument in optimizer._arguments.items():
            if isinstance(argument, Value) and argument.high == 1:
                setattr(self.o, name, getattr(self.o, name) * (1 - 1e-6))


class DecaysAfter(Reference):
    """An oracle that decays the weight after the step instead of before."""

    def update(self, w, g, state, excluded, t):
        decay, self.o.weight_decay = self.o.weight_decay, None
        w = super().update(w, g, state, excluded, t)
        self.o.weight_decay = decay
        return w if decay is None or excluded else w - w * w.dtype.type(decay) * w.dtype.type(self.o.learning_rate)


def test_steps_equal_the_oracle(soak):
    examine(scenarios(), steps_equal, 5000 if soak else 150)


@pytest.mark.parametrize("twin", [Off, DecaysAfter])
def test_a_wrong_oracle_is_noticed(twin):
    notices(scenarios(), lambda scenario: steps_equal(scenario, twin))


# -------------------------------------------------------------------------------------- views

ELEMENTWISE = [case for case in EXACT if case.cls._rule not in WHOLE_WEIGHTS]
#: what looks at a weight, or at all of them, as a whole
WHOLE_OPTIONS = ("clipnorm", "global_clipnorm", "cautious")


def views_equal(both, step=apply):
    """A weight cut into views steps like the whole, and the parts of its gradient lie wherever they do."""
    scenario, cuts = both
    whole, parts = ([weight.flatten() for weight in scenario.weights] for _ in range(2))
    views = [view for part in parts for view in np.split(part, sorted(cut % (part.size + 1) for cut in cuts))]
    one, other = scenario.make(whole), scenario.make(views)
    for grads in scenario.grads:
        step(one, [grad.ravel() for grad in grads], whole)
        step(other, [piece for grad in grads for piece in
                     np.split(grad.ravel(), sorted(cut % (grad.size + 1) for cut in cuts))], views)
        for weight, part in zip(whole, parts, strict=True):
            assert_same_bits(part, weight)


def by_its_largest(optimizer, grads, weights):
    """A step that looks at more than an element."""
    with np.errstate(all="ignore"):
        apply(optimizer, [g / (1 + abs(g).max(initial=0)) for g in grads], weights)


cut_scenarios = st.tuples(scenarios(ELEMENTWISE, WHOLE_OPTIONS, missing=False),
                          st.lists(seeds, min_size=1, max_size=4))


def test_views_step_like_the_whole(soak):
    examine(cut_scenarios, views_equal, 3000 if soak else 60)


def test_a_step_that_sees_more_than_an_element_is_noticed():
    notices(cut_scenarios, lambda both: views_equal(both, by_its_largest))


# -------------------------------------------------------------------------------------- order

def orders_equal(both, step=apply):
    """The order of the weights, at `build` and at each step, makes no difference."""
    scenario, seed = both
    weights, at_build, at_step = ([weight.copy() for weight in scenario.weights] for _ in range(3))
    order = np.random.default_rng(seed).permutation(len(weights))
    one, third = scenario.make(weights), scenario.make(at_step)
    # a norm of all gradients is summed in the order of build
    other = None if "global_clipnorm" in scenario.case.arguments else scenario.make([at_build[i] for i in order])
    for grads in scenario.grads:
        step(one, grads, weights)
        step(third, [grads[i] for i in order], [at_step[i] for i in order])
        if other is not None:
            step(other, [grads[i] for i in order], [at_build[i] for i in order])
        for i, weight in enumerate(weights):
            assert_same_bits(at_step[i], weight, f"{i}, order of the step")
            if other is not None:
                assert_same_bits(at_build[i], weight, f"{i}, order of build")


def first_twice(optimizer, grads, weights):
    """A step that treats the first weight differently."""
    apply(optimizer, [None if grads[0] is None else grads[0] * 2, *grads[1:]], weights)


ordered_scenarios = st.tuples(scenarios(), seeds)


def test_order_makes_no_difference(soak):
    examine(ordered_scenarios, orders_equal, 3000 if soak else 60)


def test_a_step_that_depends_on_the_order_is_noticed():
    with np.errstate(all="ignore"):
        notices(ordered_scenarios, lambda both: orders_equal(both, first_twice))


# ------------------------------------------------------------------------------------ the machine

def _saved_and_loaded(optimizer):
    with tempfile.TemporaryDirectory() as folder:
        optimizer.save(Path(folder, "state"))
        return optimc.load(Path(folder, "state"))


def _by_state_dict(optimizer):
    twin = type(optimizer).from_config(optimizer.get_config())
    twin.load_state_dict(optimizer.state_dict())
    return twin


DUPLICATES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o)),
              "save and load": _saved_and_loaded, "state_dict": _by_state_dict}

#: calls that must be refused: name -> function of gradients and weights, whose entry 0 is not empty
BAD = {
    "another shape": lambda g, w: ([*g[:-1], np.zeros((2, *w[-1].shape))], w),
    "integers": lambda g, w: ([*g[:-1], np.zeros(w[-1].shape, int)], w),
    "one too few": lambda g, w: (g[:-1], w),
    "one too many": lambda g, w: ([*g, g[0]], w),
    "nothing but None": lambda g, w: ([None] * len(g), w),
    "no list": lambda g, w: (g[0], w),
    "the weight as its gradient": lambda g, w: ([w[0], *g[1:]], w),
    "a weight twice": lambda g, w: ([*g, g[0]], [*w, w[0]]),
    "other memory": lambda g, w: (g, [weight.copy() for weight in w]),
    "a weight of another dtype": lambda g, w: (g, [*w[:-1], np.zeros(w[-1].shape, np.float16)]),
    "a weight of whole numbers": lambda g, w: (g, [*w[:-1], np.zeros(w[-1].shape, np.int32)]),
    "a read-only weight": lambda g, w: (g, [*w[:-1], _read_only(w[-1])]),
    "weights that are no arrays": lambda g, w: (g, [*w[:-1], "w"]),
}


def _read_only(array):
    view = array.view()
    view.flags.writeable = False
    return view


class Machine(RuleBasedStateMachine):
    """One optimizer, moved about and misused, beside the oracle, which only steps."""

    oracle_of = Reference
    apply = staticmethod(apply)
    duplicates = DUPLICATES

    @initialize(data=st.data(), seed=seeds)
    def start(self, data, seed):
        self.case = data.draw(arguments())
        self.policy = data.draw(st.sampled_from(["propagate", "raise", "skip"]))
        self.optimizer = self.case.make(check_finite=self.policy)
        self.oracle, self.excluded = self.oracle_of(self.optimizer, self.case.slots_of), ()
        rng = np.random.default_rng(seed)
        dtypes = st.sampled_from([np.float32, np.float64])
        self.weights = [values(rng, shape, data.draw(dtypes))
                        for shape in [(3,), *data.draw(shapes(self.case.cls))]]
        self.expected = [weight.copy() for weight in self.weights]

    @invariant()
    def equal(self):
        if hasattr(self, "oracle"):
            assert_equal_state(self.case, self.optimizer, self.weights, self.oracle, self.expected)

    def build(self, weights):
        self.optimizer.build(weights)
        self.weights = weights
        if self.oracle.state is None:
            self.oracle.build(self.expected)

    def step(self, grads, chosen=None):
        """A step of the chosen weights, by default all of them."""
        chosen = range(len(self.weights)) if chosen is None else chosen
        if self.oracle.state is None:
            self.oracle.build(self.expected)
        self.apply(self.optimizer, [grads[i] for i in chosen], [self.weights[i] for i in chosen])
        self.expected = self.oracle.step(
            self.expected, [grad if i in chosen else None for i, grad in enumerate(grads)], self.excluded)

    @rule()
    def build_in_new_memory(self):
        self.build([weight.copy() for weight in self.weights])

    @rule(data=st.data())
    def step_all(self, data):
        self.step(data.draw(gradients(self.weights, special=self.policy == "propagate")))

    @rule(data=st.data())
    def step_with_missing_gradients(self, data):
        self.step(data.draw(gradients(self.weights, missing=True, special=self.policy == "propagate")))

    @precondition(lambda self: self.optimizer.built)
    @rule(data=st.data())
    def step_a_subset(self, data):
        chosen = data.draw(st.lists(st.integers(0, len(self.weights) - 1), min_size=1, unique=True))
        self.step(data.draw(gradients(self.weights, special=self.policy == "propagate")), chosen)

    @rule(name=st.sampled_from(sorted(BAD)), data=st.data())
    def be_refused(self, name, data):
        if name in ("other memory", "a weight of another dtype") and not self.optimizer.built:
            return                                      # to one that is not built it is as good as any
        grads, weights = BAD[name](data.draw(gradients(self.weights, special=False)), list(self.weights))
        built = self.optimizer.built
        with pytest.raises((TypeError, ValueError)):
            self.apply(self.optimizer, grads, weights)
        assert self.optimizer.built == built

    @precondition(lambda self: self.policy != "propagate")
    @rule(data=st.data(), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
    def meet_a_gradient_that_is_not_finite(self, data, bad):
        grads = data.draw(gradients(self.weights, special=False))
        grads[0] = np.full_like(grads[0], bad)
        skipped = self.optimizer.skipped_steps
        if self.policy == "skip":
            self.apply(self.optimizer, grads, self.weights)
            assert self.optimizer.skipped_steps == skipped + 1
        else:
            with pytest.raises(FloatingPointError, match=r"^grads\[0\] is not finite$"):
                self.apply(self.optimizer, grads, self.weights)

    @rule(how=st.sampled_from(sorted(DUPLICATES)), data=st.data())
    def go_on_with_a_copy(self, how, data):
        left, weights = self.optimizer, self.weights
        self.optimizer, self.weights = self.duplicates[how](left), [weight.copy() for weight in weights]
        if how == "state_dict" and self.excluded:       # which is without configuration
            self.exclude(self.excluded)
        # what is left behind goes on too, which must not show
        self.apply(left, data.draw(gradients(weights, special=False)), weights)

    @rule(rate=rates)
    def set_the_learning_rate(self, rate):
        self.optimizer.learning_rate = self.oracle.o.learning_rate = rate

    @rule(value=st.sampled_from([-1.0, np.nan, "fast", True]))
    def set_a_wrong_learning_rate(self, value):
        with pytest.raises((TypeError, ValueError), match="learning_rate"):
            self.optimizer.learning_rate = value

    @precondition(lambda self: not self.case.has_scalars)
    @rule(updates=st.integers(0, 10 ** 6))
    def set_the_iterations(self, updates):
        self.optimizer.iterations = self.oracle.t = updates

    @rule(data=st.data())
    def exclude_from_decay(self, data):
        if self.optimizer.built:
            self.exclude(tuple(data.draw(st.sets(st.integers(0, len(self.weights) - 1)))))

    def exclude(self, chosen):
        if not self.optimizer.built:
            self.build(self.weights)
        chosen = tuple(i for i in chosen if self.weights[i].size)       # an empty array has no identity
        self.optimizer.exclude_from_weight_decay([self.weights[i] for i in chosen])
        self.excluded = chosen

    @rule(data=st.data(), seed=seeds)
    def change_a_weight(self, data, seed):
        i = data.draw(st.integers(0, len(self.weights) - 1))
        self.weights[i][...] = values(np.random.default_rng(seed), self.weights[i].shape, self.weights[i].dtype)
        self.expected[i] = self.weights[i].copy()

    @precondition(lambda self: self.optimizer.use_ema and self.optimizer.built)
    @rule()
    def take_the_averages(self):
        with self.optimizer.averaged(self.weights):
            for weight, average in zip(self.weights, self.oracle.averages, strict=True):
                assert_same_bits(weight, average)
        self.equal()
        self.optimizer.finalize_variable_values()
        self.expected = [average.copy() for average in self.oracle.averages]


def writes_first(optimizer, grads, weights):
    """An apply that has begun to write when it finds the error."""
    try:
        apply(optimizer, grads, weights)
    except (TypeError, ValueError):
        first = next(weight for weight in weights if isinstance(weight, np.ndarray))
        first += 1
        raise


def counts_first(optimizer, grads, weights):
    """An apply that has counted when it finds the error."""
    try:
        apply(optimizer, grads, weights)
    except (TypeError, ValueError):
        optimizer.iterations += 1
        raise


def zeros_for_missing(optimizer, grads, weights):
    """An apply that takes a missing gradient for zeros."""
    optimizer.apply([np.zeros_like(weight) if grad is None else grad
                     for grad, weight in zip(grads, weights, strict=True)], weights)


class WrongRate(Reference):
    """An oracle that does not hear of a new rate after its first step."""

    def step(self, weights, grads, excluded=()):
        self.first = getattr(self, "first", self.o.learning_rate)
        self.o.learning_rate = self.first
        return super().step(weights, grads, excluded)


TWINS = {
    "decays off": {"oracle_of": Off},
    "decay after the step": {"oracle_of": DecaysAfter},
    "deaf to the rate": {"oracle_of": WrongRate},
    "writes before it checks": {"apply": staticmethod(writes_first)},
    "counts before it checks": {"apply": staticmethod(counts_first)},
    "zeros for missing gradients": {"apply": staticmethod(zeros_for_missing)},
    "copies that are the same": {"duplicates": {**DUPLICATES, "deepcopy": lambda optimizer: optimizer}},
    "copies that forget": {"duplicates": {
        **DUPLICATES, "pickle": lambda optimizer: type(optimizer).from_config(optimizer.get_config())}},
}


def test_anything_users_do_in_any_order(soak):
    run_state_machine_as_test(Machine, settings=_settings(3000 if soak else 60, stateful_step_count=20))


@pytest.mark.parametrize("name", TWINS)
def test_a_broken_twin_is_noticed(name):
    twin = type("Twin", (Machine,), TWINS[name])
    with pytest.raises((AssertionError, pytest.fail.Exception)):        # the latter if nothing is refused any more
        run_state_machine_as_test(twin, settings=_settings(60, stateful_step_count=20, phases=[Phase.generate]))
