"""The sharded optimizer: each rank keeps the slots of a share of the weights, and steps that share.

`Sharded` agrees with the other ranks before anything is sent or changed.  Next: share.py holds the optimizers of a
rank, layout.py says whose elements are whose, team.py lets the ranks agree, exchange.py sends gradients and weights,
checkpoints.py saves.
"""

import contextlib
import zlib

import numpy as np
from mpi4py import MPI

from optimc import _core
from optimc.base import averages
from optimc.base.arguments import LOW_OPEN, check_bool, count, unzip
from optimc.base.optimizer import Optimizer
from optimc.base.wrapper import WrapperOfOne
from optimc.loss_scale import LossScaleOptimizer
from optimc.mpi import checkpoints
from optimc.mpi.exchange import Exchange
from optimc.mpi.layout import block_order, default_bucket
from optimc.mpi.share import Share
from optimc.mpi.team import TIMEOUT, Fact, Team


class Sharded(WrapperOfOne):
    """An optimizer whose slots are spread over the ranks of an MPI communicator.

    Every rank calls the same methods in the same order, with weights that are the same on all ranks and
    gradients that are its own; after a step the weights are the same on all ranks again.  Elementwise rules are
    cut at any element, so that a rank keeps 1/ranks of the slots.  Lamb, LARS, Adafactor, Muon and cautious steps
    need whole weights, which are dealt out as they are.

    Args:
        optimizer: an optimizer or a `LossScaleOptimizer`, with any options.  It belongs to the wrapper from now on;
            its values may be set, equally on all ranks.  If it has state, that is spread.
        comm: the communicator; messages go through a duplicate of it.
        average: step with the mean of the ranks' gradients; otherwise with their sum.
        deterministic: add up gradients in the order of the ranks, so that the bits do not depend on the MPI
            library.  With 1, 2, 4, ... ranks the mean is exact beyond the sum.
        bucket_bytes: how much travels as one message; default: 4 MiB, and 64 KiB for each rank at least.
        timeout: seconds to wait for the other ranks before the job is ended; None: for ever.

    Raises (all methods, on every rank alike, with the rank named, and nothing changed):
        what the wrapped optimizer raises on any one rank.
        ValueError: the ranks have other weights, gradients for other weights or other hyperparameters.

    Example, `mpiexec -n 2 python -m mpi4py example.py`:

        import numpy as np, optimc, optimc.mpi
        opt = optimc.mpi.Sharded(optimc.SGD(0.5))
        w = np.ones(4, np.float32)
        opt.apply([np.full(4, float(opt.rank))], [w])   # the mean of 0 and 1
        print(w)                                        # [0.75 0.75 0.75 0.75], twice
    """

    def __init__(self, optimizer, comm=MPI.COMM_WORLD, *, average=True, deterministic=False, bucket_bytes=None,
                 timeout=TIMEOUT):
        inner = optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer
        if not isinstance(inner, Optimizer):
            raise TypeError(f"optimizer must be an optimizer or a LossScaleOptimizer, got {type(inner).__name__}")
        check_bool("average", average)
        check_bool("deterministic", deterministic)
        bucket_bytes = count(1)("bucket_bytes", bucket_bytes)
        if timeout is not None:
            timeout = _core.check_number("timeout", timeout, 0.0, float("inf"), LOW_OPEN)
        self.optimizer = optimizer          #: the wrapped optimizer: its values may be set
        self.average, self.deterministic = average, deterministic
        self._team = Team(comm, timeout)
        self.bucket_bytes = bucket_bytes or default_bucket(self.size)
        self._local = inner                 # steps this rank's share
        self._share = Share(inner, self.rank, self.size)

    @property
    def rank(self):
        """The number of this process among `size`."""
        return self._team.rank

    @property
    def size(self):
        """The number of processes."""
        return self._team.size

    def _inner(self):
        return [self._local]

    @property
    def built(self):
        """Whether the optimizer is bound to weights."""
        return self._share.built

    @property
    def _weights(self):
        """The bound weights, whole: a tuple, or None."""
        return self._share.plan.weights if self.built else None

    # ------------------------------------------------------------------------------- building

    def build(self, params):
        """Binds the optimizer to its weights, whose bytes must be the same on all ranks; see `Optimizer.build`.

        Built again, it moves to new memory; it cannot take on more weights.
        """
        before = self._share.before_build()
        error, facts = None, []
        try:
            facts = self._build(params)
        except Exception as caught:
            error = caught
        try:
            self._team.agree("build", error, facts)
        except BaseException:
            self._undo_build(before)
            raise

    def _build(self, params):
        """Builds this rank's share; returns the facts that must be the same on all ranks."""
        names, likes = self._share.build(params)
        self._make_exchange()
        arguments = names, likes, self._share.layout.cut, self.average, self.deterministic, self.bucket_bytes
        numbers = 0
        for vector in self._exchange.weights:
            numbers = zlib.crc32(vector, numbers)
        return [Fact("has other weights or arguments", zlib.crc32(repr(arguments).encode())),
                Fact("has other numbers in its weights", numbers)]

    def _undo_build(self, before):
        self._share.undo_build(before)
        if self.built:
            self._make_exchange()

    def _make_exchange(self):
        """Prepares everything that steps need for the layout and the weights as they are now."""
        layout = self._share.layout
        self._exchange = Exchange(self._team, layout, self._share.plan.weights, self.bucket_bytes, self.deterministic)
        self._blocks = layout.blocks()
        self._block_order = block_order(self._blocks)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Exempts weights from weight decay; see `Optimizer.exclude_from_weight_decay`."""
        if self.built:
            var_list = self._share.numbered(var_list or ())
        self._local.exclude_from_weight_decay(var_list, var_names)

    # ------------------------------------------------------------------------------- stepping

    def apply(self, grads, trainable_variables=None):
        """One step with the gradients of all ranks; see `Optimizer.apply`.

        Args:
            grads: this rank's gradients, as `Optimizer.apply` takes them.  A weight may be without one (None) if it
                is on all ranks.  They are added up in the weight's type.
            trainable_variables: the weights.  The first call builds the optimizer for them.
        """
        before = None
        if not self.built and trainable_variables is not None:
            before = self._share.before_build()
            self.build(trainable_variables)
        try:
            self._apply(grads, trainable_variables)
        except BaseException:
            if before is not None:
                self._undo_build(before)
            raise

    def apply_gradients(self, grads_and_vars):
        """`apply` for pairs, as `zip(grads, weights)` gives them.  Returns `iterations`."""
        try:
            pairs = unzip(grads_and_vars)
        except Exception as error:
            self._team.agree("apply", error)
            raise
        self.apply(*pairs)
        return self.iterations

    def _apply(self, grads, weights):
        local, plan = self._local, self._share.plan
        error, facts = None, []
        with _core.Transaction() as steps:
            try:
                if plan is None:
                    raise ValueError("the optimizer is not built: pass the weights too, apply(grads, params), or "
                                     "call build(params) first")
                steps.enter(local, plan)                    # other threads wait from here on
                taken = plan.match(grads, weights)
                own = [grad if t else None for t, grad in zip(taken, self._exchange.grads, strict=True)]
                steps.match(local, own, None, True)
                facts = self._facts(taken)
            except Exception as caught:
                error = caught
            self._team.agree("apply", error, facts)
            self._step(steps, taken)

    def _facts(self, taken):
        """Returns the facts that must be the same on all ranks at a step; raises if the cuts do not allow it."""
        local = self._local
        self._share.check_cut()
        values = [local._current(group, k) for group in range(len(local.groups) + 1)
                  for k in range(len(local._index))]
        options = (local._check_finite, local._steps, local._overwrite, local._cautious, local._coupled,
                   local._maximize, [(chosen.arrays, chosen.patterns)
                                    for chosen in (local._state.excluded, *local._state.grouped)])
        return [Fact("has done other steps", local._calls),
                Fact("has gradients for other weights", zlib.crc32(bytes(taken))),
                Fact("has other hyperparameters", zlib.crc32(repr((values, options)).encode()))]

    def _step(self, steps, taken):
        """Does a step that all ranks have agreed on, or skips it, and commits."""
        team, local, exchange = self._team, self._local, self._exchange
        updating = (local._calls + 1) % local._steps == 0
        clipping = updating and any(
            local._current(group, local._index[name]) > 0 for group in range(len(local.groups) + 1)
            for name in ("clipnorm", "global_clipnorm"))
        finite = isinstance(self.optimizer, LossScaleOptimizer)
        looking = clipping or finite or local._check_finite
        ready = exchange.reduced(self._share.plan.pull, taken, self.average)
        if looking or self._share.layout.cut == "tensors":
            with team.no_return():
                ready = list(ready)
            if looking and not self._survey(steps, finite):
                steps.skip(local, finite)
                self._commit(steps, False)
                return
            self._between()

        def advance(bucket):
            steps.advance(local, bucket.dtype.itemsize == 8, bucket.begin, bucket.end)

        with team.no_return():
            steps.advance(local, False, 0, 0)           # begins, even if this rank has no elements
            if updating or local._overwrite:
                exchange.spread(ready, advance)
            else:
                for bucket in ready:
                    advance(bucket)
            self._commit(steps, True)

    def _commit(self, steps, good):
        """Commits a step, together with how a loss scale moves after it."""
        with self._team.no_return():
            if isinstance(self.optimizer, LossScaleOptimizer):
                self.optimizer._adapt(steps, good)
            steps.commit()

    def _survey(self, steps, finite):
        """Looks at the gradients; returns whether the step can be done.  Norms are made of the sums of all ranks."""
        team, local = self._team, self._local
        try:
            good = steps.survey(local, finite)
        except FloatingPointError:
            good = False
        if not all(team.share("look at gradients", good)):
            if finite or local.check_finite == "skip":
                return False
            error = None
            try:
                self._share.plan.survey()                   # for the error that names the gradient
            except FloatingPointError as caught:
                error = caught
            team.agree("name the gradient", error)
            raise FloatingPointError("the gradients of all ranks are finite, but what they add up to, or the norm "
                                     "that clips it, is not")
        counts = self._blocks.sum(axis=1).tolist()
        sums = np.empty(sum(counts))
        team.wait(team.comm.Iallgatherv([np.frombuffer(steps.sums(local)), MPI.DOUBLE], [sums, counts, MPI.DOUBLE]))
        return steps.refold(local, finite, sums[self._block_order], self._blocks.sum(axis=0))

    def _between(self):
        """Lets the local optimizer prepare its step; if it fails on one rank, all raise."""
        if self._local.elementwise:
            return
        error = None
        try:
            self._local._between()
        except Exception as caught:
            error = caught
        self._team.agree("step", error)

    # ------------------------------------------------------------------------------- averages of weights

    def finalize_variable_values(self, params=None):
        """Puts the averages into the weights, with `use_ema`, on all ranks."""
        error = None
        try:
            averages.bound(self._weights, params)
        except Exception as caught:
            error = caught
        self._team.agree("finalize", error)
        with self._team.no_return():
            self._local.finalize_variable_values()
            self._exchange.spread(self._exchange.buckets)

    @contextlib.contextmanager
    def averaged(self, params=None):
        """Within it the weights hold their averages, on all ranks; see `Optimizer.averaged`."""
        error, kept = None, ()
        with contextlib.ExitStack() as stack:
            try:
                kept = [(weight, weight.copy()) for weight in averages.bound(self._weights, params)]
                stack.enter_context(self._local.averaged())
            except Exception as caught:
                error = caught
            self._team.agree("average", error)
            with self._team.no_return():
                self._exchange.spread(self._exchange.buckets)
            try:
                yield
            finally:
                for weight, values in kept:
                    weight[...] = values

    # ------------------------------------------------------------------------------- state

    @property
    def variables(self):
        """This rank's share of the arrays that `Optimizer.variables` gives."""
        return self._local.variables

    def save(self, path):
        """Writes a checkpoint: a file per rank beside `path`, each with its share, then `path`, which joins them.

        `load` here continues from it in a job of any size, `optimc.load` in one process.  While files of ranks are
        being written, `path` and the files that it joins are those of the save before.

        Raises:
            ValueError: the optimizer has no weights yet, or a function gives a value.
            OSError: of the system, of the rank named; the checkpoint before is still whole.
        """
        checkpoints.save(path, self._team, self._share.layout, self._export, self._local._locked)

    def _export(self):
        layout = self._share.layout
        if layout is None:
            raise ValueError("the optimizer is not built: it has no state to save")
        return checkpoints.share_of(self.optimizer._export(), layout, self.rank, self._share.slot_names)

    def _take_shards(self, path, shards, description):
        """Cuts the weights that a checkpoint describes; returns this rank's tensors."""
        self._share.slot_names = checkpoints.slot_names_of(description)
        layout = self._share.layout = checkpoints.layout_of(description, shards["orders"], self.size,
                                                            self._share.cut())
        return checkpoints.read_share(path, shards, description, layout, self.rank)

    def __reduce__(self):
        raise TypeError("a Sharded optimizer belongs to its job and cannot be copied or pickled: use save and load")

    def __repr__(self):
        return f"<Sharded({self.optimizer!r}): rank {self.rank} of {self.size}>"
