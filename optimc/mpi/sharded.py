"""The sharded optimizer: each rank keeps the slots of a share of the weights, and steps that share.

Each method in which the ranks communicate is a call (team.py): its body checks what this rank can check alone, agrees
with the other ranks, and only then sends or changes anything.  The other methods and properties are this rank's own.

Next: team.py lets the ranks agree, share.py holds the optimizers of a rank, layout.py says whose elements are whose,
exchange.py sends gradients and weights, checkpoints.py saves.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import TYPE_CHECKING

import numpy as np
from mpi4py import MPI

from optimc import _core
from optimc.base import averages
from optimc.base.arguments import check_bool, count, unzip
from optimc.base.optimizer import Optimizer
from optimc.base.spellings import older_spellings, pairs_alone
from optimc.base.storage import type_of
from optimc.base.wrapper import WrapperOfOne
from optimc.loss_scale import LossScaleOptimizer
from optimc.mpi import checkpoints, rows
from optimc.mpi.exchange import Exchange
from optimc.mpi.interrupts import Interrupts
from optimc.mpi.layout import default_bucket
from optimc.mpi.share import Share
from optimc.mpi.team import TIMEOUT, Fact, Team, check_timeout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import ExitStack
    from typing import Any, NoReturn

    from optimc._types import Array, Config, Gradients, Pairs, Path, Tensors, Weights
    from optimc.mpi.layout import Bucket
    from optimc.mpi.team import Call


class Sharded(WrapperOfOne):
    """An optimizer whose slots (the arrays that it keeps for the weights) are spread over the ranks of an MPI job.

    Every rank calls the same methods in the same order.  The weights are the same on all ranks, before and after a
    step; the gradients are the rank's own, arrays or `Rows`.  Elementwise rules are cut at any element, or between
    blocks of 256 if something is stored in fewer bits, so that a rank keeps 1/ranks of the slots; tables of many rows
    are cut between rows.  Lamb, LARS, Adafactor, Muon, RowwiseAdagrad and cautious steps need whole weights, so each
    weight has one rank.

    All ranks must make these calls together: the constructor, `build`, `apply`, `apply_gradients`,
    `exclude_from_weight_decay`, `averaged`, `finalize_variable_values`, `save` and `optimc.mpi.load`.  Such a call
    raises on all ranks or on none, whatever the ranks call, and the ranks stay in step.  Everything else concerns
    this rank alone: properties, assignments (the next step compares them), `scale_loss`, and `reset_master`, which
    each rank calls for its share.  See docs/howto/mpi.md.

    Args:
        optimizer: an optimizer or a `LossScaleOptimizer`, with any options.  The wrapper owns it from now on.  Its
            values may be set, equally on all ranks.  Its state, if it has any, must be the same on all ranks.
        comm: the communicator; messages go through a duplicate of it.
        average: step with the mean of the ranks' gradients; otherwise with their sum.
        deterministic: add up gradients in the order of the ranks, so that the bits do not depend on the MPI
            library.  With 1, 2, 4, ... ranks the mean is the exact quotient of the sum.
        bucket_bytes: size of a message; default: 4 MiB, but at least 64 KiB for each rank.
        timeout: seconds to wait for the other ranks before the job is ended; None: for ever.

    Raises (in joint calls, on every rank, with the rank named, and nothing changed):
        the errors of the wrapped optimizer on any rank.
        ValueError: the ranks differ in arguments, weights, hyperparameters, or in which gradients are missing.
        RuntimeError: the ranks call different methods, or one rank is interrupted (there: KeyboardInterrupt).

    Example, `mpiexec -n 2 python -m mpi4py example.py`:

        import numpy as np, optimc, optimc.mpi
        opt = optimc.mpi.Sharded(optimc.SGD(0.5))
        w = np.ones(4, np.float32)
        opt.apply([np.full(4, float(opt.rank))], [w])   # the mean of 0 and 1
        print(w)                                        # [0.75 0.75 0.75 0.75], twice
    """

    optimizer: Optimizer | LossScaleOptimizer   #: the wrapped optimizer: its values may be set
    average: bool
    deterministic: bool
    bucket_bytes: int
    _exchange: Any

    def __init__(self, optimizer: Optimizer | LossScaleOptimizer, comm: MPI.Intracomm = MPI.COMM_WORLD, *,
                 average: bool = True, deterministic: bool = False, bucket_bytes: int | None = None,
                 timeout: float | None = TIMEOUT) -> None:
        team = Team(comm, timeout)
        team.together("Sharded", self._begin, team, optimizer, average=average, deterministic=deterministic,
                      bucket_bytes=bucket_bytes, timeout=timeout)

    def _begin(self, call: Call, team: Team, optimizer: Optimizer | LossScaleOptimizer, **options: Any) -> None:
        self._set_options(team, **options)
        self._wrap(optimizer)
        call.agree(self._facts_of_setup())
        self._join()

    def _set_options(self, team: Team, average: bool = True, deterministic: bool = False,
                     bucket_bytes: int | None = None, timeout: float | None = TIMEOUT) -> None:
        """Takes the constructor's options, on this rank alone, before it knows the optimizer."""
        check_bool("average", average)
        check_bool("deterministic", deterministic)
        bucket_bytes = count(1, optional=True)("bucket_bytes", bucket_bytes)
        check_timeout(timeout)
        self.average, self.deterministic = average, deterministic
        self._team, self._exchange = team, None
        self.bucket_bytes = bucket_bytes or default_bucket(self.size)

    def _wrap(self, optimizer: Optimizer | LossScaleOptimizer) -> None:
        """The rest of what the constructor does on this rank alone."""
        inner = optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer
        if not isinstance(inner, Optimizer):
            raise TypeError(f"optimizer must be an optimizer or a LossScaleOptimizer, got {type(inner).__name__}")
        self.optimizer = optimizer
        self._local = inner                 # steps this rank's share
        self._share = Share(inner, self.rank, self.size)

    def _facts_of_setup(self) -> list[Fact]:
        """The facts that must be the same on all ranks for a new optimizer."""
        kinds = type(self.optimizer).__name__, type(self._local).__name__, len(self._local.groups)
        return [Fact.of("has another optimizer", kinds),
                Fact.of("has another average or deterministic", self.average, self.deterministic),
                Fact.of("has other bucket_bytes", self.bucket_bytes)]

    def _join(self) -> None:
        """Numbers the optimizer, once all ranks have it."""
        line = self._team.line
        line.optimizers += 1
        self._team.optimizer = line.optimizers

    @property
    def rank(self) -> int:
        """The number of this process, from 0 to `size` - 1."""
        return self._team.rank

    @property
    def size(self) -> int:
        """The number of processes."""
        return self._team.size

    def _inner(self) -> list[Optimizer]:
        return [self._local]

    @property
    def built(self) -> bool:
        """True if the optimizer is bound to weights."""
        return self._share.built

    @property
    def _weights(self) -> tuple[Array, ...] | None:
        """The bound weights, whole: a tuple, or None."""
        return self._share.plan.weights if self.built else None

    # ------------------------------------------------------------------------------- building

    @older_spellings
    def build(self, weights: Weights) -> None:
        """Binds the optimizer to its weights, whose bytes must be the same on all ranks; see `Optimizer.build`.

        A second call moves it to new memory.  It cannot add weights.
        """
        self._team.together("build", self._build, weights)

    def _build(self, call: Call, weights: Weights) -> None:
        with self._or_undone():
            held = self._share.held()
            names, likes = self._share.build(weights)
            self._exchange = Exchange(self._team, self._share.layout, self._share.plan.weights, self.bucket_bytes,
                                      self.deterministic)
            numbers = 0
            for vector in self._exchange.weights:
                numbers = zlib.crc32(vector.view(np.uint8), numbers)
            call.agree([Fact.of("has other weights or arguments", names, likes, self._share.layout.cut, self.average,
                                self.deterministic, self.bucket_bytes, self._share.state_dtypes(),
                                self._local.master_weights, self._local.seed),
                        Fact("has other numbers in its weights", numbers),
                        Fact.of("has other state", held)])

    @contextlib.contextmanager
    def _or_undone(self) -> Iterator[None]:
        """Puts this rank back to where it was if its body raises."""
        share, exchange = self._share.before_build(), self._exchange
        try:
            yield
        except BaseException:
            self._share.undo_build(share)
            self._exchange = exchange
            raise

    def exclude_from_weight_decay(self, var_list: Iterable[Array] | None = None,
                                  var_names: Iterable[str] | None = None) -> None:
        """Exempts weights from weight decay, the same on all ranks; see `Optimizer.exclude_from_weight_decay`."""
        self._team.together("exclude_from_weight_decay", self._exclude, var_list, var_names)

    def _exclude(self, call: Call, var_list: Any, var_names: Any) -> None:
        with self._or_undone():
            if self.built and var_list is not None:
                var_list = self._share.numbered("exclude_from_weight_decay", var_list)
            self._local.exclude_from_weight_decay(var_list, var_names)
            call.agree([Fact.of("excludes other weights", self._local._state.excluded.without_memory())])

    # ------------------------------------------------------------------------------- stepping

    @older_spellings
    def apply(self, grads: Gradients, weights: Weights | None = None) -> None:
        """Updates the weights by one step with the gradients of all ranks; see `Optimizer.apply`.

        Args:
            grads: this rank's gradients, as `Optimizer.apply` takes them.  A gradient may be missing (None) if it
                is missing on all ranks.  It may be `Rows` if it is on all ranks, which
                may have other rows, and none; those of all ranks are one step by rows, in the order of the ranks.
                Gradients of weights of 16 bits are added up in float32, others in the weight's type.
            weights: the weights.  The first call builds the optimizer for them.
        """
        self._team.together("apply", self._apply, grads, weights)

    @pairs_alone
    def apply_gradients(self, grads_and_vars: Pairs) -> int:
        """`apply` for pairs, as `zip(grads, weights)` gives them.  Returns `iterations`."""
        self._team.together("apply", self._apply_pairs, grads_and_vars)
        return self.iterations

    def _apply_pairs(self, call: Call, grads_and_vars: Pairs) -> None:
        self._apply(call, *unzip(grads_and_vars))

    def _apply(self, call: Call, grads: Gradients, weights: Weights | None) -> None:
        if self.built or weights is None:
            self._step(call, grads, weights)
            return
        with self._or_undone():
            self._build(call, weights)
            call.reopen("first step")
            self._step(call, grads, weights)

    def _step(self, call: Call, grads: Gradients, weights: Weights | None) -> None:
        local, plan = self._local, self._share.plan
        if plan is None:
            raise ValueError("the optimizer is not built: pass the weights too, apply(grads, weights), or "
                             "call build(weights) first")
        with _core.Transaction() as steps:
            steps.enter(local, plan)                    # other threads wait from here on
            taken = plan.match(grads, weights)
            given = rows.copied(self._share.layout, plan.rows())
            exchange = self._exchange.without(frozenset(given))
            own = [grad if t else None for t, grad in zip(taken, exchange.grads, strict=True)]
            if given:
                call.agree(self._facts_of_gradients(taken, given))
                for i, mine in rows.of_all_ranks(call, self._share.layout, given, self.average):
                    own[i] = mine
            steps.match(local, own, None, True)
            call.agree(self._facts(taken, given))
            self._do(call, steps, exchange, taken, given)

    def _facts_of_gradients(self, taken: Sequence[bool], given: Iterable[int]) -> list[Fact]:
        kinds = bytearray(taken)
        for i in given:
            kinds[i] = 2
        return [Fact("has done other steps", self._local._calls),
                Fact("has gradients for other weights or of another form", zlib.crc32(kinds))]

    def _facts(self, taken: Sequence[bool], given: Iterable[int]) -> list[Fact]:
        """Returns the facts that must be the same on all ranks at a step; raises if the cuts do not allow it."""
        local = self._local
        self._share.check_cut()
        values = [local._current(group, k) for group in range(len(local.groups) + 1)
                  for k in range(len(local._index))]
        options: tuple[Any, ...] = (
            local._check_finite, local._steps, local._overwrite, local._cautious, local._coupled,
            local._decay_as_factor, local._maximize, self.average,
            [chosen.without_memory() for chosen in (local._state.excluded, *local._state.grouped)])
        if isinstance(self.optimizer, LossScaleOptimizer):
            growth, counter = self.optimizer.dynamic_growth_steps, self.optimizer.step_counter
            options += growth, counter, counter + 1 >= growth       # raises here if they are no numbers
        return [*self._facts_of_gradients(taken, given), Fact.of("has other hyperparameters", values, options)]

    def _do(self, call: Call, steps: _core.Transaction, exchange: Exchange, taken: Sequence[bool],
            given: Iterable[int]) -> None:
        """Does a step that all ranks have agreed on, or skips it, and commits; `exchange` is of arrays alone."""
        local = self._local
        updating = (local._calls + 1) % local._steps == 0
        clipping = updating and any(
            local._current(group, local._index[name]) > 0 for group in range(len(local.groups) + 1)
            for name in ("clipnorm", "global_clipnorm"))
        finite = isinstance(self.optimizer, LossScaleOptimizer)
        looking = clipping or finite or local._check_finite
        ready: Iterable[Bucket] = exchange.reduced(self._share.plan.pull, taken, self.average)
        if looking or self._share.layout.cut == "tensors":
            ready = list(ready)
            if looking and not self._survey(call, steps, finite):
                steps.skip(local, finite)
                self._commit(steps, False)
                return
            if not local._elementwise:
                call.reopen("prepare the step")
                local._between()
                call.agree()

        def advance(bucket: Bucket) -> None:
            for run in bucket.runs:
                steps.advance(local, type_of(bucket.dtype).core, *run)

        steps.advance(local, _core.TYPE_F32, 0, 0)      # begins, even if this rank has no elements, and steps rows
        if updating or local._overwrite:
            if given:
                rows.spread(self._exchange, {i: np.frombuffer(steps.rows(local, i), np.uint32) for i in given})
            exchange.spread(ready, advance)
        else:
            for bucket in ready:
                advance(bucket)
        self._commit(steps, True)

    def _commit(self, steps: _core.Transaction, good: bool) -> None:
        """Commits a step, together with how a loss scale moves after it."""
        if isinstance(self.optimizer, LossScaleOptimizer):
            self.optimizer._adapt(steps, good)
        steps.commit()

    def _survey(self, call: Call, steps: _core.Transaction, finite: bool) -> bool:
        """Looks at the gradients; returns whether the step can be done.  Norms are made of the sums of all ranks."""
        local = self._local
        call.reopen("look at the gradients")
        try:
            good = steps.survey(local, finite)
        except FloatingPointError:
            good = False
        if all(call.agree(tell=good)):
            sums = self._exchange.sums_of_all(np.frombuffer(steps.sums(local)))
            try:
                return steps.refold(local, finite, sums, self._exchange.blocks.sum(axis=0))
            except FloatingPointError as error:
                call.refuse(error)                      # all have the same sums
        if finite or local.check_finite == "skip":
            return False
        call.reopen("name the gradient")
        self._share.plan.survey()                       # for the error that names the gradient
        call.agree()
        call.refuse(FloatingPointError("the gradients of all ranks are finite, but what they add up to, or the norm "
                                       "that clips it, is not"))

    # ------------------------------------------------------------------------------- averages of weights

    @older_spellings
    def finalize_variable_values(self, weights: Weights | None = None) -> None:
        """Copies the averages of `use_ema` into the weights, on all ranks."""
        self._team.together("finalize_variable_values", self._finalize, weights)

    def _finalize(self, call: Call, weights: Weights | None) -> None:
        averages.bound(self._weights, weights)
        if self._local._evaluating:
            raise RuntimeError("within averaged() the weights hold their averages: finalize them after it")
        self._local._locked(lambda: None)               # raises within a step of it
        call.agree([Fact.of("has another use_ema", self._local.use_ema)])
        self._local.finalize_variable_values()
        self._exchange.spread(self._exchange.buckets)

    @older_spellings
    @contextlib.contextmanager
    def averaged(self, weights: Weights | None = None) -> Iterator[None]:
        """A context manager that puts the averages into the weights, on all ranks; see `Optimizer.averaged`.

        The ranks enter it together.  Each leaves it alone.
        """
        stack, interrupts = contextlib.ExitStack(), Interrupts()
        try:
            self._team.together("averaged", self._enter_averaged, stack, weights)
            try:
                yield
            finally:
                interrupts.hold()                       # Ctrl-C that comes right here must not keep the averages
        finally:
            stack.close()
            interrupts.release()

    def _enter_averaged(self, call: Call, stack: ExitStack, weights: Weights | None) -> None:
        weights = averages.bound(self._weights, weights)
        with Interrupts():                              # the stack has what it has entered
            stack.enter_context(averages.averaged([self._local], whole=weights))
        call.agree()
        self._exchange.spread(self._exchange.buckets)

    # ------------------------------------------------------------------------------- state

    @property
    def variables(self) -> list[Array]:
        """This rank's share of the arrays that `Optimizer.variables` gives."""
        return self._local.variables

    def save(self, path: Path) -> None:
        """Writes a checkpoint: a file per rank beside `path`, each with its share, then `path`, which joins them.

        `optimc.mpi.load` continues from it in a job of any size, `optimc.load` in one process.  Until `path` is
        written, it and the files that it joins are those of the previous save.

        Raises:
            ValueError: the optimizer has no weights yet, or a value comes from a function.
            OSError: the system of the named rank cannot write.  The previous checkpoint is still whole.
        """
        self._team.together("save", checkpoints.save, path, self._share.layout, self._export, self._local._locked)

    def _export(self) -> tuple[Config, dict[str, Any]]:
        layout = self._share.layout
        if layout is None:
            raise ValueError("the optimizer is not built: it has no state to save")
        return checkpoints.share_of(self.optimizer._export(), layout, self.rank, self._share.slot_names)

    def _take_shards(self, path: Path, shards: dict[str, Any], description: Config) -> Tensors:
        """Cuts the weights that a checkpoint describes; returns this rank's tensors."""
        self._share.slot_names = checkpoints.slot_names_of(description)
        layout = self._share.layout = checkpoints.layout_of(description, shards["orders"], self.size,
                                                            self._share.cut)
        return checkpoints.read_share(path, shards, description, layout, self.rank)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Sharded optimizer belongs to its job and cannot be copied or pickled: use save and load")

    def __repr__(self) -> str:
        return f"<Sharded({self.optimizer!r}): rank {self.rank} of {self.size}>"
