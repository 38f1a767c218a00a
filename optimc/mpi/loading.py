"""`load`: a sharded optimizer from a checkpoint, of a job of any size or of one process.

Saving is `Sharded.save`; the format of the files is checkpoint's.
"""

import zlib

from mpi4py import MPI

from optimc import checkpoint
from optimc.mpi.sharded import Sharded
from optimc.mpi.team import TIMEOUT, Fact, Team


def load(path, comm=MPI.COMM_WORLD, *, custom_objects=None, **options):
    """A `Sharded` optimizer from a checkpoint that one of any number of ranks wrote, or `Optimizer.save`.

    Each rank reads what its share needs.  It binds to the weights of its next step, whose shapes and dtypes must
    match.  All ranks call it with the same arguments.

    Args:
        path: the file.
        comm, options: as `Sharded` takes them.
        custom_objects: as `optimc.load` takes them.

    Raises (on every rank, with the rank named):
        CheckpointError, OSError: as `optimc.load`.
    """
    sharded, error, mark = None, None, 0
    try:
        sharded, mark = _load(path, comm, custom_objects, options)
    except Exception as caught:
        error = caught
    Team(comm, options.get("timeout", TIMEOUT)).agree("load", error, [Fact("has another checkpoint", mark)])
    return sharded


def _load(path, comm, custom_objects, options):
    _, metadata = checkpoint.format.read(path, lambda name, shape: False)
    mark = zlib.crc32(repr(metadata).encode())
    if "shards" not in metadata:
        return Sharded(checkpoint.load(path, custom_objects), comm, **options), mark
    made = []

    def tensors_for(optimizer, description):
        made.append(Sharded(optimizer, comm, **options))
        return made[0]._take_shards(path, checkpoint.format.decode(path, metadata, "shards"), description)

    checkpoint.saving.restore(path, metadata, custom_objects, tensors_for)
    return made[0], mark
