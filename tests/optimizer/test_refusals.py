"""Every refusal: the right type, one line that names the entry, and not one byte changed."""

import warnings

import ml_dtypes
import numpy as np
import pytest
from cases import slots_of

import optimc
from optimc.base.arguments import Value

F = np.float32


def good():
    """Fresh weights and gradients: a matrix, a vector, a scalar array."""
    weights = [np.linspace(-1, 1, 6, dtype=F).reshape(2, 3), np.ones(4, F), np.array(2, F)]
    return weights, [np.full_like(w, 0.5) for w in weights]


def at(index, value):
    """Replaces one entry."""
    def change(entries):
        entries[index] = value(entries[index]) if callable(value) else value
    return change


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array):
    out = np.ndarray(array.shape, array.dtype, np.zeros(array.nbytes + 1, np.uint8), 1)
    out[...] = array
    return out


class Raises:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("from the gradient")


# (what is done to the weights, what is done to the gradients, error, message)
PAIRS = {
    "gradient of ints": (None, at(1, lambda g: g.astype(int)), TypeError,
                         r"grads\[1\]: expected a floating-point gradient, got int64"),
    "gradient of bools": (None, at(1, lambda g: g > 0), TypeError, r"grads\[1\].* got bool"),
    "complex gradient": (None, at(1, lambda g: g + 1j), TypeError, r"grads\[1\].* got complex64"),
    "gradient of objects": (None, at(1, lambda g: g.astype(object)), TypeError, r"grads\[1\].*object"),
    "gradient of strings": (None, at(1, lambda g: g.astype(str)), TypeError, r"grads\[1\].*<U"),
    "gradient of times": (None, at(1, np.zeros(4, "m8[s]")), TypeError, r"grads\[1\].*timedelta64"),
    "gradient of records": (None, at(1, np.zeros(4, "f4,f4")), TypeError, r"grads\[1\].*got \[\('f0', '<f4'\)"),
    "masked gradient": (None, at(1, lambda g: np.ma.array(g, mask=[0, 1, 0, 0])), TypeError,
                        r"grads\[1\]: a masked array has no value where it is masked: pass x.filled\(0\) or x.data"),
    "gradient that could be masked": (None, at(1, lambda g: np.ma.array(g)), TypeError,
                                      r"grads\[1\]: a masked array"),
    "masked weight": (at(1, lambda w: np.ma.array(w)), None, TypeError, r"weights\[1\]: a masked array"),
    "gradient is a list": (None, at(1, [1.0] * 4), TypeError, r"grads\[1\]: .*floats, got list"),
    "gradient is a number": (None, at(2, 1.0), TypeError, r"grads\[2\]: .* got float"),
    "gradient is a str": (None, at(2, "x"), TypeError, r"grads\[2\]: .* got str"),
    "gradient broadcasts": (None, at(1, np.ones(1, F)), ValueError,
                            r"grads\[1\]: expected shape \(4,\), like its weight, got \(1,\)"),
    "gradient of another shape": (None, at(0, lambda g: g.reshape(3, 2)), ValueError,
                                  r"grads\[0\]: expected shape \(2, 3\).*got \(3, 2\)"),
    "gradient of another rank": (None, at(0, lambda g: g.ravel()), ValueError, r"grads\[0\].*\(6,\)"),
    "gradient raises": (None, at(1, Raises()), RuntimeError, "from the gradient"),
    "no gradient at all": (None, lambda g: g.__setitem__(slice(None), [None] * 3), ValueError,
                           "No gradients provided for any variable"),
    "fewer gradients": (None, lambda g: g.pop(), ValueError, "one entry each per weight, got 2 and 3"),
    "more gradients": (None, lambda g: g.append(g[0]), ValueError, "got 4 and 3"),
    "weight of the bits of bfloat16": (
        at(1, lambda w: w.astype(ml_dtypes.bfloat16).view(np.uint16)), None, TypeError,
        r"^weights\[1\]: expected an array of float32, float64, bfloat16 or float16, got uint16: the bits of "
        r"bfloat16 need their type, x\.view\(ml_dtypes\.bfloat16\)$"),
    "weight of 8 bits": (at(1, lambda w: w.astype(ml_dtypes.float8_e5m2)), None, TypeError,
                         r"weights\[1\]: expected an array of float32, .* got float8_e5m2$"),
    "weight of ints": (at(1, lambda w: w.astype(int)), None, TypeError, r"weights\[1\].*int64"),
    "weight of bools": (at(1, lambda w: w > 0), None, TypeError, r"weights\[1\].*bool"),
    "complex weight": (at(1, lambda w: w + 1j), None, TypeError, r"weights\[1\].*complex64"),
    "weight of objects": (at(1, lambda w: w.astype(object)), None, TypeError, r"weights\[1\].*object"),
    "weight of long doubles": (at(1, lambda w: w.astype(np.longdouble)), None, TypeError, r"weights\[1\]"),
    "big-endian weight": (at(1, lambda w: w.astype(">f4")), None, TypeError,
                          r"weights\[1\]: .*native byte order, got >f4"),
    "weight is a list": (at(1, lambda w: list(w)), None, TypeError,
                         r"weights\[1\] is a list of numbers: expected a NumPy array$"),
    "weight is a dict": (at(1, lambda w: {"w": w}), None, TypeError,
                         r"grads\[1\]: expected a dict, like weights\[1\], got ndarray$"),
    "weight is a number": (at(1, 3.0), None, TypeError, r"weights\[1\]: .*got a scalar of type float, which"),
    "weight is a NumPy scalar": (at(2, F(3.0)), None, TypeError,
                                 r"weights\[2\]: .*got a scalar of type float32, "),
    "weight is None": (at(1, None), None, TypeError, r"weights\[1\]: .*got NoneType"),
    "weight is bytes": (at(1, b"abcd"), None, TypeError, r"weights\[1\]: .*got bytes"),
    "read-only weight": (at(1, read_only), None, ValueError,
                         r"weights\[1\]: expected a writable array"),
    "broadcast weight": (at(1, np.broadcast_to(np.ones(1, F), 4)), None, ValueError, r"weights\[1\]"),
    "strided weight": (at(1, np.ones(8, F)[::2]), None, ValueError,
                       r"weights\[1\]: .*contiguous in C or Fortran order, got strides \(8,\)"),
    "reversed weight": (at(1, np.ones(4, F)[::-1]), None, ValueError, r"weights\[1\].*\(-4,\)"),
    "weight that overlaps itself": (at(1, np.lib.stride_tricks.as_strided(np.ones(4, F), (4,), (0,))),
                                    None, ValueError, r"weights\[1\].*strides \(0,\)"),
    "unaligned weight": (at(1, unaligned), None, ValueError, r"weights\[1\].*not aligned"),
}
SHARED = {
    "weight twice": (lambda w, g: (w.append(w[0]), g.append(g[0].copy())), ValueError,
                     r"weights\[0\] and weights\[3\] overlap|occurs twice"),
    "weights overlap": (lambda w, g: (w.append(w[1][1:]), g.append(np.ones(3, F))), ValueError,
                        r"weights\[1\] and weights\[3\] overlap|no weight of shape \(3,\) was built"),
    "gradient is its weight": (lambda w, g: g.__setitem__(1, w[1]), ValueError,
                               r"grads\[1\] overlaps weights\[1\] in memory"),
    "gradient within a weight": (lambda w, g: g.__setitem__(1, w[0].ravel()[1:5]), ValueError,
                                 r"grads\[1\] overlaps weights\[0\] in memory"),
    "strided gradient within a weight": (lambda w, g: g.__setitem__(2, w[0][1, 2]), None, None),
    "transposed gradient of itself": (lambda w, g: g.__setitem__(0, w[0].T.reshape(3, 2).T), ValueError,
                                      r"grads\[0\] overlaps weights\[0\]"),
}
WHOLE = {
    "grads is an array": (lambda w, g: (g[0], w), TypeError, "grads must be a list, tuple or dict"),
    "weights is an array": (lambda w, g: (g, w[0]), TypeError,
                            r"weights must be .*, got one array \(numpy.ndarray\): pass \[array\]"),
    "grads is None": (lambda w, g: (None, w), TypeError, "grads must be a list.*NoneType"),
    "grads is a zip": (lambda w, g: (zip(g, w, strict=True), w), TypeError,
                       r"grads must be a list.*, got a zip: pass pairs to apply_gradients\(zip"),
    "grads is a generator": (lambda w, g: (iter(g), w), TypeError,
                             r"grads must be.*_iterator, which can be read only once: pass list"),
    "weights is a set": (lambda w, g: (g, {1, 2}), TypeError, "weights must be.*set"),
    "grads is a str": (lambda w, g: ("abc", w), TypeError, "grads must be.*str"),
    "nothing": (lambda w, g: ([], []), ValueError, "weights is empty"),
    "empty dicts": (lambda w, g: ({}, {}), ValueError, "weights is empty"),
    "dict and list": (lambda w, g: (dict(enumerate(g)), w), TypeError, "both be lists or both dicts"),
    "keys are no names": (lambda w, g: (dict(enumerate(g)), dict(enumerate(w))), TypeError,
                          "keys must be str, got int"),
    "other keys": (lambda w, g: (dict(zip("abd", g, strict=True)), dict(zip("abc", w, strict=True))),
                   ValueError, r"grads has no entry for weights\['c'\]"),
}


def snapshot(optimizer, arrays):
    flat = [array for array in arrays if isinstance(array, np.ndarray)]
    return ([(array.tobytes(), array.shape, array.flags.writeable) for array in flat],
            [array.tobytes() for made in slots_of(optimizer).values() for array in made
             if array is not None],
            optimizer.iterations, optimizer.get_config(), optimizer.built)


def refused(optimizer, grads, weights, error, message):
    """One call that must raise and change nothing."""
    arrays = [*(grads if isinstance(grads, (list, tuple)) else []),
              *(weights if isinstance(weights, (list, tuple)) else [])]
    before = snapshot(optimizer, arrays)
    with pytest.raises(error, match=message) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.apply(grads, weights)
    assert "\n" not in str(caught.value)
    assert snapshot(optimizer, arrays) == before


@pytest.fixture(params=[0, 2], ids=["first step", "later step"])
def ready(request, case):
    """An optimizer, its weights and gradients, before its first or a later step."""
    optimizer = case.make()
    weights, grads = good()
    for _ in range(request.param):
        optimizer.apply(grads, weights)
    return optimizer, weights, grads


@pytest.mark.parametrize("name", PAIRS)
def test_bad_entries(ready, name):
    optimizer, weights, grads = ready
    change_weights, change_grads, error, message = PAIRS[name]
    if change_weights:
        change_weights(weights)
    if change_grads:
        change_grads(grads)
    refused(optimizer, grads, weights, error, message)
    refused(optimizer, tuple(grads), tuple(weights), error, message)


@pytest.mark.parametrize("name", SHARED)
def test_shared_memory(ready, name):
    optimizer, weights, grads = ready
    change, error, message = SHARED[name]
    change(weights, grads)
    if error:
        refused(optimizer, grads, weights, error, message)
    else:
        optimizer.apply(grads, weights)         # a NumPy scalar is a copy


@pytest.mark.parametrize("name", WHOLE)
def test_bad_containers(ready, name):
    optimizer, weights, grads = ready
    change, error, message = WHOLE[name]
    refused(optimizer, *change(weights, grads), error, message)


def test_a_gradient_that_is_a_slot(case):
    optimizer, (weights, grads) = case.make(), good()
    optimizer.apply(grads, weights)
    for slot in case.slots_of(weights[0]):
        slot_array = optimizer._slots[slot][0]
        if slot_array.shape == weights[0].shape:
            refused(optimizer, [slot_array, *grads[1:]], weights, ValueError,
                    r"grads\[0\] overlaps a slot of")


def test_dict_entries_are_named():
    weights, grads = ({"kernel": np.ones(2, F), "bias": np.ones(1, F)},
                      {"kernel": np.ones(2, F), "bias": np.ones(3, F)})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"grads\['bias'\]: expected shape \(1,\)"):
            optimc.Adam().apply(grads, weights)


def test_changes_to_a_bound_weight_are_noticed(case):
    optimizer, (weights, grads) = case.make(), good()
    optimizer.apply(grads, weights)
    weights[1].flags.writeable = False
    refused(optimizer, grads, weights, ValueError, r"weights\[1\]: expected a writable array")
    weights[1].flags.writeable = True
    flat = weights[0].reshape(6)
    refused(optimizer, [np.ones(6, F), *grads[1:]], [flat, *weights[1:]], ValueError,
            r"weights\[0\]: expected shape \(2, 3\), as built, got \(6,\)")
    refused(optimizer, grads, [weights[0].view(np.int32), *weights[1:]], TypeError,
            r"weights\[0\]: expected dtype float32")
    square = np.ones((3, 3), F)
    other = case.make()
    other.apply([square * 2], [square])
    refused(other, [square * 2], [square.T], ValueError, r"weights\[0\]: expected the memory order")
    refused(optimizer, [grads[0], grads[0].copy()], [weights[0], weights[0]], ValueError,
            r"weights\[1\]: the same weight occurs twice")


def test_gradients_of_ints_are_told_to_be_converted(ready):
    optimizer, weights, grads = ready
    for kind, advice in ((int, r": convert it with \.astype\(numpy\.float32\)$"),
                         (bool, r": convert it with \.astype\(numpy\.float32\)$"), (complex, "$")):
        refused(optimizer, [grads[0], grads[1].astype(kind), grads[2]], weights, TypeError,
                rf"^grads\[1\]: expected a floating-point gradient, got {np.dtype(kind)}{advice}")


def test_weights_of_another_shape_are_not_called_moved(case):
    """The shape is named first: `build` could not take such weights either."""
    optimizer, (weights, grads) = case.make(), good()
    optimizer.apply(grads, weights)
    others = [np.ones((4, 2), F), *weights[1:]]
    refused(optimizer, [np.ones((4, 2), F), *grads[1:]], others, ValueError,
            r"^weights\[0\]: expected shape \(2, 3\), as built, got \(4, 2\): make a new optimizer for other")
    refused(optimizer, [np.ones((4, 2), F)], others[:1], ValueError,
            r"^weights\[0\]: no weight of shape \(4, 2\) was built: call build\(weights\) with all of them to add it")
    for n in (1, 3):                        # what may be a weight that has moved
        refused(optimizer, grads[:n], [weights[0].copy(), *weights[1:n]], ValueError,
                r"^weights\[0\] is not in the memory this optimizer was built with")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_another_type_are_not_called_moved(case, dtype):
    optimizer, (weights, grads) = case.make(), good()
    optimizer.apply(grads, weights)
    others = [weights[0], weights[1].astype(dtype), weights[2]]
    refused(optimizer, grads, others, TypeError, rf"^weights\[1\]: expected dtype float32, as built, got "
            rf"{np.dtype(dtype)}: make a new optimizer for other weights$")
    case.make().apply(grads, others)


def test_an_unbuilt_optimizer_needs_weights(case):
    with pytest.raises(ValueError, match="not built: pass the weights too"):
        case.make().apply([np.ones(1, F)])


def test_missing_gradients_warn_before_anything_is_written(case):
    optimizer, (weights, grads) = case.make(), good()
    optimizer.apply(grads, weights)
    before = snapshot(optimizer, weights)
    with warnings.catch_warnings(), pytest.raises(UserWarning, match=r"do not exist for weights\[1\]"):
        warnings.simplefilter("error")
        optimizer.apply([grads[0], None, grads[2]], weights)
    assert snapshot(optimizer, weights) == before
    kept = weights[1].copy(), [optimizer._slots[slot][1].copy() for slot in case.slots]
    with pytest.warns(UserWarning):
        optimizer.apply([grads[0], None, grads[2]], weights)
    assert (weights[1] == kept[0]).all()
    assert all((optimizer._slots[slot][1] == k).all() for slot, k in zip(case.slots, kept[1], strict=True))


def test_a_schedule_may_not_step_its_own_optimizer():
    weights, grads = good()
    optimizer = optimc.SGD(lambda: optimizer.apply(grads, weights) or 1.0)
    refused(optimizer, grads, weights, RuntimeError, "a step was asked for while one is in progress")
    optimizer.learning_rate = lambda: optimizer.build(weights) or 1.0
    refused(optimizer, grads, weights, RuntimeError, "while one is in progress")


@pytest.mark.parametrize("rate,error", [(float("nan"), ValueError), (float("inf"), ValueError),
                                        (-1.0, ValueError), ("0.1", TypeError), (None, TypeError),
                                        (True, TypeError), (1j, TypeError), ([0.1], TypeError),
                                        (np.ones(2), TypeError), (np.True_, TypeError)])
def test_schedules_that_return_nonsense(rate, error, ready):
    optimizer, weights, grads = ready
    optimizer.learning_rate = lambda: rate
    before = [w.copy() for w in weights], optimizer.iterations
    with pytest.raises(error, match="learning_rate"):
        optimizer.apply(grads, weights)
    assert all((w == b).all() for w, b in zip(weights, before[0], strict=True))
    assert optimizer.iterations == before[1]


def test_schedules_that_raise(ready):
    optimizer, weights, grads = ready

    def broken():
        raise KeyError("mine")

    optimizer.learning_rate = broken
    iterations = optimizer.iterations
    with pytest.raises(KeyError, match="mine"):
        optimizer.apply(grads, weights)
    assert optimizer.iterations == iterations


BELOW_ZERO = -0.5
BAD_NUMBERS = [(float("nan"), ValueError), (float("inf"), ValueError), (BELOW_ZERO, ValueError),
               (10 ** 400, ValueError), ("0.1", TypeError), (1j, TypeError), (True, TypeError),
               (np.True_, TypeError), (np.ones(3), TypeError), (np.array(0.1), TypeError),
               ([0.1], TypeError)]


@pytest.mark.parametrize("value,error", BAD_NUMBERS, ids=[repr(v)[:20] for v, _ in BAD_NUMBERS])
def test_bad_hyperparameters(case, value, error):
    for name in case.cls._index:
        argument = case.cls._arguments.get(name)
        if not isinstance(argument, Value) or (value is BELOW_ZERO and argument.low < 0):
            continue
        with pytest.raises(error, match=name):
            case.make(**{name: value})
        optimizer = case.make()
        before = optimizer.get_config()
        with pytest.raises(error, match=name):
            setattr(optimizer, name, value)
        assert optimizer.get_config() == before


def test_numbers_of_every_kind_are_accepted():
    for number in (1, np.float32(0.5), np.float64(0.5), np.int64(1), np.float16(0.5), 0):
        assert optimc.SGD(number).learning_rate == float(number)


def test_fractions_end_where_the_formula_does():
    assert optimc.SGD(momentum=1).momentum == 1
    for name in ("beta_1", "beta_2"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got 1"):
            optimc.Adam(**{name: 1.0})
    with pytest.raises(ValueError, match=r"rho must be in \[0, 1\], got 1.5"):
        optimc.RMSprop(rho=1.5)


def test_unknown_arguments_are_named(case):
    for error in (TypeError, ValueError):
        with pytest.raises(error, match=rf"{case.cls.__name__} has no argument 'lr': did you mean learning_rate\?"):
            case.cls(lr=0.1)
    with pytest.warns(UserWarning, match="`decay` is no longer supported"):
        case.cls(decay=0.1)
    with pytest.raises(TypeError, match="too many positional"):
        case.cls(*range(40))


def test_flags_are_bools(case):
    for name, parameter in case.cls._arguments.items():
        if isinstance(parameter.default, bool):
            for bad in (1, None, "yes", np.True_):
                with pytest.raises(TypeError, match=f"{name} must be a bool"):
                    case.cls(**{name: bad})


def test_apply_gradients_takes_pairs():
    w = np.ones(2, F)
    optimizer = optimc.SGD(1.0)
    assert optimizer.apply_gradients(iter([(np.ones(2, F), w)])) == 1
    for bad, error in (([], ValueError), ([w], (TypeError, ValueError)), (3, TypeError),
                       ([(w,)], (TypeError, ValueError))):
        with pytest.raises(error):
            optimizer.apply_gradients(bad)
    assert optimizer.iterations == 1


def test_gradients_that_empty_the_list_they_are_in():
    class Gradient:
        def __getattr__(self, name):
            if name != "__array__":
                raise AttributeError(name)
            grads.clear()
            with pytest.raises(RuntimeError, match="may not step or rebuild"):
                optimizer._hold(optimizer._state)
            return lambda *args, **kwargs: np.ones(3, F)

    optimizer, weights, grads = optimc.SGD(0.5), [np.ones(3, F) for _ in range(200)], []
    grads.extend(Gradient() for _ in weights)
    optimizer.apply(grads, weights)
    assert not grads and all((weight == 0.5).all() for weight in weights)


def test_a_gradient_that_is_not_finite_has_its_callers_name():
    built, bad = {name: np.ones(2, F) for name in "abc"}, np.full(2, np.nan, F)
    optimizer = optimc.SGD(0.1, check_finite="raise")
    optimizer.build(built)
    for grads, weights, entry in (([bad], [built["c"]], "[0]"), ({"z": bad}, {"z": built["c"]}, "['z']"),
                                  ([None, None, bad], None, "['c']")):
        with pytest.raises(FloatingPointError) as caught, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.apply(grads, weights)
        assert str(caught.value) == f"grads{entry} is not finite"


def test_a_list_that_claims_to_be_longer():
    class Longer(list):
        def __len__(self):
            return 10 ** 4

    with pytest.raises(RuntimeError, match="weights changed size while it was read"):
        optimc.SGD(0.1).apply(Longer([np.ones(3, F)]), Longer([np.ones(3, F)]))


@pytest.mark.parametrize("method", ["__repr__", "__eq__"])
def test_names_that_empty_the_dict_they_are_in(method):
    def emptied(name, *others):
        weights.clear()
        return getattr(str, method)(name, *others)

    Name = type("Name", (str,), {"__hash__": str.__hash__, method: emptied})
    optimizer, grads = optimc.SGD(0.1), {name: np.ones(3, F) for name in ("first", "second")}
    weights = {Name(name): np.ones(3, F) for name in grads}
    with pytest.raises(RuntimeError, match="weights changed size while it was read"):
        if method == "__repr__":
            optimizer.build(weights)
        else:
            optimizer.build(list(weights.values()))
            optimizer.apply(grads, weights)


def test_apply_names_its_arguments():
    optimizer, (weights, grads) = optimc.SGD(), good()
    optimizer.apply(grads=grads, weights=weights)
    for args, kwargs in (((), {}), ((grads, weights, 1), {}), ((grads,), {"grads": grads}),
                         ((grads, weights), {"params": weights}), ((grads,), {"weight": weights}),
                         ((grads,), {"weights": weights, "params": weights})):
        with pytest.raises(TypeError, match=r"apply\(\)"):
            optimizer.apply(*args, **kwargs)


@pytest.mark.parametrize("value,error", [(-1, ValueError), (2 ** 63, ValueError), (1.0, TypeError),
                                         (True, TypeError), ("1", TypeError), (None, TypeError)])
def test_iterations_can_be_set_to_counts_only(value, error):
    optimizer = optimc.SGD()
    with pytest.raises(error, match="iterations must be"):
        optimizer.iterations = value
    with pytest.raises(ValueError, match=r"iterations must be in \[0, 4611686018427387903\], got 9\d+6$"):
        optimizer.iterations = 2 ** 63 - 2
    optimizer.iterations = np.int64(7)
    assert optimizer.iterations == 7


def test_the_base_class_is_no_optimizer():
    with pytest.raises(TypeError, match="base class"):
        optimc.Optimizer()


@pytest.mark.parametrize("made", [lambda opt, w: {}, lambda opt, w: optimc._core.Plan(1),
                                  lambda opt, w: plan_with(w, group=1), lambda opt, w: plan_with(w, decay=500)])
def test_a_first_step_takes_only_a_plan_that_it_can_hold(made):
    class Own(optimc.SGD):
        def _build(self, weights):
            return made(self, weights[0])

    optimizer, w = Own(), np.ones(3, np.float32)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match="plan"):
            optimizer.apply([w * 1], [w])
        assert not optimizer.built and optimizer.iterations == 0 and (w == 1).all()


def plan_with(weight, **parts):
    plan = optimc._core.Plan(1)
    plan.add(weight, **{"kernel": 0, "slot_names": (), "slots": (), **parts})
    plan.seal()
    return plan


def test_a_plan_has_one_optimizer_and_all_its_weights():
    optimizer, w = optimc.SGD(), np.ones(3, np.float32)
    optimizer.build([w])
    with pytest.raises(ValueError, match="belongs to another optimizer"):
        optimc.SGD()._bind(optimizer._plan)
    plan = optimc._core.Plan(2)
    with pytest.raises(TypeError, match=r"^weights\[0\]: expected a NumPy array of floats, got list$"):
        plan.add([1.0], kernel=0, slot_names=(), slots=())
    for wrong in (plan, optimc._core.Plan(1)):
        with pytest.raises(RuntimeError, match="lacks weights"):
            wrong.seal()
    with pytest.raises(RuntimeError, match="all its weights"):
        optimizer._plan.add(w, kernel=0, slot_names=(), slots=())


def test_a_plan_takes_no_weight_from_code_within_add():
    """A factor or a name that adds weights, or seals the plan, finds no room."""
    refused = []

    def add(plan, **more):
        plan.add(np.ones(3, np.float32), kernel=0, slot_names=(), slots=(), **more)

    class Name(str):
        __slots__ = ()

        def __repr__(self):
            for use in (lambda: add(plan, name="b"), plan.seal):
                with pytest.raises(RuntimeError, match=r"the plan takes no weight while one is added|lacks weights"):
                    use()
                refused.append(use)
            return str.__repr__(self)

    class Factor:
        def __float__(self):
            add(plan)
            return 1.0
    plan = optimc._core.Plan(1)
    with pytest.raises(TypeError, match=r"weights\['a'\]: expected a NumPy array of floats, got list$"):
        plan.add([1.0], kernel=0, slot_names=(), slots=(), name=Name("a"))
    assert refused
    plan = optimc._core.Plan(1)
    with pytest.raises(RuntimeError, match="the plan has all its weights"):
        add(plan, factor=Factor())
    plan.seal()
    assert len(plan.weights) == 1


def test_a_length_that_raises_is_asked_once():
    class Unknown(list):
        def __len__(self):
            raise ValueError("no length")

    w = np.ones(3, F)
    for grads, weights in ((Unknown([w * 1]), Unknown([w])), ([w * 1], Unknown([w]))):
        with pytest.raises(ValueError, match=r"^no length$"):
            optimc.SGD().apply(grads, weights)


def test_no_weights_are_no_list_of_weights():
    for call in (optimc.Adam().build, optimc._core.weights_of):
        with pytest.raises(TypeError, match=r"^weights must be a list, tuple or dict of arrays, got NoneType$"):
            call(None)


def test_a_plan_misses_the_slots_that_a_kernel_keeps():
    w, adam = np.ones(3, F), optimc._core.kernels["adam"][0]
    for names, slots in (((), ()), (("m",), (w * 0,))):
        with pytest.raises(TypeError, match=r"slot.* of weights\[0\]: expected an array, got NoneType"):
            optimc._core.Plan(1).add(w, kernel=adam, slot_names=names, slots=slots)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_while_a_gradient_is_looked_at_is_raised(error):
    class Gradient:
        def __getattr__(self, name):
            raise error

    class Weights(list):
        def __len__(self):
            lengths.append(list.__len__(self))
            if len(lengths) > 1:                # once it is matched, for the name of what is not finite
                raise KeyboardInterrupt
            return lengths[0]

    optimizer, w, lengths = optimc.SGD(0.5, check_finite="raise"), np.ones(3, F), []
    with pytest.raises(error):
        optimizer.apply([Gradient()], [w])
    optimizer.build([w])
    with pytest.raises(KeyboardInterrupt):
        optimizer.apply([w * np.nan], Weights([w]))
    assert (w == 1).all() and optimizer.iterations == 0 and len(lengths) == 2
