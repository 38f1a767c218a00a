"""Arrays of other kinds than plain ones: those that step as plain arrays do, and copies of subclasses."""

import copy
import pickle

import numpy as np
import pytest
from cases import assert_same_bits

import optimc


def as_memmap(array, path):
    array.tofile(path)
    return np.memmap(path, array.dtype, "r", shape=array.shape)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


class Own(np.ndarray):
    """A subclass without a mask."""


KINDS = {
    "matrix": lambda array, path: np.asmatrix(array), "record": lambda array, path: array.view(np.recarray),
    "memory-mapped": as_memmap, "read-only": lambda array, path: read_only(array),
    "of a subclass": lambda array, path: array.view(Own), "reversed": lambda array, path: array[::-1].copy()[::-1],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_gradient_of_another_kind_steps_as_a_plain_one(kind, tmp_path):
    gradient = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    weights = [np.ones((2, 3), np.float32) for _ in range(2)]
    optimc.Adam(0.1).apply([gradient], [weights[0]])
    optimc.Adam(0.1).apply([kind(gradient, tmp_path / "gradient")], [weights[1]])
    assert_same_bits(weights[1], weights[0])


def test_a_gradient_of_pandas_steps_as_a_plain_one():
    pandas = pytest.importorskip("pandas")
    weights = [np.ones(3, np.float32), np.ones((2, 2))]
    optimc.SGD(1.0).apply([pandas.Series([1, 2, 3], dtype="float32"), pandas.DataFrame(np.eye(2))], weights)
    assert weights[0].tolist() == [0, -1, -2] and weights[1].tolist() == [[0, 1], [1, 0]]
    with pytest.raises(TypeError, match=r"grads\[0\]: expected a floating-point gradient, got object"):
        optimc.SGD(1.0).apply([pandas.Series([1, None, 3], dtype="Float64").astype(object)], [weights[0]])


class Slotted(optimc.SGD):
    __slots__ = ("__private", "_own", "shown", "unset")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shown, self._own, self.__private = [1], 2, 3

    @property
    def private(self):
        return self.__private


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))],
                         ids=["copy", "deepcopy", "pickle"])
def test_a_copy_keeps_what_a_subclass_has_in_slots(again):
    optimizer = Slotted(0.5)
    other = again(optimizer)
    assert (other.shown, other._own, other.private, other.learning_rate) == ([1], 2, 3, 0.5)
    assert not hasattr(other, "unset") and other.shown is not optimizer.shown


@pytest.mark.parametrize("maximize", [False, True])
def test_a_missing_gradient_is_zero_however_small_the_loss_scale(maximize):
    weights = [np.ones(1, np.float32), np.ones(1, np.float32)]
    optimizer = optimc.SGD(1.0, loss_scale_factor=1e-300, gradient_accumulation_steps=2, maximize=maximize)
    g = np.ones(1, np.float32)
    optimizer.apply([g, g], weights)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, g], weights)
    assert [float(w[0]) for w in weights] == [np.inf if maximize else -np.inf] * 2
