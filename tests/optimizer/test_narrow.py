"""Storage in fewer bits as its user meets it: choices, refusals, bytes, masters, and who else writes a weight."""

import tracemalloc

import numpy as np
import pytest

import optimc
from optimc.base.narrow import LEAST_INT8

ml_dtypes = pytest.importorskip("ml_dtypes")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def stepped(optimizer, weight, steps=3):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        optimizer.apply([rng.normal(size=weight.shape).astype(np.float32)], [weight])
    return optimizer


def bytes_of(optimizer, weight):
    return sum(array.nbytes for arrays in optimizer._slots.values() for array in arrays) / weight.size


@pytest.mark.parametrize(("choice", "most"), [(None, 8.0), ("bfloat16", 4.0), ("int8", 2.1)])
def test_slots_of_adam_take_these_bytes(choice, most):
    weight = np.ones(100_000, np.float32)
    assert most - 0.1 < bytes_of(stepped(optimc.Adam(state_dtype=choice), weight), weight) <= most


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16, np.float16])
@pytest.mark.parametrize("choice", ["bfloat16", "int8"])
def test_a_step_allocates_nothing(choice, dtype):
    weight = np.ones(100_000, dtype)
    optimizer, gradient = stepped(optimc.AdamW(state_dtype=choice), weight), np.ones(100_000, np.float32)
    tracemalloc.start()
    try:
        optimizer.apply([gradient])
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_small_weights_keep_float32_beside_the_word_int8():
    small, large = np.ones(LEAST_INT8 - 1, np.float32), np.ones(LEAST_INT8, np.float32)
    for choice, bits in (("int8", np.float32), ({"m": "int8", "v": "int8"}, np.uint8)):
        optimizer = optimc.Adam(state_dtype=choice)
        optimizer.build([small, large])
        assert [array.dtype for array in optimizer._slots["m"]] == [bits, np.uint8]


def test_a_group_has_its_own():
    weights = [np.ones(5000, np.float32), np.ones(5000, np.float32)]
    optimizer = optimc.Adam(state_dtype="int8", groups=[{"weights": [1], "state_dtype": {"v": "bfloat16"}}])
    optimizer.build(weights)
    assert [array.dtype for array in optimizer._slots["m"]] == [np.uint8, np.float32]
    assert [array.dtype for array in optimizer._slots["v"]] == [np.uint8, np.uint16]
    again = optimc.Adam.from_config(optimizer.get_config())
    assert again.groups[0]["state_dtype"] == {"v": "bfloat16"}


@pytest.mark.parametrize(("make", "said"), [
    (lambda: optimc.Adam(state_dtype="int4"),
     "state_dtype must be None, 'float32', 'bfloat16' or 'int8', got 'int4'"),
    (lambda: optimc.Adam(state_dtype={"w": "int8"}), "Adam keeps no slot 'w'"),
    (lambda: optimc.ScheduleFreeAdamW(state_dtype="bfloat16"), "the slot 'z' of ScheduleFreeAdamW must stay float32"),
    (lambda: optimc.Rprop(state_dtype={"size": "bfloat16"}), "the slot 'size' of Rprop must stay float32"),
    (lambda: optimc.Adafactor(state_dtype="bfloat16"), "of Adafactor must stay float32"),
    (lambda: optimc.SGD(master_weights=False).build([np.ones(2, np.float16)]), "float16 weights need a master"),
])
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_bits_without_a_type_are_no_weights():
    with pytest.raises(TypeError, match=r"weights\[0\].*uint16.*view\(ml_dtypes.bfloat16\)"):
        optimc.SGD().build([np.ones(2, np.uint16)])


def test_storage_cannot_change_once_built():
    optimizer = stepped(optimc.Adam(), np.ones(10, np.float32))
    with pytest.raises(ValueError, match="state_dtype cannot change once the optimizer is built"):
        optimizer.state_dtype = "bfloat16"


def test_a_refused_step_changes_nothing():
    weight = np.ones(5000, BFLOAT16)
    optimizer = stepped(optimc.Adam(state_dtype="int8", check_finite="raise"), weight)
    before = [array.copy() for array in (weight, *optimizer._state.tensors().values())]
    bad = np.ones(5000, np.float32)
    bad[4000] = np.nan
    with pytest.raises(FloatingPointError, match=r"grads\[0\] is not finite"):
        optimizer.apply([bad])
    for old, new in zip(before, (weight, *optimizer._state.tensors().values()), strict=True):
        assert old.tobytes() == new.tobytes()


def test_a_nan_poisons_its_block_of_8_bits_and_no_other():
    optimizer = stepped(optimc.Adam(state_dtype="int8"), weight := np.ones(5000, np.float32))
    bad = np.ones(5000, np.float32)
    bad[300] = np.nan
    optimizer.apply([bad], [weight])
    poisoned = np.isnan(optimizer.slots["v"][0])
    assert poisoned[256:512].all() and poisoned.sum() == 256


def test_a_float16_weight_that_somebody_wrote_counts():
    weight = np.ones(10, np.float16)
    optimizer = stepped(optimc.SGD(1e-4), weight)
    weight[3] = 5
    optimizer.apply([np.zeros(10, np.float32)])
    assert weight[3] == 5 == optimizer._masters[0][3]


def test_zeros_written_into_bfloat16_weights_stay_zeros():
    weight = np.linspace(-1, 1, 600).astype(BFLOAT16)
    optimizer = stepped(optimc.SGD(1e-4), weight)
    assert (optimizer._masters[0] < 0).any()
    weight[...] = 0
    optimizer.apply([np.zeros(600, np.float32)])
    assert not weight.any()


def test_reset_master_drops_what_the_old_numbers_lacked():
    weight = np.linspace(-1, 1, 600).astype(BFLOAT16)
    optimizer = stepped(optimc.SGD(1e-4), weight)
    weight[...] = 2
    optimizer.reset_master()
    assert not optimizer._masters[0].any()
    optimizer.apply([np.zeros(600, np.float32)])
    assert (weight == 2).all() and not optimizer._masters[0].any()


def test_the_order_of_a_dict_of_types_means_nothing():
    """Ranks of a job, say, may have made theirs in different orders."""
    one, other = (optimc.Adam(state_dtype=dict(entries)) for entries in
                  [[("v", "int8"), ("m", "bfloat16")], [("m", "bfloat16"), ("v", "int8")]])
    assert repr(one.get_config()) == repr(other.get_config())
    with pytest.raises(TypeError, match="must name slots by str, got 7"):
        optimc.Adam(state_dtype={7: "int8", "m": "bfloat16"})
