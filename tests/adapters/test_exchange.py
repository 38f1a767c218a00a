"""Steps of the core over tensors whose slots and masters are stored in fewer bits."""

import numpy as np
import pytest
from conftest import require

import optimc
from optimc._core import CHECKED, NOT_AS_PLANNED, PART_MASTER

torch = require("torch")
bare, tensors = (pytest.importorskip(f"optimc.torch.{name}") for name in ("bare", "tensors"))
ml_dtypes = require("ml_dtypes")
pytestmark = pytest.mark.skipif(tensors.EXCHANGE is None, reason="this torch has no exchange table")

N = 5000
M, V = 0, 1                                     # the slots of Adam


def as_bfloat16(array):
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def built(**arguments):
    """An optimizer, its weights and gradients, and its state in tensors."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(N).astype(ml_dtypes.bfloat16)
    optimizer = optimc.Adam(**arguments)
    optimizer.build([weight])
    slots = optimizer._slots
    state = {"m": slots["m"][0], "v": slots["v"][0], "master": optimizer._masters[0]}
    state = {key: as_bfloat16(array) if array.dtype == np.uint16 else torch.from_numpy(array)
             for key, array in state.items()}
    return optimizer, weight, state, rng.standard_normal(N).astype(np.float32)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8", {"m": "bfloat16"}])
def test_narrow_parts_are_stepped_in_place_and_may_move(state_dtype):
    one, plain, _, grad = built(state_dtype=state_dtype)
    two, weight, state, _ = built(state_dtype=state_dtype)
    two._prepare_tensors((None,), (), tuple(
        (0, part, state, key) for part, key in ((M, "m"), (V, "v"), (PART_MASTER, "master"))), bare.PLAIN)
    for step in range(4):
        if step == 2:
            state.update({key: tensor.clone() for key, tensor in state.items()})
        one.apply([grad])
        assert two._apply_tensors([as_bfloat16(weight)], tensors.EXCHANGE, [torch.from_numpy(grad)]) == CHECKED
    assert np.array_equal(weight, plain)
    assert np.array_equal(state["master"].numpy(), one._masters[0])
    assert np.array_equal(state["m"].view(torch.uint8).numpy(), one._slots["m"][0].view(np.uint8))


@pytest.mark.parametrize("held, given", [(None, "bfloat16"), ("bfloat16", None), ("bfloat16", "int8")])
def test_a_slot_of_another_storage_is_not_taken_for_the_planned_one(held, given):
    optimizer, weight, state, grad = built(state_dtype=held)
    optimizer._prepare_tensors((None,), (), ((0, M, state, "m"),), bare.PLAIN)
    before = weight.copy()
    state["m"] = built(state_dtype=given)[2]["m"]
    step = [as_bfloat16(weight)], tensors.EXCHANGE, [torch.from_numpy(grad)]
    assert optimizer._apply_tensors(*step) == NOT_AS_PLANNED
    assert np.array_equal(weight, before)
