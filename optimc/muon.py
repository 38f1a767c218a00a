"""Muon, which needs matrix products.  NumPy multiplies, between the halves of a step.

`apply` checks the step in C and orthogonalises the momentum of each matrix into the scratch slot `update`.  Nothing
of the user's has been written so far, so an error or Ctrl-C leaves everything unchanged.  Then C writes: Muon's rule
for the matrices, Adam's for all other weights.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from optimc import _core
from optimc.base import narrow
from optimc.base.arguments import HIGH_OPEN, Option, Value, count, fraction, patterns, real
from optimc.base.optimizer import Optimizer
from optimc.base.spellings import older_spellings

if TYPE_CHECKING:
    from typing import Any

    from optimc._types import Array, Config, Gradients, Weights

__all__ = ["Muon"]

#: the longer side over the shorter from which iterating on the Gram matrix is cheaper (measured)
GRAM_FROM = 2.0


class Muon(Optimizer):
    """Muon (Jordan et al., 2024): orthogonalised momentum for matrices, Adam for all other weights.

    Formula:
        m <- m + (g + m (momentum - 1))
        y = g + momentum m, or m without nesterov
        y <- y / norm(y)
        y <- muon_a y + (muon_b A + muon_c A A) y, ns_steps times, with A = y y'
        w <- w - learning_rate rms_rate sqrt(longer_side) y

    After the Newton-Schulz steps y is close to the orthogonal matrix nearest to it.  The matrix products are NumPy's,
    so the last bits depend on its BLAS.  Slots: `m`; `v` for Adam's weights; `update`, scratch.

    Args:
        learning_rate: >= 0; a number, schedule or callable.
        adam_beta_1: Adam's beta_1, in [0, 1).
        adam_beta_2: Adam's beta_2, in [0, 1).
        epsilon: Adam's, >= 0.
        adam_weight_decay: weight decay of Adam's weights; `weight_decay` is for the matrices.
        exclude_layers: regular expressions; Adam steps weights whose name matches one.
        exclude_embeddings: Adam steps weights with "embedding" in their name.
        muon_a: coefficient of y in a Newton-Schulz step.
        muon_b: coefficient of A y in a Newton-Schulz step.
        muon_c: coefficient of A A y in a Newton-Schulz step.
        adam_lr_ratio: Adam's learning rate divided by Muon's.
        momentum: in [0, 1].
        ns_steps: Newton-Schulz steps, >= 1.
        nesterov: look ahead along the momentum.
        rms_rate: root mean square of an update, divided by the learning rate; None: do not scale the update.

    Example:
        >>> import numpy as np, optimc
        >>> w = np.zeros((2, 2), np.float32)
        >>> optimc.Muon(learning_rate=0.5, rms_rate=None).apply([np.diag([3.0, 4.0])], [w])
        >>> w.round(2)
        array([[-0.36,  0.  ],
               [ 0.  , -0.56]], dtype=float32)
    """

    _rule = "muon"
    _elementwise = False
    learning_rate = Value(0.001)
    adam_beta_1 = fraction(0.9, open=HIGH_OPEN)
    adam_beta_2 = fraction(0.999, open=HIGH_OPEN)
    adam_weight_decay = Value(0.004, optional=True)
    epsilon = Value(1e-7)
    weight_decay = Value(0.004, optional=True)
    exclude_layers = Option(None, patterns, last=True)
    exclude_embeddings = Option(True, last=True)
    muon_a = Option(3.4445, real, last=True)
    muon_b = Option(-4.7750, real, last=True)
    muon_c = Option(2.0315, real, last=True)
    adam_lr_ratio = Value(1.0, last=True)
    momentum = fraction(0.95, last=True)
    ns_steps = Option(5, count(1), last=True)
    nesterov = Option(True, last=True)
    rms_rate = Value(0.2, optional=True, last=True)

    _keras_slots = ({"m": "momentum", "v": "velocity"},)
    _scratch_slots = ("update",)

    def get_config(self) -> Config:
        return {**super().get_config(), "exclude_layers": list(self.exclude_layers or ())}      # as in Keras

    get_config.__doc__ = Optimizer.get_config.__doc__

    def _kernel_of(self, name: str | None, weight: Any) -> str:
        name = name or ""
        excluded = (self.exclude_embeddings and "embedding" in name.lower()) or any(
            re.search(pattern, name) for pattern in self.exclude_layers or ())
        return "muon" if weight.ndim == 2 and weight.size and not excluded else "muon_adam"

    def _possible_kernels(self) -> tuple[str, ...]:
        return ("muon", "muon_adam")

    def _decay_of(self, kernel: str) -> str:
        return "weight_decay" if kernel == "muon" else "adam_weight_decay"

    def _factor(self, weight: Array) -> float:
        return max(weight.shape, default=1) ** 0.5

    @older_spellings
    def apply(self, grads: Gradients, weights: Weights | None = None) -> None:
        with _core.Transaction() as steps:
            if steps.check(self, grads, weights):
                self._between()
            steps.commit()

    apply.__doc__ = Optimizer.apply.__doc__

    def _between(self) -> None:
        """Fills `update` of every matrix that has a gradient."""
        index = self._index["momentum"]
        with np.errstate(all="ignore"):             # as in C, what is not finite goes its way in silence
            for i, update in enumerate(self._slots.get("update", ())):
                if update is None or not self._plan.pull(i, update):
                    continue
                momentum, room, lane = self._value_of(i, index), self._room_for(update), update.dtype.type
                m = narrow.slot_numbers(self, "muon", "m", i, room.other)
                y = np.multiply(m, lane(momentum - 1), out=room.y)
                y += update
                y += m
                if self.nesterov:
                    y *= lane(momentum)
                    y += update
                self._orthogonalise(room)
                np.copyto(update, room.y)

    def _room_for(self, matrix: Array) -> Room:
        """Scratch for matrices of this shape, kept between steps."""
        rooms = self.__dict__.setdefault("_rooms", {})
        key = matrix.shape, matrix.dtype
        if key not in rooms:
            rooms[key] = Room(matrix)
        return rooms[key]

    def _orthogonalise(self, room: Room) -> None:
        """Makes room.y the orthogonal matrix nearest to it, roughly: its singular values come near 1."""
        lane = room.y.dtype.type
        a, b, c = lane(self.muon_a), lane(self.muon_b), lane(self.muon_c)
        np.multiply(room.y, room.y, out=room.other)
        np.divide(room.y, np.sqrt(room.other.sum()) + lane(1e-7), out=room.y)
        y, other, gram, square, factor = room.flat, room.flat_other, room.gram, room.square, room.factor
        if y.shape[1] < GRAM_FROM * y.shape[0]:
            for _ in range(self.ns_steps):
                np.matmul(y, y.T, out=gram)
                _polynomial(gram, square, factor, b, c)
                np.matmul(factor, y, out=other)     # y <- a y + factor y
                y *= a
                y += other
            return
        # The same steps on the smaller side: y <- P y, each P a polynomial in the Gram matrix, which
        # becomes P gram P.  All P together meet y at the end.
        product, spare = room.product, room.spare
        np.matmul(y, y.T, out=gram)
        for step in range(self.ns_steps):
            _polynomial(gram, square, factor, b, c)
            factor.flat[::len(factor) + 1] += a
            if step:
                np.matmul(factor, product, out=spare)
                product, spare = spare, product
            else:
                np.copyto(product, factor)
            if step + 1 < self.ns_steps:
                np.matmul(factor, gram, out=square)
                np.matmul(square, factor, out=gram)
        np.matmul(product, y, out=other)
        np.copyto(y, other)


class Room:
    """Room to orthogonalise a matrix in: it and a copy, both also with the shorter side first; its squares."""

    def __init__(self, matrix: Array) -> None:
        side = min(matrix.shape)
        self.y, self.other = np.empty(matrix.shape, matrix.dtype), np.empty(matrix.shape, matrix.dtype)
        turned = matrix.shape[0] > matrix.shape[1]
        self.flat, self.flat_other = (self.y.T, self.other.T) if turned else (self.y, self.other)
        self.gram, self.square, self.factor, self.product, self.spare = (
            np.empty((side, side), matrix.dtype) for _ in range(5))


def _polynomial(gram: Array, square: Array, factor: Array, b: Any, c: Any) -> None:
    """factor <- b gram + c gram gram.  gram is symmetric; so written, NumPy computes half of the square."""
    np.matmul(gram, gram.T, out=factor)
    factor *= c
    np.multiply(gram, b, out=square)
    factor += square
