"""The sharded optimizer: each rank keeps the slots of a share of the weights and steps it.

A rank is the wrapped optimizer, built over views of the parts of the weights that are its own, and another one
without slots that is built over the whole weights, to check gradients with and to read them through.  Next:
layout.py says whose elements are whose, team.py lets the ranks agree, loading.py reads checkpoints.
"""

import contextlib
import copy
import os
import secrets
import zlib

import numpy as np
from mpi4py import MPI

from optimc import _core, checkpoint
from optimc.base.arguments import LOW_OPEN, check_bool, count, unzip
from optimc.base.optimizer import Optimizer
from optimc.base.rules import slots_of
from optimc.base.selection import select
from optimc.base.wrapper import Wrapper
from optimc.loss_scale import LossScaleOptimizer
from optimc.mpi.layout import CUTS, Layout, Like, buckets, default_bucket, flat
from optimc.mpi.team import TIMEOUT, Team
from optimc.optimizers import SGD

KINDS = {np.dtype(np.float32): MPI.FLOAT, np.dtype(np.float64): MPI.DOUBLE}
class Sharded(Wrapper):
    """An optimizer whose slots are spread over the ranks of an MPI communicator.

    Every rank calls the same methods in the same order, with weights that are the same on all ranks and
    gradients that are its own; after a step the weights are the same on all ranks again.  Elementwise rules are
    cut at any element, so that a rank keeps 1/ranks of the slots; Lamb, Adafactor, Muon and cautious steps need
    whole weights, which are dealt out as they are.

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
        self.optimizer = optimizer          #: what was wrapped: its values may be set
        self.average, self.deterministic = average, deterministic
        self._team = Team(comm, timeout)
        self.bucket_bytes = bucket_bytes or default_bucket(self.size)
        self._local = inner                 # steps this rank's share
        self._whole = SGD(check_finite="raise")     # is never stepped: checks gradients and reads them
        self._layout = None

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
        return self._whole.built

    @property
    def iterations(self):
        """Updates done so far."""
        return self._local.iterations

    @property
    def skipped_steps(self):
        """Steps skipped so far because a gradient was not finite."""
        return self._local.skipped_steps

    @property
    def last_global_norm(self):
        """The norm of all gradients together in the last step that needed it, or None."""
        return self._local.last_global_norm

    @property
    def learning_rate(self):
        """The wrapped optimizer's; to be set equally on all ranks."""
        return self._local.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self._local.learning_rate = value

    def scale_loss(self, loss):
        """The loss multiplied by the loss scale, if there is one."""
        return self.optimizer.scale_loss(loss)

    # ------------------------------------------------------------------------------- building

    def build(self, params):
        """Binds the optimizer to its weights, whose bytes must be the same on all ranks; see `Optimizer.build`.

        Built again, it moves to new memory; it cannot take on more weights.
        """
        before = self._before_build()
        error, marks = None, (0, 0)
        try:
            marks = self._bind(params)
        except Exception as caught:
            error = caught
        try:
            self._team.agree("build", error, other_weights_or_arguments=marks[0],
                             other_numbers_in_its_weights=marks[1])
        except BaseException:
            self._undo_build(before)
            raise

    def _before_build(self):
        """What `_undo_build` needs."""
        return self._layout, [(optimizer._before_build() | {"_held_waiting": optimizer._waiting_now()},
                               optimizer._weights) for optimizer in (self._whole, self._local)]

    def _undo_build(self, before):
        self._layout, states = before
        for optimizer, (held, weights) in zip((self._whole, self._local), states, strict=True):
            optimizer._unbind()
            optimizer._undo_build(held)
            if weights is not None:
                optimizer._bind_arrays(weights, held)
        if self.built:
            self._make_rooms()

    def _bind(self, params):
        """Builds both optimizers; gives what must be the same on all ranks, as two numbers."""
        names, weights = _core.weights_of(params)
        likes = [Like(weight.shape, weight.dtype, "C" if weight.flags.c_contiguous else "F") for weight in weights]
        local, fresh = self._local, self._layout is None
        layout = self._layout = Layout(likes, self.size, self._cut()) if fresh else self._layout
        if len(likes) != len(layout.likes):
            raise ValueError(f"params: expected {len(layout.likes)} weights, as before, got {len(likes)}")
        for i, (like, known) in enumerate(zip(likes, layout.likes, strict=True)):
            if like != known:
                raise ValueError(f"params[{names[i] if names else i!r}]: expected {known}, as before, got {like}")
        self._whole.build(params)
        kernels = self._local._kernels(names, weights)
        self._slot_names = list(dict.fromkeys(slot for kernel in kernels for slot in slots_of(kernel)
                                              if slot not in local.scratch_slots))
        local._excluded = self._numbered(local._excluded[0]), local._excluded[1]
        for group in local.groups:
            group.arrays = self._numbered(group.arrays)
        if fresh and local._held_shapes:
            self._keep_share(names)
        pieces = [layout.piece(i, low, high, flat(weights[i]))
                  for i, (low, high) in enumerate(layout.pieces(self.rank))]
        local.build(pieces if names is None else dict(zip(names, pieces, strict=True)))
        self._make_rooms()
        marks = [zlib.crc32(repr((names, likes, layout.cut, self.average, self.deterministic,
                                  self.bucket_bytes)).encode()), 0]
        for vector in self._flats:
            marks[1] = zlib.crc32(vector, marks[1])
        return marks

    def _cut(self):
        """Where the weights may be cut."""
        if not self._local.elementwise or self._local._cautious:
            return "tensors"
        return "blocks" if self._may_clip() else "elements"

    def _may_clip(self):
        """Whether a norm is, or could become by its schedule, asked for."""
        local = self._local
        values = [local._get_value(group, local._index[name]) for group in range(len(local.groups) + 1)
                  for name in ("clipnorm", "global_clipnorm")]
        return any(value is not None and (callable(value) or value > 0) for value in values)

    def _numbered(self, arrays):
        """Weights as their positions, which hold for the pieces too."""
        whole = self._whole
        return tuple(sorted(select("weights", arrays, (), whole._names, whole._weights)))

    def _keep_share(self, names):
        """Keeps of the state that the wrapped optimizer came with what is this rank's."""
        local, layout = self._local, self._layout
        if local._held_shapes != tuple((like.shape, like.dtype) for like in layout.likes) \
                or (names and local._held_names and names != local._held_names):
            raise ValueError("params: expected the weights, in their order, that the optimizer holds state for")
        pieces = layout.pieces(self.rank)

        def mine(arrays):
            return arrays and [
                copy.copy(layout.piece_of(i, *pieces[i], array)) if pieces[i][0] < pieces[i][1]
                else np.empty(0, layout.likes[i].dtype) for i, array in enumerate(arrays)]

        slots, waiting = {slot: mine(arrays) for slot, arrays in local._slots.items()}, local._waiting_now()
        local._unbind()
        local.__dict__.update(_slots=slots, _averages=mine(local._averages), _held_waiting=waiting,
                              _accumulators=mine(local._accumulators), _held_shapes=self._piece_shapes())

    def _piece_shapes(self):
        pieces = self._layout.pieces(self.rank)
        return tuple((like.shape if self._layout.cut == "tensors" and high > low else (high - low,), like.dtype)
                     for like, (low, high) in zip(self._layout.likes, pieces, strict=True))

    def _make_rooms(self):
        """Room for what travels, and views of weights and gradients."""
        layout, rank = self._layout, self.rank
        self._flats = [flat(weight) for weight in self._whole._weights]
        self._buckets = buckets(layout, rank, self.bucket_bytes)
        self._gradients = {dtype: np.zeros(layout.share(dtype, rank), dtype) for dtype in layout.spaces}
        self._grads = [np.empty(0, like.dtype) for like in layout.likes]
        for dtype, gradient in self._gradients.items():
            for i, low, high, at in layout.segments(dtype, rank):
                self._grads[i] = layout.in_shape(i, gradient[at:at + high - low])
        most = max((bucket.size * bucket.dtype.itemsize for bucket in self._buckets), default=0)
        rows = max((self.size * (bucket.end - bucket.begin) * bucket.dtype.itemsize for bucket in self._buckets),
                   default=0) if self.deterministic else 0
        self._rooms = [np.empty(n, np.uint8) for n in (most, most, most, most, rows, rows)]
        sizes = [[high - low for low, high in layout.pieces(r)] for r in range(self.size)]
        self._blocks = -(-np.array(sizes, np.int64) // _core.SUM_BLOCK)     # by rank and weight
        last = np.cumsum(self._blocks).reshape(self._blocks.shape)
        self._block_order = np.array([k for end, n in zip(last.T.flat, self._blocks.T.flat, strict=True)
                                      for k in range(end - n, end)], np.int64)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Exempts weights from weight decay; see `Optimizer.exclude_from_weight_decay`."""
        self._local.exclude_from_weight_decay(self._numbered(var_list or ()) if self.built else var_list, var_names)

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
            before = self._before_build()
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
        local, whole = self._local, self._whole
        held, error, facts, run = [], None, (0, 0, 0), False
        try:
            taken = whole._match_step(grads, weights, False)
            held.append(whole)
            local._match_step([grad if t else None for t, grad in zip(taken, self._grads, strict=True)], None, True)
            held.append(local)
            facts = self._facts(taken)
        except Exception as caught:
            error = caught
        try:
            self._team.agree("apply", error, **dict(zip(
                ("done_other_steps", "gradients_for_other_weights", "other_hyperparameters"), facts, strict=True)))
            run = self._step(taken)
        finally:
            for optimizer in held:
                optimizer._finish(run and optimizer is local)
        if isinstance(self.optimizer, LossScaleOptimizer):
            for call, arguments in self.optimizer._adapted(run):
                call(*arguments)
        elif not run:
            local._skipped += 1

    def _facts(self, taken):
        """What must be the same on all ranks at a step, as numbers; raises if the weights are not cut for it."""
        local = self._local
        if CUTS.index(self._layout.cut) < CUTS.index(self._cut()):
            raise ValueError("clipnorm, global_clipnorm and cautious can be turned on only before the optimizer is "
                             "built: weights are cut as they need it")
        values = [local._current(group, k) for group in range(len(local.groups) + 1)
                  for k in range(len(local._index))]
        options = (local._check_finite, local._steps, local._overwrite, local._cautious, local._coupled,
                   local._maximize, local._excluded, [(group.arrays, group.patterns) for group in local.groups])
        return local._calls, zlib.crc32(bytes(taken)), zlib.crc32(repr((values, options)).encode())

    def _step(self, taken):
        """Everything after the agreement: whether the local optimizer is to be finished as run."""
        team, local = self._team, self._local
        updating = (local._calls + 1) % local._steps == 0
        clipping = updating and any(
            local._current(group, local._index[name]) > 0 for group in range(len(local.groups) + 1)
            for name in ("clipnorm", "global_clipnorm"))
        finite = isinstance(self.optimizer, LossScaleOptimizer)
        looking, ready = clipping or finite or local._check_finite, self._reduced(taken)
        if looking or self._layout.cut == "tensors":
            with team.no_return():
                ready = list(ready)
            if looking and not self._survey(finite):
                return False
            self._between()
        with team.no_return():
            if updating or local._overwrite:
                self._spread(ready, True)
            else:
                for bucket in ready:
                    self._advance(bucket)
        return True

    def _advance(self, bucket):
        self._local._advance(bucket.dtype.itemsize == 8, bucket.begin, bucket.end)

    def _survey(self, finite):
        """Looks at the gradients: whether the step can be done.  Norms are made of the sums of all ranks."""
        team, local = self._team, self._local
        try:
            good = local._survey(finite)
        except FloatingPointError:
            good = False
        if not team.agree("look at gradients", None, _=good)[:, 0].all():
            if finite or local.check_finite == "skip":
                return False
            error = None
            try:
                self._whole._survey(False)              # for the error that names the gradient
            except FloatingPointError as caught:
                error = caught
            team.agree("name the gradient", error)
            raise FloatingPointError("the gradients of all ranks are finite, but what they add up to, or the norm "
                                     "that clips it, is not")
        counts = self._blocks.sum(axis=1).tolist()
        sums = np.empty(sum(counts))
        team.wait(team.comm.Iallgatherv([np.frombuffer(local._sums()), MPI.DOUBLE], [sums, counts, MPI.DOUBLE]))
        return local._refold(finite, sums[self._block_order], self._blocks.sum(axis=0))

    def _between(self):
        """What the local optimizer does before it writes; if it can fail, all know."""
        if self._local.elementwise:
            return
        error = None
        try:
            self._local._between()
        except Exception as caught:
            error = caught
        self._team.agree("step", error)

    def _room(self, number, dtype, size):
        return self._rooms[number][:size * dtype.itemsize].view(dtype)

    def _reduced(self, taken):
        """Gives the buckets in order, when their gradients are there; the next one is on its way by then."""
        before = None
        for k, bucket in enumerate(self._buckets):
            coming = bucket, *self._send_gradients(bucket, k % 2, taken)
            if before:
                yield self._receive_gradients(*before)
            before = coming
        if before:
            yield self._receive_gradients(*before)

    def _send_gradients(self, bucket, k, taken):
        """Sends a bucket's gradients to those whose share they are; gives the request, and where rows come in."""
        room, kind = self._room(k, bucket.dtype, bucket.size), KINDS[bucket.dtype]
        for start, segments in zip(bucket.starts, bucket.segments, strict=True):
            for i, low, high, at in segments:
                to = room[start + at:start + at + high - low]
                if taken[i]:
                    self._whole._pull(i, to, low)
                else:
                    to.fill(0)
        n, comm = bucket.end - bucket.begin, self._team.comm
        if not self.deterministic:
            own = self._gradients[bucket.dtype][bucket.begin:bucket.end]
            return comm.Ireduce_scatter([room, kind], [own, kind], bucket.counts, MPI.SUM), None
        rows = self._room(4 + k, bucket.dtype, n * self.size)
        return comm.Ialltoallv([room, bucket.counts, bucket.starts, kind],
                               [rows, [n] * self.size, [n * rank for rank in range(self.size)], kind]), rows

    def _receive_gradients(self, bucket, request, rows):
        self._team.wait(request)
        own = self._gradients[bucket.dtype][bucket.begin:bucket.end]
        with np.errstate(all="ignore"):             # as in C, what is not finite goes its way in silence
            if rows is not None:
                first, *others = rows.reshape(self.size, -1)
                np.copyto(own, first)
                for row in others:
                    own += row
            if self.average and self.size > 1:
                own /= self.size
        return bucket

    def _spread(self, buckets, advancing=False):
        """Sends this rank's weights to all, bucket by bucket; first steps them, while the one before travels."""
        before = None
        for k, bucket in enumerate(buckets):
            if advancing:
                self._advance(bucket)
            coming = bucket, *self._send_weights(bucket, 2 + k % 2)
            if before:
                self._receive_weights(*before)
            before = coming
        if before:
            self._receive_weights(*before)

    def _send_weights(self, bucket, k):
        room, kind, start = self._room(k, bucket.dtype, bucket.size), KINDS[bucket.dtype], bucket.starts[self.rank]
        for i, low, high, at in bucket.segments[self.rank]:
            room[start + at:start + at + high - low] = self._flats[i][low:high]
        return self._team.comm.Iallgatherv(MPI.IN_PLACE, [room, bucket.counts, bucket.starts, kind]), room

    def _receive_weights(self, bucket, request, room):
        self._team.wait(request)
        for rank, segments in enumerate(bucket.segments):
            for i, low, high, at in segments if rank != self.rank else ():
                start = bucket.starts[rank] + at
                self._flats[i][low:high] = room[start:start + high - low]

    # ------------------------------------------------------------------------------- averages of weights

    def finalize_variable_values(self, params=None):
        """Puts the averages into the weights, with `use_ema`, on all ranks."""
        error = None
        try:
            self._whole._bound(params)
        except Exception as caught:
            error = caught
        self._team.agree("finalize", error)
        with self._team.no_return():
            self._local.finalize_variable_values()
            self._spread(self._buckets)

    @contextlib.contextmanager
    def averaged(self, params=None):
        """Within it the weights hold their averages, on all ranks; see `Optimizer.averaged`."""
        error, kept = None, ()
        with contextlib.ExitStack() as stack:
            try:
                kept = [(weight, weight.copy()) for weight in self._whole._bound(params)]
                stack.enter_context(self._local.averaged())
            except Exception as caught:
                error = caught
            self._team.agree("average", error)
            with self._team.no_return():
                self._spread(self._buckets)
            try:
                yield
            finally:
                for weight, values in kept:
                    weight[...] = values

    # ------------------------------------------------------------------------------- state

    @property
    def variables(self):
        """This rank's share of what `Optimizer.variables` gives."""
        return self._local.variables

    def save(self, path):
        """Writes a checkpoint: a file per rank beside `path`, each with its share, then `path`, which joins them.

        `load` here continues from it in a job of any size, `optimc.load` in one process.  While files of ranks are
        being written, `path` and what it joins are those of the save before.

        Raises:
            ValueError: the optimizer has no weights yet, or a function gives a value.
            OSError: of the system, of the rank named; the checkpoint before is still whole.
        """
        team, error, mark = self._team, None, 0
        token = team.gather(np.frombuffer(secrets.token_bytes(8), np.uint8))[0].tobytes().hex()

        def write_share():
            description, tensors = self._export()
            checkpoint.shards.write_shard(path, token, self.rank, tensors)
            return description

        try:
            mark = zlib.crc32(os.fsencode(path))
            description = self._local._locked(write_share)
        except Exception as caught:
            error = caught
        try:
            team.agree("save", error, another_path=mark)
        except BaseException:
            if error is None:
                os.unlink(checkpoint.shards.shard_path(path, token, self.rank))
            raise
        if self.rank == 0:
            try:
                checkpoint.shards.write_index(path, description, {
                    "token": token, "orders": "".join(like.order for like in self._layout.likes),
                    "files": [self._layout.owned(rank) for rank in range(self.size)]})
            except Exception as caught:
                error = caught
        team.agree("end the save", error)

    def _export(self):
        """The description of the optimizer in one piece, and this rank's tensors as `write_shard` takes them."""
        layout = self._layout
        if layout is None:
            raise ValueError("the optimizer is not built: it has no state to save")
        description, tensors = self.optimizer._export()
        part = checkpoint.descriptions.weights_part(description)
        part["shapes"] = [[list(like.shape), like.dtype.name] for like in layout.likes]
        part["slots"] = self._slot_names
        pieces = layout.pieces(self.rank)
        numbered = [(name, array, *pieces[int(name.rpartition("/")[2])]) for name, array in tensors.items()]
        return description, {name: (array, None if layout.cut == "tensors" else low)
                             for name, array, low, high in numbered if low < high}

    def _take_shards(self, path, shards, description):
        """Cuts the weights that a description tells of, and gives this rank's tensors."""
        part = checkpoint.descriptions.weights_part(description)
        layout = self._layout = Layout(
            [Like(*checkpoint.descriptions.shape_of(*entry), order)
             for entry, order in zip(part["shapes"], shards["orders"], strict=True)], self.size, self._cut())
        self._slot_names, pieces = part["slots"], layout.pieces(self.rank)
        vectors, whole = checkpoint.shards.read_shards(path, shards, description, pieces)
        tensors = {name: layout.in_shape(int(name.rpartition("/")[2]), vector) for name, vector in vectors.items()}
        for name, array in whole.items():
            i = int(name.rpartition("/")[2])
            tensors[name] = layout.piece_of(i, *pieces[i], array)
        part["shapes"] = [[list(shape), dtype.name] for shape, dtype in self._piece_shapes()]
        return checkpoint.shards.with_empty(tensors, description)

    def __reduce__(self):
        raise TypeError("a Sharded optimizer belongs to its job and cannot be copied or pickled: use save and load")

    def __repr__(self):
        return f"<Sharded({self.optimizer!r}): rank {self.rank} of {self.size}>"
