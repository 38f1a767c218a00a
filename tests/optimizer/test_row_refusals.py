"""Every refusal of a gradient by rows; and memory: nothing is allocated per step, nothing is written outside."""

import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from cases import assert_same_bits

import optimc
from optimc import Rows

F = np.float32


def good():
    """Fresh weights, a table and a bias, and their gradients."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((9, 4)).astype(F), np.ones(4, F)]
    return weights, [Rows([3, 1, 3], np.ones((3, 4), F)), np.ones(4, F)]


def everything(optimizer, *others):
    """The bytes of all state and of other arrays."""
    return [array.tobytes() for array in [*optimizer.variables, *others]]


def by_name(grads, weights):
    return dict(zip(("table", "bias"), grads, strict=True)), dict(zip(("table", "bias"), weights, strict=True))


def bad(indices, values=None, width=4):
    """A function that gives a bad gradient for the first weight."""
    return lambda weights: Rows(indices, np.ones((len(indices), width), F) if values is None else values)


def overlapping(weights):
    """Indices in the memory of the weight itself."""
    return Rows(weights[0].reshape(-1).view(np.int32)[:1], np.ones((1, 4), F))


REFUSED = {
    "out of range": (bad([0, 9]), ValueError, r"\.indices\[1\]: expected a row from 0 to 8, got 9$"),
    "far out of range": (bad(np.array([2 ** 63], np.uint64)), ValueError,
                         r"\.indices\[0\]: .* got 9223372036854775808$"),
    "beyond 32 bits": (bad(np.array([2 ** 32])), ValueError, r"\.indices\[0\]: .* got 4294967296$"),
    "negative": (bad([0, 1, -1]), ValueError, r"\.indices\[2\]: expected a row from 0 to 8, got -1$"),
    "negative of 8 bits": (bad(np.array([-128], np.int8)), ValueError, r"\.indices\[0\]: .* got -128$"),
    "width": (bad([0], width=5), ValueError,
              r"\.values: expected rows of a weight of shape \(9, 4\), got shape \(1, 5\)$"),
    "axes": (bad([0], np.ones((1, 2, 2), F)), ValueError, r"\.values: .* got shape \(1, 2, 2\)$"),
    "overlap of indices": (overlapping, ValueError, r" overlaps weights\[0\] in memory$"),
    "overlap of values": (lambda weights: Rows([0, 1], weights[0][2:4]), ValueError,
                          r" overlaps weights\[0\] in memory$"),
    "not finite": (bad([0, 3], np.array([[1] * 4, [1, 2, np.nan, 4]], F)), FloatingPointError, r" is not finite$"),
    "not finite in sum": (bad([3, 3], np.full((2, 4), 3e38, F)), FloatingPointError, r" is not finite$"),
    "beyond float32": (bad([3], np.full((1, 4), 1e39)), FloatingPointError, r" is not finite$"),
}
#: refused when they are made: indices, values
NO_ROWS = {
    "floats": (np.zeros(2), None, TypeError, "^indices: expected integers, got dtype float64$"),
    "bools": (np.zeros(2, bool), None, TypeError, "^indices: expected integers, got dtype bool$"),
    "objects": (np.array([0, 1], object), None, TypeError, "^indices: expected integers, got dtype object$"),
    "times": (np.zeros(2, "m8[s]"), None, TypeError, "^indices: expected integers, got dtype timedelta64"),
    "two axes": (np.zeros((2, 1), int), None, ValueError, r"^indices: expected one axis, got shape \(2, 1\)$"),
    "no axis": (3, None, ValueError, r"^indices: expected one axis, got shape \(\)$"),
    "swapped indices": (np.zeros(2, np.dtype(int).newbyteorder()), None, TypeError,
                        "^indices: expected integers in native byte order, got dtype >i8$"),
    "masked indices": (np.ma.array([0, 1]), None, TypeError, "^indices: a masked array"),
    "masked values": ([0, 1], np.ma.array(np.ones((2, 4), F)), TypeError, "^values: a masked array"),
    "values of ints": ([0, 1], np.ones((2, 4), int), TypeError,
                       "^values: expected floating-point numbers, got dtype int64$"),
    "values of bools": ([0, 1], np.ones((2, 4), bool), TypeError, "^values: .* got dtype bool$"),
    "count": ([0, 1], np.ones((3, 4), F), ValueError,
              r"^values: expected a row for each of the indices, which have shape \(2,\), got shape \(3, 4\)$"),
    "one number": ([0], np.float32(1), ValueError, r"^values: .* got shape \(\)$"),
}


def check_refused(opt, form, weights, grads, error, words):
    """One line that names the entry; and not one byte has changed."""
    before = everything(opt, *weights)
    with pytest.raises(error, match=words) as caught:
        opt.apply(*form(grads, weights))
    assert "\n" not in str(caught.value) and everything(opt, *weights) == before


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("named", [False, True])
def test_refusals(what, named):
    """By an optimizer that has stepped, with gradients that wait."""
    make, error, words = REFUSED[what]
    form, entry = (by_name, r"^grads\['table'\]") if named else (lambda *both: both, r"^grads\[0\]")
    words = words.replace("weights\\[0\\]", "weights\\['table'\\]") if named else words
    weights, grads = good()
    opt = optimc.Adam(check_finite="raise", use_ema=True, gradient_accumulation_steps=2, global_clipnorm=1.0)
    opt.apply(*form(grads, weights))
    check_refused(opt, form, weights, [make(weights), grads[1]], error, entry + words)
    opt.apply(*form(grads, weights))
    assert opt.iterations == 1


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_at_the_first_step(what):
    make, error, words = REFUSED[what]
    weights, grads = good()
    opt, held = optimc.Adam(check_finite="raise"), [weight.copy() for weight in weights]
    with pytest.raises(error, match=r"^grads\[0\]" + words):
        opt.apply([make(weights), grads[1]], weights)
    for weight, old in zip(weights, held, strict=True):
        assert_same_bits(weight, old)
    opt.apply(grads, weights)
    assert opt.iterations == 1


@pytest.mark.parametrize("what", NO_ROWS)
def test_what_is_no_rows(what):
    indices, values, error, words = NO_ROWS[what]
    with pytest.raises(error, match=words):
        Rows(indices, np.ones((2, 4), F) if values is None else values)


REFUSING = {
    "a rule of whole weights": (lambda: optimc.Lamb(), lambda: np.ones((9, 4), F), "looks at the whole weight"),
    "factored moments": (lambda: optimc.Adafactor(), lambda: np.ones((9, 4), F), "looks at the whole weight"),
    "a norm of the weight": (lambda: optimc.LARS(), lambda: np.ones((9, 4), F), "looks at the whole weight"),
    "a matrix of Muon": (lambda: optimc.Muon(), lambda: np.ones((9, 4), F), "looks at the whole weight"),
    "Fortran order": (lambda: optimc.Adam(), lambda: np.ones((9, 4), F, order="F"),
                      r"in C order .* got shape \(9, 4\)"),
    "a number": (lambda: optimc.Adam(), lambda: np.ones((), F), r"1 axis or more .* got shape \(\)"),
    "blocks": (lambda: optimc.Adam(state_dtype="int8"), lambda: np.ones((2000, 4), F), 'use state_dtype="bfloat16"'),
}


@pytest.mark.parametrize("what", REFUSING)
def test_weights_that_take_no_rows(what):
    make, weight, words = REFUSING[what]
    weight, opt = weight(), make()
    opt.apply([np.ones_like(weight)], [weight])
    before = everything(opt, weight)
    values = np.ones((1, *weight.shape[1:]), F)
    with pytest.raises(ValueError, match=rf"^grads\[0\]: .*{words}") as caught:
        opt.apply([Rows([0], values)], [weight])
    assert "\n" not in str(caught.value) and everything(opt, weight) == before


def test_arrays_that_change_their_shape_after_they_were_made_rows():
    table, opt = np.ones((9, 4), F), optimc.Adam()
    opt.build([table])
    indices, values = np.array([1, 2]), np.ones((2, 4), F)
    rows = Rows(indices, values)
    with warnings.catch_warnings(action="ignore"):
        indices.shape = (1, 2)
        with pytest.raises(ValueError, match=r"^grads\[0\]\.indices: expected one axis, got shape \(1, 2\)$"):
            opt.apply([rows], [table])
        indices.shape, values.shape = (2,), (4, 2)
        with pytest.raises(ValueError, match=r"^grads\[0\]\.values: expected a row for each of the indices"):
            opt.apply([rows], [table])
        indices.dtype = float
    with pytest.raises(TypeError, match=r"^grads\[0\]\.indices: expected integers, got dtype float64$"):
        opt.apply([rows], [table])
    assert opt.iterations == 0


# ------------------------------------------------------------------------------------ memory, threads

@pytest.mark.parametrize("given", [{}, {"gradient_accumulation_steps": 3, "global_clipnorm": 1.0, "use_ema": True}])
def test_nothing_is_allocated_once_the_largest_batch_was_seen(given):
    rng = np.random.default_rng(0)
    table, opt = np.ones((3000, 8), F), optimc.Adam(**given)
    batches = [Rows(rng.integers(0, 3000, k), np.ones((k, 8), F)) for k in (2000, 0, 1, 1500, 2000, 700)]
    weights, lists = [table], [[batch] for batch in batches]

    def grown(times):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(times):
            for grads in lists:
                opt.apply(grads, weights)
        return np.subtract(tracemalloc.get_traced_memory(), before)

    tracemalloc.start()
    try:
        grown(5)
        least = np.min([grown(200) for _ in range(3)], axis=0)
    finally:
        tracemalloc.stop()
    assert least[0] < 700 and least[1] < 10_000, least


def test_indices_that_another_thread_changes_write_nothing_outside(threads):
    """A step reads them once: an index is refused, or it is a row of the table."""
    memory = np.full((40_000 + 400, 16), 7, F)
    table, indices, stop = memory[200:-200], np.zeros(30_000, np.int64), threading.Event()
    rng, opt = np.random.default_rng(0), optimc.Adam(0.0, gradient_accumulation_steps=2)
    wild = [rng.integers(-200, 40_200, indices.size), np.full(indices.size, -1), np.full(indices.size, 2 ** 62),
            rng.integers(0, 40_000, indices.size)]

    def change():
        while not stop.is_set():
            for some in wild:
                indices[...] = some

    values, outcomes = np.ones((30_000, 16), F), set()
    opt.build([table])
    worker = threading.Thread(target=change)
    worker.start()
    try:
        for _ in range(150):
            try:
                opt.apply([Rows(indices, values)], [table])
                outcomes.add("stepped")
            except ValueError as error:
                assert "expected a row from 0 to 39999" in str(error)
                outcomes.add("refused")
    finally:
        stop.set()
        worker.join()
    assert "refused" in outcomes
    assert (memory == 7).all()
