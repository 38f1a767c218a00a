"""Gradients by rows in every place where a gradient stands, and every refusal of one.

What a step by rows computes is tested in tests/kernels/test_rows.py.
"""

import copy
import pickle
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from cases import assert_same_bits

import optimc
from optimc import Rows, _core

F = np.float32


def good():
    """Fresh weights, two tables and a bias, and their gradients."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((9, 4)).astype(F), np.ones(4, F), rng.standard_normal((6, 2, 3)).astype(F)]
    return weights, gradients(0)


def gradients(step):
    rng = np.random.default_rng(step + 1)
    return [Rows(rng.integers(0, 9, 5), rng.standard_normal((5, 4)).astype(F)), rng.standard_normal(4).astype(F),
            Rows([2, 0, 2], rng.standard_normal((3, 2, 3)).astype(F))]


def everything(optimizer, *others):
    """The bytes of all weights and state, and the counts."""
    arrays = [*optimizer.variables, *others]
    return [array.tobytes() for array in arrays]


def stepped(optimizer, steps=4, to=None):
    """The weights after some steps; `to` puts weights and gradients into another form."""
    weights, _ = good()
    for step in range(steps):
        grads = gradients(step)
        optimizer.apply(*(to(grads, weights) if to else (grads, weights)))
    return weights


OPTIONS = {"global_clipnorm": 1.0, "weight_decay": 0.1, "use_ema": True}


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert_same_bits(a, b)


# ------------------------------------------------------------------------- forms of weights and gradients

FORMS = {
    "tuples": lambda g, w: (tuple(g), tuple(w)),
    "dicts": lambda g, w: (dict(zip("abc", g, strict=True)), dict(zip("abc", w, strict=True))),
    "a dict in another order": lambda g, w: (dict(zip("cba", g[::-1], strict=True)),
                                             dict(zip("abc", w, strict=True))),
    "a tree": lambda g, w: ({"x": [g[0], {"y": g[1]}], "z": (g[2],)}, {"x": [w[0], {"y": w[1]}], "z": (w[2],)}),
    "mappings": lambda g, w: (types.MappingProxyType(dict(zip("abc", g, strict=True))),
                              types.MappingProxyType(dict(zip("abc", w, strict=True)))),
    "weights left out": lambda g, w: (g, w if g[1][0] == gradients(0)[1][0] else None),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_weights_and_gradients(form):
    same(stepped(optimc.Adam(**OPTIONS), to=FORMS[form]), stepped(optimc.Adam(**OPTIONS)))


def test_pairs():
    weights, other, opt = good()[0], good()[0], optimc.Adam(**OPTIONS)
    expected = optimc.Adam(**OPTIONS)
    for step in range(3):
        opt.apply_gradients(zip(gradients(step), weights, strict=True))
        expected.apply(gradients(step), other)
    same(weights, other)


def test_a_tree_whose_weights_are_left_out():
    weights, grads = good()
    tree, opt = {"x": [weights[0], {"y": weights[1]}], "z": (weights[2],)}, optimc.Adam()
    opt.build(tree)
    opt.apply({"x": [grads[0], {"y": grads[1]}], "z": (grads[2],)})
    with pytest.warns(UserWarning, match=r"Gradients do not exist for weights\['z/0'\]"):
        opt.apply({"x": [grads[0], {"y": grads[1]}], "z": None})
    with pytest.raises(ValueError, match=r"^grads\['x/0'\]\.indices\[0\]: expected a row from 0 to 8, got 9$"):
        opt.apply({"x": [Rows([9], np.ones((1, 4))), {"y": grads[1]}], "z": (grads[2],)})


def test_some_weights_of_all():
    weights, grads = good()
    opt = optimc.Adam(weight_decay=0.1)
    opt.build(weights)
    before = [weight.copy() for weight in weights]
    opt.apply(grads[:1], weights[:1])
    with pytest.warns(UserWarning, match=r"weights\[1\], weights\[2\]"):
        opt.apply([grads[0], None, None], weights)
    same(weights[1:], before[1:])
    assert opt.iterations == 2


def test_empty_rows_are_a_step_without_a_change():
    weights, _ = good()
    before, opt = [weight.copy() for weight in weights], optimc.Adam(weight_decay=0.5, use_ema=True, cautious=True)
    for indices in ([], np.zeros(0, np.uint8), ()):
        opt.apply([Rows(indices, np.zeros((0, 4)))], weights[:1])
    assert opt.iterations == 3
    same(weights, before)
    same([opt.slots["m"][0]], [np.zeros((9, 4), F)])


def test_a_table_without_rows():
    table, opt = np.zeros((0, 4), F), optimc.Adam()
    opt.apply([Rows([], np.zeros((0, 4), F))], [table])
    with pytest.raises(ValueError, match=r"^grads\[0\]\.indices\[0\]: expected none, .* no rows, got 0$"):
        opt.apply([Rows([0], np.zeros((1, 4), F))], [table])
    narrow = np.zeros((4, 0), F)
    optimc.Adam().apply([Rows([3, 3], np.zeros((2, 0), F))], [narrow])


# ----------------------------------------------------------------------------------- objects of others

class Sliced:
    """As tensorflow's IndexedSlices."""

    def __init__(self, indices, values, dense_shape=None):
        self.indices, self.values, self.dense_shape = indices, values, dense_shape


class Tensor:
    """An array of another library."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __array__(self, dtype=None, copy=None):
        return self.array


class Sparse:
    """As a sparse matrix of scipy."""

    def __init__(self, indptr, rows, shape):
        self.indptr, self.rows, self.shape = np.asarray(indptr), rows, shape

    def tocsr(self):
        return self

    def __getitem__(self, present):
        return Sparse(self.indptr, self.rows[present], self.shape)

    def toarray(self):
        return self.rows


def one_of(make):
    weights, _ = good()
    optimc.Adam().apply([make(), np.ones(4, F)], weights[:2])
    return weights


def test_objects_with_indices_and_values():
    indices, values = np.array([3, 1, 3]), np.arange(12, dtype=F).reshape(3, 4)
    expected = one_of(lambda: Rows(indices, values))
    for shape in (None, (9, 4), [9, 4], Tensor([9, 4])):
        same(one_of(lambda shape=shape: Sliced(indices, values, shape)), expected)
    same(one_of(lambda: Sliced(Tensor(indices), Tensor(values))), expected)
    with pytest.raises(ValueError, match=r"^grads\[0\]: expected a sparse gradient of shape \(9, 4\)"):
        one_of(lambda: Sliced(indices, values, (9, 5)))
    with pytest.raises(TypeError, match=r"^grads\[0\]\.indices: expected integers, got dtype float64$"):
        one_of(lambda: Sliced(indices * 1.0, values))


def test_sparse_matrices():
    dense = np.zeros((9, 4), F)
    dense[[1, 6]] = np.arange(8, dtype=F).reshape(2, 4)
    indptr = np.cumsum([0, *(4 * row.any() for row in dense)])
    expected = one_of(lambda: Rows([1, 6], dense[[1, 6]]))
    same(one_of(lambda: Sparse(indptr, dense, (9, 4))), expected)
    with pytest.raises(ValueError, match=r"of shape \(9, 4\), like its weight, got \(9, 5\)$"):
        one_of(lambda: Sparse(indptr, dense, (9, 5)))
    sparse = pytest.importorskip("scipy.sparse")
    for form in (sparse.csr_array, sparse.coo_matrix, sparse.lil_array, sparse.bsr_matrix):
        same(one_of(lambda form=form: form(dense)), expected)
    indices, values = np.array([3, 1, 3]), np.ones((3, 4), F)
    coo = sparse.coo_array((values.ravel(), (indices.repeat(4), np.tile(np.arange(4), 3))), (9, 4))
    same(one_of(lambda: coo), one_of(lambda: Rows([1, 3], np.array([[1] * 4, [2] * 4], F))))


def test_arrays_that_may_not_be_written_are_read():
    indices, values = np.array([3, 1, 3]), np.arange(12, dtype=F).reshape(3, 4)
    expected = one_of(lambda: Rows(indices, values))
    for array in (indices, values):
        array.flags.writeable = False
    same(one_of(lambda: Rows(indices, values)), expected)
    swapped = values.astype(values.dtype.newbyteorder())
    unaligned = np.ndarray(3, np.int64, np.zeros(25, np.uint8), 1)
    unaligned[...] = indices
    same(one_of(lambda: Rows(unaligned, swapped)), expected)
    same(one_of(lambda: Rows(indices[::-1].copy()[::-1], values)), expected)


# ------------------------------------------------------------------------------------------- Rows

def test_rows_hold_the_arrays_that_they_are_given():
    indices, values = np.array([2, 0], np.uint8), np.ones((2, 3), ml_dtypes.bfloat16)
    rows = Rows(indices, values)
    assert rows.indices is indices and rows.values is values
    with pytest.raises(AttributeError):
        rows.indices = indices
    assert repr(Rows([1], np.ones((1, 1)))) == "Rows(indices=array([1]), values=array([[1.]]))"
    assert type(Rows(values=[[1.0]], indices=[5]).values) is np.ndarray


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda rows: pickle.loads(pickle.dumps(rows))])
def test_copies(again):
    rows = gradients(0)[0]
    other = again(rows)
    assert type(other) is Rows and (other.values is rows.values) == (again is copy.copy)
    same([other.indices, other.values], [rows.indices, rows.values])


def test_no_reference_is_leaked():
    indices, values, table = np.array([1, 2]), np.ones((2, 4), F), np.ones((5, 4), F)
    opt = optimc.Adam()
    opt.build([table])
    watched = [indices, values, table, Rows, indices.dtype]

    def work():
        opt.apply([Rows(indices, values)], [table])
        opt.apply([Sliced(indices, values)], [table])
        repr(Rows(indices, values))
        copy.deepcopy(Rows(indices, values))
        for bad in ((indices, values[:1]), (indices * 1.0, values), (indices + 4, values), (indices, table)):
            with pytest.raises((TypeError, ValueError)):
                opt.apply([Rows(*bad)], [table])

    work()
    before = [sys.getrefcount(thing) for thing in watched]
    for _ in range(100):
        work()
    grown = [sys.getrefcount(thing) - count for thing, count in zip(watched, before, strict=True)]
    assert max(map(abs, grown)) < 50, grown


# ------------------------------------------------------------------------- wrappers, groups, exclusions

def by_name(grads, weights):
    return dict(zip(("table", "bias", "more"), grads, strict=True)), \
        dict(zip(("table", "bias", "more"), weights, strict=True))


def test_loss_scale_optimizer():
    given = {**OPTIONS, "gradient_accumulation_steps": 2}
    plain, opt = optimc.Adam(loss_scale_factor=8.0, **given), optimc.LossScaleOptimizer(optimc.Adam(**given), 8)
    same(stepped(opt), stepped(plain))
    weights, grads = good()
    opt = optimc.LossScaleOptimizer(optimc.Adam(**given), 8)
    opt.apply(grads, weights)
    before = everything(opt.inner_optimizer, *weights)
    opt.apply([grads[0], grads[1], Rows([5, 5], np.full((2, 2, 3), 2e38, F))], weights)     # their sum is infinite
    assert everything(opt.inner_optimizer, *weights) == before and opt.dynamic_scale == 4 and opt.step_counter == 0


def test_multi_optimizer():
    parts = optimc.OptimizerMap(optimc.Adam(0.1), {"table": optimc.Adagrad(0.5)})
    weights = stepped(optimc.MultiOptimizer(parts), to=by_name)
    others, adam, adagrad = good()[0], optimc.Adam(0.1), optimc.Adagrad(0.5)
    for step in range(4):
        grads = gradients(step)
        adagrad.apply(grads[:1], others[:1])
        adam.apply(grads[1:], others[1:])
    same(weights, others)


def test_multi_optimizer_within_a_loss_scale():
    opt = optimc.LossScaleOptimizer(optimc.MultiOptimizer(optimc.OptimizerMap(
        optimc.Adam(0.1), {"table": optimc.Adagrad(0.5)})), 8)
    weights, grads = good()
    for step in range(3):
        opt.apply(*by_name(gradients(step), weights))
    before = everything(opt.inner_optimizer, *weights)
    grads[0] = Rows([1], np.full((1, 4), np.nan, F))
    opt.apply(*by_name(grads, weights))
    assert everything(opt.inner_optimizer, *weights) == before and opt.dynamic_scale == 4 and opt.iterations == 3
    grads[0] = Rows([9], np.ones((1, 4), F))
    with pytest.raises(ValueError, match=r"^grads\['table'\]\.indices\[0\]: expected a row from 0 to 8, got 9$"):
        opt.apply(*by_name(grads, weights))
    assert everything(opt.inner_optimizer, *weights) == before and opt.dynamic_scale == 4


def test_muon_steps_embeddings_by_rows():
    weights, grads = good()
    grads[2] = np.ones((6, 2, 3), F)
    tree = {"embedding": weights[0], "bias": weights[1], "kernel": weights[2][:, 0].copy()}
    opt = optimc.Muon()
    given = {"embedding": grads[0], "bias": grads[1], "kernel": grads[2][:, 0].copy()}
    opt.apply(given, tree)
    assert opt.iterations == 1
    before = everything(opt, *tree.values())
    with pytest.raises(ValueError, match=r"^grads\['kernel'\]: the rule of its weight looks at the whole weight"):
        opt.apply({**given, "kernel": Rows([0], np.ones((1, 3), F))}, tree)
    assert everything(opt, *tree.values()) == before


def test_groups_and_exclusions():
    groups = [{"weights": "table", "learning_rate": 0.5, "weight_decay": 0.25}]
    opt = optimc.Adam(0.1, weight_decay=0.1, groups=groups)
    opt.exclude_from_weight_decay(var_names=["more"])
    weights, others = stepped(opt, to=by_name), good()[0]
    apart = optimc.Adam(0.5, weight_decay=0.25), optimc.Adam(0.1, weight_decay=0.1), optimc.Adam(0.1)
    for step in range(4):
        for one, grad, weight in zip(apart, gradients(step), others, strict=True):
            one.apply([grad], [weight])
    same(weights, others)


def test_a_transaction_steps_all_or_none():
    weights, grads = good()
    first, second = optimc.Adam(), optimc.Adagrad()
    first.apply(grads[:1], weights[:1])
    second.apply(grads[2:], weights[2:])
    before = everything(first, *second.variables, *weights)
    with _core.Transaction() as steps, pytest.raises(ValueError, match="expected a row from 0 to 5, got 6"):
        steps.check(first, grads[:1], weights[:1])
        steps.check(second, [Rows([6], np.ones((1, 2, 3), F))], weights[2:])
    assert everything(first, *second.variables, *weights) == before
    first.apply(grads[:1], weights[:1])


# ------------------------------------------------------------------------------------ accumulation, state

STORED = [{}, {"state_dtype": "bfloat16"}, {"use_ema": True, "check_finite": "skip"}]


@pytest.mark.parametrize("form", ["file", "state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("given", STORED, ids=str)
def test_state_in_the_middle_of_accumulation(given, form, tmp_path):
    """Rows that wait, among them one whose gradient is 0, are still known after a load."""
    weights, _ = good()
    opt = optimc.AdamW(0.1, gradient_accumulation_steps=3, **given)
    grads = [gradients(step) for step in range(9)]
    grads[3][2] = Rows([4], np.zeros((1, 2, 3), F))
    for step in range(4):
        opt.apply(grads[step], weights)
    others = [weight.copy() for weight in weights]
    if form == "file":
        opt.save(tmp_path / "state")
        other = optimc.load(tmp_path / "state")
    elif form == "state_dict":
        other = optimc.AdamW(0.1, gradient_accumulation_steps=3, **given)
        other.load_state_dict(opt.state_dict())
    else:
        other = copy.deepcopy(opt) if form == "deepcopy" else pickle.loads(pickle.dumps(opt))
    other.build(others)
    for step in range(4, 9):
        opt.apply(grads[step], weights)
        other.apply(grads[step], others)
        same(weights, others)
    assert everything(opt) == everything(other)


@pytest.mark.parametrize("values", [np.full((1, 300), 0.5), np.full((1, 300), 0.5, np.float32)])
def test_row_wise_sums_of_long_rows_wait_whole(values):
    """Rows of several blocks, converted and repeated, while gradients are accumulated."""
    table, optimizer = np.ones((2, 300), np.float32), optimc.RowwiseAdagrad(0.5, gradient_accumulation_steps=2)
    optimizer.apply([optimc.Rows([1, 1], np.repeat(values, 2, axis=0))], [table])
    np.testing.assert_array_equal(optimizer._accumulators[0], [[0] * 300, [1] * 300])


def test_rows_that_waited_elsewhere_make_the_update_dense():
    """In Fortran order, or in 8 bits, a weight cannot be stepped by rows."""
    for build in (np.asfortranarray, np.ascontiguousarray):
        table, other = np.ones((4, 3), np.float32), np.ones(2, np.float32)
        optimizer = optimc.SGD(0.5, weight_decay=0.5, gradient_accumulation_steps=2)
        optimizer.apply([optimc.Rows([1], np.full((1, 3), 2.0)), other * 1], [table, other])
        moved = build(table)
        optimizer.build([moved, other])
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply([None, other * 1], [moved, other])
        expected = 0.75 if build is np.asfortranarray else 1.0
        np.testing.assert_array_equal(moved, [[expected] * 3, [0.25] * 3, [expected] * 3, [expected] * 3])


def test_gradients_that_wait_need_an_accumulator():
    """Without one they are forgotten, so that rows are stepped alone."""
    table, waiting = np.ones((6, 2), np.float32), optimc.SGD(1.0, gradient_accumulation_steps=2)
    waiting.apply([np.zeros_like(table)], [table])
    optimizer = optimc.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.load_state_dict(waiting.state_dict())
    optimizer.gradient_accumulation_steps = None
    optimizer.apply([optimc.Rows([3], np.ones((1, 2)))], [table])
    np.testing.assert_array_equal(table, [[1] * 2] * 3 + [[0] * 2] + [[1] * 2] * 2)


def test_rows_of_no_elements_change_nothing():
    table, optimizer = np.ones((5, 0), np.float32), optimc.RowwiseAdagrad(0.1)
    optimizer.apply([optimc.Rows([1], np.zeros((1, 0)))], [table])
    assert not optimizer.slots["row_accumulator"][0].any()
