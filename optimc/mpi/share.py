"""The share of a rank: the optimizer that steps its pieces of the weights, and a plan that reads whole gradients.

It builds both, and undoes that; it knows the layout, and sends nothing.  Next: sharded.py, which steps it.
"""

from __future__ import annotations

import copy
import zlib
from typing import TYPE_CHECKING

import numpy as np

from optimc import _core
from optimc.base import binding, narrow
from optimc.base.narrow import Place
from optimc.base.rules import slots_of
from optimc.base.selection import Places, Selection
from optimc.base.storage import like_of, type_of
from optimc.mpi.layout import CUTS, Layout, flat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from optimc._types import Array, Names, Weights
    from optimc.base.optimizer import Optimizer
    from optimc.base.state import State
    from optimc.base.storage import Like


class Share:
    """What one rank keeps of an optimizer that is spread over several.

    Args:
        optimizer: the optimizer to spread.

    Attributes:
        local: that optimizer, which is built over this rank's pieces of the weights.
        plan: a plan of the whole weights, which checks gradients and reads them; None before the first build.
        layout: whose elements are whose; None before the first build.
        slot_names: the slots that the optimizer keeps for the weights of all ranks.
    """

    local: Optimizer
    rank: int
    ranks: int
    plan: Any
    layout: Any
    slot_names: list[str]

    def __init__(self, optimizer: Optimizer, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.local = optimizer
        self.plan, self.layout, self.slot_names = None, None, []

    @property
    def built(self) -> bool:
        """Whether the share is bound to weights."""
        return self.plan is not None

    def before_build(self) -> tuple[Any, ...]:
        """Returns what `undo_build` needs."""
        return self.layout, self.plan, self.local._mark()

    def undo_build(self, before: tuple[Any, ...]) -> None:
        """Puts the share back to where it was at `before_build`."""
        self.layout, self.plan, local = before
        self.local._come_back(local)

    def held(self) -> tuple[Any, ...]:
        """What the optimizer holds and is the same on all ranks, as plain values."""
        numbers = 0
        for array in self.local._state.tensors().values() if self.layout is None else ():
            numbers = zlib.crc32(np.ascontiguousarray(array).data, numbers)
        return self.local._calls, self.local._get_running(), numbers

    def build(self, weights: Weights) -> tuple[Names, list[Like]]:
        """Builds both; the first time, cuts the weights.  Returns the names (or None) and likes of the weights."""
        names, weights = _core.weights_of(weights)
        likes = [like_of(weight) for weight in weights]
        local, fresh = self.local, self.layout is None
        layout = self.layout = Layout(likes, self.ranks, self.cut(likes)) if fresh else self.layout
        if len(likes) != len(layout.likes):
            raise ValueError(f"weights: expected {len(layout.likes)} weights, as before, got {len(likes)}")
        for i, (like, known) in enumerate(zip(likes, layout.likes, strict=True)):
            if like != known:
                raise ValueError(f"weights[{names[i] if names else i!r}]: expected {known}, as before, got {like}")
        plan = _plan_of(names, weights)
        kernels = local._kernels(names, weights)
        self.slot_names = list(dict.fromkeys(slot for kernel in kernels for slot in slots_of(kernel)
                                             if slot not in local._scratch_slots))
        state = local._state_now().numbered(weights)        # positions hold for the pieces too
        local._hold(self._own_part(state, names, weights) if fresh and state.likes else state)
        pieces = [layout.piece(i, low, high, flat(weights[i]))
                  for i, (low, high) in enumerate(layout.pieces(self.rank))]
        local._locked(local._move, pieces if names is None else dict(zip(names, pieces, strict=True)),
                      places=self._places(), may_add=True)
        self.plan = plan
        return names, likes

    def _places(self) -> list[Place]:
        """The place of each piece in its weight.  Without codes none is needed, and a piece may begin anywhere."""
        begins = [low if self.layout.cut != "elements" else 0 for low, _ in self.layout.pieces(self.rank)]
        return [Place(i, begin, like.size)
                for i, (begin, like) in enumerate(zip(begins, self.layout.likes, strict=True))]

    def check_cut(self) -> None:
        """Raises if the weights are not cut as the optimizer needs it now."""
        if CUTS.index(self.layout.cut) < CUTS.index(self.cut(self.layout.likes)):
            raise ValueError("clipnorm, global_clipnorm and cautious can be turned on only before the optimizer is "
                             "built: weights are cut as they need it")

    def cut(self, likes: Sequence[Like]) -> str:
        """Where such weights may be cut, as the optimizer is set now."""
        if not self.local._elementwise or self.local._cautious:
            return "tensors"
        coded = any(self.state_dtypes()) or any(type_of(like.dtype).real != like.dtype for like in likes)
        return "blocks" if self._may_clip() else "codes" if coded else "elements"

    def state_dtypes(self) -> list[Any]:
        """The `state_dtype` of the optimizer and of each group, as values that `repr` writes alike on all ranks."""
        chosen = [self.local._state_dtype_of(group) for group in range(len(self.local.groups) + 1)]
        return [sorted(one.items()) if isinstance(one, dict) else one for one in chosen]

    def _may_clip(self) -> bool:
        """Whether a norm is asked for, or could be: a callable may ask for it later."""
        local = self.local
        values = [local._get_value(group, local._index[name]) for group in range(len(local.groups) + 1)
                  for name in ("clipnorm", "global_clipnorm")]
        return any(value is not None and (callable(value) or value > 0) for value in values)

    def numbered(self, label: str, entries: Any) -> list[Any]:
        """Turns weights in a list into their positions, which hold for the pieces too; `label` names the list."""
        chosen = Selection.of(label, entries).numbered(Places(self.plan.weights))
        return [*chosen.arrays, *chosen.patterns]

    def _own_part(self, state: State, names: Names, weights: Sequence[Array]) -> State:
        """Cuts the state that the optimizer came with down to this rank's pieces."""
        layout = self.layout
        if [like[:2] for like in state.likes] != [like[:2] for like in layout.likes] \
                or (names and state.names and names != state.names):
            raise ValueError("weights: expected the weights, in their order, that the optimizer holds state for")
        if state.convert or [like.order for like in state.likes] != [like.order for like in layout.likes]:
            state = binding.carried(self.local, state, names, weights)      # to codes as they will be cut
        pieces = layout.pieces(self.rank)

        def mine(arrays: Sequence[Array | None]) -> list[Array | None]:
            return [self._own_piece(i, low, high, array)
                    for i, ((low, high), array) in enumerate(zip(pieces, arrays, strict=True))]

        own = state.mapped(mine).but(likes=layout.likes_of(self.rank))
        if own.masters:         # an empty piece has every slot that a vector has, and a master if its weight has one
            own = own.but(masters=[None if whole is None else piece
                                   for whole, piece in zip(state.masters, own.masters, strict=True)])
        return own

    def _own_piece(self, i: int, low: int, high: int, array: Array | None) -> Array | None:
        """A copy of this rank's piece of an array that belongs to weight i."""
        if low == high:
            return np.empty(0, self.layout.likes[i].real.dtype)
        if array is not None and array.dtype == narrow.BYTES:
            return narrow.cut(array, self.layout.likes[i], low, high)
        piece: Array | None = copy.copy(self.layout.piece_of(i, low, high, array))
        return piece


def _plan_of(names: Names, weights: Sequence[Array]) -> _core.Plan:
    """A plan of weights that no optimizer holds."""
    plan = _core.Plan(len(weights))
    for i, weight in enumerate(weights):
        plan.add(weight, name=names[i] if names else None, kernel=_core.kernels["sgd"][0], slot_names=(), slots=())
    plan.seal()
    return plan
